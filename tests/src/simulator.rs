//! The real services under simulated faults, one schedule a seed.
//!
//! ```text
//!            ┌── ingest ── processor ── sink ──┐   two slots each; a slot starts its service over whenever it ended
//!  jobs ──▶  │   [`topics`]        [`store`]   │   every call passes a gate …
//!            └────────────── world ────────────┘   … that may fail it, before or after it is done, or kill, freeze, restart
//! ```
//!
//! The services are the ones that run in production. Their topics are `local` ones in memory, their lake is an object store
//! in memory, and their clock stands still while anything runs: a day of waiting takes no time. All tasks share one thread,
//! and whatever goes wrong is a function of the seed and of the number of the step, so a seed gives the same run again.

mod mutation;
mod shrink;
mod slots;
mod store;
mod topics;
mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ::topics::{Append, Event, Progress, Topics as _, local::LocalTopics};
use rust_decimal::Decimal;
use schemas::{
    Budget, ModelName, ModelTerms, Policies, Pool, Priority, Rate, Task, Tenant, TenantPolicy, TopicName,
    TopicNames,
};
use sink::{Depth, Store, object_store::memory::InMemory};
use tokio::sync::watch;

pub use mutation::Mutation;
pub use shrink::shortest;
pub use world::Fault;
use world::World;

use crate::invariants::{Expected, violations, violations_of_audit};

/// Jobs are produced in this many bursts.
const BURSTS: u64 = 6;
/// Faults end after this much simulated time, so that the services can be seen to recover.
const FAULTS_FOR: Duration = Duration::from_secs(300);
/// What is not in the lake this long after the faults ended never will be.
const RECOVERY_LIMIT: Duration = Duration::from_secs(3_600);
const PARTITIONS: u32 = 2;
/// Readers get so many records at once: a backlog comes whole, or while a stage is at other steps.
const CHUNK_RECORDS_MAX: [usize; 3] = [1, 4, 1_000];

/// What is simulated.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Decides on everything that is left open.
    pub seed: u64,
    /// A way in which the protocol is done wrong.
    pub mutation: Option<Mutation>,
    /// At these steps nothing goes wrong, whatever the seed says.
    pub spared: Vec<u64>,
}

/// What came of a plan.
#[derive(Debug)]
pub struct Ran {
    /// Each promise that was broken; empty if all was well.
    pub violations: Vec<String>,
    /// Every step, in order.
    pub trace: Vec<String>,
    /// What went wrong on purpose, and at which step.
    pub faults: Vec<(u64, Fault)>,
    /// Outcomes in the lake.
    pub outcomes: u64,
}

/// Runs a plan to its end.
pub fn run(plan: &Plan) -> Ran {
    // The services' own jitter comes from the generator of this thread.
    fastrand::seed(plan.seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O needs nothing of the system");
    runtime.block_on(simulate(plan))
}

/// What every service of a run shares.
struct Scene {
    world: Arc<World>,
    topics: LocalTopics,
    lake: Arc<InMemory>,
    /// All tenants that there are.
    policies: Policies,
    /// Some or all of them, in one pool or the other, as the slots of each number know them now.
    in_force: [InForce; slots::INSTANCES],
}

/// What some instances go by. Each has a channel of its own, since those that wait for one are woken in a random order.
struct InForce(Mutex<(Arc<Policies>, Vec<Channel>)>);

type Channel = watch::Sender<Arc<Policies>>;

impl InForce {
    fn new(policies: Policies) -> Self {
        Self(Mutex::new((Arc::new(policies), Vec::new())))
    }

    fn subscribe(&self) -> watch::Receiver<Arc<Policies>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = watch::Sender::new(Arc::clone(&known.0));
        let receiver = sender.subscribe();
        known.1.push(sender);
        receiver
    }

    fn replace(&self, policies: &Arc<Policies>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.0 = Arc::clone(policies);
        known
            .1
            .retain(|instance| instance.send(Arc::clone(policies)).is_ok());
    }
}

async fn simulate(plan: &Plan) -> Ran {
    let world = World::new(plan);
    let chunk_records_max = world
        .random("chunks")
        .choice(CHUNK_RECORDS_MAX)
        .expect("there are some");
    let scene = Arc::new(Scene {
        world: Arc::new(world),
        topics: LocalTopics::in_memory_like_kafka(chunk_records_max),
        lake: Arc::new(InMemory::new()),
        policies: policies(plan.seed),
        in_force: [(); slots::INSTANCES].map(|()| InForce::new(policies(plan.seed))),
    });
    let names = &scene.policies.topics;
    let mut specs: Vec<_> = pools()
        .flat_map(|pool| ingest::Service::topic_specs(&moved(&scene.policies, &pool)))
        .collect();
    specs.extend([names.jobs(), names.jobs_of(&acme())].map(of_jobs));
    scene.topics.ensure(&specs).await.expect("nothing fails here");
    let slots = slots::open(&scene);
    let expected = produce(&scene, plan.seed).await;
    let mut violations = Vec::new();
    if let Err(stuck) = settle(&scene).await {
        violations.push(stuck);
    }
    drop(slots);
    scene.world.end();
    violations.extend(scene.world.take_violations());
    let outcomes = look(&scene, &expected, &mut violations).await;
    let (trace, faults) = scene.world.take_story();
    Ran {
        violations,
        trace,
        faults,
        outcomes,
    }
}

