//! The loop, and the threads that it feeds.
//!
//! ```text
//! Reader ─▶ lanes ─▶ window ─▶ prepare ─▶ device ─▶ commit
//!  router                    all cores    a core each
//! ```
//!
//! A few windows are under way at once, so that while the device runs one, the next is ready and the last ones are being
//! committed.

use std::{
    collections::BTreeMap,
    num::{NonZeroU32, NonZeroUsize},
    sync::Arc,
    time::Duration,
};

use schemas::{
    AdmittedJobs, DecodeError, Engine, ModelName, ModelTerms, Policies, Pool, Priority, Record as _, Shard,
    Tenant, TopicNames,
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::{JoinError, JoinSet},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use topics::{Chunk, Error, Event, Partition, Reader, Subscription, TopicPattern, Topics, offload};

use crate::{
    accounts::Accounts,
    attempts::Attempts,
    commit::{Cadence, commit},
    core::Core,
    device::Device,
    inference::Inference,
    lanes::{Budget, Lanes, Limits},
    metric_names,
    model::Model,
    outcomes::Context,
    pace::Pace,
    prepare::{Prepared, Reading, Settlement, Window, prepare},
    quotas::{Quota, WaitsFor},
};

/// Windows between the lanes and their commit: one that is made ready, two on the device, since the cores that are done
/// with one begin the next, and the others in a commit or waiting for one. Every channel on the way has room for all of them.
pub(crate) const WINDOWS_UNDER_WAY_MAX: usize = 8;

/// Windows that wait for the device: what has left the lanes can no longer be overtaken by a tenant whose turn it is.
const WINDOWS_AHEAD_MAX: usize = 1;

/// How a processor works.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The consumer group, to which the pool's name is added. Every processor of one pipeline has the same.
    pub group: String,
    /// Which tenants' work to do: those whose policy names this pool.
    pub pool: Pool,
    /// Which of the pool's shards it is: of those tenants it does the work of the ones that this shard serves. None: of all.
    pub shard: Option<Shard>,
    /// How long most windows should take at most, made ready and run. Longer lets more texts share a micro-batch; shorter lets
    /// turns come sooner.
    pub window_ms: u64,
    /// While more is under way, no commit begins sooner after the one before. Longer costs the broker less; shorter lets
    /// outcomes come sooner.
    pub commit_interval_ms: u64,
    /// A window has at most this many jobs, and is committed without waiting for another where it has them.
    pub window_jobs_max: usize,
    /// The same for the bytes of its records.
    pub window_bytes_max: usize,
    /// A window has jobs of at most this many tenants, because a commit takes longer for every topic that it touches.
    pub window_tenants_max: NonZeroUsize,
    /// Micro-batches that run at once, each on a core; none: as many as the models say is worth it.
    pub device_cores: Option<NonZeroUsize>,
    /// A micro-batch has at most this many tokens, padding included; none: as many as keep the device busy.
    pub batch_tokens_max: Option<usize>,
    /// A tenant with this many bytes waiting in memory is paused: its backlog waits on its topic.
    pub lane_bytes_max: usize,
    /// The same for all tenants together.
    pub lanes_bytes_max: usize,
}

/// A model and what it costs.
pub struct Served {
    /// The model.
    pub model: Model,
    /// What it does, and what it costs.
    pub terms: ModelTerms,
}

/// What the router hears of the windows that it gave away.
struct Heard {
    /// What each is worth.
    settlements: mpsc::Receiver<Settlement>,
    /// The number of the last one that was committed. It tells of all before it, so that whoever commits never waits for the
    /// router.
    committed: watch::Receiver<u64>,
    /// What the next one may take.
    budget: watch::Receiver<Budget>,
}

/// Turns admitted jobs into outcomes on a device.
pub struct Service {
    config: Config,
    topics: Arc<dyn Topics>,
    policies: watch::Receiver<Arc<Policies>>,
    context: Arc<Context>,
    device: Arc<Device>,
    device_cores: usize,
    batch_tokens_max: usize,
    /// The longest input of any model, in tokens.
    job_tokens_max: usize,
    attempts: Arc<Attempts>,
}

