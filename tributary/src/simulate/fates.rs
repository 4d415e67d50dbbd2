//! What would have become of recorded jobs under other policies.
//!
//! ```text
//! recorded jobs ─▶ quotas of ingest ─▶ lanes of a processor ─▶ fates
//!                         ▲─── what it spent, and is done ──┘
//! ```
//!
//! Both are what services run on, under one clock, which is counted on rather than waited for.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ingest::{
    LOOK,
    quota::{Ledger, Quotas},
};
use processor::replay::{Recorded, Replay, Settings, Window};
use rust_decimal::Decimal;
use schemas::{ReasonCode, Spending, Tenant, Tenants, TopicNames};

/// What became of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It waited so long for the device, and ran.
    Ran(Duration),
    /// The quotas of its tenant did not let it in.
    Rejected(ReasonCode),
}

/// What jobs are replayed under.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms<'a> {
    /// The tenants of the pool.
    pub(super) tenants: &'a Tenants,
    pub(super) device: Settings,
    pub(super) currency: &'a str,
    pub(super) names: &'a TopicNames,
}

/// The fate of each of `jobs`, which are in the order in which they came, those of a tenant that came at once one after the
/// other; none where the tenant is not here. What a job costs if it runs stands at its place in `costs`.
pub(super) fn fates(jobs: &[Recorded], costs: &[Decimal], terms: Terms<'_>) -> Vec<Option<Fate>> {
    let mut fates = vec![None; jobs.len()];
    let mut replay = Replay::new(jobs, terms.device, terms.names, terms.tenants);
    let mut books = Books::default();
    let mut begin = 0;
    for chunk in jobs.chunk_by(|a, b| (a.submitted_at_ns, &a.tenant) == (b.submitted_at_ns, &b.tenant)) {
        let came = begin..begin + chunk.len();
        begin = came.end;
        let (tenant, now_ns) = (&chunk[0].tenant, chunk[0].submitted_at_ns);
        let Some(policy) = terms.tenants.get(tenant) else {
            continue;
        };
        let windows = replay.run_until(now_ns);
        enter(&windows, &mut fates);
        books.committed.extend(windows);
        books.look(now_ns, jobs, costs);
        match books.quotas.check(tenant, policy, terms.currency, ms(now_ns)) {
            Ok(()) => {
                let records = replay.admit(came);
                if policy.has_quotas() {
                    books.admit(tenant, records);
                }
            }
            Err(reason) => fates[came].fill(Some(Fate::Rejected(reason.code))),
        }
    }
    enter(&replay.finish(), &mut fates);
    fates
}

fn enter(windows: &[Window], fates: &mut [Option<Fate>]) {
    for ran in windows.iter().flat_map(|window| &window.records).flatten() {
        fates[ran.job] = Some(Fate::Ran(ran.waited));
    }
}

fn ms(ns: u64) -> i64 {
    (ns / 1_000_000) as i64
}

/// What one ingest knows of the tenants that have quotas.
#[derive(Default)]
struct Books {
    quotas: Quotas,
    /// How often it has looked, counted from 1970.
    looks: u64,
    /// What was spent and is done as of the last look, and all that was admitted.
    accounts: BTreeMap<Tenant, Account>,
    /// What no look has seen yet.
    committed: Vec<Window>,
}

#[derive(Default)]
struct Account {
    spending: Spending,
    waiting_records: u64,
}

impl Books {
    /// Looks as often as was due by `now_ns`.
    fn look(&mut self, now_ns: u64, jobs: &[Recorded], costs: &[Decimal]) {
        let look_ns = LOOK.as_nanos() as u64;
        let due = now_ns / look_ns - self.looks;
        if due == 0 {
            return;
        }
        self.looks += due;
        let looked_at_ns = self.looks * look_ns;
        let seen = self
            .committed
            .partition_point(|window| window.committed_at_ns <= looked_at_ns);
        for window in self.committed.drain(..seen) {
            for record in &window.records {
                let tenant = &jobs[record[0].job].tenant;
                if let Some(account) = self.accounts.get_mut(tenant) {
                    account.waiting_records -= 1;
                    let cost = record.iter().map(|ran| costs[ran.job]).sum();
                    account.spending.add(cost, ms(window.committed_at_ns));
                }
            }
        }
        let mut ledger = Ledger::default();
        for (tenant, account) in &self.accounts {
            ledger.add(
                tenant.clone(),
                Some(account.spending.clone()),
                account.waiting_records,
            );
        }
        let ledger = Arc::new(ledger);
        // Nothing was admitted between them, so that a third would change nothing.
        for _ in 0..due.min(2) {
            self.quotas.looked(Arc::clone(&ledger));
        }
    }

