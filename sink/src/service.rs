//! The loop: gather records by partition, write ranges, commit.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use schemas::TopicNames;
use serde::{Deserialize, Serialize};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use topics::{Assignment, Event, Partition, Progress, Reader, Subscription, TopicPattern, Topics};

use crate::{
    Error, Options, Store, chain, metric_names,
    partition::{Limits, PartitionState, Place},
    seal::{Sealed, Sealer},
};

/// Ranges that are written side by side. Most of its time a range waits for the store, so there are more of them than
/// cores; each holds its records and their encoding in memory until it is written.
const SEALS_AT_ONCE: usize = 8;

/// How a sink works.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The consumer group. Every sink of one lake has the same.
    pub group: String,
    /// The lake: a folder, or a URL of an object store.
    pub url: String,
    /// A file is written when its first record has waited this long.
    pub flush_interval_ms: u64,
    /// A file is written when its records have this many bytes.
    pub file_bytes_max: usize,
    /// When the waiting records have this many bytes over all partitions, the largest range is written, and reading
    /// pauses until they have half.
    pub memory_bytes_max: usize,
    /// Settings of the store.
    #[serde(default)]
    pub options: Options,
}

/// Makes outcomes durable and readable.
pub struct Service {
    config: Config,
    topics: Arc<dyn Topics>,
    names: TopicNames,
    store: Store,
}

impl Service {
    /// Writes the outcomes in `topics` to the lake of `config`.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the lake's address or settings are wrong.
    pub fn new(config: Config, topics: Arc<dyn Topics>, names: TopicNames) -> Result<Self, Error> {
        let store = Store::open(&config.url, &config.options)?;
        Ok(Self {
            config,
            topics,
            names,
            store,
        })
    }

    /// The same over a store that is open already.
    pub fn over(config: Config, topics: Arc<dyn Topics>, names: TopicNames, store: Store) -> Self {
        Self {
            config,
            topics,
            names,
            store,
        }
    }

    /// What a sink reads.
    pub fn subscription(names: &TopicNames) -> Subscription {
        Subscription {
            patterns: vec![TopicPattern::Under(names.outcomes_prefix())],
        }
    }

    /// Works until `shutdown`, then writes what it has gathered, commits it and leaves the group. Calls `ready` once it
    /// reads.
    ///
    /// # Errors
    /// After a retryable one, run again: it goes on from what stands in the lake.
    pub async fn run(
        &self,
        shutdown: CancellationToken,
        ready: &(dyn Fn() + Send + Sync),
    ) -> Result<(), Error> {
        self.store.prove_create_is_atomic().await?;
        let reader = self
            .topics
            .reader(&self.config.group, &Self::subscription(&self.names))
            .await?;
        let sealer = Arc::new(Sealer {
            store: self.store.clone(),
            dead_letters: self.names.dead_letters(),
            appender: self.topics.appender().await?,
        });
        let limits = Limits {
            flush_interval: Duration::from_millis(self.config.flush_interval_ms),
            file_bytes_max: self.config.file_bytes_max,
        };
        ready();
        let mut run = Run {
            service: self,
            limits,
            sealer,
            reader,
            partitions: BTreeMap::new(),
            tasks: JoinSet::new(),
            sealing: 0,
            sealing_bytes: 0,
            draining: false,
        };
        run.until(shutdown).await?;
        run.drain().await?;
        run.reader.close().await?;
        Ok(())
    }
}

/// A run of the service.
struct Run<'a> {
    service: &'a Service,
    limits: Limits,
    sealer: Arc<Sealer>,
    reader: Box<dyn Reader>,
    partitions: BTreeMap<Partition, PartitionState>,
    tasks: JoinSet<Result<Finished, Error>>,
    sealing: usize,
    sealing_bytes: usize,
    /// Whether everything gathered is to be written now.
    draining: bool,
}

/// A task that ended, and the handing-over that it was about.
struct Finished {
    partition: Partition,
    assignment: Assignment,
    what: What,
}

/// A task's end, a panic included.
type Joined = Result<Result<Finished, Error>, tokio::task::JoinError>;

enum What {
    Located(Place),
    Sealed {
        sealed: Sealed,
        bytes: usize,
        began: Instant,
    },
}

