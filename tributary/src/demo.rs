//! `tributary demo`: real jobs of three tenants through the whole pipeline, in one process, and what came of them.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use schemas::Policies;
use tokio::{sync::watch, task::JoinSet, time::interval};
use tokio_util::sync::CancellationToken;
use topics::{Append, Subscription, TopicPattern, Topics};

use crate::{
    access,
    cli::{DemoArgs, print},
    config::{Config, Delivery, TopicsKind},
    health::Health,
    identity,
    pipeline::{InForce, Stage, job_topics, open_topics, run_stage},
    shutdown,
};

const JOBS: &[u8] = include_bytes!("../demo/jobs.jsonl");
/// A file is written when its first row has waited this long: little, since the demo waits for the last file.
const FLUSH_INTERVAL_MS: u64 = 3_000;

const TOPICS_FILE: &str = "_topics.redb";
/// What was on the device when a run before this one died, in the lake's folder.
const ATTEMPTS_FOLDER: &str = "_attempts";

/// Runs the demo.
pub(crate) async fn run(mut config: Config, args: DemoArgs) -> anyhow::Result<()> {
    let jobs = match &args.jobs {
        Some(path) => {
            Bytes::from(std::fs::read(path).with_context(|| format!("jobs file `{}`", path.display()))?)
        }
        None => Bytes::from_static(JOBS),
    };
    std::fs::create_dir_all(&args.lake).with_context(|| format!("lake `{}`", args.lake.display()))?;
    let lake = args
        .lake
        .canonicalize()
        .with_context(|| format!("lake `{}`", args.lake.display()))?;
    config.tenants_path = None;
    config.topics.kind = TopicsKind::Local;
    config.topics.path = lake.join(TOPICS_FILE);
    config.processor.attempts_path = lake.join(ATTEMPTS_FOLDER);
    config.sink.url = lake
        .to_str()
        .context("the lake's path is not valid UTF-8")?
        .to_owned();
    config.sink.flush_interval_ms = FLUSH_INTERVAL_MS;

    let shutdown = shutdown::on_signal()?;
    let topics = open_topics(&config, Delivery::Transactional)?;
    let policies = config.policies();
    let began_at_ms = chrono::Utc::now().timestamp_millis();
    topics.ensure(&job_topics(&config, &policies)).await?;
    topics.ensure(&ingest::Service::topic_specs(&policies)).await?;
    let dead_letters_before = dead_letters(topics.as_ref(), &policies).await?;
    let submitted = submit(topics.as_ref(), &policies, &jobs, began_at_ms).await?;

    let mut services = JoinSet::new();
    // Its own jobs have no token, and its tenants may, whatever is configured.
    let in_force = InForce {
        policies: watch::Sender::new(Arc::new(policies.clone())).subscribe(),
        identity: identity::nobody().in_force(),
        authority: access::built_in().in_force(),
    };
    let config = Arc::new(config);
    for stage in [Stage::Ingest, Stage::Processor, Stage::Sink] {
        let (config, topics, shutdown) = (Arc::clone(&config), Arc::clone(&topics), shutdown.clone());
        let in_force = in_force.clone();
        services.spawn(async move {
            run_stage(
                stage,
                &config,
                topics,
                in_force,
                None,
                &Health::default(),
                &shutdown,
            )
            .await
        });
    }
    let drained = tokio::select! {
        drained = drain(topics.as_ref(), &config, &policies, submitted) => drained?,
        Some(ended) = services.join_next() => {
            shutdown.cancel();
            ended.context("a service panicked")?.map(|()| false)?
        }
        () = shutdown.cancelled() => false,
    };
    end(services, &shutdown).await?;
    if !drained {
        return print(
            "Interrupted. What was done is in the lake; run the demo again to go on with the rest.",
        );
    }
    let dead_letters = dead_letters(topics.as_ref(), &policies).await? - dead_letters_before;
    let summary = sink::summary(&config.sink.url, &config.sink.options, began_at_ms).await?;
    print(&summary.to_string())?;
    print(&format!(
        "{dead_letters} lines were no jobs at all, and are kept as dead letters:\n\n  tributary dead-letters list --set topics.path={}\n",
        args.lake.join(TOPICS_FILE).display()
    ))?;
    print(&queries(&args.lake))
}

