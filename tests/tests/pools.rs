//! Whose processors run what, while jobs come in and processors are killed: a tenant moves from pool to pool and back, and the
//! processors of a pool are of different shards.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Output;

use stories::{
    Producer,
    cluster::{Cluster, Instance, text, wait_for},
};

const SHARED: Instance = ("processor", 0);
const GOLD: Instance = ("processor", 1);
const INGESTS: [Instance; 2] = [("ingest", 0), ("ingest", 1)];

#[test]
fn a_tenant_that_moves_between_pools_while_processors_are_killed_loses_nothing_and_repeats_nothing() {
    let mut cluster = Cluster::servers("passthrough:384");
    configure(&cluster, "");
    assert!(tenants(&cluster, "apply", "shared").status.success());
    for instance in INGESTS.into_iter().chain([SHARED, GOLD, ("sink", 0)]) {
        spawn(&mut cluster, instance);
    }
    let producer = Producer::start(&cluster, &["acme", "globex"], 1_000, 0);

    // What is killed first leaves jobs of its pool undone while their tenant moves away from it.
    for (pool, old, new) in [
        ("gold", SHARED, GOLD),
        ("shared", GOLD, SHARED),
        ("gold", SHARED, GOLD),
        ("shared", GOLD, SHARED),
    ] {
        goes_on(&cluster, SHARED);
        let before = INGESTS.map(|ingest| cluster.metric(ingest, "tributary_tenant_sets_total"));
        cluster.kill(old);
        let decided = || INGESTS.map(|ingest| cluster.metric(ingest, "tributary_ingest_decided_total"));
        let jobs: u64 = decided().iter().sum();
        wait_for("jobs to wait in the old pool", || {
            decided().iter().sum::<u64>() > jobs + 2_000
        });
        let applied = tenants(&cluster, "apply", pool);
        assert!(applied.status.success(), "{}", text(&applied.stderr));
        let left = format!(
            "tributary.work.{}.low.acme, about ",
            if pool == "gold" { "shared" } else { "gold" }
        );
        assert!(text(&applied.stdout).contains(&left), "{}", text(&applied.stdout));
        wait_for("both ingests to take the move", || {
            INGESTS.map(|ingest| cluster.metric(ingest, "tributary_tenant_sets_total"))
                == before.map(|sets| sets + 1)
        });
        goes_on(&cluster, new);
        spawn(&mut cluster, old);
        cluster.kill(new);
        spawn(&mut cluster, new);
        goes_on(&cluster, new);
        wait_for("nothing to be left in the old pool", || {
            !text(&tenants(&cluster, "plan", pool).stdout).contains(&left)
        });
    }
    let jobs = producer.end();
    ends_with(&mut cluster, jobs);
}