impl Service {
    /// Serves `models` to the tenants of one pool, by their weights in the `policies` of the moment. `run` tells this start
    /// from any other, in the ids of micro-batches; `attempts` finds jobs that kill the process.
    pub fn new(
        config: Config,
        topics: Arc<dyn Topics>,
        policies: watch::Receiver<Arc<Policies>>,
        models: BTreeMap<ModelName, Served>,
        attempts: Attempts,
        run: String,
    ) -> Self {
        let (mut readings, mut encoders) = (BTreeMap::new(), BTreeMap::new());
        let worthwhile = models.values().map(|served| served.model.encodings_at_once).max();
        let device_cores = config.device_cores.or(worthwhile).map_or(1, NonZeroUsize::get);
        let busy = models.values().map(|served| served.model.batch_tokens).max();
        let batch_tokens_max = config.batch_tokens_max.or(busy).unwrap_or(usize::MAX);
        let longest = models.values().map(|served| served.model.tokens_max).max();
        for (name, Served { model, terms }) in models {
            readings.insert(
                name.clone(),
                Reading {
                    tokenizer: model.tokenizer,
                    engine: Engine {
                        task: terms.task,
                        model_digest: model.digest,
                        model_dtype: Some(model.dtype.as_str().into()),
                        model_path: Some(model.path.into()),
                    },
                    terms,
                },
            );
            encoders.insert(name, model.encoder);
        }
        let fixed = Arc::clone(&policies.borrow());
        let context = Arc::new(Context {
            names: fixed.topics.clone(),
            models: readings,
            currency: fixed.currency.clone(),
        });
        let device = Arc::new(Device::new(encoders, run));
        Self {
            config,
            topics,
            policies,
            context,
            device,
            device_cores,
            batch_tokens_max,
            job_tokens_max: longest.unwrap_or(usize::MAX),
            attempts: Arc::new(attempts),
        }
    }

    /// The consumer group of the processors of `config`'s pool.
    pub fn group(config: &Config) -> String {
        format!("{}-{}", config.group, config.pool)
    }

    /// What the processors of `pool` read, all together.
    pub fn subscription(pool: &Pool, names: &TopicNames) -> Subscription {
        Subscription::to(
            Priority::ALL
                .map(|priority| TopicPattern::Under(names.work_prefix(pool, priority)))
                .into(),
        )
    }

    /// What this one reads.
    fn own_subscription(&self) -> Subscription {
        let (pool, names) = (&self.config.pool, &self.context.names);
        let Some(shard) = self.config.shard else {
            return Self::subscription(pool, names);
        };
        Subscription::to(
            Priority::ALL
                .map(|priority| TopicPattern::Sharded(names.work_prefix(pool, priority), shard))
                .into(),
        )
    }

