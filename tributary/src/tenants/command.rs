//! `tributary tenants`: what a tenants file would change, putting it in force, and what is in force.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use anyhow::{Context, bail, ensure};
use schemas::{
    Action, Operation, Policies, Record as _, Tenant, TenantPolicy, TenantSet, Tenants, TopicName,
};
use topics::{Append, Retention, TopicSpec, Topics};

use super::{
    acls::{self, Principals},
    change::{Changes, taken_back},
    follow::{last_set, topic_spec},
    left_behind, set, store_policy,
};
use crate::{
    access, audit,
    cli::{ShowArgs, TenantsCommand, print},
    config::{self, Config, Delivery, TenantsSource, TopicsKind},
    pipeline::{all_topics, open_topics},
    sole::Sole,
};

/// Who applies is the one member of this group, so that of two at once one is the last.
pub(super) const GROUP: &str = "tributary-tenants";
/// One set a record, and the last one counts: they all have this key.
const KEY: &str = "tenants";

/// Plans, applies or shows.
pub(crate) async fn run(config: &Config, command: &TenantsCommand) -> anyhow::Result<()> {
    if !matches!(command, TenantsCommand::Apply { .. }) {
        access::permit(config, Action::ViewTenants)?;
    }
    match command {
        TenantsCommand::Plan { file } => plan(config, read(config, file)?).await,
        TenantsCommand::Apply { file, at_rest } => apply(config, read(config, file)?, *at_rest).await,
        TenantsCommand::Show(args) => show(config, args).await,
    }
}

/// The tenants that `file` says.
pub(crate) fn read(config: &Config, file: &Path) -> anyhow::Result<Tenants> {
    let text = config::read("tenants file", file)?;
    set::read(&text, config)
        .map_err(|refused| anyhow::anyhow!("tenants file `{}`, {refused}", file.display()))
}

async fn plan(config: &Config, tenants: Tenants) -> anyhow::Result<()> {
    let topics = topics_of_cluster(config)?;
    let in_force = in_force(config, topics.as_deref()).await?;
    let changes = Changes::between(&in_force, &tenants);
    print(&format!("tenants  {changes}"))?;
    match topics {
        Some(topics) => {
            left_behind::print(config, topics.as_ref(), &in_force, &tenants).await?;
            let specs = topics_for(config, &in_force, &tenants);
            let names: Vec<TopicName> = specs.iter().map(|spec| spec.name.clone()).collect();
            let sizes = topics.partitions(&names).await?;
            work_on(&specs, &sizes).iter().try_for_each(|line| print(line))?;
        }
        None => print("topics   `tributary up` makes them when it takes the set")?,
    }
    changes
        .refused_under_way()
        .map_or(Ok(()), |problem| bail!(problem))
}

