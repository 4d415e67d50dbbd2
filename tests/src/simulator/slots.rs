//! Slots: each runs one service, and starts it over whenever it ended.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
    time::Duration,
};

use authority::AccessPolicies;
use ingest::identity::Identity;
use processor::model::{CpuPath, DeviceChoice, load};
use schemas::{Authority, Policies, Pool, Shard, Shards};
use sink::Store;
use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
};

use super::{
    Scene, minilm, pools,
    store::GatedStore,
    topics::GatedTopics,
    world::{FROZEN_FOR_MAX, Instance, Life, World},
};

pub(super) const INGEST: &str = "ingest";
pub(super) const PROCESSOR: &str = "processor";
pub(super) const SINK: &str = "sink";
/// How long a supervisor waits before it starts a service again.
const START_AFTER: Duration = Duration::from_millis(200);
/// Instances of each service, of processors in each pool.
pub(super) const INSTANCES: usize = 2;

static AUTHORITY: LazyLock<Arc<dyn Authority>> = LazyLock::new(|| Arc::new(AccessPolicies::built_in()));

/// What a slot runs.
#[derive(Clone)]
enum Stage {
    Ingest,
    Processor(Pool),
    Sink,
}

impl Stage {
    fn name(&self) -> String {
        match self {
            Self::Ingest => INGEST.to_owned(),
            Self::Processor(pool) => format!("{PROCESSOR}-{pool}"),
            Self::Sink => SINK.to_owned(),
        }
    }
}

/// How a service ended: by itself, with an error that starting over may help, or with one that it cannot help.
enum End {
    Asked,
    Passing(String),
    ForGood(String),
}

/// Opens the slots of all services. They run until what is given back is dropped.
pub(super) fn open(scene: &Arc<Scene>) -> JoinSet<()> {
    let mut slots = JoinSet::new();
    let processors = pools().map(Stage::Processor);
    for stage in [Stage::Ingest, Stage::Sink].into_iter().chain(processors) {
        for number in 0..INSTANCES {
            slots.spawn(run(Arc::clone(scene), stage.clone(), number));
        }
    }
    slots
}

async fn run(scene: Arc<Scene>, stage: Stage, number: usize) {
    let world = &scene.world;
    let mut zombies = JoinSet::new();
    for start in 1_u64.. {
        let instance = Instance::new(format!("{}-{number}.{start}", stage.name()));
        let served = serve(Arc::clone(&scene), stage.clone(), number, Arc::clone(&instance));
        let mut process = Process(tokio::spawn(served));
        tokio::select! {
            biased;
            () = instance.until(|life| life != Life::Runs) => match instance.life() {
                Life::Frozen => drop(zombies.spawn(haunt(Arc::clone(&scene), instance, process))),
                _ => world.tell(&instance, "is dead"),
            },
            ended = &mut process.0 => match end(ended) {
                End::Asked if instance.shutdown.is_cancelled() => world.tell(&instance, "has ended"),
                End::Asked => world.violated(format!("{} ended, and nobody asked it to", instance.name)),
                End::Passing(error) => {
                    world.tell(&instance, &format!("starts over: {error}"));
                    tokio::time::sleep(START_AFTER).await;
                }
                End::ForGood(error) => {
                    if !world.has_ended() {
                        world.violated(format!("{} stopped for good: {error}", instance.name));
                    }
                    return std::future::pending().await;
                }
            },
        }
        tokio::time::sleep(START_AFTER).await;
    }
}

/// A process that is killed when this is dropped.
struct Process(tokio::task::JoinHandle<End>);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Lets a frozen process go on after a while, and kills it after another.
async fn haunt(scene: Arc<Scene>, instance: Arc<Instance>, mut process: Process) {
    let mut random = scene.world.random(&instance.name);
    let longest_ms = FROZEN_FOR_MAX.as_millis() as u64;
    tokio::time::sleep(Duration::from_millis(random.u64(0..longest_ms))).await;
    scene.world.tell(&instance, "goes on, taken for dead");
    instance.become_(Life::Zombie);
    let lives_on = tokio::time::sleep(Duration::from_millis(random.u64(0..longest_ms)));
    tokio::select! {
        biased;
        ended = &mut process.0 => if let End::ForGood(error) = end(ended) {
            scene.world.violated(format!("{} stopped for good, taken for dead: {error}", instance.name));
        },
        () = lives_on => instance.become_(Life::Dead),
    }
}

fn end(ended: Result<End, JoinError>) -> End {
    ended.unwrap_or_else(|panic| End::ForGood(format!("it panicked: {panic}")))
}