    /// Works until `shutdown`, then finishes the windows under way, commits them and leaves the group. Calls `ready` once
    /// it reads.
    ///
    /// # Errors
    /// Those of the topics. After a retryable one, run again: it goes on from the committed positions.
    pub async fn run(
        &self,
        shutdown: CancellationToken,
        ready: &(dyn Fn() + Send + Sync),
    ) -> Result<(), Error> {
        let (mut reader, committer) = self
            .topics
            .stage(&Self::group(&self.config), &self.own_subscription())
            .await?;
        if let Some(Shard { number, of }) = self.config.shard {
            tracing::info!(
                shard = number,
                of = of.count,
                per_tenant = of.per_tenant,
                "serves a shard"
            );
            metrics::gauge!(metric_names::SHARD, "pool" => self.config.pool.to_string(), "shard" => number.to_string())
                .set(1.0);
        }
        ready();
        let most = Budget {
            jobs_max: self.config.window_jobs_max,
            bytes_max: self.config.window_bytes_max,
            lanes_max: self.config.window_tenants_max,
        };
        let pace = Pace::new(self.config.window_ms, most, FIRST_WINDOW_BYTES);
        let (budget_sender, budget) = watch::channel(pace.budget());
        let (windows, windows_receiver) = mpsc::channel(WINDOWS_UNDER_WAY_MAX);
        let (settlements, settlements_receiver) = mpsc::channel(WINDOWS_UNDER_WAY_MAX);
        let (prepared, prepared_receiver) = mpsc::channel(WINDOWS_UNDER_WAY_MAX);
        let (inferred, inferred_receiver) = mpsc::channel(WINDOWS_UNDER_WAY_MAX);
        let (committed_sender, committed) = watch::channel(0);
        let inference = Arc::new(Inference::new(
            Arc::clone(&self.device),
            Arc::clone(&self.attempts),
            self.device_cores,
            prepared_receiver,
            inferred,
            pace,
            budget_sender,
        ));
        let mut tasks = JoinSet::new();
        tasks.spawn(self.preparing(windows_receiver, settlements, prepared));
        for number in 0..self.device_cores {
            let inference = Arc::clone(&inference);
            tasks.spawn(async move {
                inference.work(Core::new(number)).await;
                Ok(())
            });
        }
        // The tasks alone hold the receiving ends.
        drop(inference);
        let accounts = Accounts::new(Arc::clone(&self.topics), Self::group(&self.config));
        let cadence = Cadence {
            interval: Duration::from_millis(self.config.commit_interval_ms),
            jobs_min: self.config.window_jobs_max,
            bytes_min: self.config.window_bytes_max,
        };
        let places = Arc::new(Semaphore::new(WINDOWS_UNDER_WAY_MAX));
        tasks.spawn(commit(
            inferred_receiver,
            committer,
            accounts,
            Arc::clone(&self.context),
            cadence,
            Arc::clone(&places),
            committed_sender,
        ));
        let heard = Heard {
            settlements: settlements_receiver,
            committed,
            budget,
        };
        let worked = async {
            tokio::select! {
                biased;
                Some(ended) = tasks.join_next() => result(ended)?,
                routed = self.route(reader.as_mut(), windows, places, heard, shutdown) => routed?,
            }
            while let Some(ended) = tasks.join_next().await {
                result(ended)?;
            }
            Ok(())
        };
        let worked = worked.await;
        // A run after this one has cores of the same numbers: it must not begin while micro-batches of these are on the device.
        tasks.shutdown().await;
        self.device.idle().await;
        self.attempts.all_ended();
        worked?;
        reader.close().await
    }

