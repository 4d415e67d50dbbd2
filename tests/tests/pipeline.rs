//! The main story: jobs from any Kafka client, three services in processes of their own, rows in S3 that any engine reads.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs::File, path::Path, process::Command};

use serde_json::Value;
use stories::cluster::{Cluster, Service, TENANTS, python, root, run, text, tributary, wait_for};

#[test]
fn ten_thousand_jobs_of_five_tenants_each_end_once_and_every_engine_reads_them() {
    let model = root().join(".cache/models/all-MiniLM-L6-v2");
    assert!(model.exists(), "{} is missing: run models/fetch", model.display());
    let mut cluster = Cluster::start(model.to_str().unwrap());
    let jobs = cluster.folder.path().join("jobs");
    let demo = root().join("tributary/demo/jobs.jsonl");
    run(Command::new(python())
        .arg(root().join("tests/readers/make_jobs.py"))
        .args([&demo, &jobs])
        .arg("10000"));
    let expected: Value =
        serde_json::from_slice(&std::fs::read(jobs.join("expected.json")).unwrap()).unwrap();

    for entry in std::fs::read_dir(&jobs).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if let Some(topic) = name
            .strip_prefix("kcat-")
            .and_then(|name| name.strip_suffix(".jsonl"))
        {
            cluster.produce_lines(topic, &path);
        }
    }
    let script = root().join("tests/readers/produce.py");
    let arguments = [
        cluster.kafka.bootstrap_servers(),
        jobs.join("confluent.json").display().to_string(),
    ];
    run(Command::new(python()).arg(script).args(arguments));

    let dead_letters = expected["dead_letters"].as_u64().unwrap();
    let outcomes = expected["count"].as_u64().unwrap() - dead_letters;
    cluster.wait_for_outcomes(outcomes);
    let audited = cluster.wait_for_audited(outcomes + dead_letters);
    assert!(audited.contains("no_job"), "{audited}");
    assert_eq!(
        cluster.dead_letters(),
        serde_json::json!({"records": dead_letters, "with_position": dead_letters})
    );
    let measured_ns = cluster.metric(("processor", 0), "tributary_processor_device_time_ns_total");
    cluster.end();

    let letters = |arguments: &[&str]| {
        cluster
            .tributary(&[&["dead-letters"], arguments].concat())
            .output()
            .unwrap()
    };
    let listed = text(&letters(&["list"]).stdout);
    assert!(
        listed.contains(&format!(
            "{dead_letters} dead letters, {dead_letters} not replayed"
        )),
        "{listed}"
    );
    let replayed = letters(&["replay", "0"]);
    assert!(
        text(&replayed.stdout).starts_with("1 put back"),
        "{}",
        text(&replayed.stderr)
    );
    let again = letters(&["replay", "0"]);
    assert!(
        text(&again.stderr).contains("was replayed before"),
        "{}",
        text(&again.stderr)
    );

    let verified = cluster.verify(&["--data"]);
    assert!(verified.status.success(), "{}", text(&verified.stdout));
    let seen = cluster.read_lake();
    for engine in ["duckdb", "polars", "pyarrow"] {
        for count in ["results", "costs", "joined"] {
            assert_eq!(seen[engine][count], outcomes, "{engine}: {count}");
        }
        assert_eq!(seen[engine]["audited"], outcomes + dead_letters, "{engine}");
        assert_eq!(
            seen[engine]["device_time_ns"], measured_ns,
            "{engine}: what is billed is what was measured"
        );
    }
    assert_eq!(
        seen["pyarrow"]["unchained"], 0,
        "another program, by the words of ARCHITECTURE.md, follows the chain"
    );
    let duckdb = &seen["duckdb"];
    assert_eq!(duckdb["outcomes"], expected["outcomes"]);
    assert_eq!(duckdb["distinct_origins"], outcomes);
    for none in ["unbalanced_batches", "bills_off", "succeeded_without_vector"] {
        assert_eq!(duckdb[none], 0, "{none}");
    }
    assert_eq!(duckdb["trace_ids"], 1);
    assert!(duckdb["truncated"].as_u64().unwrap() >= 1);
}