    fn admit(&mut self, tenant: &Tenant, records: usize) {
        self.accounts.entry(tenant.clone()).or_default().waiting_records += records as u64;
        for _ in 0..records {
            self.quotas.admitted(tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU32, NonZeroUsize};

    use proptest::prelude::*;
    use schemas::{Budget, Rate, TenantPolicy, TopicName};

    use super::*;

    const MS: u64 = 1_000_000;
    /// Noon, on a day that is not the last of its month.
    const BEGAN_NS: u64 = 1_763_985_600_000 * MS;
    const DAY_MS: u64 = 24 * 60 * 60 * 1_000;
    const JOB_NS: u64 = 10 * MS;

    fn tenant(name: &str) -> Tenant {
        Tenant::new(name).unwrap()
    }

    /// A job of 10 ms.
    fn job(name: &str, submitted_at_ms: u64) -> Recorded {
        Recorded {
            tenant: tenant(name),
            submitted_at_ns: BEGAN_NS + submitted_at_ms * MS,
            queue_time_ns: 0,
            input_tokens: 20,
            device_time_ns: JOB_NS,
        }
    }

    fn with_budget(budget: Budget) -> TenantPolicy {
        TenantPolicy {
            budget: Some(budget),
            ..TenantPolicy::default()
        }
    }

    fn with_queue(records_max: u32) -> TenantPolicy {
        TenantPolicy {
            queue_records_max: NonZeroU32::new(records_max),
            ..TenantPolicy::default()
        }
    }

    /// The fates of `jobs`, which are sorted first and cost 1 each.
    fn replayed<const N: usize>(
        jobs: &mut [Recorded],
        policies: [(&str, TenantPolicy); N],
    ) -> Vec<Option<Fate>> {
        jobs.sort_by(|a, b| (a.submitted_at_ns, &a.tenant).cmp(&(b.submitted_at_ns, &b.tenant)));
        let tenants: Tenants = policies
            .into_iter()
            .map(|(name, policy)| (tenant(name), policy))
            .collect();
        let names = TopicNames::new(&TopicName::new("jobs").unwrap(), "t.").unwrap();
        let terms = Terms {
            tenants: &tenants,
            device: Settings {
                speed: 1.0,
                window_ms: 100,
                window_tenants_max: NonZeroUsize::MAX,
            },
            currency: "USD",
            names: &names,
        };
        fates(jobs, &vec![Decimal::ONE; jobs.len()], terms)
    }

    #[test]
    fn what_comes_when_a_budget_is_spent_is_rejected_until_the_day_or_the_month_is_over() {
        let days = [0, DAY_MS, 30 * DAY_MS];
        let mut jobs: Vec<Recorded> = days
            .iter()
            .flat_map(|day| (0..500).map(move |n| job("a", day + 20 * n)))
            .collect();
        let budget = |per_day: Option<i64>, per_month: Option<i64>| {
            let money = |amount: Option<i64>| amount.map(Decimal::from);
            with_budget(Budget {
                per_day: money(per_day),
                per_month: money(per_month),
            })
        };
        // Beside what is spent there may be what came within a look, and what was not committed at it.
        let ran_each_day = |policy: TenantPolicy| -> Vec<usize> {
            let fates = replayed(&mut jobs.clone(), [("a", policy)]);
            let of_days = fates.chunks(500);
            of_days
                .map(|fates| {
                    let ran = fates
                        .iter()
                        .take_while(|fate| matches!(fate, Some(Fate::Ran(_))))
                        .count();
                    let rejected = Some(Fate::Rejected(ReasonCode::BudgetExhausted));
                    assert!(fates[ran..].iter().all(|fate| *fate == rejected));
                    ran
                })
                .collect()
        };
        let about_100 = 100..=100 + 13 + 2;
        let by_day = ran_each_day(budget(Some(100), None));
        assert!(by_day.iter().all(|ran| about_100.contains(ran)), "{by_day:?}");
        let by_month = ran_each_day(budget(None, Some(100)));
        assert!(about_100.contains(&by_month[0]), "{by_month:?}");
        assert_eq!(by_month[1], 0, "another day of the same month");
        assert_eq!(by_month[2], by_month[0], "another month");
        assert_eq!(ran_each_day(budget(Some(0), None)), [0, 0, 0]);
        assert_eq!(ran_each_day(TenantPolicy::default()), [500, 500, 500]);
        jobs.truncate(1);
        assert_eq!(replayed(&mut jobs, []), [None]);
    }

    #[test]
    fn no_more_of_a_tenant_waits_than_its_queue_has_room_for_and_the_others_wait_less() {
        let flood = (0..3_000).map(|n| job("flood", n));
        let mut jobs: Vec<Recorded> = flood.chain((0..30).map(|n| job("light", 100 * n + 7))).collect();
        let free = replayed(
            &mut jobs,
            [
                ("flood", TenantPolicy::default()),
                ("light", TenantPolicy::default()),
            ],
        );
        let bound = replayed(
            &mut jobs,
            [("flood", with_queue(40)), ("light", TenantPolicy::default())],
        );
        let rejected = bound
            .iter()
            .filter(|fate| **fate == Some(Fate::Rejected(ReasonCode::QueueFull)))
            .count();
        assert!((2_000..3_000).contains(&rejected), "{rejected}");
        let waited = |fates: &[Option<Fate>]| -> Duration {
            let light = jobs
                .iter()
                .zip(fates)
                .filter(|(job, _)| job.tenant == tenant("light"));
            light
                .map(|(_, fate)| match fate {
                    Some(Fate::Ran(waited)) => *waited,
                    other => panic!("it has no quota: {other:?}"),
                })
                .sum()
        };
        assert!(
            waited(&bound) < waited(&free),
            "{:?}, {:?}",
            waited(&bound),
            waited(&free)
        );
        let ran: Vec<(u64, u64)> = jobs
            .iter()
            .zip(&bound)
            .filter_map(|(job, fate)| match fate {
                Some(Fate::Ran(waited)) if job.tenant == tenant("flood") => Some((
                    job.submitted_at_ns,
                    job.submitted_at_ns + waited.as_nanos() as u64,
                )),
                _ => None,
            })
            .collect();
        for (came, _) in &ran {
            let waiting = ran.iter().filter(|(other, begun)| other <= came && begun > came);
            assert!(waiting.count() <= 40);
        }
    }

    proptest! {
        #[test]
        fn each_job_runs_once_or_is_rejected_by_a_quota_that_its_tenant_has(
            arrivals in prop::collection::vec((0_usize..5, 0_u64..3_000), 1..300),
            quotas in prop::collection::vec((prop::option::of(0_i64..50), prop::option::of(1_u32..30), prop::option::of(1_u32..2_000)), 4),
        ) {
            let names = ["a", "b", "c", "d", "elsewhere"];
            let policies = std::array::from_fn::<_, 4, _>(|index| {
                let (per_day, records_max, work_units_per_s) = quotas[index];
                (names[index], TenantPolicy {
                    budget: per_day.map(|amount| Budget { per_day: Some(amount.into()), per_month: None }),
                    queue_records_max: records_max.and_then(NonZeroU32::new),
                    rate: work_units_per_s.and_then(NonZeroU32::new).map(|work_units_per_s| Rate { work_units_per_s, burst_work_units: None }),
                    ..TenantPolicy::default()
                })
            });
            let mut jobs: Vec<Recorded> = arrivals.iter().map(|(who, at)| job(names[*who], *at)).collect();
            let fates = replayed(&mut jobs, policies.clone());
            let mut begun: Vec<u64> = Vec::new();
            for (job, fate) in jobs.iter().zip(fates) {
                let policy = policies.iter().find(|(name, _)| *name == job.tenant.as_str()).map(|(_, policy)| policy);
                match (fate, policy) {
                    (Some(Fate::Ran(waited)), Some(_)) => begun.push(job.submitted_at_ns + waited.as_nanos() as u64),
                    (Some(Fate::Rejected(ReasonCode::BudgetExhausted)), Some(policy)) => prop_assert!(policy.budget.is_some()),
                    (Some(Fate::Rejected(ReasonCode::QueueFull)), Some(policy)) => prop_assert!(policy.queue_records_max.is_some()),
                    (None, None) => {}
                    (fate, _) => prop_assert!(false, "a job of {}: {fate:?}", job.tenant),
                }
            }
            begun.sort_unstable();
            prop_assert!(begun.windows(2).all(|pair| pair[1] - pair[0] >= JOB_NS));
        }
    }
}