    /// Moves records into lanes and windows out of them, until `shutdown`. It never waits for the device, so that the
    /// reader is never left alone.
    async fn route(
        &self,
        reader: &mut dyn Reader,
        windows: mpsc::Sender<Window>,
        places: Arc<Semaphore>,
        mut heard: Heard,
        shutdown: CancellationToken,
    ) -> Result<(), Error> {
        let mut policies = self.policies.clone();
        let mut in_force = Arc::clone(&policies.borrow_and_update());
        let limits = Limits {
            lane_bytes_max: self.config.lane_bytes_max,
            all_bytes_max: self.config.lanes_bytes_max,
        };
        let mut lanes = Lanes::new(limits, self.job_tokens_max);
        let leads = Arc::new(Semaphore::new(WINDOWS_AHEAD_MAX));
        loop {
            release(&mut lanes, &in_force);
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                Some(settlement) = heard.settlements.recv() => settle(&mut lanes, &settlement),
                Ok(()) = heard.committed.changed() => lanes.committed(*heard.committed.borrow_and_update()),
                Ok(()) = policies.changed() => {
                    in_force = Arc::clone(&policies.borrow_and_update());
                    lanes.reweigh(|tenant| in_force.weight_of(tenant));
                    lanes.relimit(|tenant| quota(&in_force, tenant), Instant::now());
                }
                () = wait_until(lanes.next_release()) => {}
                (lead, place) = wanted(&leads, &places), if !lanes.is_empty() => {
                    let taken_at = Instant::now();
                    let taken = lanes.take(*heard.budget.borrow(), taken_at);
                    if windows.send(Window { taken, taken_at, place, lead }).await.is_err() {
                        return Ok(());
                    }
                    resume(&mut lanes, reader)?;
                    metrics::gauge!(metric_names::LANES_BYTES).set(lanes.bytes() as f64);
                }
                event = reader.next() => match event? {
                    Event::Assigned(partitions) => {
                        tracing::info!(?partitions, "partitions assigned");
                        let owners = partitions.iter().filter_map(|(partition, _)| self.owner_of(partition));
                        for (tenant, priority) in owners {
                            lanes.gain(&tenant, priority, quota(&in_force, &tenant), Instant::now());
                        }
                    }
                    Event::Revoked(partitions) => {
                        tracing::info!(?partitions, "partitions revoked");
                        lanes.forget(&partitions);
                        for (tenant, priority) in partitions.iter().filter_map(|partition| self.owner_of(partition)) {
                            lanes.lose(&tenant, priority, quota(&in_force, &tenant), Instant::now());
                        }
                        resume(&mut lanes, reader)?;
                    }
                    Event::Records(chunk) => {
                        refuse_other_versions(&chunk)?;
                        let partition = chunk.partition.clone();
                        let Some((tenant, priority)) = self.owner_of(&partition) else {
                            return Err(Error::Invalid {
                                what: format!("topic `{}`", partition.topic.name),
                                detail: "is among the work topics, and its name ends in no possible tenant: delete it".to_owned(),
                            });
                        };
                        let weight = in_force.weight_of(&tenant);
                        if lanes.push(&tenant, priority, weight, chunk, Instant::now()) {
                            reader.pause(&[partition])?;
                        }
                    }
                },
            }
        }
    }

    /// Whose work `partition` holds, and how urgent it is.
    fn owner_of(&self, partition: &Partition) -> Option<(Tenant, Priority)> {
        self.context
            .names
            .owner_of_work(&self.config.pool, &partition.topic.name)
    }

    /// Makes windows ready, one after the other, and tells the router what they are worth.
    fn preparing(
        &self,
        mut windows: mpsc::Receiver<Window>,
        settlements: mpsc::Sender<Settlement>,
        prepared: mpsc::Sender<Prepared>,
    ) -> impl Future<Output = Result<(), Error>> + use<> {
        let (context, batch_tokens_max) = (Arc::clone(&self.context), self.batch_tokens_max);
        let (attempts, device) = (Arc::clone(&self.attempts), Arc::clone(&self.device));
        async move {
            while let Some(window) = windows.recv().await {
                let context = Arc::clone(&context);
                let now_ms = chrono::Utc::now().timestamp_millis();
                let suspects = attempts.suspects();
                let batch_tokens_max = batch_tokens_max.min(device.batch_tokens_max());
                let (ready, settlement) =
                    offload(move || prepare(window, &context.models, &suspects, batch_tokens_max, now_ms))
                        .await;
                // The router has ended where nobody takes it; the windows under way are finished.
                let _ = settlements.send(settlement).await;
                if prepared.send(ready).await.is_err() {
                    break;
                }
            }
            Ok(())
        }
    }
}

/// Waits until the device will soon want a window, and there is a place for it.
async fn wanted(
    leads: &Arc<Semaphore>,
    places: &Arc<Semaphore>,
) -> (OwnedSemaphorePermit, OwnedSemaphorePermit) {
    let permit = async |of: &Arc<Semaphore>| Arc::clone(of).acquire_owned().await.expect("nobody closes it");
    (permit(leads).await, permit(places).await)
}

async fn wait_until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// What bounds `tenant`, over all processors.
fn quota(policies: &Policies, tenant: &Tenant) -> Option<Quota> {
    let policy = policies.tenants.get(tenant)?;
    Some(Quota {
        rate: policy.rate,
        concurrent_work_units_max: policy.concurrent_work_units_max,
        partitions: NonZeroU32::new(policy.partitions)?,
        priority_max: policy.priority_max,
    })
}

