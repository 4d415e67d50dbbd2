//! Ordinary traffic of months, and how often it is taken for a departure; and how soon what is not ordinary is told.
//!
//! `cargo test --release -p ingest departure::traffic -- --nocapture` prints the figures of ARCHITECTURE.md.

use std::collections::BTreeMap;

use fastrand::Rng;
use schemas::{Abuse, FindingStage, Measure, Policies, Tenant};

use super::{
    Counts, Departure, Departures, INTERVAL_MINUTES, INTERVAL_MS, INTERVALS_AN_HOUR, MINUTE_MS, Seen,
    tests::{live, partition, policies},
};
use crate::quota::Quotas;

const DAY: i64 = 24 * INTERVALS_AN_HOUR;
const WEEK: i64 = 7 * DAY;
/// A Monday's midnight, in intervals since 1970.
const BEGIN: i64 = 2_955 * WEEK + 4 * DAY;
const WEEKS: i64 = 20;
const TENANTS_ALIKE: usize = 10;
const SIZES_JOBS_A_MINUTE: [f64; 3] = [0.2, 5.0, 500.0];

/// How a tenant sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Habit {
    /// At any hour, at night a tenth of what comes by day.
    AroundTheClock,
    /// On weekdays from eight to six, with an hour of less before and after, and a late evening a fortnight.
    Office,
    /// The same, and a twentieth more each week.
    Growing,
    /// A batch each night, within an hour of two o'clock.
    Nightly,
    /// A batch each Monday morning, and a little by day.
    Weekly,
    /// Bursts, once an hour by day, most of them small and some large.
    Bursts,
    /// By hand, some jobs now and then, mostly by day.
    ByHand,
}

impl Habit {
    const ALL: [Self; 7] = [
        Self::AroundTheClock,
        Self::Office,
        Self::Growing,
        Self::Nightly,
        Self::Weekly,
        Self::Bursts,
        Self::ByHand,
    ];
}

/// A tenant and its moods.
struct Sender {
    habit: Habit,
    /// In a busy interval.
    jobs: f64,
    random: Rng,
    of_day: f64,
    evening: bool,
    batch_at: i64,
}

impl Sender {
    fn new(habit: Habit, jobs_a_minute: f64, seed: u64) -> Self {
        Self {
            habit,
            jobs: jobs_a_minute * INTERVAL_MINUTES as f64,
            random: Rng::with_seed(seed),
            of_day: 1.0,
            evening: false,
            batch_at: 0,
        }
    }

    /// What the sender means to send in an interval, in jobs.
    fn mean(&mut self, interval: i64) -> f64 {
        let (day, of_day) = (interval / DAY % 7, interval % DAY);
        if of_day == 0 {
            self.of_day = lognormal(&mut self.random, 0.25);
            self.evening = day < 5 && self.random.u8(..10) == 0;
            self.batch_at = self.random.i64(INTERVALS_AN_HOUR..3 * INTERVALS_AN_HOUR);
        }
        let hour = of_day as f64 / INTERVALS_AN_HOUR as f64;
        let office = match hour {
            _ if day >= 5 => 0.0,
            8.0..18.0 => 1.0,
            7.0..8.0 => hour - 7.0,
            18.0..19.0 => 19.0 - hour,
            20.0..22.0 if self.evening => 0.1,
            _ => 0.0,
        };
        let by_day = 0.55 - 0.45 * (std::f64::consts::TAU * (hour - 2.0) / 24.0).cos();
        let batch = (self.batch_at..self.batch_at + 3).contains(&of_day);
        let share = match self.habit {
            Habit::AroundTheClock => by_day,
            Habit::Office => office,
            Habit::Growing => office * 1.05_f64.powf(interval as f64 / WEEK as f64),
            Habit::Nightly => f64::from(batch) * 20.0,
            Habit::Weekly if day == 0 && batch => 50.0,
            Habit::Weekly => office * 0.1,
            Habit::Bursts => {
                let bursts = poisson(&mut self.random, by_day / INTERVALS_AN_HOUR as f64);
                (0..bursts).map(|_| lognormal(&mut self.random, 1.0) * 6.0).sum()
            }
            Habit::ByHand => {
                let often = 0.002 + 0.05 * office;
                f64::from(self.random.f64() < often) * (self.random.f64() * 4.0).exp()
            }
        };
        share * self.jobs * self.of_day * lognormal(&mut self.random, 0.2)
    }

