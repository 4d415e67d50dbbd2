//! Tenants' use that departs from what is usual of them: a function of what was decided and of the time.
//!
//! What comes of a tenant through one topic, its **door**, is counted by intervals of ten minutes. A count **departs** once
//! it is above its limit, so many times what is [usual](crate::usual) and a floor beside; that is told at once, and again
//! when it has been below for an hour. What is remembered of an interval is never more than its limit, so that a flood
//! raises what is usual by so many times at most.
//!
//! All of it is of the partitions that this instance holds of a door: with others it is learnt anew. What had waited on
//! the topic until this instance came counts for nothing, since the tenant did not send it at this time.

#[cfg(test)]
mod traffic;
mod usage;

use std::collections::{BTreeMap, BTreeSet};

use schemas::{Abuse, FindingStage, Measure, Policies, Tenant, TopicId};
use topics::{Chunk, Partition};

pub(crate) use usage::Counts;
use usage::Usage;

use crate::{metric_names, quota::Quotas};

const MINUTE_MS: i64 = 60 * 1_000;
const INTERVAL_MINUTES: i64 = 10;
/// Long enough for a tenant with a job a minute to be told from noise, short enough for what is found to be of use.
const INTERVAL_MS: i64 = INTERVAL_MINUTES * MINUTE_MS;
const INTERVALS_AN_HOUR: i64 = 60 / INTERVAL_MINUTES;
/// A partition whose records all claim to be old is looked at all the same after this long.
const BACKLOG_MS_MAX: i64 = 60 * MINUTE_MS;

/// Some records of one partition that were decided on, and what came of each tenant.
#[derive(Debug)]
pub(crate) struct Seen<'a> {
    pub(crate) source: &'a Partition,
    pub(crate) last_offset: i64,
    /// The youngest time that one of them claims.
    pub(crate) youngest_ms: i64,
    pub(crate) counts: &'a BTreeMap<Tenant, Counts>,
}

impl<'a> Seen<'a> {
    /// What `chunk` brought of each tenant.
    pub(crate) fn of(chunk: &'a Chunk, counts: &'a BTreeMap<Tenant, Counts>) -> Self {
        let times = chunk.records.iter().map(|record| record.timestamp_ms);
        Self {
            source: &chunk.partition,
            last_offset: chunk.records.last().map_or(0, |record| record.offset),
            youngest_ms: times.max().unwrap_or(i64::MIN),
            counts,
        }
    }
}

/// A departure that begins or ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Departure {
    pub(crate) tenant: Tenant,
    pub(crate) uid: String,
    pub(crate) measure: Measure,
    pub(crate) stage: FindingStage,
    /// What is the matter, for people.
    pub(crate) detail: String,
    /// The record at which it was found.
    pub(crate) offset: i64,
}

/// What an instance of ingest knows of the use of all tenants.
#[derive(Debug, Default)]
pub(crate) struct Departures {
    doors: BTreeMap<TopicId, Door>,
}

impl Departures {
    /// Reading begins again from the committed positions. What is usual stays known; what was under way is not, since
    /// some of it comes again.
    pub(crate) fn start_over(&mut self) {
        for door in self.doors.values_mut() {
            door.holds.clear();
            door.forget_what_is_under_way();
        }
    }

    /// These partitions are read from now on.
    pub(crate) fn assigned<'a>(&mut self, partitions: impl IntoIterator<Item = &'a Partition>, now_ms: i64) {
        for partition in partitions {
            let door = self.doors.entry(partition.topic.id);
            let door = door.or_insert_with(|| Door::new(interval_of(now_ms)));
            door.holds
                .insert(partition.index, Reading::Backlog { since_ms: now_ms });
        }
    }

    /// These partitions are read by somebody else from now on.
    pub(crate) fn revoked(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            if let Some(door) = self.doors.get_mut(&partition.topic.id) {
                door.holds.remove(&partition.index);
                door.forget_what_is_under_way();
            }
        }
    }

    /// Counts what was decided at `now_ms`, in milliseconds since 1970 UTC, and answers what begins or ends with it. Who is
    /// above his limit, and is to be throttled, has no more taken of him until the interval is over.
    pub(crate) fn see(
        &mut self,
        seen: &Seen<'_>,
        policies: &Policies,
        quotas: &mut Quotas,
        now_ms: i64,
    ) -> Vec<Departure> {
        let Some(door) = self.doors.get_mut(&seen.source.topic.id) else {
            return Vec::new();
        };
        door.hold_to_what_is_held();
        door.mend_clock(now_ms, quotas);
        let mut found = door.turn_to(interval_of(now_ms), seen, policies);
        if door.is_live(seen, now_ms) {
            found.extend(door.count(seen, policies));
            door.throttle(seen, policies, quotas, now_ms);
        }
        found
    }
}