/// Lets lanes go on that need not wait any more for their quota.
fn release(lanes: &mut Lanes, policies: &Policies) {
    for waited in lanes.release(|tenant| policies.weight_of(tenant), Instant::now()) {
        let metric = match waited.waits_for {
            WaitsFor::Rate => metric_names::RATE_WAIT_MS,
            WaitsFor::Commit => metric_names::CONCURRENCY_WAIT_MS,
        };
        let waited_ms = u64::try_from(waited.took.as_millis()).unwrap_or(u64::MAX);
        metrics::counter!(metric, "tenant" => waited.tenant.to_string()).increment(waited_ms);
    }
}

/// Reads on where lanes have room again.
fn resume(lanes: &mut Lanes, reader: &mut dyn Reader) -> Result<(), Error> {
    let resumable = lanes.resumable();
    if resumable.is_empty() {
        return Ok(());
    }
    reader.resume(&resumable)
}

/// Charges the lanes of a window with what it is worth.
fn settle(lanes: &mut Lanes, settlement: &Settlement) {
    let now = Instant::now();
    let Settlement {
        number,
        works,
        backlogged,
    } = settlement;
    for (tenant, work) in works {
        lanes.settle(*number, tenant, *work, now);
        metrics::counter!(metric_names::WORK_UNITS, "tenant" => tenant.to_string()).increment(work.units);
    }
    if let Some(index) = backlogged.jain(|tenant| works[tenant].units) {
        metrics::histogram!(metric_names::FAIRNESS).record(index);
    }
}

