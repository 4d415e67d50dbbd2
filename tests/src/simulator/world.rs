//! The gate that every side effect passes, and the story of a run.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use schemas::{AdmittedJob, Tenant, TopicId};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Mutation, Plan};

/// A frozen instance goes on after at most this long, and dies at most this long after.
pub(super) const FROZEN_FOR_MAX: Duration = Duration::from_secs(90);
/// What is slow or late comes after at most this long.
const LATE_BY_MAX_MS: u64 = 60_000;
/// At a step so many other tasks may go on first: nothing takes time here, and they would never meet.
const OTHERS_FIRST_MAX: u8 = 5;
/// A run has at most this many faults.
const FAULTS_MAX: usize = 16;
/// A fetch of records takes less than this, a choice for each run: they come at once, while a stage is at other steps, or when
/// it has nothing left to do.
const FETCH_MS_MAX: [u64; 3] = [1, 500, 2_000];
/// What was spent and what waits is known to every ingest after this long: it looks more often, and a look takes no time.
const KNOWN_AFTER: Duration = Duration::from_millis(300);
/// The chances of a fault at a step, in a thousand: calm schedules reach deep, wild ones reach the odd corners.
const CHANCES: [u64; 4] = [5, 20, 60, 150];

/// What goes wrong at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// It is not done, and the caller is told.
    Fails,
    /// It is done, and the caller is told that it failed.
    AnswerLost,
    /// The process is killed before it is done,
    KilledBefore,
    /// or after,
    KilledAfter,
    /// or while it is on its way: it is done later, when the successor is at work.
    KilledAndDoneLater,
    /// The process stops, is taken for dead, and goes on with what it was about when its successor is at work.
    Frozen,
    /// It takes long.
    Slow,
    /// The process is asked to end, and started again.
    Restarted,
    /// The store says "already exists" of what it has not, as S3 does where writes meet.
    Conflict,
    /// The store is full, or gone, for a while.
    Outage,
}

impl Fault {
    /// What may happen to a start, or to a look at where groups stand.
    pub(super) const TO_A_LOOK: &[Self] = &[Self::Fails, Self::KilledBefore, Self::Frozen, Self::Restarted];
    /// What may happen to a read.
    pub(super) const TO_A_READ: &[Self] = &[
        Self::Fails,
        Self::KilledBefore,
        Self::Frozen,
        Self::Slow,
        Self::Restarted,
    ];
    /// What may happen to a commit or an append.
    pub(super) const TO_A_COMMIT: &[Self] = &[
        Self::Fails,
        Self::AnswerLost,
        Self::KilledBefore,
        Self::KilledAfter,
        Self::Frozen,
        Self::Slow,
        Self::Restarted,
    ];
    /// What may happen to a write to the store.
    pub(super) const TO_A_PUT: &[Self] = &[
        Self::Fails,
        Self::AnswerLost,
        Self::KilledBefore,
        Self::KilledAfter,
        Self::KilledAndDoneLater,
        Self::Frozen,
        Self::Slow,
        Self::Restarted,
        Self::Conflict,
        Self::Outage,
    ];
}

/// What is to be done at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Go {
    Do,
    Fail,
    DoAndFail,
    DoAndDie,
    DoLaterAndDie(Duration),
    Conflict,
}

/// The rules of a run, and what has happened.
pub(super) struct World {
    seed: u64,
    chance: u64,
    pub(super) mutation: Option<Mutation>,
    /// Whether processors append and commit as one; otherwise first the one and then the other.
    pub(super) transactional: bool,
    fetch_ms_max: u64,
    spared: BTreeSet<u64>,
    began: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    steps: u64,
    quiet: bool,
    ended: bool,
    trace: Vec<String>,
    faults: Vec<(u64, Fault)>,
    violations: Vec<String>,
    outage_until: Option<Instant>,
    /// Topics have random ids; in the story they go by their names.
    names: BTreeMap<String, String>,
    /// When the tenant of little money had first spent some.
    spent_since: Option<Instant>,
    /// Since when as many records of a tenant's work wait as may, where they do.
    full_since: BTreeMap<Tenant, Instant>,
    /// When each instance of ingest last read a record of jobs.
    read_at: BTreeMap<(String, TopicId, i32, i64), Instant>,
}

