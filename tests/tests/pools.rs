//! A tenant moves from pool to pool and back while its jobs come in and processors of both pools are killed.

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
    let config = cluster.folder.path().join("tributary.toml");
    let whole = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, &whole[..whole.find("[tenants.").unwrap()]).unwrap();
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
    let file = cluster.folder.path().join("tenants.toml");
    let set = format!("[tenants.acme]\npartitions = 3\npool = '{pool}'\n[tenants.globex]\npartitions = 3\n");
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
