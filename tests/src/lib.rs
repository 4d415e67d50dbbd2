//! What stands behind the stories: the real servers that they run against, each in a process of its own that never outlives
//! the test; the simulator; and what must hold of its lake.

mod child;
pub mod cluster;
pub mod invariants;
mod kafka;
mod link;
mod producer;
mod s3;
pub mod simulator;

pub use kafka::KafkaServer;
pub use link::Link;
pub use producer::Producer;
pub use s3::VersityGw;
