//! The Kafka implementation of topics, held to the conformance suite on a real broker.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use schemas::TopicName;
use stories::KafkaServer;
use topics::{
    Append, Event, Subscription, TopicPattern, TopicSpec, Topics,
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

#[tokio::test]
async fn a_time_that_the_broker_wrote_is_told_from_a_producers() {
    const CLAIMED_MS: i64 = 1_000_000_000_000;
    let topic = TopicName::new("stamped").unwrap();
    let topics = tokio::task::spawn_blocking(|| client("stamps", Delivery::Transactional, &[]));
    let topics = topics.await.unwrap();
    topics.ensure(&[TopicSpec::new(topic.clone(), 1)]).await.unwrap();
    let append = || Append {
        topic: topic.clone(),
        partition: Some(0),
        timestamp_ms: CLAIMED_MS,
        key: None,
        value: Some("x".into()),
        headers: Vec::new(),
    };
    let appender = topics.appender().await.unwrap();
    appender.append(vec![append()]).await.remove(0).unwrap();
    let name = topic.clone();
    let set = move || server().set(name.as_str(), "message.timestamp.type=LogAppendTime");
    tokio::task::spawn_blocking(set).await.unwrap();
    appender.append(vec![append()]).await.remove(0).unwrap();

    let subscription = Subscription {
        patterns: vec![TopicPattern::Exact(topic)],
    };
    let mut reader = topics.reader("stamps", &subscription).await.unwrap();
    let mut stamps = Vec::new();
    while stamps.len() < 2 {
        if let Event::Records(chunk) = reader.next().await.unwrap() {
            let records = chunk.records.iter();
            stamps.extend(records.map(|record| (record.stamped_by_log, record.timestamp_ms == CLAIMED_MS)));
        }
    }
    assert_eq!(
        stamps,
        [(false, true), (true, false)],
        "by the log, and as claimed"
    );
    reader.close().await.unwrap();
}

mod transactional {
    topics::conformance_tests!(super::place());
}
