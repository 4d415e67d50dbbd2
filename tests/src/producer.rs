//! A producer that goes on whatever happens.

#![expect(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a test fails by panicking"
)]

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use crate::cluster::{Cluster, python, root};

/// Puts jobs on the shared topic until told to end, each once.
pub struct Producer {
    process: Child,
    produced: Arc<AtomicU64>,
    listener: JoinHandle<()>,
}

impl Producer {
    /// So many jobs a second of `tenants` in turn, with texts of so many bytes at least.
    pub fn start(cluster: &Cluster, tenants: &[&str], jobs_per_second: u64, text_bytes: usize) -> Self {
        let mut process = Command::new(python())
            .arg(root().join("tests/readers/keep_producing.py"))
            .args([
                &cluster.kafka.bootstrap_servers(),
                "jobs",
                &tenants.join(","),
                &jobs_per_second.to_string(),
                &text_bytes.to_string(),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let produced = Arc::new(AtomicU64::new(0));
        let (count, lines) = (
            Arc::clone(&produced),
            BufReader::new(process.stdout.take().unwrap()).lines(),
        );
        let listener = thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                count.store(line.parse().unwrap(), Ordering::Relaxed);
            }
        });
        Self {
            process,
            produced,
            listener,
        }
    }

    /// How many jobs there are so far.
    pub fn produced(&mut self) -> u64 {
        assert!(self.process.try_wait().unwrap().is_none(), "the producer ended");
        self.produced.load(Ordering::Relaxed)
    }

    /// Ends it. How many jobs there are, all acknowledged.
    pub fn end(mut self) -> u64 {
        drop(self.process.stdin.take());
        assert!(
            self.process.wait().unwrap().success(),
            "not every job could be produced"
        );
        self.listener.join().unwrap();
        self.produced.load(Ordering::Relaxed)
    }
}