#[test]
fn a_shard_without_a_processor_holds_up_its_tenants_alone_and_a_tenant_that_comes_is_served_by_its_own() {
    const JOBS: u64 = 100;
    // With 8 shards, two a tenant, `acme` has 1 and 6, `globex` 1 and 7, `initech` 3 and 7.
    const OF_ACME: Instance = ("processor", 6);
    const OF_THE_OTHERS: Instance = ("processor", 7);
    let mut cluster = Cluster::servers("passthrough:384");
    configure(
        &cluster,
        "[pools.shared]\nshards = { count = 8, per_tenant = 2 }\n",
    );
    let two = "[tenants.acme]\npartitions = 3\n[tenants.globex]\npartitions = 3\n";
    assert!(with_tenants(&cluster, "apply", two).status.success());
    let shard = |cluster: &mut Cluster, processor: Instance| {
        let setting = format!("processor.shard={}", processor.1);
        cluster.spawn(processor, &["--set", &setting]);
    };
    for service in [INGESTS[0], ("sink", 0)] {
        cluster.spawn(service, &[]);
    }
    for processor in [OF_ACME, OF_THE_OTHERS] {
        shard(&mut cluster, processor);
    }
    let producer = Producer::start(&cluster, &["acme", "globex"], 1_000, 0);
    goes_on(&cluster, OF_ACME);
    cluster.kill(OF_ACME);
    goes_on(&cluster, OF_THE_OTHERS);

    let three = format!("{two}[tenants.initech]\n");
    let sets = cluster.metric(INGESTS[0], "tributary_tenant_sets_total");
    assert!(with_tenants(&cluster, "apply", &three).status.success());
    wait_for("ingest to know the third tenant", || {
        cluster.metric(INGESTS[0], "tributary_tenant_sets_total") > sets
    });
    let jobs = cluster.folder.path().join("initech.jsonl");
    let job =
        |number| format!(r#"{{"id":"{number}","tenant":"initech","model":"minilm","input":"x"}}"#) + "\n";
    std::fs::write(&jobs, (0..JOBS).map(job).collect::<String>()).unwrap();
    cluster.produce_lines("jobs", &jobs);
    let outcomes_of = |cluster: &Cluster, tenant| {
        let of_tenant = format!("tributary_processor_outcomes_total{{tenant=\"{tenant}\"");
        cluster.metric(OF_THE_OTHERS, &of_tenant)
    };
    wait_for("the third tenant's jobs to run", || {
        outcomes_of(&cluster, "initech") >= JOBS
    });
    goes_on(&cluster, OF_THE_OTHERS);
    assert_eq!(outcomes_of(&cluster, "acme"), 0, "it waits for its shards");

    shard(&mut cluster, OF_ACME);
    goes_on(&cluster, OF_ACME);
    let jobs = producer.end() + JOBS;
    assert_eq!(outcomes_of(&cluster, "acme"), 0);
    ends_with(&mut cluster, jobs);
}

/// Leaves the tenants out of the configuration, and puts `more` into it.
fn configure(cluster: &Cluster, more: &str) {
    let config = cluster.folder.path().join("tributary.toml");
    let whole = std::fs::read_to_string(&config).unwrap();
    let without_tenants = &whole[..whole.find("[tenants.").unwrap()];
    std::fs::write(&config, format!("{without_tenants}{more}")).unwrap();
}

/// Waits until each of so many `jobs` has its outcome in the lake, and sees that it has no more than that.
fn ends_with(cluster: &mut Cluster, jobs: u64) {
    cluster.wait_for_outcomes(jobs);
    cluster.end();
    let verified = cluster.verify(&["--data"]);
    assert!(verified.status.success(), "{}", text(&verified.stdout));
    let seen = &cluster.read_lake()["duckdb"];
    for count in ["results", "costs", "joined", "distinct_origins"] {
        assert_eq!(seen[count], jobs, "{count}: {seen}");
    }
    assert_eq!(seen["unbalanced_batches"], 0);
}

fn spawn(cluster: &mut Cluster, instance: Instance) {
    let settings: &[&str] = match instance {
        GOLD => &[
            "--set",
            "processor.pool=gold",
            "--set",
            "pools.gold.prices.minilm=0.0005",
        ],
        _ => &[],
    };
    cluster.spawn(instance, settings);
}

/// `tributary tenants <command>` with `acme` in `pool`; the other tenant stays in the shared one.
fn tenants(cluster: &Cluster, command: &str, pool: &str) -> Output {
    let set = format!("[tenants.acme]\npartitions = 3\npool = '{pool}'\n[tenants.globex]\npartitions = 3\n");
    with_tenants(cluster, command, &set)
}

/// `tributary tenants <command>` with the file that says `set`.
fn with_tenants(cluster: &Cluster, command: &str, set: &str) -> Output {
    let file = cluster.folder.path().join("tenants.toml");
    std::fs::write(&file, set).unwrap();
    cluster
        .tributary(&["tenants", command])
        .arg(&file)
        .output()
        .unwrap()
}

/// Waits until `processor` has done more than it had.
fn goes_on(cluster: &Cluster, processor: Instance) {
    let done = || cluster.metric(processor, "tributary_processor_outcomes_total");
    let before = done();
    wait_for(&format!("{processor:?} to do more"), || done() > before + 100);
}
