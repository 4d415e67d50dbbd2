//! Kafka, an S3 server, and Tributary's services on them, each in a process of its own.

#![expect(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a test fails by panicking"
)]

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

use crate::{KafkaServer, Link, VersityGw};

/// The tenants that the cluster knows.
pub const TENANTS: [&str; 5] = ["acme", "globex", "initech", "hooli", "stark"];
/// How long a condition may take to come true.
const PATIENCE: Duration = Duration::from_secs(420);

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The binary under test, beside this one or above it.
pub fn tributary() -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let beside = this
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("tributary"));
    let mut binaries = beside.filter(|binary| binary.is_file());
    binaries
        .next()
        .expect("the binary is missing: cargo build --release -p tributary")
}

/// An interpreter that has the engines which read the lake.
pub fn python() -> PathBuf {
    let python = root().join(".cache/readers-venv/bin/python");
    assert!(
        python.exists(),
        "{} is missing: run tests/readers/fetch",
        python.display()
    );
    python
}

/// What `command` wrote. It must succeed.
pub fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?} cannot be run: {error}; is it installed?"));
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// Bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Kafka, S3, a configuration, and the services on them.
pub struct Cluster {
    /// The broker.
    pub kafka: KafkaServer,
    /// The store.
    pub s3: VersityGw,
    /// The services' way to the store.
    store_link: Link,
    /// Configuration and logs.
    pub folder: tempfile::TempDir,
    services: BTreeMap<Instance, Service>,
    starts: usize,
}

