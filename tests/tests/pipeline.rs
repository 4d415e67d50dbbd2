//! The main story: jobs from any Kafka client, three services in processes of their own, rows in S3 that any engine reads.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output},
    time::{Duration, Instant},
};

use serde_json::Value;
use stories::{KafkaServer, VersityGw};

const TENANTS: [&str; 5] = ["acme", "globex", "initech", "hooli", "stark"];
const PATIENCE: Duration = Duration::from_secs(420);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The binary under test, beside this test's own.
fn tributary() -> PathBuf {
    let binary = std::env::current_exe()
        .unwrap()
        .parent()
        .unwrap()
        .with_file_name("tributary");
    assert!(
        binary.exists(),
        "{} is missing: cargo build --release -p tributary",
        binary.display()
    );
    binary
}

fn python() -> PathBuf {
    let python = root().join(".cache/readers-venv/bin/python");
    assert!(
        python.exists(),
        "{} is missing: run tests/readers/fetch",
        python.display()
    );
    python
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Kafka, S3, a configuration, and the services on them.
struct Cluster {
    kafka: KafkaServer,
    s3: VersityGw,
    folder: tempfile::TempDir,
    services: BTreeMap<&'static str, Service>,
}

/// A service in a process of its own, killed when dropped.
struct Service {
    process: Child,
    address: String,
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Cluster {
    fn start(model: &str) -> Self {
        let (kafka, s3, folder) = (
            KafkaServer::start(),
            VersityGw::start(),
            tempfile::tempdir().unwrap(),
        );
        let tenants: String = TENANTS
            .iter()
            .map(|tenant| format!("[tenants.{tenant}]\npartitions = 3\n"))
            .collect();
        let config = format!(
            "input_bytes_max = 262144\n[topics]\nkind = 'kafka'\n[topics.kafka]\nbootstrap.servers = '{}'\n\
             [http]\nlisten = '127.0.0.1:0'\n[log]\nformat = 'json'\n[sink]\nurl = 's3://{}'\nflush_interval_ms = 1000\n\
             [models.minilm]\nsource = '{model}'\nprice_per_device_second = '0.000125'\n{tenants}",
            kafka.bootstrap_servers(),
            s3.bucket(),
        );
        std::fs::write(folder.path().join("tributary.toml"), config).unwrap();
        let mut cluster = Self {
            kafka,
            s3,
            folder,
            services: BTreeMap::new(),
        };
        for name in ["ingest", "processor", "sink"] {
            cluster.spawn(name);
        }
        cluster
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env("AWS_ENDPOINT", self.s3.endpoint())
            .env("AWS_ACCESS_KEY_ID", self.s3.access_key())
            .env("AWS_SECRET_ACCESS_KEY", self.s3.secret_key())
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ALLOW_HTTP", "true");
        command
    }

    fn tributary(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(&tributary());
        command
            .arg("--config")
            .arg(self.folder.path().join("tributary.toml"))
            .args(arguments);
        command
    }

    /// Starts a service, again if it ran before, and waits until it says that it is well.
    fn spawn(&mut self, name: &'static str) {
        let log = self
            .folder
            .path()
            .join(format!("{name}-{}.log", self.services.len()));
        let process = self
            .tributary(&[name])
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut service = Service {
            process,
            address: String::new(),
        };
        wait_for(&format!("{name} to start"), || {
            let written = std::fs::read_to_string(&log).unwrap();
            assert!(
                service.process.try_wait().unwrap().is_none(),
                "{name} ended: {written}"
            );
            let mut lines = written
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let address =
                lines.find_map(|line| line.get("address").and_then(Value::as_str).map(str::to_owned));
            service.address = address.unwrap_or_default();
            !service.address.is_empty() && get(&service.address, "/health").starts_with("HTTP/1.0 200")
        });
        self.services.insert(name, service);
    }

    fn kill(&mut self, name: &'static str) {
        let mut service = self.services.remove(name).unwrap();
        service.process.kill().unwrap();
        service.process.wait().unwrap();
    }

    /// Asks every service to end, and holds them to it.
    fn end(&mut self) {
        for (name, mut service) in std::mem::take(&mut self.services) {
            run(Command::new("kill").args(["-TERM", &service.process.id().to_string()]));
            assert!(
                service.process.wait().unwrap().success(),
                "{name} did not end in order"
            );
        }
    }

    /// The sum of a metric over its labels.
    fn metric(&self, service: &str, name: &str) -> u64 {
        let answer = get(&self.services[service].address, "/metrics");
        let samples = answer
            .lines()
            .filter(|line| line.starts_with(name) && !line.starts_with('#'));
        samples
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum::<f64>() as u64
    }

    fn produce_lines(&self, topic: &str, file: &Path) {
        let broker = self.kafka.bootstrap_servers();
        run(Command::new("kcat")
            .args(["-P", "-b", &broker, "-t", topic, "-l"])
            .arg(file));
    }

    fn verify(&self, more: &[&str]) -> Output {
        self.tributary(&[&["verify"], more].concat()).output().unwrap()
    }

    fn wait_for_outcomes(&self, count: u64) {
        wait_for(&format!("{count} outcomes in the lake"), || {
            text(&self.verify(&[]).stdout).contains(&format!(" {count} outcomes\n"))
        });
    }

    fn read_lake(&self) -> Value {
        let lake = format!("s3://{}", self.s3.bucket());
        let read = run(self
            .command(&python())
            .arg(root().join("tests/readers/read_lake.py"))
            .arg(lake));
        serde_json::from_str(&read).unwrap()
    }

    fn dead_letters(&self) -> Value {
        let script = root().join("tests/readers/read_topic.py");
        let arguments = [
            self.kafka.bootstrap_servers(),
            "tributary.dead-letters".to_owned(),
        ];
        serde_json::from_str(&run(Command::new(python()).arg(script).args(arguments))).unwrap()
    }
}

fn get(address: &str, path: &str) -> String {
    let mut answer = String::new();
    if let Ok(mut stream) = TcpStream::connect(address) {
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").unwrap();
        stream.read_to_string(&mut answer).unwrap();
    }
    answer
}

/// Waits until `holds`. Each look is an exchange with another process, so it does not spin.
fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
    }
}

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
    assert_eq!(
        cluster.dead_letters(),
        serde_json::json!({"records": dead_letters, "with_position": dead_letters})
    );
    let measured_ns = cluster.metric("processor", "tributary_processor_device_time_ns_total");
    cluster.end();

    let verified = cluster.verify(&["--data"]);
    assert!(verified.status.success(), "{}", text(&verified.stdout));
    let seen = cluster.read_lake();
    for engine in ["duckdb", "polars", "pyarrow"] {
        for count in ["results", "costs", "joined"] {
            assert_eq!(seen[engine][count], outcomes, "{engine}: {count}");
        }
        assert_eq!(
            seen[engine]["device_time_ns"], measured_ns,
            "{engine}: what is billed is what was measured"
        );
    }
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
    let job = |number: u64| {
        let tenant = TENANTS[(number % 5) as usize];
        format!(
            "{{\"id\":\"{number}\",\"tenant\":\"{tenant}\",\"model\":\"minilm\",\"input\":\"Text number {number}\"}}\n"
        )
    };
    std::fs::write(&file, (0..JOBS).map(job).collect::<String>()).unwrap();
    cluster.produce_lines("jobs", &file);

    for (service, metric, enough) in [
        ("ingest", "tributary_ingest_decided_total", JOBS / 50),
        ("processor", "tributary_processor_outcomes_total", JOBS / 50),
        ("sink", "tributary_sink_rows_total", JOBS / 50),
    ] {
        wait_for(&format!("{service} to be in the middle"), || {
            cluster.metric(service, metric) >= enough
        });
        cluster.kill(service);
        assert!(
            !text(&cluster.verify(&[]).stdout).contains(&format!(" {JOBS} outcomes\n")),
            "{service} was killed too late"
        );
        cluster.spawn(service);
    }
    cluster.wait_for_outcomes(JOBS);
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
fn a_broker_that_is_not_there_is_waited_for_and_said_so() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let settings = [
        "topics.kind=kafka",
        "topics.kafka.bootstrap.servers=127.0.0.1:1",
        "http.listen=127.0.0.1:0",
        "log.format=json",
        "tenants.acme.partitions=1",
        "models.minilm.source=passthrough:8",
        "models.minilm.price_per_device_second=0",
    ];
    let mut command = Command::new(tributary());
    command.arg("processor").stderr(File::create(&log).unwrap());
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
