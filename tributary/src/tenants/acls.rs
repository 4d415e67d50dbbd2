//! The broker's ACLs, as commands for the operator to look at and to run. Pure.

use schemas::Tenants;

use super::command;
use crate::{config::Config, dead_letters};

/// Who connects to Kafka.
pub(super) struct Principals<'a> {
    /// The services.
    pub(super) service: &'a str,
    /// A tenant's producers; `{tenant}` stands for its name.
    pub(super) tenant: &'a str,
}

/// What `topics` reads last records as; nobody joins it.
const GROUP_OF_LAST: &str = "tributary-last";

/// The commands that let `tenants` produce to their own topics, and the services work.
pub(super) fn commands(config: &Config, tenants: &Tenants, principals: &Principals<'_>) -> Vec<String> {
    let servers = config.topics.kafka.0.get("bootstrap.servers");
    let servers = servers.map_or("localhost:9092", String::as_str);
    let allow = |principal: &str, operations: &[&str], resource: String| {
        let operations: String = operations
            .iter()
            .map(|name| format!(" --operation {name}"))
            .collect();
        format!(
            "kafka-acls --bootstrap-server {servers} --add --allow-principal '{principal}'{operations} {resource}"
        )
    };
    let names = config.topics.names();
    let mut lines =
        vec!["# Each tenant writes to its own topic of jobs, and reads no topic at all.".to_owned()];
    for tenant in tenants.keys() {
        let principal = principals.tenant.replace("{tenant}", tenant.as_str());
        let topic = format!("--topic {}", names.jobs_of(tenant));
        lines.push(allow(&principal, &["Write", "Describe"], topic));
    }
    lines.push(format!(
        "# The services read jobs, and put there what came over HTTP or is replayed. `{}` is the shared topic: give it to\n\
         # nobody who is not trusted to name the tenant, unless `identity.required` demands a token there.",
        names.jobs()
    ));
    let service = |operations: &[&str], resource| allow(principals.service, operations, resource);
    let prefixed = |kind: &str, prefix: &str| format!("--{kind} {prefix} --resource-pattern-type prefixed");
    let of_jobs = ["Read", "Write", "Describe", "Create", "Alter", "AlterConfigs"];
    lines.push(service(&of_jobs, format!("--topic {}", names.jobs())));
    lines.push(service(&of_jobs, prefixed("topic", &names.doors_prefix())));
    lines.push("# Their own topics, groups and transactions.".to_owned());
    let own = match config.topics.prefix.as_str() {
        // Kafka has no pattern for names that begin with nothing but one for all of them.
        "" => vec![
            prefixed("topic", &names.all_work_prefix()),
            prefixed("topic", &names.outcomes_prefix()),
            format!("--topic {}", names.dead_letters()),
            format!("--topic {}", names.audit()),
            format!("--topic {}", names.policies()),
        ],
        prefix => vec![prefixed("topic", prefix)],
    };
    lines.extend(own.into_iter().map(|topics| service(&of_jobs, topics)));
    let groups = [
        config.ingest.group.as_str(),
        &config.processor.group,
        &config.sink.group,
    ];
    for group in groups
        .into_iter()
        .chain([dead_letters::GROUP, command::GROUP, GROUP_OF_LAST])
    {
        lines.push(service(&["Read", "Describe"], prefixed("group", group)));
    }
    for transactions in [
        config.ingest.group.as_str(),
        &config.processor.group,
        dead_letters::GROUP,
        command::GROUP,
    ] {
        lines.push(service(
            &["Write", "Describe"],
            prefixed("transactional-id", transactions),
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use schemas::{Tenant, TenantPolicy};

    use super::*;
    use crate::config::{Example, Sources};

    const ADD: &str = "kafka-acls --bootstrap-server 127.0.0.1:9092 --add --allow-principal";

    fn commands_under(prefix: &str) -> Vec<String> {
        let mut config = Config::load(&Sources::default(), Example::Never).unwrap();
        config.topics.prefix = prefix.to_owned();
        let tenants = Tenants::from([(Tenant::new("acme").unwrap(), TenantPolicy::default())]);
        let principals = Principals {
            service: "User:tributary",
            tenant: "User:{tenant}-producer",
        };
        commands(&config, &tenants, &principals)
    }

    fn assert_services_may(lines: &[String], what: &str) {
        let found = lines
            .iter()
            .any(|line| line.starts_with(&format!("{ADD} 'User:tributary'")) && line.ends_with(what));
        assert!(found, "{what}: {lines:#?}");
    }

    #[test]
    fn a_tenant_may_write_to_its_own_topic_and_the_services_to_what_has_their_prefix() {
        let lines = commands_under("tributary.");
        let of_acme: Vec<&String> = lines.iter().filter(|line| line.contains("acme")).collect();
        let expected =
            format!("{ADD} 'User:acme-producer' --operation Write --operation Describe --topic jobs.acme");
        assert_eq!(of_acme, [&expected]);
        for what in [
            "--operation AlterConfigs --topic tributary. --resource-pattern-type prefixed",
            "--operation Describe --group tributary-processor --resource-pattern-type prefixed",
            "--operation Write --operation Describe --transactional-id tributary-ingest --resource-pattern-type prefixed",
        ] {
            assert_services_may(&lines, what);
        }
    }

    #[test]
    fn services_whose_topics_have_no_prefix_may_write_to_these_and_to_no_others() {
        let lines = commands_under("");
        for topics in [
            "work. --resource-pattern-type prefixed",
            "outcomes. --resource-pattern-type prefixed",
            "dead-letters",
            "audit",
            "policies",
        ] {
            assert_services_may(&lines, &format!("--operation AlterConfigs --topic {topics}"));
        }
        let anything = |line: &&String| line.contains("--topic  ") || line.contains("--topic *");
        assert_eq!(lines.iter().find(anything), None);
    }
}
