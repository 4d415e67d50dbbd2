//! What recorded jobs would have waited under other policies: the lanes of a processor and its pace, under a clock that is
//! counted on rather than waited for.
//!
//! The device does a window as fast as it did the whole recording, and the next one is taken when it is done. So how long
//! tokenizing and commits take is in the speed alone, and jobs that came one by one are turns of one job.

use std::{
    collections::BTreeMap,
    num::{NonZeroU32, NonZeroUsize},
    sync::Arc,
    time::Duration,
};

use schemas::{AdmittedJobs, Pool, Priority, Record as _, Tenant, TopicId, TopicNames};
use tokio::time::Instant;
use topics::{Assignment, Chunk, Partition, Record, TopicRef};

use crate::{
    cost::{self, Work},
    lanes::{Budget, Delivery, Lanes, Limits, Taken, Waiting},
    pace::Pace,
    service::FIRST_WINDOW_BYTES,
};

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
    fn ended_at_ns(&self) -> u64 {
        self.submitted_at_ns + self.queue_time_ns + self.device_time_ns
    }
}

/// How fast the device was: the seconds of it that it gave a second, while there was anything to do. With several cores it
/// is more than one. None where nothing ran.
pub fn speed(jobs: &[Recorded]) -> Option<f64> {
    let mut spans: Vec<(u64, u64)> = jobs
        .iter()
        .map(|job| (job.submitted_at_ns, job.ended_at_ns()))
        .collect();
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
pub struct Replay {
    /// As [`speed`] says.
    pub speed: f64,
    /// As [`Config::window_ms`](crate::Config::window_ms).
    pub window_ms: u64,
    /// As [`Config::window_tenants_max`](crate::Config::window_tenants_max).
    pub window_tenants_max: NonZeroUsize,
}

/// How long each of `jobs` waits for the device where tenants have the weights that `weight_of` says. `names` are any.
pub fn replay(
    jobs: &[Recorded],
    how: Replay,
    names: &TopicNames,
    weight_of: impl Fn(&Tenant) -> NonZeroU32,
) -> Vec<Duration> {
    let records = Records::of(jobs, names);
    let mut order: Vec<usize> = (0..jobs.len()).collect();
    order.sort_by_key(|index| jobs[*index].submitted_at_ns);
    let mut arrivals = order.into_iter().peekable();
    let mut waits = vec![Duration::ZERO; jobs.len()];
    let unlimited = Limits {
        lane_bytes_max: usize::MAX,
        all_bytes_max: usize::MAX,
    };
    let mut lanes = Lanes::new(unlimited, usize::MAX);
    // Quotas alone look at it, and nobody has one here.
    let no_time = Instant::now();
    let most = Budget {
        jobs_max: usize::MAX,
        bytes_max: usize::MAX,
        lanes_max: how.window_tenants_max,
    };
    let mut pace = Pace::new(how.window_ms, most, FIRST_WINDOW_BYTES);
    let mut now_ns = 0;
    while arrivals.peek().is_some() || !lanes.is_empty() {
        if let (Some(next), true) = (arrivals.peek(), lanes.is_empty()) {
            now_ns = now_ns.max(jobs[*next].submitted_at_ns);
        }
        while let Some(index) = arrivals.next_if(|index| jobs[*index].submitted_at_ns <= now_ns) {
            let tenant = &jobs[index].tenant;
            let is_full = lanes.push(
                tenant,
                Priority::Normal,
                weight_of(tenant),
                records.chunk(jobs, index),
                no_time,
            );
            assert!(!is_full, "lanes have no limit here");
        }
        let Taken {
            number,
            waiting: mut window,
            backlogged,
        } = lanes.take(pace.budget(), no_time);
        // Those that have nothing more waiting run first, as in every window.
        window.sort_by_key(|waiting| backlogged.reached.contains_key(&waiting.delivery.tenant));
        let (mut bytes, mut elapsed_ns) = (0, 0);
        for Waiting {
            delivery, estimate, ..
        } in window
        {
            let Delivery { tenant, record, .. } = *delivery;
            let index = record.offset as usize;
            let job = &jobs[index];
            waits[index] = Duration::from_nanos(now_ns + elapsed_ns - job.submitted_at_ns);
            elapsed_ns += (job.device_time_ns as f64 / how.speed) as u64;
            bytes += record.size_bytes();
            let units = cost::work_units(job.input_tokens as usize).max(cost::JOB_WORK_MIN);
            lanes.settle(number, &tenant, Work { estimate, units }, no_time);
        }
        pace.observe(bytes, 0.0, elapsed_ns as f64 / 1e6);
        now_ns += elapsed_ns;
    }
    waits
}

/// Records of work that look to the lanes as those of the recording did: a job each, as long as its text was.
struct Records {
    partitions: BTreeMap<Tenant, Partition>,
    /// As long as the longest.
    value: Vec<u8>,
}

impl Records {
    fn of(jobs: &[Recorded], names: &TopicNames) -> Self {
        const ARRAY_OF_ONE: u8 = 0x91;
        let longest = jobs.iter().map(Self::bytes).max().unwrap_or_default();
        let mut value = vec![0; longest];
        value.splice(..2.min(longest), [AdmittedJobs::VERSION, ARRAY_OF_ONE]);
        let partition = |tenant: &Tenant| Partition {
            topic: Arc::new(TopicRef {
                name: names.work(&Pool::default(), Priority::Normal, tenant),
                id: TopicId::from_bytes([0; 16]),
            }),
            index: 0,
        };
        Self {
            partitions: jobs
                .iter()
                .map(|job| (job.tenant.clone(), partition(&job.tenant)))
                .collect(),
            value,
        }
    }

    /// About how long the record of `job` was.
    fn bytes(job: &Recorded) -> usize {
        const JOB_BYTES: usize = 160;
        const TOKEN_BYTES: usize = 4;
        JOB_BYTES + TOKEN_BYTES * job.input_tokens as usize
    }

    fn chunk(&self, jobs: &[Recorded], index: usize) -> Chunk {
        let record = Record {
            offset: index as i64,
            timestamp_ms: 0,
            stamped_by_log: false,
            key: None,
            value: Some(self.value[..Self::bytes(&jobs[index])].to_vec().into()),
            headers: Vec::new(),
        };
        Chunk {
            partition: self.partitions[&jobs[index].tenant].clone(),
            assignment: Assignment(0),
            records: vec![record],
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use schemas::TopicName;

    use super::*;

    const MS: u64 = 1_000_000;
    const HOW: Replay = Replay {
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
            submitted_at_ns: submitted_at_ms * MS,
            queue_time_ns: 0,
            input_tokens: 20,
            device_time_ns: 10 * MS,
        }
    }

    fn any() -> TopicNames {
        TopicNames::new(&TopicName::new("jobs").unwrap(), "t.").unwrap()
    }

    fn even(_: &Tenant) -> NonZeroU32 {
        NonZeroU32::MIN
    }

    fn mean_ms(jobs: &[Recorded], waits: &[Duration], name: &str) -> f64 {
        let of = jobs
            .iter()
            .zip(waits)
            .filter(|(job, _)| job.tenant == tenant(name));
        let of: Vec<f64> = of.map(|(_, wait)| wait.as_secs_f64() * 1e3).collect();
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
    fn a_tenant_of_more_weight_waits_less_for_its_backlog_and_the_other_more() {
        let jobs: Vec<Recorded> = (0..400)
            .map(|n| job(if n % 2 == 0 { "a" } else { "b" }, 0))
            .collect();
        let waits = replay(&jobs, HOW, &any(), even);
        let (a, b) = (mean_ms(&jobs, &waits, "a"), mean_ms(&jobs, &waits, "b"));
        assert!((a - b).abs() < 100.0, "{a} and {b}");
        let favour = |of: &Tenant| NonZeroU32::new(if *of == tenant("a") { 3 } else { 1 }).unwrap();
        let favoured = replay(&jobs, HOW, &any(), favour);
        // Three of four turns, so that 200 of them take two thirds of the time of 400.
        let (a, b) = (mean_ms(&jobs, &favoured, "a"), mean_ms(&jobs, &favoured, "b"));
        assert!((1_230.0..1_440.0).contains(&a), "{a}");
        assert!((2_540.0..2_790.0).contains(&b), "{b}");
    }

    #[test]
    fn a_light_tenant_waits_about_a_window_whoever_floods() {
        let flood = (0..2_000).map(|n| job("flood", n));
        let jobs: Vec<Recorded> = flood.chain((0..20).map(|n| job("light", 90 * n + 7))).collect();
        let waits = replay(&jobs, HOW, &any(), even);
        let light = jobs
            .iter()
            .zip(&waits)
            .filter(|(job, _)| job.tenant == tenant("light"));
        let longest = light.map(|(_, wait)| *wait).max().unwrap();
        // A window has 16 KiB at least, which are some 50 of these.
        assert!(longest < Duration::from_millis(1_100), "{longest:?}");
        assert!(*waits[..2_000].iter().max().unwrap() > Duration::from_secs(15));
    }

    proptest! {
        /// Whatever the weights, the device is neither idle while there is work nor ever used twice.
        #[test]
        fn each_job_runs_once_and_the_device_is_never_idle_while_there_is_work(
            arrivals in prop::collection::vec((0_usize..4, 0_u64..2_000), 1..200),
            weights in prop::collection::vec(1_u32..6, 4),
        ) {
            let names = ["a", "b", "c", "d"];
            let jobs: Vec<Recorded> = arrivals.iter().map(|(who, at)| job(names[*who], *at)).collect();
            let weight_of = |of: &Tenant| {
                let who = names.iter().position(|name| *name == of.as_str()).unwrap();
                NonZeroU32::new(weights[who]).unwrap()
            };
            let begun = |waits: Vec<Duration>| {
                let mut begun: Vec<u64> =
                    jobs.iter().zip(waits).map(|(job, wait)| job.submitted_at_ns + wait.as_nanos() as u64).collect();
                begun.sort_unstable();
                begun
            };
            let (weighed, evenly) = (begun(replay(&jobs, HOW, &any(), weight_of)), begun(replay(&jobs, HOW, &any(), even)));
            prop_assert!(weighed.windows(2).all(|pair| pair[1] - pair[0] >= 10 * MS));
            prop_assert_eq!(weighed, evenly);
        }
    }
}
