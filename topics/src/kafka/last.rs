//! What stands at the end of topics, read without being a member of a group.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
};
use schemas::TopicName;

use super::{
    ANSWER_LIMIT,
    client::{Complaints, failed, not_created},
    reader::{record, worth_telling},
};
use crate::{Error, Record};

/// librdkafka wants a consumer to have a group, though this one neither joins it nor commits.
pub(super) const GROUP: &str = "tributary-last";
/// How long one poll waits.
const POLL: Duration = Duration::from_millis(100);
/// What stands at the end may be no record for anybody, such as the marker of a transaction: each time that nothing was
/// found the look reaches so many times further back.
const REACH_FACTOR: i64 = 8;

/// A consumer that looks at the ends of topics.
pub(super) struct Looker(BaseConsumer<Complaints>);

impl Looker {
    pub(super) fn new(mut config: ClientConfig, complaints: Complaints) -> Result<Self, Error> {
        config.set("enable.partition.eof", "true");
        config
            .create_with_context(complaints)
            .map(Self)
            .map_err(|error| not_created(&error))
    }

    /// The last record of the first partition of `topic`, which exists.
    pub(super) fn last(&self, topic: &TopicName) -> Result<Option<Record>, Error> {
        let failed = |error: KafkaError| failed(&format!("read the last record of `{topic}`"), &error);
        let (low, high) = self
            .0
            .fetch_watermarks(topic.as_str(), 0, ANSWER_LIMIT)
            .map_err(failed)?;
        let mut reach = 1;
        let mut found = None;
        while found.is_none() && high > low {
            let begin = (high - reach).max(low);
            let mut place = TopicPartitionList::new();
            place
                .add_partition_offset(topic.as_str(), 0, Offset::Offset(begin))
                .map_err(failed)?;
            self.0.assign(&place).map_err(failed)?;
            found = self.read_to_end(topic)?;
            if begin == low {
                break;
            }
            reach *= REACH_FACTOR;
        }
        self.0.unassign().map_err(failed)?;
        Ok(found)
    }

    /// Whether `topic` has a record from any of these offsets of its partitions on.
    pub(super) fn any_from(&self, topic: &str, begins: &[(i32, i64)]) -> Result<bool, Error> {
        let failed = |error: KafkaError| failed(&format!("look for records of `{topic}`"), &error);
        let mut places = TopicPartitionList::new();
        for (partition, begin) in begins {
            places
                .add_partition_offset(topic, *partition, Offset::Offset(*begin))
                .map_err(failed)?;
        }
        self.0.assign(&places).map_err(failed)?;
        let found = self.find_before_the_ends(topic, begins.len());
        self.0.unassign().map_err(failed)?;
        found
    }

    /// Whether a record comes before the ends of so many assigned partitions are reached.
    fn find_before_the_ends(&self, topic: &str, partitions: usize) -> Result<bool, Error> {
        let (began, mut ended) = (Instant::now(), HashSet::new());
        while began.elapsed() < ANSWER_LIMIT {
            match self.0.poll(POLL) {
                None => {}
                Some(Ok(_)) => return Ok(true),
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    ended.insert(partition);
                    if ended.len() == partitions {
                        return Ok(false);
                    }
                }
                Some(Err(error)) => worth_telling(&error).map_or(Ok(()), Err)?,
            }
        }
        Err(Error::Unavailable {
            what: format!("look for records of `{topic}`"),
            detail: format!("neither one nor the end came within {} s", ANSWER_LIMIT.as_secs()),
        })
    }

    /// The last of the records from where the consumer stands to the end.
    fn read_to_end(&self, topic: &TopicName) -> Result<Option<Record>, Error> {
        let (began, mut last) = (Instant::now(), None);
        while began.elapsed() < ANSWER_LIMIT {
            match self.0.poll(POLL) {
                None => {}
                Some(Ok(message)) => last = Some(record(&message)),
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(last),
                Some(Err(error)) => worth_telling(&error).map_or(Ok(()), Err)?,
            }
        }
        Err(Error::Unavailable {
            what: format!("read the last record of `{topic}`"),
            detail: format!("its end was not reached within {} s", ANSWER_LIMIT.as_secs()),
        })
    }
}
