//! One partition: which range is open, what waits to be part of it, and when it is whole. Decides, and does
//! nothing itself.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;
use topics::{Assignment, Chunk, Record};

use crate::{
    chain::Position,
    encode::{OpenRange, Source},
    range::{Carried, RangeIntent},
};

/// A range is encoded in about so many steps: few enough that each is worth its while, and many enough that little waits
/// beside what is encoded.
const STEPS_A_FILE: usize = 64;

/// A partition under way.
#[derive(Debug)]
pub(crate) struct PartitionState {
    pub(crate) source: Source,
    pub(crate) assignment: Assignment,
    pub(crate) paused: bool,
    phase: Phase,
    /// Records before this stand in the lake already: a late commit let them be read again.
    begins_at: i64,
    /// Records that are yet to be encoded.
    waiting: VecDeque<Record>,
    waiting_bytes: usize,
    /// When the oldest record came that is yet to be written.
    since: Option<Instant>,
}

#[derive(Debug)]
enum Phase {
    /// Its place in the lake is to be looked up when a record says where from.
    Unplaced,
    /// Its place in the lake is being looked up.
    Locating,
    /// A range is open.
    Open { range: OpenRange, rest: Place },
    /// Records are being encoded into the range. It comes back.
    Encoding {
        held_bytes: usize,
        fixed_end: Option<i64>,
        rest: Place,
    },
    /// The range is being written. Its intent comes back.
    Sealing { redoing: bool, rest: Place },
}

/// Where a partition stands in the lake.
#[derive(Debug)]
pub(crate) struct Place {
    redo: VecDeque<RangeIntent>,
    start: i64,
    carried: Carried,
}

/// What is to be done with a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// To encode records that are part of it.
    Encode,
    /// To encode its last records and write it.
    Seal,
}

/// A range, and the records to be added to it.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) range: OpenRange,
    pub(crate) records: Vec<Record>,
    /// How much memory the two take.
    pub(crate) held_bytes: usize,
}

/// When a range is whole.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) flush_interval: Duration,
    pub(crate) file_bytes_max: usize,
}

impl From<Position> for Place {
    fn from(position: Position) -> Self {
        let Position {
            redo, start, carried, ..
        } = position;
        Self { redo, start, carried }
    }
}

impl Place {
    /// Begins the next range.
    fn open(mut self) -> Phase {
        let range = match self.redo.pop_front() {
            Some(intent) => OpenRange::again(intent),
            None => OpenRange::new(self.start, self.carried.clone()),
        };
        Phase::Open { range, rest: self }
    }
}

impl PartitionState {
    pub(crate) fn new(source: Source, assignment: Assignment) -> Self {
        Self {
            source,
            assignment,
            paused: false,
            phase: Phase::Unplaced,
            begins_at: i64::MIN,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            since: None,
        }
    }

    pub(crate) fn push(&mut self, chunk: Chunk, now: Instant) {
        for record in chunk.records {
            if record.offset >= self.begins_at {
                self.since.get_or_insert(now);
                self.waiting_bytes += record.size_bytes();
                self.waiting.push_back(record);
            }
        }
    }

    /// How much memory it takes, but for a range that is being written.
    pub(crate) fn held_bytes(&self) -> usize {
        let range = match &self.phase {
            Phase::Open { range, .. } => range.held_bytes(),
            Phase::Encoding { held_bytes, .. } => *held_bytes,
            Phase::Unplaced | Phase::Locating | Phase::Sealing { .. } => 0,
        };
        self.waiting_bytes + range
    }

    /// How much memory is free again when its range is written before it is whole.
    pub(crate) fn forceable_bytes(&self) -> usize {
        match &self.phase {
            Phase::Open { range, .. } if range.fixed_end().is_none() => self.held_bytes(),
            Phase::Encoding { fixed_end: None, .. } => self.held_bytes(),
            _ => 0,
        }
    }

    /// Whether records are yet to come of a range that is to be done again: they must, however short memory is. What is behind
    /// them may wait, and so may those of the next range while one is written.
    pub(crate) fn must_read(&self) -> bool {
        let end = match &self.phase {
            Phase::Unplaced | Phase::Locating | Phase::Sealing { .. } => None,
            Phase::Open { range, .. } => range.fixed_end(),
            Phase::Encoding { fixed_end, .. } => *fixed_end,
        };
        end.is_some_and(|end| self.waiting.back().is_none_or(|last| last.offset + 1 < end))
    }

    /// Where to look up its place from, where that is to be done and a record tells. The place comes back.
    pub(crate) fn locate(&mut self) -> Option<i64> {
        let first = self
            .waiting
            .front()
            .filter(|_| matches!(self.phase, Phase::Unplaced))?;
        self.phase = Phase::Locating;
        Some(first.offset)
    }

