//! A set of tenants as somebody wrote it: good as a whole, or refused with the place of its first mistake. Pure.

use std::fmt;

use figment::{
    Figment,
    providers::{Format, Toml},
};
use rust_decimal::Decimal;
use schemas::{Tenant, TenantPolicy, Tenants};
use serde::{Deserialize, Serialize};
use toml_edit::ImDocument;

use crate::config::{self, Config, TopicsKind};

/// A slip of the keyboard here would have the brokers make so many partitions, four times over.
const PARTITIONS_MAX: u32 = 1_000;
/// The labels of a tenant are copied into every row of it.
const LABELS_BYTES_MAX: usize = 1_024;

/// A tenants file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TenantsFile {
    #[serde(default)]
    tenants: Tenants,
}

/// What is wrong with a set, and at which setting.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mistake {
    key: Vec<String>,
    problem: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.key.join("."), self.problem)
    }
}

/// Holds `tenants` to what the types do not say, and to what `config` has for them.
pub(crate) fn check(tenants: &Tenants, config: &Config) -> Result<(), Mistake> {
    tenants
        .iter()
        .try_for_each(|(tenant, policy)| check_one(tenant, policy, config))
}

fn check_one(tenant: &Tenant, policy: &TenantPolicy, config: &Config) -> Result<(), Mistake> {
    let mistake = |setting: &[&str], problem: String| {
        let key = ["tenants", tenant.as_str()]
            .into_iter()
            .chain(setting.iter().copied());
        Err(Mistake {
            key: key.map(str::to_owned).collect(),
            problem,
        })
    };
    if tenant.is_unclaimed() {
        let problem = "is a reserved name: the outcomes of jobs of unknown tenants stand under it";
        return mistake(&[], problem.to_owned());
    }
    if !(1..=PARTITIONS_MAX).contains(&policy.partitions) {
        let problem = format!(
            "is {}: a tenant's topics have at least one partition, and {PARTITIONS_MAX} at most",
            policy.partitions
        );
        return mistake(&["partitions"], problem);
    }
    let (pool, here) = (&policy.pool, &config.processor.pool);
    if config.topics.kind == TopicsKind::Local && pool != here {
        let problem = format!("is `{pool}`: local topics have the processor of one pool, which is `{here}`");
        return mistake(&["pool"], problem);
    }
    let allowed = || policy.models.iter().flatten();
    if let Some(unknown) = allowed().find(|model| !config.models.contains_key(*model)) {
        let problem = format!("names `{unknown}`, which is not configured: add [models.{unknown}]");
        return mistake(&["models"], problem);
    }
    let of_pool = config.models_of(pool);
    if let Some(missing) = allowed().find(|model| !of_pool.contains_key(*model)) {
        let problem = format!("names `{missing}`, which pool `{pool}` does not have: see [pools.{pool}]");
        return mistake(&["models"], problem);
    }
    let labels_bytes: usize = policy
        .labels
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    if labels_bytes > LABELS_BYTES_MAX {
        let problem = format!("have {labels_bytes} bytes, and {LABELS_BYTES_MAX} are allowed");
        return mistake(&["labels"], problem);
    }
    let Some(budget) = policy.budget else {
        return Ok(());
    };
    let periods = [("per_day", budget.per_day), ("per_month", budget.per_month)];
    if periods.iter().all(|(_, money)| money.is_none()) {
        return mistake(
            &["budget"],
            "is for no period: set per_day, per_month or both".to_owned(),
        );
    }
    for (period, money) in periods {
        if let Some(money) = money.filter(Decimal::is_sign_negative) {
            let problem = format!("is {money}: nobody can spend less than nothing");
            return mistake(&["budget", period], problem);
        }
    }
    Ok(())
}

/// Why a tenants file is not one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// From 1; none where it is about the whole.
    line: Option<usize>,
    problem: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.problem),
            None => f.write_str(&self.problem),
        }
    }
}

/// Reads the text of a tenants file.
///
/// # Errors
/// The first mistake, with its line.
pub(crate) fn read(text: &str, config: &Config) -> Result<Tenants, Refused> {
    let document = ImDocument::parse(text).map_err(|error| Refused {
        line: error.span().map(|span| config::line_at(text, span.start)),
        problem: error.message().to_owned(),
    })?;
    let at = |key: &[String], problem: String| Refused {
        line: offset_of(&document, key).map(|offset| config::line_at(text, offset)),
        problem,
    };
    let read: Result<TenantsFile, figment::Error> = Figment::new().merge(Toml::string(text)).extract();
    let TenantsFile { tenants } =
        read.map_err(|error| at(&error.path, config::explain(&error).to_string()))?;
    check(&tenants, config).map_err(|mistake| at(&mistake.key, mistake.to_string()))?;
    if tenants.is_empty() {
        let problem = "it has no tenant, so every job would be rejected: add [tenants.<name>]";
        return Err(at(&[], problem.to_owned()));
    }
    Ok(tenants)
}

