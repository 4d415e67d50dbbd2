//! Puts services together: the chosen ones, on the configured topics, supervised.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use ingest::{HttpDoor, identity::Identity};
use metrics_exporter_prometheus::PrometheusBuilder;
use schemas::{Authority, ModelName, Policies};
use tokio::{sync::watch, task::JoinSet, time::interval};
use tokio_util::sync::CancellationToken;
use topics::{TopicSpec, Topics, local::LocalTopics};

use crate::{
    access,
    audit::Auditor,
    config::{Config, Delivery, TopicsKind},
    followed_file::Follows,
    health::{Health, State},
    http, identity, metric_names,
    renewed::RenewedAppender,
    shutdown,
    supervise::keep_running,
    tenants::Follower,
};

/// So often what histograms have recorded is summed up. Until then each value is kept, and it may be that nobody ever asks
/// for the metrics.
const SUM_UP: Duration = Duration::from_secs(1);

/// A service that this process can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Ingest,
    Processor,
    Sink,
}

/// Runs `stages` until SIGINT or SIGTERM.
pub(crate) async fn serve(config: Config, stages: &[Stage]) -> anyhow::Result<()> {
    if config.topics.kind == TopicsKind::Local && stages.len() == 1 {
        bail!(
            "one service alone needs topics that others reach: set topics.kind to \"kafka\" and topics.kafka.\"bootstrap.servers\", or run all services in one process with `tributary up`"
        );
    }
    let by_tenant = stages.contains(&Stage::Ingest) || stages.contains(&Stage::Processor);
    if by_tenant {
        config.require_tenants_and_models()?;
    }
    if stages.contains(&Stage::Processor) {
        config.require_shard()?;
    }
    let shutdown = shutdown::on_signal()?;
    let metrics = PrometheusBuilder::new().install_recorder().context("metrics")?;
    register_metrics(stages);
    let listener = http::bind(&config.http).await?;
    let address = listener.local_addr()?;
    let health = Health::default();
    for stage in stages {
        health.set(stage.name(), State::Starting);
    }
    let auditor = auditor(&config, stages);
    // Where nobody has written policies, what is served beside ingest is for anybody, whoever he is.
    let keys = match stages.contains(&Stage::Ingest) || config.authority.policies.is_some() {
        true => identity::follow(&config.identity, auditor.clone())?,
        false => identity::nobody(),
    };
    let authority = access::follow(&config.authority, auditor.clone())?;
    let topics = open_topics(&config, Delivery::Transactional)?;
    let door = stages.contains(&Stage::Ingest).then(http::Door::default);
    let served = http::Served {
        health: health.clone(),
        metrics: metrics.clone(),
        door: door.clone(),
        bodies: http::Bodies::of_at_most(config.http.body_bytes_max),
        identity: keys.in_force(),
        authority: authority.in_force(),
        auditor: auditor.clone(),
    };
    tracing::info!(%address, ?stages, lake = config.sink.url, "started");

    let mut running = JoinSet::new();
    running.spawn(http::serve(listener, served, shutdown.clone()));
    running.spawn(keep_summing_up(
        SUM_UP,
        move || metrics.run_upkeep(),
        shutdown.clone(),
    ));
    let config = Arc::new(config);
    let follower = if by_tenant {
        Follower::open(&config, &topics, &health, &shutdown).await?
    } else {
        Some(Follower::fixed(&config, &topics))
    };
    let Some(follower) = follower else {
        return Ok(());
    };
    let in_force = InForce {
        policies: follower.policies(),
        identity: keys.in_force(),
        authority: authority.in_force(),
    };
    for stage in stages {
        let (config, topics, health) = (Arc::clone(&config), Arc::clone(&topics), health.clone());
        let (stage, in_force) = (*stage, in_force.clone());
        let (door, shutdown) = (door.clone(), shutdown.clone());
        running.spawn(
            async move { run_stage(stage, &config, topics, in_force, door, &health, &shutdown).await },
        );
    }
    running.spawn(follower.audited(auditor.clone()).run(shutdown.clone()));
    running.spawn(keys.run(shutdown.clone()));
    running.spawn(authority.run(shutdown.clone()));
    running.spawn(auditor.run(topics, config.topics.names(), shutdown.clone()));
    let mut first_error = Ok(());
    while let Some(ended) = running.join_next().await {
        let result = ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        if let Err(error) = result {
            shutdown.cancel();
            first_error = first_error.and(Err(error));
        }
    }
    first_error
}

