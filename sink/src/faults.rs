//! The sink over stores that fail: whichever operation goes wrong, and whether or not it was done all the same, the next
//! sink ends with each row once; and a store that the protocol cannot rest on is refused.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{
    CopyOptions, Error as StoreError, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result as StoreResult,
    memory::InMemory, path::Path,
};
use schemas::{
    Actor, AuditEvent, AuditEvents, Common, DeviceShare, Digest, Engine, Finding, FindingStage, JobId,
    Measure, ModelName, Operation, Origins, Outcome, Outcomes, Record as _, Route, Row, Run, Task, Tenant,
    TopicId, TopicName, TopicNames, Verdict,
};
use tokio_util::sync::CancellationToken;
use topics::{Append, Topics, local::LocalTopics};

use crate::{
    Config, Created, Depth, Error, Service, Store, layout,
    verify::{Report, verify_audit_of, verify_store},
};

const PARTITIONS: u32 = 2;
const OUTCOMES: i64 = 24;
pub(crate) const AUDIT_RECORDS: usize = 10;
pub(crate) const EVENTS_A_RECORD: usize = 4;

const MIDNIGHT_MS: i64 = 1_790_035_200_000;

/// What goes wrong with a store.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// The operation of this number and all after it fail; the first one is done all the same where `done`.
    FromOperation { number: usize, done: bool },
    /// A create looks whether the object is there and then writes it, with time for others between the two.
    CreateIsNotAtomic,
    /// So many creates are answered "already exists" and leave nothing, as S3 does where writes meet.
    Conflicts(usize),
    /// So many creates get no answer, and are done all the same where `done`.
    NoAnswer { creates: usize, done: bool },
}

struct Faulty {
    inner: Arc<InMemory>,
    fault: Fault,
    operations: AtomicUsize,
}

impl Faulty {
    fn over(inner: &Arc<InMemory>, fault: Fault) -> Store {
        let faulty = Self {
            inner: Arc::clone(inner),
            fault,
            operations: AtomicUsize::new(0),
        };
        Store::over(Arc::new(faulty), "a faulty store")
    }

    /// Counts an operation on `path`; the start-up proof is none. Answers whether it is to be done, and to fail.
    fn meets(&self, path: Option<&Path>) -> (bool, bool) {
        let Fault::FromOperation { number, done } = self.fault else {
            return (true, false);
        };
        if path.is_some_and(|path| path.as_ref().starts_with(layout::PROBES)) {
            return (true, false);
        }
        let this = self.operations.fetch_add(1, Ordering::SeqCst);
        (this < number || this == number && done, this >= number)
    }
}

