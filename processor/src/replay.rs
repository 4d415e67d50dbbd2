//! What recorded jobs would have waited under other policies: the lanes of a processor, their quotas and its pace, under a
//! clock that is counted on rather than waited for.
//!
//! The device does a window as fast as it did the whole recording, and the next one is taken when it is done. So how long
//! tokenizing and commits take is in the speed alone. A tenant has all of its rate here, and begins with its whole burst, as
//! after a while without jobs.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    num::{NonZeroU32, NonZeroUsize},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use schemas::{
    AdmittedJob, AdmittedJobs, JobId, ModelName, Origin, Pool, Priority, Record as _, Tenant, Tenants,
    TopicId, TopicNames,
};
use tokio::time::Instant;
use topics::{Assignment, Chunk, Partition, Record, TopicRef};

use crate::{
    cost::{self, Work},
    lanes::{Budget, Lanes, Limits, Taken, Waiting},
    pace::Pace,
    quotas::Quota,
    service::FIRST_WINDOW_BYTES,
};

/// A recording does not tell how urgent a job was: all are alike.
const PRIORITY: Priority = Priority::Low;

/// What stands for the topics of the recording.
const TOPIC_ID: TopicId = TopicId::from_bytes([0; 16]);

/// A job as it ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Whose it was.
    pub tenant: Tenant,
    /// When it was submitted, in nanoseconds since 1970 UTC.
    pub submitted_at_ns: u64,
    /// How long it waited for the device, in nanoseconds.
    pub queue_time_ns: u64,
    /// The tokens of its text.
    pub input_tokens: u32,
    /// Its share of the device, in nanoseconds.
    pub device_time_ns: u64,
}

impl Recorded {
    fn began_at_ns(&self) -> u64 {
        self.submitted_at_ns + self.queue_time_ns
    }

    fn ended_at_ns(&self) -> u64 {
        self.began_at_ns() + self.device_time_ns
    }
}

/// One wait of so many is not believed, the longest ones: when a job was submitted is what its producer says, and one that
/// says a time long ago would have kept the device busy since.
const WAITS_PER_DOUBT: usize = 100;

/// How fast the device was: the seconds of it that it gave a second, while there was anything to do. With several cores it
/// is more than one. None where nothing ran.
pub fn speed(jobs: &[Recorded]) -> Option<f64> {
    let mut by_wait: Vec<&Recorded> = jobs.iter().collect();
    by_wait.sort_unstable_by_key(|job| Reverse(job.queue_time_ns));
    let (doubted, believed) = by_wait.split_at(jobs.len().div_ceil(WAITS_PER_DOUBT));
    let doubted = doubted.iter().map(|job| (job.began_at_ns(), job.ended_at_ns()));
    let believed = believed
        .iter()
        .map(|job| (job.submitted_at_ns, job.ended_at_ns()));
    let mut spans: Vec<(u64, u64)> = doubted.chain(believed).collect();
    spans.sort_unstable();
    let (mut busy_ns, mut reached) = (0, 0);
    for (begin, end) in spans {
        busy_ns += end.saturating_sub(begin.max(reached));
        reached = reached.max(end);
    }
    let device_ns: u64 = jobs.iter().map(|job| job.device_time_ns).sum();
    (device_ns > 0).then(|| device_ns as f64 / busy_ns as f64)
}

/// How jobs are run again.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// As [`speed`] says.
    pub speed: f64,
    /// As [`Config::window_ms`](crate::Config::window_ms).
    pub window_ms: u64,
    /// As [`Config::window_tenants_max`](crate::Config::window_tenants_max).
    pub window_tenants_max: NonZeroUsize,
}

/// A window that was run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The jobs of each of its records.
    pub records: Vec<Vec<Ran>>,
    /// When all of it was done, in nanoseconds since 1970 UTC.
    pub committed_at_ns: u64,
}

/// A job that was run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ran {
    /// Its place in the recording.
    pub job: usize,
    /// How long it waited for the device.
    pub waited: Duration,
}

