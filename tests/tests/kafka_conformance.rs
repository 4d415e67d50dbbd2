//! The Kafka implementation of topics, held to the conformance suite on a real broker.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use stories::KafkaServer;
use topics::{
    Topics,
    conformance::Place,
    kafka::{Delivery, KafkaTopics, Settings},
};

/// One broker for all tests of this file.
fn server() -> &'static KafkaServer {
    static SERVER: OnceLock<KafkaServer> = OnceLock::new();
    SERVER.get_or_init(KafkaServer::start)
}

fn client(instance: &str, delivery: Delivery, properties: &[(&str, &str)]) -> Arc<dyn Topics> {
    let servers = server().bootstrap_servers();
    let properties = [("bootstrap.servers", servers.as_str())]
        .into_iter()
        .chain(properties.iter().copied());
    let properties: BTreeMap<_, _> = properties
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let settings = Settings {
        properties,
        delivery,
        instance: instance.to_owned(),
        replication_factor: 1,
    };
    Arc::new(KafkaTopics::new(settings).unwrap())
}

async fn place() -> Place {
    let start = || Place {
        first: client("first", Delivery::Transactional, &[]),
        second: client("second", Delivery::Transactional, &[]),
    };
    tokio::task::spawn_blocking(start).await.unwrap()
}

mod transactional {
    topics::conformance_tests!(super::place());
}