fn broken() -> StoreError {
    StoreError::Generic {
        store: "faulty",
        source: "the connection broke".into(),
    }
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faulty({:?})", self.fault)
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        path: &Path,
        payload: PutPayload,
        mut options: PutOptions,
    ) -> StoreResult<PutResult> {
        match self.fault {
            Fault::CreateIsNotAtomic if options.mode == PutMode::Create => {
                if self.inner.get_opts(path, GetOptions::default()).await.is_ok() {
                    return Err(exists(path));
                }
                tokio::task::yield_now().await;
                options.mode = PutMode::Overwrite;
            }
            Fault::Conflicts(conflicts) if self.operations.fetch_add(1, Ordering::SeqCst) < conflicts => {
                return Err(exists(path));
            }
            Fault::NoAnswer { creates, done } if self.operations.fetch_add(1, Ordering::SeqCst) < creates => {
                if done {
                    self.inner.put_opts(path, payload, options).await?;
                }
                return Err(broken());
            }
            _ => {}
        }
        let (done, failed) = self.meets(Some(path));
        if !done {
            return Err(broken());
        }
        let put = self.inner.put_opts(path, payload, options).await;
        if failed { Err(broken()) } else { put }
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> StoreResult<GetResult> {
        match self.meets(Some(path)) {
            (_, true) => Err(broken()),
            _ => self.inner.get_opts(path, options).await,
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        match self.meets(prefix) {
            (_, true) => futures::stream::iter([Err(broken())]).boxed(),
            _ => self.inner.list(prefix),
        }
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, StoreResult<Path>>,
    ) -> BoxStream<'static, StoreResult<Path>> {
        self.inner.delete_stream(paths)
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StoreResult<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

fn exists(path: &Path) -> StoreError {
    StoreError::AlreadyExists {
        path: path.to_string(),
        source: "taken".into(),
    }
}

pub(crate) fn names() -> TopicNames {
    TopicNames::new(&TopicName::new("jobs").unwrap(), "tributary.").unwrap()
}

pub(crate) fn acme() -> Tenant {
    Tenant::new("acme").unwrap()
}

pub(crate) fn outcome(offset: i64) -> Outcome<'static> {
    let common = Common {
        origin_topic: TopicName::new("jobs").unwrap(),
        origin_topic_id: TopicId::from_bytes([1; 16]),
        route: Route::Work(names().work(&schemas::Pool::default(), schemas::Priority::Normal, &acme())),
        tenant: acme(),
        model: "minilm".to_owned(),
        engine: Some(Engine {
            task: Task::Embed,
            model_digest: Digest::from_bytes([7; 32]),
            model_dtype: Some("f32".into()),
            model_path: Some("candle".into()),
        }),
        price_per_device_second: "0.000125".parse().unwrap(),
        currency: "USD".to_owned(),
    };
    let row = Row {
        origin_partition: 0,
        origin_offset: offset,
        job_id: JobId::new(format!("job-{offset}")).unwrap(),
        verdict: Verdict::Succeeded {
            embedding: vec![offset as f32, 0.5].into(),
        },
        run: Some(Run {
            input_tokens: 3,
            truncated: false,
            queue_time_ns: 5,
        }),
        device: Some(DeviceShare {
            device_time_ns: 11,
            work_units: 3,
            batch_id: format!("batch-{offset}").into(),
            batch_jobs: 1,
            batch_device_time_ns: 11,
        }),
        submitted_at_ms: 0,
        completed_at_ms: 0,
        labels: Default::default(),
        trace_id: None,
    };
    Outcome { common, row }
}

/// Outcomes on two partitions and two days, the first three of each partition twice, as a processor leaves them that ran
/// them again without transactions. A record has two of them the second time, so one record is repeated by half.
pub(crate) async fn topics() -> Arc<LocalTopics> {
    const DAY_MS: i64 = 86_400_000;
    let topics = LocalTopics::in_memory();
    let topic = names().outcomes(&acme());
    let spec = topics::TopicSpec::new;
    topics
        .ensure(&[
            spec(topic.clone(), PARTITIONS),
            spec(names().audit(), 1),
            spec(names().dead_letters(), 1),
        ])
        .await
        .unwrap();
    let append = |partition: u32, number: usize, outcomes: &[Outcome<'_>]| Append {
        topic: topic.clone(),
        partition: Some(partition.try_into().unwrap()),
        timestamp_ms: 1_790_000_000_000 + DAY_MS * (number % 2) as i64,
        key: None,
        value: Some(Outcomes::pack(outcomes.to_vec())[0].encode().into()),
        headers: Vec::new(),
    };
    let mut appends = Vec::new();
    for partition in 0..PARTITIONS {
        let outcomes: Vec<_> = (i64::from(partition)..OUTCOMES)
            .step_by(PARTITIONS as usize)
            .map(outcome)
            .collect();
        let records = std::iter::once(&outcomes[..3]).chain(outcomes.chunks(2));
        appends.extend(
            records
                .enumerate()
                .map(|(number, record)| append(partition, number, record)),
        );
    }
    appends.extend((0..AUDIT_RECORDS).map(|number| Append {
        topic: names().audit(),
        partition: Some(0),
        // Midnight is in the middle, and the clocks of those who append are not quite the same.
        timestamp_ms: MIDNIGHT_MS + [-9_000, -7_000, 1_000, -2_000, 5_000][number % 5],
        key: None,
        value: Some(events(number).encode().into()),
        headers: Vec::new(),
    }));
    for appended in topics.appender().await.unwrap().append(appends).await {
        appended.unwrap();
    }
    Arc::new(topics)
}

fn events(number: usize) -> AuditEvents {
    let origins = Origins {
        topic: TopicName::new("jobs").unwrap(),
        topic_id: TopicId::from_bytes([1; 16]),
        partition: 0,
        first_offset: 0,
        last_offset: number as i64,
    };
    let decided = AuditEvent {
        time_ms: number as i64,
        operation: Operation::DecideJobs,
        tenant: Some(acme()),
        actor: Actor::Tenant(acme()),
        source: "jobs".to_owned(),
        count: 1,
        refused: None,
        detail: None,
        policy: Some("submitters".to_owned()),
        model: Some(ModelName::new("minilm").unwrap()),
        origins: Some(origins),
        finding: None,
    };
    let refused = AuditEvent {
        refused: Some("tenant_mismatch".to_owned()),
        detail: Some("it names another".to_owned()),
        model: None,
        ..decided.clone()
    };
    let taken = AuditEvent {
        operation: Operation::TakeKeys,
        tenant: None,
        actor: Actor::Service("ingest-0".to_owned()),
        source: "keys.json".to_owned(),
        policy: None,
        model: None,
        origins: None,
        ..decided.clone()
    };
    let found = AuditEvent {
        operation: Operation::FindDeparture,
        detail: Some("more jobs than usual".to_owned()),
        policy: None,
        model: None,
        finding: Some(Finding {
            uid: format!("{number}-acme-jobs"),
            measure: Measure::Jobs,
            stage: if number.is_multiple_of(2) {
                FindingStage::Begun
            } else {
                FindingStage::Ended
            },
        }),
        ..decided.clone()
    };
    AuditEvents(vec![decided, refused, taken, found])
}

/// Runs a sink until it has nothing left to do, or fails. Its files are small, so that a partition takes several ranges.
pub(crate) async fn run_sink(topics: &Arc<LocalTopics>, store: Store) -> Result<(), Error> {
    run_sink_of("sink", 2_000, topics, store).await
}

pub(crate) fn config(group: &str, file_bytes_max: usize) -> Config {
    Config {
        group: group.to_owned(),
        url: String::new(),
        flush_interval_ms: 0,
        file_bytes_max,
        memory_bytes_max: 1 << 20,
        options: Default::default(),
    }
}

async fn run_sink_of(
    group: &str,
    file_bytes_max: usize,
    topics: &Arc<LocalTopics>,
    store: Store,
) -> Result<(), Error> {
    let service = Service::over(
        config(group, file_bytes_max),
        Arc::clone(topics) as _,
        names(),
        store,
    );
    let shutdown = CancellationToken::new();
    let done = async {
        let subscription = Service::subscription(&names());
        while topics.lag(group, &subscription).await.unwrap() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        shutdown.cancel();
    };
    let running = service.run(shutdown.clone(), &|| {});
    tokio::select! {
        result = running => result,
        // The service ends after it.
        () = done.then(|()| std::future::pending()) => unreachable!("it is pending for ever"),
    }
}

/// What the lake holds, whose audit is whole.
async fn report(store: &Arc<InMemory>) -> Report {
    let store = Store::over(Arc::clone(store) as _, "the lake");
    let audit = verify_audit_of(&store, &[]).await.unwrap();
    assert!(audit.is_sound(), "{audit}");
    let events = audit.counts().values().sum::<u64>();
    assert_eq!(events, (AUDIT_RECORDS * EVENTS_A_RECORD) as u64);
    verify_store(&store, Depth::Rows).await.unwrap()
}

// Creates that fail are tried again after a pause.
#[tokio::test(start_paused = true)]
async fn whichever_operation_fails_the_next_sink_ends_with_each_row_once() {
    for done in [false, true] {
        let mut number = 0;
        loop {
            let (topics, lake) = (topics().await, Arc::new(InMemory::new()));
            let first = run_sink(
                &topics,
                Faulty::over(&lake, Fault::FromOperation { number, done }),
            )
            .await;
            let second = run_sink(&topics, Store::over(Arc::clone(&lake) as _, "the lake")).await;
            second.unwrap_or_else(|error| panic!("after operation {number} failed, done: {done}: {error}"));
            let report = report(&lake).await;
            assert!(report.is_sound(), "operation {number}, done: {done}: {report}");
            assert_eq!(
                report.outcomes(),
                OUTCOMES as u64,
                "operation {number}, done: {done}"
            );
            match first {
                Err(error) => assert!(error.is_retryable(), "{error}"),
                Ok(()) => break,
            }
            number += 1;
        }
        assert!(number > 20, "only {number} operations were tried");
    }
}

#[tokio::test]
async fn two_sinks_that_both_believe_they_own_a_partition_write_each_row_once() {
    let (topics, lake) = (topics().await, Arc::new(InMemory::new()));
    let store = || Store::over(Arc::clone(&lake) as _, "the lake");
    // Of two groups, each is given every partition; and they cut their ranges at different sizes. Who is overtaken starts
    // over.
    let run = async |group, file_bytes_max| {
        loop {
            match run_sink_of(group, file_bytes_max, &topics, store()).await {
                Err(Error::Overtaken { .. }) => {}
                ended => return ended,
            }
        }
    };
    let (one, other) = tokio::join!(run("one", 2_000), run("other", 3_000));
    one.unwrap();
    other.unwrap();
    let report = report(&lake).await;
    assert!(report.is_sound(), "{report}");
    assert_eq!(report.outcomes(), OUTCOMES as u64);
}

#[tokio::test]
async fn a_store_whose_create_is_not_atomic_is_refused_with_what_would_do() {
    let lake = Arc::new(InMemory::new());
    let error = run_sink(&topics().await, Faulty::over(&lake, Fault::CreateIsNotAtomic))
        .await
        .unwrap_err();
    assert!(!error.is_retryable(), "{error}");
    let text = error.to_string();
    for part in [
        "a faulty store",
        "does not create atomically",
        "of 16 creates of one key 16 won",
        "versitygw",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let left: Vec<_> = lake.list(None).try_collect().await.unwrap();
    assert!(left.is_empty(), "nothing was written: {left:?}");
}

#[tokio::test]
async fn a_store_is_not_blamed_for_a_proof_in_which_nobody_is_told_that_he_won() {
    let in_conflict = |creates| Faulty::over(&Arc::new(InMemory::new()), Fault::Conflicts(creates));
    in_conflict(16).prove_create_is_atomic().await.unwrap();
    let error = in_conflict(usize::MAX)
        .prove_create_is_atomic()
        .await
        .unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert!(error.to_string().contains("none is told that it won"), "{error}");
}

#[tokio::test]
async fn already_exists_is_not_taken_for_success_where_nothing_is_there() {
    let lake = Arc::new(InMemory::new());
    let store = Faulty::over(&lake, Fault::Conflicts(3));
    let (path, bytes) = (layout::path("a"), Bytes::from_static(b"1"));
    assert_eq!(store.create(&path, bytes.clone()).await.unwrap(), Created::New);
    assert_eq!(store.read(&path).await.unwrap(), Some(bytes.clone()));
    let for_ever = Faulty::over(&Arc::new(InMemory::new()), Fault::Conflicts(usize::MAX));
    let error = for_ever.create(&path, bytes).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_create_that_gets_no_answer_is_tried_again_whether_or_not_it_was_done() {
    let (path, bytes) = (layout::path("a"), Bytes::from_static(b"1"));
    for (done, created) in [(false, Created::New), (true, Created::Same)] {
        let store = Faulty::over(&Arc::new(InMemory::new()), Fault::NoAnswer { creates: 1, done });
        assert_eq!(store.create(&path, bytes.clone()).await.unwrap(), created);
        assert_eq!(store.read(&path).await.unwrap(), Some(bytes.clone()));
    }
    let (creates, done) = (usize::MAX, false);
    let for_ever = Faulty::over(&Arc::new(InMemory::new()), Fault::NoAnswer { creates, done });
    let error = for_ever.create(&path, bytes).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
}

#[tokio::test]
async fn an_outcome_of_a_newer_version_stops_the_sink_before_it_is_lost() {
    let topics = topics().await;
    let mut value = Outcomes::pack([outcome(99)])[0].encode();
    value[0] += 1;
    let append = Append {
        topic: names().outcomes(&acme()),
        partition: Some(0),
        timestamp_ms: 0,
        key: None,
        value: Some(value.into()),
        headers: Vec::new(),
    };
    for appended in topics.appender().await.unwrap().append(vec![append]).await {
        appended.unwrap();
    }
    let error = run_sink(&topics, Store::over(Arc::new(InMemory::new()), "the lake"))
        .await
        .unwrap_err();
    assert!(!error.is_retryable(), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("tributary.outcomes.acme[0] at offset 7") && text.contains("upgrade the readers first"),
        "{text}"
    );
}
