//! Kills what can be killed, at random moments and for as long as jobs come in, on a real Kafka and a real S3 server, and
//! then holds the lake to what was produced.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "it strikes at moments rather than on conditions, and reports to whoever started it"
)]

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use clap::{Parser, ValueEnum};
use stories::{
    Producer,
    cluster::{Cluster, Instance, TENANTS, text},
};

/// Instances of each service.
const INSTANCES: usize = 2;
/// A service that is stopped for longer than this is taken for dead by its group.
const SESSION: Duration = Duration::from_secs(10);
/// As many as let a run of the usual kills see the usual jobs.
const JOBS_PER_SECOND: u64 = 500;

/// Kills, stops and restarts services, broker and store while jobs come in; at the end each job must have one outcome.
#[derive(Parser)]
#[command(name = "chaos")]
struct Options {
    /// At least this many jobs. They come in until everything was killed often enough.
    #[arg(long, default_value_t = 20_000)]
    jobs: u64,
    /// kill -9 of a service, over all of them.
    #[arg(long, default_value_t = 20)]
    kills: u64,
    /// kill -9 of the broker.
    #[arg(long, default_value_t = 2)]
    broker_kills: u64,
    /// How the stages commit.
    #[arg(long, value_enum, default_value_t = Delivery::Transactional)]
    delivery: Delivery,
    /// Run the second sink in a group of its own, so that both own every partition.
    #[arg(long)]
    rival_sinks: bool,
    /// Decides what happens next. The moments are the machine's.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Delivery {
    Transactional,
    Idempotent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Blow {
    KillService,
    /// Stopped until its group takes it for dead, and then let go on.
    FreezeService,
    RestartService,
    KillBroker,
    StopBroker,
    KillStore,
    /// The network between a service and the broker, for longer than a session or shorter.
    CutBroker,
    /// The network between the services and the store.
    CutStore,
}

fn main() {
    let options = Options::parse();
    let began = Instant::now();
    let mut cluster = Cluster::servers("passthrough:384");
    let settings = vec![
        "--set".to_owned(),
        match options.delivery {
            Delivery::Transactional => "processor.delivery=transactional",
            Delivery::Idempotent => "processor.delivery=idempotent",
        }
        .to_owned(),
        "--set".to_owned(),
        "sink.flush_interval_ms=5000".to_owned(),
    ];
    let instances: Vec<Instance> = ["ingest", "processor", "sink"]
        .into_iter()
        .flat_map(|stage| (0..INSTANCES).map(move |number| (stage, number)))
        .collect();
    let of = |instance: Instance, settings: &[String]| {
        let mut more = settings.to_vec();
        if options.rival_sinks && instance == ("sink", 1) {
            more.extend(["--set".to_owned(), "sink.group=rival".to_owned()]);
        }
        more
    };
    for instance in &instances {
        spawn(&mut cluster, *instance, &of(*instance, &settings), true);
    }
    let mut producer = Producer::start(&cluster, &TENANTS, JOBS_PER_SECOND, 0);
    println!("logs: {}", cluster.keep_logs(true).display());
    let mut random = fastrand::Rng::with_seed(options.seed);
    let mut blows: BTreeMap<Blow, u64> = BTreeMap::new();
    let mut told = Instant::now();
    let struck = |blows: &BTreeMap<Blow, u64>, blow| blows.get(&blow).copied().unwrap_or_default();
    while struck(&blows, Blow::KillService) < options.kills
        || struck(&blows, Blow::KillBroker) < options.broker_kills
        || producer.produced() < options.jobs
    {
        thread::sleep(Duration::from_millis(random.u64(200..2_000)));
        let blow = next(&mut random, &options, &blows);
        let instance = instances[random.usize(0..instances.len())];
        let more = of(instance, &settings);
        match blow {
            Blow::KillService => {
                cluster.kill(instance);
                spawn(&mut cluster, instance, &more, false);
            }
            Blow::FreezeService => {
                cluster.signal(instance, "-STOP");
                thread::sleep(SESSION + Duration::from_secs(random.u64(0..5)));
                cluster.signal(instance, "-CONT");
            }
            Blow::RestartService => {
                cluster.end_one(instance);
                spawn(&mut cluster, instance, &more, false);
            }
            Blow::KillBroker => {
                cluster.kafka.kill();
                thread::sleep(Duration::from_millis(random.u64(0..3_000)));
                cluster.kafka.restart();
            }
            Blow::StopBroker => {
                cluster.kafka.signal("-STOP");
                thread::sleep(Duration::from_millis(random.u64(0..15_000)));
                cluster.kafka.signal("-CONT");
            }
            Blow::KillStore => {
                cluster.s3.kill();
                thread::sleep(Duration::from_millis(random.u64(0..3_000)));
                cluster.s3.restart();
            }
            Blow::CutBroker => {
                cluster.cut_from_broker(instance);
                thread::sleep(Duration::from_millis(random.u64(0..15_000)));
                cluster.heal_from_broker(instance);
            }
            Blow::CutStore => {
                cluster.cut_store();
                thread::sleep(Duration::from_millis(random.u64(0..15_000)));
                cluster.heal_store();
            }
        }
        *blows.entry(blow).or_default() += 1;
        let ended = cluster.ended();
        assert!(
            ended.is_empty(),
            "{ended:?} ended by themselves: see {}",
            cluster.folder.path().display()
        );
        if told.elapsed() > Duration::from_secs(20) {
            told = Instant::now();
            println!(
                "{:>5} s  {} jobs  {blows:?}",
                began.elapsed().as_secs(),
                producer.produced()
            );
        }
    }
    let jobs = producer.end();
    println!(
        "{:>5} s  {jobs} jobs are in, {blows:?}; waiting for the last outcome",
        began.elapsed().as_secs()
    );
    let recovering = Instant::now();
    cluster.wait_for_outcomes(jobs);
    let recovered = recovering.elapsed();
    cluster.wait_for_audited(jobs);
    cluster.end();

    let verified = cluster.verify(&["--data"]);
    print!("{}", text(&verified.stdout));
    assert!(verified.status.success(), "the lake is not sound");
    let seen = &cluster.read_lake()["duckdb"];
    for count in ["results", "costs", "joined", "distinct_origins"] {
        assert_eq!(seen[count], jobs, "{count}: {seen}");
    }
    assert_eq!(seen["bills_off"], 0);
    cluster.keep_logs(false);
    println!(
        "{jobs} jobs: 0 lost, 0 doubled, {blows:?}, in {} s; {} s from the last job to the last outcome",
        began.elapsed().as_secs(),
        recovered.as_secs()
    );
}

/// The broker in step with the services, and now and then something else.
fn next(random: &mut fastrand::Rng, options: &Options, blows: &BTreeMap<Blow, u64>) -> Blow {
    let struck = |blow| blows.get(&blow).copied().unwrap_or_default();
    if struck(Blow::KillBroker) * options.kills < struck(Blow::KillService) * options.broker_kills {
        return Blow::KillBroker;
    }
    match random.u8(0..100) {
        0..3 => Blow::FreezeService,
        3..7 => Blow::RestartService,
        7..10 => Blow::StopBroker,
        10..14 => Blow::KillStore,
        14..18 => Blow::CutBroker,
        18..21 => Blow::CutStore,
        _ => Blow::KillService,
    }
}

fn spawn(cluster: &mut Cluster, instance: Instance, more: &[String], wait: bool) {
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    if wait {
        cluster.spawn(instance, &more);
    } else {
        cluster.spawn_only(instance, &more);
    }
}