async fn serve(scene: Arc<Scene>, stage: Stage, number: usize, instance: Arc<Instance>) -> End {
    let world = Arc::clone(&scene.world);
    let topics = Arc::new(GatedTopics {
        inner: scene.topics.clone(),
        world: Arc::clone(&world),
        instance: Arc::clone(&instance),
        policies: Arc::new(scene.policies.clone()),
    });
    let (shutdown, policies) = (instance.shutdown.clone(), &scene.policies);
    let in_force = scene.in_force[number].subscribe();
    let ended = match stage {
        Stage::Ingest => {
            let config = ingest::Config {
                group: INGEST.to_owned(),
                linger_ms: 5,
                commit_interval_ms: 100,
                commit_records_max: 7,
                commit_bytes_max: 1 << 20,
            };
            let no_token = watch::Sender::new(Arc::new(Identity::nowhere())).subscribe();
            let groups: ingest::GroupOf = Arc::new(|pool| format!("{PROCESSOR}-{pool}"));
            let authority = watch::Sender::new(Arc::clone(&*AUTHORITY)).subscribe();
            let service = ingest::Service::new(config, topics, in_force, no_token, authority, groups);
            service
                .run(shutdown, &|| {})
                .await
                .map_err(|error| topics_error(&error))
        }
        Stage::Processor(pool) => processor(&scene, topics, pool, number, in_force, &instance.name)
            .run(shutdown, &|| {})
            .await
            .map_err(|error| topics_error(&error)),
        Stage::Sink => {
            let lake = GatedStore {
                inner: Arc::clone(&scene.lake),
                world: Arc::clone(&world),
                instance: Arc::clone(&instance),
            };
            let mut random = world.random(&instance.name);
            let config = sink::Config {
                group: SINK.to_owned(),
                url: "memory".to_owned(),
                flush_interval_ms: random.u64(1..5_000),
                file_bytes_max: random.usize(500..4_000),
                memory_bytes_max: random.usize(4_000..20_000),
                options: BTreeMap::new(),
            };
            let store = Store::over(Arc::new(lake), "memory");
            let service = sink::Service::over(config, topics, policies.topics.clone(), store);
            service
                .run(shutdown, &|| {})
                .await
                .map_err(|error| (error.is_retryable(), error.to_string()))
        }
    };
    match ended {
        Ok(()) => End::Asked,
        Err((true, error)) => End::Passing(error),
        Err((false, error)) => End::ForGood(error),
    }
}

fn topics_error(error: &::topics::Error) -> (bool, String) {
    (error.is_retryable(), error.to_string())
}

fn processor(
    scene: &Scene,
    topics: Arc<GatedTopics>,
    pool: Pool,
    number: usize,
    in_force: watch::Receiver<Arc<Policies>>,
    run: &str,
) -> processor::Service {
    let config = processor::Config {
        group: PROCESSOR.to_owned(),
        pool,
        shard: shard(&scene.world, number),
        window_ms: 10,
        commit_interval_ms: 10,
        window_jobs_max: 5,
        // Below the least window, so that the device's speed, which is no function of the seed, decides nothing.
        window_bytes_max: 2_048,
        window_tenants_max: std::num::NonZeroUsize::MIN,
        device_cores: std::num::NonZeroUsize::new(2),
        batch_tokens_max: Some(60),
        lane_bytes_max: 2_000,
        lanes_bytes_max: 6_000,
    };
    let model =
        serde_json::from_value(serde_json::json!({ "source": "passthrough:4" })).expect("a source is enough");
    let served = processor::Served {
        model: load(&minilm(), &model, DeviceChoice::Cpu, CpuPath::Auto)
            .expect("the stand-in needs no files"),
        terms: scene.policies.models[&minilm()].clone(),
    };
    let models = BTreeMap::from([(minilm(), served)]);
    processor::Service::new(
        config,
        topics,
        in_force,
        models,
        processor::Attempts::unrecorded(),
        run.to_owned(),
    )
}

/// Which shard the processors in the slots of this number are. In some runs each is for everybody; in some one is for `acme`
/// alone and one for `globex`, in some one is for both.
fn shard(world: &World, slot: usize) -> Option<Shard> {
    let numbers = [None, Some([6, 7]), Some([1, 7])];
    let of = Shards {
        count: 8.try_into().expect("not zero"),
        per_tenant: 2.try_into().expect("not zero"),
    };
    numbers[world.random("shards").usize(0..numbers.len())].map(|numbers| Shard {
        number: numbers[slot],
        of,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_for_whom_they_are_said_to_be() {
        let of = |number| {
            let shard = Shard {
                number,
                of: Shards {
                    count: 8.try_into().unwrap(),
                    per_tenant: 2.try_into().unwrap(),
                },
            };
            ["acme", "globex"].map(|tenant| shard.serves(tenant))
        };
        assert_eq!([1, 6, 7].map(of), [[true, true], [true, false], [false, true]]);
    }
}
