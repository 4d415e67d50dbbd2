//! Lanes: one queue a tenant, served in turn.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use schemas::{AdmittedJobs, Tenant};
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
    /// No further record when it has this many jobs …
    pub(crate) jobs_max: usize,
    /// … or this many bytes.
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
    /// How many jobs it has, by its own account.
    jobs: u64,
}

/// All lanes of one processor. It is always the turn of the lane that was served least, and a turn is a record, so the
/// records taken are a prefix of each lane, and so of each partition.
///
/// A lane that had nothing for a while saves nothing up: it begins where the others are (start-time fair queueing: Goyal,
/// Vin and Cheng, 1996). So what two lanes that have work all the while get differs by no more than a record of each.
pub(crate) struct Lanes {
    limits: Limits,
    lanes: BTreeMap<Tenant, Lane>,
    /// Lanes with work, by how much they were served.
    turns: BTreeSet<(u64, Tenant)>,
    /// How much the lane was served whose turn was last.
    served: u64,
    bytes: usize,
}

#[derive(Default)]
struct Lane {
    queue: VecDeque<Waiting>,
    bytes: usize,
    /// In jobs, those counted in that it missed.
    served: u64,
    paused: BTreeSet<Partition>,
}

impl Lanes {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            lanes: BTreeMap::new(),
            turns: BTreeSet::new(),
            served: 0,
            bytes: 0,
        }
    }

    /// Queues the records of `chunk` in the lane of `tenant`. Answers whether its partition is to be paused.
    #[must_use]
    pub(crate) fn push(&mut self, tenant: &Tenant, chunk: Chunk) -> bool {
        let lane = self.lanes.entry(tenant.clone()).or_default();
        if lane.queue.is_empty() {
            lane.served = lane.served.max(self.served);
            self.turns.insert((lane.served, tenant.clone()));
        }
        for record in chunk.records {
            let jobs = AdmittedJobs::count(record.value.as_deref().unwrap_or_default());
            let bytes = record.size_bytes();
            lane.bytes += bytes;
            self.bytes += bytes;
            let (source, assignment) = (chunk.partition.clone(), chunk.assignment);
            lane.queue.push_back(Waiting {
                tenant: tenant.clone(),
                source,
                assignment,
                record,
                jobs: jobs.map_or(1, |jobs| jobs.max(1) as u64),
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
        self.turns
            .retain(|(_, tenant)| !self.lanes[tenant].queue.is_empty());
        self.drop_idle();
    }

    /// Drops lanes that are as if they had never been.
    fn drop_idle(&mut self) {
        self.lanes
            .retain(|_, lane| !lane.queue.is_empty() || !lane.paused.is_empty() || lane.served > self.served);
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// The bytes that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes a window's worth: at least a record, if any waits.
    pub(crate) fn take(&mut self, budget: Budget) -> Vec<Waiting> {
        let (mut window, mut jobs, mut bytes) = (Vec::new(), 0, 0);
        while window.is_empty() || jobs < budget.jobs_max as u64 && bytes < budget.bytes_max {
            let Some((served, tenant)) = self.turns.pop_first() else {
                break;
            };
            self.served = served;
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
            jobs += waiting.jobs;
            lane.served += waiting.jobs;
            if !lane.queue.is_empty() {
                self.turns.insert((lane.served, tenant));
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
        self.drop_idle();
        resumable
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use proptest::prelude::*;
    use schemas::{Record as _, TopicId, TopicName};
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

    /// Records of a job each.
    fn chunk(tenant: usize, index: i32, offsets: std::ops::Range<i64>) -> Chunk {
        chunk_of(tenant, index, offsets, 1)
    }

    /// Records that claim `jobs` jobs each.
    fn chunk_of(tenant: usize, index: i32, offsets: std::ops::Range<i64>, jobs: u8) -> Chunk {
        const FIXARRAY: u8 = 0x90;
        let record = |offset| Record {
            offset,
            timestamp_ms: 0,
            stamped_by_log: false,
            key: None,
            value: Some(Bytes::copy_from_slice(&[AdmittedJobs::VERSION, FIXARRAY | jobs])),
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
            jobs_max: 6,
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
            jobs_max: 2,
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
            jobs_max: 3,
            bytes_max: usize::MAX,
        });
        assert_eq!(lanes.resumable(), []);
        lanes.take(Budget {
            jobs_max: 2,
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
                    jobs_max: 10,
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
            jobs_max: 10,
            bytes_max: usize::MAX,
        });
        assert_eq!(window.len(), 3);
        assert!(window.iter().all(|waiting| waiting.source.index == 1));
        assert!(lanes.is_empty());
        assert_eq!(lanes.bytes(), 0);
    }

    #[test]
    fn a_lane_that_had_nothing_for_a_while_saves_nothing_up_and_gets_nothing_for_leaving() {
        let one = Budget {
            jobs_max: 1,
            bytes_max: usize::MAX,
        };
        let mut lanes = Lanes::new(WIDE);
        assert!(!lanes.push(&tenant(0), chunk_of(0, 0, 0..100, 10)));
        let taken: Vec<_> = (0..50).flat_map(|_| lanes.take(one)).collect();
        assert_eq!(taken.len(), 50);
        assert!(!lanes.push(&tenant(1), chunk_of(1, 0, 0..10, 10)));
        let next: Vec<_> = (0..4).flat_map(|_| lanes.take(one)).collect();
        assert_eq!(tenants_of(&next), ["t1", "t0", "t1", "t0"]);
        let mut comes_and_goes = 0;
        for turn in 0..20 {
            assert!(!lanes.push(&tenant(2), chunk_of(2, 0, turn..turn + 1, 10)));
            let taken = lanes.take(one);
            comes_and_goes += tenants_of(&taken).iter().filter(|tenant| *tenant == "t2").count();
        }
        assert_eq!(
            comes_and_goes, 7,
            "a third of the turns, since three lanes have work"
        );
    }

    proptest! {
        /// Whatever comes and goes: a lane that always has work gets as many jobs as any other, give or take a record of
        /// each, and each partition is taken in order, without holes.
        #[test]
        fn backlogged_lanes_get_equal_shares_and_partitions_stay_in_order(
            pushes in prop::collection::vec((0_usize..4, 0_i32..2, 1_i64..20, 1_u8..15), 1..40),
            takes in prop::collection::vec(1_usize..100, 1..40),
        ) {
            let mut lanes = Lanes::new(WIDE);
            let mut pushed: BTreeMap<Partition, i64> = BTreeMap::new();
            let mut taken: BTreeMap<Partition, i64> = BTreeMap::new();
            let (mut pushes, mut takes) = (pushes.into_iter(), takes.into_iter());
            loop {
                let (push, take) = (pushes.next(), takes.next());
                if let Some((t, p, count, jobs)) = push {
                    let next = pushed.entry(partition(t, p)).or_default();
                    prop_assert!(!lanes.push(&tenant(t), chunk_of(t, p, *next..*next + count, jobs)));
                    *next += count;
                }
                if let Some(jobs_max) = take {
                    let before: Vec<Tenant> = lanes.turns.iter().map(|(_, tenant)| tenant.clone()).collect();
                    let window = lanes.take(Budget { jobs_max, bytes_max: usize::MAX });
                    let still_waits = |tenant: &Tenant| lanes.turns.iter().any(|(_, waits)| waits == tenant);
                    let jobs_of = |tenant: &Tenant| {
                        window.iter().filter(|w| w.tenant == *tenant).map(|w| w.jobs).sum::<u64>()
                    };
                    let jobs: Vec<u64> = before.iter().filter(|tenant| still_waits(tenant)).map(jobs_of).collect();
                    if let (Some(most), Some(fewest)) = (jobs.iter().max(), jobs.iter().min()) {
                        const RECORD_JOBS_MAX: u64 = 14;
                        prop_assert!(most - fewest <= 2 * RECORD_JOBS_MAX, "{jobs:?}");
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