fn register_metrics(stages: &[Stage]) {
    metric_names::register();
    ingest::metric_names::register_http_refused();
    for stage in stages {
        match stage {
            Stage::Ingest => ingest::metric_names::register(),
            Stage::Processor => processor::metric_names::register(),
            Stage::Sink => sink::metric_names::register(),
        }
    }
}

/// Calls `sum_up` again and again until `shutdown`.
async fn keep_summing_up(
    every: Duration,
    sum_up: impl Fn() + Send + Sync,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut ticks = interval(every);
    let for_ever = async {
        loop {
            ticks.tick().await;
            sum_up();
        }
    };
    shutdown.run_until_cancelled(for_ever).await;
    Ok(())
}

/// Who takes what happens in a process that runs `stages`.
fn auditor(config: &Config, stages: &[Stage]) -> Auditor {
    if !config.audit.enabled {
        tracing::warn!("nothing is audited: audit.enabled is false");
        return Auditor::default();
    }
    let name = match stages {
        [stage] => stage.name(),
        _ => "up",
    };
    Auditor::of(format!("{name}-{}", config.topics.instance))
}

/// What decisions are made from, now and from now on.
#[derive(Clone)]
pub(crate) struct InForce {
    pub(crate) policies: watch::Receiver<Arc<Policies>>,
    pub(crate) identity: watch::Receiver<Arc<Identity>>,
    pub(crate) authority: watch::Receiver<Arc<dyn Authority>>,
}

/// Runs one service until `shutdown`, by what is `in_force` at the moment. Ingest opens `door`.
pub(crate) async fn run_stage(
    stage: Stage,
    config: &Config,
    topics: Arc<dyn Topics>,
    in_force: InForce,
    door: Option<http::Door>,
    health: &Health,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let InForce {
        policies,
        identity,
        authority,
    } = in_force;
    let name = stage.name();
    let ready = {
        let health = health.clone();
        move || health.set(name, State::Running)
    };
    match stage {
        Stage::Ingest => {
            let (topics_of_ingest, policies_of_ingest) = (Arc::clone(&topics), policies.clone());
            let service = ingest::Service::new(
                config.ingest.clone(),
                topics_of_ingest,
                policies_of_ingest,
                identity,
                authority,
                groups_of_processors(config),
            );
            let service = Arc::new(match config.audit.enabled {
                true => service,
                false => service.unaudited(),
            });
            keep_running(name, health, shutdown, || {
                let (topics, service, ready) = (Arc::clone(&topics), Arc::clone(&service), ready.clone());
                let jobs = job_topics(config, &policies.borrow());
                let (door, shutdown) = (door.clone(), shutdown.clone());
                async move {
                    topics.ensure(&jobs).await?;
                    if let Some(door) = door.filter(|door| !door.initialized()) {
                        let appender = RenewedAppender::open(Arc::clone(&topics)).await?;
                        let opened = HttpDoor::new(Box::new(appender), config.topics.jobs.clone());
                        // Ingest alone opens it, and runs once at a time.
                        let _ = door.set(opened);
                    }
                    service.run(shutdown, &ready).await
                }
            })
            .await
        }
        Stage::Processor => {
            let topics = match (config.topics.kind, config.processor.delivery) {
                (TopicsKind::Kafka, Delivery::Idempotent) => open_topics(config, Delivery::Idempotent)?,
                _ => topics,
            };
            let service = Arc::new(processor(config, Arc::clone(&topics), policies.clone()).await?);
            keep_running(name, health, shutdown, || {
                let (topics, service, ready) = (Arc::clone(&topics), Arc::clone(&service), ready.clone());
                let specs = ingest::Service::topic_specs(&policies.borrow());
                let shutdown = shutdown.clone();
                async move {
                    topics.ensure(&specs).await?;
                    service.run(shutdown, &ready).await
                }
            })
            .await
        }
        Stage::Sink => {
            let service = sink::Service::new(config.sink.clone(), topics, config.topics.names())?;
            let service = Arc::new(service);
            keep_running(name, health, shutdown, || {
                let (service, ready, shutdown) = (Arc::clone(&service), ready.clone(), shutdown.clone());
                async move { service.run(shutdown, &ready).await }
            })
            .await
        }
    }
}

impl Stage {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Processor => "processor",
            Self::Sink => "sink",
        }
    }
}

/// The topics that jobs come in by, as they are created where they are missing: the shared one and each tenant's own.
pub(crate) fn job_topics(config: &Config, policies: &Policies) -> Vec<TopicSpec> {
    let mut specs = ingest::Service::door_specs(policies);
    specs.push(TopicSpec::new(
        policies.topics.jobs(),
        config.topics.jobs_partitions,
    ));
    specs
}