impl World {
    pub(super) fn new(plan: &Plan) -> Self {
        let mut random = fastrand::Rng::with_seed(plan.seed);
        Self {
            seed: plan.seed,
            chance: CHANCES[random.usize(0..CHANCES.len())],
            mutation: plan.mutation,
            transactional: random.bool(),
            fetch_ms_max: FETCH_MS_MAX[random.usize(0..FETCH_MS_MAX.len())],
            spared: plan.spared.iter().copied().collect(),
            began: Instant::now(),
            state: Mutex::default(),
        }
    }

    /// How long the log takes to answer a fetch: mostly long enough that whoever waits for it does other things first.
    pub(super) fn fetch_time(&self) -> Duration {
        let mut random = fastrand::Rng::with_seed(self.seed.rotate_left(34) ^ self.state().steps);
        Duration::from_millis(random.u64(0..self.fetch_ms_max))
    }

    /// A choice that is the same in every run of this seed.
    pub(super) fn random(&self, about: &str) -> fastrand::Rng {
        let about = about.bytes().fold(self.seed, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        fastrand::Rng::with_seed(about)
    }

    /// One side effect of `instance`, about to happen: waits while it is frozen, for ever if it is dead, and says what is
    /// to be done. `possible` are the faults that this kind of side effect knows.
    pub(super) async fn step(&self, instance: &Instance, what: &str, possible: &[Fault]) -> Go {
        instance.pass().await;
        let (number, fault) = self.note(instance, what, possible);
        let mut random = fastrand::Rng::with_seed(self.seed.rotate_left(17) ^ number);
        for _ in 0..random.u8(0..OTHERS_FIRST_MAX) {
            tokio::task::yield_now().await;
        }
        let by = Duration::from_millis(random.u64(1..LATE_BY_MAX_MS));
        match fault {
            None => Go::Do,
            Some(Fault::Fails) => Go::Fail,
            Some(Fault::AnswerLost) => Go::DoAndFail,
            Some(Fault::KilledBefore) => instance.die().await,
            Some(Fault::KilledAfter) => Go::DoAndDie,
            Some(Fault::KilledAndDoneLater) => Go::DoLaterAndDie(by),
            Some(Fault::Frozen) => {
                instance.freeze();
                instance.pass().await;
                self.tell(instance, &format!("goes on with: {what}"));
                Go::Do
            }
            Some(Fault::Slow) => {
                tokio::time::sleep(by).await;
                instance.pass().await;
                self.tell(instance, &format!("slowly: {what}"));
                Go::Do
            }
            Some(Fault::Restarted) => {
                instance.shutdown.cancel();
                Go::Do
            }
            Some(Fault::Conflict) => Go::Conflict,
            Some(Fault::Outage) => {
                self.state().outage_until = Some(Instant::now() + by);
                Go::Fail
            }
        }
    }

    fn note(&self, instance: &Instance, what: &str, possible: &[Fault]) -> (u64, Option<Fault>) {
        let mut state = self.state();
        state.steps += 1;
        let number = state.steps;
        let mut random = fastrand::Rng::with_seed(self.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let may = !state.quiet && state.faults.len() < FAULTS_MAX && !self.spared.contains(&number);
        let fault =
            (may && random.u64(0..1_000) < self.chance).then(|| possible[random.usize(0..possible.len())]);
        let mut line = self.line(&state, number, instance, what);
        if let Some(fault) = fault {
            state.faults.push((number, fault));
            line.push_str(&format!("   ✗ {fault:?}"));
        }
        state.trace.push(line);
        (number, fault)
    }

    fn line(&self, state: &State, number: u64, instance: &Instance, what: &str) -> String {
        let mut line = format!(
            "{number:>5} {:>9.3} s  {:<14} {what}",
            self.began.elapsed().as_secs_f64(),
            instance.name
        );
        for (id, name) in &state.names {
            if line.contains(id.as_str()) {
                line = line.replace(id.as_str(), name);
            }
        }
        line
    }

    /// Adds to the story what is no step.
    pub(super) fn tell(&self, instance: &Instance, what: &str) {
        let mut state = self.state();
        let line = self.line(&state, state.steps, instance, what);
        state.trace.push(line);
    }

    pub(super) fn name(&self, id: TopicId, name: &str) {
        self.state()
            .names
            .entry(id.to_string())
            .or_insert_with(|| name.to_owned());
    }

    pub(super) fn outage(&self) -> bool {
        let state = self.state();
        !state.quiet && state.outage_until.is_some_and(|until| Instant::now() < until)
    }

    /// The tenant of little money has spent some.
    pub(super) fn spent(&self) {
        self.state().spent_since.get_or_insert_with(Instant::now);
    }

    /// An instance of ingest reads a record, and decides on it at once.
    pub(super) fn reads(&self, instance: &Instance, topic: TopicId, partition: i32, offset: i64) {
        let record = (instance.name.clone(), topic, partition, offset);
        self.state().read_at.insert(record, Instant::now());
    }

    /// So many records of the work of `tenant` wait, and `most` may.
    pub(super) fn waits(&self, tenant: &Tenant, records: u64, most: u64) {
        let mut state = self.state();
        if records < most {
            state.full_since.remove(tenant);
        } else {
            state
                .full_since
                .entry(tenant.clone())
                .or_insert_with(Instant::now);
        }
    }

    /// An instance of ingest admits a job, whose tenant must not have been known to have spent its budget, if it `has_budget`,
    /// or to have as many records waiting as it may.
    pub(super) fn admits(&self, instance: &Instance, job: &AdmittedJob, has_budget: bool) {
        let state = self.state();
        let origin = &job.origin;
        let record = (
            instance.name.clone(),
            origin.topic_id,
            origin.partition,
            origin.offset,
        );
        let Some(read) = state.read_at.get(&record).copied() else {
            return;
        };
        let spent = state.spent_since.filter(|_| has_budget);
        let full = state.full_since.get(&job.tenant).copied();
        drop(state);
        for (what, since) in [("its budget was spent", spent), ("its queue was full", full)] {
            let after = since.map_or(Duration::ZERO, |since| read.saturating_duration_since(since));
            if after > KNOWN_AFTER {
                let name = &instance.name;
                self.violated(format!(
                    "{name} admitted a job of `{}` {after:?} after {what}",
                    job.tenant
                ));
            }
        }
    }

    pub(super) fn violated(&self, what: String) {
        self.state().violations.push(what);
    }

    /// From now on nothing goes wrong.
    pub(super) fn quieten(&self) {
        self.state().quiet = true;
    }

    /// The run is over: what services still do is none of it.
    pub(super) fn end(&self) {
        self.state().ended = true;
    }

    pub(super) fn has_ended(&self) -> bool {
        self.state().ended
    }

    pub(super) fn take_violations(&self) -> Vec<String> {
        std::mem::take(&mut self.state().violations)
    }

    pub(super) fn take_story(&self) -> (Vec<String>, Vec<(u64, Fault)>) {
        let mut state = self.state();
        (
            std::mem::take(&mut state.trace),
            std::mem::take(&mut state.faults),
        )
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One start of a service: a process.
pub(super) struct Instance {
    pub(super) name: String,
    pub(super) shutdown: CancellationToken,
    life: Mutex<Life>,
    changed: Notify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Runs,
    /// Stopped, and taken for dead.
    Frozen,
    /// Goes on, though taken for dead.
    Zombie,
    Dead,
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Instance {
    pub(super) fn new(name: String) -> Arc<Self> {
        Arc::new(Self {
            name,
            shutdown: CancellationToken::new(),
            life: Mutex::new(Life::Runs),
            changed: Notify::new(),
        })
    }

    pub(super) fn life(&self) -> Life {
        *self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while it is frozen, and for ever if it is dead.
    pub(super) async fn pass(&self) {
        self.until(|life| matches!(life, Life::Runs | Life::Zombie)).await;
    }

    /// Waits until its life is one of those that `wanted` says.
    pub(super) async fn until(&self, wanted: impl Fn(Life) -> bool) {
        loop {
            let mut changed = pin!(self.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            if wanted(self.life()) {
                return;
            }
            changed.await;
        }
    }

    pub(super) fn become_(&self, life: Life) {
        *self.life.lock().unwrap_or_else(PoisonError::into_inner) = life;
        self.changed.notify_waiters();
    }

    /// Freezes it, unless it was taken for dead before.
    fn freeze(&self) {
        if self.life() == Life::Runs {
            self.become_(Life::Frozen);
        }
    }

    /// Kills it, from within: whoever calls does not go on.
    pub(super) async fn die<T>(&self) -> T {
        self.become_(Life::Dead);
        std::future::pending().await
    }
}
