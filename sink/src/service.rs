//! The loop: gather records by partition, write ranges, commit.

use std::{collections::BTreeMap, ops::Bound, sync::Arc, time::Duration};

use schemas::TopicNames;
use serde::{Deserialize, Serialize};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use topics::{Assignment, Event, Partition, Progress, Reader, Subscription, TopicPattern, Topics};

use crate::{
    Error, Options, Store,
    chain::{self, Position},
    encode::{OpenRange, Source},
    metric_names,
    partition::{Limits, PartitionState, Step, Work},
    range::RangeIntent,
    seal::{self, Sealer},
};

/// Ranges that are written side by side. Most of its time a range waits for the store, so there are more of them than
/// cores; each holds its files in memory until it is written.
const SEALS_AT_ONCE: usize = 8;
/// Partitions whose records are encoded side by side. It is work for a core, and four of them encode faster than a broker
/// sends.
const ENCODES_AT_ONCE: usize = 4;
/// Partitions whose place is looked up side by side. All of a sink's are to be when it starts, and each holds what the store
/// lists and the intents that it reads.
const LOCATES_AT_ONCE: usize = 8;

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
    /// When the files under way, with the records that wait to be encoded, have this many bytes over all partitions, the
    /// largest ranges are written, and reading pauses until they have half.
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
        Subscription::to(vec![
            TopicPattern::Under(names.outcomes_prefix()),
            TopicPattern::Exact(names.audit()),
        ])
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
        let mut run = self.begin().await?;
        ready();
        run.until(shutdown).await?;
        run.drain().await?;
        run.reader.close().await?;
        Ok(())
    }

    async fn begin(&self) -> Result<Run<'_>, Error> {
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
        Ok(Run {
            service: self,
            limits,
            sealer,
            reader,
            partitions: BTreeMap::new(),
            last_served: None,
            tasks: JoinSet::new(),
            under_way: UnderWay::default(),
            short: false,
            draining: false,
        })
    }
}

/// A run of the service.
struct Run<'a> {
    service: &'a Service,
    limits: Limits,
    sealer: Arc<Sealer>,
    reader: Box<dyn Reader>,
    partitions: BTreeMap<Partition, PartitionState>,
    /// The partition whose range was worked on last.
    last_served: Option<Partition>,
    tasks: JoinSet<Finished>,
    under_way: UnderWay,
    /// Whether memory is short: from its limit on, until half of it is free.
    short: bool,
    /// Whether everything gathered is to be written now.
    draining: bool,
}

/// A task that ended, and the handing-over that it was about.
struct Finished {
    partition: Partition,
    assignment: Assignment,
    task: Task,
    what: Result<What, Error>,
}

/// A task's end, a panic included.
type Joined = Result<Finished, tokio::task::JoinError>;

/// What a task is about, and takes until it ends.
#[derive(Debug, Clone, Copy)]
enum Task {
    Locate,
    Encode,
    Seal { held_bytes: usize, began: Instant },
}

/// What came of a task.
enum What {
    Located(Position),
    Encoded(OpenRange),
    Sealed(RangeIntent),
}

/// What tasks take that have not ended.
#[derive(Default)]
struct UnderWay {
    locating: usize,
    encoding: usize,
    sealing: usize,
    sealing_bytes: usize,
}

impl UnderWay {
    fn began(&mut self, task: Task) {
        match task {
            Task::Locate => self.locating += 1,
            Task::Encode => self.encoding += 1,
            Task::Seal { held_bytes, .. } => {
                self.sealing += 1;
                self.sealing_bytes += held_bytes;
            }
        }
    }

    fn ended(&mut self, task: Task) {
        match task {
            Task::Locate => self.locating -= 1,
            Task::Encode => self.encoding -= 1,
            Task::Seal { held_bytes, .. } => {
                self.sealing -= 1;
                self.sealing_bytes -= held_bytes;
            }
        }
    }
}

