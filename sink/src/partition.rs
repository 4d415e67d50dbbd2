//! One partition of outcomes: what waits for its file, and which range it will be part of. Pure.

use std::{collections::VecDeque, time::Duration};

use schemas::Tenant;
use tokio::time::Instant;
use topics::{Assignment, Chunk, Record};

use crate::{
    chain::Position,
    range::{Marks, RangeIntent},
};

/// A partition under way.
#[derive(Debug)]
pub(crate) struct PartitionState {
    pub(crate) tenant: Tenant,
    pub(crate) assignment: Assignment,
    pub(crate) paused: bool,
    phase: Phase,
    records: VecDeque<Record>,
    bytes: usize,
    /// When the oldest of the records came.
    since: Option<Instant>,
}

#[derive(Debug)]
enum Phase {
    /// Its place in the lake is being looked up.
    Locating,
    /// It has its place, and no range is being written.
    Filling(Place),
    /// A range is being written. Its place comes back with it.
    Sealing,
}

/// Where a partition stands in the lake.
#[derive(Debug)]
pub(crate) struct Place {
    redo: VecDeque<RangeIntent>,
    start: i64,
    marks: Marks,
}

/// A range that is ready to be written.
#[derive(Debug)]
pub(crate) struct ReadyRange {
    pub(crate) existing: Option<RangeIntent>,
    pub(crate) start: i64,
    pub(crate) marks_before: Marks,
    pub(crate) records: Vec<Record>,
    /// What the partition's place will be when the range is written.
    rest: Place,
}

/// When a range is ready.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) flush_interval: Duration,
    pub(crate) file_bytes_max: usize,
}

impl From<Position> for Place {
    fn from(Position { redo, start, marks }: Position) -> Self {
        Self { redo, start, marks }
    }
}

impl PartitionState {
    pub(crate) fn new(tenant: Tenant, assignment: Assignment) -> Self {
        Self {
            tenant,
            assignment,
            paused: false,
            phase: Phase::Locating,
            records: VecDeque::new(),
            bytes: 0,
            since: None,
        }
    }

    pub(crate) fn push(&mut self, chunk: Chunk, now: Instant) {
        self.since.get_or_insert(now);
        self.bytes += chunk.records.iter().map(Record::size_bytes).sum::<usize>();
        self.records.extend(chunk.records);
    }