#[test]
fn each_service_is_killed_in_the_middle_of_its_work_and_each_job_still_ends_once() {
    const JOBS: u64 = 150_000;
    let mut cluster = Cluster::start("passthrough:384");
    let file = cluster.folder.path().join("jobs.jsonl");
    write_jobs(&file, JOBS);
    cluster.produce_lines("jobs", &file);

    for (service, metric, enough) in [
        ("ingest", "tributary_ingest_decided_total", JOBS / 50),
        ("processor", "tributary_processor_outcomes_total", JOBS / 50),
        ("sink", "tributary_sink_rows_total", JOBS / 50),
    ] {
        wait_for(&format!("{service} to be in the middle"), || {
            cluster.metric((service, 0), metric) >= enough
        });
        cluster.kill((service, 0));
        assert!(
            !text(&cluster.verify(&[]).stdout).contains(&format!(" {JOBS} outcomes\n")),
            "{service} was killed too late"
        );
        cluster.spawn((service, 0), &[]);
    }
    cluster.wait_for_outcomes(JOBS);
    cluster.wait_for_audited(JOBS);
    cluster.end();
    let verified = cluster.verify(&["--data"]);
    assert!(verified.status.success(), "{}", text(&verified.stdout));
    let seen = cluster.read_lake();
    assert_eq!(seen["duckdb"]["results"], JOBS);
    assert_eq!(seen["duckdb"]["distinct_origins"], JOBS);
    assert_eq!(seen["duckdb"]["joined"], JOBS);
    assert_eq!(seen["duckdb"]["unbalanced_batches"], 0);
}

#[test]
fn a_store_that_does_not_answer_holds_nobody_up_but_the_sink_whose_memory_stays_bounded() {
    const JOBS: u64 = 200_000;
    const MEMORY_MAX: u64 = 16 << 20;
    let mut cluster = Cluster::servers("passthrough:384");
    let memory = format!("sink.memory_bytes_max={MEMORY_MAX}");
    for stage in ["ingest", "processor", "sink"] {
        cluster.spawn((stage, 0), &["--set", &memory]);
    }
    cluster.cut_store();
    let file = cluster.folder.path().join("jobs.jsonl");
    write_jobs(&file, JOBS);
    cluster.produce_lines("jobs", &file);
    wait_for("the processor to be through with all jobs", || {
        cluster.metric(("processor", 0), "tributary_processor_outcomes_total") >= JOBS
    });
    assert!(!text(&cluster.verify(&[]).stdout).contains(&format!(" {JOBS} outcomes\n")));
    // Beside what waits there are the files being encoded, what Kafka's client fetched ahead, and the process itself.
    let resident = cluster.resident_peak_bytes(("sink", 0));
    assert!(resident < 16 * MEMORY_MAX, "the sink took {} MiB", resident >> 20);

    cluster.heal_store();
    cluster.wait_for_outcomes(JOBS);
    cluster.end();
    let verified = cluster.verify(&["--data"]);
    assert!(verified.status.success(), "{}", text(&verified.stdout));
}

