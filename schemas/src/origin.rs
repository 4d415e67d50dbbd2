//! Where a job came from, and which way it went: together what makes an outcome appear once.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{TopicId, TopicName};

/// The position of the record that the producer wrote: the identity of a job.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    /// The topic's name.
    pub topic: TopicName,
    /// The topic's id, under which the offset is unique for ever.
    pub topic_id: TopicId,
    /// The partition of that topic.
    pub partition: i32,
    /// The offset in that partition.
    pub offset: i64,
}

impl Origin {
    /// Which of `partitions` partitions serves this job, the same however often it is asked. It spreads by a mix of the
    /// offset's bits rather than by its remainder: a transactional producer leaves gaps that favour some remainders.
    pub fn spread_over(&self, partitions: u32) -> i32 {
        let seed = (self.offset as u64) ^ (self.partition as u64).rotate_left(40);
        let part = splitmix64(seed) % u64::from(partitions.max(1));
        i32::try_from(part).expect("a remainder of a partition count")
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]@{}", self.topic, self.partition, self.offset)
    }
}

/// The way from ingest to an outcomes topic. Along one route the jobs of one origin partition keep their order, which
/// is what lets the sink know a repeated outcome by its offset alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// Straight from ingest: the job was rejected.
    Rejected,
    /// Through this work topic and a processor.
    Work(TopicName),
}

/// The finaliser of Steele, Lea and Flood's SplitMix64 ("Fast Splittable Pseudorandom Number Generators", 2014).
fn splitmix64(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_spread_evenly_even_when_every_other_offset_is_a_transaction_marker() {
        let mut counts = [0_u32; 4];
        for offset in (0..40_000).step_by(2) {
            let origin = Origin {
                topic: TopicName::new("jobs").unwrap(),
                topic_id: TopicId::from_bytes([7; 16]),
                partition: 3,
                offset,
            };
            counts[usize::try_from(origin.spread_over(4)).unwrap()] += 1;
        }
        assert!(
            counts.iter().all(|count| (4_700..5_300).contains(count)),
            "{counts:?}"
        );
    }
}