impl Departure {
    /// Says it in the log and the metrics.
    pub(crate) fn tell(&self) {
        let Self {
            tenant,
            measure,
            detail,
            ..
        } = self;
        let measure = measure.as_str();
        match self.stage {
            FindingStage::Begun => {
                tracing::warn!(%tenant, measure, detail, "a tenant's use departs from the usual");
                metrics::counter!(metric_names::DEPARTURES, "tenant" => tenant.to_string(), "measure" => measure)
                    .increment(1);
            }
            FindingStage::Ended => tracing::info!(%tenant, measure, "a tenant's use is as usual again"),
        }
    }
}

fn interval_of(now_ms: i64) -> i64 {
    now_ms.div_euclid(INTERVAL_MS)
}

fn hour_of(interval: i64) -> i64 {
    interval.div_euclid(INTERVALS_AN_HOUR)
}

/// Jobs of nobody are looked at as the default says.
fn abuse_of(policies: &Policies, tenant: &Tenant) -> Abuse {
    policies
        .tenants
        .get(tenant)
        .map(|policy| policy.abuse)
        .unwrap_or_default()
}

/// What comes through one topic.
#[derive(Debug)]
struct Door {
    holds: BTreeMap<i32, Reading>,
    /// The partitions that what is known is of.
    known_of: BTreeSet<i32>,
    /// The one under way.
    interval: i64,
    tenants: BTreeMap<Tenant, Usage>,
}

/// Where this instance is in a partition.
#[derive(Debug, Clone, Copy)]
enum Reading {
    /// At what had waited until it came.
    Backlog { since_ms: i64 },
    /// At what comes.
    Live,
}

impl Door {
    fn new(interval: i64) -> Self {
        Self {
            holds: BTreeMap::new(),
            known_of: BTreeSet::new(),
            interval,
            tenants: BTreeMap::new(),
        }
    }

    fn forget_what_is_under_way(&mut self) {
        self.tenants
            .values_mut()
            .for_each(Usage::forget_what_is_under_way);
    }

    /// What is known of other partitions is of no use.
    fn hold_to_what_is_held(&mut self) {
        if !self.holds.keys().eq(&self.known_of) {
            self.known_of = self.holds.keys().copied().collect();
            self.tenants.clear();
        }
    }

    /// Goes on from a clock that has gone back by more than an interval: it was ahead, and what was counted then, and who was
    /// throttled until then, is of no time that there is.
    fn mend_clock(&mut self, now_ms: i64, quotas: &mut Quotas) {
        let interval = interval_of(now_ms);
        if interval >= self.interval - 1 {
            return;
        }
        self.interval = interval;
        for (tenant, usage) in &mut self.tenants {
            usage.go_back_to(interval);
            quotas.throttle(tenant, now_ms);
        }
        for reading in self.holds.values_mut() {
            if let Reading::Backlog { since_ms } = reading {
                *since_ms = now_ms.min(*since_ms);
            }
        }
    }

    /// Closes the interval under way if another is. A clock that goes back closes none.
    fn turn_to(&mut self, interval: i64, seen: &Seen<'_>, policies: &Policies) -> Vec<Departure> {
        let passed = interval - self.interval;
        if passed <= 0 {
            return Vec::new();
        }
        let closed = std::mem::replace(&mut self.interval, interval);
        let is_watched = |tenant: &Tenant| tenant.is_unclaimed() || policies.tenants.contains_key(tenant);
        self.tenants.retain(|tenant, _| is_watched(tenant));
        let mut found = Vec::new();
        for (tenant, usage) in &mut self.tenants {
            let ended = usage.close(closed, passed);
            found.extend(ended.into_iter().map(|(measure, uid)| Departure {
                tenant: tenant.clone(),
                uid,
                measure,
                stage: FindingStage::Ended,
                detail: format!("{}: no more, for an hour", measure.title()),
                offset: seen.last_offset,
            }));
        }
        found
    }