    /// Takes its place in the lake. Records that stand there already are dropped, those that are yet to come too.
    pub(crate) fn place(&mut self, place: Place) {
        self.phase = place.open();
        let Phase::Open { range, .. } = &self.phase else {
            return;
        };
        self.begins_at = range.start();
        while self
            .waiting
            .front()
            .is_some_and(|record| record.offset < self.begins_at)
        {
            if let Some(record) = self.waiting.pop_front() {
                self.waiting_bytes -= record.size_bytes();
            }
        }
        if self.waiting.is_empty() {
            self.since = None;
        }
    }

    /// Takes its range back, with records encoded.
    pub(crate) fn encoded(&mut self, range: OpenRange) {
        if let Phase::Encoding { rest, .. } = std::mem::replace(&mut self.phase, Phase::Locating) {
            self.phase = Phase::Open { range, rest };
        }
    }

    /// Begins the next range: the one of `intent` is written.
    pub(crate) fn sealed(&mut self, intent: &RangeIntent) {
        if let Phase::Sealing { redoing, mut rest } = std::mem::replace(&mut self.phase, Phase::Locating) {
            // The place behind ranges that are redone is known from the last of their intents.
            if !redoing {
                (rest.start, rest.carried) = (intent.end, intent.carried_after());
            }
            self.phase = rest.open();
        }
    }

    /// What there is to do with its range. One to redo is whole when all its records are there; a new one when it is large
    /// enough, old enough, or `forced`.
    pub(crate) fn due_work(&self, limits: Limits, now: Instant, forced: bool) -> Option<Work> {
        let (Phase::Open { range, .. }, Some(since)) = (&self.phase, self.since) else {
            return None;
        };
        let is_whole = match (range.fixed_end(), self.waiting.back()) {
            (Some(end), last) => last.is_some_and(|last| last.offset + 1 >= end),
            (None, _) => {
                let record_bytes = range.record_bytes() + self.waiting_bytes;
                let age = now.duration_since(since);
                forced || record_bytes >= limits.file_bytes_max || age >= limits.flush_interval
            }
        };
        if is_whole {
            return Some(Work::Seal);
        }
        let step_bytes = limits.file_bytes_max / STEPS_A_FILE;
        (!self.waiting.is_empty() && self.waiting_bytes >= step_bytes).then_some(Work::Encode)
    }

    /// When the oldest record will have waited long enough.
    pub(crate) fn due(&self, limits: Limits) -> Option<Instant> {
        match &self.phase {
            Phase::Open { range, .. } if range.fixed_end().is_none() => {
                self.since.map(|since| since + limits.flush_interval)
            }
            _ => None,
        }
    }