/// Puts jobs on the topics, in bursts, past the faults: producers are not what is tested. Now and then, when all jobs were
/// read, their topic is deleted and created again. Tenants come and go between the bursts, and move from pool to pool, while jobs
/// are under way.
async fn produce(scene: &Scene, seed: u64) -> Expected {
    let mut random = fastrand::Rng::with_seed(seed ^ 0x6a6f_6273);
    let producer = scene.topics.appender().await.expect("nothing fails here");
    let mut expected = Expected::default();
    let names = &scene.policies.topics;
    let mut number = 0;
    for _ in 0..BURSTS {
        let count = random.u64(1..12);
        let burst = (0..count).map(|_| {
            number += 1;
            let value = match random.u8(0..10) {
                0 => {
                    expected.dead_letters += 1;
                    format!("job {number} is no JSON")
                }
                kind => {
                    expected.outcomes += 1;
                    let input = if kind == 1 {
                        String::new()
                    } else {
                        format!("text {number} {}", "x".repeat(random.usize(0..200)))
                    };
                    let tenant = if random.bool() { "acme" } else { "globex" };
                    let priority = ["low", "normal", "high"][random.usize(0..3)];
                    format!(
                        r#"{{"id":"j{number}","tenant":"{tenant}","model":"minilm","priority":"{priority}","input":"{input}"}}"#
                    )
                }
            };
            let topic = if value.contains("acme") && random.bool() {
                names.jobs_of(&acme())
            } else {
                names.jobs()
            };
            Append {
                topic,
                partition: Some(i32::try_from(random.u32(0..PARTITIONS)).expect("few partitions")),
                timestamp_ms: 0,
                key: None,
                value: Some(value.into()),
                headers: Vec::new(),
            }
        });
        for appended in producer.append(burst.collect()).await {
            appended.expect("nothing fails here");
        }
        let reloaded = Arc::new(reloaded(&scene.policies, &mut random));
        for in_force in &scene.in_force {
            in_force.replace(&reloaded);
            tokio::time::sleep(Duration::from_millis(random.u64(0..3_000))).await;
        }
        let subscription = ingest::Service::subscription(&scene.policies);
        let jobs_wait = scene.topics.lag(slots::INGEST, &subscription);
        if random.u8(0..10) == 0 && jobs_wait.await.expect("nothing fails here") == 0 {
            scene.topics.delete(&names.jobs()).await.expect("it is there");
            scene
                .topics
                .ensure(&[of_jobs(names.jobs())])
                .await
                .expect("nothing fails here");
        }
    }
    expected
}

/// Without some of the tenants, as a reload leaves them: their jobs are rejected, and what is under way goes on. The others
/// have new weights, ceilings and limits, and new jobs of theirs go to a pool that may be another than before.
fn reloaded(policies: &Policies, random: &mut fastrand::Rng) -> Policies {
    let mut reloaded = policies.clone();
    reloaded.tenants.retain(|_, _| random.u8(0..4) > 0);
    for policy in reloaded.tenants.values_mut() {
        policy.weight = NonZeroU32::new(random.u32(1..4)).expect("not zero");
        policy.pool = pools().nth(random.usize(0..2)).expect("one of two");
        policy.priority_max = Priority::ALL[random.usize(0..3)];
        if policy.concurrent_work_units_max.is_some() {
            policy.concurrent_work_units_max = NonZeroU32::new(random.u32(0..200));
        }
    }
    reloaded
}

/// With all tenants in `pool`.
fn moved(policies: &Policies, pool: &Pool) -> Policies {
    let mut moved = policies.clone();
    for policy in moved.tenants.values_mut() {
        policy.pool = pool.clone();
    }
    moved
}

fn pools() -> impl Iterator<Item = Pool> {
    [Pool::default(), Pool::new("gold").expect("a name")].into_iter()
}

fn of_jobs(name: TopicName) -> ::topics::TopicSpec {
    ::topics::TopicSpec::new(name, PARTITIONS)
}