    /// Whether these records are what comes now, and not what had waited.
    fn is_live(&mut self, seen: &Seen<'_>, now_ms: i64) -> bool {
        let Some(reading) = self.holds.get_mut(&seen.source.index) else {
            return false;
        };
        let Reading::Backlog { since_ms } = *reading else {
            return true;
        };
        let age_ms = now_ms.saturating_sub(seen.youngest_ms);
        if age_ms < INTERVAL_MS || now_ms - since_ms >= BACKLOG_MS_MAX {
            *reading = Reading::Live;
        }
        false
    }

    fn count(&mut self, seen: &Seen<'_>, policies: &Policies) -> Vec<Departure> {
        let mut found = Vec::new();
        for (tenant, counts) in seen.counts {
            let abuse = abuse_of(policies, tenant);
            if !abuse.detect {
                self.tenants.remove(tenant);
                continue;
            }
            let usage = self.tenants.entry(tenant.clone());
            let usage = usage.or_insert_with(|| Usage::new(hour_of(self.interval)));
            for measure in usage.count(*counts, self.interval, &abuse) {
                let Partition { topic, index } = seen.source;
                let offset = seen.last_offset;
                let uid = format!("{}-{index}-{offset}-{tenant}-{}", topic.id, measure.as_str());
                found.push(Departure {
                    tenant: tenant.clone(),
                    detail: usage.describe(measure, abuse.throttle),
                    uid: uid.clone(),
                    measure,
                    stage: FindingStage::Begun,
                    offset,
                });
                usage.begin(measure, uid);
            }
        }
        found
    }