/// What a task of the service ended with; its panic is passed on.
fn result(ended: Result<Result<(), Error>, JoinError>) -> Result<(), Error> {
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

/// Jobs of another version are good ones that an upgrade will read: better to stop than to call them dead.
fn refuse_other_versions(chunk: &Chunk) -> Result<(), Error> {
    for record in &chunk.records {
        if let Err(error @ DecodeError::UnknownVersion { .. }) =
            AdmittedJobs::body(record.value.as_deref().unwrap_or_default())
        {
            return Err(Error::Invalid {
                what: format!("{} at offset {}", chunk.partition, record.offset),
                detail: error.to_string(),
            });
        }
    }
    Ok(())
}

/// The size of a window before the device's speed is known, and the least size ever.
pub(crate) const FIRST_WINDOW_BYTES: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use rust_decimal::Decimal;
    use schemas::{
        AdmittedJob, JobId, Origin, Outcomes, Shards, Task, TenantPolicy, Tenants, TopicId, TopicName,
    };
    use topics::{Append, TopicSpec, local::LocalTopics};

    use super::*;
    use crate::model::{CpuPath, DeviceChoice, ModelConfig, load};

    fn service(topics: Arc<dyn Topics>, names: TopicNames, tenants: Tenants) -> Service {
        service_of(None, topics, names, tenants)
    }

    /// Its micro-batches are called by its shard.
    fn service_of(
        shard: Option<Shard>,
        topics: Arc<dyn Topics>,
        names: TopicNames,
        tenants: Tenants,
    ) -> Service {
        let config = Config {
            group: "processor".to_owned(),
            pool: Pool::default(),
            shard,
            window_ms: 10,
            commit_interval_ms: 10,
            window_jobs_max: 10,
            window_bytes_max: 1 << 20,
            window_tenants_max: NonZeroUsize::MAX,
            device_cores: None,
            batch_tokens_max: Some(100),
            lane_bytes_max: 1 << 20,
            lanes_bytes_max: 1 << 20,
        };
        let name = ModelName::new("minilm").unwrap();
        let model: ModelConfig =
            serde_json::from_value(serde_json::json!({ "source": "passthrough:8" })).unwrap();
        let served = Served {
            model: load(&name, &model, DeviceChoice::Cpu, CpuPath::Auto).unwrap(),
            terms: ModelTerms {
                task: Task::Embed,
                price_per_device_second: Decimal::ZERO,
            },
        };
        let policies = Policies {
            topics: names,
            tenants,
            models: BTreeMap::from([(name.clone(), served.terms.clone())]),
            pools: BTreeMap::new(),
            input_bytes_max: 1_000,
            currency: "USD".to_owned(),
        };
        let policies = watch::Sender::new(Arc::new(policies)).subscribe();
        let models = BTreeMap::from([(name, served)]);
        let attempts = Attempts::unrecorded();
        let run = shard.map_or("run".to_owned(), |shard| shard.number.to_string());
        Service::new(config, topics, policies, models, attempts, run)
    }

    fn names() -> TopicNames {
        TopicNames::new(&TopicName::new("jobs").unwrap(), "tributary.").unwrap()
    }

    /// A record of work with one job of `tenant`, for its first partition.
    fn work(tenant: &Tenant, offset: i64) -> Append {
        let job = AdmittedJob {
            origin: Origin {
                topic: names().jobs(),
                topic_id: TopicId::from_bytes([1; 16]),
                partition: 0,
                offset,
            },
            tenant: tenant.clone(),
            job_id: JobId::new("job").unwrap(),
            model: ModelName::new("minilm").unwrap(),
            input: "Where is my parcel?".to_owned(),
            text_pair: None,
            priority: None,
            submitted_at_ms: 0,
            deadline_ms: None,
            labels: BTreeMap::new(),
            trace_id: None,
        };
        Append {
            topic: names().work(&Pool::default(), Priority::Low, tenant),
            partition: Some(0),
            timestamp_ms: 0,
            key: None,
            value: Some(AdmittedJobs(vec![job]).encode().into()),
            headers: Vec::new(),
        }
    }

    async fn append(topics: &dyn Topics, records: impl Iterator<Item = Append>) {
        let appender = topics.appender().await.unwrap();
        for appended in appender.append(records.collect()).await {
            appended.unwrap();
        }
    }

    fn outcomes() -> Subscription {
        Subscription::to(vec![TopicPattern::Under(names().outcomes_prefix())])
    }

    #[tokio::test]
    async fn work_of_a_newer_version_stops_the_processor_before_it_is_lost() {
        let names = names();
        let work = names.work(&Pool::default(), Priority::Normal, &Tenant::new("acme").unwrap());
        let topics: Arc<dyn Topics> = Arc::new(LocalTopics::in_memory());
        let spec = |name| TopicSpec::new(name, 1);
        topics
            .ensure(&[spec(work.clone()), spec(names.dead_letters())])
            .await
            .unwrap();
        let newer = Append {
            topic: work,
            partition: Some(0),
            timestamp_ms: 0,
            key: None,
            value: Some(vec![AdmittedJobs::VERSION + 1, 0x80].into()),
            headers: Vec::new(),
        };
        append(&*topics, [newer].into_iter()).await;
        let service = service(Arc::clone(&topics), names, Tenants::new());
        let error = service.run(CancellationToken::new(), &|| {}).await.unwrap_err();
        assert!(!error.is_retryable(), "{error}");
        let text = error.to_string();
        assert!(
            text.contains("tributary.work.shared.acme[0] at offset 0")
                && text.contains("upgrade the readers first"),
            "{text}"
        );
        let subscription = Service::subscription(&Pool::default(), &service.context.names);
        let group = Service::group(&service.config);
        assert_eq!(
            topics.lag(&group, &subscription).await.unwrap(),
            1,
            "it is still there to be read"
        );
    }

    #[tokio::test]
    async fn a_tenant_of_which_one_record_at_a_time_may_be_under_way_has_its_next_one_run_at_each_commit() {
        const RECORDS: i64 = 20;
        let acme = Tenant::new("acme").unwrap();
        let topics: Arc<dyn Topics> = Arc::new(LocalTopics::in_memory());
        let needed = [
            names().work(&Pool::default(), Priority::Low, &acme),
            names().outcomes(&acme),
        ];
        topics
            .ensure(&needed.map(|name| TopicSpec::new(name, 1)))
            .await
            .unwrap();
        append(&*topics, (0..RECORDS).map(|offset| work(&acme, offset))).await;
        let policy = TenantPolicy {
            concurrent_work_units_max: Some(NonZeroU32::MIN),
            ..TenantPolicy::default()
        };
        let service = service(Arc::clone(&topics), names(), Tenants::from([(acme, policy)]));
        let shutdown = CancellationToken::new();
        let read = async {
            let mut reader = topics.reader("readers", &outcomes()).await.unwrap();
            let mut commits = 0;
            while commits < RECORDS as usize {
                // What one window became is one record.
                if let Event::Records(chunk) = reader.next().await.unwrap() {
                    commits += chunk.records.len();
                }
            }
            shutdown.cancel();
        };
        let both = async { tokio::join!(service.run(shutdown.clone(), &|| {}), read) };
        let (ran, ()) = tokio::time::timeout(Duration::from_secs(60), both)
            .await
            .expect("a lane waits for a commit that was");
        ran.unwrap();
    }

    #[tokio::test]
    async fn a_tenants_work_is_done_by_its_shards_alone_also_where_the_tenant_comes_later() {
        const RECORDS: i64 = 10;
        let of = Shards {
            count: 8.try_into().unwrap(),
            per_tenant: 2.try_into().unwrap(),
        };
        let tenants = ["acme", "globex", "initech"].map(|name| Tenant::new(name).unwrap());
        let [acme, globex, initech] = &tenants;
        let serving = tenants.each_ref().map(|tenant| of.serving(tenant.as_str()));
        assert_eq!(serving, [[1, 6], [1, 7], [3, 7]].map(BTreeSet::from));

        let topics: Arc<dyn Topics> = Arc::new(LocalTopics::in_memory());
        let comes = async |tenant: &Tenant| {
            let needed = [
                names().work(&Pool::default(), Priority::Low, tenant),
                names().outcomes(tenant),
            ];
            let specs = needed.map(|name| TopicSpec::new(name, 1));
            topics.ensure(&specs).await.unwrap();
            append(&*topics, (0..RECORDS).map(|offset| work(tenant, offset))).await;
        };
        comes(acme).await;
        let processors = [6, 7].map(|number| {
            let shard = Some(Shard { number, of });
            service_of(shard, Arc::clone(&topics), names(), Tenants::new())
        });
        let shutdown = CancellationToken::new();
        let read = async {
            let mut reader = topics.reader("readers", &outcomes()).await.unwrap();
            let mut served = BTreeMap::new();
            for (tenant, next) in [(acme, Some(globex)), (globex, Some(initech)), (initech, None)] {
                let mut jobs = 0;
                while jobs < RECORDS {
                    let Event::Records(chunk) = reader.next().await.unwrap() else {
                        continue;
                    };
                    for record in chunk.records {
                        for outcome in Outcomes::decode(&record.value.unwrap()).unwrap().unpack() {
                            assert_eq!(&outcome.common.tenant, tenant);
                            let batch = outcome.row.device.unwrap().batch_id;
                            let shard = batch.split('-').next().unwrap().to_owned();
                            served.entry(tenant).or_insert_with(BTreeSet::new).insert(shard);
                            jobs += 1;
                        }
                    }
                }
                if let Some(next) = next {
                    comes(next).await;
                }
            }
            shutdown.cancel();
            served
        };
        let ready = || {};
        let [first, second] = processors
            .each_ref()
            .map(|service| service.run(shutdown.clone(), &ready));
        let all = async { tokio::join!(first, second, read) };
        let (first, second, served) = tokio::time::timeout(Duration::from_secs(60), all)
            .await
            .expect("each tenant is served");
        first.unwrap();
        second.unwrap();
        let by = |number: &str| BTreeSet::from([number.to_owned()]);
        assert_eq!(
            served,
            BTreeMap::from([(acme, by("6")), (globex, by("7")), (initech, by("7"))])
        );
    }
}
