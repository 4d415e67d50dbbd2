//! Lanes: what waits of each tenant, served in turn.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    num::{NonZeroU32, NonZeroUsize},
};

use schemas::{AdmittedJobs, Priority, Tenant};
use tokio::time::Instant;
use topics::{Assignment, Chunk, Partition, Record};

use crate::{
    cost::{self, Work},
    priorities::Queue,
    quotas::{Quota, Quotas, Waited},
    turns::{Backlogged, Turns},
};

/// How much may wait here, so that a backlog waits on its topic instead.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// A lane with this many bytes of one priority takes no more of it: its partitions are paused. Were it one limit for all of
    /// a lane, urgent jobs would wait on their topic for room that others take.
    pub(crate) lane_bytes_max: usize,
    /// With this many bytes over all lanes, no lane takes more. Those that wait for their quota do not count: what they may
    /// not run must not keep the others from what they may.
    pub(crate) all_bytes_max: usize,
}

/// How much one window may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    /// No further record when it has this many jobs …
    pub(crate) jobs_max: usize,
    /// … or this many bytes.
    pub(crate) bytes_max: usize,
    /// It takes from at most so many lanes.
    pub(crate) lanes_max: NonZeroUsize,
}

/// Work that waits for its turn: what a turn must know. The rest stands elsewhere, so that the queues of many lanes are short in
/// memory and find room in the nearer caches.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// The record's size, in bytes.
    pub(crate) bytes: usize,
    /// How many jobs it has, by its own account.
    jobs: u64,
    /// What it will be in work units, about.
    pub(crate) estimate: u64,
    pub(crate) delivery: Box<Delivery>,
}

/// A record of work as it was delivered.
#[derive(Debug)]
pub(crate) struct Delivery {
    /// The tenant whose lane it waited in.
    pub(crate) tenant: Tenant,
    priority: Priority,
    /// Where it was read.
    pub(crate) source: Partition,
    /// The handing-over under which it was read.
    pub(crate) assignment: Assignment,
    pub(crate) record: Record,
}

/// What the lanes gave for one window.
pub(crate) struct Taken {
    /// Which window of these lanes it is: the first is 1.
    pub(crate) number: u64,
    /// A prefix of each partition.
    pub(crate) waiting: Vec<Waiting>,
    /// The lanes that had work all through it.
    pub(crate) backlogged: Backlogged,
}

/// All lanes of one processor. A turn is a record.
pub(crate) struct Lanes {
    limits: Limits,
    /// What no model reads of a text is no work: the longest input of any, in tokens.
    job_tokens_max: usize,
    /// Those that have something.
    lanes: HashMap<Tenant, Lane>,
    turns: Turns,
    quotas: Quotas,
    /// Windows that were taken.
    windows: u64,
    /// What was paused of each lane and priority.
    paused: BTreeMap<(Tenant, Priority), BTreeSet<Partition>>,
    bytes: usize,
    /// Those of them that wait for their lane's quota.
    held_back_bytes: usize,
}

#[derive(Default)]
struct Lane {
    queue: Queue<Waiting>,
    /// By priority.
    bytes: [usize; 3],
    /// What it will be in work units, about, by priority.
    work: [u64; 3],
    /// Whether it waits for its quota, and so for no turn.
    is_held_back: bool,
}

impl Lane {
    fn all_bytes(&self) -> usize {
        self.bytes.iter().sum()
    }
}

impl Lanes {
    pub(crate) fn new(limits: Limits, job_tokens_max: usize) -> Self {
        Self {
            limits,
            job_tokens_max,
            lanes: HashMap::new(),
            turns: Turns::default(),
            quotas: Quotas::default(),
            windows: 0,
            paused: BTreeMap::new(),
            bytes: 0,
            held_back_bytes: 0,
        }
    }

    /// A partition of the jobs of `priority` of `tenant`, who has `quota`, is this processor's from `now` on, and with it a part
    /// of what bounds the tenant.
    pub(crate) fn gain(&mut self, tenant: &Tenant, priority: Priority, quota: Option<Quota>, now: Instant) {
        self.quotas.gain(tenant, priority, quota, now);
    }

    /// A partition of the jobs of `priority` of `tenant`, who has `quota`, is another processor's from `now` on.
    pub(crate) fn lose(&mut self, tenant: &Tenant, priority: Priority, quota: Option<Quota>, now: Instant) {
        self.quotas.lose(tenant, priority, quota, now);
    }

