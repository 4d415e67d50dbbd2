//! A real Apache Kafka: one KRaft node.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use crate::{
    Link,
    child::{Program, Running, free_port, repository},
};

/// A broker on free ports of this machine with its data in a temporary folder. It is killed when this is dropped and when
/// the test ends; its log is kept when the test failed.
pub struct KafkaServer {
    program: Program,
    running: Option<Running>,
    folder: Option<TempDir>,
    link: Link,
}

impl KafkaServer {
    /// Starts a broker and waits until it answers.
    ///
    /// # Panics
    /// Where the broker's jars were not fetched, or it does not come up.
    pub fn start() -> Self {
        let folder = TempDir::with_prefix("kafka-").expect("a temporary folder can be made");
        let (port, controller_port, linked_port) = (free_port(), free_port(), free_port());
        let link = Link::to(SocketAddr::from((Ipv4Addr::LOCALHOST, linked_port)));
        let properties = folder.path().join("server.properties");
        fs::write(
            &properties,
            broker_properties(folder.path(), port, controller_port, linked_port, link.address()),
        )
        .expect("the temporary folder can be written");
        let libs = libs();
        format_storage(&libs, &properties);
        let mut command = java(&libs);
        command.extend([
            "-Xmx1g".into(),
            "-Xms256m".into(),
            "kafka.Kafka".into(),
            properties.into(),
        ]);
        let program = Program {
            name: "kafka",
            command,
            environment: Vec::new(),
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            folder: folder.path().to_owned(),
        };
        let mut server = Self {
            program,
            running: None,
            folder: Some(folder),
            link,
        };
        server.restart();
        server
    }

    /// `bootstrap.servers` for clients.
    pub fn bootstrap_servers(&self) -> String {
        self.program.address.to_string()
    }

    /// The way to the broker that can be cut. Whoever comes by it is told to stay on it.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Ends the broker in order.
    pub fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.signal("-TERM");
            running.wait_until_gone();
        }
    }

    /// Kills the broker where it stands, as `kill -9` does.
    pub fn kill(&mut self) {
        if let Some(running) = self.running.take() {
            running.signal("-9");
            running.wait_until_gone();
        }
    }

    /// Sends the broker a signal.
    pub fn signal(&self, signal: &str) {
        if let Some(running) = &self.running {
            running.signal(signal);
        }
    }

    /// Starts the broker again over its data, on the same ports, and waits until it answers.
    ///
    /// # Panics
    /// Where it does not come up.
    pub fn restart(&mut self) {
        self.running = None;
        self.running = Some(self.program.start());
    }

    /// Changes a setting of a topic, such as `message.timestamp.type=LogAppendTime`.
    ///
    /// # Panics
    /// Where the broker refuses.
    pub fn set(&self, topic: &str, setting: &str) {
        self.config_command(topic, &["--alter", "--add-config", setting]);
    }

    /// The settings of a topic that are not the cluster's, with their values.
    ///
    /// # Panics
    /// Where the broker refuses.
    pub fn settings(&self, topic: &str) -> BTreeMap<String, String> {
        let told = self.config_command(topic, &["--describe"]);
        let first_words = told.lines().filter_map(|line| line.split_whitespace().next());
        let settings = first_words.filter_map(|word| word.split_once('='));
        settings
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    fn config_command(&self, topic: &str, what: &[&str]) -> String {
        let java = java(&libs());
        let output = Command::new(&java[0])
            .args(&java[1..])
            .args(["kafka.admin.ConfigCommand", "--bootstrap-server"])
            .arg(self.bootstrap_servers())
            .args(["--entity-type", "topics", "--entity-name", topic])
            .args(what)
            .output()
            .unwrap_or_else(|error| panic!("cannot run `java`: {error}; install Java 17"));
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{what:?} of `{topic}`: {told}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Where the broker's log stands while this lives.
    pub fn log(&self) -> PathBuf {
        self.program.log()
    }
}

impl Drop for KafkaServer {
    #[expect(
        clippy::print_stderr,
        reason = "the path of the log belongs to the failed test's output"
    )]
    fn drop(&mut self) {
        self.running = None;
        if std::thread::panicking()
            && let Some(folder) = self.folder.take()
        {
            eprintln!(
                "the broker's log is kept: {}",
                folder.keep().join("log").display()
            );
        }
    }
}

fn libs() -> PathBuf {
    let libs = env::var_os("TRIBUTARY_KAFKA_LIBS")
        .map_or_else(|| repository().join(".cache/kafka/libs"), PathBuf::from);
    assert!(
        libs.join("pom.xml").exists(),
        "no Kafka broker in `{}`: run tests/kafka/fetch (it needs Java 17 and Maven)",
        libs.display()
    );
    libs
}

fn java(libs: &Path) -> Vec<OsString> {
    let mut classes = libs.as_os_str().to_owned();
    classes.push("/*");
    let mut logging = OsString::from("-Dlog4j2.configurationFile=");
    logging.push(repository().join("tests/kafka/log4j2.properties"));
    vec!["java".into(), "-cp".into(), classes, logging]
}

fn format_storage(libs: &Path, properties: &Path) {
    const CLUSTER_ID: &str = "dHJpYnV0YXJ5LXRlc3RzIQ";
    let java = java(libs);
    let output = Command::new(&java[0])
        .args(&java[1..])
        .args(["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c"])
        .arg(properties)
        .output()
        .unwrap_or_else(|error| panic!("cannot run `java`: {error}; install Java 17"));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "Kafka could not format its storage: {told}"
    );
}

fn broker_properties(
    folder: &Path,
    port: u16,
    controller_port: u16,
    linked_port: u16,
    link: SocketAddr,
) -> String {
    format!(
        "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},LINKED://127.0.0.1:{linked_port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},LINKED://{link}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,LINKED:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
controller.listener.names=CONTROLLER
log.dirs={}
auto.create.topics.enable=false
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
",
        folder.join("data").display()
    )
}
