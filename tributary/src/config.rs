//! The configuration: a commented default compiled in, a file, the environment, flags, in that order.

mod written;

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail};
use figment::{
    Figment, Provider,
    error::Kind,
    providers::{Env, Format, Toml},
};
use processor::model::ModelConfig;
use rust_decimal::Decimal;
use schemas::{ModelName, ModelTerms, Policies, Pool, Role, Shard, Shards, Tenants, TopicName, TopicNames};
use serde::{Deserialize, Deserializer, Serialize};
use toml_edit::ImDocument;

use crate::tenants;
use written::{Written, value_of};

const DEFAULT: &str = include_str!("../default.toml");
const EXAMPLE: &str = include_str!("../example.toml");
const ENV_PREFIX: &str = "TRIBUTARY__";
/// A price has at most this many decimals, so that a price times nanoseconds is exact.
const PRICE_DECIMALS_MAX: u32 = 9;
/// All of them are weighed for each topic, again and again.
const SHARDS_MAX: u32 = 256;

/// Everything that can be set. The meaning of each setting stands in `default.toml`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) currency: String,
    pub(crate) input_bytes_max: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tenants_path: Option<PathBuf>,
    pub(crate) topics: TopicsSection,
    #[serde(default)]
    pub(crate) models: BTreeMap<ModelName, ModelSection>,
    #[serde(default)]
    pub(crate) pools: BTreeMap<Pool, PoolSection>,
    #[serde(default)]
    pub(crate) tenants: Tenants,
    pub(crate) identity: ingest::identity::Config,
    pub(crate) authority: AuthoritySection,
    pub(crate) audit: AuditSection,
    pub(crate) ingest: ingest::Config,
    pub(crate) processor: ProcessorSection,
    pub(crate) sink: sink::Config,
    pub(crate) http: HttpSection,
    pub(crate) log: LogSection,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TopicsSection {
    pub(crate) kind: TopicsKind,
    pub(crate) path: PathBuf,
    pub(crate) jobs: TopicName,
    pub(crate) jobs_partitions: u32,
    pub(crate) prefix: String,
    pub(crate) instance: String,
    pub(crate) replication_factor: u16,
    pub(crate) kafka: Properties,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TopicsKind {
    Local,
    Kafka,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Delivery {
    Transactional,
    Idempotent,
}

/// Settings of librdkafka by their dotted names. A TOML key without quotes (`bootstrap.servers = …`) makes tables, and an
/// environment variable cannot have dots (`BOOTSTRAP_SERVERS`): both are understood.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(transparent)]
pub(crate) struct Properties(pub(crate) BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Properties {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde_json::Value;
        fn flatten(prefix: &str, value: &Value, into: &mut BTreeMap<String, String>) -> Result<(), String> {
            let text = match value {
                Value::Object(entries) => {
                    return entries.iter().try_for_each(|(key, value)| {
                        let key = key.replace('_', ".");
                        flatten(
                            &if prefix.is_empty() {
                                key
                            } else {
                                format!("{prefix}.{key}")
                            },
                            value,
                            into,
                        )
                    });
                }
                Value::String(text) => text.clone(),
                Value::Bool(flag) => flag.to_string(),
                Value::Number(number) => number.to_string(),
                Value::Array(_) | Value::Null => {
                    return Err(format!("`{prefix}` must be a text, a number or a flag"));
                }
            };
            into.insert(prefix.to_owned(), text);
            Ok(())
        }
        let mut properties = BTreeMap::new();
        flatten("", &Value::deserialize(deserializer)?, &mut properties).map_err(serde::de::Error::custom)?;
        Ok(Self(properties))
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModelSection {
    pub(crate) source: String,
    #[serde(default)]
    pub(crate) task: schemas::Task,
    pub(crate) price_per_device_second: Decimal,
    #[serde(default)]
    pub(crate) dtype: processor::model::Dtype,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tokens_max: Option<usize>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PoolSection {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) models: Option<BTreeSet<ModelName>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) prices: BTreeMap<ModelName, Decimal>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) shards: Option<Shards>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProcessorSection {
    pub(crate) group: String,
    pub(crate) pool: Pool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) shard: Option<u32>,
    pub(crate) device: processor::model::DeviceChoice,
    pub(crate) cpu_path: processor::model::CpuPath,
    pub(crate) delivery: Delivery,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) device_cores: Option<NonZeroUsize>,
    pub(crate) window_ms: u64,
    pub(crate) commit_interval_ms: u64,
    pub(crate) window_jobs_max: usize,
    pub(crate) window_bytes_max: usize,
    pub(crate) window_tenants_max: NonZeroUsize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) batch_tokens_max: Option<usize>,
    pub(crate) lane_bytes_max: usize,
    pub(crate) lanes_bytes_max: usize,
    pub(crate) attempts_path: PathBuf,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AuthoritySection {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) policies: Option<PathBuf>,
    pub(crate) command_roles: BTreeSet<Role>,
    #[serde(default)]
    pub(crate) users: BTreeMap<String, BTreeSet<Role>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AuditSection {
    pub(crate) enabled: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HttpSection {
    pub(crate) listen: String,
    pub(crate) body_bytes_max: usize,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogSection {
    pub(crate) format: LogFormat,
    pub(crate) filter: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogFormat {
    Auto,
    Human,
    Json,
}

/// What the command line says of the configuration.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Sources {
    /// A file of settings, on top of the defaults
    #[arg(long, short, value_name = "FILE", global = true, env = "TRIBUTARY_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// One setting, on top of the file and the environment; may be given again
    #[arg(long, value_name = "KEY=VALUE", global = true)]
    pub(crate) set: Vec<String>,
}

/// Where the tenants are said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TenantsSource<'a> {
    /// In the configuration, for as long as the process runs.
    Fixed,
    /// In this file, which may change.
    File(&'a PathBuf),
    /// On the topic of policies, which may change.
    Topic,
}

/// Whether the example's tenants and models are there too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Example {
    /// Only what is configured.
    Never,
    /// Where no tenant is configured.
    WhereNoTenant,
    /// Always.
    Always,
}

impl Config {
    /// Reads the configuration from all its sources.
    pub(crate) fn load(sources: &Sources, example: Example) -> anyhow::Result<Self> {
        let own = Self::own(sources)?;
        let has = |key| own.find_value(key).is_ok();
        if has("tenants") && has("tenants_path") {
            bail!("tenants stand in [tenants.…] and in the file of `tenants_path`: keep one of the two");
        }
        let no_tenant = !has("tenants") && !has("tenants_path");
        let with_example = example == Example::Always || example == Example::WhereNoTenant && no_tenant;
        let base = Figment::new().merge(Toml::string(DEFAULT));
        let base = if with_example {
            base.merge(Toml::string(EXAMPLE))
        } else {
            base
        };
        let config: Self = base.merge(own).extract().map_err(|error| explain(&error))?;
        config.validate()?;
        Ok(config)
    }

    /// What was configured, without the defaults.
    fn own(sources: &Sources) -> anyhow::Result<Figment> {
        let mut own = Figment::new();
        if let Some(path) = &sources.config {
            let text = read("configuration file", path)?;
            // The library's own complaint repeats the line, which may have a secret.
            ImDocument::parse(text.as_str()).map_err(|error| {
                let line = error.span().map_or(1, |span| line_at(&text, span.start));
                let problem = error.message();
                anyhow!("configuration file `{}`, line {line}: {problem}", path.display())
            })?;
            own = own.merge(Toml::string(&text));
        }
        let env = Env::prefixed(ENV_PREFIX).split("__");
        for (key, text) in env.iter() {
            let (key, from) = (key.as_str(), env.metadata());
            own = own.merge(Written {
                key,
                text: &text,
                from,
            });
        }
        for setting in &sources.set {
            let Some((key, value)) = setting.split_once('=') else {
                bail!("--set `{setting}` is not of the form KEY=VALUE, such as sink.url=/data/lake");
            };
            own = own.merge((key, value_of(key, value)));
        }
        Ok(own)
    }

    fn validate(&self) -> anyhow::Result<()> {
        for (name, model) in &self.models {
            let setting = format!("models.{name}.price_per_device_second");
            check_price(&setting, model.price_per_device_second)?;
        }
        for (name, pool) in &self.pools {
            let mut named = pool.models.iter().flatten().chain(pool.prices.keys());
            if let Some(unknown) = named.find(|model| !self.models.contains_key(model)) {
                bail!(
                    "pools.{name} names model `{unknown}`, which is not configured: add [models.{unknown}]"
                );
            }
            for (model, price) in &pool.prices {
                check_price(&format!("pools.{name}.prices.{model}"), *price)?;
            }
            if let Some(Shards { count, per_tenant }) = pool.shards {
                if per_tenant > count {
                    bail!("pools.{name}.shards.per_tenant is {per_tenant}, and there are {count} shards");
                }
                if count.get() > SHARDS_MAX {
                    bail!("pools.{name}.shards.count is {count}, and there may be {SHARDS_MAX} shards");
                }
            }
        }
        self.check_shard()?;
        // Under one of these a service would stand still, and say nothing.
        let limits = [
            ("topics.jobs_partitions", self.topics.jobs_partitions as usize),
            ("ingest.commit_records_max", self.ingest.commit_records_max),
            ("ingest.commit_bytes_max", self.ingest.commit_bytes_max),
            ("sink.file_bytes_max", self.sink.file_bytes_max),
            ("sink.memory_bytes_max", self.sink.memory_bytes_max),
        ];
        if let Some((setting, _)) = limits.iter().find(|(_, most)| *most == 0) {
            bail!("{setting} is 0, and nothing would ever get through: it must be at least 1");
        }
        if let Err(mistake) = self.identity.check() {
            bail!("{mistake}");
        }
        if let Err(mistake) = tenants::check(&self.tenants, self) {
            bail!("{mistake}");
        }
        TopicNames::new(&self.topics.jobs, &self.topics.prefix).context("topics.jobs and topics.prefix")?;
        Ok(())
    }

    fn check_shard(&self) -> anyhow::Result<()> {
        let Some(number) = self.processor.shard else {
            return Ok(());
        };
        let pool = &self.processor.pool;
        if self.topics.kind == TopicsKind::Local {
            bail!(
                "processor.shard is {number}, and on local topics one processor serves every tenant: leave it out"
            );
        }
        match self.shards_of(pool) {
            None => bail!(
                "processor.shard is {number}, and pool `{pool}` has no shards: add `shards` to [pools.{pool}]"
            ),
            Some(Shards { count, .. }) if number >= count.get() => {
                bail!("processor.shard is {number}, and pool `{pool}` has {count} shards, numbered from 0")
            }
            Some(_) => Ok(()),
        }
    }

    /// Refuses a processor that would serve the tenants of every shard, where its pool has some.
    pub(crate) fn require_shard(&self) -> anyhow::Result<()> {
        let (pool, among_others) = (&self.processor.pool, self.topics.kind == TopicsKind::Kafka);
        if let Some(Shards { count, .. }) = self.shards_of(pool).filter(|_| among_others)
            && self.processor.shard.is_none()
        {
            bail!(
                "pool `{pool}` has {count} shards, and processor.shard does not say which this processor is: set it to a number from 0 to {}",
                count.get() - 1
            );
        }
        Ok(())
    }

    /// How the processors of `pool` are divided; none: each serves every tenant.
    pub(crate) fn shards_of(&self, pool: &Pool) -> Option<Shards> {
        self.pools.get(pool)?.shards
    }

    /// Where the tenants are said.
    pub(crate) fn tenants_source(&self) -> TenantsSource<'_> {
        match &self.tenants_path {
            Some(path) => TenantsSource::File(path),
            None if self.tenants.is_empty() => TenantsSource::Topic,
            None => TenantsSource::Fixed,
        }
    }

    /// Refuses a configuration under which every job would be rejected.
    pub(crate) fn require_tenants_and_models(&self) -> anyhow::Result<()> {
        if self.tenants_source() == TenantsSource::Topic && self.topics.kind == TopicsKind::Local {
            bail!(
                "no tenant is configured, so every job would be rejected: add [tenants.<name>] to the --config file, or set `tenants_path`"
            );
        }
        if self.models.is_empty() {
            bail!(
                "no model is configured, so every job would be rejected: add [models.<name>] to the --config file"
            );
        }
        Ok(())
    }

    /// What decisions are made from.
    pub(crate) fn policies(&self) -> Policies {
        Policies {
            topics: self.topics.names(),
            tenants: self.tenants.clone(),
            models: self
                .models
                .iter()
                .map(|(name, section)| (name.clone(), section.terms()))
                .collect(),
            pools: self
                .pools
                .iter()
                .map(|(pool, section)| (pool.clone(), section.models.clone()))
                .collect(),
            input_bytes_max: self.input_bytes_max,
            currency: self.currency.clone(),
        }
    }

    /// The models that the processors of `pool` have.
    pub(crate) fn models_of(&self, pool: &Pool) -> BTreeMap<ModelName, ModelSection> {
        let section = self.pools.get(pool);
        let has = |model: &ModelName| {
            section
                .and_then(|section| section.models.as_ref())
                .is_none_or(|models| models.contains(model))
        };
        let models = self.models.iter().filter(|(name, _)| has(name));
        let priced = models.map(|(name, model)| {
            let price = section.and_then(|section| section.prices.get(name));
            let model = ModelSection {
                price_per_device_second: price.copied().unwrap_or(model.price_per_device_second),
                ..model.clone()
            };
            (name.clone(), model)
        });
        priced.collect()
    }

    /// How a processor of this configuration works.
    pub(crate) fn processor_service(&self) -> processor::Config {
        let section = &self.processor;
        let shard = self.shards_of(&section.pool).zip(section.shard);
        processor::Config {
            group: section.group.clone(),
            pool: section.pool.clone(),
            shard: shard.map(|(of, number)| Shard { number, of }),
            device_cores: section.device_cores,
            window_ms: section.window_ms,
            commit_interval_ms: section.commit_interval_ms,
            window_jobs_max: section.window_jobs_max,
            window_bytes_max: section.window_bytes_max,
            window_tenants_max: section.window_tenants_max,
            batch_tokens_max: section.batch_tokens_max,
            lane_bytes_max: section.lane_bytes_max,
            lanes_bytes_max: section.lanes_bytes_max,
        }
    }

    /// The configuration as TOML, with secrets replaced.
    pub(crate) fn to_toml(&self) -> anyhow::Result<String> {
        let mut value = toml::Value::try_from(self)?;
        redact(&mut value);
        Ok(toml::to_string(&value)?)
    }
}

impl TopicsSection {
    /// Which topic serves which stage.
    pub(crate) fn names(&self) -> TopicNames {
        TopicNames::new(&self.jobs, &self.prefix).expect("the configuration is validated")
    }

    #[cfg(feature = "kafka")]
    pub(crate) fn kafka_settings(&self, delivery: Delivery) -> topics::kafka::Settings {
        topics::kafka::Settings {
            properties: self.kafka.0.clone(),
            delivery: match delivery {
                Delivery::Transactional => topics::kafka::Delivery::Transactional,
                Delivery::Idempotent => topics::kafka::Delivery::Idempotent,
            },
            instance: self.instance.clone(),
            replication_factor: self.replication_factor,
        }
    }
}

impl ModelSection {
    pub(crate) fn terms(&self) -> ModelTerms {
        ModelTerms {
            task: self.task,
            price_per_device_second: self.price_per_device_second,
        }
    }

    pub(crate) fn model(&self) -> ModelConfig {
        ModelConfig {
            source: self.source.clone(),
            task: self.task,
            dtype: self.dtype,
            tokens_max: self.tokens_max,
        }
    }
}

fn check_price(setting: &str, price: Decimal) -> anyhow::Result<()> {
    let price = price.normalize();
    if price.is_sign_negative() || price.scale() > PRICE_DECIMALS_MAX {
        bail!(
            "{setting} is {price}: it must not be negative, and have at most {PRICE_DECIMALS_MAX} decimals"
        );
    }
    Ok(())
}

/// The text of a file, after the mark that some editors put before it. Its `kind` is told where it cannot be read.
pub(crate) fn read(kind: &str, path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("{kind} `{}` cannot be read", path.display()))?;
    Ok(without_mark(text))
}