    /// Queues the records of `chunk`, which are of `priority` and came `now`, in the lane of `tenant`, which is of `weight` if it is new.
    /// Answers whether their partition is to be paused.
    #[must_use]
    pub(crate) fn push(
        &mut self,
        tenant: &Tenant,
        priority: Priority,
        weight: NonZeroU32,
        chunk: Chunk,
        now: Instant,
    ) -> bool {
        if chunk.records.is_empty() {
            return false;
        }
        let lane = self.lanes.entry(tenant.clone()).or_default();
        if lane.queue.is_empty() {
            lane.is_held_back = self.quotas.hold_back(tenant, now);
            if !lane.is_held_back {
                self.turns.join(tenant, weight);
            }
        }
        let is_held_back = lane.is_held_back;
        for record in chunk.records {
            let value = record.value.as_deref().unwrap_or_default();
            let jobs = AdmittedJobs::count(value).map_or(1, |jobs| jobs.max(1) as u64);
            let estimate = cost::estimate(jobs, value.len(), self.job_tokens_max);
            let bytes = record.size_bytes();
            lane.bytes[priority as usize] += bytes;
            lane.work[priority as usize] += estimate;
            self.bytes += bytes;
            if is_held_back {
                self.held_back_bytes += bytes;
            }
            let delivery = Delivery {
                tenant: tenant.clone(),
                priority,
                source: chunk.partition.clone(),
                assignment: chunk.assignment,
                record,
            };
            let waiting = Waiting {
                bytes,
                jobs,
                estimate,
                delivery: Box::new(delivery),
            };
            lane.queue.push_back(priority, waiting);
        }
        let full = lane.bytes[priority as usize] >= self.limits.lane_bytes_max
            || lane.work[priority as usize] >= self.quotas.queue_work_max(tenant)
            || self.bytes - self.held_back_bytes >= self.limits.all_bytes_max;
        full && self
            .paused
            .entry((tenant.clone(), priority))
            .or_default()
            .insert(chunk.partition)
    }

    /// Drops what waits of `partitions`, which belong to another processor now.
    pub(crate) fn forget(&mut self, partitions: &[Partition]) {
        self.paused.retain(|_, paused| {
            paused.retain(|partition| !partitions.contains(partition));
            !paused.is_empty()
        });
        let (turns, quotas) = (&mut self.turns, &mut self.quotas);
        let (bytes, held_back_bytes) = (&mut self.bytes, &mut self.held_back_bytes);
        self.lanes.retain(|tenant, lane| {
            let before = lane.all_bytes();
            lane.queue
                .retain(|waiting| !partitions.contains(&waiting.delivery.source));
            (lane.bytes, lane.work) = ([0; 3], [0; 3]);
            for waiting in lane.queue.iter() {
                let priority = waiting.delivery.priority as usize;
                lane.bytes[priority] += waiting.bytes;
                lane.work[priority] += waiting.estimate;
            }
            let forgotten = before - lane.all_bytes();
            *bytes -= forgotten;
            if lane.is_held_back {
                *held_back_bytes -= forgotten;
            }
            if lane.queue.is_empty() {
                turns.leave(tenant);
                quotas.forget(tenant);
            }
            !lane.queue.is_empty()
        });
    }

    /// Gives every lane its weight of now.
    pub(crate) fn reweigh(&mut self, weight_of: impl Fn(&Tenant) -> NonZeroU32) {
        self.turns.reweigh(weight_of);
    }

    /// Holds every lane to its quota of `now`.
    pub(crate) fn relimit(&mut self, quota_of: impl Fn(&Tenant) -> Option<Quota>, now: Instant) {
        self.quotas.relimit(quota_of, now);
    }

    /// Lets those lanes go on that waited for their quota and need not any more. Answers which waits are over.
    pub(crate) fn release(&mut self, weight_of: impl Fn(&Tenant) -> NonZeroU32, now: Instant) -> Vec<Waited> {
        let mut released = Vec::new();
        while let Some(waited) = self.quotas.release(now) {
            let tenant = &waited.tenant;
            if let Some(lane) = self.lanes.get_mut(tenant)
                && lane.is_held_back
                && !self.quotas.hold_back(tenant, now)
            {
                lane.is_held_back = false;
                self.held_back_bytes -= lane.all_bytes();
                self.turns.join(tenant, weight_of(tenant));
            }
            released.push(waited);
        }
        released
    }

    /// When the next lane need not wait any more for its rate.
    pub(crate) fn next_release(&self) -> Option<Instant> {
        self.quotas.next_release()
    }

    /// What the window of this number took of `tenant` is known as of `now`.
    pub(crate) fn settle(&mut self, window: u64, tenant: &Tenant, work: Work, now: Instant) {
        self.turns.settle(tenant, work.estimate, work.units);
        self.quotas.settle(window, tenant, work, now);
        if let Some(lane) = self.lanes.get_mut(tenant)
            && !lane.is_held_back
            && self.quotas.hold_back(tenant, now)
        {
            lane.is_held_back = true;
            self.held_back_bytes += lane.all_bytes();
            self.turns.leave(tenant);
        }
    }

    /// The windows up to this number are committed.
    pub(crate) fn committed(&mut self, window: u64) {
        self.quotas.committed(window);
    }