/// A processor that runs recorded jobs again: time passes, jobs are let in, time passes.
pub struct Replay<'a> {
    jobs: &'a [Recorded],
    tenants: &'a Tenants,
    names: &'a TopicNames,
    speed: f64,
    lanes: Lanes,
    pace: Pace,
    /// 1970, as far as the lanes are told: which instant it is makes no difference.
    epoch: Instant,
    now_ns: u64,
}

impl<'a> Replay<'a> {
    /// Runs `jobs` again, by the weights, the rates and the limits of concurrent work of `tenants`. `names` are any.
    pub fn new(
        jobs: &'a [Recorded],
        settings: Settings,
        names: &'a TopicNames,
        tenants: &'a Tenants,
    ) -> Self {
        let unlimited = Limits {
            lane_bytes_max: usize::MAX,
            all_bytes_max: usize::MAX,
        };
        let most = Budget {
            jobs_max: usize::MAX,
            bytes_max: usize::MAX,
            lanes_max: settings.window_tenants_max,
        };
        let epoch = Instant::now();
        let mut lanes = Lanes::new(unlimited, usize::MAX);
        for (tenant, policy) in tenants {
            let quota = Quota {
                rate: policy.rate,
                concurrent_work_units_max: policy.concurrent_work_units_max,
                partitions: NonZeroU32::MIN,
                priority_max: PRIORITY,
            };
            lanes.gain(tenant, PRIORITY, Some(quota), epoch);
        }
        Self {
            jobs,
            tenants,
            names,
            speed: settings.speed,
            lanes,
            pace: Pace::new(settings.window_ms, most, FIRST_WINDOW_BYTES),
            epoch,
            now_ns: 0,
        }
    }

    /// Lets time pass until `until_ns`, in nanoseconds since 1970 UTC, and until the windows are done that begin before.
    pub fn run_until(&mut self, until_ns: u64) -> Vec<Window> {
        let mut windows = Vec::new();
        while self.now_ns < until_ns {
            let (now, tenants) = (self.now(), self.tenants);
            self.lanes.release(|tenant| weight_of(tenants, tenant), now);
            if self.lanes.is_empty() {
                self.now_ns = self.next_release_ns().map_or(until_ns, |due| due.min(until_ns));
            } else {
                windows.push(self.run_window());
            }
        }
        windows
    }

    /// Runs all that waits.
    pub fn finish(mut self) -> Vec<Window> {
        self.run_until(u64::MAX)
    }

    /// Lets jobs of one tenant in that came at once, when time has passed until then. Answers how many records of work they
    /// are.
    pub fn admit(&mut self, jobs: Range<usize>) -> usize {
        let Some(first) = self.jobs[jobs.clone()].first() else {
            return 0;
        };
        let partition = Partition {
            topic: Arc::new(TopicRef {
                name: self.names.work(&Pool::default(), PRIORITY, &first.tenant),
                id: TOPIC_ID,
            }),
            index: 0,
        };
        let chunk = Chunk {
            partition,
            assignment: Assignment(0),
            records: self.records(jobs),
        };
        let (records, weight) = (chunk.records.len(), weight_of(self.tenants, &first.tenant));
        let now = self.now();
        // What would be paused may as well wait here as on its topic.
        let _is_full = self.lanes.push(&first.tenant, PRIORITY, weight, chunk, now);
        records
    }

    /// The window whose turn it is now.
    fn run_window(&mut self) -> Window {
        let now = self.now();
        let Taken {
            number,
            mut waiting,
            backlogged,
        } = self.lanes.take(self.pace.budget(), now);
        // Those that have nothing more waiting run first, as in every window.
        waiting.sort_by_key(|waiting| backlogged.reached.contains_key(&waiting.delivery.tenant));
        let (mut records, mut window_bytes, began_at_ns) = (Vec::new(), 0, self.now_ns);
        for Waiting {
            delivery,
            bytes,
            estimate,
            ..
        } in waiting
        {
            let (mut ran, mut units) = (Vec::new(), 0);
            for job in jobs_of(&delivery.record) {
                let recorded = &self.jobs[job];
                let waited = Duration::from_nanos(self.now_ns - recorded.submitted_at_ns);
                ran.push(Ran { job, waited });
                self.now_ns += (recorded.device_time_ns as f64 / self.speed) as u64;
                units += cost::work_units(recorded.input_tokens as usize).max(cost::JOB_WORK_MIN);
            }
            let work = Work { estimate, units };
            self.lanes.settle(number, &delivery.tenant, work, now);
            window_bytes += bytes;
            records.push(ran);
        }
        self.lanes.committed(number);
        let elapsed_ns = self.now_ns - began_at_ns;
        self.pace.observe(window_bytes, 0.0, elapsed_ns as f64 / 1e6);
        Window {
            records,
            committed_at_ns: self.now_ns,
        }
    }