    /// Hands its range over to be worked on, if one is open, with the waiting records that are part of it: for a new range
    /// up to about the size of a file, for one to redo exactly its own.
    pub(crate) fn take(&mut self, work: Work, limits: Limits, now: Instant) -> Option<Step> {
        let (range, rest) = match std::mem::replace(&mut self.phase, Phase::Locating) {
            Phase::Open { range, rest } => (range, rest),
            other => {
                self.phase = other;
                return None;
            }
        };
        let (mut records, mut bytes) = (Vec::new(), 0);
        while let Some(record) = self.waiting.front() {
            let beyond = match range.fixed_end() {
                Some(end) => record.offset >= end,
                None => range.record_bytes() + bytes >= limits.file_bytes_max,
            };
            if beyond {
                break;
            }
            bytes += record.size_bytes();
            records.extend(self.waiting.pop_front());
        }
        self.waiting_bytes -= bytes;
        let (held_bytes, fixed_end) = (range.held_bytes() + bytes, range.fixed_end());
        self.phase = match work {
            Work::Encode => Phase::Encoding {
                held_bytes,
                fixed_end,
                rest,
            },
            Work::Seal => {
                self.since = (!self.waiting.is_empty()).then_some(now);
                let redoing = fixed_end.is_some();
                Phase::Sealing { redoing, rest }
            }
        };
        Some(Step {
            range,
            records,
            held_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use schemas::{Outcomes, Tenant, TopicId, TopicName};
    use topics::{Partition, TopicRef};

    use super::*;
    use crate::range::Marks;

    const LIMITS: Limits = Limits {
        flush_interval: Duration::from_secs(60),
        file_bytes_max: 10_000,
    };

    fn source() -> Source {
        let topic = TopicRef {
            name: TopicName::new("outcomes.acme").unwrap(),
            id: TopicId::from_bytes([1; 16]),
        };
        Source {
            partition: Partition {
                topic: topic.into(),
                index: 0,
            },
            tenant: Some(Tenant::new("acme").unwrap()),
        }
    }

    fn chunk(offsets: std::ops::Range<i64>) -> Chunk {
        // Not an outcome, and kept as it is.
        let value = Some(Bytes::from_static(
            &[<Outcomes<'_> as schemas::Record>::VERSION; 1_000],
        ));
        let record = |offset| Record {
            offset,
            timestamp_ms: 0,
            stamped_by_log: false,
            key: None,
            value: value.clone(),
            headers: Vec::new(),
        };
        Chunk {
            partition: source().partition,
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
            tenant: Some(Tenant::new("acme").unwrap()),
            start,
            end,
            files: Vec::new(),
            duplicates: 0,
            undecodable: 0,
            marks_before: Marks::default(),
            marks_after: Marks::default(),
            heads: None,
        }
    }

    fn partition(
        redo: Vec<RangeIntent>,
        start: i64,
        offsets: std::ops::Range<i64>,
        now: Instant,
    ) -> PartitionState {
        let mut state = PartitionState::new(source(), Assignment(1));
        state.push(chunk(offsets), now);
        state.place(Place {
            redo: redo.into(),
            start,
            carried: Carried::Marks(Marks::default()),
        });
        state
    }

    fn offsets(step: &Step) -> Option<(i64, i64)> {
        Some((step.records.first()?.offset, step.records.last()?.offset))
    }

    /// Encodes what waits.
    fn encode(state: &mut PartitionState, now: Instant) {
        let mut step = state.take(Work::Encode, LIMITS, now).unwrap();
        step.range.add(&source(), step.records).unwrap();
        state.encoded(step.range);
    }

    /// Begins to write the range that is open. Answers where it begins, whether it is done again, and its last step.
    fn seal(state: &mut PartitionState, now: Instant) -> (i64, bool, Step) {
        let step = state.take(Work::Seal, LIMITS, now).unwrap();
        (step.range.start(), step.range.fixed_end().is_some(), step)
    }

    #[test]
    fn a_range_is_whole_by_size_by_age_or_when_forced() {
        let now = Instant::now();
        let state = partition(Vec::new(), 0, 0..3, now);
        assert_eq!(state.due_work(LIMITS, now, false), Some(Work::Encode));
        assert_eq!(state.due_work(LIMITS, now, true), Some(Work::Seal));
        let later = now + LIMITS.flush_interval;
        assert_eq!(state.due_work(LIMITS, later, false), Some(Work::Seal));
        assert_eq!(state.due(LIMITS), Some(later));
        let large = partition(Vec::new(), 0, 0..10, now);
        assert_eq!(large.due_work(LIMITS, now, false), Some(Work::Seal));
        let none = partition(Vec::new(), 3, 0..3, now);
        assert_eq!(none.due_work(LIMITS, later, true), None);
    }

    #[test]
    fn what_is_encoded_counts_as_what_waits_does() {
        let now = Instant::now();
        let mut state = partition(Vec::new(), 0, 0..5, now);
        encode(&mut state, now);
        assert_eq!(state.due_work(LIMITS, now, false), None, "nothing waits");
        assert_eq!(
            state.due_work(LIMITS, now + LIMITS.flush_interval, false),
            Some(Work::Seal)
        );
        state.push(chunk(5..14), now);
        assert_eq!(state.due_work(LIMITS, now, false), Some(Work::Seal));
        let (_, _, step) = seal(&mut state, now);
        let (first, last) = offsets(&step).unwrap();
        assert!(first == 5 && last < 13, "a file has its size: {first} to {last}");
    }

    #[test]
    fn a_step_waits_until_it_is_worth_its_while() {
        let now = Instant::now();
        let large = Limits {
            file_bytes_max: 10_000 * STEPS_A_FILE,
            ..LIMITS
        };
        let mut state = partition(Vec::new(), 0, 0..3, now);
        assert_eq!(state.due_work(large, now, false), None);
        state.push(chunk(3..10), now);
        assert_eq!(state.due_work(large, now, false), Some(Work::Encode));
    }

    #[test]
    fn records_that_the_lake_has_are_dropped_and_the_next_range_begins_where_the_last_ended() {
        let now = Instant::now();
        let mut state = partition(Vec::new(), 5, 0..8, now);
        let (start, _, step) = seal(&mut state, now);
        assert_eq!((start, offsets(&step)), (5, Some((5, 7))));
        assert_eq!(state.due_work(LIMITS, now, true), None, "one range at a time");
        state.push(chunk(8..9), now);
        state.sealed(&intent(5, 8));
        let (start, _, step) = seal(&mut state, now);
        assert_eq!((start, offsets(&step)), (8, Some((8, 8))));
    }

    #[test]
    fn records_that_the_lake_has_are_dropped_also_when_they_come_after_the_place_was_found() {
        let now = Instant::now();
        let mut state = partition(Vec::new(), 5, 0..2, now);
        state.push(chunk(2..4), now);
        assert_eq!(state.due_work(LIMITS, now + LIMITS.flush_interval, true), None);
        assert_eq!(
            state.held_bytes(),
            partition(Vec::new(), 5, 0..0, now).held_bytes()
        );
        state.push(chunk(4..8), now);
        let (start, _, step) = seal(&mut state, now);
        assert_eq!((start, offsets(&step)), (5, Some((5, 7))));
    }

    #[test]
    fn a_range_that_stands_in_the_lake_is_redone_exactly_and_only_when_all_its_records_came() {
        let now = Instant::now();
        let mut state = partition(vec![intent(0, 4), intent(4, 6)], 6, 0..3, now);
        assert_eq!(state.due_work(LIMITS, now, true), Some(Work::Encode));
        encode(&mut state, now);
        assert_eq!(state.due_work(LIMITS, now, true), None);
        state.push(chunk(3..9), now);
        let mut redone = Vec::new();
        while let Some(Work::Seal) = state.due_work(LIMITS, now, true) {
            let (start, again, step) = seal(&mut state, now);
            redone.push((start, again, offsets(&step).unwrap()));
            state.sealed(&intent(start, offsets(&step).unwrap().1 + 1));
        }
        assert_eq!(redone, [(0, true, (3, 3)), (4, true, (4, 5)), (6, false, (6, 8))]);
    }

    #[test]
    fn a_range_that_is_redone_lacks_no_records_that_are_behind_it_or_already_there() {
        let now = Instant::now();
        let mut state = partition(vec![intent(0, 4), intent(4, 6)], 6, 0..3, now);
        assert!(state.must_read());
        let step = state.take(Work::Encode, LIMITS, now).unwrap();
        assert!(state.must_read(), "also while some are encoded");
        state.push(chunk(3..5), now);
        assert!(!state.must_read());
        state.encoded(step.range);
        assert!(!state.must_read(), "it may wait long for its turn to be written");
        seal(&mut state, now);
        assert!(!state.must_read());
        state.sealed(&intent(0, 4));
        assert!(state.must_read());
        state.push(chunk(5..6), now);
        seal(&mut state, now);
        state.sealed(&intent(4, 6));
        assert!(!state.must_read(), "a new range may end anywhere");
    }

    #[test]
    fn a_range_to_redo_cannot_be_forced_to_end_and_gives_no_memory_back() {
        let now = Instant::now();
        assert_eq!(partition(vec![intent(0, 4)], 4, 0..3, now).forceable_bytes(), 0);
        assert!(partition(Vec::new(), 0, 0..3, now).forceable_bytes() > 3_000);
    }

    proptest! {
        /// The lake has what is before `first + whole`, and ranges from there on are to be done again.
        #[test]
        fn each_record_that_the_lake_has_not_is_part_of_one_range_however_they_come(
            (first, whole) in (0..8_i64, 0..8_i64),
            redone in prop::collection::vec(1..6_i64, 0..3),
            chunks in prop::collection::vec((1..6_i64, any::<bool>()), 5..15),
            placed_at in 0..4_usize,
        ) {
            let now = Instant::now();
            let (mut end, mut next, mut began, mut reached) = (first + whole, first, first + whole, first + whole);
            let redo = redone.iter().map(|length| {
                end += length;
                intent(end - length, end)
            });
            let redo = redo.collect();
            let carried = Carried::Marks(Marks::default());
            let mut place = Some(Place { redo, start: end, carried });
            let mut state = PartitionState::new(source(), Assignment(1));
            for (number, (records, forced)) in chunks.into_iter().enumerate() {
                state.push(chunk(next..next + records), now);
                next += records;
                if let Some(place) = place.take_if(|_| number == placed_at) {
                    state.place(place);
                }
                while let Some(work) = state.due_work(LIMITS, now, forced) {
                    let Step { mut range, records, .. } = state.take(work, LIMITS, now).unwrap();
                    prop_assert_eq!(range.start(), began);
                    for record in &records {
                        prop_assert_eq!(record.offset, reached);
                        reached += 1;
                    }
                    if work == Work::Encode {
                        range.add(&source(), records).unwrap();
                        state.encoded(range);
                        continue;
                    }
                    prop_assert!(range.fixed_end().map_or(reached > began, |end| reached == end));
                    state.sealed(&intent(began, reached));
                    began = reached;
                }
            }
        }
    }
}