    fn throttle(&self, seen: &Seen<'_>, policies: &Policies, quotas: &mut Quotas, now_ms: i64) {
        let until_ms = ((self.interval + 1) * INTERVAL_MS).min(now_ms + INTERVAL_MS);
        let is_over = |usage: &Usage| usage.is_over(Measure::Jobs) || usage.is_over(Measure::InputBytes);
        for tenant in seen.counts.keys() {
            if abuse_of(policies, tenant).throttle && self.tenants.get(tenant).is_some_and(is_over) {
                quotas.throttle(tenant, until_ms);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::{
        prelude::*,
        test_runner::{Config, TestRunner},
    };
    use schemas::{TenantPolicy, TopicName, TopicNames};
    use topics::TopicRef;

    use super::{
        usage::{CALM_INTERVALS, COUNTED, State},
        *,
    };

    const DAY: i64 = 24 * INTERVALS_AN_HOUR;
    /// A Thursday's midnight, as intervals.
    const BEGIN: i64 = 20_000 * DAY;

    fn acme() -> Tenant {
        Tenant::new("acme").unwrap()
    }

    pub(super) fn policies(tenants: impl IntoIterator<Item = Tenant>, abuse: Abuse) -> Policies {
        let policy = TenantPolicy {
            abuse,
            ..TenantPolicy::default()
        };
        Policies {
            topics: TopicNames::new(&TopicName::new("jobs").unwrap(), "tributary.").unwrap(),
            tenants: tenants
                .into_iter()
                .map(|tenant| (tenant, policy.clone()))
                .collect(),
            models: BTreeMap::new(),
            pools: BTreeMap::new(),
            input_bytes_max: 0,
            currency: String::new(),
        }
    }

    pub(super) fn partition(topic: u8, index: i32) -> Partition {
        let topic = TopicRef {
            name: TopicName::new("jobs").unwrap(),
            id: TopicId::from_bytes([topic; 16]),
        };
        Partition {
            topic: Arc::new(topic),
            index,
        }
    }

    /// An instance that holds partition 0 of a door and reads what comes.
    pub(super) fn live(now_ms: i64) -> Departures {
        let mut departures = Departures::default();
        departures.assigned([&partition(7, 0)], now_ms);
        see(&mut departures, &partition(7, 0), &BTreeMap::new(), now_ms);
        departures
    }

    fn see(
        departures: &mut Departures,
        source: &Partition,
        counts: &BTreeMap<Tenant, Counts>,
        now_ms: i64,
    ) -> Vec<Departure> {
        let seen = Seen {
            source,
            last_offset: now_ms,
            youngest_ms: now_ms,
            counts,
        };
        departures.see(
            &seen,
            &policies([acme()], Abuse::default()),
            &mut Quotas::default(),
            now_ms,
        )
    }

    fn jobs(count: u64) -> BTreeMap<Tenant, Counts> {
        let mut counts = Counts::default();
        counts.add(Measure::Jobs, count);
        BTreeMap::from([(acme(), counts)])
    }

    /// So many jobs came in the interval of this number from the begin on.
    fn pass(departures: &mut Departures, interval: i64, count: u64) -> Vec<Departure> {
        see(
            departures,
            &partition(7, 0),
            &jobs(count),
            (BEGIN + interval) * INTERVAL_MS,
        )
    }

    fn told(found: &[Departure]) -> Vec<(Measure, FindingStage)> {
        found
            .iter()
            .map(|departure| (departure.measure, departure.stage))
            .collect()
    }

    const BEGUN: (Measure, FindingStage) = (Measure::Jobs, FindingStage::Begun);
    const ENDED: (Measure, FindingStage) = (Measure::Jobs, FindingStage::Ended);

    /// A tenant that sends a hundred jobs an interval, after so many days of it.
    fn steady(days: i64) -> Departures {
        let mut departures = live(BEGIN * INTERVAL_MS);
        for interval in 0..days * DAY {
            assert_eq!(pass(&mut departures, interval, 100), []);
        }
        departures
    }

    #[test]
    fn a_flood_is_told_as_soon_as_it_is_above_the_limit_and_once_and_its_end_after_an_hour() {
        let mut departures = steady(2);
        let flood = 2 * DAY;
        assert_eq!(pass(&mut departures, flood, 300), []);
        let begun = pass(&mut departures, flood, 200);
        assert_eq!(told(&begun), [BEGUN]);
        assert_eq!(
            begun[0].detail,
            "more jobs than usual: 500 within 10 minutes, where 103 at most are usual"
        );
        assert_eq!(pass(&mut departures, flood, 500), []);
        assert_eq!(pass(&mut departures, flood + 1, 5_000), []);
        for calm in 2..2 + CALM_INTERVALS {
            assert_eq!(pass(&mut departures, flood + calm, 100), []);
        }
        let ended = pass(&mut departures, flood + 2 + CALM_INTERVALS, 100);
        assert_eq!(told(&ended), [ENDED]);
        assert_eq!(ended[0].uid, begun[0].uid);
        assert_eq!(told(&pass(&mut departures, flood + DAY, 50_000)), [BEGUN]);
    }

    #[test]
    fn an_hour_of_nothing_ends_a_departure_too() {
        let mut departures = steady(2);
        assert_eq!(told(&pass(&mut departures, 2 * DAY, 5_000)), [BEGUN]);
        assert_eq!(pass(&mut departures, 2 * DAY + CALM_INTERVALS, 100), []);
        assert_eq!(
            told(&pass(&mut departures, 2 * DAY + CALM_INTERVALS + 1, 100)),
            [ENDED]
        );
    }

    #[test]
    fn what_waited_until_an_instance_came_counts_for_nothing() {
        let mut departures = steady(2);
        let now_ms = (BEGIN + 2 * DAY) * INTERVAL_MS;
        departures.start_over();
        departures.assigned([&partition(7, 0)], now_ms);
        let policies = policies([acme()], Abuse::default());
        let counts = jobs(50_000);
        let mut old = |age_ms, now_ms| {
            let seen = Seen {
                source: &partition(7, 0),
                last_offset: 0,
                youngest_ms: now_ms - age_ms,
                counts: &counts,
            };
            departures.see(&seen, &policies, &mut Quotas::default(), now_ms)
        };
        assert_eq!(old(INTERVAL_MS, now_ms), []);
        assert_eq!(
            old(INTERVAL_MS - 1, now_ms),
            [],
            "the backlog ends with these records"
        );
        assert_eq!(
            told(&old(INTERVAL_MS, now_ms)),
            [BEGUN],
            "whatever time they claim now"
        );
    }

    #[test]
    fn records_that_always_claim_to_be_old_are_looked_at_after_an_hour() {
        let mut departures = steady(2);
        let mut now_ms = (BEGIN + 2 * DAY) * INTERVAL_MS;
        departures.start_over();
        departures.assigned([&partition(7, 0)], now_ms);
        let policies = policies([acme()], Abuse::default());
        let counts = jobs(50_000);
        let mut found = Vec::new();
        for _ in 0..2 {
            now_ms += BACKLOG_MS_MAX;
            let seen = Seen {
                source: &partition(7, 0),
                last_offset: 0,
                youngest_ms: i64::MIN,
                counts: &counts,
            };
            found.push(told(&departures.see(
                &seen,
                &policies,
                &mut Quotas::default(),
                now_ms,
            )));
        }
        assert_eq!(found, [vec![], vec![BEGUN]]);
    }

    #[test]
    fn what_is_usual_outlives_a_fault_and_not_another_set_of_partitions() {
        let flood = |change: fn(&mut Departures, i64)| {
            let mut departures = steady(2);
            let now_ms = (BEGIN + 2 * DAY) * INTERVAL_MS;
            change(&mut departures, now_ms);
            pass(&mut departures, 2 * DAY, 0);
            told(&pass(&mut departures, 2 * DAY, 5_000))
        };
        let fault = |departures: &mut Departures, now_ms| {
            departures.start_over();
            departures.assigned([&partition(7, 0)], now_ms);
        };
        assert_eq!(flood(fault), [BEGUN]);
        assert_eq!(
            flood(|departures, now_ms| departures.assigned([&partition(7, 1)], now_ms)),
            []
        );
        assert_eq!(
            flood(|departures, now_ms| departures.assigned([&partition(8, 0)], now_ms)),
            [BEGUN],
            "another door is another matter"
        );
    }

    #[test]
    fn a_clock_that_was_ahead_hides_nothing_afterwards_and_throttles_nobody_until_its_date() {
        for (ahead, passes) in [(DAY, 1), (100 * DAY, 1), (DAY, 3)] {
            let mut departures = steady(2);
            let throttling = Abuse {
                throttle: true,
                ..Abuse::default()
            };
            let policies = policies([acme()], throttling);
            let policy = &policies.tenants[&acme()];
            let mut quotas = Quotas::default();
            let mut pass = |interval: i64, count| {
                let (now_ms, counts) = ((BEGIN + interval) * INTERVAL_MS, jobs(count));
                let seen = Seen {
                    source: &partition(7, 0),
                    last_offset: 0,
                    youngest_ms: now_ms,
                    counts: &counts,
                };
                let found = told(&departures.see(&seen, &policies, &mut quotas, now_ms));
                let free_after = (0..1_000 * DAY).find(|later| {
                    let then_ms = now_ms + later * INTERVAL_MS;
                    quotas.check(&acme(), policy, "USD", then_ms).is_ok()
                });
                (found, free_after)
            };
            let back = 2 * DAY;
            for wrong in 0..passes {
                assert_eq!(pass(back + ahead + wrong, 5_000).1, Some(1));
            }
            for calm in 0..CALM_INTERVALS {
                assert_eq!(pass(back + calm, 100), (vec![], Some(0)), "ahead by {ahead}");
            }
            assert_eq!(pass(back + CALM_INTERVALS, 100), (vec![ENDED], Some(0)));
            assert_eq!(pass(back + CALM_INTERVALS + 1, 5_000), (vec![BEGUN], Some(1)));
        }
    }

    #[test]
    fn whoever_is_not_looked_at_is_not_remembered_either() {
        let mut departures = steady(1);
        let unwatched = Abuse {
            detect: false,
            ..Abuse::default()
        };
        let seen = Seen {
            source: &partition(7, 0),
            last_offset: 0,
            youngest_ms: 0,
            counts: &jobs(50_000),
        };
        let now_ms = (BEGIN + DAY) * INTERVAL_MS;
        assert_eq!(
            departures.see(
                &seen,
                &policies([acme()], unwatched),
                &mut Quotas::default(),
                now_ms
            ),
            []
        );
        assert!(departures.doors.values().all(|door| door.tenants.is_empty()));
    }

    #[test]
    fn a_tenant_that_is_gone_is_forgotten_with_the_interval() {
        let mut departures = steady(1);
        let now_ms = (BEGIN + DAY) * INTERVAL_MS;
        let seen = Seen {
            source: &partition(7, 0),
            last_offset: 0,
            youngest_ms: 0,
            counts: &BTreeMap::new(),
        };
        departures.see(
            &seen,
            &policies([], Abuse::default()),
            &mut Quotas::default(),
            now_ms,
        );
        assert!(departures.doors.values().all(|door| door.tenants.is_empty()));
    }

    #[test]
    fn a_tenant_takes_less_than_four_kilobytes_at_a_door() {
        let names = Measure::ALL.len() * 150;
        let bytes = size_of::<Usage>() + COUNTED * crate::usual::BYTES_MAX + names;
        assert!(bytes < 4_096, "{bytes}");
    }

    /// A way in which departures are found wrongly. Each must be found: a check that never fails checks nothing.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Mutation {
        /// A departure is told in each interval of it.
        TellAgain,
        /// A departure ends with the first interval within its limit.
        EndAtOnce,
        /// A flood is remembered as large as it was.
        RememberFloods,
        /// Nothing is ever known for a day.
        NeverLearn,
        /// What is not known yet is taken for silence.
        KnowFromTheStart,
    }

    impl Mutation {
        const ALL: [Self; 5] = [
            Self::TellAgain,
            Self::EndAtOnce,
            Self::RememberFloods,
            Self::NeverLearn,
            Self::KnowFromTheStart,
        ];

        /// Does it, after an interval in which so much came.
        fn spoil(self, usage: &mut Usage, interval: i64, count: u64) {
            let hour = hour_of(interval);
            let jobs = Measure::Jobs as usize;
            match self {
                Self::TellAgain => usage.states = Default::default(),
                Self::EndAtOnce => {
                    if let State::Departed { calm_intervals, .. } = &mut usage.states[jobs] {
                        *calm_intervals = CALM_INTERVALS;
                    }
                }
                Self::RememberFloods => usage.peaks[jobs].note(hour, count),
                Self::NeverLearn => usage.known_since = hour,
                Self::KnowFromTheStart => usage.known_since = 0,
            }
        }
    }

    /// Traffic with a daily season, and a flood at the same time of three days in a row.
    #[derive(Debug, Clone)]
    struct Story {
        /// The most that comes in an interval, by the hour of the day.
        season: Vec<u64>,
        seed: u64,
        first_flood: i64,
        intervals: i64,
        times: u64,
    }

    fn stories() -> impl Strategy<Value = Story> {
        let hour = prop_oneof![Just(0_u64), 1_u64..30, 200_u64..3_000];
        let season = prop::collection::vec(hour, 24);
        let flood = (14 * DAY..32 * DAY, 1_i64..50, 50_u64..500);
        (season, any::<u64>(), flood).prop_map(|(season, seed, (first_flood, intervals, times))| Story {
            season,
            seed,
            first_flood,
            intervals,
            times,
        })
    }

    /// Plays `story`, and says what is told that should not be, or the other way round: each flood once at its begin, in its
    /// first interval, and once an hour after its last one; of what is ordinary nothing.
    fn play(story: &Story, mutation: Option<Mutation>) -> Result<(), String> {
        let mut departures = live(BEGIN * INTERVAL_MS);
        let mut random = fastrand::Rng::with_seed(story.seed);
        for interval in 0..36 * DAY {
            let hour = hour_of(interval).rem_euclid(24) as usize;
            let flood = (0..3).find_map(|day| {
                let since = interval - story.first_flood - day * DAY;
                (0..story.intervals + CALM_INTERVALS + 1)
                    .contains(&since)
                    .then_some(since)
            });
            let most = story.season[hour];
            let count = match flood {
                Some(since) if since < story.intervals => {
                    let most = story.season.iter().max().copied().unwrap_or(0);
                    story.times * (most + 100)
                }
                _ => most * random.u64(60..=100) / 100,
            };
            let expected: &[_] = match flood {
                Some(0) => &[BEGUN],
                Some(since) if since == story.intervals + CALM_INTERVALS => &[ENDED],
                _ => &[],
            };
            // It comes in two halves, of which either may be the one that passes the limit.
            let mut found = pass(&mut departures, interval, count / 2);
            let mut spoil_half = || {
                let usage = departures
                    .doors
                    .values_mut()
                    .flat_map(|door| door.tenants.values_mut())
                    .next();
                if let (Some(mutation), Some(usage)) = (mutation, usage) {
                    mutation.spoil(usage, BEGIN + interval, count);
                }
            };
            spoil_half();
            found.extend(pass(&mut departures, interval, count - count / 2));
            let mut found = told(&found);
            found.retain(|(measure, _)| *measure == Measure::Jobs);
            if found != expected {
                return Err(format!("in interval {interval} with {count} jobs: {found:?}"));
            }
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(Config::with_cases(100))]
        #[test]
        fn each_flood_is_told_at_its_begin_and_its_end_and_of_what_is_ordinary_nothing(story in stories()) {
            prop_assert_eq!(play(&story, None), Ok(()));
        }
    }

    #[test]
    fn departures_that_are_found_wrongly_are_found() {
        for mutation in Mutation::ALL {
            let mut runner = TestRunner::new(Config {
                cases: 200,
                max_shrink_iters: 0,
                failure_persistence: None,
                ..Config::default()
            });
            let found = runner.run(&stories(), |story| {
                play(&story, Some(mutation)).map_err(TestCaseError::fail)
            });
            assert!(found.is_err(), "{mutation:?} goes unnoticed");
        }
    }
}
