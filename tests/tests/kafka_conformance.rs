//! The Kafka implementation of topics, held to the conformance suite on a real broker.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use schemas::TopicName;
use stories::KafkaServer;
use topics::{
    Append, Event, Retention, Step, Subscription, TopicPattern, TopicSpec, Topics,
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

    let subscription = Subscription::to(vec![TopicPattern::Exact(topic)]);
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

#[tokio::test]
async fn a_setting_of_a_topic_that_stands_is_changed_where_that_is_asked_for_and_stays_as_its_operator_made_it()
 {
    let topic = TopicName::new("standing").unwrap();
    let topics = tokio::task::spawn_blocking(|| client("settings", Delivery::Transactional, &[]));
    let topics = topics.await.unwrap();
    let settings_after = async |message_bytes_max, retention| {
        let name = topic.clone();
        let spec = TopicSpec {
            message_bytes_max,
            retention,
            ..TopicSpec::new(name.clone(), 1)
        };
        topics.ensure(&[spec]).await.unwrap();
        let settings = tokio::task::spawn_blocking(move || server().settings(name.as_str()));
        settings.await.unwrap()
    };
    let settings = |named: &[(&str, &str)]| -> BTreeMap<String, String> {
        let named = named.iter();
        named
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    };
    assert_eq!(settings_after(None, Retention::Cluster).await, settings(&[]));
    let name = topic.clone();
    let by_hand = move || server().set(name.as_str(), "retention.ms=7000");
    tokio::task::spawn_blocking(by_hand).await.unwrap();
    let (by_hand, limit) = (("retention.ms", "7000"), ("max.message.bytes", "8392704"));
    assert_eq!(
        settings_after(Some(8 << 20), Retention::Cluster).await,
        settings(&[by_hand, limit])
    );
    let day = ("retention.ms", "86400000");
    assert_eq!(
        settings_after(Some(1_000), Retention::TimeMs(86_400_000)).await,
        settings(&[day, limit])
    );
    assert_eq!(
        settings_after(None, Retention::ClusterAgain).await,
        settings(&[limit])
    );
}

/// A repetition is told by its place, so a record that is appended after one of its successors would be taken for one.
#[tokio::test]
async fn nothing_is_appended_behind_a_record_that_the_broker_refuses() {
    let name = |name| TopicName::new(name).unwrap();
    let (source, target) = (name("gapless.source"), name("gapless.target"));
    let topics = tokio::task::spawn_blocking(|| client("gapless", Delivery::Idempotent, &[]));
    let topics = topics.await.unwrap();
    let specs = [&source, &target].map(|name| TopicSpec {
        message_bytes_max: Some(1_000),
        ..TopicSpec::new(name.clone(), 1)
    });
    topics.ensure(&specs).await.unwrap();
    let append = |topic: &TopicName, value: Vec<u8>| Append {
        topic: topic.clone(),
        partition: Some(0),
        timestamp_ms: 0,
        key: None,
        value: Some(value.into()),
        headers: Vec::new(),
    };
    let appender = topics.appender().await.unwrap();
    for appended in appender.append(vec![append(&source, b"work".to_vec())]).await {
        appended.unwrap();
    }
    let subscription = |topic| Subscription::to(vec![TopicPattern::Exact(topic)]);
    let (mut reader, mut committer) = topics.stage("gapless", &subscription(source)).await.unwrap();
    let chunk = loop {
        if let Event::Records(chunk) = reader.next().await.unwrap() {
            break chunk;
        }
    };
    // Each is a batch of its own, and all three are on their way before the broker refuses the second one.
    let values = [vec![b'a'; 900_000], vec![b'x'; 1_100_000], vec![b'b'; 900_000]];
    let step = Step {
        source: chunk.partition,
        assignment: chunk.assignment,
        next_offset: 1,
        appends: values.map(|value| append(&target, value)).into(),
        note: None,
    };
    let error = committer.append_and_commit(vec![step]).await.unwrap_err();
    assert!(
        error.to_string().contains("1100000 bytes is too large"),
        "{error}"
    );
    reader.close().await.unwrap();
    drop(committer);
    let last = append(&target, b"last".to_vec());
    for appended in appender.append(vec![last]).await {
        appended.unwrap();
    }
    let mut reader = topics
        .reader("gapless-reader", &subscription(target))
        .await
        .unwrap();
    let mut seen = Vec::new();
    while seen.last() != Some(&b'l') {
        if let Event::Records(chunk) = reader.next().await.unwrap() {
            let values = chunk.records.iter().filter_map(|record| record.value.as_ref());
            seen.extend(values.map(|value| value[0]));
        }
    }
    reader.close().await.unwrap();
    assert!(!seen.contains(&b'b'), "the third was appended without the second");
}

mod transactional {
    topics::conformance_tests!(super::place());
}