async fn end(mut services: JoinSet<anyhow::Result<()>>, shutdown: &CancellationToken) -> anyhow::Result<()> {
    shutdown.cancel();
    while let Some(ended) = services.join_next().await {
        ended.context("a service panicked")??;
    }
    Ok(())
}

/// Puts every line on the shared topic as a producer would, the broken ones too.
async fn submit(topics: &dyn Topics, policies: &Policies, jobs: &Bytes, now_ms: i64) -> anyhow::Result<u64> {
    let lines = jobs
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.trim_ascii().is_empty());
    let appends: Vec<Append> = lines
        .map(|line| Append {
            topic: policies.topics.jobs(),
            partition: None,
            timestamp_ms: now_ms,
            key: None,
            value: Some(jobs.slice_ref(line)),
            headers: Vec::new(),
        })
        .collect();
    let submitted = appends.len() as u64;
    for appended in topics.appender().await?.append(appends).await {
        appended?;
    }
    Ok(submitted)
}

/// Waits until every job has its row in the lake, showing progress.
async fn drain(
    topics: &dyn Topics,
    config: &Config,
    policies: &Policies,
    submitted: u64,
) -> anyhow::Result<bool> {
    let names = &policies.topics;
    let groups = [
        (
            config.ingest.group.clone(),
            ingest::Service::subscription(policies),
        ),
        (
            processor::Service::group(&config.processor_service()),
            processor::Service::subscription(&config.processor.pool, names),
        ),
        (
            config.sink.group.clone(),
            Subscription::to(vec![TopicPattern::Under(names.outcomes_prefix())]),
        ),
    ];
    let template = "{bar:40} {pos} of {len} jobs, {elapsed}";
    let bar = ProgressBar::new(submitted)
        .with_style(ProgressStyle::with_template(template).expect("the template is a constant"));
    let mut tick = interval(Duration::from_millis(100));
    loop {
        tick.tick().await;
        // In the order of the flow: a job that moves on meanwhile is counted twice, never missed.
        let mut under_way = 0;
        for (group, subscription) in &groups {
            under_way += topics.lag(group, subscription).await?;
        }
        bar.set_length(submitted.max(under_way));
        bar.set_position(bar.length().unwrap_or(submitted).saturating_sub(under_way));
        if under_way == 0 {
            bar.finish_and_clear();
            return Ok(true);
        }
    }
}

async fn dead_letters(topics: &dyn Topics, policies: &Policies) -> anyhow::Result<u64> {
    let pattern = TopicPattern::Exact(policies.topics.dead_letters());
    Ok(topics.lag("nobody", &Subscription::to(vec![pattern])).await?)
}

fn queries(lake: &Path) -> String {
    let lake = lake.display();
    format!(
        r"
The lake is {lake}: plain Parquet. To look into it with DuckDB (python3 -m pip install duckdb), paste:

  -- how every job ended
  SELECT tenant, status, reason_code, count(*) AS jobs
  FROM read_parquet('{lake}/results/**/*.parquet') GROUP BY ALL ORDER BY ALL;

  -- what every tenant pays
  SELECT tenant, sum(BilledCost) AS cost, any_value(BillingCurrency) AS currency, sum(x_device_time_ns) AS device_ns
  FROM read_parquet('{lake}/costs/**/*.parquet') GROUP BY tenant ORDER BY tenant;

  -- semantic search: the texts of acme nearest in meaning to its job acme-0001
  WITH r AS (FROM read_parquet('{lake}/results/**/*.parquet') WHERE tenant = 'acme' AND status = 'succeeded')
  SELECT r.job_id, round(list_cosine_similarity(r.embedding, q.embedding), 3) AS likeness
  FROM r, (SELECT embedding FROM r WHERE job_id = 'acme-0001' LIMIT 1) AS q ORDER BY likeness DESC LIMIT 6;

To prove that no row is missing or doubled:  tributary verify {lake} --data"
    )
}