    /// Whether nothing waits that may run.
    pub(crate) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// The bytes that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes a window's worth as of `now`: at least a record, if any waits that may run.
    pub(crate) fn take(&mut self, budget: Budget, now: Instant) -> Taken {
        self.windows += 1;
        let (mut window, mut jobs, mut bytes) = (Vec::new(), 0, 0);
        let mut round = self.turns.round(budget.lanes_max);
        while window.is_empty() || jobs < budget.jobs_max as u64 && bytes < budget.bytes_max {
            let Some(tenant) = round.next() else {
                break;
            };
            let lane = self.lanes.get_mut(tenant).expect("whose turn it is has work");
            let (priority, waiting) = lane.queue.pop_front().expect("whose turn it is has work");
            lane.bytes[priority as usize] -= waiting.bytes;
            lane.work[priority as usize] -= waiting.estimate;
            self.bytes -= waiting.bytes;
            bytes += waiting.bytes;
            jobs += waiting.jobs;
            self.quotas.charge(self.windows, tenant, waiting.estimate, now);
            let goes_on = !lane.queue.is_empty() && !self.quotas.hold_back(tenant, now);
            round.serve(waiting.estimate, goes_on);
            if lane.queue.is_empty() {
                self.lanes.remove(tenant);
            } else if !goes_on {
                lane.is_held_back = true;
                self.held_back_bytes += lane.all_bytes();
            }
            window.push(waiting);
        }
        Taken {
            number: self.windows,
            waiting: window,
            backlogged: round.end(),
        }
    }