    /// What comes in a part of an interval where so many jobs are meant, each so many times as large as usual, and so
    /// large a share of them no good.
    fn send(&mut self, mean: f64, size: f64, no_good: f64) -> Counts {
        let jobs = poisson(&mut self.random, mean);
        let bytes = if jobs < 100 {
            (0..jobs).map(|_| 500.0 * lognormal(&mut self.random, 1.0)).sum()
        } else {
            // Of many, the mean and the spread.
            let (mean, spread) = (500.0 * 0.5_f64.exp(), 500.0 * 2.16);
            mean * jobs as f64 + spread * (jobs as f64).sqrt() * normal(&mut self.random)
        };
        let rejected = poisson(&mut self.random, jobs as f64 * no_good);
        let attempts = poisson(&mut self.random, jobs as f64 * 0.001);
        let mut counts = Counts::default();
        counts.add(Measure::Jobs, jobs);
        counts.add(Measure::InputBytes, (bytes * size).max(0.0) as u64);
        counts.add(Measure::Rejections, rejected);
        counts.add(Measure::Attempts, attempts);
        counts
    }

    fn ordinary(&mut self, interval: i64) -> Counts {
        let mean = self.mean(interval);
        self.send(mean, 1.0, 0.02)
    }
}

fn normal(random: &mut Rng) -> f64 {
    let (one, other) = (1.0 - random.f64(), random.f64());
    (-2.0 * one.ln()).sqrt() * (std::f64::consts::TAU * other).cos()
}

fn lognormal(random: &mut Rng, sigma: f64) -> f64 {
    (sigma * normal(random)).exp()
}

fn poisson(random: &mut Rng, mean: f64) -> u64 {
    if mean > 30.0 {
        return (mean + mean.sqrt() * normal(random)).round().max(0.0) as u64;
    }
    let (least, mut product, mut count) = ((-mean).exp(), random.f64(), 0);
    while product > least {
        product *= random.f64();
        count += 1;
    }
    count
}

fn tenant(number: usize) -> Tenant {
    Tenant::new(&format!("tenant-{number}")).unwrap()
}

/// What an instance tells of these counts at a time.
fn see(
    departures: &mut Departures,
    counts: &BTreeMap<Tenant, Counts>,
    policies: &Policies,
    now_ms: i64,
) -> Vec<Departure> {
    let seen = Seen {
        source: &partition(7, 0),
        last_offset: now_ms,
        youngest_ms: now_ms,
        counts,
    };
    departures.see(&seen, policies, &mut Quotas::default(), now_ms)
}

#[test]
fn ordinary_traffic_is_seldom_taken_for_a_departure() {
    let kinds = Habit::ALL.map(|habit| SIZES_JOBS_A_MINUTE.map(|size| (habit, size)));
    let kinds: Vec<(Habit, f64)> = kinds.into_iter().flatten().collect();
    let numbers = 0..kinds.len() * TENANTS_ALIKE;
    let mut senders: Vec<Sender> = numbers
        .map(|number| {
            let (habit, size) = kinds[number / TENANTS_ALIKE];
            Sender::new(habit, size, number as u64)
        })
        .collect();
    let names: Vec<Tenant> = (0..senders.len()).map(tenant).collect();
    let policies = policies(names.clone(), Abuse::default());
    let mut departures = live(BEGIN * INTERVAL_MS);
    let numbers: BTreeMap<&Tenant, usize> = names.iter().zip(0..).collect();
    // By kind, those of the first week, of the next three, and of the others.
    let mut alarms = vec![[0_u32; 3]; kinds.len()];
    let mut measures: BTreeMap<Measure, u32> = BTreeMap::new();
    for interval in 0..WEEKS * WEEK {
        let counts = senders.iter_mut().map(|sender| sender.ordinary(interval));
        let counts = names.iter().cloned().zip(counts).collect();
        let found = see(
            &mut departures,
            &counts,
            &policies,
            (BEGIN + interval) * INTERVAL_MS,
        );
        for departure in found.iter().filter(|found| found.stage == FindingStage::Begun) {
            let kind = numbers[&departure.tenant] / TENANTS_ALIKE;
            let period = match interval / WEEK {
                0 => 0,
                1..4 => 1,
                _ => 2,
            };
            alarms[kind][period] += 1;
            if period == 2 {
                *measures.entry(departure.measure).or_default() += 1;
            }
        }
    }
    let months = [6.0, 21.0, (WEEKS - 4) as f64 * 7.0].map(|days| days / 30.0 * TENANTS_ALIKE as f64);
    println!("departures told of ordinary traffic, a tenant and month");
    println!(
        "{:<16} {:>8}  week 1  weeks 2-4  weeks 5-{WEEKS}",
        "habit", "jobs/min"
    );
    for ((habit, size), alarms) in kinds.iter().zip(&alarms) {
        let [first, next, rest] = [0, 1, 2].map(|period| f64::from(alarms[period]) / months[period]);
        println!(
            "{:<16} {size:>8}  {first:>6.2}  {next:>9.2}  {rest:>10.2}",
            format!("{habit:?}")
        );
    }
    let mean = |period: usize| {
        let all: u32 = alarms.iter().map(|alarms| alarms[period]).sum();
        f64::from(all) / months[period] / kinds.len() as f64
    };
    let [first, next, rest] = [0, 1, 2].map(mean);
    println!("{:<16} {:>8}  {first:>6.2}  {next:>9.2}  {rest:>10.3}", "all", "");
    println!("of weeks 5-{WEEKS}, by measure: {measures:?}");
    assert!(rest < 0.2, "{rest} a tenant and month");
    let worst = alarms
        .iter()
        .map(|alarms| f64::from(alarms[2]) / months[2])
        .fold(0.0, f64::max);
    assert!(worst < 1.0, "{worst} a tenant and month of the worst kind");
    assert!(next < 0.5, "{next} a tenant and month while it is learnt");
}

