//! How fast tenants may go: a bucket of work units for each that has a rate, and the lanes that wait for theirs.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use schemas::{Rate, Tenant};
use tokio::time::Instant;

use crate::parts::Part;

/// A lane with a rate takes no more of a priority when what waits there of it would take so long: the rest waits on its topic,
/// and what is here lasts until more has come.
const QUEUE_S_MAX: u64 = 10;

/// A lane that waits longer than this is looked at in between: a time so far away may be none that a clock can tell.
const WAIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What a level is counted in: so a rate by the second is one by the nanosecond of these.
const NANO_UNITS: i128 = 1_000_000_000;

/// One processor's part of a tenant's rate. It fills with time, up to the burst, and what runs is taken out. A record is
/// taken whole, and what it is worth is known later, so that the level may fall below nothing: then the lane waits.
#[derive(Debug, Clone)]
struct Bucket {
    /// Of the tenant, over all processors.
    rate: Rate,
    /// This processor's of it.
    part: Part,
    /// As of then, in nano-units.
    level: i128,
    as_of: Instant,
    wait: Option<Wait>,
}

/// A lane that has work and may not run it.
#[derive(Debug, Clone, Copy)]
struct Wait {
    since: Instant,
    until: Instant,
}

impl Bucket {
    /// What a partition that was taken over may run at once is nothing: its last owner may have run it already.
    fn new(rate: Rate, part: Part, now: Instant) -> Self {
        Self {
            rate,
            part,
            level: 0,
            as_of: now,
            wait: None,
        }
    }

    /// Brings the level to `now`, and changes it.
    fn change(&mut self, now: Instant, change: impl FnOnce(&mut Self)) {
        let now = self.as_of.max(now);
        let elapsed_ns = now.duration_since(self.as_of).as_nanos() as i128;
        let filled = self
            .part
            .of(elapsed_ns * i128::from(self.rate.work_units_per_s.get()));
        self.level = self.full().min(self.level + filled);
        self.as_of = now;
        change(self);
        self.level = self.full().min(self.level);
    }

    fn full(&self) -> i128 {
        self.part
            .of(NANO_UNITS * i128::from(self.rate.burst_work_units().get()))
    }

    /// When something may run, as far as that can be told now.
    fn ripe_as_of(&mut self, now: Instant) -> Instant {
        self.change(now, |_| {});
        self.ripe_at()
    }

    /// When something may run, as far as could be told when it was brought up to date: what is farther away than a day is
    /// looked at again after one.
    fn ripe_at(&self) -> Instant {
        if self.level > 0 {
            return self.as_of;
        }
        let per_ns = i128::from(self.rate.work_units_per_s.get()) * i128::from(self.part.held.max(1));
        let missing = (1 - self.level) * i128::from(self.part.all.get());
        let wait_ns = (missing + per_ns - 1) / per_ns;
        self.as_of + u64::try_from(wait_ns).map_or(WAIT_MAX, |ns| Duration::from_nanos(ns).min(WAIT_MAX))
    }
}

/// The rates of one processor's lanes.
#[derive(Default)]
pub(crate) struct Rates {
    /// Those of tenants that have a rate.
    buckets: HashMap<Tenant, Bucket>,
    /// The lanes that wait, by until when.
    waiting: BTreeSet<(Instant, Tenant)>,
}

impl Rates {
    /// Those that have a bucket.
    pub(crate) fn tenants(&self) -> impl Iterator<Item = &Tenant> {
        self.buckets.keys()
    }

    /// From `now` on `tenant` has the rate of `limit`, and this processor that part of it. What was run too much stays owed, also
    /// where nothing is left of the part.
    pub(crate) fn limit(&mut self, tenant: &Tenant, limit: Option<(Rate, Part)>, now: Instant) {
        let Some((rate, part)) = limit else {
            return self.unlimit(tenant, now);
        };
        let bucket = self.buckets.entry(tenant.clone());
        bucket.or_insert_with(|| Bucket::new(rate, part, now));
        self.change(tenant, now, |bucket| (bucket.rate, bucket.part) = (rate, part));
        if part.held == 0 && self.buckets[tenant].level >= 0 {
            self.unlimit(tenant, now);
        }
    }

