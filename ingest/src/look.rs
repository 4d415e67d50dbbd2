//! The thin loop that keeps the ledger: looks where the groups of processors stand, again and again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use chrono::Utc;
use rust_decimal::prelude::ToPrimitive;
use schemas::{Policies, Pool, Priority, Spending, Tenant, TopicName};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use topics::{Error, Subscription, TopicPattern, Topics};

use crate::{
    metric_names,
    queues::{Count, FullQueues},
    quota::Ledger,
};

/// What a tenant spends, and what of its work is done, is known after at most this long and a look.
pub const LOOK: Duration = Duration::from_millis(250);

/// The consumer group of the processors of a pool.
pub type GroupOf = Arc<dyn Fn(&Pool) -> String + Send + Sync>;

/// What tenants with quotas have spent and have waiting, in any pool: one that has moved may have work in both.
async fn look(
    topics: &dyn Topics,
    policies: &Policies,
    group_of: &GroupOf,
    full_queues: &mut FullQueues,
) -> Result<Ledger, Error> {
    let tenants = policies.tenants.iter().filter(|(_, policy)| policy.has_quotas());
    let tenants: Vec<&Tenant> = tenants.map(|(tenant, _)| tenant).collect();
    let mut ledger = Ledger::default();
    if tenants.is_empty() {
        return Ok(ledger);
    }
    let mut counts: BTreeMap<Tenant, Count> = BTreeMap::new();
    for pool in pools(policies) {
        let work: Vec<TopicName> = tenants
            .iter()
            .flat_map(|tenant| work_of(policies, &pool, tenant))
            .collect();
        for ((topic, index), standing) in topics.standing(&group_of(&pool), &work).await? {
            let Some((tenant, _)) = policies.topics.owner_of_work(&pool, &topic) else {
                continue;
            };
            let spending = standing.note.and_then(|note| match Spending::of_note(&note) {
                Ok(spending) => Some(spending),
                Err(error) => {
                    tracing::error!(%topic, index, note, %error, "what was spent cannot be read");
                    None
                }
            });
            let count = counts.entry(tenant.clone()).or_default();
            count.behind += standing.behind;
            count.ends += standing.end;
            ledger.add(tenant, spending, standing.behind);
        }
    }
    counts.retain(|tenant, count| is_full(policies, tenant, count.behind));
    if let Some(tenant) = full_queues.looked(counts) {
        let is_empty = !has_work(topics, policies, group_of, &tenant).await?;
        full_queues.asked(&tenant, is_empty);
    }
    full_queues
        .empty()
        .for_each(|tenant| ledger.nothing_waits(tenant));
    Ok(ledger)
}

fn is_full(policies: &Policies, tenant: &Tenant, waiting: u64) -> bool {
    let policy = policies.tenants.get(tenant);
    policy
        .and_then(|policy| policy.queue_records_max)
        .is_some_and(|records_max| waiting >= records_max.get().into())
}

/// Whether a record of `tenant`'s work waits or is under way.
async fn has_work(
    topics: &dyn Topics,
    policies: &Policies,
    group_of: &GroupOf,
    tenant: &Tenant,
) -> Result<bool, Error> {
    for pool in pools(policies) {
        let work = Subscription::to(work_of(policies, &pool, tenant).map(TopicPattern::Exact).into());
        if topics.lag(&group_of(&pool), &work).await? > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

fn pools(policies: &Policies) -> BTreeSet<Pool> {
    let of_tenants = policies.tenants.values().map(|policy| &policy.pool);
    let pools = of_tenants.chain(policies.pools.keys()).cloned();
    pools.chain([Pool::default()]).collect()
}

fn work_of(policies: &Policies, pool: &Pool, tenant: &Tenant) -> [TopicName; 3] {
    Priority::ALL.map(|priority| policies.topics.work(pool, priority, tenant))
}

/// Policies, and what was known of the tenants' quotas when they came in force or later.
#[derive(Clone)]
pub(crate) struct Moment {
    pub(crate) policies: Arc<Policies>,
    pub(crate) ledger: Arc<Ledger>,
}

/// Looks once.
pub(crate) async fn moment(
    topics: &dyn Topics,
    policies: Arc<Policies>,
    group_of: &GroupOf,
) -> Result<Moment, Error> {
    let ledger = look(topics, &policies, group_of, &mut FullQueues::default()).await?;
    let ledger = Arc::new(ledger);
    Ok(Moment { policies, ledger })
}

/// Looks for ever, again at once when there are other policies, and sends what it finds: no policy is in force before it is
/// known what its tenants have spent. While nobody answers, the last moment stays.
pub(crate) async fn keep_looking(
    topics: Arc<dyn Topics>,
    mut policies: watch::Receiver<Arc<Policies>>,
    group_of: GroupOf,
    moments: watch::Sender<Moment>,
) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut was_away, mut full_queues) = (false, FullQueues::default());
    loop {
        tokio::select! {
            biased;
            Ok(()) = policies.changed() => {}
            _ = looks.tick() => {}
        }
        let in_force = Arc::clone(&policies.borrow_and_update());
        match look(topics.as_ref(), &in_force, &group_of, &mut full_queues).await {
            Ok(ledger) => {
                was_away = false;
                let moment = Moment {
                    policies: in_force,
                    ledger: Arc::new(ledger),
                };
                measure(&moment);
                moments.send_replace(moment);
            }
            Err(error) if !was_away => {
                was_away = true;
                tracing::warn!(%error, "what tenants have spent and have waiting cannot be looked up: the last look counts");
            }
            Err(_) => {}
        }
    }
}

fn measure(Moment { policies, ledger }: &Moment) {
    let now_ms = Utc::now().timestamp_millis();
    for (tenant, policy) in &policies.tenants {
        if policy.queue_records_max.is_some() {
            metrics::gauge!(metric_names::QUEUE_RECORDS, "tenant" => tenant.to_string())
                .set(ledger.waiting_records(tenant) as f64);
        }
        let Some(budget) = policy.budget else { continue };
        let spent = ledger.spent(tenant, now_ms);
        for (period, budget, spent) in [
            ("day", budget.per_day, spent.on_day),
            ("month", budget.per_month, spent.in_month),
        ] {
            let Some(budget) = budget else { continue };
            let gauge = |name, money: rust_decimal::Decimal| {
                metrics::gauge!(name, "tenant" => tenant.to_string(), "period" => period)
                    .set(money.to_f64().unwrap_or(f64::NAN));
            };
            gauge(metric_names::SPENT, spent);
            gauge(metric_names::BUDGET_LEFT, budget.saturating_sub(spent));
        }
    }
}