/// Every topic that must exist for these policies.
pub(crate) fn all_topics(config: &Config, policies: &Policies) -> Vec<TopicSpec> {
    let mut specs = ingest::Service::topic_specs(policies);
    specs.extend(job_topics(config, policies));
    specs
}

/// The topics that the configuration names; stages on Kafka commit as `delivery` says.
pub(crate) fn open_topics(config: &Config, delivery: Delivery) -> anyhow::Result<Arc<dyn Topics>> {
    match config.topics.kind {
        TopicsKind::Local => {
            let path = &config.topics.path;
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)
                    .with_context(|| format!("folder `{}` of topics.path", folder.display()))?;
            }
            Ok(Arc::new(LocalTopics::open(path)?))
        }
        #[cfg(feature = "kafka")]
        TopicsKind::Kafka => Ok(Arc::new(topics::kafka::KafkaTopics::new(
            config.topics.kafka_settings(delivery),
        )?)),
        #[cfg(not(feature = "kafka"))]
        TopicsKind::Kafka => {
            let _ = delivery;
            bail!(
                "this build has no Kafka client: build it with --features kafka, or set topics.kind to \"local\""
            )
        }
    }
}

/// The consumer group of the processors of each pool.
fn groups_of_processors(config: &Config) -> ingest::GroupOf {
    let of_this_pool = config.processor_service();
    Arc::new(move |pool| {
        processor::Service::group(&processor::Config {
            pool: pool.clone(),
            ..of_this_pool.clone()
        })
    })
}

async fn processor(
    config: &Config,
    topics: Arc<dyn Topics>,
    policies: watch::Receiver<Arc<Policies>>,
) -> anyhow::Result<processor::Service> {
    let models = config.models_of(&config.processor.pool);
    let (device, cpu_path) = (config.processor.device, config.processor.cpu_path);
    // Processors that share a working directory are of other pools or instances; no pool's name has a dot.
    let name = format!("{}.{}", config.processor.pool, config.topics.instance);
    let folder = config.processor.attempts_path.join(name);
    let attempts = processor::Attempts::open(&folder).with_context(|| {
        format!(
            "processor.attempts_path: folder `{}` cannot be used",
            folder.display()
        )
    })?;
    let load = move || -> anyhow::Result<BTreeMap<ModelName, processor::Served>> {
        models
            .into_iter()
            .map(|(name, section)| {
                let began = std::time::Instant::now();
                let model = processor::model::load(&name, &section.model(), device, cpu_path)?;
                tracing::info!(model = %name, digest = %model.digest, device = model.device, path = model.path, dtype = %model.dtype, seconds = began.elapsed().as_secs_f64(), "model loaded");
                Ok((name, processor::Served { model, terms: section.terms() }))
            })
            .collect()
    };
    let models = tokio::task::spawn_blocking(load).await??;
    Ok(processor::Service::new(
        config.processor_service(),
        topics,
        policies,
        models,
        attempts,
        uuid::Uuid::new_v4().simple().to_string(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_that_is_documented_and_not_of_a_tenant_is_there_from_the_start() {
        let documented = include_str!("../../docs/operations.md")
            .lines()
            .filter_map(|line| {
                let mut cells = line.split('|').map(str::trim).skip(1);
                let name = cells.next()?.trim_matches('`');
                let is_counter = cells.next()? == "counter";
                let labels = cells.next()?;
                (is_counter && !labels.contains("`tenant`")).then_some(name)
            });
        let recorder = PrometheusBuilder::new().build_recorder();
        let stages = [Stage::Ingest, Stage::Processor, Stage::Sink];
        metrics::with_local_recorder(&recorder, || register_metrics(&stages));
        let rendered = recorder.handle().render();
        let is_there = |name: &str| {
            let of_it = |line: &str| line.split([' ', '{']).next() == Some(name) && line.ends_with(" 0");
            rendered.lines().any(of_it)
        };
        let (there, missing): (Vec<_>, Vec<_>) = documented.partition(|name| is_there(name));
        assert!(missing.is_empty(), "{missing:?}");
        assert!(there.contains(&"tributary_sink_dead_letters_total"), "{there:?}");
    }

    #[tokio::test]
    async fn metrics_are_summed_up_until_the_end_though_nobody_asks_for_them() {
        let (times, mut seen) = watch::channel(0);
        let shutdown = CancellationToken::new();
        let sum_up = move || times.send_modify(|times| *times += 1);
        let keeping = tokio::spawn(keep_summing_up(
            Duration::from_millis(1),
            sum_up,
            shutdown.clone(),
        ));
        seen.wait_for(|times| *times >= 3).await.unwrap();
        shutdown.cancel();
        keeping.await.unwrap().unwrap();
    }
}
