//! Lanes: one queue a tenant, served in turn.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use schemas::Tenant;
use topics::{Assignment, Chunk, Partition, Record};

/// How much may wait here, so that a backlog waits on its topic instead.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// A lane with this many bytes takes no more: its partitions are paused.
    pub(crate) lane_bytes_max: usize,
    /// With this many bytes over all lanes, no lane takes more.
    pub(crate) all_bytes_max: usize,
}

/// How much one window may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    /// At most this many records.
    pub(crate) records_max: usize,
    /// At most this many bytes, but at least one record.
    pub(crate) bytes_max: usize,
}

/// A record of work that waits for its turn.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// The tenant whose lane it waited in.
    pub(crate) tenant: Tenant,
    /// Where it was read.
    pub(crate) source: Partition,
    /// The handing-over under which it was read.
    pub(crate) assignment: Assignment,
    /// The record.
    pub(crate) record: Record,
}

/// All lanes of one processor. Lanes with work are served round robin, a record a turn, so the records taken are a
/// prefix of each lane, and so of each partition.
pub(crate) struct Lanes {
    limits: Limits,
    lanes: BTreeMap<Tenant, Lane>,
    /// Lanes with work, in the order of their next turn.
    turn: VecDeque<Tenant>,
    bytes: usize,
}

#[derive(Default)]
struct Lane {
    queue: VecDeque<Waiting>,
    bytes: usize,
    paused: BTreeSet<Partition>,
}