    fn now(&self) -> Instant {
        self.epoch + Duration::from_nanos(self.now_ns)
    }

    fn next_release_ns(&self) -> Option<u64> {
        let due = self.lanes.next_release()?.duration_since(self.epoch);
        Some(u64::try_from(due.as_nanos()).unwrap_or(u64::MAX))
    }

    /// Records of work as ingest makes them of such jobs.
    fn records(&self, jobs: Range<usize>) -> Vec<Record> {
        let mut first = jobs.start;
        let packed = AdmittedJobs::pack(jobs.map(|job| self.admitted(job)));
        let record = |packed: AdmittedJobs| {
            let offset = first as i64;
            first += packed.0.len();
            Record {
                offset,
                timestamp_ms: 0,
                stamped_by_log: false,
                key: None,
                value: Some(packed.encode().into()),
                headers: Vec::new(),
            }
        };
        packed.into_iter().map(record).collect()
    }

    /// A job that is about as long as the one of the recording.
    fn admitted(&self, job: usize) -> AdmittedJob {
        const TOKEN_BYTES: usize = 4;
        let recorded = &self.jobs[job];
        AdmittedJob {
            origin: Origin {
                topic: self.names.jobs(),
                topic_id: TOPIC_ID,
                partition: 0,
                offset: job as i64,
            },
            tenant: recorded.tenant.clone(),
            job_id: JobId::new(job.to_string()).expect("a number is a possible id"),
            model: ModelName::new("any").expect("a possible name"),
            input: "x".repeat(TOKEN_BYTES * recorded.input_tokens as usize),
            text_pair: None,
            priority: None,
            submitted_at_ms: (recorded.submitted_at_ns / 1_000_000) as i64,
            deadline_ms: None,
            labels: BTreeMap::new(),
            trace_id: None,
        }
    }
}

/// Which jobs of the recording `record` has: they stand one after the other.
fn jobs_of(record: &Record) -> Range<usize> {
    let value = record.value.as_deref().unwrap_or_default();
    let (first, jobs) = (record.offset as usize, AdmittedJobs::count(value));
    first..first + jobs.expect("it was encoded here")
}

