//! Embedded topics keep the promises of the trait.

use std::sync::Arc;

use topics::{Topics, conformance::Place, local::LocalTopics};

async fn place() -> Place {
    let topics: Arc<dyn Topics> = Arc::new(LocalTopics::in_memory());
    Place {
        first: Arc::clone(&topics),
        second: topics,
    }
}

topics::conformance_tests!(place());