/// What is not ordinary.
#[derive(Debug, Clone, Copy)]
enum Abnormal {
    /// Ten times as many jobs.
    Flood,
    /// Jobs ten times as large.
    LargeJobs,
    /// Half of the jobs are no good.
    NoGood,
    /// A busy hour's jobs, at three in the night.
    Night,
}

/// After how many minutes it is told of each of some tenants that are alike, if within three hours.
fn delays_minutes(habit: Habit, jobs_a_minute: f64, abnormal: Abnormal) -> Vec<Option<i64>> {
    let measure = match abnormal {
        Abnormal::Flood => Measure::Jobs,
        Abnormal::LargeJobs => Measure::InputBytes,
        Abnormal::NoGood => Measure::Rejections,
        Abnormal::Night => Measure::OffHours,
    };
    let policies = policies([tenant(0)], Abuse::default());
    let delay = |seed: u64| {
        let mut sender = Sender::new(habit, jobs_a_minute, seed);
        let mut departures = live(BEGIN * INTERVAL_MS);
        let mut come = |counts, ms| {
            see(
                &mut departures,
                &BTreeMap::from([(tenant(0), counts)]),
                &policies,
                ms,
            )
        };
        let hour = if matches!(abnormal, Abnormal::Night) {
            3
        } else {
            11
        };
        // It begins on a Wednesday, at some minute.
        let begin = 5 * WEEK + 2 * DAY + hour * INTERVALS_AN_HOUR + seed as i64 % INTERVALS_AN_HOUR;
        for interval in 0..begin {
            come(sender.ordinary(interval), (BEGIN + interval) * INTERVAL_MS);
        }
        let busy = sender.jobs / INTERVAL_MINUTES as f64;
        (0..180).find(|minute| {
            let now_ms = (BEGIN + begin) * INTERVAL_MS + (seed as i64 % 10 + minute) * MINUTE_MS;
            let mean = sender.mean(begin + minute / INTERVAL_MINUTES) / INTERVAL_MINUTES as f64;
            let counts = match abnormal {
                Abnormal::Flood => sender.send(10.0 * mean, 1.0, 0.02),
                Abnormal::LargeJobs => sender.send(mean, 10.0, 0.02),
                Abnormal::NoGood => sender.send(mean, 1.0, 0.5),
                Abnormal::Night => sender.send(busy, 1.0, 0.02),
            };
            let found = come(counts, now_ms);
            let is_it = |found: &Departure| found.measure == measure && found.stage == FindingStage::Begun;
            found.iter().any(is_it)
        })
    };
    (0..30)
        .map(delay)
        .map(|minute| minute.map(|minute| minute + 1))
        .collect()
}

#[test]
fn what_is_not_ordinary_is_told_within_half_an_hour_as_a_rule() {
    use Abnormal::{Flood, LargeJobs, Night, NoGood};
    println!("minutes until it is told: median, worst; of 30");
    for (habit, jobs_a_minute, abnormal) in [
        (Habit::AroundTheClock, 5.0, Flood),
        (Habit::AroundTheClock, 500.0, Flood),
        (Habit::Office, 5.0, Flood),
        (Habit::Office, 500.0, Flood),
        (Habit::Office, 500.0, LargeJobs),
        (Habit::Office, 500.0, NoGood),
        (Habit::Office, 5.0, Night),
        (Habit::Office, 500.0, Night),
    ] {
        let delays = delays_minutes(habit, jobs_a_minute, abnormal);
        let mut delays: Vec<i64> = delays.into_iter().flatten().collect();
        delays.sort_unstable();
        let (found, worst) = (delays.len(), delays.last().copied().unwrap_or(i64::MAX));
        let median = delays.get(found / 2).copied().unwrap_or(i64::MAX);
        let what = format!("{habit:?}, {jobs_a_minute} jobs/min, {abnormal:?}");
        println!("{what:<44} {median:>4} {worst:>4}  {found}");
        assert!(
            found >= 25 && median <= 30,
            "{what}: {found} of 30, half of them within {median} minutes"
        );
    }
}
