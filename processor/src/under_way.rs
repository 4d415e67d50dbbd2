//! How much of a tenant's work may be under way, from its turn to its commit, and the lanes that wait for a commit.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    num::NonZeroU32,
    time::Duration,
};

use schemas::Tenant;
use tokio::time::Instant;

use crate::{cost::Work, parts::Part};

/// A lane with a limit takes no more of a priority when so many times what may be under way waits there of it: the rest waits
/// on its topic, and what is here lasts until more has come …
const QUEUE_TIMES_MAX: u64 = 4;

/// … but always so many work units, some eight of the largest records: of a lane that has one under way at a time, each would
/// pause its partition otherwise.
const QUEUE_WORK_UNITS_MIN: u64 = 16_384;

/// What one processor has under way of a tenant.
#[derive(Debug, Default)]
struct Account {
    /// How much there may be over all processors, in work units, and this one's part of it. None: any amount.
    limit: Option<(NonZeroU32, Part)>,
    /// In work units.
    under_way: u64,
    /// Since when its lane has work and may not run it.
    waits_since: Option<Instant>,
}

impl Account {
    /// Whether no more may be taken until some is committed. With nothing under way something always may, or a part that is
    /// less than a record would never run one.
    fn is_full(&self) -> bool {
        self.limit.is_some_and(|(work_units_max, part)| {
            let may_be = part.of(work_units_max.get().into()).max(1);
            i128::from(self.under_way) >= may_be
        })
    }

    /// Whether it is as if it had never been.
    fn is_unused(&self) -> bool {
        self.limit.is_none() && self.under_way == 0 && self.waits_since.is_none()
    }
}

/// What one window took.
#[derive(Debug)]
struct Window {
    number: u64,
    /// What it is worth of each tenant that has an account, in work units: as it was estimated, until it is settled.
    works: BTreeMap<Tenant, u64>,
}

/// The work that has left one processor's lanes and is not committed.
#[derive(Default)]
pub(crate) struct UnderWay {
    /// Those of tenants that have a limit, or had one and have not had everything committed since.
    accounts: HashMap<Tenant, Account>,
    /// The windows under way that took something of them, the oldest first.
    windows: VecDeque<Window>,
    /// The lanes that wait and need not any more.
    ready: BTreeSet<Tenant>,
}

impl UnderWay {
    /// Those that have an account.
    pub(crate) fn tenants(&self) -> impl Iterator<Item = &Tenant> {
        self.accounts.keys()
    }

    /// From now on so many work units of `tenant` may be under way over all processors, and here that part of them. What is
    /// under way by then of a tenant that had no limit does not count.
    pub(crate) fn limit(&mut self, tenant: &Tenant, limit: Option<(NonZeroU32, Part)>) {
        if limit.is_some() {
            self.accounts.entry(tenant.clone()).or_default();
        }
        self.change(tenant, |account| account.limit = limit);
    }

    /// The window of this number, which is the last one, takes work of `tenant`, worth `estimate` work units, about.
    pub(crate) fn charge(&mut self, window: u64, tenant: &Tenant, estimate: u64) {
        let Some(account) = self.accounts.get_mut(tenant) else {
            return;
        };
        account.under_way += estimate;
        if self.windows.back().is_none_or(|last| last.number != window) {
            self.windows.push_back(Window {
                number: window,
                works: BTreeMap::new(),
            });
        }
        let taking = self.windows.back_mut().expect("it is there by now");
        *taking.works.entry(tenant.clone()).or_default() += estimate;
    }

    /// What the window of this number took of `tenant` is known.
    pub(crate) fn settle(&mut self, window: u64, tenant: &Tenant, work: Work) {
        let of_window = self.windows.iter_mut().find(|known| known.number == window);
        let Some(charged) = of_window.and_then(|known| known.works.get_mut(tenant)) else {
            return;
        };
        let settled = |units: u64| units - work.estimate + work.units;
        *charged = settled(*charged);
        self.change(tenant, |account| account.under_way = settled(account.under_way));
    }

