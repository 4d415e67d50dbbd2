//! A range of a partition, fixed before its data is written.

use std::collections::{BTreeMap, btree_map::Entry};

use arrow_schema::SchemaRef;
use chrono::NaiveDate;
use schemas::{Digest, Route, Tenant, TopicId, TopicName, tables};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::audit;

/// The version of intents that this build writes, and the only one that it reads.
const INTENT_VERSION: u32 = 1;

/// What a range is: which records, which files, and what was known of repetitions before and after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeIntent {
    /// The version of this record.
    pub version: u32,
    /// The topic: of outcomes, or of audit events.
    pub topic: TopicName,
    /// Its id.
    pub topic_id: TopicId,
    /// The partition.
    pub partition: i32,
    /// Whose outcomes the topic holds; none where it holds audit events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Tenant>,
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
    /// and after it. Audit events have none: who appends them does so in transactions, or once.
    pub marks_after: Marks,
    /// The hashes of the audit's rows before and at the end of this range; none where the topic holds outcomes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<Heads>,
}

/// The chain of a partition's audit where a range begins and where it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heads {
    /// The hash of the last row before the range.
    pub before: Digest,
    /// The hash of its last row.
    pub after: Digest,
}

/// What one range of a partition hands on to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Carried {
    /// Of outcomes: what was seen.
    Marks(Marks),
    /// Of audit events: the hash of the last row.
    Head(Digest),
}

impl Carried {
    /// What the first range of a partition is handed.
    pub(crate) fn at_the_beginning(topic_id: TopicId, partition: i32, is_audit: bool) -> Self {
        match is_audit {
            true => Self::Head(audit::beginning(topic_id, partition)),
            false => Self::Marks(Marks::default()),
        }
    }
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
    /// What was done and decided.
    Audit,
}

impl Table {
    /// The table's folder.
    pub fn name(self) -> &'static str {
        match self {
            Self::Results => "results",
            Self::Costs => "costs",
            Self::Audit => "audit",
        }
    }

    /// The table's columns.
    pub(crate) fn schema(self) -> SchemaRef {
        match self {
            Self::Results => tables::results(),
            Self::Costs => tables::costs(),
            Self::Audit => tables::audit(),
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

    /// What it was handed by the range before,
    pub(crate) fn carried_before(&self) -> Carried {
        match self.heads {
            Some(Heads { before, .. }) => Carried::Head(before),
            None => Carried::Marks(self.marks_before.clone()),
        }
    }

    /// and what it hands on.
    pub(crate) fn carried_after(&self) -> Carried {
        match self.heads {
            Some(Heads { after, .. }) => Carried::Head(after),
            None => Carried::Marks(self.marks_after.clone()),
        }
    }

    /// The version that new intents have.
    pub(crate) fn current_version() -> u32 {
        INTENT_VERSION
    }
}

/// The highest offset seen of each origin partition and route.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Mark>", into = "Vec<Mark>")]
pub struct Marks(BTreeMap<Route, RouteMarks>);

/// The highest offset seen of each origin partition along one route.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouteMarks(BTreeMap<(TopicId, i32), i64>);

impl Marks {
    /// The marks of `route`.
    pub fn along(&mut self, route: &Route) -> &mut RouteMarks {
        if !self.0.contains_key(route) {
            self.0.insert(route.clone(), RouteMarks::default());
        }
        self.0.get_mut(route).expect("it is there now")
    }
}

impl RouteMarks {
    /// Takes note of an origin. Answers whether it is new; a repetition is at or below the mark, because along one route
    /// first appearances are in order.
    pub fn is_new(&mut self, topic_id: TopicId, partition: i32, offset: i64) -> bool {
        match self.0.entry((topic_id, partition)) {
            Entry::Vacant(none) => {
                none.insert(offset);
                true
            }
            Entry::Occupied(mark) if *mark.get() >= offset => false,
            Entry::Occupied(mut mark) => {
                mark.insert(offset);
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
    fn from(list: Vec<Mark>) -> Self {
        let mut marks = Self::default();
        for mark in list {
            let along = marks.along(&mark.route);
            along
                .0
                .insert((mark.origin_topic_id, mark.origin_partition), mark.offset);
        }
        marks
    }
}

impl From<Marks> for Vec<Mark> {
    /// In the order of topics, partitions and routes: the bytes of an intent are what its files name.
    fn from(marks: Marks) -> Self {
        let mut list: Vec<Mark> = marks
            .0
            .into_iter()
            .flat_map(|(route, RouteMarks(marks))| {
                marks
                    .into_iter()
                    .map(move |((origin_topic_id, origin_partition), offset)| Mark {
                        origin_topic_id,
                        origin_partition,
                        route: route.clone(),
                        offset,
                    })
            })
            .collect();
        list.sort_by(|one, other| {
            let place = |mark: &Mark| (mark.origin_topic_id, mark.origin_partition);
            place(one)
                .cmp(&place(other))
                .then_with(|| one.route.cmp(&other.route))
        });
        list
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TOPIC: TopicId = TopicId::from_bytes([1; 16]);

    #[test]
    fn marks_are_kept_by_partition_and_route() {
        let work = Route::Work(TopicName::new("work.shared.acme").unwrap());
        let mut marks = Marks::default();
        assert!(marks.along(&work).is_new(TOPIC, 0, 5));
        assert!(!marks.along(&work).is_new(TOPIC, 0, 5));
        assert!(!marks.along(&work).is_new(TOPIC, 0, 4));
        assert!(
            marks.along(&work).is_new(TOPIC, 1, 4),
            "another partition has its own offsets"
        );
        assert!(
            marks.along(&Route::Rejected).is_new(TOPIC, 0, 4),
            "another route has its own order"
        );
    }

    #[test]
    fn a_re_created_topic_starts_its_marks_again() {
        let mut marks = RouteMarks::default();
        assert!(marks.is_new(TOPIC, 0, 5));
        assert!(marks.is_new(TopicId::from_bytes([2; 16]), 0, 0));
    }

    #[test]
    fn marks_are_listed_by_topic_and_partition_and_then_by_route() {
        let work = Route::Work(TopicName::new("w").unwrap());
        let mut marks = Marks::default();
        for (route, partition) in [
            (&work, 1),
            (&Route::Rejected, 1),
            (&work, 0),
            (&Route::Rejected, 0),
        ] {
            marks.along(route).is_new(TOPIC, partition, 7);
        }
        let listed: Vec<(i32, Route)> = Vec::<Mark>::from(marks)
            .into_iter()
            .map(|mark| (mark.origin_partition, mark.route))
            .collect();
        let expected = [
            (0, &Route::Rejected),
            (0, &work),
            (1, &Route::Rejected),
            (1, &work),
        ];
        assert_eq!(
            listed,
            expected.map(|(partition, route)| (partition, route.clone()))
        );
    }

    proptest! {
        /// A processor that starts over repeats from somewhere it had been: whatever it repeats, each job is new once.
        #[test]
        fn however_often_a_stretch_is_repeated_each_job_is_new_once(steps in prop::collection::vec((0_i64..10, 1_i64..10), 1..50)) {
            let (mut marks, mut reached, mut new) = (RouteMarks::default(), 0, Vec::new());
            for (back, forth) in steps {
                let from = (reached - back).max(0);
                for offset in from..from + forth {
                    if marks.is_new(TOPIC, 0, offset) {
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
                marks.along(&route).is_new(TOPIC, partition, offset);
            }
            let bytes = serde_json::to_vec(&marks).unwrap();
            prop_assert_eq!(serde_json::from_slice::<Marks>(&bytes).unwrap(), marks);
        }
    }
}