    /// `tenant` has no bucket any more. If its lane waits, it waits until `now`.
    fn unlimit(&mut self, tenant: &Tenant, now: Instant) {
        if let Some(wait) = self.buckets.remove(tenant).and_then(|bucket| bucket.wait) {
            self.waiting.remove(&(wait.until, tenant.clone()));
            self.waiting.insert((now, tenant.clone()));
        }
    }

    /// Work of `tenant` runs from now on, worth `estimate` work units, about.
    pub(crate) fn charge(&mut self, tenant: &Tenant, estimate: u64, now: Instant) {
        self.change(tenant, now, |bucket| {
            bucket.level -= NANO_UNITS * i128::from(estimate)
        });
    }

    /// Work of `tenant` that was charged as `estimate` was `work`, both in work units.
    pub(crate) fn settle(&mut self, tenant: &Tenant, estimate: u64, work: u64, now: Instant) {
        let too_high = i128::from(estimate) - i128::from(work);
        self.change(tenant, now, |bucket| bucket.level += NANO_UNITS * too_high);
    }

    /// Whether the lane of `tenant`, which has work, may not run it as of `now`: then it waits until [`Rates::release`].
    pub(crate) fn hold_back(&mut self, tenant: &Tenant, now: Instant) -> bool {
        let Some(bucket) = self.buckets.get_mut(tenant) else {
            return false;
        };
        let until = bucket.ripe_as_of(now);
        if bucket.wait.is_none() && until > now {
            bucket.wait = Some(Wait { since: now, until });
            self.waiting.insert((until, tenant.clone()));
        }
        bucket.wait.is_some()
    }

    /// The lane of `tenant` has no work any more.
    pub(crate) fn forget(&mut self, tenant: &Tenant) {
        let bucket = self.buckets.get_mut(tenant);
        if let Some(wait) = bucket.and_then(|bucket| bucket.wait.take()) {
            self.waiting.remove(&(wait.until, tenant.clone()));
        }
    }

    /// When the next lane may go on.
    pub(crate) fn next_release(&self) -> Option<Instant> {
        self.waiting.first().map(|(until, _)| *until)
    }

    /// A lane that may go on as of `now`, and how long it waited.
    pub(crate) fn release(&mut self, now: Instant) -> Option<(Tenant, Duration)> {
        while self.next_release()? <= now {
            let (_, tenant) = self.waiting.pop_first()?;
            let Some(bucket) = self.buckets.get_mut(&tenant) else {
                return Some((tenant, Duration::ZERO));
            };
            let until = bucket.ripe_as_of(now);
            match &mut bucket.wait {
                Some(wait) if until > now => {
                    wait.until = until;
                    self.waiting.insert((until, tenant));
                }
                wait => {
                    let waited = wait.take().map(|wait| now.duration_since(wait.since));
                    return Some((tenant, waited.unwrap_or_default()));
                }
            }
        }
        None
    }

    /// With how many work units of one priority waiting the lane of `tenant` takes no more of it.
    pub(crate) fn queue_work_max(&self, tenant: &Tenant) -> u64 {
        self.buckets.get(tenant).map_or(u64::MAX, |bucket| {
            let whole = QUEUE_S_MAX * u64::from(bucket.rate.work_units_per_s.get());
            bucket.part.of(whole.into()) as u64
        })
    }