/// Waits until everything is in the lake, faults and the frozen having had their time.
async fn settle(scene: &Scene) -> Result<(), String> {
    let world = &scene.world;
    let faults_end = tokio::time::Instant::now() + FAULTS_FOR;
    while waiting(scene).await > 0 && tokio::time::Instant::now() < faults_end {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    world.quieten();
    let limit = tokio::time::Instant::now() + RECOVERY_LIMIT;
    loop {
        tokio::time::sleep(world::FROZEN_FOR_MAX * 2).await;
        let waiting = waiting(scene).await;
        if waiting == 0 {
            return Ok(());
        }
        if tokio::time::Instant::now() > limit {
            return Err(format!(
                "stuck: {waiting} records still wait {} s after the last fault",
                RECOVERY_LIMIT.as_secs()
            ));
        }
    }
}

/// The records that some stage has yet to commit.
async fn waiting(scene: &Scene) -> u64 {
    let policies = &scene.policies;
    let mut stages = vec![
        (slots::INGEST.to_owned(), ingest::Service::subscription(policies)),
        (
            slots::SINK.to_owned(),
            sink::Service::subscription(&policies.topics),
        ),
    ];
    stages.extend(pools().map(|pool| {
        let subscription = processor::Service::subscription(&pool, &policies.topics);
        (format!("{}-{pool}", slots::PROCESSOR), subscription)
    }));
    let mut waiting = 0;
    for (group, subscription) in stages {
        waiting += scene
            .topics
            .lag(&group, &subscription)
            .await
            .expect("nothing fails here");
    }
    waiting
}

async fn look(scene: &Scene, expected: &Expected, violated: &mut Vec<String>) -> u64 {
    let lake = Store::over(Arc::clone(&scene.lake) as _, "memory");
    let letters = records(scene, scene.policies.topics.dead_letters()).await;
    let looked = async {
        let report = sink::verify_store(&lake, Depth::Rows).await?;
        Ok::<_, sink::Error>((report, sink::verify_audit_of(&lake, &[]).await?))
    };
    match looked.await {
        Ok((report, audit)) => {
            violated.extend(violations(&report, letters, expected));
            violated.extend(violations_of_audit(&audit, &report, letters));
            report.outcomes()
        }
        Err(error) => {
            violated.push(format!("the lake cannot be read: {error}"));
            0
        }
    }
}

/// How many records `topic` has.
async fn records(scene: &Scene, topic: TopicName) -> u64 {
    let group = "nobody";
    let only = ::topics::Subscription::to(vec![::topics::TopicPattern::Exact(topic)]);
    let reader = scene.topics.reader(group, &only).await;
    let (mut reader, mut records) = (reader.expect("nothing fails here"), 0);
    while scene.topics.lag(group, &only).await.expect("nothing fails here") > 0 {
        if let Event::Records(chunk) = reader.next().await.expect("nothing fails here") {
            records += chunk.records.len() as u64;
            let end = chunk.records.last().map_or(0, |record| record.offset + 1);
            let read = Progress::from([(chunk.partition, end)]);
            reader.commit(&read).await.expect("nothing fails here");
        }
    }
    records
}

/// Some seeds have quotas. A budget is spent with the first bill: what the device takes is no function of the seed.
fn policies(seed: u64) -> Policies {
    let few = NonZeroU32::new(2).expect("not zero");
    let rate = Rate {
        work_units_per_s: few,
        burst_work_units: NonZeroU32::new(40),
    };
    let budget = Budget {
        per_day: None,
        per_month: Some(Decimal::new(1, 18)),
    };
    let tenant = TenantPolicy {
        partitions: PARTITIONS,
        rate: seed.is_multiple_of(3).then_some(rate),
        concurrent_work_units_max: seed.is_multiple_of(7).then_some(few),
        queue_records_max: seed.is_multiple_of(5).then_some(few),
        priority_max: Priority::High,
        ..TenantPolicy::default()
    };
    let of_little_money = TenantPolicy {
        budget: seed.is_multiple_of(4).then_some(budget),
        ..tenant.clone()
    };
    let terms = ModelTerms {
        task: Task::Embed,
        price_per_device_second: Decimal::ONE,
    };
    let jobs = TopicName::new("jobs").expect("a name");
    Policies {
        topics: TopicNames::new(&jobs, "t.").expect("names"),
        tenants: BTreeMap::from([(acme(), tenant), (globex(), of_little_money)]),
        models: BTreeMap::from([(minilm(), terms)]),
        pools: pools()
            .map(|pool| (pool, Some(BTreeSet::from([minilm()]))))
            .collect(),
        input_bytes_max: 1_000,
        currency: "USD".to_owned(),
    }
}

fn acme() -> Tenant {
    Tenant::new("acme").expect("a name")
}

fn globex() -> Tenant {
    Tenant::new("globex").expect("a name")
}

fn minilm() -> ModelName {
    ModelName::new("minilm").expect("a name")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(seed: u64) -> Plan {
        Plan {
            seed,
            mutation: None,
            spared: Vec::new(),
        }
    }

    #[test]
    fn a_seed_gives_the_same_run_again() {
        for seed in 0..20 {
            let (once, again) = (run(&plan(seed)), run(&plan(seed)));
            assert_eq!(once.trace, again.trace, "seed {seed}");
        }
    }

    #[test]
    fn whatever_goes_wrong_each_job_has_one_outcome() {
        for seed in 0..200 {
            let ran = run(&plan(seed));
            assert!(ran.violations.is_empty(), "seed {seed}: {:#?}", ran.violations);
        }
    }

    #[test]
    fn a_run_without_faults_is_sound_too() {
        let spared = (0..100_000).collect();
        let ran = run(&Plan { spared, ..plan(1) });
        assert!(
            ran.violations.is_empty() && ran.faults.is_empty(),
            "{:#?}",
            ran.violations
        );
        assert!(ran.outcomes > 0);
    }
}