impl Lanes {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            lanes: BTreeMap::new(),
            turn: VecDeque::new(),
            bytes: 0,
        }
    }

    /// Queues the records of `chunk` in the lane of `tenant`. Answers whether its partition is to be paused.
    #[must_use]
    pub(crate) fn push(&mut self, tenant: &Tenant, chunk: Chunk) -> bool {
        let lane = self.lanes.entry(tenant.clone()).or_default();
        if lane.queue.is_empty() {
            self.turn.push_back(tenant.clone());
        }
        for record in chunk.records {
            let bytes = record.size_bytes();
            lane.bytes += bytes;
            self.bytes += bytes;
            let (source, assignment) = (chunk.partition.clone(), chunk.assignment);
            lane.queue.push_back(Waiting {
                tenant: tenant.clone(),
                source,
                assignment,
                record,
            });
        }
        let full = lane.bytes >= self.limits.lane_bytes_max || self.bytes >= self.limits.all_bytes_max;
        full && lane.paused.insert(chunk.partition)
    }

    /// Drops what waits of `partitions`, which belong to another processor now.
    pub(crate) fn forget(&mut self, partitions: &[Partition]) {
        for lane in self.lanes.values_mut() {
            lane.paused.retain(|partition| !partitions.contains(partition));
            lane.queue.retain(|waiting| !partitions.contains(&waiting.source));
            let bytes = lane.queue.iter().map(|waiting| waiting.record.size_bytes()).sum();
            self.bytes = self.bytes - lane.bytes + bytes;
            lane.bytes = bytes;
        }
        self.turn.retain(|tenant| !self.lanes[tenant].queue.is_empty());
        self.lanes
            .retain(|_, lane| !lane.queue.is_empty() || !lane.paused.is_empty());
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.turn.is_empty()
    }

    /// The bytes that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes a window's worth, one record from each lane in turn.
    pub(crate) fn take(&mut self, budget: Budget) -> Vec<Waiting> {
        let (mut window, mut bytes) = (Vec::new(), 0);
        while window.len() < budget.records_max && (bytes < budget.bytes_max || window.is_empty()) {
            let Some(tenant) = self.turn.pop_front() else {
                break;
            };
            let Some(lane) = self.lanes.get_mut(&tenant) else {
                continue;
            };
            let Some(waiting) = lane.queue.pop_front() else {
                continue;
            };
            let size = waiting.record.size_bytes();
            lane.bytes -= size;
            self.bytes -= size;
            bytes += size;
            if !lane.queue.is_empty() {
                self.turn.push_back(tenant);
            }
            window.push(waiting);
        }
        window
    }

    /// The paused partitions that may deliver again: those of lanes at half their limit or below, while all lanes
    /// together are there too. The gap keeps a partition from being paused and resumed at every record.
    #[must_use]
    pub(crate) fn resumable(&mut self) -> Vec<Partition> {
        if self.bytes > self.limits.all_bytes_max / 2 {
            return Vec::new();
        }
        let mut resumable = Vec::new();
        for lane in self
            .lanes
            .values_mut()
            .filter(|lane| lane.bytes <= self.limits.lane_bytes_max / 2)
        {
            resumable.extend(std::mem::take(&mut lane.paused));
        }
        self.lanes
            .retain(|_, lane| !lane.queue.is_empty() || !lane.paused.is_empty());
        resumable
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use proptest::prelude::*;
    use schemas::{TopicId, TopicName};
    use topics::TopicRef;

    use super::*;

    const WIDE: Limits = Limits {
        lane_bytes_max: 1 << 30,
        all_bytes_max: 1 << 30,
    };

    fn tenant(index: usize) -> Tenant {
        Tenant::new(&format!("t{index}")).unwrap()
    }

    fn partition(tenant: usize, index: i32) -> Partition {
        let name = TopicName::new(&format!("work.shared.t{tenant}")).unwrap();
        Partition {
            topic: Arc::new(TopicRef {
                name,
                id: TopicId::from_bytes([1; 16]),
            }),
            index,
        }
    }

    fn chunk(tenant: usize, index: i32, offsets: std::ops::Range<i64>) -> Chunk {
        let record = |offset| Record {
            offset,
            timestamp_ms: 0,
            key: None,
            value: Some(Bytes::from_static(b"0123456789")),
            headers: Vec::new(),
        };
        Chunk {
            partition: partition(tenant, index),
            assignment: Assignment(1),
            records: offsets.map(record).collect(),
        }
    }

    fn tenants_of(window: &[Waiting]) -> Vec<String> {
        window.iter().map(|waiting| waiting.tenant.to_string()).collect()
    }

    #[test]
    fn a_flood_of_one_tenant_does_not_delay_the_others_by_more_than_a_turn() {
        let mut lanes = Lanes::new(WIDE);
        assert!(!lanes.push(&tenant(0), chunk(0, 0, 0..1_000)));
        assert!(!lanes.push(&tenant(1), chunk(1, 0, 0..2)));
        assert!(!lanes.push(&tenant(2), chunk(2, 0, 0..1)));
        let window = lanes.take(Budget {
            records_max: 6,
            bytes_max: usize::MAX,
        });
        assert_eq!(tenants_of(&window), ["t0", "t1", "t2", "t0", "t1", "t0"]);
    }

    #[test]
    fn the_turn_goes_on_in_the_next_window_where_it_stopped() {
        let mut lanes = Lanes::new(WIDE);
        for index in 0..3 {
            assert!(!lanes.push(&tenant(index), chunk(index, 0, 0..5)));
        }
        let budget = Budget {
            records_max: 2,
            bytes_max: usize::MAX,
        };
        assert_eq!(tenants_of(&lanes.take(budget)), ["t0", "t1"]);
        assert_eq!(tenants_of(&lanes.take(budget)), ["t2", "t0"]);
    }

    #[test]
    fn a_full_lane_pauses_its_partition_once_and_resumes_it_at_half() {
        let one = chunk(0, 0, 0..1).records[0].size_bytes();
        let mut lanes = Lanes::new(Limits {
            lane_bytes_max: 4 * one,
            all_bytes_max: 100 * one,
        });
        assert!(!lanes.push(&tenant(0), chunk(0, 0, 0..3)));
        assert!(lanes.push(&tenant(0), chunk(0, 0, 3..4)));
        assert!(!lanes.push(&tenant(0), chunk(0, 0, 4..5)), "it is paused already");
        assert!(
            !lanes.push(&tenant(1), chunk(1, 0, 0..1)),
            "another lane is not concerned"
        );
        lanes.take(Budget {
            records_max: 3,
            bytes_max: usize::MAX,
        });
        assert_eq!(lanes.resumable(), []);
        lanes.take(Budget {
            records_max: 2,
            bytes_max: usize::MAX,
        });
        assert_eq!(lanes.resumable(), [partition(0, 0)]);
        assert_eq!(lanes.resumable(), []);
    }

    #[test]
    fn a_window_takes_at_least_one_record_however_large() {
        let mut lanes = Lanes::new(WIDE);
        assert!(!lanes.push(&tenant(0), chunk(0, 0, 0..2)));
        assert_eq!(
            lanes
                .take(Budget {
                    records_max: 10,
                    bytes_max: 1
                })
                .len(),
            1
        );
    }

    #[test]
    fn what_another_processor_took_over_is_forgotten() {
        let mut lanes = Lanes::new(WIDE);
        assert!(!lanes.push(&tenant(0), chunk(0, 0, 0..3)));
        assert!(!lanes.push(&tenant(0), chunk(0, 1, 0..3)));
        lanes.forget(&[partition(0, 0)]);
        let window = lanes.take(Budget {
            records_max: 10,
            bytes_max: usize::MAX,
        });
        assert_eq!(window.len(), 3);
        assert!(window.iter().all(|waiting| waiting.source.index == 1));
        assert!(lanes.is_empty());
        assert_eq!(lanes.bytes(), 0);
    }

    proptest! {
        /// Whatever comes and goes: a lane that always has work gets as many turns as any other, give or take one, and
        /// each partition is taken in order, without holes.
        #[test]
        fn backlogged_lanes_get_equal_turns_and_partitions_stay_in_order(
            pushes in prop::collection::vec((0_usize..4, 0_i32..2, 1_i64..20), 1..40),
            takes in prop::collection::vec(1_usize..30, 1..40),
        ) {
            let mut lanes = Lanes::new(WIDE);
            let mut pushed: BTreeMap<Partition, i64> = BTreeMap::new();
            let mut taken: BTreeMap<Partition, i64> = BTreeMap::new();
            let (mut pushes, mut takes) = (pushes.into_iter(), takes.into_iter());
            loop {
                let (push, take) = (pushes.next(), takes.next());
                if let Some((t, p, count)) = push {
                    let next = pushed.entry(partition(t, p)).or_default();
                    prop_assert!(!lanes.push(&tenant(t), chunk(t, p, *next..*next + count)));
                    *next += count;
                }
                if let Some(records_max) = take {
                    let backlogged: Vec<Tenant> = lanes
                        .lanes
                        .iter()
                        .filter(|(_, lane)| lane.queue.len() >= records_max)
                        .map(|(tenant, _)| tenant.clone())
                        .collect();
                    let window = lanes.take(Budget { records_max, bytes_max: usize::MAX });
                    let turns = backlogged.iter().map(|tenant| window.iter().filter(|w| w.tenant == *tenant).count());
                    let turns: Vec<usize> = turns.collect();
                    if let (Some(most), Some(fewest)) = (turns.iter().max(), turns.iter().min()) {
                        prop_assert!(most - fewest <= 1, "{turns:?}");
                    }
                    for waiting in window {
                        let next = taken.entry(waiting.source.clone()).or_default();
                        prop_assert_eq!(waiting.record.offset, *next);
                        *next += 1;
                    }
                }
                if push.is_none() && take.is_none() {
                    break;
                }
            }
        }
    }
}