    /// The windows up to this number are committed.
    pub(crate) fn committed(&mut self, window: u64) {
        while let Some(ended) = self.windows.pop_front_if(|oldest| oldest.number <= window) {
            for (tenant, units) in ended.works {
                self.change(&tenant, |account| account.under_way -= units);
            }
        }
    }

    /// Whether the lane of `tenant`, which has work, may not run it as of `now`: then it waits until [`UnderWay::release`].
    pub(crate) fn hold_back(&mut self, tenant: &Tenant, now: Instant) -> bool {
        let Some(account) = self.accounts.get_mut(tenant) else {
            return false;
        };
        if account.waits_since.is_none() && account.is_full() {
            account.waits_since = Some(now);
        }
        account.waits_since.is_some()
    }

    /// The lane of `tenant` has no work any more.
    pub(crate) fn forget(&mut self, tenant: &Tenant) {
        self.change(tenant, |account| account.waits_since = None);
    }

    /// A lane that may go on as of `now`, and how long it waited.
    pub(crate) fn release(&mut self, now: Instant) -> Option<(Tenant, Duration)> {
        let tenant = self.ready.first()?.clone();
        let mut since = now;
        self.change(&tenant, |account| {
            since = account.waits_since.take().unwrap_or(now);
        });
        Some((tenant, now.duration_since(since)))
    }

    /// With how many work units of one priority waiting the lane of `tenant` takes no more of it.
    pub(crate) fn queue_work_max(&self, tenant: &Tenant) -> u64 {
        let limit = self.accounts.get(tenant).and_then(|account| account.limit);
        limit.map_or(u64::MAX, |(work_units_max, part)| {
            let whole = QUEUE_TIMES_MAX * u64::from(work_units_max.get());
            QUEUE_WORK_UNITS_MIN.max(part.of(whole.into()) as u64)
        })
    }