    /// Changes the bucket of `tenant`, and how long its lane waits.
    fn change(&mut self, tenant: &Tenant, now: Instant, change: impl FnOnce(&mut Bucket)) {
        let Some(bucket) = self.buckets.get_mut(tenant) else {
            return;
        };
        bucket.change(now, change);
        let until = bucket.ripe_at();
        if let Some(wait) = &mut bucket.wait {
            self.waiting.remove(&(wait.until, tenant.clone()));
            wait.until = until;
            self.waiting.insert((until, tenant.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU32, NonZeroU64};

    use proptest::{prelude::*, test_runner::Config};

    use super::*;
    use crate::mutations;

    const PROCESSORS: usize = 3;

    /// A way in which rates are kept wrongly. Each must be found: a check that never fails checks nothing.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Mutation {
        /// A processor has the whole rate, whatever it holds.
        IgnoreShare,
        /// A part of the rate stays with whoever had it.
        KeepShare,
        /// A partition that is taken over brings its part of the burst along.
        BeginFull,
        /// Estimates stay as they are.
        NeverSettle,
        /// What was saved up has no end.
        IgnoreBurst,
        /// What is left of jobs above the priority that the tenant may have has no rate.
        IgnoreLeft,
    }

    impl Mutation {
        const ALL: [Self; 6] = [
            Self::IgnoreShare,
            Self::KeepShare,
            Self::BeginFull,
            Self::NeverSettle,
            Self::IgnoreBurst,
            Self::IgnoreLeft,
        ];
    }

    #[derive(Debug, Clone)]
    enum Event {
        /// Time passes.
        Pass { ms: u64 },
        /// A processor runs so many records, if it may, each with its work and by how many tenths that is estimated.
        Run {
            processor: usize,
            records: Vec<(u64, u64)>,
        },
        /// What a processor ran is settled.
        Settle { processor: usize },
        /// A partition changes hands.
        Move { partition: usize, to: usize },
        /// A processor begins anew, and what it held stays with it.
        Restart { processor: usize },
    }

    #[derive(Debug, Clone)]
    struct Story {
        per_s: u32,
        burst: u32,
        partitions: usize,
        /// So many processors, the first ones, hold a partition of jobs above the priority that the tenant may have.
        with_left: usize,
        /// How many times too high the estimates are, beside how each record's is off.
        factor: u64,
        events: Vec<Event>,
    }

    fn stories() -> impl Strategy<Value = Story> {
        let processor = 0..PROCESSORS;
        let records = prop::collection::vec((1_u64..60, 0_u64..20), 1..60);
        let event = prop_oneof![
            5 => (0_u64..3_000).prop_map(|ms| Event::Pass { ms }),
            8 => (processor.clone(), records).prop_map(|(processor, records)| Event::Run { processor, records }),
            8 => processor.clone().prop_map(|processor| Event::Settle { processor }),
            4 => (0_usize..6, processor.clone()).prop_map(|(partition, to)| Event::Move { partition, to }),
            1 => processor.prop_map(|processor| Event::Restart { processor }),
        ];
        let events = prop::collection::vec(event, 20..200);
        let factor = prop_oneof![4 => Just(1_u64), 1 => Just(0), 1 => 2_u64..4];
        let with_left = prop_oneof![2 => Just(0), 1 => 1..=PROCESSORS];
        let settings = (1_u32..400, 1_u32..5_000, 1_usize..6, with_left, factor);
        (settings, events).prop_map(|((per_s, burst, partitions, with_left, factor), events)| Story {
            per_s,
            burst,
            partitions,
            with_left,
            factor,
            events,
        })
    }

    /// A processor as the check sees it, beside its bucket.
    #[derive(Default)]
    struct Seen {
        unsettled: Vec<(i128, i128)>,
        /// The most by which the estimates of what was not settled were too low, and too high.
        too_low: i128,
        too_high: i128,
    }

    fn tenant() -> Tenant {
        Tenant::new("acme").unwrap()
    }

    /// Plays `story`, and says in which span of it more was run than the bound of ARCHITECTURE.md allows.
    fn play(story: &Story, mutation: Option<Mutation>) -> Result<(), String> {
        let burst = match mutation {
            Some(Mutation::IgnoreBurst) => u32::MAX,
            _ => story.burst,
        };
        let rate = Rate {
            work_units_per_s: NonZeroU32::new(story.per_s).unwrap(),
            burst_work_units: NonZeroU32::new(burst),
        };
        let all = match mutation {
            Some(Mutation::IgnoreShare) => NonZeroU64::MIN,
            _ => NonZeroU64::new(story.partitions as u64).unwrap(),
        };
        let (began, acme) = (Instant::now(), tenant());
        let mut now = began;
        let mut owners: Vec<usize> = (0..story.partitions)
            .map(|partition| partition % PROCESSORS)
            .collect();
        let limit = |processor: usize, owners: &[usize]| {
            let held = owners.iter().filter(|owner| **owner == processor).count() as u32;
            let has_left = processor < story.with_left;
            if mutation == Some(Mutation::IgnoreLeft) && held == 0 && has_left {
                return None;
            }
            let held = held.max(has_left.into());
            Some((rate, Part { held, all }))
        };
        let begin = |processor: usize, owners: &[usize], now| {
            let mut rates = Rates::default();
            rates.limit(&acme, limit(processor, owners), now);
            rates
        };
        let mut processors: Vec<Rates> = (0..PROCESSORS).map(|of| begin(of, &owners, now)).collect();
        let mut seen: Vec<Seen> = (0..PROCESSORS).map(|_| Seen::default()).collect();
        // When something ran, how much, and how often a processor had begun anew by then.
        let mut ran: Vec<(Instant, i128, i128)> = Vec::new();
        let (mut restarts, mut record_max) = (0, 0);
        for event in &story.events {
            match event {
                Event::Pass { ms } => now += Duration::from_millis(*ms),
                Event::Run { processor, records } => {
                    let rates = &mut processors[*processor];
                    let of = &mut seen[*processor];
                    for (work, tenths) in records {
                        while rates.release(now).is_some() {}
                        let holds = owners.contains(processor) || *processor < story.with_left;
                        if !holds || rates.hold_back(&acme, now) {
                            break;
                        }
                        let estimate = work * story.factor * tenths / 10;
                        rates.charge(&acme, estimate, now);
                        let (work, estimate) = (i128::from(*work), i128::from(estimate));
                        ran.push((now, work, restarts));
                        record_max = work.max(record_max);
                        of.unsettled.push((work, estimate));
                        let too_low: i128 = of.unsettled.iter().map(|(work, estimate)| work - estimate).sum();
                        of.too_low = of.too_low.max(too_low);
                        of.too_high = of.too_high.max(-too_low);
                    }
                }
                Event::Settle { processor } => {
                    for (work, estimate) in std::mem::take(&mut seen[*processor].unsettled) {
                        let work = match mutation {
                            Some(Mutation::NeverSettle) => estimate,
                            _ => work,
                        };
                        processors[*processor].settle(&acme, estimate as u64, work as u64, now);
                    }
                }
                Event::Move { partition, to } => {
                    let Some(owner) = owners.get_mut(*partition) else {
                        continue;
                    };
                    if *owner == *to {
                        continue;
                    }
                    let from = std::mem::replace(owner, *to);
                    if mutation != Some(Mutation::KeepShare) {
                        processors[from].limit(&acme, limit(from, &owners), now);
                    }
                    processors[*to].limit(&acme, limit(*to, &owners), now);
                    if mutation == Some(Mutation::BeginFull) {
                        let part = NANO_UNITS * i128::from(story.burst) / story.partitions as i128;
                        processors[*to].change(&acme, now, |bucket| bucket.level += part);
                    }
                }
                Event::Restart { processor } => {
                    processors[*processor] = begin(*processor, &owners, now);
                    seen[*processor].unsettled.clear();
                    restarts += 1;
                }
            }
        }
        let unsettled: i128 = seen
            .iter()
            .map(|of| of.too_low.max(0) + of.too_high.max(0))
            .max()
            .unwrap_or(0);
        for (begin, (from, _, before)) in ran.iter().enumerate() {
            let mut work = 0;
            for (until, of_record, after) in &ran[begin..] {
                work += of_record;
                let elapsed_ns = until.duration_since(*from).as_nanos() as i128;
                let by_time = elapsed_ns * i128::from(story.per_s) / NANO_UNITS;
                let with_part = by_time + 1 + i128::from(story.burst);
                let of_left = with_part * story.with_left as i128 / story.partitions as i128 + 1;
                let times = PROCESSORS as i128 + after - before;
                let bound = with_part + of_left + times * (record_max + unsettled);
                if work > bound {
                    let span = until.duration_since(*from);
                    return Err(format!("{work} ran within {span:?}, more than {bound}"));
                }
            }
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(Config::with_cases(1_000))]
        #[test]
        fn over_any_time_all_processors_together_run_no_more_than_the_bound_whatever_changes_hands(
            story in stories(),
        ) {
            prop_assert_eq!(play(&story, None), Ok(()));
        }
    }

    #[test]
    fn rates_that_are_kept_wrongly_are_found() {
        mutations::are_found(&Mutation::ALL, || stories().boxed(), play);
    }

    /// `held` of `all` parts of a rate.
    fn limit(per_s: u32, burst: u32, held: u32, all: u64) -> Option<(Rate, Part)> {
        let rate = Rate {
            work_units_per_s: NonZeroU32::new(per_s).unwrap(),
            burst_work_units: NonZeroU32::new(burst),
        };
        NonZeroU64::new(all).map(|all| (rate, Part { held, all }))
    }

    #[test]
    fn a_lane_waits_exactly_until_it_may_go_on() {
        let (mut rates, began, acme) = (Rates::default(), Instant::now(), tenant());
        rates.limit(&acme, limit(100, 100, 1, 2), began);
        let full = began + Duration::from_secs(10);
        rates.charge(&acme, 80, full);
        assert!(
            rates.hold_back(&acme, full),
            "half of the burst is here, so 30 are owed"
        );
        let due = rates.next_release().unwrap();
        assert_eq!(due, full + Duration::from_millis(600) + Duration::from_nanos(1));
        assert_eq!(rates.release(due - Duration::from_nanos(1)), None);
        let (released, waited) = rates.release(due).unwrap();
        assert_eq!((released, waited), (acme.clone(), due - full));
        assert!(!rates.hold_back(&acme, due));
        assert_eq!(rates.next_release(), None);
    }

    #[test]
    fn a_lane_that_owes_days_of_its_rate_waits_for_all_of_them() {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        let (mut rates, began, acme) = (Rates::default(), Instant::now(), tenant());
        rates.limit(&acme, limit(1, 1, 1, 1), began);
        rates.charge(&acme, 5 * DAY.as_secs() / 2, began);
        assert!(rates.hold_back(&acme, began));
        for day in 1..3 {
            let looked = began + day * DAY;
            assert_eq!(rates.next_release(), Some(looked));
            assert_eq!(rates.release(looked), None, "after {day} days");
        }
        let paid = began + 5 * DAY / 2 + Duration::from_nanos(1);
        assert_eq!(rates.next_release(), Some(paid));
        assert_eq!(rates.release(paid), Some((acme.clone(), paid - began)));
        rates.charge(&acme, 2 * DAY.as_secs(), paid);
        let looked = paid + DAY + DAY / 2;
        assert!(
            rates.hold_back(&acme, looked),
            "also where its first record since then comes after more than a day"
        );
    }

    #[test]
    fn a_lane_that_gains_a_partition_or_a_rate_waits_no_longer_than_by_the_new_one() {
        let (mut rates, now, acme) = (Rates::default(), Instant::now(), tenant());
        rates.limit(&acme, limit(10, 10, 1, 2), now);
        rates.charge(&acme, 10, now);
        assert!(rates.hold_back(&acme, now));
        let by_half = rates.next_release().unwrap();
        rates.limit(&acme, limit(10, 10, 2, 2), now);
        let by_all = rates.next_release().unwrap();
        assert_eq!((by_half - now).as_millis(), 2 * (by_all - now).as_millis());
        rates.limit(&acme, limit(100, 10, 2, 2), now);
        assert_eq!((rates.next_release().unwrap() - now).as_millis(), 100);
        rates.limit(&acme, None, now);
        assert_eq!(rates.release(now), Some((acme.clone(), Duration::ZERO)));
        assert!(!rates.hold_back(&acme, now), "it has no rate any more");
    }

    #[test]
    fn what_is_owed_is_not_forgiven_by_losing_every_partition_and_nothing_else_is_kept() {
        let (mut rates, now, acme) = (Rates::default(), Instant::now(), tenant());
        rates.limit(&acme, limit(10, 10, 1, 1), now);
        rates.charge(&acme, 50, now);
        rates.limit(&acme, limit(10, 10, 0, 1), now);
        rates.limit(&acme, limit(10, 10, 1, 1), now);
        assert!(rates.hold_back(&acme, now));
        assert_eq!((rates.next_release().unwrap() - now).as_millis(), 5_000);
        rates.forget(&acme);
        let later = now + Duration::from_secs(60);
        rates.limit(&acme, limit(10, 10, 0, 1), later);
        assert!(rates.buckets.is_empty() && rates.waiting.is_empty());
    }
}
