//! Whether a tenant's quotas let another job in: a function of what it has spent and has waiting, as of the last look.

use std::{collections::BTreeMap, sync::Arc};

use chrono::{DateTime, Datelike, Months, NaiveDate, NaiveTime, SecondsFormat};
use rust_decimal::Decimal;
use schemas::{Budget, Reason, ReasonCode, Spending, Spent, Tenant, TenantPolicy};

/// What is known of the tenants that have quotas.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ledger(BTreeMap<Tenant, Account>);

/// What is known of one tenant.
#[derive(Debug, Clone, Default, PartialEq)]
struct Account {
    /// Of each partition of its work.
    spendings: Vec<Spending>,
    waiting_records: u64,
}

impl Ledger {
    /// Adds what is known of one partition of `tenant`'s work: what was spent there, and how many records wait or are under
    /// way.
    pub fn add(&mut self, tenant: Tenant, spending: Option<Spending>, waiting_records: u64) {
        let account = self.0.entry(tenant).or_default();
        account.spendings.extend(spending);
        account.waiting_records += waiting_records;
    }

    /// Nothing of `tenant`'s work waits, whatever was counted.
    pub(crate) fn nothing_waits(&mut self, tenant: &Tenant) {
        if let Some(account) = self.0.get_mut(tenant) {
            account.waiting_records = 0;
        }
    }

    /// What `tenant` has spent in the day and the month of `now_ms`.
    pub fn spent(&self, tenant: &Tenant, now_ms: i64) -> Spent {
        let spendings = self.0.get(tenant).map_or(&[][..], |account| &account.spendings);
        let spent = spendings.iter().map(|spending| spending.spent_as_of(now_ms));
        spent.fold(Spent::default(), |sum, spent| Spent {
            on_day: sum.on_day.saturating_add(spent.on_day),
            in_month: sum.in_month.saturating_add(spent.in_month),
        })
    }

    /// How many records of `tenant`'s work wait or are under way.
    pub fn waiting_records(&self, tenant: &Tenant) -> u64 {
        self.0.get(tenant).map_or(0, |account| account.waiting_records)
    }
}

/// The ledger, and what was admitted since it was made.
#[derive(Debug, Clone, Default)]
pub struct Quotas {
    ledger: Arc<Ledger>,
    /// Records of work since the last look, and between it and the one before, whose commit it may have missed.
    admitted: [BTreeMap<Tenant, u64>; 2],
    /// Until when tenants that send far more than usual are held to what has come, in milliseconds since 1970 UTC.
    throttled_until_ms: BTreeMap<Tenant, i64>,
}

impl Quotas {
    /// Goes by `ledger` from now on.
    pub fn looked(&mut self, ledger: Arc<Ledger>) {
        let [since, _] = std::mem::take(&mut self.admitted);
        self.ledger = ledger;
        self.admitted = [BTreeMap::new(), since];
    }

    /// `tenant` sends far more than usual: no more of it until a time, in milliseconds since 1970 UTC.
    pub fn throttle(&mut self, tenant: &Tenant, until_ms: i64) {
        self.throttled_until_ms.insert(tenant.clone(), until_ms);
    }

    /// A record of work of `tenant` was admitted.
    pub fn admitted(&mut self, tenant: &Tenant) {
        *self.admitted[0].entry(tenant.clone()).or_default() += 1;
    }

    /// Whether a job of `tenant` may be admitted as of `now_ms`. What is spent is in `currency`.
    ///
    /// # Errors
    /// Why not, and when it may.
    pub fn check(
        &self,
        tenant: &Tenant,
        policy: &TenantPolicy,
        currency: &str,
        now_ms: i64,
    ) -> Result<(), Reason<'static>> {
        if let Some(budget) = &policy.budget {
            check_budget(budget, &self.ledger.spent(tenant, now_ms), currency, now_ms)?;
        }
        if policy.abuse.throttle {
            self.check_throttle(tenant, now_ms)?;
        }
        let Some(records_max) = policy.queue_records_max else {
            return Ok(());
        };
        let admitted = self.admitted.iter().filter_map(|admitted| admitted.get(tenant));
        let waiting = self.ledger.waiting_records(tenant) + admitted.sum::<u64>();
        if waiting >= records_max.get().into() {
            let message = format!(
                "{waiting} records of the tenant's work wait, and {records_max} may: send the job again when some of them are done"
            );
            return Err(Reason::new(ReasonCode::QueueFull, message));
        }
        Ok(())
    }

    fn check_throttle(&self, tenant: &Tenant, now_ms: i64) -> Result<(), Reason<'static>> {
        let until_ms = self.throttled_until_ms.get(tenant);
        let Some(until_ms) = until_ms.filter(|until_ms| now_ms < **until_ms) else {
            return Ok(());
        };
        let until = DateTime::from_timestamp_millis(*until_ms).unwrap_or_default();
        let until = until.to_rfc3339_opts(SecondsFormat::Secs, true);
        let message = format!("the tenant sends far more than usual: send the job again from {until} on");
        Err(Reason::new(ReasonCode::Throttled, message))
    }
}