impl Run<'_> {
    async fn until(&mut self, shutdown: CancellationToken) -> Result<(), Error> {
        loop {
            self.throttle()?;
            self.begin_tasks();
            let due = self
                .partitions
                .values()
                .filter_map(|state| state.due(self.limits))
                .min();
            let may_seal = self.under_way.sealing < SEALS_AT_ONCE;
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
                    let source = source(&self.service.names, &partition)?;
                    self.partitions
                        .insert(partition, PartitionState::new(source, assignment));
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
                    state.push(chunk, Instant::now());
                }
            }
        }
        Ok(())
    }

    /// Begins all that is due and has room.
    fn begin_tasks(&mut self) {
        if !self.draining {
            self.locate();
        }
        let now = Instant::now();
        while let Some((partition, work)) = self.next_work(now) {
            self.begin(&partition, work, now);
            self.last_served = Some(partition);
        }
    }

    /// Looks up where partitions stand in the lake.
    fn locate(&mut self) {
        let room = LOCATES_AT_ONCE - self.under_way.locating;
        let due = self
            .partitions
            .values_mut()
            .filter_map(|state| Some((state.locate()?, state.source.clone(), state.assignment)));
        for (first_offset, source, assignment) in due.take(room).collect::<Vec<_>>() {
            let (store, partition) = (self.service.store.clone(), source.partition.clone());
            self.spawn(Task::Locate, partition, assignment, async move {
                let position = chain::find(&store, &source, first_offset).await?;
                Ok(What::Located(position))
            });
        }
    }

    fn spawn(
        &mut self,
        task: Task,
        partition: Partition,
        assignment: Assignment,
        work: impl Future<Output = Result<What, Error>> + Send + 'static,
    ) {
        self.under_way.began(task);
        self.tasks.spawn(async move {
            Finished {
                partition,
                assignment,
                task,
                what: work.await,
            }
        });
    }

    /// What to begin next: partitions take turns. Where memory is short, ranges are written before they are whole, the largest
    /// first.
    fn next_work(&self, now: Instant) -> Option<(Partition, Work)> {
        let most = self.service.config.memory_bytes_max;
        let largest = match self.short && self.bytes() - self.under_way.sealing_bytes > most / 2 {
            true => self
                .partitions
                .values()
                .map(PartitionState::forceable_bytes)
                .max()?,
            false => 0,
        };
        in_turn(&self.partitions, self.last_served.as_ref()).find_map(|(partition, state)| {
            let forced = self.draining || largest > 0 && state.forceable_bytes() == largest;
            let work = state.due_work(self.limits, now, forced)?;
            let has_room = match work {
                Work::Encode => self.under_way.encoding < ENCODES_AT_ONCE,
                Work::Seal => self.under_way.sealing < SEALS_AT_ONCE,
            };
            has_room.then(|| (partition.clone(), work))
        })
    }

    fn begin(&mut self, partition: &Partition, work: Work, now: Instant) {
        let Some(state) = self.partitions.get_mut(partition) else {
            return;
        };
        let (source, assignment) = (state.source.clone(), state.assignment);
        let Some(Step {
            range,
            records,
            held_bytes,
        }) = state.take(work, self.limits, now)
        else {
            return;
        };
        let partition = partition.clone();
        match work {
            Work::Encode => self.spawn(Task::Encode, partition, assignment, async move {
                let range = seal::encode(source, range, records).await?;
                Ok(What::Encoded(range))
            }),
            Work::Seal => {
                let task = Task::Seal {
                    held_bytes,
                    began: now,
                };
                let sealer = Arc::clone(&self.sealer);
                self.spawn(task, partition, assignment, async move {
                    let intent = sealer.seal(source, range, records).await?;
                    Ok(What::Sealed(intent))
                });
            }
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

    /// The partition that got a range written, or turned out to have one that was not committed, and where that range ends.
    ///
    /// # Errors
    /// Where the task has failed and its partition is still this sink's; whoever has it now does the same again.
    fn take_in(&mut self, finished: Joined) -> Result<Option<(Partition, i64)>, Error> {
        let finished = finished.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        let Finished {
            partition,
            assignment,
            task,
            what,
        } = finished;
        self.under_way.ended(task);
        if let (Task::Seal { began, .. }, Ok(_)) = (task, &what) {
            metrics::histogram!(metric_names::SEAL_SECONDS).record(began.elapsed().as_secs_f64());
        }
        let Some(state) = self
            .partitions
            .get_mut(&partition)
            .filter(|state| state.assignment == assignment)
        else {
            if let Err(error) = what {
                tracing::warn!(%partition, %error, "what was under way for a partition that is another's by now has failed");
            }
            return Ok(None);
        };
        match what? {
            What::Located(position) => {
                let whole_until = position.whole_until;
                state.place(position.into());
                return Ok(whole_until.map(|end| (partition, end)));
            }
            What::Encoded(range) => state.encoded(range),
            What::Sealed(intent) => {
                let end = intent.end;
                state.sealed(&intent);
                return Ok(Some((partition, end)));
            }
        }
        Ok(None)
    }

    /// Pauses partitions while memory is short.
    fn throttle(&mut self) -> Result<(), Error> {
        let (bytes, most) = (self.bytes(), self.service.config.memory_bytes_max);
        metrics::gauge!(metric_names::BUFFERED_BYTES).set(bytes as f64);
        self.short = bytes >= most || self.short && bytes > most / 2;
        let (mut pause, mut resume) = (Vec::new(), Vec::new());
        for (partition, state) in &mut self.partitions {
            let wanted = self.short && !state.must_read();
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
        self.under_way.sealing_bytes
            + self
                .partitions
                .values()
                .map(PartitionState::held_bytes)
                .sum::<usize>()
    }
}

/// What the records of `partition` are.
fn source(names: &TopicNames, partition: &Partition) -> Result<Source, Error> {
    let topic = &partition.topic.name;
    let tenant = names.tenant_of_outcomes(topic);
    if tenant.is_none() && *topic != names.audit() {
        return Err(Error::Invalid {
            what: format!(
                "topic `{topic}` is among the outcomes, and its name ends in no possible tenant: delete it"
            ),
        });
    }
    Ok(Source {
        partition: partition.clone(),
        tenant,
    })
}

/// The entries of `map`, those behind `last` first.
fn in_turn<'a, K: Ord, V>(
    map: &'a BTreeMap<K, V>,
    last: Option<&'a K>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    let behind = last.map_or(Bound::Unbounded, Bound::Excluded);
    let others = last.map(|last| map.range(..=last));
    map.range((behind, Bound::Unbounded))
        .chain(others.into_iter().flatten())
}

async fn wait_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use schemas::TopicId;
    use topics::{Chunk, Record, TopicRef};

    use super::*;
    use crate::{
        faults,
        range::{Carried, Marks},
    };

    const ASSIGNMENT: Assignment = Assignment(2);

    /// A sink, and a partition of outcomes for each of `indexes`.
    async fn service(indexes: std::ops::Range<i32>) -> (Service, Vec<Partition>) {
        let (topics, names) = (faults::topics().await, faults::names());
        let store = Store::open("memory://lake", &Options::new()).unwrap();
        let topic = Arc::new(TopicRef {
            name: names.outcomes(&faults::acme()),
            id: TopicId::from_bytes([1; 16]),
        });
        let partition = |index| Partition {
            topic: Arc::clone(&topic),
            index,
        };
        let service = Service::over(faults::config("sink", 2_000), topics, names, store);
        (service, indexes.map(partition).collect())
    }

    fn assigned(partitions: &[Partition]) -> Event {
        let assigned = partitions.iter().cloned();
        Event::Assigned(assigned.map(|partition| (partition, ASSIGNMENT)).collect())
    }

    #[tokio::test]
    async fn what_fails_for_a_partition_that_is_held_no_more_does_not_end_the_run() {
        let (service, partitions) = service(0..1).await;
        let mut run = service.begin().await.unwrap();
        let fail = async |run: &mut Run<'_>, assignment| {
            run.spawn(Task::Locate, partitions[0].clone(), assignment, async {
                Err(Error::Overtaken {
                    what: "by its new owner".to_owned(),
                })
            });
            let finished = run.tasks.join_next().await.unwrap();
            run.take_in(finished).map(|_| run.under_way.locating)
        };
        run.handle(assigned(&partitions)).unwrap();
        assert_eq!(fail(&mut run, Assignment(1)).await.unwrap(), 0);
        fail(&mut run, ASSIGNMENT).await.unwrap_err();
        run.handle(Event::Revoked(partitions.clone())).unwrap();
        assert_eq!(fail(&mut run, ASSIGNMENT).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn the_end_of_a_range_that_was_passed_over_is_committed() {
        let (service, partitions) = service(0..1).await;
        let mut run = service.begin().await.unwrap();
        run.handle(assigned(&partitions)).unwrap();
        run.spawn(Task::Locate, partitions[0].clone(), ASSIGNMENT, async {
            Ok(What::Located(Position {
                whole_until: Some(9),
                redo: Default::default(),
                start: 12,
                carried: Carried::Marks(Marks::default()),
            }))
        });
        let finished = run.tasks.join_next().await.unwrap();
        assert_eq!(run.take_in(finished).unwrap(), Some((partitions[0].clone(), 9)));
    }

    #[tokio::test]
    async fn of_many_partitions_that_are_assigned_at_once_only_some_are_looked_up_side_by_side() {
        let (service, partitions) = service(0..20).await;
        let mut run = service.begin().await.unwrap();
        run.handle(assigned(&partitions)).unwrap();
        for partition in &partitions {
            let record = Record {
                offset: 7,
                timestamp_ms: 0,
                stamped_by_log: false,
                key: None,
                value: None,
                headers: Vec::new(),
            };
            let chunk = Chunk {
                partition: partition.clone(),
                assignment: ASSIGNMENT,
                records: vec![record],
            };
            run.handle(Event::Records(chunk)).unwrap();
        }
        let mut side_by_side = Vec::new();
        loop {
            run.locate();
            side_by_side.push(run.under_way.locating);
            let Some(finished) = run.tasks.join_next().await else {
                break;
            };
            run.take_in(finished).unwrap();
        }
        assert_eq!(side_by_side[..13], [LOCATES_AT_ONCE; 13]);
        assert_eq!(side_by_side[13..], [7, 6, 5, 4, 3, 2, 1, 0]);
    }

    #[test]
    fn partitions_that_always_have_work_are_served_in_turn_whatever_they_are_called() {
        let mut partitions = BTreeMap::from([("a", 0), ("b", 0), ("c", 0)]);
        let (mut served, mut last) = (Vec::new(), None);
        for round in 0..8 {
            if round == 4 {
                partitions.remove("b");
            }
            let (next, _) = in_turn(&partitions, last.as_ref()).next().unwrap();
            served.push(*next);
            last = Some(*next);
        }
        assert_eq!(served, ["a", "b", "c", "a", "c", "a", "c", "a"]);
        assert_eq!(in_turn(&partitions, Some(&"a")).count(), 2, "each once");
        assert_eq!(in_turn(&BTreeMap::<i32, ()>::new(), Some(&1)).next(), None);
    }
}
