//! Making topics, and measuring how far a group is behind.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::{
    Offset, TopicPartitionList,
    admin::{
        AdminClient, AdminOptions, NewPartitions, NewTopic, OwnedResourceSpecifier, ResourceSpecifier,
        TopicReplication, TopicResult,
    },
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    producer::{BaseProducer, Producer},
    types::RDKafkaErrorCode,
};
use schemas::TopicName;

use super::{
    ANSWER_LIMIT, blocking,
    client::{Complaints, classified, failed},
    describe, native,
};
use crate::{Error, Retention, Subscription, TopicSpec};

/// Kafka holds a whole batch of records to `max.message.bytes`, and librdkafka's batches have up to 1,000,000 bytes, unless the
/// user says otherwise. Every topic of the pipeline's own takes so many.
pub(super) const BATCH_BYTES_MAX: u32 = 1 << 20;
/// What a batch has beside the bytes of its one large record.
const BATCH_OVERHEAD_BYTES: u32 = 4096;
/// The names of the settings of a topic that are changed while it stands.
const MAX_MESSAGE_BYTES: &str = "max.message.bytes";
const RETENTION_MS: &str = "retention.ms";
/// How often the brokers are asked whether they know a topic.
const LOOK: Duration = Duration::from_millis(20);
/// What one request asks for is one batch of the controller's log, which has at most 10,000 records. It is less here because
/// a broker makes some hundred partitions a second, and should know the topics within [`ANSWER_LIMIT`].
const REQUEST_RECORDS_MAX: usize = 500;

/// Makes what is missing; see [`crate::Topics::ensure`].
pub(super) async fn ensure(
    admin: &AdminClient<Complaints>,
    client: &Arc<BaseProducer<Complaints>>,
    specs: &[TopicSpec],
    replication_factor: u16,
) -> Result<(), Error> {
    for specs in requests(specs) {
        ensure_at_once(admin, client, specs, replication_factor).await?;
    }
    Ok(())
}

/// `specs` in pieces for a request each.
fn requests(mut specs: &[TopicSpec]) -> Vec<&[TopicSpec]> {
    let mut requests = Vec::new();
    while !specs.is_empty() {
        let mut records = 0;
        let fit = specs.iter().take_while(|spec| {
            // One for itself, one for each partition, and one for each setting.
            records += 1 + wanted(spec) + settings(spec).len();
            records <= REQUEST_RECORDS_MAX
        });
        let (request, rest) = specs.split_at(fit.count().max(1));
        requests.push(request);
        specs = rest;
    }
    requests
}

async fn ensure_at_once(
    admin: &AdminClient<Complaints>,
    client: &Arc<BaseProducer<Complaints>>,
    specs: &[TopicSpec],
    replication_factor: u16,
) -> Result<(), Error> {
    let options = AdminOptions::new()
        .operation_timeout(Some(ANSWER_LIMIT))
        .request_timeout(Some(ANSWER_LIMIT));
    let settings: Vec<Vec<(&str, String)>> = specs.iter().map(settings).collect();
    let new: Vec<NewTopic<'_>> = std::iter::zip(specs, &settings)
        .map(|(spec, settings)| new_topic(spec, settings, replication_factor))
        .collect();
    let created = admin
        .create_topics(&new, &options)
        .await
        .map_err(|error| failed("create topics", &error))?;
    check(&created, RDKafkaErrorCode::TopicAlreadyExists, "create topic")?;
    let stood: HashSet<&str> = created
        .iter()
        .filter_map(|created| Some(created.as_ref().err()?.0.as_str()))
        .collect();
    let stood: Vec<&TopicSpec> = specs
        .iter()
        .filter(|spec| stood.contains(spec.name.as_str()))
        .collect();
    let limits = limits(admin, &stood, &options).await?;
    let changes = stood.into_iter().map(|spec| {
        let limit = limits.get(spec.name.as_str()).copied();
        (spec.name.clone(), changes(spec, limit))
    });
    alter(
        client,
        changes.filter(|(_, changes)| !changes.is_empty()).collect(),
    )
    .await?;
    let found = described(client, specs).await?;
    let smaller = specs.iter().filter(|spec| {
        found
            .get(&spec.name)
            .is_some_and(|found| found.partitions < wanted(spec))
    });
    let more: Vec<NewPartitions<'_>> = smaller
        .map(|spec| NewPartitions::new(spec.name.as_str(), wanted(spec)))
        .collect();
    if !more.is_empty() {
        let added = admin
            .create_partitions(&more, &options)
            .await
            .map_err(|error| failed("add partitions", &error))?;
        // Somebody else may have added them in between.
        check(
            &added,
            RDKafkaErrorCode::InvalidPartitions,
            "add partitions to topic",
        )?;
    }
    all_visible(client, specs).await
}