/// A service, and which of its instances.
pub type Instance = (&'static str, usize);

/// A service in a process of its own, killed when dropped.
pub struct Service {
    /// The process.
    pub process: Child,
    /// Where it serves its health and metrics.
    pub address: String,
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Cluster {
    /// Starts the servers, and one instance of each service with the model of this source.
    pub fn start(model: &str) -> Self {
        let mut cluster = Self::servers(model);
        for stage in ["ingest", "processor", "sink"] {
            cluster.spawn((stage, 0), &[]);
        }
        cluster
    }

    /// Starts the servers.
    pub fn servers(model: &str) -> Self {
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
             [processor]\nattempts_path = '{}'\n[models.minilm]\nsource = '{model}'\nprice_per_device_second = '0.000125'\n{tenants}",
            kafka.bootstrap_servers(),
            s3.bucket(),
            folder.path().join("attempts").display(),
        );
        std::fs::write(folder.path().join("tributary.toml"), config).unwrap();
        Self {
            kafka,
            store_link: Link::to(s3.address()),
            s3,
            folder,
            services: BTreeMap::new(),
            starts: 0,
        }
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

    /// `tributary` with the cluster's configuration.
    pub fn tributary(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(&tributary());
        command
            .arg("--config")
            .arg(self.folder.path().join("tributary.toml"))
            .args(arguments);
        command
    }

    /// Starts an instance of a service, again if it ran before, and waits until it says that it is well.
    pub fn spawn(&mut self, instance: Instance, more: &[&str]) {
        let (name, service) = self.launch(instance, more);
        self.wait_until_well(&name, service, instance);
    }

    /// Starts an instance of a service, and does not wait for it.
    pub fn spawn_only(&mut self, instance: Instance, more: &[&str]) {
        let (_, service) = self.launch(instance, more);
        self.services.insert(instance, service);
    }

    fn launch(&mut self, (stage, number): Instance, more: &[&str]) -> (PathBuf, Service) {
        self.starts += 1;
        let log = self
            .folder
            .path()
            .join(format!("{stage}-{number}-{}.log", self.starts));
        let settings = [
            format!("topics.instance={number}"),
            format!("topics.kafka.client.id={stage}-{number}"),
            format!("topics.kafka.bootstrap.servers={}", self.kafka.link().address()),
        ];
        let settings = settings.iter().flat_map(|setting| ["--set", setting]);
        let process = self
            .tributary(&[stage])
            .args(settings)
            .env("AWS_ENDPOINT", format!("http://{}", self.store_link.address()))
            .args(more)
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        (
            log,
            Service {
                process,
                address: String::new(),
            },
        )
    }

    fn wait_until_well(&mut self, log: &Path, mut service: Service, instance: Instance) {
        wait_for(&format!("{} to start", instance.0), || {
            let written = std::fs::read_to_string(log).unwrap();
            assert!(
                service.process.try_wait().unwrap().is_none(),
                "{} ended: {written}",
                instance.0
            );
            let mut lines = written
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let address =
                lines.find_map(|line| line.get("address").and_then(Value::as_str).map(str::to_owned));
            service.address = address.unwrap_or_default();
            !service.address.is_empty() && get(&service.address, "/health").starts_with("HTTP/1.0 200")
        });
        self.services.insert(instance, service);
    }

    /// Kills an instance as `kill -9` does.
    pub fn kill(&mut self, instance: Instance) {
        let mut service = self.services.remove(&instance).unwrap();
        service.process.kill().unwrap();
        service.process.wait().unwrap();
    }

    /// Sends an instance a signal.
    pub fn signal(&self, instance: Instance, signal: &str) {
        run(Command::new("kill").args([signal, &self.services[&instance].process.id().to_string()]));
    }

    /// Cuts an instance off from the broker.
    pub fn cut_from_broker(&self, (stage, number): Instance) {
        self.kafka.link().cut(&format!("{stage}-{number}"));
    }

    /// Lets an instance reach the broker again. What it sent meanwhile arrives now.
    pub fn heal_from_broker(&self, (stage, number): Instance) {
        self.kafka.link().heal(&format!("{stage}-{number}"));
    }

    /// Cuts every service off from the store.
    pub fn cut_store(&self) {
        self.store_link.cut("");
    }

    /// Lets the services reach the store again. What they sent meanwhile arrives now.
    pub fn heal_store(&self) {
        self.store_link.heal("");
    }

    /// The instances that ended by themselves, which none should.
    pub fn ended(&mut self) -> Vec<Instance> {
        let ended = self.services.iter_mut().filter_map(|(instance, service)| {
            let ended = service.process.try_wait().unwrap().is_some();
            ended.then_some(*instance)
        });
        ended.collect()
    }

    /// Whether the logs stay when this is dropped; and where they are.
    pub fn keep_logs(&mut self, keep: bool) -> &Path {
        self.folder.disable_cleanup(keep);
        self.folder.path()
    }

    /// Asks every service to end, and holds them to it.
    pub fn end(&mut self) {
        for instance in self.services.keys().copied().collect::<Vec<_>>() {
            assert!(self.end_one(instance), "{instance:?} did not end in order");
        }
    }

    /// Asks an instance to end, and waits for it. Whether it ended in order: one that has only just been started may not
    /// listen to signals yet.
    pub fn end_one(&mut self, instance: Instance) -> bool {
        self.signal(instance, "-TERM");
        let mut service = self.services.remove(&instance).unwrap();
        service.process.wait().unwrap().success()
    }

    /// The sum of a metric over its labels.
    pub fn metric(&self, instance: Instance, name: &str) -> u64 {
        let answer = get(&self.services[&instance].address, "/metrics");
        let samples = answer
            .lines()
            .filter(|line| line.starts_with(name) && !line.starts_with('#'));
        samples
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum::<f64>() as u64
    }

    /// The most memory that an instance ever held.
    pub fn resident_peak_bytes(&self, instance: Instance) -> u64 {
        let status = format!("/proc/{}/status", self.services[&instance].process.id());
        let status = std::fs::read_to_string(status).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .unwrap();
        let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        kibibytes << 10
    }

    /// Puts each line of `file` on `topic`.
    pub fn produce_lines(&self, topic: &str, file: &Path) {
        let broker = self.kafka.bootstrap_servers();
        run(Command::new("kcat")
            .args(["-P", "-b", &broker, "-t", topic, "-l"])
            .arg(file));
    }

    /// `tributary verify` on the lake.
    pub fn verify(&self, more: &[&str]) -> Output {
        self.tributary(&[&["verify"], more].concat()).output().unwrap()
    }

    /// Waits until the lake has `count` outcomes.
    pub fn wait_for_outcomes(&self, count: u64) {
        wait_for(&format!("{count} outcomes in the lake"), || {
            text(&self.verify(&[]).stdout).contains(&format!(" {count} outcomes\n"))
        });
    }

    /// Waits until the audit in the lake is sound and counts decisions on `count` jobs, and answers what it says.
    pub fn wait_for_audited(&self, count: u64) -> String {
        let mut said = String::new();
        wait_for(&format!("{count} decisions in the audit"), || {
            said = text(&self.tributary(&["audit", "verify"]).output().unwrap().stdout);
            let decided = said.lines().filter(|line| line.starts_with("  jobs.decide "));
            let counts = decided.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
            counts.sum::<u64>() == count && said.contains("\nsound: ")
        });
        said
    }

    /// The lake as three engines count it.
    pub fn read_lake(&self) -> Value {
        self.read_with("read_lake.py", &[])
    }

    /// What DuckDB answers to a query on the lake's tables: an array a row.
    pub fn query_lake(&self, query: &str) -> Value {
        self.read_with("in_duckdb.py", &[query])
    }

    fn read_with(&self, script: &str, more: &[&str]) -> Value {
        let lake = format!("s3://{}", self.s3.bucket());
        let script = root().join("tests/readers").join(script);
        let read = run(self.command(&python()).arg(script).arg(lake).args(more));
        serde_json::from_str(&read).unwrap()
    }

    /// The dead letters, counted.
    pub fn dead_letters(&self) -> Value {
        let script = root().join("tests/readers/read_topic.py");
        let arguments = [
            self.kafka.bootstrap_servers(),
            "tributary.dead-letters".to_owned(),
        ];
        serde_json::from_str(&run(Command::new(python()).arg(script).args(arguments))).unwrap()
    }
}

/// The answer to a GET; empty where nobody answers.
pub fn get(address: &str, path: &str) -> String {
    let mut answer = String::new();
    if let Ok(mut stream) = TcpStream::connect(address) {
        // One that was killed meanwhile answers no more.
        let _ = write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
        let _ = stream.read_to_string(&mut answer);
    }
    answer
}

/// Waits until `holds`. Each look is an exchange with another process, so it does not spin.
pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
    }
}