/// The text of the tenants file that says `tenants`.
pub(super) fn write(tenants: &Tenants) -> anyhow::Result<String> {
    let file = TenantsFile {
        tenants: tenants.clone(),
    };
    Ok(toml::to_string(&file)?)
}

/// Where the setting called `key` stands, or what is nearest around it.
fn offset_of(document: &ImDocument<&str>, key: &[String]) -> Option<usize> {
    let (mut item, mut offset) = (document.as_item(), None);
    for part in key {
        let Some(table) = item.as_table_like() else { break };
        let (Some(name), Some(inner)) = (table.key(part), table.get(part)) else {
            break;
        };
        offset = name.span().map(|span| span.start).or(offset);
        item = inner;
    }
    offset
}

#[cfg(test)]
mod tests {
    use schemas::Priority;

    use super::*;
    use crate::config::{Example, Sources};

    fn read(text: &str) -> Result<Tenants, Refused> {
        super::read(text, &config(&["topics.kind=kafka"]))
    }

    fn config(set: &[&str]) -> Config {
        let model = |name| {
            [
                format!("models.{name}.source=x"),
                format!("models.{name}.price_per_device_second=1.5"),
            ]
        };
        let set = set.iter().map(ToString::to_string);
        let set = set.chain(["minilm", "large"].into_iter().flat_map(model));
        let sources = Sources {
            config: None,
            set: set
                .chain([r#"pools.gold.models=["minilm"]"#.to_owned()])
                .collect(),
        };
        Config::load(&sources, Example::Never).unwrap()
    }

    #[test]
    fn a_file_says_all_that_a_policy_has_and_leaves_out_what_has_a_default() {
        let text = r#"
            [tenants.acme]
            weight = 3
            partitions = 4
            pool = "gold"
            models = ["minilm"]
            priority_max = "normal"
            retention_days = 30
            rate = { work_units_per_s = 2000, burst_work_units = 10000 }
            concurrent_work_units_max = 50000
            budget = { per_day = "12.50", per_month = "200" }
            queue_records_max = 5000
            abuse = { throttle = true }
            labels = { cost-centre = "17" }

            [tenants.globex]
        "#;
        let tenants = read(text).unwrap();
        let [acme, globex] = ["acme", "globex"].map(|name| &tenants[&Tenant::new(name).unwrap()]);
        assert_eq!(
            (acme.weight.get(), acme.partitions, acme.pool.as_str()),
            (3, 4, "gold")
        );
        assert_eq!(acme.priority_max, Priority::Normal);
        assert_eq!(acme.retention_days.map(|days| days.get()), Some(30));
        let budget = acme.budget.unwrap();
        assert_eq!(
            (budget.per_day, budget.per_month),
            (Some(Decimal::new(1_250, 2)), Some(Decimal::new(200, 0)))
        );
        let concurrent = acme.concurrent_work_units_max;
        assert_eq!(concurrent.map(|work_units| work_units.get()), Some(50_000));
        assert_eq!(acme.queue_records_max.map(|records| records.get()), Some(5_000));
        assert!(acme.abuse.throttle && acme.abuse.detect && acme.abuse.times_usual.get() == 3);
        let rate = acme.rate.unwrap();
        assert_eq!(
            (rate.work_units_per_s.get(), rate.burst_work_units().get()),
            (2_000, 10_000)
        );
        assert_eq!(acme.labels["cost-centre"], "17");
        assert_eq!(*globex, TenantPolicy::default());
        assert_eq!(
            read(&write(&tenants).unwrap()).unwrap(),
            tenants,
            "what is written reads back"
        );
    }

    #[test]
    fn each_mistake_in_a_file_is_named_with_its_line_and_its_setting() {
        for (text, complaint) in [
            (
                "[tenants.acme]\nweight = 1\nweigth = 2\n",
                "line 3: unknown setting `tenants.acme.weigth`: did you mean `tenants.acme.weight`?",
            ),
            (
                "\n[tenant.acme]\n",
                "line 2: unknown setting `tenant`: did you mean `tenants`?",
            ),
            (
                "[tenants.acme]\n\nweight = 0\n",
                "line 3: setting `tenants.acme.weight`: invalid value",
            ),
            (
                "[tenants.acme]\nweight = 'much'\n",
                "line 2: setting `tenants.acme.weight`: ",
            ),
            (
                "[tenants.acme]\nrate = { work_units_per_s = 0 }\n",
                "line 2: setting `tenants.acme.rate.work_units_per_s`: invalid value",
            ),
            (
                "[tenants.acme.rate]\nwork_units_per_s = 5\nburst = 3\n",
                "line 3: unknown setting `tenants.acme.rate.burst`: known ones are: work_units_per_s, burst_work_units",
            ),
            (
                "[tenants.acme]\n[tenants.acme.rate]\nburst_work_units = 3\n",
                "line 2: ",
            ),
            (
                "[tenants.acme]\nbudget = { per_week = '5' }\n",
                "line 2: unknown setting `tenants.acme.budget.per_week`",
            ),
            (
                "[tenants.acme]\nbudget = { per_day = 'much' }\n",
                "line 2: setting `tenants.acme.budget.per_day`: ",
            ),
            (
                "[tenants.acme.budget]\nper_day = '5'\nper_month = '-0.5'\n",
                "line 3: tenants.acme.budget.per_month is -0.5",
            ),
            (
                "[tenants.acme]\nbudget = {}\n",
                "line 2: tenants.acme.budget is for no period",
            ),
            (
                "[tenants.acme]\nconcurrent_work_units_max = 0\n",
                "line 2: setting `tenants.acme.concurrent_work_units_max`: invalid value",
            ),
            (
                "[tenants.acme]\nqueue_records_max = 0\n",
                "line 2: setting `tenants.acme.queue_records_max`: invalid value",
            ),
            (
                "[tenants.acme]\nabuse = { throtle = true }\n",
                "line 2: unknown setting `tenants.acme.abuse.throtle`",
            ),
            (
                "[tenants.acme.abuse]\ndetect = true\ntimes_usual = 0\n",
                "line 3: setting `tenants.acme.abuse.times_usual`: invalid value",
            ),
            (
                "[tenants.acme]\npriority_max = 'top'\n",
                "line 2: setting `tenants.acme.priority_max`: ",
            ),
            (
                "[tenants.acme]\npartitions = 0\n",
                "line 2: tenants.acme.partitions is 0",
            ),
            (
                "[tenants.acme]\npartitions = 40000\n",
                "line 2: tenants.acme.partitions is 40000",
            ),
            (
                "[tenants.a]\n[tenants.acme]\nmodels = ['minilm',\n 'gpt']\n",
                "line 3: tenants.acme.models names `gpt`",
            ),
            (
                "[tenants.acme]\npool = 'gold'\nmodels = ['large']\n",
                "line 3: tenants.acme.models names `large`, which pool `gold` does not have",
            ),
            (
                "\n\n[tenants.unclaimed]\n",
                "line 3: tenants.unclaimed is a reserved name",
            ),
            (
                "[tenants.a]\n\n[tenants.'../acme']\nweight = 1\n",
                "must match [a-z]",
            ),
            (
                "[tenants.acme]\nweight = 1\nweight = 2\n",
                "line 3: duplicate key",
            ),
            ("[tenants.acme]\nweight = \n", "line 2: "),
            ("[tenants.acme\n", "line 1: "),
            ("", "it has no tenant"),
            ("[tenants]\n", "it has no tenant"),
        ] {
            let refused = read(text).unwrap_err().to_string();
            assert!(refused.contains(complaint), "`{text}`: {refused}");
        }
        let labels = format!("[tenants.acme.labels]\nk = '{}'\n", "x".repeat(2_000));
        let refused = read(&labels).unwrap_err().to_string();
        assert!(
            refused.contains("tenants.acme.labels have 2001 bytes"),
            "{refused}"
        );
    }

    #[test]
    fn local_topics_have_no_other_processor_than_that_of_its_pool() {
        let text = "[tenants.acme]\npool = 'gold'\n";
        let refused = super::read(text, &config(&[])).unwrap_err().to_string();
        assert!(
            refused.starts_with("line 2: tenants.acme.pool is `gold`"),
            "{refused}"
        );
        assert!(super::read(text, &config(&["processor.pool=gold"])).is_ok());
    }
}