impl Run<'_> {
    async fn until(&mut self, shutdown: CancellationToken) -> Result<(), Error> {
        loop {
            self.begin_tasks();
            self.throttle()?;
            let due = self
                .partitions
                .values()
                .filter_map(|state| state.due(self.limits))
                .min();
            let may_seal = self.sealing < SEALS_AT_ONCE;
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                Some(finished) = self.tasks.join_next() => self.take_in_all(finished).await?,
                event = self.reader.next() => self.handle(event?)?,
                () = wait_until(due), if may_seal => {}
            }
        }
    }

    /// Writes everything gathered. What has no place in the lake yet is left to the next start.
    async fn drain(&mut self) -> Result<(), Error> {
        self.draining = true;
        loop {
            self.begin_tasks();
            let Some(finished) = self.tasks.join_next().await else {
                return Ok(());
            };
            self.take_in_all(finished).await?;
        }
    }

    fn handle(&mut self, event: Event) -> Result<(), Error> {
        match event {
            Event::Assigned(partitions) => {
                tracing::info!(?partitions, "partitions assigned");
                for (partition, assignment) in partitions {
                    let tenant = self.service.names.tenant_of_outcomes(&partition.topic.name);
                    let tenant = tenant.ok_or_else(|| Error::Invalid {
                        what: format!("topic `{}` is among the outcomes, and its name ends in no possible tenant: delete it", partition.topic.name),
                    })?;
                    self.partitions
                        .insert(partition, PartitionState::new(tenant, assignment));
                }
            }
            Event::Revoked(partitions) => {
                tracing::info!(?partitions, "partitions revoked");
                for partition in partitions {
                    self.partitions.remove(&partition);
                }
            }
            Event::Records(chunk) => {
                if let Some(state) = self.partitions.get_mut(&chunk.partition) {
                    let (first, partition) = (state.first_offset().is_none(), chunk.partition.clone());
                    state.push(chunk, Instant::now());
                    if first && state.is_locating() {
                        self.locate(partition);
                    }
                }
            }
        }
        Ok(())
    }

    /// Looks up where a partition stands in the lake.
    fn locate(&mut self, partition: Partition) {
        let Some(state) = self.partitions.get(&partition) else {
            return;
        };
        let (Some(first_offset), assignment) = (state.first_offset(), state.assignment) else {
            return;
        };
        let store = self.service.store.clone();
        self.tasks.spawn(async move {
            let position = chain::find(&store, partition.topic.id, partition.index, first_offset).await?;
            Ok(Finished {
                partition,
                assignment,
                what: What::Located(position.into()),
            })
        });
    }

    /// Begins to write the ranges that are ready, the largest first where memory is short.
    fn begin_tasks(&mut self) {
        let now = Instant::now();
        let pressed = self.bytes() >= self.service.config.memory_bytes_max;
        while self.sealing < SEALS_AT_ONCE {
            let largest = self
                .partitions
                .values()
                .map(PartitionState::bytes)
                .max()
                .unwrap_or(0);
            let ready = self.partitions.iter_mut().find(|(_, state)| {
                let forced = self.draining || pressed && state.bytes() == largest;
                state.is_ready(self.limits, now, forced)
            });
            let Some((partition, state)) = ready else { return };
            let Some(range) = state.take(self.limits, now) else {
                return;
            };
            let (partition, tenant, assignment) = (partition.clone(), state.tenant.clone(), state.assignment);
            let bytes = range.records.iter().map(topics::Record::size_bytes).sum();
            self.sealing += 1;
            self.sealing_bytes += bytes;
            let sealer = Arc::clone(&self.sealer);
            self.tasks.spawn(async move {
                let sealed = sealer.seal(&partition, &tenant, range).await?;
                Ok(Finished {
                    partition,
                    assignment,
                    what: What::Sealed {
                        sealed,
                        bytes,
                        began: now,
                    },
                })
            });
        }
    }

    /// Takes in `first` and all that has finished meanwhile, and commits what they wrote at once.
    async fn take_in_all(&mut self, first: Joined) -> Result<(), Error> {
        let mut written = Progress::new();
        let mut next = Some(first);
        while let Some(finished) = next {
            written.extend(self.take_in(finished)?);
            next = self.tasks.try_join_next();
        }
        if !written.is_empty() {
            self.reader.commit(&written).await?;
        }
        Ok(())
    }

    /// The partition that got a range written, and where that range ends.
    fn take_in(&mut self, finished: Joined) -> Result<Option<(Partition, i64)>, Error> {
        let finished = finished.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        let Finished {
            partition,
            assignment,
            what,
        } = finished?;
        if let What::Sealed { bytes, began, .. } = &what {
            self.sealing -= 1;
            self.sealing_bytes -= bytes;
            metrics::histogram!(metric_names::SEAL_SECONDS).record(began.elapsed().as_secs_f64());
        }
        let Some(state) = self
            .partitions
            .get_mut(&partition)
            .filter(|state| state.assignment == assignment)
        else {
            return Ok(None);
        };
        match what {
            What::Located(place) => state.place(place),
            What::Sealed {
                sealed: Sealed::Superseded { range, intent },
                ..
            } => {
                tracing::warn!(%partition, start = intent.start, end = intent.end, "another sink fixed this range first: doing it as it says");
                state.superseded(range, intent, Instant::now());
            }
            What::Sealed {
                sealed: Sealed::Done { end, place },
                ..
            } => {
                state.place(place);
                return Ok(Some((partition, end)));
            }
        }
        Ok(None)
    }

    /// Pauses partitions while too much waits, and resumes them when half of that is written.
    fn throttle(&mut self) -> Result<(), Error> {
        let (bytes, most) = (self.bytes(), self.service.config.memory_bytes_max);
        metrics::gauge!(metric_names::BUFFERED_BYTES).set(bytes as f64);
        if bytes < most && bytes > most / 2 {
            return Ok(());
        }
        let (mut pause, mut resume) = (Vec::new(), Vec::new());
        for (partition, state) in &mut self.partitions {
            let wanted = bytes >= most && !state.is_redoing();
            if state.paused != wanted {
                state.paused = wanted;
                if wanted { &mut pause } else { &mut resume }.push(partition.clone());
            }
        }
        if !pause.is_empty() {
            self.reader.pause(&pause)?;
        }
        if !resume.is_empty() {
            self.reader.resume(&resume)?;
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.sealing_bytes + self.partitions.values().map(PartitionState::bytes).sum::<usize>()
    }
}

async fn wait_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
