//! What is different between two sets of tenants, and whether one may take the other's place under way. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use schemas::{Tenant, TenantPolicy, Tenants, TopicName};
use serde_json::Value;
use topics::{Retention, TopicSpec};

/// The setting of which the partition of a job is a function: changed while its jobs are under way, work that is repeated
/// could go another way than the first time. Another pool is another route, so that a move is none of this.
const FIXED_UNDER_WAY: &str = "partitions";

/// What is different between two sets.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Changes {
    added: Vec<Tenant>,
    removed: Vec<Tenant>,
    changed: BTreeMap<Tenant, Vec<Setting>>,
}

/// A setting that was changed.
#[derive(Debug, PartialEq, Eq)]
struct Setting {
    name: String,
    from: Value,
    to: Value,
}

impl Changes {
    /// What `new` has that `old` has not, and the other way round.
    pub(super) fn between(old: &Tenants, new: &Tenants) -> Self {
        let missing_in = |these: &Tenants, all: &Tenants| -> Vec<Tenant> {
            let missing = all.keys().filter(|tenant| !these.contains_key(tenant));
            missing.cloned().collect()
        };
        let kept = old
            .iter()
            .filter_map(|(tenant, policy)| Some((tenant, policy, new.get(tenant)?)));
        let changed = kept.filter(|(_, old, new)| old != new);
        Self {
            added: missing_in(old, new),
            removed: missing_in(new, old),
            changed: changed
                .map(|(tenant, old, new)| (tenant.clone(), settings_between(old, new)))
                .collect(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }

    /// Why these changes must not be made while jobs are under way, and what to do instead; none where they may.
    pub(super) fn refused_under_way(&self) -> Option<String> {
        let mut settings = self
            .changed
            .iter()
            .flat_map(|(tenant, settings)| settings.iter().map(move |setting| (tenant, setting)));
        let (tenant, setting) = settings.find(|(_, setting)| setting.name == FIXED_UNDER_WAY)?;
        Some(format!(
            "tenants.{tenant}.{setting} must not change while jobs are under way, since what is done again would go \
             another way: stop all services once nothing of {tenant} is under way, and start them with the new set"
        ))
    }
}

/// `specs`, of topics that `stood` has said before. What had a time to keep records for, and has none any more, is as the
/// cluster is set again; that of others may be somebody's own.
pub(super) fn taken_back(mut specs: Vec<TopicSpec>, stood: &[TopicSpec]) -> Vec<TopicSpec> {
    let has_a_time = |spec: &&TopicSpec| matches!(spec.retention, Retention::TimeMs(_));
    let had_a_time = stood.iter().filter(has_a_time).map(|spec| &spec.name);
    let had_a_time: BTreeSet<&TopicName> = had_a_time.collect();
    for spec in &mut specs {
        if spec.retention == Retention::Cluster && had_a_time.contains(&spec.name) {
            spec.retention = Retention::ClusterAgain;
        }
    }
    specs
}

fn settings_between(old: &TenantPolicy, new: &TenantPolicy) -> Vec<Setting> {
    let settings = |policy: &TenantPolicy| match serde_json::to_value(policy) {
        Ok(Value::Object(settings)) => settings,
        other => unreachable!("a policy is a table of settings: {other:?}"),
    };
    let (mut old, new) = (settings(old), settings(new));
    let mut changed = Vec::new();
    for (name, to) in new {
        let from = old.remove(&name).unwrap_or_default();
        if from != to {
            changed.push(Setting { name, from, to });
        }
    }
    let gone = old.into_iter().map(|(name, from)| Setting {
        name,
        from,
        to: Value::Null,
    });
    changed.extend(gone);
    changed
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: &Value| match value {
            Value::Null => "unset".to_owned(),
            value => value.to_string(),
        };
        write!(f, "{} ({} to {})", self.name, shown(&self.from), shown(&self.to))
    }
}

/// One line, such as `added umbrella; removed globex; changed acme: weight (1 to 3)`.
impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        for (what, tenants) in [("added", &self.added), ("removed", &self.removed)] {
            if !tenants.is_empty() {
                let names: Vec<&str> = tenants.iter().map(Tenant::as_str).collect();
                parts.push(format!("{what} {}", names.join(", ")));
            }
        }
        for (tenant, settings) in &self.changed {
            let settings: Vec<String> = settings.iter().map(Setting::to_string).collect();
            parts.push(format!("changed {tenant}: {}", settings.join(", ")));
        }
        if parts.is_empty() {
            parts.push("nothing changes".to_owned());
        }
        f.write_str(&parts.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use schemas::Pool;

    use super::*;

    fn tenants<const N: usize>(named: [(&str, TenantPolicy); N]) -> Tenants {
        named
            .into_iter()
            .map(|(name, policy)| (Tenant::new(name).unwrap(), policy))
            .collect()
    }

    fn with(weight: u32) -> TenantPolicy {
        TenantPolicy {
            weight: weight.try_into().unwrap(),
            ..TenantPolicy::default()
        }
    }

    #[test]
    fn what_was_added_removed_and_changed_is_told_setting_by_setting() {
        let kept = TenantPolicy {
            retention_days: 7.try_into().ok(),
            ..with(1)
        };
        let old = tenants([("acme", kept), ("globex", with(1)), ("initech", with(1))]);
        let new = tenants([("acme", with(3)), ("initech", with(1)), ("umbrella", with(1))]);
        let changes = Changes::between(&old, &new);
        assert_eq!(
            changes.to_string(),
            "added umbrella; removed globex; changed acme: weight (1 to 3), retention_days (7 to unset)"
        );
        assert_eq!(changes.refused_under_way(), None);
        assert!(Changes::between(&new, &new).is_empty());
        assert_eq!(Changes::between(&new, &new).to_string(), "nothing changes");
    }

    #[test]
    fn a_time_to_keep_records_for_that_is_set_no_more_is_taken_back_and_nobody_elses() {
        let spec = |name, retention| TopicSpec {
            retention,
            ..TopicSpec::new(TopicName::new(name).unwrap(), 1)
        };
        let (day, week) = (Retention::TimeMs(86_400_000), Retention::TimeMs(7 * 86_400_000));
        let old = [
            spec("a", day),
            spec("b", Retention::Cluster),
            spec("c", day),
            spec("d", day),
        ];
        let new = ["a", "b", "e"].map(|name| spec(name, Retention::Cluster));
        let new = taken_back([&new[..], &[spec("c", week)]].concat(), &old);
        assert_eq!(
            new,
            [
                spec("a", Retention::ClusterAgain),
                spec("b", Retention::Cluster),
                spec("e", Retention::Cluster),
                spec("c", week),
            ]
        );
    }

    #[test]
    fn partitions_stay_as_they_are_while_jobs_are_under_way() {
        let extended = TenantPolicy {
            partitions: 4,
            ..with(1)
        };
        let (old, new) = (tenants([("acme", with(1))]), tenants([("acme", extended)]));
        let refused = Changes::between(&old, &new).refused_under_way().unwrap();
        let complaint = "tenants.acme.partitions (1 to 4) must not";
        assert!(refused.starts_with(complaint), "{refused}");
        let added = Changes::between(&tenants([]), &new);
        assert_eq!(added.refused_under_way(), None, "a new tenant is free");
    }

    #[test]
    fn a_tenant_may_move_to_another_pool_while_its_jobs_are_under_way() {
        let moved = TenantPolicy {
            pool: Pool::new("gold").unwrap(),
            ..with(1)
        };
        let changes = Changes::between(&tenants([("acme", with(1))]), &tenants([("acme", moved)]));
        assert_eq!(changes.refused_under_way(), None);
        assert_eq!(changes.to_string(), r#"changed acme: pool ("shared" to "gold")"#);
    }
}