fn check_budget(budget: &Budget, spent: &Spent, currency: &str, now_ms: i64) -> Result<(), Reason<'static>> {
    let today = DateTime::from_timestamp_millis(now_ms)
        .unwrap_or_default()
        .date_naive();
    let periods = [
        ("day", budget.per_day, spent.on_day, today.succ_opt()),
        (
            "month",
            budget.per_month,
            spent.in_month,
            first_of_next_month(today),
        ),
    ];
    for (period, budget, spent, ends) in periods {
        if let Some(budget) = budget.filter(|budget| spent >= *budget) {
            return Err(exhausted(period, budget, spent, currency, ends));
        }
    }
    Ok(())
}

fn first_of_next_month(day: NaiveDate) -> Option<NaiveDate> {
    day.with_day(1)?.checked_add_months(Months::new(1))
}

fn exhausted(
    period: &str,
    budget: Decimal,
    spent: Decimal,
    currency: &str,
    ends: Option<NaiveDate>,
) -> Reason<'static> {
    let ends = ends.unwrap_or(NaiveDate::MAX).and_time(NaiveTime::MIN).and_utc();
    let ends = ends.to_rfc3339_opts(SecondsFormat::Secs, true);
    let (spent, budget) = (spent.normalize(), budget.normalize());
    let message = format!(
        "the tenant has spent {spent} {currency} this {period}, and {budget} are its budget: send the job again from {ends} on"
    );
    Reason::new(ReasonCode::BudgetExhausted, message)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use proptest::prelude::*;

    use super::*;

    fn ms(time: &str) -> i64 {
        DateTime::parse_from_rfc3339(time).unwrap().timestamp_millis()
    }

    fn acme() -> Tenant {
        Tenant::new("acme").unwrap()
    }

    fn policy(per_day: Option<&str>, per_month: Option<&str>, queue: Option<u32>) -> TenantPolicy {
        let money = |text: Option<&str>| text.map(|text| text.parse().unwrap());
        TenantPolicy {
            budget: Some(Budget {
                per_day: money(per_day),
                per_month: money(per_month),
            }),
            queue_records_max: queue.and_then(NonZeroU32::new),
            ..TenantPolicy::default()
        }
    }

    /// Quotas of a tenant that spent so much in each partition at these times.
    fn spent(costs: &[(&str, &str)]) -> Quotas {
        let (mut quotas, mut ledger) = (Quotas::default(), Ledger::default());
        for (cost, at) in costs {
            let mut spending = Spending::default();
            spending.add(cost.parse().unwrap(), ms(at));
            ledger.add(acme(), Some(spending), 0);
        }
        quotas.looked(Arc::new(ledger));
        quotas
    }

    fn refusal(quotas: &Quotas, policy: &TenantPolicy, now: &str) -> Option<(ReasonCode, String)> {
        let refused = quotas.check(&acme(), policy, "USD", ms(now)).err()?;
        Some((refused.code, refused.message.to_string()))
    }

    #[test]
    fn a_budget_that_is_spent_over_all_partitions_rejects_until_its_period_ends() {
        let noon = "2026-12-31T12:00:00Z";
        let quotas = spent(&[("1.50", noon), ("0.5", noon), ("8", "2026-12-30T12:00:00Z")]);
        let day = policy(Some("2"), None, None);
        assert_eq!(
            refusal(&quotas, &day, "2026-12-31T23:59:59Z"),
            Some((
                ReasonCode::BudgetExhausted,
                "the tenant has spent 2 USD this day, and 2 are its budget: send the job again from 2027-01-01T00:00:00Z on"
                    .to_owned()
            ))
        );
        assert_eq!(refusal(&quotas, &day, "2027-01-01T00:00:00Z"), None);
        assert_eq!(refusal(&quotas, &policy(Some("2.01"), None, None), noon), None);
        let (code, message) = refusal(&quotas, &policy(Some("9"), Some("10"), None), noon).unwrap();
        assert_eq!(code, ReasonCode::BudgetExhausted);
        assert!(
            message.contains("spent 10 USD this month") && message.ends_with("from 2027-01-01T00:00:00Z on"),
            "{message}"
        );
        assert_eq!(
            refusal(&quotas, &policy(None, Some("10.000001"), None), noon),
            None
        );
        assert_eq!(refusal(&quotas, &TenantPolicy::default(), noon), None);
    }

    #[test]
    fn a_budget_of_nothing_admits_nothing() {
        let (code, _) = refusal(
            &Quotas::default(),
            &policy(Some("0"), None, None),
            "2026-12-31T12:00:00Z",
        )
        .unwrap();
        assert_eq!(code, ReasonCode::BudgetExhausted);
    }

    #[test]
    fn a_queue_counts_what_was_admitted_since_the_look_before_the_last() {
        let mut quotas = Quotas::default();
        let policy = policy(None, None, Some(3));
        let noon = "2026-12-31T12:00:00Z";
        let look = |quotas: &mut Quotas, waiting| {
            let mut ledger = Ledger::default();
            ledger.add(acme(), None, waiting);
            quotas.looked(Arc::new(ledger));
        };
        for _ in 0..3 {
            assert_eq!(refusal(&quotas, &policy, noon), None);
            quotas.admitted(&acme());
        }
        assert_eq!(
            refusal(&quotas, &policy, noon),
            Some((
                ReasonCode::QueueFull,
                "3 records of the tenant's work wait, and 3 may: send the job again when some of them are done".to_owned()
            ))
        );
        look(&mut quotas, 0);
        assert!(
            refusal(&quotas, &policy, noon).is_some(),
            "they may not have been committed"
        );
        look(&mut quotas, 2);
        assert_eq!(refusal(&quotas, &policy, noon), None);
        quotas.admitted(&acme());
        assert!(refusal(&quotas, &policy, noon).is_some());
    }

    #[test]
    fn who_sends_far_more_than_usual_waits_until_the_time_that_he_is_told_where_his_policy_says_so() {
        let mut quotas = Quotas::default();
        let mut policy = TenantPolicy::default();
        policy.abuse.throttle = true;
        quotas.throttle(&acme(), ms("2026-12-31T12:10:00Z"));
        quotas.looked(Arc::default());
        assert_eq!(
            refusal(&quotas, &policy, "2026-12-31T12:09:59Z"),
            Some((
                ReasonCode::Throttled,
                "the tenant sends far more than usual: send the job again from 2026-12-31T12:10:00Z on"
                    .to_owned()
            ))
        );
        assert_eq!(refusal(&quotas, &policy, "2026-12-31T12:10:00Z"), None);
        assert_eq!(
            refusal(&quotas, &TenantPolicy::default(), "2026-12-31T12:09:59Z"),
            None
        );
        let other = quotas.check(
            &Tenant::new("globex").unwrap(),
            &policy,
            "USD",
            ms("2026-12-31T12:09:59Z"),
        );
        assert_eq!(other, Ok(()));
    }

    proptest! {
        /// Whatever each of some ingests admits, and whenever each looks and commits: no more waits than each lets in by
        /// itself, beside what was decided before a commit that no look has seen for two looks.
        #[test]
        fn so_many_ingests_as_there_are_may_each_fill_a_queue_once(
            ingests in 1_usize..4,
            records_max in 1_u32..20,
            events in prop::collection::vec((0_usize..4, 0_u8..10), 1..300),
        ) {
            let policy = policy(None, None, Some(records_max));
            let mut quotas: Vec<Quotas> = (0..ingests).map(|_| Quotas::default()).collect();
            // What each has decided and not committed, which is at most what it decides between two looks.
            let mut in_hand = vec![0_u64; ingests];
            let mut waiting = 0_u64;
            for (ingest, event) in events {
                let ingest = ingest % ingests;
                match event {
                    0..=5 => if quotas[ingest].check(&acme(), &policy, "USD", 0).is_ok() {
                        quotas[ingest].admitted(&acme());
                        in_hand[ingest] += 1;
                    },
                    6 => waiting += std::mem::take(&mut in_hand[ingest]),
                    7 | 8 => {
                        let mut ledger = Ledger::default();
                        ledger.add(acme(), None, waiting);
                        quotas[ingest].looked(Arc::new(ledger));
                        waiting += std::mem::take(&mut in_hand[ingest]);
                    }
                    _ => waiting = waiting.saturating_sub(1),
                }
                let all = waiting + in_hand.iter().sum::<u64>();
                prop_assert!(all <= ingests as u64 * u64::from(records_max), "{all} wait");
            }
        }
    }
}