fn weight_of(tenants: &Tenants, tenant: &Tenant) -> NonZeroU32 {
    tenants
        .get(tenant)
        .map_or(NonZeroU32::MIN, |policy| policy.weight)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use schemas::{Rate, TenantPolicy, TopicName};

    use super::*;

    const MS: u64 = 1_000_000;
    const BEGAN_NS: u64 = 1_764_000_000_000 * MS;
    const JOB_NS: u64 = 10 * MS;
    /// Of a job.
    const WORK: u64 = 20;
    const SETTINGS: Settings = Settings {
        speed: 1.0,
        window_ms: 100,
        window_tenants_max: NonZeroUsize::MAX,
    };

    fn tenant(name: &str) -> Tenant {
        Tenant::new(name).unwrap()
    }

    /// A job of 10 ms that waited for nobody.
    fn job(name: &str, submitted_at_ms: u64) -> Recorded {
        Recorded {
            tenant: tenant(name),
            submitted_at_ns: BEGAN_NS + submitted_at_ms * MS,
            queue_time_ns: 0,
            input_tokens: WORK as u32,
            device_time_ns: JOB_NS,
        }
    }

    fn weighing(weight: u32) -> TenantPolicy {
        TenantPolicy {
            weight: NonZeroU32::new(weight).unwrap(),
            ..TenantPolicy::default()
        }
    }

    fn limited(work_units_per_s: u32, burst_work_units: u32) -> TenantPolicy {
        TenantPolicy {
            rate: Some(Rate {
                work_units_per_s: NonZeroU32::new(work_units_per_s).unwrap(),
                burst_work_units: NonZeroU32::new(burst_work_units),
            }),
            ..TenantPolicy::default()
        }
    }

    fn set<const N: usize>(policies: [(&str, TenantPolicy); N]) -> Tenants {
        policies
            .into_iter()
            .map(|(name, policy)| (tenant(name), policy))
            .collect()
    }

    /// Runs all of `jobs`, which are in the order in which they came, each let in by itself.
    fn run(jobs: &[Recorded], tenants: &Tenants) -> Vec<Window> {
        let names = TopicNames::new(&TopicName::new("jobs").unwrap(), "t.").unwrap();
        let mut replay = Replay::new(jobs, SETTINGS, &names, tenants);
        let mut windows = Vec::new();
        for (index, job) in jobs.iter().enumerate() {
            windows.extend(replay.run_until(job.submitted_at_ns));
            assert_eq!(replay.admit(index..index + 1), 1);
        }
        windows.extend(replay.finish());
        windows
    }

    /// How long each of `jobs` waits. Each runs once.
    fn waits(jobs: &[Recorded], tenants: &Tenants) -> Vec<Duration> {
        let windows = run(jobs, tenants);
        let mut ran: Vec<Ran> = windows
            .into_iter()
            .flat_map(|window| window.records)
            .flatten()
            .collect();
        ran.sort_unstable_by_key(|ran| ran.job);
        assert!(ran.iter().map(|ran| ran.job).eq(0..jobs.len()));
        ran.into_iter().map(|ran| ran.waited).collect()
    }

    fn of<'a>(name: &str, jobs: &'a [Recorded], waits: &'a [Duration]) -> impl Iterator<Item = Duration> {
        let of = jobs.iter().zip(waits);
        of.filter(move |(job, _)| job.tenant.as_str() == name)
            .map(|(_, wait)| *wait)
    }

    fn mean_ms(name: &str, jobs: &[Recorded], waits: &[Duration]) -> f64 {
        let of: Vec<f64> = of(name, jobs, waits)
            .map(|wait| wait.as_secs_f64() * 1e3)
            .collect();
        of.iter().sum::<f64>() / of.len() as f64
    }

    #[test]
    fn the_speed_is_the_device_time_of_a_second_in_which_there_was_work() {
        let later = |job: Recorded, queue_time_ms| Recorded {
            queue_time_ns: queue_time_ms * MS,
            ..job
        };
        let jobs = [
            job("a", 0),
            job("b", 0),
            later(job("a", 0), 10),
            job("b", 1_000_000),
        ];
        assert_eq!(speed(&jobs), Some(40.0 / 30.0));
        assert_eq!(speed(&[]), None);
    }

    #[test]
    fn a_job_that_claims_to_have_waited_for_decades_does_not_make_the_device_slow() {
        let claims = Recorded {
            submitted_at_ns: 0,
            queue_time_ns: BEGAN_NS,
            ..job("a", 0)
        };
        let others = (1..100).map(|number| job("b", 1_000 * number));
        let jobs: Vec<Recorded> = others.chain([claims]).collect();
        assert_eq!(speed(&jobs), Some(1.0));
    }

    #[test]
    fn a_tenant_of_more_weight_waits_less_for_its_backlog_and_the_other_more() {
        let jobs: Vec<Recorded> = (0..400)
            .map(|n| job(if n % 2 == 0 { "a" } else { "b" }, 0))
            .collect();
        let waits_under = |a| waits(&jobs, &set([("a", weighing(a)), ("b", weighing(1))]));
        let even = waits_under(1);
        let (a, b) = (mean_ms("a", &jobs, &even), mean_ms("b", &jobs, &even));
        assert!((a - b).abs() < 100.0, "{a} and {b}");
        let favoured = waits_under(3);
        // Three of four turns, so that 200 of them take two thirds of the time of 400.
        let (a, b) = (mean_ms("a", &jobs, &favoured), mean_ms("b", &jobs, &favoured));
        assert!((1_230.0..1_440.0).contains(&a), "{a}");
        assert!((2_540.0..2_790.0).contains(&b), "{b}");
    }

    #[test]
    fn a_light_tenant_waits_about_a_window_whoever_floods() {
        let flood = (0..2_000).map(|n| job("flood", n));
        let mut jobs: Vec<Recorded> = flood.chain((0..20).map(|n| job("light", 90 * n + 7))).collect();
        jobs.sort_by_key(|job| job.submitted_at_ns);
        let waits = waits(&jobs, &set([]));
        let longest = of("light", &jobs, &waits).max().unwrap();
        // A window has 16 KiB at least, which are some 50 of these.
        assert!(longest < Duration::from_millis(1_100), "{longest:?}");
        assert!(of("flood", &jobs, &waits).max().unwrap() > Duration::from_secs(15));
    }

    #[test]
    fn a_tenant_with_a_rate_waits_longer_and_leaves_the_device_to_the_other_or_idle() {
        let jobs: Vec<Recorded> = (0..400)
            .map(|n| job(if n % 2 == 0 { "a" } else { "b" }, 0))
            .collect();
        let even = waits(&jobs, &set([]));
        // Twenty jobs a second, and twenty at once.
        let held_back = waits(&jobs, &set([("a", limited(400, 400))]));
        let (before, after) = (mean_ms("b", &jobs, &even), mean_ms("b", &jobs, &held_back));
        assert!(after < 0.75 * before, "{before} and then {after}");
        let a: Vec<Duration> = of("a", &jobs, &held_back).collect();
        assert!(
            a[15] < Duration::from_secs(1),
            "the burst runs at once: {:?}",
            a[15]
        );
        for (n, wait) in a.iter().enumerate().skip(40) {
            let allowed = Duration::from_millis(50 * (n as u64 - 20));
            assert!(
                allowed.abs_diff(*wait) < Duration::from_millis(600),
                "job {n}: {wait:?}, {allowed:?}"
            );
        }
    }

    #[test]
    fn jobs_that_come_at_once_are_as_few_records_as_ingest_makes_of_them() {
        let jobs: Vec<Recorded> = (0..100).map(|_| job("a", 0)).collect();
        let names = TopicNames::new(&TopicName::new("jobs").unwrap(), "t.").unwrap();
        let tenants = set([]);
        let mut replay = Replay::new(&jobs, SETTINGS, &names, &tenants);
        assert_eq!(replay.run_until(BEGAN_NS), []);
        let records = replay.admit(0..100);
        assert!((4..10).contains(&records), "{records}");
        let windows = replay.finish();
        let ran: Vec<&Vec<Ran>> = windows.iter().flat_map(|window| &window.records).collect();
        assert_eq!(ran.len(), records);
        let jobs = ran.into_iter().flatten().map(|ran| (ran.job, ran.waited));
        assert!(jobs.eq((0..100).map(|job| (job, Duration::from_nanos(job as u64 * JOB_NS)))));
        assert_eq!(windows.last().unwrap().committed_at_ns, BEGAN_NS + 100 * JOB_NS);
    }

    /// The most that a tenant with this rate may run at `now_ns`, in nano-units, by what it began when; nothing or less where
    /// it must wait.
    fn level(rate: Rate, begun_ns: &[u64], now_ns: u64) -> i128 {
        const NANO_UNITS: i128 = 1_000_000_000;
        let (full, per_ns) = (
            i128::from(rate.burst_work_units().get()) * NANO_UNITS,
            i128::from(rate.work_units_per_s.get()),
        );
        let (mut level, mut as_of_ns) = (full, 0);
        for begun in begun_ns.iter().filter(|begun| **begun < now_ns) {
            level = full.min(level + i128::from(begun - as_of_ns) * per_ns) - i128::from(WORK) * NANO_UNITS;
            as_of_ns = *begun;
        }
        full.min(level + i128::from(now_ns - as_of_ns) * per_ns)
    }

    proptest! {
        /// Whatever the policies, the device is never used twice, and idle only while everybody who waits has run what his rate
        /// allows.
        #[test]
        fn each_job_runs_once_and_the_device_is_never_idle_while_there_is_work_that_may_run(
            arrivals in prop::collection::vec((0_usize..4, 0_u64..2_000), 1..200),
            policies in prop::collection::vec((1_u32..6, prop::option::of((1_u32..3_000, 1_u32..2_000))), 4),
        ) {
            let names = ["a", "b", "c", "d"];
            let tenants: Tenants = names.iter().zip(policies).map(|(name, (weight, rate))| {
                let weight = weighing(weight).weight;
                let policy = rate.map_or_else(TenantPolicy::default, |(rate, burst)| limited(rate, burst));
                (tenant(name), TenantPolicy { weight, ..policy })
            }).collect();
            let mut jobs: Vec<Recorded> = arrivals.iter().map(|(who, at)| job(names[*who], *at)).collect();
            jobs.sort_by_key(|job| job.submitted_at_ns);
            let waits = waits(&jobs, &tenants);
            let mut begun: Vec<(u64, &Recorded)> = waits.iter().zip(&jobs)
                .map(|(wait, job)| (job.submitted_at_ns + wait.as_nanos() as u64, job)).collect();
            begun.sort_by_key(|(at_ns, _)| *at_ns);
            let mut free_ns = 0;
            for (at_ns, _) in &begun {
                prop_assert!(free_ns <= *at_ns, "two at once");
                let waiting = begun.iter().filter(|(then, job)| then >= at_ns && job.submitted_at_ns < *at_ns);
                for (_, job) in waiting.filter(|_| free_ns < *at_ns) {
                    let rate = tenants[&job.tenant].rate;
                    prop_assert!(rate.is_some(), "{} waits, and nobody is served", job.tenant);
                    let of: Vec<u64> = begun.iter().filter(|(_, other)| other.tenant == job.tenant).map(|(then, _)| *then).collect();
                    // Of the nanosecond in which it may go on it has some already.
                    prop_assert!(level(rate.unwrap(), &of, at_ns - 1) <= 0, "{} waits, and may run", job.tenant);
                }
                free_ns = at_ns + JOB_NS;
            }
        }

        /// Windows begin before their jobs do, by as long as they take at most: by so much more a rate may seem to be exceeded.
        #[test]
        fn a_tenant_with_a_rate_runs_no_more_than_its_burst_and_what_the_rate_adds(
            arrivals in prop::collection::vec((0_usize..2, 0_u64..2_000), 1..200),
            (rate, burst) in (1_u32..3_000, 1_u32..2_000),
        ) {
            let mut jobs: Vec<Recorded> = arrivals.iter().map(|(who, at)| job(["a", "b"][*who], *at)).collect();
            jobs.sort_by_key(|job| job.submitted_at_ns);
            let mut ran_ns: Vec<u64> = Vec::new();
            let mut longest_ns = 0;
            for window in run(&jobs, &set([("a", limited(rate, burst))])) {
                let ran: Vec<Ran> = window.records.into_iter().flatten().collect();
                longest_ns = longest_ns.max(ran.len() as u64 * JOB_NS);
                let of_a = ran.iter().filter(|ran| jobs[ran.job].tenant == tenant("a"));
                ran_ns.extend(of_a.map(|ran| jobs[ran.job].submitted_at_ns + ran.waited.as_nanos() as u64));
            }
            // What one record is worth, and by how much it is estimated wrongly.
            let record = 2 * WORK;
            for (first, from) in ran_ns.iter().enumerate() {
                for (last, until) in ran_ns.iter().enumerate().skip(first) {
                    let ran = (last - first + 1) as u64 * WORK;
                    let elapsed_ns = u128::from(until - from + longest_ns);
                    let added = (elapsed_ns * u128::from(rate) / 1_000_000_000) as u64;
                    prop_assert!(ran <= u64::from(burst) + added + record + 1, "{ran} units in {elapsed_ns} ns");
                }
            }
        }
    }
}
