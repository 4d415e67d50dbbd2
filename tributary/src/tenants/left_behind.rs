//! Work that waits where its tenant's new jobs go no more: for the processors of the pool that it has left.

use std::collections::{BTreeMap, BTreeSet};

use schemas::{Pool, Priority, Tenant, Tenants, TopicName};
use topics::{Subscription, TopicPattern, Topics};

use crate::{cli, config::Config};

/// Says of each topic of work that `tenants` leave, or have left, what waits there. `in_force` is the set before.
pub(super) async fn print(
    config: &Config,
    topics: &dyn Topics,
    in_force: &Tenants,
    tenants: &Tenants,
) -> anyhow::Result<()> {
    let left = left(config, in_force, tenants);
    let names: Vec<TopicName> = left.keys().cloned().collect();
    for topic in topics.partitions(&names).await?.into_keys() {
        let pool = &left[&topic];
        let group = processor::Service::group(&processor::Config {
            pool: pool.clone(),
            ..config.processor_service()
        });
        let subscription = Subscription::to(vec![TopicPattern::Exact(topic.clone())]);
        match topics.lag(&group, &subscription).await? {
            0 => {}
            records => cli::print(&format!(
                "drain    {topic}, about {records} records wait for the processors of pool `{pool}`"
            ))?,
        }
    }
    Ok(())
}

/// The topics of work that tenants of either set may have had in any pool of theirs, or that is configured, and that no job
/// goes to under `tenants`; with the pool of each.
fn left(config: &Config, in_force: &Tenants, tenants: &Tenants) -> BTreeMap<TopicName, Pool> {
    let (names, shared) = (config.topics.names(), Pool::default());
    let configured = config.pools.keys().chain([&config.processor.pool, &shared]);
    let sets = || in_force.iter().chain(tenants);
    let of_tenants = sets().map(|(_, policy)| &policy.pool);
    let pools: BTreeSet<&Pool> = of_tenants.chain(configured).collect();
    let all = sets().flat_map(|(tenant, _)| pools.iter().map(move |pool| (tenant, *pool)));
    let left = all.filter(|(tenant, pool)| tenants.get(*tenant).is_none_or(|policy| policy.pool != **pool));
    let topics = |(tenant, pool): (&Tenant, &Pool)| {
        Priority::ALL.map(|priority| (names.work(pool, priority, tenant), pool.clone()))
    };
    left.flat_map(topics).collect()
}

#[cfg(test)]
mod tests {
    use schemas::TenantPolicy;

    use super::*;
    use crate::config::{Example, Sources};

    #[test]
    fn what_a_tenant_leaves_or_has_left_is_every_pool_but_its_own() {
        let of = |named: &[(&str, &str)]| -> Tenants {
            let named = named.iter().map(|(tenant, pool)| {
                let policy = TenantPolicy {
                    pool: Pool::new(pool).unwrap(),
                    ..TenantPolicy::default()
                };
                (Tenant::new(tenant).unwrap(), policy)
            });
            named.collect()
        };
        let sources = Sources {
            config: None,
            set: ["topics.prefix=", "pools.silver.shards={count=8,per_tenant=2}"]
                .map(str::to_owned)
                .into(),
        };
        let config = Config::load(&sources, Example::Never).unwrap();
        let (old, new) = (
            of(&[("acme", "shared"), ("globex", "gold")]),
            of(&[("acme", "gold")]),
        );
        let left = left(&config, &old, &new);
        let left: Vec<&str> = left.keys().map(TopicName::as_str).collect();
        assert_eq!(left.len(), 15);
        for topic in [
            "work.gold.globex",
            "work.shared.acme",
            "work.shared.high.globex",
            "work.silver.acme",
        ] {
            assert!(left.contains(&topic), "{topic}: {left:?}");
        }
    }
}