async fn apply(config: &Config, tenants: Tenants, at_rest: bool) -> anyhow::Result<()> {
    if let TenantsSource::File(path) = config.tenants_source() {
        bail!(
            "services of this configuration take their tenants from `{}`: write to that file, and they take it by themselves",
            path.display()
        );
    }
    ensure!(
        config.tenants_source() == TenantsSource::Topic,
        "services of this configuration have their tenants in it, in [tenants.…]: move these to a tenants file, and apply that"
    );
    let Some(topics) = topics_of_cluster(config)? else {
        bail!(
            "topics.kind is \"local\", and a running `up` has them to itself: set `tenants_path`, and `up` takes what is written to that file"
        );
    };
    let operation = Operation::ApplyTenants;
    let by = access::permit_change(config, topics.as_ref(), Action::ApplyTenants, operation).await?;
    let before = in_force(config, Some(topics.as_ref())).await?;
    let changes = Changes::between(&before, &tenants);
    if let Some(problem) = changes.refused_under_way().filter(|_| !at_rest) {
        bail!("{problem}: `tributary tenants apply --at-rest`");
    }
    topics.ensure(&topics_for(config, &before, &tenants)).await?;
    let policies = config.topics.names().policies();
    let mut appends = vec![Append {
        topic: policies.clone(),
        partition: Some(0),
        timestamp_ms: chrono::Utc::now().timestamp_millis(),
        key: Some(KEY.into()),
        value: Some(TenantSet(tenants.clone()).encode().into()),
        headers: Vec::new(),
    }];
    let event = audit::of_command(operation, changes.to_string(), by);
    appends.extend(audit::appends_of_command(config, event));
    let mut sole = Sole::join(topics.as_ref(), GROUP, &policies, "tributary tenants apply").await?;
    let applied = async {
        // From here on nobody else says anything.
        let now = in_force(config, Some(topics.as_ref())).await?;
        ensure!(
            now == before,
            "another `tributary tenants apply` came first: nothing was applied. See `tributary tenants plan`"
        );
        sole.commit(appends).await.context("the set")
    };
    let applied = applied.await;
    sole.reader.close().await?;
    applied?;
    print(&format!("applied  {changes}"))?;
    left_behind::print(config, topics.as_ref(), &before, &tenants).await
}

async fn show(config: &Config, args: &ShowArgs) -> anyhow::Result<()> {
    let topics = topics_of_cluster(config)?;
    let tenants = in_force(config, topics.as_deref()).await?;
    if args.acls {
        let principals = Principals {
            service: &args.service_principal,
            tenant: &args.tenant_principal,
        };
        return acls::commands(config, &tenants, &principals)
            .iter()
            .try_for_each(|line| print(line));
    }
    if args.shards {
        return serving(config, &tenants).iter().try_for_each(|line| print(line));
    }
    if let Some(tenant) = &args.store_policy {
        ensure!(tenants.contains_key(tenant), "there is no tenant `{tenant}`");
        return print(&store_policy::of_reader(&config.sink.url, tenant)?);
    }
    ensure!(!tenants.is_empty(), "no tenant is in force");
    print(set::write(&tenants)?.trim_end())
}

/// Which processors serve each of `tenants`, a line each.
fn serving(config: &Config, tenants: &Tenants) -> Vec<String> {
    let longest = tenants.keys().map(|tenant| tenant.as_str().len()).max();
    let line = |(tenant, policy): (&Tenant, &TenantPolicy)| {
        let (name, pool) = (tenant.as_str(), &policy.pool);
        let by = match config.shards_of(pool) {
            None => "every processor".to_owned(),
            Some(shards) => {
                let serving = shards.serving(name).into_iter().map(|number| number.to_string());
                format!(
                    "shards {} of {}",
                    serving.collect::<Vec<_>>().join(", "),
                    shards.count
                )
            }
        };
        format!(
            "{name:width$}  {by} of pool `{pool}`",
            width = longest.unwrap_or_default()
        )
    };
    tenants.iter().map(line).collect()
}

/// The tenants that services of this configuration go by now.
pub(crate) async fn in_force_now(config: &Config) -> anyhow::Result<Tenants> {
    let topics = topics_of_cluster(config)?;
    in_force(config, topics.as_deref()).await
}

/// The tenants that services of this configuration go by.
async fn in_force(config: &Config, topics: Option<&dyn Topics>) -> anyhow::Result<Tenants> {
    match (config.tenants_source(), topics) {
        (TenantsSource::File(path), _) => read(config, path),
        (TenantsSource::Fixed, _) | (TenantsSource::Topic, None) => Ok(config.tenants.clone()),
        (TenantsSource::Topic, Some(topics)) => match last_set(topics, config).await? {
            Some((tenants, _)) => tenants.map_err(|problem| {
                let topic = config.topics.names().policies();
                anyhow::anyhow!("the set on `{topic}`, which every instance refuses: {problem}")
            }),
            None => Ok(Tenants::new()),
        },
    }
}