    /// Changes the account of `tenant`, and whether its lane need not wait any more.
    fn change(&mut self, tenant: &Tenant, change: impl FnOnce(&mut Account)) {
        let Some(account) = self.accounts.get_mut(tenant) else {
            return;
        };
        change(account);
        if account.waits_since.is_some() && !account.is_full() {
            self.ready.insert(tenant.clone());
        } else {
            self.ready.remove(tenant);
        }
        if account.is_unused() {
            self.accounts.remove(tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use proptest::{prelude::*, test_runner::Config};

    use super::*;
    use crate::mutations;

    const PROCESSORS: usize = 3;

    /// A way in which work under way is counted wrongly. Each must be found: a check that never fails checks nothing.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Mutation {
        /// A processor has the whole limit, whatever it holds.
        IgnorePart,
        /// A part of the limit stays with whoever had it.
        KeepPart,
        /// What is under way of a partition that was lost does not count.
        ForgetLost,
        /// Estimates stay as they are.
        NeverSettle,
        /// Work counts until it is settled.
        EndSettled,
        /// A commit ends what is under way of all windows.
        EndAll,
        /// Work counts for ever.
        NeverEnd,
    }

    impl Mutation {
        const ALL: [Self; 7] = [
            Self::IgnorePart,
            Self::KeepPart,
            Self::ForgetLost,
            Self::NeverSettle,
            Self::EndSettled,
            Self::EndAll,
            Self::NeverEnd,
        ];
    }

    #[derive(Debug, Clone)]
    enum Event {
        /// A processor takes a window of so many records, as far as it may, each with its work and by how many tenths that is
        /// estimated.
        Take {
            processor: usize,
            records: Vec<(u64, u64)>,
        },
        /// The oldest window of a processor that is not settled is.
        Settle { processor: usize },
        /// The oldest window of a processor is committed.
        Commit { processor: usize },
        /// A partition changes hands.
        Move { partition: usize, to: usize },
        /// A processor begins anew, and what it held stays with it.
        Restart { processor: usize },
        /// The tenant's policy changes.
        Relimit { work_units_max: u32 },
    }

    #[derive(Debug, Clone)]
    struct Story {
        work_units_max: u32,
        partitions: usize,
        /// How many times too high the estimates are, beside how each record's is off.
        factor: u64,
        events: Vec<Event>,
    }

    fn stories() -> impl Strategy<Value = Story> {
        let processor = 0..PROCESSORS;
        let records = prop::collection::vec((1_u64..60, 0_u64..20), 1..60);
        let work_units_max = || prop_oneof![1_u32..100, 1_u32..5_000];
        let event = prop_oneof![
            8 => (processor.clone(), records).prop_map(|(processor, records)| Event::Take { processor, records }),
            6 => processor.clone().prop_map(|processor| Event::Settle { processor }),
            5 => processor.clone().prop_map(|processor| Event::Commit { processor }),
            3 => (0_usize..6, processor.clone()).prop_map(|(partition, to)| Event::Move { partition, to }),
            1 => processor.prop_map(|processor| Event::Restart { processor }),
            1 => work_units_max().prop_map(|work_units_max| Event::Relimit { work_units_max }),
        ];
        let events = prop::collection::vec(event, 20..200);
        let factor = prop_oneof![4 => Just(1_u64), 1 => Just(0), 1 => 2_u64..4];
        let settings = (work_units_max(), 1_usize..6, factor);
        (settings, events).prop_map(|((work_units_max, partitions, factor), events)| Story {
            work_units_max,
            partitions,
            factor,
            events,
        })
    }

    /// A window as the check sees it.
    struct Seen {
        number: u64,
        work: Work,
        is_settled: bool,
    }

    /// A processor, and what the check sees of it.
    #[derive(Default)]
    struct Processor {
        under_way: UnderWay,
        /// How many partitions it believes to hold.
        held: u32,
        taken: u64,
        windows: VecDeque<Seen>,
        /// The most by which the estimates of what was not settled were too low.
        too_low: u64,
        /// The limit when it last took something.
        work_units_max: u32,
        /// How many partitions it lost since.
        lost: u64,
    }

    impl Processor {
        fn relimit(&mut self, work_units_max: u32, all: NonZeroU64) {
            let part = Part { held: self.held, all };
            let limit = NonZeroU32::new(work_units_max).map(|work_units_max| (work_units_max, part));
            self.under_way.limit(&tenant(), limit);
        }

        fn settle(&mut self, mutation: Option<Mutation>) {
            let Some(window) = self.windows.iter_mut().find(|window| !window.is_settled) else {
                return;
            };
            window.is_settled = true;
            if mutation != Some(Mutation::NeverSettle) {
                self.under_way.settle(window.number, &tenant(), window.work);
            }
            if mutation == Some(Mutation::EndSettled) {
                self.under_way.committed(window.number);
            }
            self.note_estimates();
        }

        fn commit(&mut self, mutation: Option<Mutation>) {
            if self.windows.front().is_some_and(|window| !window.is_settled) {
                self.settle(mutation);
            }
            let Some(window) = self.windows.pop_front() else {
                return;
            };
            match mutation {
                Some(Mutation::NeverEnd) => {}
                Some(Mutation::EndAll) => self.under_way.committed(self.taken),
                _ => self.under_way.committed(window.number),
            }
        }

        /// What is under way in truth.
        fn units(&self) -> u64 {
            self.windows.iter().map(|window| window.work.units).sum()
        }

        fn note_estimates(&mut self) {
            let unsettled = || self.windows.iter().filter(|window| !window.is_settled);
            let units: u64 = unsettled().map(|window| window.work.units).sum();
            let estimate: u64 = unsettled().map(|window| window.work.estimate).sum();
            self.too_low = self.too_low.max(units.saturating_sub(estimate));
        }
    }

    fn tenant() -> Tenant {
        Tenant::new("acme").unwrap()
    }

    /// Plays `story`, and says when more was under way than the bound of ARCHITECTURE.md allows, or a lane waited for nothing.
    fn play(story: &Story, mutation: Option<Mutation>) -> Result<(), String> {
        let (acme, now) = (tenant(), Instant::now());
        let partitions = story.partitions as u64;
        let all = match mutation {
            Some(Mutation::IgnorePart) => NonZeroU64::MIN,
            _ => NonZeroU64::new(partitions).unwrap(),
        };
        let mut work_units_max = story.work_units_max;
        let mut owners: Vec<usize> = (0..story.partitions)
            .map(|partition| partition % PROCESSORS)
            .collect();
        let mut processors: Vec<Processor> = (0..PROCESSORS).map(|_| Processor::default()).collect();
        for owner in &owners {
            processors[*owner].held += 1;
        }
        for processor in &mut processors {
            processor.relimit(work_units_max, all);
        }
        let mut record_max = 0;
        for event in &story.events {
            match event {
                Event::Take { processor, records } => {
                    let has_lane = owners.contains(processor);
                    let of = &mut processors[*processor];
                    of.taken += 1;
                    for (units, tenths) in records {
                        while of.under_way.release(now).is_some() {}
                        if !has_lane || of.under_way.hold_back(&acme, now) {
                            break;
                        }
                        let estimate = (units * story.factor * tenths / 10).max(1);
                        of.under_way.charge(of.taken, &acme, estimate);
                        if of.windows.back().is_none_or(|window| window.number != of.taken) {
                            of.windows.push_back(Seen {
                                number: of.taken,
                                work: Work::default(),
                                is_settled: false,
                            });
                        }
                        let work = &mut of.windows.back_mut().unwrap().work;
                        (work.units, work.estimate) = (work.units + units, work.estimate + estimate);
                        (of.work_units_max, of.lost) = (work_units_max, 0);
                        of.note_estimates();
                        record_max = record_max.max(*units);
                    }
                }
                Event::Settle { processor } => processors[*processor].settle(mutation),
                Event::Commit { processor } => processors[*processor].commit(mutation),
                Event::Move { partition, to } => {
                    let Some(owner) = owners.get_mut(*partition) else {
                        continue;
                    };
                    let from = std::mem::replace(owner, *to);
                    let last = &mut processors[from];
                    last.lost += 1;
                    if mutation != Some(Mutation::KeepPart) {
                        last.held -= 1;
                    }
                    if mutation == Some(Mutation::ForgetLost) {
                        last.under_way = UnderWay::default();
                    }
                    last.relimit(work_units_max, all);
                    if !owners.contains(&from) {
                        last.under_way.forget(&acme);
                    }
                    processors[*to].held += 1;
                    processors[*to].relimit(work_units_max, all);
                }
                Event::Restart { processor } => {
                    let held = processors[*processor].held;
                    processors[*processor] = Processor {
                        held,
                        ..Processor::default()
                    };
                    processors[*processor].relimit(work_units_max, all);
                }
                Event::Relimit { work_units_max: new } => {
                    work_units_max = *new;
                    for processor in &mut processors {
                        processor.relimit(work_units_max, all);
                    }
                }
            }
            check(&processors, partitions, record_max)?;
            for (processor, of) in processors.iter_mut().enumerate() {
                while of.under_way.release(now).is_some() {}
                let waits = owners.contains(&processor) && of.under_way.hold_back(&acme, now);
                if waits && of.windows.is_empty() {
                    return Err(format!("processor {processor} waits for nothing"));
                }
            }
        }
        Ok(())
    }

    fn check(processors: &[Processor], partitions: u64, record_max: u64) -> Result<(), String> {
        let busy = || {
            processors
                .iter()
                .filter(|processor| !processor.windows.is_empty())
        };
        let under_way: u64 = busy().map(Processor::units).sum();
        let excess: u64 = busy().map(|processor| record_max + processor.too_low).sum();
        let lost: u64 = busy().map(|processor| processor.lost).sum();
        let limit = busy().map(|processor| u64::from(processor.work_units_max)).max();
        // Times the number of partitions, so that no part is rounded.
        let bound = limit.unwrap_or_default() * (partitions + lost) + partitions * excess;
        if partitions * under_way > bound {
            return Err(format!(
                "{under_way} are under way, more than {}",
                bound / partitions
            ));
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(Config::with_cases(1_000))]
        #[test]
        fn over_all_processors_no_more_is_under_way_than_the_bound_and_no_lane_waits_for_nothing(
            story in stories(),
        ) {
            prop_assert_eq!(play(&story, None), Ok(()));
        }
    }

    #[test]
    fn work_under_way_that_is_counted_wrongly_is_found() {
        mutations::are_found(&Mutation::ALL, || stories().boxed(), play);
    }

    /// `held` of `all` parts of a limit.
    fn limit(work_units_max: u32, held: u32, all: u64) -> Option<(NonZeroU32, Part)> {
        let part = NonZeroU64::new(all).map(|all| Part { held, all });
        NonZeroU32::new(work_units_max).zip(part)
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_lane_waits_until_less_than_its_part_is_under_way() {
        let (mut under_way, now, acme) = (UnderWay::default(), Instant::now(), tenant());
        under_way.limit(&acme, limit(200, 1, 2));
        for window in 1..=3 {
            assert!(!under_way.hold_back(&acme, now));
            under_way.charge(window, &acme, 40);
        }
        assert!(under_way.hold_back(&acme, now), "120 of 100");
        assert_eq!(under_way.release(now), None);
        under_way.committed(2);
        assert_eq!(under_way.release(now + SECOND), Some((acme.clone(), SECOND)));
        assert_eq!(under_way.release(now + SECOND), None);
        assert!(!under_way.hold_back(&acme, now));
        let (estimate, units) = (40, 100);
        under_way.settle(3, &acme, Work { estimate, units });
        assert!(under_way.hold_back(&acme, now), "it was estimated too low");
        under_way.limit(&acme, limit(200, 2, 2));
        assert!(
            under_way.release(now).is_some(),
            "its part is larger by a partition"
        );
    }

    #[test]
    fn of_the_smallest_part_one_record_at_a_time_is_under_way() {
        let (mut under_way, now, acme) = (UnderWay::default(), Instant::now(), tenant());
        under_way.limit(&acme, limit(1, 0, 5));
        for window in 1..=3 {
            assert!(!under_way.hold_back(&acme, now));
            under_way.charge(window, &acme, 1);
            assert!(under_way.hold_back(&acme, now));
            under_way.committed(window);
            assert!(under_way.release(now).is_some());
        }
    }

    #[test]
    fn what_is_under_way_counts_under_the_next_limit_too_and_nothing_is_kept_when_it_is_committed() {
        let (mut under_way, now, acme) = (UnderWay::default(), Instant::now(), tenant());
        under_way.charge(1, &acme, 1_000);
        under_way.limit(&acme, limit(100, 1, 1));
        assert!(!under_way.hold_back(&acme, now), "it had no limit");
        under_way.charge(2, &acme, 150);
        assert!(under_way.hold_back(&acme, now));
        under_way.limit(&acme, None);
        assert_eq!(under_way.release(now), Some((acme.clone(), Duration::ZERO)));
        assert!(!under_way.hold_back(&acme, now));
        under_way.limit(&acme, limit(100, 1, 1));
        assert!(under_way.hold_back(&acme, now));
        under_way.forget(&acme);
        assert_eq!(under_way.release(now), None);
        under_way.limit(&acme, None);
        let (estimate, units) = (1_000, 7);
        under_way.settle(1, &acme, Work { estimate, units });
        under_way.committed(1);
        assert_eq!(under_way.accounts[&acme].under_way, 150);
        under_way.committed(2);
        assert!(under_way.accounts.is_empty() && under_way.windows.is_empty() && under_way.ready.is_empty());
    }
}