    pub(crate) fn first_offset(&self) -> Option<i64> {
        self.records.front().map(|record| record.offset)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a range of the lake is still to be done again: then the records up to its end must come, however short
    /// memory is.
    pub(crate) fn is_redoing(&self) -> bool {
        matches!(&self.phase, Phase::Filling(place) if !place.redo.is_empty())
    }

    pub(crate) fn is_locating(&self) -> bool {
        matches!(self.phase, Phase::Locating)
    }

    /// Takes its place in the lake. Records that stand there already are dropped: a late commit let them be read again.
    pub(crate) fn place(&mut self, place: Place) {
        let from = place.redo.front().map_or(place.start, |intent| intent.start);
        while self.records.front().is_some_and(|record| record.offset < from) {
            if let Some(record) = self.records.pop_front() {
                self.bytes -= record.size_bytes();
            }
        }
        if self.records.is_empty() {
            self.since = None;
        }
        self.phase = Phase::Filling(place);
    }

    /// Takes `intent` for the range that was about to be written: another sink was first. The records come back.
    pub(crate) fn superseded(&mut self, range: ReadyRange, intent: RangeIntent, now: Instant) {
        for record in range.records.into_iter().rev() {
            self.bytes += record.size_bytes();
            self.records.push_front(record);
        }
        self.since.get_or_insert(now);
        let (start, marks) = (intent.end, intent.marks_after.clone());
        self.phase = Phase::Filling(Place {
            redo: VecDeque::from([intent]),
            start,
            marks,
        });
    }

    /// Whether there is a range to write: one to redo, all of whose records are there, or a new one that is large
    /// enough, old enough, or `forced`.
    pub(crate) fn is_ready(&self, limits: Limits, now: Instant, forced: bool) -> bool {
        let Phase::Filling(place) = &self.phase else {
            return false;
        };
        let Some(last) = self.records.back() else {
            return false;
        };
        match place.redo.front() {
            Some(intent) => last.offset + 1 >= intent.end,
            None => {
                let age = self
                    .since
                    .map_or(Duration::ZERO, |since| now.duration_since(since));
                forced || self.bytes >= limits.file_bytes_max || age >= limits.flush_interval
            }
        }
    }

    /// When the oldest record will have waited long enough.
    pub(crate) fn due(&self, limits: Limits) -> Option<Instant> {
        match &self.phase {
            Phase::Filling(place) if place.redo.is_empty() => {
                self.since.map(|since| since + limits.flush_interval)
            }
            _ => None,
        }
    }

    /// Takes the next range out, if the partition has its place and any records. A new range takes what is there, up to
    /// about the size of a file; a range to redo takes exactly its own.
    pub(crate) fn take(&mut self, limits: Limits, now: Instant) -> Option<ReadyRange> {
        if self.records.is_empty() || !matches!(self.phase, Phase::Filling(_)) {
            return None;
        }
        let Phase::Filling(mut place) = std::mem::replace(&mut self.phase, Phase::Sealing) else {
            return None;
        };
        let existing = place.redo.pop_front();
        let (mut records, mut bytes) = (Vec::new(), 0);
        while let Some(record) = self.records.front() {
            let beyond = match &existing {
                Some(intent) => record.offset >= intent.end,
                None => bytes >= limits.file_bytes_max,
            };
            if beyond {
                break;
            }
            bytes += record.size_bytes();
            records.extend(self.records.pop_front());
        }
        self.bytes -= bytes;
        self.since = (!self.records.is_empty()).then_some(now);
        let end = records.last()?.offset + 1;
        let (start, marks_before) = match &existing {
            Some(intent) => (intent.start, intent.marks_before.clone()),
            None => (place.start, std::mem::take(&mut place.marks)),
        };
        if existing.is_none() {
            place.start = end;
        }
        Some(ReadyRange {
            existing,
            start,
            marks_before,
            records,
            rest: place,
        })
    }
}

impl ReadyRange {
    /// The place after this range was written, with `marks_after`.
    pub(crate) fn next_place(self, marks_after: Marks) -> Place {
        // The place behind ranges that are redone is known from the last of their intents.
        let marks = if self.existing.is_some() {
            self.rest.marks
        } else {
            marks_after
        };
        Place { marks, ..self.rest }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use schemas::{TopicId, TopicName};
    use topics::{Partition, TopicRef};

    use super::*;

    const LIMITS: Limits = Limits {
        flush_interval: Duration::from_secs(60),
        file_bytes_max: 10_000,
    };

    fn chunk(offsets: std::ops::Range<i64>) -> Chunk {
        let topic = TopicRef {
            name: TopicName::new("outcomes.acme").unwrap(),
            id: TopicId::from_bytes([1; 16]),
        };
        let value = Some(Bytes::from_static(&[0; 1_000]));
        let record = |offset| Record {
            offset,
            timestamp_ms: 0,
            key: None,
            value: value.clone(),
            headers: Vec::new(),
        };
        Chunk {
            partition: Partition {
                topic: topic.into(),
                index: 0,
            },
            assignment: Assignment(1),
            records: offsets.map(record).collect(),
        }
    }

    fn intent(start: i64, end: i64) -> RangeIntent {
        RangeIntent {
            version: 1,
            topic: TopicName::new("outcomes.acme").unwrap(),
            topic_id: TopicId::from_bytes([1; 16]),
            partition: 0,
            tenant: Tenant::new("acme").unwrap(),
            start,
            end,
            files: Vec::new(),
            duplicates: 0,
            undecodable: 0,
            marks_before: Marks::default(),
            marks_after: Marks::default(),
        }
    }

    fn partition(
        redo: Vec<RangeIntent>,
        start: i64,
        offsets: std::ops::Range<i64>,
        now: Instant,
    ) -> PartitionState {
        let mut state = PartitionState::new(Tenant::new("acme").unwrap(), Assignment(1));
        state.push(chunk(offsets), now);
        state.place(Place {
            redo: redo.into(),
            start,
            marks: Marks::default(),
        });
        state
    }

    fn offsets(range: &ReadyRange) -> (i64, i64) {
        (
            range.records.first().unwrap().offset,
            range.records.last().unwrap().offset,
        )
    }

    #[test]
    fn a_range_is_ready_by_size_by_age_or_when_forced() {
        let now = Instant::now();
        let small = partition(Vec::new(), 0, 0..3, now);
        assert!(!small.is_ready(LIMITS, now, false));
        assert!(small.is_ready(LIMITS, now, true));
        assert!(small.is_ready(LIMITS, now + LIMITS.flush_interval, false));
        assert_eq!(small.due(LIMITS), Some(now + LIMITS.flush_interval));
        assert!(partition(Vec::new(), 0, 0..10, now).is_ready(LIMITS, now, false));
    }

    #[test]
    fn records_that_the_lake_has_are_dropped_and_the_next_range_begins_where_the_last_ended() {
        let now = Instant::now();
        let mut state = partition(Vec::new(), 5, 0..8, now);
        let range = state.take(LIMITS, now).unwrap();
        assert_eq!((range.start, offsets(&range)), (5, (5, 7)));
        assert!(!state.is_ready(LIMITS, now, true), "one range at a time");
    }

    #[test]
    fn a_range_that_stands_in_the_lake_is_redone_exactly_and_only_when_all_its_records_came() {
        let now = Instant::now();
        let mut state = partition(vec![intent(0, 4), intent(4, 6)], 6, 0..3, now);
        assert!(!state.is_ready(LIMITS, now, true));
        state.push(chunk(3..9), now);
        let first = state.take(LIMITS, now).unwrap();
        assert_eq!((first.start, offsets(&first)), (0, (0, 3)));
        state.place(first.next_place(Marks::default()));
        let second = state.take(LIMITS, now).unwrap();
        assert_eq!((second.start, offsets(&second)), (4, (4, 5)));
        state.place(second.next_place(Marks::default()));
        let third = state.take(LIMITS, now).unwrap();
        assert_eq!(
            (third.start, offsets(&third), third.existing.is_none()),
            (6, (6, 8), true)
        );
    }

    #[test]
    fn who_comes_second_takes_the_other_sinks_range_for_its_own() {
        let now = Instant::now();
        let mut state = partition(Vec::new(), 0, 0..3, now);
        let range = state.take(LIMITS, now).unwrap();
        state.push(chunk(3..4), now);
        state.superseded(range, intent(0, 5), now);
        assert!(
            !state.is_ready(LIMITS, now, true),
            "the other sink's range ends later"
        );
        state.push(chunk(4..7), now);
        let redone = state.take(LIMITS, now).unwrap();
        assert_eq!((redone.start, offsets(&redone)), (0, (0, 4)));
    }
}