/// The topics where others reach them; those of a running `up` are its own.
fn topics_of_cluster(config: &Config) -> anyhow::Result<Option<Arc<dyn Topics>>> {
    match config.topics.kind {
        TopicsKind::Local => Ok(None),
        TopicsKind::Kafka => open_topics(config, Delivery::Transactional).map(Some),
    }
}

/// The topics that `tenants` need, where there were those of `before`.
fn topics_for(config: &Config, before: &Tenants, tenants: &Tenants) -> Vec<TopicSpec> {
    let of = |tenants: &Tenants| {
        let policies = Policies {
            tenants: tenants.clone(),
            ..config.policies()
        };
        all_topics(config, &policies)
    };
    let mut specs = taken_back(of(tenants), &of(before));
    specs.push(topic_spec(config));
    specs
}

/// What is to be done so that topics of `sizes` are as `specs` say, a line each.
fn work_on(specs: &[TopicSpec], sizes: &BTreeMap<TopicName, u32>) -> Vec<String> {
    let work = |spec: &TopicSpec| {
        let (name, partitions) = (&spec.name, spec.partitions);
        let kept = match spec.retention {
            Retention::TimeMs(ms) => format!(", records kept for {} days", ms / 86_400_000),
            Retention::ClusterAgain => ", records kept as the cluster is set".to_owned(),
            Retention::Cluster | Retention::LastOfKey => String::new(),
        };
        match sizes.get(name) {
            None => Some(format!("create   {name}, partitions: {partitions}{kept}")),
            Some(&size) if size < partitions => Some(format!(
                "extend   {name}, partitions: {size} to {partitions}{kept}"
            )),
            Some(_) if !kept.is_empty() => Some(format!("set      {name}{kept}")),
            Some(_) => None,
        }
    };
    specs.iter().filter_map(work).collect()
}

#[cfg(test)]
mod tests {
    use schemas::Pool;

    use super::*;
    use crate::config::{Example, Sources};

    #[test]
    fn who_serves_a_tenant_is_told_by_its_pool() {
        let sources = Sources {
            config: None,
            set: vec!["pools.shared.shards={count=8,per_tenant=2}".to_owned()],
        };
        let config = Config::load(&sources, Example::Never).unwrap();
        let of_pool = |pool: &str| TenantPolicy {
            pool: Pool::new(pool).unwrap(),
            ..TenantPolicy::default()
        };
        let tenants = [("acme", "shared"), ("globex", "gold"), ("initech", "shared")];
        let tenants = tenants.map(|(name, pool)| (Tenant::new(name).unwrap(), of_pool(pool)));
        assert_eq!(
            serving(&config, &tenants.into()),
            [
                "acme     shards 1, 6 of 8 of pool `shared`",
                "globex   every processor of pool `gold`",
                "initech  shards 3, 7 of 8 of pool `shared`",
            ]
        );
    }

    #[test]
    fn a_plan_names_the_topics_that_are_made_extended_or_told_how_long_to_keep() {
        let spec = |name: &str, partitions| TopicSpec::new(TopicName::new(name).unwrap(), partitions);
        let kept = |name, retention| TopicSpec {
            retention,
            ..spec(name, 1)
        };
        let specs = [
            spec("new", 2),
            spec("small", 4),
            spec("large", 1),
            kept("kept", Retention::TimeMs(7 * 86_400_000)),
            kept("unset", Retention::ClusterAgain),
        ];
        let sizes = [("small", 2), ("large", 3), ("kept", 1), ("unset", 1)];
        let sizes = sizes
            .map(|(name, size)| (TopicName::new(name).unwrap(), size))
            .into();
        assert_eq!(
            work_on(&specs, &sizes),
            [
                "create   new, partitions: 2",
                "extend   small, partitions: 2 to 4",
                "set      kept, records kept for 7 days",
                "set      unset, records kept as the cluster is set",
            ]
        );
    }
}
