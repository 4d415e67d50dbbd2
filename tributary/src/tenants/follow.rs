//! The thin loop: looks for another set of tenants, and puts it in force or refuses it as a whole.

use std::sync::Arc;

use anyhow::Context;
use schemas::{Operation, Policies, Record as _, TenantSet, Tenants};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use topics::{Error, Retention, TopicSpec, Topics};

use super::{
    change::{Changes, taken_back},
    set,
};
use crate::{
    audit::{self, Auditor},
    config::{Config, TenantsSource},
    followed_file::{FollowedFile, Follows, LOOK},
    health::{Health, State},
    metric_names,
    pipeline::all_topics,
};

/// What `/health` calls the wait for the first set.
const NAME: &str = "tenants";

/// Keeps the policies in force those that the file or the topic of tenants says.
pub(crate) struct Follower {
    config: Arc<Config>,
    topics: Arc<dyn Topics>,
    source: Source,
    in_force: watch::Sender<Arc<Policies>>,
    /// Read and good, and its topics are not made yet.
    waiting: Option<Tenants>,
    auditor: Auditor,
}

enum Source {
    Fixed,
    File(FollowedFile),
    Topic { offset: i64, is_away: bool },
}

impl Follower {
    /// Reads the first set. That of a topic is waited for, so that no job is rejected because nobody has said yet who the
    /// tenants are; none where `shutdown` came first.
    ///
    /// # Errors
    /// Where the file cannot be read or has a mistake, or the topics refuse.
    pub(crate) async fn open(
        config: &Arc<Config>,
        topics: &Arc<dyn Topics>,
        health: &Health,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Option<Self>> {
        let (tenants, source) = match config.tenants_source() {
            TenantsSource::Fixed => return Ok(Some(Self::fixed(config, topics))),
            TenantsSource::File(path) => {
                let (file, text) = FollowedFile::open("tenants file", path.clone())?;
                let tenants = set::read(&text, config)
                    .map_err(|refused| anyhow::anyhow!("tenants file `{}`, {refused}", path.display()))?;
                (tenants, Source::File(file))
            }
            TenantsSource::Topic => {
                let Some((tenants, offset)) = first_set(config, topics, health, shutdown).await? else {
                    return Ok(None);
                };
                let is_away = false;
                (tenants, Source::Topic { offset, is_away })
            }
        };
        Ok(Some(Self::new(config, topics, source, tenants)))
    }

    /// Whatever the configuration says itself is in force, for ever.
    pub(crate) fn fixed(config: &Arc<Config>, topics: &Arc<dyn Topics>) -> Self {
        Self::new(config, topics, Source::Fixed, config.tenants.clone())
    }

    fn new(config: &Arc<Config>, topics: &Arc<dyn Topics>, source: Source, tenants: Tenants) -> Self {
        let policies = Policies {
            tenants,
            ..config.policies()
        };
        Self {
            config: Arc::clone(config),
            topics: Arc::clone(topics),
            source,
            in_force: watch::Sender::new(Arc::new(policies)),
            waiting: None,
            auditor: Auditor::default(),
        }
    }

    /// The same, which tells `auditor` of each set.
    pub(crate) fn audited(self, auditor: Auditor) -> Self {
        Self { auditor, ..self }
    }

    /// The policies in force, now and from now on. What is sent has its topics.
    pub(crate) fn policies(&self) -> watch::Receiver<Arc<Policies>> {
        self.in_force.subscribe()
    }

    /// A set that was not seen before, or why it is none.
    async fn found(&mut self) -> Option<Result<Tenants, String>> {
        let config = &self.config;
        match &mut self.source {
            Source::Fixed => None,
            Source::File(file) => {
                let text = file.look().await?;
                Some(set::read(&text, config).map_err(|refused| refused.to_string()))
            }
            Source::Topic { offset, is_away } => {
                let topic = config.topics.names().policies();
                let last = self.topics.last(&topic).await;
                let was_away = std::mem::replace(is_away, last.is_err());
                let record = match last {
                    Ok(record) => record?,
                    Err(error) => {
                        if !was_away {
                            tracing::warn!(%topic, %error, "tenants cannot be looked up: those in force stay so");
                        }
                        return None;
                    }
                };
                if record.offset == *offset {
                    return None;
                }
                *offset = record.offset;
                Some(of_record(&record, config))
            }
        }
    }

    /// Makes what `tenants` need, and puts them in force.
    async fn adopt(&mut self, tenants: Tenants) {
        let now = Arc::clone(&self.in_force.borrow());
        let changes = Changes::between(&now.tenants, &tenants);
        if changes.is_empty() {
            return;
        }
        if let Some(problem) = changes.refused_under_way() {
            return self.refuse(&problem);
        }
        let policies = Policies {
            tenants,
            ..Policies::clone(&now)
        };
        let stand = all_topics(&self.config, &now);
        let mut new = taken_back(all_topics(&self.config, &policies), &stand);
        new.retain(|spec| !stand.contains(spec));
        match self.topics.ensure(&new).await {
            Ok(()) => {
                self.in_force.send_replace(Arc::new(policies));
                metrics::counter!(metric_names::TENANT_SETS, "result" => "taken").increment(1);
                let source = self.source_name();
                tracing::info!(source, %changes, "tenants changed");
                self.auditor
                    .tell(Operation::TakeTenants, &source, None, changes.to_string());
            }
            Err(error) if error.is_retryable() => {
                tracing::warn!(%error, "the topics of changed tenants cannot be made yet: trying again");
                self.waiting = Some(policies.tenants);
            }
            Err(error) => self.refuse(&error.to_string()),
        }
    }

    fn refuse(&self, problem: &str) {
        metrics::counter!(metric_names::TENANT_SETS, "result" => "refused").increment(1);
        let source = self.source_name();
        tracing::error!(
            source,
            problem,
            "tenants refused as a whole: those in force stay so"
        );
        self.auditor.tell(
            Operation::TakeTenants,
            &source,
            Some(audit::REFUSED),
            problem.to_owned(),
        );
    }

    fn source_name(&self) -> String {
        match &self.source {
            Source::Fixed => "configuration".to_owned(),
            Source::File(file) => file.to_string(),
            Source::Topic { .. } => self.config.topics.names().policies().to_string(),
        }
    }
}

impl Follows for Follower {
    async fn look(&mut self) {
        match self.found().await {
            None => {}
            Some(Ok(tenants)) => self.waiting = Some(tenants),
            Some(Err(problem)) => {
                self.waiting = None;
                self.refuse(&problem);
            }
        }
        if let Some(tenants) = self.waiting.take() {
            self.adopt(tenants).await;
        }
    }
}

/// The set that the topic has, once it has one.
async fn first_set(
    config: &Config,
    topics: &Arc<dyn Topics>,
    health: &Health,
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<(Tenants, i64)>> {
    let topic = config.topics.names().policies();
    let mut told = String::new();
    loop {
        let reason = match last_set(topics.as_ref(), config).await {
            Ok(Some((Ok(tenants), offset))) => {
                health.set(NAME, State::Running);
                return Ok(Some((tenants, offset)));
            }
            Ok(Some((Err(problem), _))) => format!("the set of tenants on `{topic}` is refused: {problem}"),
            Ok(None) => format!(
                "no tenant is configured, and none is on `{topic}`: run `tributary tenants apply`, or set `tenants_path`"
            ),
            Err(error) if error.is_retryable() => error.to_string(),
            Err(error) => return Err(error).context("tenants"),
        };
        if reason != told {
            tracing::warn!(reason, "waiting for tenants");
            health.set(
                NAME,
                State::Waiting {
                    reason: reason.clone(),
                },
            );
            told = reason;
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(None),
            () = sleep(LOOK) => {}
        }
    }
}

/// What the topic says last, and where; none where nothing was ever applied.
pub(super) async fn last_set(
    topics: &dyn Topics,
    config: &Config,
) -> Result<Option<(Result<Tenants, String>, i64)>, Error> {
    let record = topics.last(&config.topics.names().policies()).await?;
    Ok(record.map(|record| (of_record(&record, config), record.offset)))
}

/// The topic that sets are applied to.
pub(super) fn topic_spec(config: &Config) -> TopicSpec {
    TopicSpec {
        retention: Retention::LastOfKey,
        ..TopicSpec::new(config.topics.names().policies(), 1)
    }
}

fn of_record(record: &topics::Record, config: &Config) -> Result<Tenants, String> {
    let value = record.value.as_deref().unwrap_or_default();
    let TenantSet(tenants) =
        TenantSet::decode(value).map_err(|error| format!("{:#}", anyhow::Error::new(error)))?;
    set::check(&tenants, config).map_err(|mistake| mistake.to_string())?;
    Ok(tenants)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use schemas::{Tenant, TenantPolicy};
    use topics::{Append, local::LocalTopics};

    use super::*;
    use crate::config::{Example, Sources};

    fn config() -> Arc<Config> {
        let set = [
            "models.minilm.source=passthrough:4",
            "models.minilm.price_per_device_second=1.5",
        ];
        let sources = Sources {
            config: None,
            set: set.map(str::to_owned).into(),
        };
        Arc::new(Config::load(&sources, Example::Never).unwrap())
    }

    async fn open(config: &Arc<Config>, topics: &Arc<dyn Topics>) -> Option<Follower> {
        // Whoever has to wait is not waited for.
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        Follower::open(config, topics, &Health::default(), &shutdown)
            .await
            .unwrap()
    }

    async fn apply(config: &Config, topics: &Arc<dyn Topics>, value: impl Into<Bytes>) {
        let append = Append {
            topic: config.topics.names().policies(),
            partition: Some(0),
            timestamp_ms: 0,
            key: None,
            value: Some(value.into()),
            headers: Vec::new(),
        };
        for appended in topics.appender().await.unwrap().append(vec![append]).await {
            appended.unwrap();
        }
    }

    fn set_of(named: &[(&str, u32)]) -> Vec<u8> {
        let one = |(name, partitions): &(&str, u32)| {
            let policy = TenantPolicy {
                partitions: *partitions,
                ..TenantPolicy::default()
            };
            (Tenant::new(name).unwrap(), policy)
        };
        TenantSet(named.iter().map(one).collect()).encode()
    }

    fn names(follower: &Follower) -> Vec<String> {
        let in_force = follower.policies();
        in_force.borrow().tenants.keys().map(Tenant::to_string).collect()
    }

    #[tokio::test]
    async fn a_set_on_the_topic_is_waited_for_and_followed_and_one_that_is_no_good_changes_nothing() {
        let config = config();
        let topics: Arc<dyn Topics> = Arc::new(LocalTopics::in_memory());
        assert!(
            open(&config, &topics).await.is_none(),
            "nobody has applied a set yet"
        );
        topics.ensure(&[topic_spec(&config)]).await.unwrap();
        apply(&config, &topics, set_of(&[("acme", 1)])).await;
        let mut follower = open(&config, &topics).await.unwrap();
        assert_eq!(names(&follower), ["acme"]);

        apply(&config, &topics, set_of(&[("acme", 1), ("globex", 2)])).await;
        follower.look().await;
        assert_eq!(names(&follower), ["acme", "globex"]);
        let topic_names = config.topics.names();
        let globex = Tenant::new("globex").unwrap();
        let made = [
            topic_names.jobs_of(&globex),
            topic_names.work(&schemas::Pool::default(), schemas::Priority::Low, &globex),
            topic_names.outcomes(&globex),
        ];
        let sizes = topics.partitions(&made).await.unwrap();
        assert!(
            sizes.len() == 3 && sizes.values().all(|size| *size == 2),
            "{sizes:?}"
        );

        for refused in [
            b"\x01rubbish".to_vec(),
            set_of(&[("acme", 4)]),
            set_of(&[("unclaimed", 1)]),
        ] {
            apply(&config, &topics, refused).await;
            follower.look().await;
            assert_eq!(names(&follower), ["acme", "globex"]);
        }
        apply(&config, &topics, set_of(&[("globex", 2)])).await;
        follower.look().await;
        assert_eq!(names(&follower), ["globex"]);
        assert_eq!(
            names(&open(&config, &topics).await.unwrap()),
            ["globex"],
            "whoever starts now"
        );
    }
}