#[test]
fn tenants_that_are_applied_are_taken_by_every_instance_while_jobs_flow() {
    const JOBS: u64 = 1_000;
    let mut cluster = Cluster::servers("passthrough:8");
    let (config, file, jobs) = (
        cluster.folder.path().join("tributary.toml"),
        cluster.folder.path().join("tenants.toml"),
        cluster.folder.path().join("jobs.jsonl"),
    );
    let whole = std::fs::read_to_string(&config).unwrap();
    let (services, tenants) = whole.split_at(whole.find("[tenants.").unwrap());
    std::fs::write(&config, services).unwrap();
    write_jobs(&jobs, JOBS);
    let tenants_command = |cluster: &Cluster, tenants: &str, arguments: &[&str]| {
        std::fs::write(&file, tenants).unwrap();
        let mut command = cluster.tributary(&["tenants"]);
        command.args(arguments).arg(&file).output().unwrap()
    };
    let apply = |cluster: &Cluster, tenants: &str| {
        let applied = tenants_command(cluster, tenants, &["apply"]);
        assert!(applied.status.success(), "{}", text(&applied.stderr));
    };
    apply(&cluster, tenants);
    for instance in [("ingest", 0), ("ingest", 1), ("processor", 0), ("sink", 0)] {
        cluster.spawn(instance, &[]);
    }
    cluster.produce_lines("jobs", &jobs);
    let of_ingest = |cluster: &Cluster, name: &str| -> [u64; 2] {
        [0, 1].map(|number| cluster.metric(("ingest", number), name))
    };

    // All but the last of five, and topics that keep their records for another time.
    let fewer = &tenants[..tenants.rfind("[tenants.").unwrap()];
    let kept = fewer.replace("partitions = 3", "partitions = 3\nretention_days = 30");
    cluster.wait_for_outcomes(JOBS);
    apply(&cluster, &kept);
    wait_for("both to take the set", || {
        of_ingest(&cluster, "tributary_tenant_sets_total") == [1, 1]
    });
    cluster.produce_lines("jobs", &jobs);
    cluster.wait_for_outcomes(2 * JOBS);
    let rejected: u64 = of_ingest(&cluster, "tributary_ingest_rejected_total")
        .iter()
        .sum();
    assert_eq!(rejected, JOBS / 5);
    let audited = cluster.wait_for_audited(2 * JOBS);
    let told = |operation: &str, count: u64| {
        let line = audited
            .lines()
            .find(|line| line.starts_with(&format!("  {operation} ")));
        line.is_some_and(|line| line.contains(" done ") && line.ends_with(&format!(" {count}")))
    };
    assert!(told("tenants.apply", 2), "{audited}");

    let planned = tenants_command(&cluster, tenants, &["plan"]);
    let plan = text(&planned.stdout);
    assert!(
        plan.contains("added stark") && plan.contains("retention_days (30 to unset)"),
        "{plan}"
    );
    let more = kept.replace("partitions = 3", "partitions = 4");
    let refused = tenants_command(&cluster, &more, &["apply"]);
    assert!(
        !refused.status.success() && text(&refused.stderr).contains("--at-rest"),
        "{}",
        text(&refused.stderr)
    );
    cluster.end();
    let report = cluster.verify(&["--data"]);
    assert!(report.status.success(), "{}", text(&report.stdout));
}

#[test]
fn a_broker_that_is_not_there_is_waited_for_and_said_so() {
    for stage in ["ingest", "processor", "sink"] {
        waits_for_the_broker(stage);
    }
}

fn waits_for_the_broker(stage: &str) {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let lake = format!("sink.url={}", folder.path().join("lake").display());
    let settings = [
        "topics.kind=kafka",
        "topics.kafka.bootstrap.servers=127.0.0.1:1",
        "http.listen=127.0.0.1:0",
        "log.format=json",
        "tenants.acme.partitions=1",
        "models.minilm.source=passthrough:8",
        "models.minilm.price_per_device_second=0",
        &lake,
    ];
    let mut command = Command::new(tributary());
    command.arg(stage).stderr(File::create(&log).unwrap());
    for setting in settings {
        command.args(["--set", setting]);
    }
    let mut service = Service {
        process: command.spawn().unwrap(),
        address: String::new(),
    };
    wait_for("the log to name what is waited for", || {
        assert!(
            service.process.try_wait().unwrap().is_none(),
            "{}",
            std::fs::read_to_string(&log).unwrap()
        );
        let written = std::fs::read_to_string(&log).unwrap();
        written.contains("starting over") && written.contains("bootstrap.servers")
    });
}

/// So many jobs of all tenants in turn, a line each.
fn write_jobs(file: &Path, count: u64) {
    let job = |number: u64| {
        let tenant = TENANTS[(number % 5) as usize];
        format!(
            "{{\"id\":\"{number}\",\"tenant\":\"{tenant}\",\"model\":\"minilm\",\"input\":\"Text number {number}\"}}\n"
        )
    };
    std::fs::write(file, (0..count).map(job).collect::<String>()).unwrap();
}