    /// The paused partitions that may deliver again: those of lanes at half their limit of that priority or below, while all
    /// lanes together are there too. The gap keeps a partition from being paused and resumed at every record.
    #[must_use]
    pub(crate) fn resumable(&mut self) -> Vec<Partition> {
        if self.bytes - self.held_back_bytes > self.limits.all_bytes_max / 2 {
            return Vec::new();
        }
        let low = |(tenant, priority): &(Tenant, Priority)| {
            let lane = self.lanes.get(tenant);
            let priority = *priority as usize;
            let (bytes, work) = lane.map_or((0, 0), |lane| (lane.bytes[priority], lane.work[priority]));
            bytes <= self.limits.lane_bytes_max / 2 && work <= self.quotas.queue_work_max(tenant) / 2
        };
        let resumable = self.paused.extract_if(.., |lane, _| low(lane));
        resumable.flat_map(|(_, partitions)| partitions).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use bytes::Bytes;
    use proptest::prelude::*;
    use schemas::{Record as _, TopicId, TopicName};
    use topics::TopicRef;

    use super::*;
    use crate::quotas::WaitsFor;
    use Priority::{High, Low, Normal};

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

    fn push(
        lanes: &mut Lanes,
        tenant: &Tenant,
        priority: Priority,
        weight: NonZeroU32,
        chunk: Chunk,
    ) -> bool {
        lanes.push(tenant, priority, weight, chunk, Instant::now())
    }

    fn settle(lanes: &mut Lanes, tenant: &Tenant, estimate: u64, units: u64) {
        lanes.settle(1, tenant, Work { estimate, units }, Instant::now());
    }

    /// Takes a window from any number of lanes.
    fn take(lanes: &mut Lanes, jobs_max: usize) -> Vec<Waiting> {
        let budget = Budget {
            jobs_max,
            bytes_max: usize::MAX,
            lanes_max: NonZeroUsize::MAX,
        };
        lanes.take(budget, Instant::now()).waiting
    }

    fn tenants_of(window: &[Waiting]) -> Vec<String> {
        window
            .iter()
            .map(|waiting| waiting.delivery.tenant.to_string())
            .collect()
    }

    #[test]
    fn a_flood_of_one_tenant_does_not_delay_the_others_by_more_than_a_turn() {
        let mut lanes = Lanes::new(WIDE, usize::MAX);
        assert!(!push(
            &mut lanes,
            &tenant(0),
            Normal,
            NonZeroU32::MIN,
            chunk(0, 0, 0..1_000)
        ));
        assert!(!push(
            &mut lanes,
            &tenant(1),
            Normal,
            NonZeroU32::MIN,
            chunk(1, 0, 0..2)
        ));
        assert!(!push(
            &mut lanes,
            &tenant(2),
            Normal,
            NonZeroU32::MIN,
            chunk(2, 0, 0..1)
        ));
        let window = take(&mut lanes, 6);
        assert_eq!(tenants_of(&window), ["t0", "t1", "t2", "t0", "t1", "t0"]);
    }

    #[test]
    fn the_turn_goes_on_in_the_next_window_where_it_stopped() {
        let mut lanes = Lanes::new(WIDE, usize::MAX);
        for index in 0..3 {
            assert!(!push(
                &mut lanes,
                &tenant(index),
                Normal,
                NonZeroU32::MIN,
                chunk(index, 0, 0..5)
            ));
        }
        assert_eq!(tenants_of(&take(&mut lanes, 2)), ["t0", "t1"]);
        assert_eq!(tenants_of(&take(&mut lanes, 2)), ["t2", "t0"]);
    }

    #[test]
    fn a_full_lane_pauses_its_partition_once_and_resumes_it_at_half() {
        let one = chunk(0, 0, 0..1).records[0].size_bytes();
        let mut lanes = Lanes::new(
            Limits {
                lane_bytes_max: 4 * one,
                all_bytes_max: 100 * one,
            },
            usize::MAX,
        );
        assert!(!push(
            &mut lanes,
            &tenant(0),
            Normal,
            NonZeroU32::MIN,
            chunk(0, 0, 0..3)
        ));
        assert!(push(
            &mut lanes,
            &tenant(0),
            Normal,
            NonZeroU32::MIN,
            chunk(0, 0, 3..4)
        ));
        assert!(
            !push(&mut lanes, &tenant(0), Normal, NonZeroU32::MIN, chunk(0, 0, 4..5)),
            "it is paused already"
        );
        assert!(
            !push(&mut lanes, &tenant(1), Normal, NonZeroU32::MIN, chunk(1, 0, 0..1)),
            "another lane is not concerned"
        );
        take(&mut lanes, 3);
        assert_eq!(lanes.resumable(), []);
        take(&mut lanes, 2);
        assert_eq!(lanes.resumable(), [partition(0, 0)]);
        assert_eq!(lanes.resumable(), []);
    }

    #[test]
    fn low_jobs_that_fill_their_lane_keep_no_high_ones_from_it() {
        let one = chunk(0, 0, 0..1).records[0].size_bytes();
        let limits = Limits {
            lane_bytes_max: 4 * one,
            all_bytes_max: 100 * one,
        };
        let mut lanes = Lanes::new(limits, usize::MAX);
        assert!(push(
            &mut lanes,
            &tenant(0),
            Low,
            NonZeroU32::MIN,
            chunk(0, 0, 0..8)
        ));
        assert!(!push(
            &mut lanes,
            &tenant(0),
            High,
            NonZeroU32::MIN,
            chunk(0, 1, 0..2)
        ));
        let window = take(&mut lanes, 3);
        let sources: Vec<i32> = window
            .iter()
            .map(|waiting| waiting.delivery.source.index)
            .collect();
        assert_eq!(sources, [1, 1, 0], "the high ones first");
        assert_eq!(lanes.resumable(), []);
    }

    #[test]
    fn low_jobs_that_wait_for_a_quota_keep_no_high_ones_from_their_lane() {
        for quota in [records_per_s(1), concurrent_records(1)] {
            let (mut lanes, now) = (Lanes::new(WIDE, usize::MAX), Instant::now());
            lanes.gain(&tenant(0), Low, quota, now);
            let work_max = lanes.quotas.queue_work_max(&tenant(0));
            let fill = i64::try_from(work_max.div_ceil(record_work().into())).unwrap();
            let mut push = |priority, index, records| {
                let chunk = chunk(0, index, records);
                lanes.push(&tenant(0), priority, NonZeroU32::MIN, chunk, now)
            };
            assert!(push(Low, 0, 0..fill));
            assert!(!push(High, 1, 0..fill / 2));
            assert!(push(High, 1, fill / 2..fill));
            let later = now + Duration::from_secs(1);
            lanes.release(|_| NonZeroU32::MIN, later);
            let budget = Budget {
                jobs_max: 1,
                bytes_max: usize::MAX,
                lanes_max: NonZeroUsize::MAX,
            };
            let first = lanes.take(budget, later).waiting.remove(0).delivery;
            assert_eq!(first.priority, High);
            assert_eq!(lanes.resumable(), []);
            lanes.forget(&[partition(0, 1)]);
            assert_eq!(
                lanes.lanes[&tenant(0)].work,
                [work_max.next_multiple_of(record_work().into()), 0, 0]
            );
        }
    }

    #[test]
    fn high_jobs_of_a_tenant_take_nothing_from_the_others() {
        let mut lanes = Lanes::new(WIDE, usize::MAX);
        assert!(!push(
            &mut lanes,
            &tenant(0),
            High,
            NonZeroU32::MIN,
            chunk(0, 0, 0..50)
        ));
        assert!(!push(
            &mut lanes,
            &tenant(0),
            Low,
            NonZeroU32::MIN,
            chunk(0, 1, 0..50)
        ));
        assert!(!push(
            &mut lanes,
            &tenant(1),
            Low,
            NonZeroU32::MIN,
            chunk(1, 0, 0..50)
        ));
        let window = tenants_of(&take(&mut lanes, 20));
        assert_eq!(window.iter().filter(|tenant| *tenant == "t1").count(), 10);
    }

    /// What a record of [`chunk`] is estimated at, so that a rate can be said in records.
    fn record_work() -> u32 {
        let value_bytes = chunk(0, 0, 0..1).records[0].value.as_ref().unwrap().len();
        cost::estimate(1, value_bytes, usize::MAX) as u32
    }

    /// So many records a second, and as many at once, of a tenant with one partition.
    fn records_per_s(records: u32) -> Option<Quota> {
        let rate = schemas::Rate {
            work_units_per_s: NonZeroU32::new(records * record_work()).unwrap(),
            burst_work_units: None,
        };
        Some(Quota {
            rate: Some(rate),
            concurrent_work_units_max: None,
            partitions: NonZeroU32::MIN,
            priority_max: Low,
        })
    }

    /// So many records under way, of a tenant with one partition.
    fn concurrent_records(records: u32) -> Option<Quota> {
        Some(Quota {
            rate: None,
            concurrent_work_units_max: NonZeroU32::new(records * record_work()),
            partitions: NonZeroU32::MIN,
            priority_max: Low,
        })
    }

    #[test]
    fn a_lane_over_its_rate_waits_and_the_others_get_all_that_it_leaves() {
        let (mut lanes, began) = (Lanes::new(WIDE, usize::MAX), Instant::now());
        lanes.gain(&tenant(0), Low, records_per_s(2), began);
        let mut now = began + Duration::from_secs(1);
        assert!(!lanes.push(&tenant(0), Normal, NonZeroU32::MIN, chunk(0, 0, 0..15), now));
        assert!(!lanes.push(&tenant(1), Normal, NonZeroU32::MIN, chunk(1, 0, 0..100), now));
        let budget = Budget {
            jobs_max: 10,
            bytes_max: usize::MAX,
            lanes_max: NonZeroUsize::MAX,
        };
        let mut of_limited = Vec::new();
        for _ in 0..5 {
            lanes.release(|_| NonZeroU32::MIN, now);
            let window = lanes.take(budget, now).waiting;
            assert_eq!(window.len(), 10);
            of_limited.push(
                tenants_of(&window)
                    .iter()
                    .filter(|tenant| *tenant == "t0")
                    .count(),
            );
            now += Duration::from_secs(1);
        }
        assert_eq!(of_limited, [2, 2, 2, 2, 2]);
    }

    #[test]
    fn lanes_that_all_wait_for_their_rates_are_as_if_empty_until_the_first_may_go_on() {
        let (mut lanes, now) = (Lanes::new(WIDE, usize::MAX), Instant::now());
        for index in 0..2 {
            lanes.gain(&tenant(index), Low, records_per_s(1 + index as u32), now);
            assert!(!lanes.push(
                &tenant(index),
                Normal,
                NonZeroU32::MIN,
                chunk(index, 0, 0..5),
                now
            ));
        }
        assert!(lanes.is_empty(), "nothing has been saved up yet");
        let soon = lanes.next_release().unwrap();
        assert_eq!(lanes.release(|_| NonZeroU32::MIN, soon).len(), 2);
        let budget = Budget {
            jobs_max: 10,
            bytes_max: usize::MAX,
            lanes_max: NonZeroUsize::MAX,
        };
        assert_eq!(tenants_of(&lanes.take(budget, soon).waiting), ["t0", "t1"]);
        assert!(lanes.is_empty());
        let due = lanes.next_release().unwrap();
        assert_eq!((due - now).as_millis(), 500);
        let released = lanes.release(|_| NonZeroU32::MIN, due);
        let waited = Waited {
            tenant: tenant(1),
            waits_for: WaitsFor::Rate,
            took: due - soon,
        };
        assert_eq!(released, [waited]);
        lanes.forget(&[partition(0, 0), partition(1, 0)]);
        assert_eq!(
            (lanes.next_release(), lanes.bytes(), lanes.held_back_bytes),
            (None, 0, 0)
        );
    }

    #[test]
    fn a_lane_whose_rate_ends_while_it_waits_is_let_go_or_forgotten_with_all_that_it_has() {
        let ends: [fn(&mut Lanes, Instant); 2] = [
            |lanes, now| lanes.relimit(|_| None, now),
            |lanes, now| lanes.lose(&tenant(0), Low, records_per_s(1), now),
        ];
        for (end, is_forgotten) in ends
            .into_iter()
            .zip([true, false])
            .chain(ends.into_iter().zip([false, true]))
        {
            let (mut lanes, now) = (Lanes::new(WIDE, usize::MAX), Instant::now());
            lanes.gain(&tenant(0), Low, records_per_s(1), now);
            assert!(!lanes.push(&tenant(0), Normal, NonZeroU32::MIN, chunk(0, 0, 0..5), now));
            assert!(lanes.is_empty(), "it waits");
            end(&mut lanes, now);
            if is_forgotten {
                lanes.forget(&[partition(0, 0)]);
            } else {
                assert!(!lanes.push(&tenant(0), Normal, NonZeroU32::MIN, chunk(0, 0, 5..7), now));
            }
            lanes.release(|_| NonZeroU32::MIN, now);
            assert_eq!((lanes.is_empty(), lanes.held_back_bytes), (is_forgotten, 0));
            assert_eq!(lanes.next_release(), None);
        }
    }

    #[test]
    fn a_lane_with_as_much_under_way_as_it_may_waits_for_a_commit_and_the_others_get_all_that_it_leaves() {
        let (mut lanes, now) = (Lanes::new(WIDE, usize::MAX), Instant::now());
        lanes.gain(&tenant(0), Low, concurrent_records(3), now);
        for index in 0..2 {
            let chunk = chunk(index, 0, 0..100);
            assert!(!push(&mut lanes, &tenant(index), Low, NonZeroU32::MIN, chunk));
        }
        let of_limited = |lanes: &mut Lanes| {
            let window = tenants_of(&take(lanes, 10));
            assert_eq!(window.len(), 10);
            window.iter().filter(|tenant| *tenant == "t0").count()
        };
        let first_and_second = [of_limited(&mut lanes), of_limited(&mut lanes)];
        assert_eq!(first_and_second, [3, 0]);
        lanes.committed(1);
        let later = now + Duration::from_secs(1);
        let waited = lanes.release(|_| NonZeroU32::MIN, later);
        assert_eq!(waited.len(), 1);
        assert_eq!(waited[0].waits_for, WaitsFor::Commit);
        assert_eq!(of_limited(&mut lanes), 3);
        lanes.committed(3);
        assert_eq!(lanes.release(|_| NonZeroU32::MIN, later).len(), 1);
        lanes.forget(&[partition(0, 0), partition(1, 0)]);
        assert_eq!((lanes.bytes(), lanes.held_back_bytes), (0, 0));
    }

    #[test]
    fn a_lane_that_waits_for_its_rate_and_for_a_commit_goes_on_when_it_has_both() {
        let (mut lanes, began) = (Lanes::new(WIDE, usize::MAX), Instant::now());
        let both = records_per_s(1).map(|quota| Quota {
            concurrent_work_units_max: NonZeroU32::new(record_work()),
            ..quota
        });
        lanes.gain(&tenant(0), Low, both, began);
        let chunk = chunk(0, 0, 0..5);
        let mut now = began + Duration::from_secs(1);
        assert!(!lanes.push(&tenant(0), Low, NonZeroU32::MIN, chunk, now));
        let release = |lanes: &mut Lanes, now| {
            let waited = lanes.release(|_| NonZeroU32::MIN, now);
            waited.iter().map(|waited| waited.waits_for).collect::<Vec<_>>()
        };
        let budget = Budget {
            jobs_max: 10,
            bytes_max: usize::MAX,
            lanes_max: NonZeroUsize::MAX,
        };
        for commit_comes_first in [true, false, true] {
            let taken = lanes.take(budget, now);
            assert_eq!(taken.waiting.len(), 1);
            let due = lanes.next_release().unwrap();
            if commit_comes_first {
                lanes.committed(taken.number);
                assert_eq!(release(&mut lanes, now), [WaitsFor::Commit]);
                assert!(lanes.is_empty(), "its rate is used up");
                assert_eq!(release(&mut lanes, due), [WaitsFor::Rate]);
            } else {
                assert_eq!(release(&mut lanes, due), [WaitsFor::Rate]);
                assert!(lanes.is_empty(), "as much as may be is under way");
                lanes.committed(taken.number);
                assert_eq!(release(&mut lanes, due), [WaitsFor::Commit]);
            }
            assert!(!lanes.is_empty());
            now = due;
        }
    }

    #[test]
    fn a_lane_with_a_rate_is_paused_at_what_takes_it_long_and_does_not_count_against_the_others() {
        let one = chunk(0, 0, 0..1).records[0].size_bytes();
        let limits = Limits {
            lane_bytes_max: 1 << 20,
            all_bytes_max: 10 * one,
        };
        let (mut lanes, now) = (Lanes::new(limits, usize::MAX), Instant::now());
        lanes.gain(&tenant(0), Low, records_per_s(1), now);
        assert!(!lanes.push(&tenant(0), Normal, NonZeroU32::MIN, chunk(0, 0, 0..9), now));
        assert!(lanes.push(&tenant(0), Normal, NonZeroU32::MIN, chunk(0, 0, 9..20), now));
        assert!(
            !lanes.push(&tenant(1), Normal, NonZeroU32::MIN, chunk(1, 0, 0..9), now),
            "the others have all the room"
        );
        let mut later = now;
        while lanes.resumable().is_empty() {
            later += Duration::from_secs(1);
            lanes.release(|_| NonZeroU32::MIN, later);
            let budget = Budget {
                jobs_max: 1_000,
                bytes_max: usize::MAX,
                lanes_max: NonZeroUsize::MAX,
            };
            lanes.take(budget, later);
        }
        assert_eq!(
            (later - now).as_secs(),
            15,
            "5 of 20 are left, half of what takes 10 s"
        );
    }

    #[test]
    fn a_window_takes_at_least_one_record_however_large() {
        let mut lanes = Lanes::new(WIDE, usize::MAX);
        assert!(!push(
            &mut lanes,
            &tenant(0),
            Normal,
            NonZeroU32::MIN,
            chunk(0, 0, 0..2)
        ));
        let budget = Budget {
            jobs_max: 10,
            bytes_max: 1,
            lanes_max: NonZeroUsize::MIN,
        };
        assert_eq!(lanes.take(budget, Instant::now()).waiting.len(), 1);
    }

    #[test]
    fn what_another_processor_took_over_is_forgotten() {
        let mut lanes = Lanes::new(WIDE, usize::MAX);
        assert!(!push(
            &mut lanes,
            &tenant(0),
            Normal,
            NonZeroU32::MIN,
            chunk(0, 0, 0..3)
        ));
        assert!(!push(
            &mut lanes,
            &tenant(0),
            Normal,
            NonZeroU32::MIN,
            chunk(0, 1, 0..3)
        ));
        lanes.forget(&[partition(0, 0)]);
        let window = take(&mut lanes, 10);
        assert_eq!(window.len(), 3);
        assert!(window.iter().all(|waiting| waiting.delivery.source.index == 1));
        assert!(lanes.is_empty());
        assert_eq!(lanes.bytes(), 0);
    }

    #[test]
    fn a_lane_that_had_nothing_for_a_while_saves_nothing_up_and_gets_nothing_for_leaving() {
        let mut lanes = Lanes::new(WIDE, usize::MAX);
        assert!(!push(
            &mut lanes,
            &tenant(0),
            Normal,
            NonZeroU32::MIN,
            chunk_of(0, 0, 0..100, 10)
        ));
        let taken: Vec<_> = (0..50).flat_map(|_| take(&mut lanes, 1)).collect();
        assert_eq!(taken.len(), 50);
        assert!(!push(
            &mut lanes,
            &tenant(1),
            Normal,
            NonZeroU32::MIN,
            chunk_of(1, 0, 0..10, 10)
        ));
        let next: Vec<_> = (0..4).flat_map(|_| take(&mut lanes, 1)).collect();
        assert_eq!(tenants_of(&next), ["t1", "t0", "t1", "t0"]);
        let mut comes_and_goes = 0;
        for turn in 0..20 {
            assert!(!push(
                &mut lanes,
                &tenant(2),
                Normal,
                NonZeroU32::MIN,
                chunk_of(2, 0, turn..turn + 1, 10)
            ));
            let taken = take(&mut lanes, 1);
            comes_and_goes += tenants_of(&taken).iter().filter(|tenant| *tenant == "t2").count();
        }
        assert_eq!(
            comes_and_goes, 7,
            "a third of the turns, since three lanes have work"
        );
    }

    #[test]
    fn a_window_that_reaches_no_further_lane_goes_on_with_those_that_it_has() {
        let mut lanes = Lanes::new(WIDE, usize::MAX);
        for index in 0..3 {
            assert!(!push(
                &mut lanes,
                &tenant(index),
                Normal,
                NonZeroU32::MIN,
                chunk(index, 0, 0..5)
            ));
        }
        let budget = Budget {
            jobs_max: 5,
            bytes_max: usize::MAX,
            lanes_max: NonZeroUsize::new(2).unwrap(),
        };
        assert_eq!(
            tenants_of(&lanes.take(budget, Instant::now()).waiting),
            ["t0", "t1", "t0", "t1", "t0"]
        );
        assert_eq!(
            tenants_of(&lanes.take(budget, Instant::now()).waiting),
            ["t2", "t2", "t1", "t2", "t1"]
        );
    }

    #[test]
    fn a_lane_of_twice_the_weight_has_twice_the_turns_and_a_new_weight_holds_from_then_on() {
        let weight = |weight| NonZeroU32::new(weight).unwrap();
        let mut lanes = Lanes::new(WIDE, usize::MAX);
        assert!(!push(
            &mut lanes,
            &tenant(0),
            Normal,
            weight(2),
            chunk(0, 0, 0..100)
        ));
        assert!(!push(
            &mut lanes,
            &tenant(1),
            Normal,
            weight(1),
            chunk(1, 0, 0..100)
        ));
        let of_first =
            |window: &[Waiting]| tenants_of(window).iter().filter(|tenant| *tenant == "t0").count();
        let window = take(&mut lanes, 30);
        assert_eq!(of_first(&window), 20);
        for Waiting {
            delivery, estimate, ..
        } in window
        {
            settle(&mut lanes, &delivery.tenant, estimate, estimate);
        }
        lanes.reweigh(|_| weight(1));
        let first = of_first(&take(&mut lanes, 30));
        assert!((15..=16).contains(&first), "{first}");
    }

    #[test]
    fn a_lane_whose_work_was_underestimated_waits_until_it_is_even() {
        let mut lanes = Lanes::new(WIDE, usize::MAX);
        for index in 0..2 {
            assert!(!push(
                &mut lanes,
                &tenant(index),
                Normal,
                NonZeroU32::MIN,
                chunk(index, 0, 0..100)
            ));
        }
        let window = take(&mut lanes, 2);
        let estimate = window[0].estimate;
        settle(&mut lanes, &tenant(0), estimate, 4 * estimate);
        settle(&mut lanes, &tenant(1), estimate, estimate);
        assert_eq!(tenants_of(&take(&mut lanes, 4)), ["t1", "t1", "t1", "t0"]);
    }

    #[test]
    fn nothing_is_kept_of_a_tenant_once_the_others_were_served_as_much() {
        let mut lanes = Lanes::new(WIDE, usize::MAX);
        assert!(!push(
            &mut lanes,
            &tenant(0),
            Normal,
            NonZeroU32::MIN,
            chunk(0, 0, 0..100)
        ));
        for index in 1..50 {
            assert!(!push(
                &mut lanes,
                &tenant(index),
                Normal,
                NonZeroU32::MIN,
                chunk(index, 0, 0..1)
            ));
        }
        for _ in 0..4 {
            for Waiting {
                delivery, estimate, ..
            } in take(&mut lanes, 25)
            {
                settle(&mut lanes, &delivery.tenant, estimate, estimate);
            }
        }
        assert_eq!((lanes.lanes.len(), lanes.turns.accounts()), (1, 1));
    }

    /// Prints nanoseconds a job over all that is done here for it, where `active` of `tenants` always have work, in records
    /// of one job, and what the others take.
    #[test]
    #[ignore = "a measurement, which `bench/run scheduler` runs"]
    fn what_a_turn_costs() {
        const ROUND_JOBS: usize = 2_000;
        const CHUNK_RECORDS: i64 = 10;
        let budget = Budget {
            jobs_max: ROUND_JOBS,
            bytes_max: usize::MAX,
            lanes_max: NonZeroUsize::new(64).unwrap(),
        };
        for (tenants, active) in [(10, 10), (100, 100), (10_000, 10), (10_000, 100)].repeat(2) {
            let mut lanes = Lanes::new(WIDE, usize::MAX);
            let names: Vec<Tenant> = (0..tenants).map(tenant).collect();
            let before_bytes = resident_bytes();
            for (index, name) in names.iter().enumerate() {
                assert!(!push(
                    &mut lanes,
                    name,
                    Normal,
                    NonZeroU32::MIN,
                    chunk(index, 0, 0..1)
                ));
            }
            while !lanes.is_empty() {
                for Waiting {
                    delivery, estimate, ..
                } in lanes.take(budget, Instant::now()).waiting
                {
                    settle(&mut lanes, &delivery.tenant, estimate, estimate);
                }
            }
            let idle_bytes = (resident_bytes() - before_bytes) / tenants;
            let mut round_ns: Vec<u64> = Vec::new();
            for round in 0..500 {
                let arriving = |_| {
                    let chunks = (0..ROUND_JOBS / CHUNK_RECORDS as usize).map(|number| {
                        let index = number % active;
                        (&names[index], chunk(index, 0, 0..CHUNK_RECORDS))
                    });
                    chunks.collect::<Vec<_>>()
                };
                // The first ones make the backlog.
                let arriving: Vec<_> = (0..if round == 0 { 5 } else { 1 }).flat_map(arriving).collect();
                let began = std::time::Instant::now();
                for (name, chunk) in arriving {
                    assert!(!push(&mut lanes, name, Normal, NonZeroU32::MIN, chunk));
                }
                let window = lanes.take(budget, Instant::now()).waiting;
                let mut spent = began.elapsed();
                let mut works: BTreeMap<Tenant, u64> = BTreeMap::new();
                for Waiting {
                    delivery, estimate, ..
                } in window
                {
                    *works.entry(delivery.tenant).or_default() += estimate;
                }
                let began = std::time::Instant::now();
                for (tenant, estimate) in &works {
                    settle(&mut lanes, tenant, *estimate, estimate + 1);
                }
                assert_eq!(lanes.resumable(), []);
                spent += began.elapsed();
                round_ns.push(spent.as_nanos() as u64);
            }
            round_ns.sort_unstable();
            let job_ns = round_ns[round_ns.len() / 2] as f64 / ROUND_JOBS as f64;
            println!(
                r#"{{"tenants": {tenants}, "active": {active}, "job_ns": {job_ns:.1}, "idle_bytes": {idle_bytes}}}"#
            );
        }
    }

    /// What this process has in memory.
    fn resident_bytes() -> usize {
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
        pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4_096
    }

    proptest! {
        /// Whatever comes and goes: each partition is taken in order, without holes.
        #[test]
        fn partitions_stay_in_order(
            pushes in prop::collection::vec((0_usize..4, 0_i32..2, 1_i64..20, 1_u8..15), 1..40),
            takes in prop::collection::vec(1_usize..100, 1..40),
        ) {
            let mut lanes = Lanes::new(WIDE, usize::MAX);
            let mut pushed: BTreeMap<Partition, i64> = BTreeMap::new();
            let mut taken: BTreeMap<Partition, i64> = BTreeMap::new();
            let (mut pushes, mut takes) = (pushes.into_iter(), takes.into_iter());
            loop {
                let (push, jobs_max) = (pushes.next(), takes.next());
                if let Some((t, p, count, jobs)) = push {
                    let next = pushed.entry(partition(t, p)).or_default();
                    let weight = NonZeroU32::new(t as u32 + 1).unwrap();
                    let chunk = chunk_of(t, p, *next..*next + count, jobs);
                    prop_assert!(!lanes.push(&tenant(t), Normal, weight, chunk, Instant::now()));
                    *next += count;
                }
                for waiting in jobs_max.map(|jobs_max| take(&mut lanes, jobs_max)).into_iter().flatten() {
                    let next = taken.entry(waiting.delivery.source.clone()).or_default();
                    prop_assert_eq!(waiting.delivery.record.offset, *next);
                    *next += 1;
                }
                if push.is_none() && jobs_max.is_none() {
                    break;
                }
            }
        }
    }
}