/// The controller answers before the brokers have heard of it.
async fn all_visible(client: &Arc<BaseProducer<Complaints>>, specs: &[TopicSpec]) -> Result<(), Error> {
    let began = Instant::now();
    loop {
        let found = described(client, specs).await?;
        let missing = |spec: &&TopicSpec| {
            found
                .get(&spec.name)
                .is_none_or(|found| found.partitions < wanted(spec))
        };
        let Some(missing) = specs.iter().find(missing) else {
            return Ok(());
        };
        if began.elapsed() > ANSWER_LIMIT {
            return Err(Error::Unavailable {
                what: format!("create topic `{}`", missing.name),
                detail: format!("the brokers do not know it after {} s", ANSWER_LIMIT.as_secs()),
            });
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn described(
    client: &Arc<BaseProducer<Complaints>>,
    specs: &[TopicSpec],
) -> Result<BTreeMap<TopicName, native::Described>, Error> {
    let (client, names) = (
        Arc::clone(client),
        specs.iter().map(|spec| spec.name.clone()).collect::<Vec<_>>(),
    );
    blocking(move || describe(&client, &names)).await
}

/// What a new topic has by name.
fn settings(spec: &TopicSpec) -> Vec<(&'static str, String)> {
    let limit = spec
        .message_bytes_max
        .map(|bytes| (MAX_MESSAGE_BYTES, batch_limit(bytes).to_string()));
    let retention = match spec.retention {
        Retention::Cluster | Retention::ClusterAgain => None,
        Retention::TimeMs(ms) => Some((RETENTION_MS, ms.to_string())),
        Retention::LastOfKey => Some(("cleanup.policy", "compact".to_owned())),
    };
    limit.into_iter().chain(retention).collect()
}

fn new_topic<'a>(
    spec: &'a TopicSpec,
    settings: &'a [(&str, String)],
    replication_factor: u16,
) -> NewTopic<'a> {
    let partitions = i32::try_from(spec.partitions).unwrap_or(i32::MAX);
    let topic = NewTopic::new(
        spec.name.as_str(),
        partitions,
        TopicReplication::Fixed(i32::from(replication_factor)),
    );
    settings
        .iter()
        .fold(topic, |topic, (name, value)| topic.set(name, value))
}

/// The limits, in bytes, of those topics that are to have one. A topic that nobody tells of has none here, and keeps its own.
async fn limits(
    admin: &AdminClient<Complaints>,
    specs: &[&TopicSpec],
    options: &AdminOptions,
) -> Result<HashMap<String, u32>, Error> {
    const WHAT: &str = "look up how large the records of topics may be";
    let limited = specs.iter().filter(|spec| spec.message_bytes_max.is_some());
    let limited: Vec<ResourceSpecifier<'_>> = limited
        .map(|spec| ResourceSpecifier::Topic(spec.name.as_str()))
        .collect();
    let mut limits = HashMap::new();
    if limited.is_empty() {
        return Ok(limits);
    }
    let described = admin.describe_configs(&limited, options).await;
    for described in described.map_err(|error| failed(WHAT, &error))? {
        match described {
            Ok(topic) => {
                let limit = topic
                    .get(MAX_MESSAGE_BYTES)
                    .and_then(|entry| entry.value.as_ref());
                let limit = limit.and_then(|bytes| bytes.parse().ok());
                if let (OwnedResourceSpecifier::Topic(name), Some(limit)) = (topic.specifier, limit) {
                    limits.insert(name, limit);
                }
            }
            // Somebody else is making it at this moment.
            Err(RDKafkaErrorCode::UnknownTopicOrPartition) => {}
            Err(RDKafkaErrorCode::TopicAuthorizationFailed) => tracing::warn!(
                "how large the records of a topic may be is not told to this client's user: it stays as it is"
            ),
            Err(code) => return Err(classified(WHAT, code, false, code.to_string())),
        }
    }
    Ok(limits)
}

/// What a topic that stood already, with a limit for its records where that is known, is to have from now on by name; none:
/// what the cluster has. No limit is lowered, since larger records may be there.
fn changes(spec: &TopicSpec, limit: Option<u32>) -> native::Changes {
    let wanted = spec.message_bytes_max.map(batch_limit);
    let higher = wanted.filter(|wanted| limit.is_some_and(|limit| limit < *wanted));
    let higher = higher.map(|limit| (MAX_MESSAGE_BYTES, Some(limit.to_string())));
    let retention = match spec.retention {
        Retention::TimeMs(ms) => Some((RETENTION_MS, Some(ms.to_string()))),
        Retention::ClusterAgain => Some((RETENTION_MS, None)),
        Retention::Cluster | Retention::LastOfKey => None,
    };
    higher.into_iter().chain(retention).collect()
}

/// Changes topics that exist.
async fn alter(
    client: &Arc<BaseProducer<Complaints>>,
    topics: Vec<(TopicName, native::Changes)>,
) -> Result<(), Error> {
    let client = Arc::clone(client);
    blocking(move || {
        native::alter(client.client(), &topics, ANSWER_LIMIT)
            .map_err(|(code, text)| classified("change the settings of topics", code, false, text))
    })
    .await
}

fn wanted(spec: &TopicSpec) -> usize {
    usize::try_from(spec.partitions).unwrap_or(usize::MAX)
}

fn batch_limit(message_bytes_max: u32) -> u32 {
    message_bytes_max
        .saturating_add(BATCH_OVERHEAD_BYTES)
        .max(BATCH_BYTES_MAX)
        .min(i32::MAX as u32)
}

/// The first failure that is not `harmless`.
fn check(results: &[TopicResult], harmless: RDKafkaErrorCode, what: &str) -> Result<(), Error> {
    for result in results {
        match result {
            Err((name, code)) if *code != harmless => {
                return Err(classified(
                    &format!("{what} `{name}`"),
                    *code,
                    false,
                    code.to_string(),
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Where a group that reads `subscription` has more to commit; see [`crate::Topics::lag`].
#[derive(Debug, Default)]
pub(super) struct Lag {
    /// How many offsets, whatever stands there.
    pub(super) offsets: u64,
    /// From where on, by topic and partition.
    pub(super) begins: BTreeMap<String, Vec<(i32, i64)>>,
}

/// How far a group is behind. `client` has the group's id and is not its member.
pub(super) fn lag(client: &BaseConsumer<Complaints>, subscription: &Subscription) -> Result<Lag, Error> {
    let failed = |error: KafkaError| failed("measure the lag", &error);
    let metadata = client.fetch_metadata(None, ANSWER_LIMIT).map_err(failed)?;
    let mut partitions = Vec::new();
    for topic in metadata.topics() {
        if TopicName::new(topic.name()).is_ok_and(|name| subscription.matches(&name)) {
            partitions.extend(
                topic
                    .partitions()
                    .iter()
                    .map(|partition| (topic.name(), partition.id())),
            );
        }
    }
    let mut lag = Lag::default();
    for ((topic, partition), stand) in standing(client, &partitions).map_err(failed)? {
        if stand.begin < stand.end {
            lag.offsets += stand.behind();
            lag.begins
                .entry(topic)
                .or_default()
                .push((partition, stand.begin));
        }
    }
    Ok(lag)
}

/// Where a group stands in a partition.
pub(super) struct Stand {
    pub(super) note: Option<String>,
    /// The offset of the next record that it has yet to commit, and of the next that will be appended.
    begin: i64,
    pub(super) end: i64,
}

impl Stand {
    /// Of a group that has committed up to one offset in a partition of which the records from another on are left.
    fn new(note: Option<String>, committed: Option<i64>, first: Option<i64>, end: i64) -> Self {
        Self {
            note,
            begin: committed.max(first).unwrap_or(end),
            end,
        }
    }

    pub(super) fn behind(&self) -> u64 {
        (self.end - self.begin).max(0).unsigned_abs()
    }
}

/// Where the client's group stands in `partitions`.
pub(super) fn standing(
    client: &BaseConsumer<Complaints>,
    partitions: &[(&str, i32)],
) -> Result<HashMap<(String, i32), Stand>, KafkaError> {
    if partitions.is_empty() {
        return Ok(HashMap::new());
    }
    let committed = client.committed_offsets(list(partitions, Offset::Invalid), ANSWER_LIMIT)?;
    let noted = committed.elements().into_iter().filter_map(|element| {
        let note = Some(element.metadata()).filter(|note| !note.is_empty());
        Some((
            (element.topic().to_owned(), element.partition()),
            note?.to_owned(),
        ))
    });
    let mut notes: HashMap<(String, i32), String> = noted.collect();
    let committed = known(&committed);
    let ends = known(&client.offsets_for_times(list(partitions, Offset::End), ANSWER_LIMIT)?);
    // What was committed may be before the first record that is left.
    let unsure: Vec<_> = partitions
        .iter()
        .copied()
        .filter(|(topic, index)| {
            let place = ((*topic).to_owned(), *index);
            let (begin, end) = (committed.get(&place), ends.get(&place));
            begin.is_none() || begin != end
        })
        .collect();
    let firsts = if unsure.is_empty() {
        HashMap::new()
    } else {
        known(&client.offsets_for_times(list(&unsure, Offset::Beginning), ANSWER_LIMIT)?)
    };
    let standing = ends.into_iter().map(|(place, end)| {
        let (committed, first) = (committed.get(&place).copied(), firsts.get(&place).copied());
        let stand = Stand::new(notes.remove(&place), committed, first, end);
        (place, stand)
    });
    Ok(standing.collect())
}

/// In the place of a time, [`Offset::Beginning`] and [`Offset::End`] stand for the first and the next offset.
fn list(partitions: &[(&str, i32)], offset: Offset) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for (topic, index) in partitions {
        list.add_partition_offset(topic, *index, offset)
            .expect("a logical offset can be set");
    }
    list
}

fn known(list: &TopicPartitionList) -> HashMap<(String, i32), i64> {
    let elements = list.elements();
    let known = elements.iter().filter_map(|element| match element.offset() {
        Offset::Offset(offset) => Some(((element.topic().to_owned(), element.partition()), offset)),
        _ => None,
    });
    known.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_of_many_tenants_are_made_by_requests_that_a_controller_takes() {
        let spec = |(number, partitions)| TopicSpec {
            message_bytes_max: Some(1 << 20),
            retention: Retention::TimeMs(1),
            ..TopicSpec::new(TopicName::new(&format!("t{number}")).unwrap(), partitions)
        };
        let partitions = [1, 4, 5_000, 1].into_iter().chain([1; 5_000]);
        let specs: Vec<TopicSpec> = (0..).zip(partitions).map(spec).collect();
        let requests = requests(&specs);
        assert_eq!(requests.concat(), specs);
        for request in &requests {
            let records: usize = request.iter().map(|spec| wanted(spec) + 3).sum();
            assert!(records <= REQUEST_RECORDS_MAX || request.len() == 1);
        }
        assert!(requests.len() < 50, "{}", requests.len());
        assert!(super::requests(&[]).is_empty());
    }

    #[test]
    fn records_that_have_expired_are_not_waited_for() {
        let behind = |committed, first, end| Stand::new(None, committed, first, end).behind();
        assert_eq!(behind(Some(3), Some(3), 10), 7);
        assert_eq!(behind(Some(3), Some(8), 10), 2);
        assert_eq!(behind(Some(3), Some(10), 10), 0);
        assert_eq!(behind(None, Some(2), 10), 8);
        assert_eq!(behind(Some(10), None, 10), 0);
    }

    #[test]
    fn a_small_limit_for_records_leaves_room_for_batches_of_them() {
        assert_eq!(batch_limit(10_000), 1_048_576);
        assert_eq!(batch_limit(8 << 20), 8_392_704);
        assert_eq!(batch_limit(u32::MAX), i32::MAX as u32);
    }

    #[test]
    fn a_topic_that_stands_is_given_a_higher_limit_and_another_time_and_nothing_that_is_not_asked_for() {
        let changed = |message_bytes_max, retention, limit| {
            let spec = TopicSpec {
                message_bytes_max,
                retention,
                ..TopicSpec::new(TopicName::new("t").unwrap(), 1)
            };
            changes(&spec, limit)
        };
        let (large, higher) = (Some(8 << 20), (MAX_MESSAGE_BYTES, Some("8392704".to_owned())));
        let raised = changed(large, Retention::Cluster, Some(1_048_588));
        assert_eq!(raised, std::slice::from_ref(&higher));
        for limit in [None, Some(8_392_704), Some(9_000_000)] {
            assert_eq!(changed(large, Retention::Cluster, limit), [], "{limit:?}");
        }
        assert_eq!(changed(None, Retention::LastOfKey, Some(1)), []);
        let day = (RETENTION_MS, Some("86400000".to_owned()));
        assert_eq!(
            changed(large, Retention::TimeMs(86_400_000), Some(1)),
            [higher, day]
        );
        assert_eq!(
            changed(None, Retention::ClusterAgain, None),
            [(RETENTION_MS, None)]
        );
    }
}