/// `text` without a byte order mark.
pub(crate) fn without_mark(text: String) -> String {
    match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    }
}

/// The line of `text`, from 1, that has the byte at `offset`.
pub(crate) fn line_at(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

/// Says what is wrong with a setting, where it came from, and which known one is nearest to an unknown one.
pub(crate) fn explain(error: &figment::Error) -> anyhow::Error {
    let key = error.path.join(".");
    let from = error
        .metadata
        .as_ref()
        .map(|metadata| metadata.name.to_string())
        .unwrap_or_default();
    let problem = match &error.kind {
        Kind::UnknownField(unknown, known) => {
            let whole = |field: &str| match error.path.split_last() {
                Some((last, above)) if last == unknown => [above.join("."), field.to_owned()].join("."),
                _ if key.is_empty() => field.to_owned(),
                _ => format!("{key}.{field}"),
            };
            let nearest = known
                .iter()
                .map(|field| (strsim::normalized_damerau_levenshtein(unknown, field), *field))
                .max_by(|one, other| one.0.total_cmp(&other.0));
            let hint = match nearest {
                Some((likeness, field)) if likeness > 0.5 => {
                    format!("did you mean `{}`?", whole(field).trim_start_matches('.'))
                }
                _ => format!("known ones are: {}", known.join(", ")),
            };
            format!(
                "unknown setting `{}`: {hint}",
                whole(unknown).trim_start_matches('.')
            )
        }
        _ if error.path.last().is_some_and(|name| is_secret(name)) => {
            format!("setting `{key}` has a value of another form than it must have")
        }
        kind if key.is_empty() => kind.to_string(),
        kind => format!("setting `{key}`: {kind}"),
    };
    if from.contains("environment") {
        anyhow::anyhow!("{problem} (from the {from})")
    } else {
        anyhow::anyhow!("{problem}")
    }
}

/// What the names of secrets have in them, among the settings of librdkafka and of `object_store` too.
const SECRET_WORDS: [&str; 10] = [
    "password",
    "passphrase",
    "secret",
    "token",
    "credential",
    "jaas",
    "oauthbearer.config",
    "key.pem",
    "access_key",
    "key_base64",
];
/// And how they end, such as `azure_storage_account_key` and `google_service_account_key`.
const SECRET_END: &str = "_key";
const NOT_SECRET: [&str; 5] = [
    "tokens_max",
    "batch_tokens_max",
    "access_key_id",
    "sasl.oauthbearer.token.endpoint.url",
    "aws_access_key_id",
];

fn is_secret(setting: &str) -> bool {
    let name = setting.to_lowercase();
    let has_word = SECRET_WORDS.iter().any(|word| name.contains(word));
    (has_word || name.ends_with(SECRET_END)) && !NOT_SECRET.contains(&name.as_str())
}

fn redact(value: &mut toml::Value) {
    let toml::Value::Table(table) = value else { return };
    for (key, value) in table.iter_mut() {
        match value {
            toml::Value::Table(_) => redact(value),
            value if is_secret(key) => *value = toml::Value::String("<hidden>".to_owned()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::Tenant;

    use super::*;

    fn load(file: &str, set: &[&str]) -> anyhow::Result<Config> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tributary.toml");
        std::fs::write(&path, file).unwrap();
        let set = set.iter().map(ToString::to_string).collect();
        Config::load(
            &Sources {
                config: Some(path),
                set,
            },
            Example::Never,
        )
    }

    fn complaint(file: &str) -> String {
        format!("{:#}", load(file, &[]).unwrap_err())
    }

    #[test]
    fn a_name_or_a_password_that_looks_like_something_else_stays_as_it_was_written() {
        for text in ["3", "1.10", "0042", "true", "[1", "{a=b}", "'x'"] {
            let settings = [
                "topics.instance",
                "topics.kafka.sasl_password",
                "sink.options.aws_secret_access_key",
            ];
            let set = settings.map(|key| format!("{key}={text}"));
            let config = load("", &set.each_ref().map(String::as_str)).unwrap();
            let stayed = [
                &config.topics.instance,
                &config.topics.kafka.0["sasl.password"],
                &config.sink.options["aws_secret_access_key"],
            ];
            assert_eq!(stayed, [text; 3]);
        }
        let quoted = load("", &["topics.instance=\"3\""]).unwrap();
        assert_eq!(quoted.topics.instance, "3");
        let env = Env::raw();
        let of_env = Figment::new().merge(Written {
            key: "topics.kafka.sasl_password",
            text: "0042",
            from: env.metadata(),
        });
        let kafka: Properties = of_env.extract_inner("topics.kafka").unwrap();
        assert_eq!(kafka.0["sasl.password"], "0042");
    }

    #[test]
    fn a_mistake_in_a_secret_does_not_tell_it() {
        for (file, place) in [
            (
                "[sink.options]\naws_secret_access_key = 4242\n",
                "sink.options.aws_secret_access_key",
            ),
            ("[topics.kafka]\nsasl.password = 4242'\n", "line 2"),
            ("[topics.kafka]\nsasl.password = [4242]\n", "sasl.password"),
        ] {
            let complaint = complaint(file);
            assert!(
                complaint.contains(place) && !complaint.contains("4242"),
                "{complaint}"
            );
        }
    }

    #[test]
    fn a_file_may_begin_with_a_byte_order_mark() {
        assert_eq!(load("\u{feff}currency = 'CHF'\n", &[]).unwrap().currency, "CHF");
    }

    #[test]
    fn every_setting_stands_in_the_default_file() {
        let lines = |text: &str| format!(" {}", text.replace('\n', " "));
        for section in [
            "",
            "topics",
            "models.minilm",
            "pools.gold",
            "tenants.acme",
            "tenants.acme.rate",
            "tenants.acme.budget",
            "tenants.acme.abuse",
            "identity",
            "authority",
            "audit",
            "ingest",
            "processor",
            "sink",
            "http",
            "log",
        ] {
            let unknown = [section, "zzzz"].join(".");
            let error = load("", &[&format!("{}=1", unknown.trim_start_matches('.'))]).unwrap_err();
            let error = format!("{error:#}");
            let known = error.split_once("known ones are: ").expect(&error).1;
            let header = section.split('.').take(2).collect::<Vec<_>>().join(".");
            let body = match header.as_str() {
                "" => DEFAULT,
                header => DEFAULT.split_once(&format!("[{header}]\n")).expect(header).1,
            };
            let body = body.split("\n[").next().unwrap_or_default();
            let body = lines(body.split("\n# [").next().unwrap_or_default());
            let inner = |setting: &str| {
                format!(
                    "[{}",
                    [header.as_str(), setting].join(".").trim_start_matches('.')
                )
            };
            for setting in known.split(", ") {
                let is_there = body.contains(&format!(" {setting} = ")) || DEFAULT.contains(&inner(setting));
                assert!(is_there, "`{setting}` of [{section}]");
            }
        }
    }

    #[test]
    fn the_compiled_in_default_and_the_example_are_valid() {
        let config = Config::load(&Sources::default(), Example::WhereNoTenant).unwrap();
        assert_eq!(config.tenants.len(), 3);
        config.require_tenants_and_models().unwrap();
        assert!(
            Config::load(&Sources::default(), Example::Never)
                .unwrap()
                .require_tenants_and_models()
                .is_err()
        );
    }

    #[test]
    fn a_configured_tenant_takes_the_place_of_the_examples() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tributary.toml");
        std::fs::write(&path, "[tenants.umbrella]\npartitions = 3\n").unwrap();
        let sources = Sources {
            config: Some(path),
            set: Vec::new(),
        };
        let config = Config::load(&sources, Example::WhereNoTenant).unwrap();
        assert_eq!(
            config.tenants.keys().map(Tenant::as_str).collect::<Vec<_>>(),
            ["umbrella"]
        );
    }

    #[test]
    fn a_flag_outranks_the_file() {
        let config = load("[sink]\nurl = 'a'\nflush_interval_ms = 7\n", &["sink.url=b"]).unwrap();
        assert_eq!(
            (config.sink.url.as_str(), config.sink.flush_interval_ms),
            ("b", 7)
        );
    }

    #[test]
    fn an_unknown_setting_is_refused_with_the_nearest_known_one() {
        assert_eq!(
            complaint("[sink]\nulr = 'x'\n"),
            "unknown setting `sink.ulr`: did you mean `sink.url`?"
        );
        assert_eq!(
            complaint("curency = 'x'\n"),
            "unknown setting `curency`: did you mean `currency`?"
        );
        assert!(complaint("[tenants.acme]\nweigth = 1\n").contains("tenants.acme.weigth"));
    }

    #[test]
    fn a_wrong_value_names_its_setting() {
        assert!(complaint("[topics]\nkind = 'rabbit'\n").contains("topics.kind"));
        assert!(complaint("[tenants.'../acme']\n").contains("must match [a-z]"));
        assert!(complaint("[tenants.unclaimed]\n").contains("reserved"));
        assert!(complaint("[tenants.acme]\npartitions = 0\n").contains("at least one partition"));
        assert!(complaint("[tenants.acme]\nmodels = ['x']\n").contains("[models.x]"));
        let price = "[models.m]\nsource = 'x'\nprice_per_device_second = '0.0000000001'\n";
        assert!(complaint(price).contains("at most 9 decimals"));
    }

    #[test]
    fn topics_that_would_be_read_as_jobs_and_are_none_are_refused_with_both_settings() {
        for setting in ["topics.jobs=tributary", "topics.prefix=jobs."] {
            let error = format!("{:#}", load("", &[setting]).unwrap_err());
            let settings = "topics.jobs and topics.prefix: with jobs on";
            assert!(error.starts_with(settings), "{error}");
        }
    }

    #[test]
    fn a_limit_of_nothing_under_which_a_service_would_stand_still_is_refused() {
        for setting in [
            "topics.jobs_partitions",
            "ingest.commit_records_max",
            "ingest.commit_bytes_max",
            "sink.file_bytes_max",
            "sink.memory_bytes_max",
        ] {
            let error = load("", &[&format!("{setting}=0")]).unwrap_err();
            assert!(
                format!("{error:#}").starts_with(&format!("{setting} is 0")),
                "{error:#}"
            );
        }
    }

    #[test]
    fn a_pool_has_the_models_and_prices_that_it_says_and_otherwise_those_of_all() {
        let model = |name| format!("[models.{name}]\nsource = 'x'\nprice_per_device_second = '1.5'\n");
        let models = [model("small"), model("large")].concat();
        let gold = "[pools.gold]\nmodels = ['large']\nprices = { large = '4' }\n";
        let config = load(&[&models, gold].concat(), &[]).unwrap();
        let of = |pool| {
            let models = config.models_of(&Pool::new(pool).unwrap()).into_iter();
            models
                .map(|(name, model)| format!("{name} at {}", model.price_per_device_second))
                .collect::<Vec<_>>()
        };
        assert_eq!(of("gold"), ["large at 4"]);
        assert_eq!(of("shared"), ["large at 1.5", "small at 1.5"]);
        let priced = "[pools.gold]\nprices = { large = '4' }\n";
        let policies = load(&[&models, priced].concat(), &[]).unwrap().policies();
        let (gold, large) = (Pool::new("gold").unwrap(), ModelName::new("large").unwrap());
        assert_eq!(policies.pools.keys().collect::<Vec<_>>(), [&gold]);
        assert!(
            policies.has_model(&gold, &large),
            "a pool that names no models has all"
        );
        for (pool, problem) in [
            ("models = ['huge']", "pools.gold names model `huge`"),
            ("prices = { huge = '4' }", "pools.gold names model `huge`"),
            ("prices = { large = '-4' }", "pools.gold.prices.large is -4"),
        ] {
            let complaint = complaint(&format!("{models}[pools.gold]\n{pool}\n"));
            assert!(complaint.contains(problem), "{pool}: {complaint}");
        }
    }

    #[test]
    fn a_processor_says_which_shard_of_its_pool_it_is() {
        let kafka = "topics.kind=kafka";
        let shards = "[pools.shared]\nshards = { count = 8, per_tenant = 2 }\n";
        let config = load(shards, &[kafka, "processor.shard=7"]).unwrap();
        config.require_shard().unwrap();
        let shard = config.processor_service().shard.unwrap();
        assert_eq!(
            (shard.number, shard.of.count.get(), shard.of.per_tenant.get()),
            (7, 8, 2)
        );

        let error = load(shards, &[kafka]).unwrap().require_shard().unwrap_err();
        assert!(error.to_string().contains("a number from 0 to 7"), "{error}");
        let alone = load(shards, &[]).unwrap();
        alone.require_shard().unwrap();
        assert_eq!(
            alone.processor_service().shard,
            None,
            "on local topics it serves all"
        );
        let other = load(shards, &[kafka, "processor.pool=gold"]).unwrap();
        other.require_shard().unwrap();
        for (file, set, problem) in [
            (
                shards,
                &[kafka, "processor.shard=8"][..],
                "has 8 shards, numbered from 0",
            ),
            ("", &[kafka, "processor.shard=0"], "pool `shared` has no shards"),
            (
                shards,
                &["processor.shard=0"],
                "on local topics one processor serves every tenant",
            ),
            (
                "[pools.gold]\nshards = { count = 2, per_tenant = 3 }\n",
                &[],
                "pools.gold.shards.per_tenant is 3",
            ),
            (
                "[pools.gold]\nshards = { count = 257, per_tenant = 2 }\n",
                &[],
                "pools.gold.shards.count is 257",
            ),
            (
                "[pools.gold]\nshards = { count = 0, per_tenant = 1 }\n",
                &[],
                "pools.gold.shards.count",
            ),
            ("[pools.gold]\nshards = { count = 2 }\n", &[], "per_tenant"),
        ] {
            let error = format!("{:#}", load(file, set).unwrap_err());
            assert!(error.contains(problem), "{file}{set:?}: {error}");
        }
    }

    #[test]
    fn kafka_settings_may_be_quoted_or_not() {
        let file = "[topics.kafka]\n\"ssl.ca.location\" = '/ca'\nbootstrap.servers = 'b:1'\nlinger.ms = 5\n";
        let config = load(file, &["topics.kafka.sasl_password=hush"]).unwrap();
        let kafka = &config.topics.kafka.0;
        assert_eq!(kafka["bootstrap.servers"], "b:1");
        assert_eq!(kafka["ssl.ca.location"], "/ca");
        assert_eq!(kafka["linger.ms"], "5");
        assert_eq!(kafka["sasl.password"], "hush");
    }

    #[test]
    fn secrets_are_never_printed() {
        let options = [
            "aws_secret_access_key",
            "aws_session_token",
            "aws_sse_customer_key_base64",
            "azure_storage_account_key",
            "azure_storage_sas_key",
            "master_key",
            "google_service_account_key",
            "google_bearer_token",
        ];
        let kafka = [
            "sasl.password",
            "sasl.oauthbearer.config",
            "sasl.oauthbearer.client.secret",
            "sasl.oauthbearer.assertion.private.key.passphrase",
            "sasl.jaas.config",
            "ssl.key.pem",
        ];
        let of_options = options.map(|name| format!("sink.options.{name}=hush"));
        let of_kafka = kafka.map(|name| format!("topics.kafka.{}=hush", name.replace('.', "_")));
        let open = [
            "sink.options.aws_access_key_id=AKIA",
            "processor.batch_tokens_max=512",
        ];
        let set: Vec<&str> = of_options
            .iter()
            .chain(&of_kafka)
            .map(String::as_str)
            .chain(open)
            .collect();
        let printed = load("", &set).unwrap().to_toml().unwrap();
        assert!(!printed.contains("hush"), "{printed}");
        for name in options.iter().chain(&kafka) {
            assert!(printed.contains(name), "`{name}`: {printed}");
        }
        assert!(
            printed.contains("AKIA") && printed.contains("batch_tokens_max = 512"),
            "{printed}"
        );
    }
}
