//! A range of a partition, fixed before its data is written.

use std::collections::BTreeMap;

use chrono::NaiveDate;
use schemas::{Origin, Route, Tenant, TopicId, TopicName};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The version of intents that this build writes, and the only one that it reads.
const INTENT_VERSION: u32 = 1;

/// What a range is: which records, which files, and what was known of repetitions before and after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeIntent {
    /// The version of this record.
    pub version: u32,
    /// The outcomes topic.
    pub topic: TopicName,
    /// Its id.
    pub topic_id: TopicId,
    /// The partition.
    pub partition: i32,
    /// Whose outcomes the topic holds.
    pub tenant: Tenant,
    /// The range holds the records from this offset on,
    pub start: i64,
    /// and below this one, where the next range begins.
    pub end: i64,
    /// Its data files.
    pub files: Vec<RangeFile>,
    /// Repeated outcomes that were dropped.
    pub duplicates: u64,
    /// Records that could not be decoded, and went to the dead letters.
    pub undecodable: u64,
    /// The highest offset seen of each origin partition and route before this range,
    pub marks_before: Marks,
    /// and after it.
    pub marks_after: Marks,
}

/// A data file of a range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeFile {
    /// Where it stands in the lake.
    pub path: String,
    /// Which table it is part of.
    pub table: Table,
    /// The UTC date of its rows.
    pub date: NaiveDate,
    /// How many rows it has.
    pub rows: u64,
}

/// A table of the lake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Table {
    /// How every job ended.
    Results,
    /// What every outcome cost.
    Costs,
}

impl Table {
    /// The table's folder.
    pub fn name(self) -> &'static str {
        match self {
            Self::Results => "results",
            Self::Costs => "costs",
        }
    }
}

impl RangeIntent {
    /// An intent as stands in the lake.
    ///
    /// # Errors
    /// What is wrong with `bytes`, another version included.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let intent: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if intent.version != INTENT_VERSION {
            return Err(format!(
                "it has version {}, and this build reads version {INTENT_VERSION}",
                intent.version
            ));
        }
        Ok(intent)
    }

    /// The bytes that stand in the lake.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("an intent has only types that JSON can hold")
    }

    /// The SHA-256 of the bytes in the lake, as hexadecimal digits.
    pub fn digest(&self) -> String {
        Sha256::digest(self.encode())
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// The version that new intents have.
    pub(crate) fn current_version() -> u32 {
        INTENT_VERSION
    }
}

/// The highest offset seen of each origin partition and route.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Mark>", into = "Vec<Mark>")]
pub struct Marks(BTreeMap<(TopicId, i32, Route), i64>);

impl Marks {
    /// Takes note of `origin`, come along `route`. Answers whether it is new; a repetition is at or below the mark,
    /// because along one route first appearances are in order.
    pub fn is_new(&mut self, origin: &Origin, route: &Route) -> bool {
        let key = (origin.topic_id, origin.partition, route.clone());
        match self.0.get_mut(&key) {
            Some(mark) if *mark >= origin.offset => false,
            Some(mark) => {
                *mark = origin.offset;
                true
            }
            None => {
                self.0.insert(key, origin.offset);
                true
            }
        }
    }
}

#[derive(Clone, Serialize, Deserialize)]
struct Mark {
    origin_topic_id: TopicId,
    origin_partition: i32,
    route: Route,
    offset: i64,
}

impl From<Vec<Mark>> for Marks {
    fn from(marks: Vec<Mark>) -> Self {
        let entry = |mark: Mark| {
            (
                (mark.origin_topic_id, mark.origin_partition, mark.route),
                mark.offset,
            )
        };
        Self(marks.into_iter().map(entry).collect())
    }
}

impl From<Marks> for Vec<Mark> {
    fn from(marks: Marks) -> Self {
        let mark = |((origin_topic_id, origin_partition, route), offset)| Mark {
            origin_topic_id,
            origin_partition,
            route,
            offset,
        };
        marks.0.into_iter().map(mark).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn origin(partition: i32, offset: i64) -> Origin {
        Origin {
            topic: TopicName::new("jobs").unwrap(),
            topic_id: TopicId::from_bytes([1; 16]),
            partition,
            offset,
        }
    }

    #[test]
    fn marks_are_kept_by_partition_and_route() {
        let work = Route::Work(TopicName::new("work.shared.acme").unwrap());
        let mut marks = Marks::default();
        assert!(marks.is_new(&origin(0, 5), &work));
        assert!(!marks.is_new(&origin(0, 5), &work));
        assert!(!marks.is_new(&origin(0, 4), &work));
        assert!(
            marks.is_new(&origin(1, 4), &work),
            "another partition has its own offsets"
        );
        assert!(
            marks.is_new(&origin(0, 4), &Route::Rejected),
            "another route has its own order"
        );
    }

    #[test]
    fn a_re_created_topic_starts_its_marks_again() {
        let mut marks = Marks::default();
        assert!(marks.is_new(&origin(0, 5), &Route::Rejected));
        let reborn = Origin {
            topic_id: TopicId::from_bytes([2; 16]),
            ..origin(0, 0)
        };
        assert!(marks.is_new(&reborn, &Route::Rejected));
    }

    proptest! {
        /// A processor that starts over repeats from somewhere it had been: whatever it repeats, each job is new once.
        #[test]
        fn however_often_a_stretch_is_repeated_each_job_is_new_once(steps in prop::collection::vec((0_i64..10, 1_i64..10), 1..50)) {
            let (mut marks, mut reached, mut new) = (Marks::default(), 0, Vec::new());
            for (back, forth) in steps {
                let from = (reached - back).max(0);
                for offset in from..from + forth {
                    if marks.is_new(&origin(0, offset), &Route::Rejected) {
                        new.push(offset);
                    }
                }
                reached = reached.max(from + forth);
            }
            prop_assert_eq!(new, (0..reached).collect::<Vec<_>>());
        }

        #[test]
        fn marks_survive_their_encoding(offsets in prop::collection::vec((0_i32..4, any::<i64>(), any::<bool>()), 0..20)) {
            let mut marks = Marks::default();
            for (partition, offset, rejected) in offsets {
                let route = if rejected { Route::Rejected } else { Route::Work(TopicName::new("w").unwrap()) };
                marks.is_new(&origin(partition, offset), &route);
            }
            let bytes = serde_json::to_vec(&marks).unwrap();
            prop_assert_eq!(serde_json::from_slice::<Marks>(&bytes).unwrap(), marks);
        }
    }
}
