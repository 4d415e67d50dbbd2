//! Topics as one instance of a service sees them: real ones, behind the gate.

use std::{collections::BTreeMap, sync::Arc};

use ::topics::{
    Append, Appender, Assignment, Committed, Committer, Error, Event, Partition, Progress, Reader, Record,
    Standing, Step, Subscription, TopicPattern, TopicSpec, Topics, local::LocalTopics,
};
use async_trait::async_trait;
use schemas::{AdmittedJobs, Outcomes, Policies, Priority, Record as _, Route, Tenant, TopicName};
use tokio::time::{Instant, sleep_until};

use super::{
    Mutation, pools, slots,
    world::{Fault, Go, Instance, Life, World},
};

#[derive(Clone)]
pub(super) struct GatedTopics {
    pub(super) inner: LocalTopics,
    pub(super) world: Arc<World>,
    pub(super) instance: Arc<Instance>,
    /// All tenants that there are.
    pub(super) policies: Arc<Policies>,
}

impl GatedTopics {
    /// Does `effect` as the gate says.
    async fn gate<T>(
        &self,
        what: &str,
        possible: &[Fault],
        effect: impl Future<Output = Result<T, Error>> + Send,
    ) -> Result<T, Error> {
        match self.world.step(&self.instance, what, possible).await {
            Go::Do => effect.await,
            Go::DoAndFail => {
                effect.await?;
                Err(broken(what))
            }
            Go::DoAndDie => {
                let _ = effect.await;
                self.instance.die().await
            }
            Go::Fail => Err(broken(what)),
            Go::Conflict | Go::DoLaterAndDie(_) => unreachable!("these are faults of a store"),
        }
    }

    fn note_reading(&self, event: &Event) {
        if let (Event::Records(chunk), true) = (event, self.instance.name.starts_with("ingest")) {
            let Partition { topic, index } = &chunk.partition;
            for record in &chunk.records {
                self.world.reads(&self.instance, topic.id, *index, record.offset);
            }
        }
    }

    /// Tells of jobs that are admitted, so that it is seen whether their tenants' quotas allow it.
    fn note_admitting(&self, steps: &[Step]) {
        for append in steps.iter().flat_map(|step| &step.appends) {
            let AdmittedJobs(jobs) = match AdmittedJobs::decode(append.value.as_deref().unwrap_or_default()) {
                Ok(jobs) if append.topic.as_str().contains(".work.") => jobs,
                _ => continue,
            };
            for job in &jobs {
                self.world
                    .admits(&self.instance, job, self.has_budget(&job.tenant));
            }
        }
    }

    fn has_budget(&self, tenant: &Tenant) -> bool {
        let policy = self.policies.tenants.get(tenant);
        policy.is_some_and(|policy| policy.budget.is_some())
    }

    /// Tells how many records of work wait of each tenant that has a limit of them.
    async fn note_waiting(&self) {
        for (tenant, policy) in &self.policies.tenants {
            let Some(most) = policy.queue_records_max else {
                continue;
            };
            let (mut waiting, mut records) = (0, 0);
            for pool in pools() {
                let work = Priority::ALL.map(|priority| self.policies.topics.work(&pool, priority, tenant));
                let group = format!("{}-{pool}", slots::PROCESSOR);
                let standing = self.inner.standing(&group, &work).await;
                let standing = standing.expect("nothing fails here");
                waiting += standing.values().map(|standing| standing.behind).sum::<u64>();
                let only = Subscription::to(work.map(TopicPattern::Exact).into());
                records += self.inner.lag(&group, &only).await.expect("nothing fails here");
            }
            // Markers of transactions count, but not alone.
            let waiting = if records == 0 { 0 } else { waiting };
            self.world.waits(tenant, waiting, most.get().into());
        }
    }

    /// Whether `steps` bill a tenant that has a budget.
    fn bills(&self, steps: &[Step]) -> bool {
        let appends = steps.iter().flat_map(|step| &step.appends);
        let mut values = appends.filter_map(|append| append.value.as_deref());
        values.any(|value| {
            let outcomes = Outcomes::decode(value).into_iter().flat_map(Outcomes::unpack);
            let mut of_budgets = outcomes.filter(|outcome| self.has_budget(&outcome.common.tenant));
            of_budgets.any(|outcome| !outcome.billed_cost().is_zero())
        })
    }

    fn is_sink(&self) -> bool {
        self.instance.name.starts_with("sink")
    }
}

fn broken(what: &str) -> Error {
    Error::Unavailable {
        what: what.to_owned(),
        detail: "the connection broke".to_owned(),
    }
}

#[async_trait]
impl Topics for GatedTopics {
    async fn ensure(&self, specs: &[TopicSpec]) -> Result<(), Error> {
        self.inner.ensure(specs).await
    }

    async fn reader(&self, group: &str, subscription: &Subscription) -> Result<Box<dyn Reader>, Error> {
        let joined = self.inner.reader(group, subscription);
        let inner = self.gate("joins its group", Fault::TO_A_LOOK, joined).await?;
        Ok(Box::new(GatedReader::new(self.clone(), inner)))
    }

    async fn stage(
        &self,
        group: &str,
        subscription: &Subscription,
    ) -> Result<(Box<dyn Reader>, Box<dyn Committer>), Error> {
        let joined = self.inner.stage(group, subscription);
        let (reader, committer) = self.gate("joins its group", Fault::TO_A_LOOK, joined).await?;
        let committer = GatedCommitter {
            topics: self.clone(),
            inner: committer,
            appender: self.inner.appender().await?,
            held_back: None,
        };
        Ok((
            Box::new(GatedReader::new(self.clone(), reader)),
            Box::new(committer),
        ))
    }

    async fn appender(&self) -> Result<Box<dyn Appender>, Error> {
        Ok(Box::new(GatedAppender {
            inner: self.inner.appender().await?,
            topics: self.clone(),
        }))
    }

    async fn lag(&self, group: &str, subscription: &Subscription) -> Result<u64, Error> {
        self.inner.lag(group, subscription).await
    }

    async fn standing(
        &self,
        group: &str,
        topics: &[TopicName],
    ) -> Result<BTreeMap<(TopicName, i32), Standing>, Error> {
        let standing = self.inner.standing(group, topics);
        if self.instance.name.starts_with("ingest") {
            // It looks all the time, so that most faults would be these.
            let mut standing = standing.await?;
            if self.world.mutation == Some(Mutation::ForgetWaiting) {
                standing.values_mut().for_each(|standing| standing.behind = 0);
            }
            return Ok(standing);
        }
        self.gate("looks where its group stands", Fault::TO_A_LOOK, standing)
            .await
    }

    async fn partitions(&self, topics: &[TopicName]) -> Result<BTreeMap<TopicName, u32>, Error> {
        self.inner.partitions(topics).await
    }

    async fn last(&self, topic: &TopicName) -> Result<Option<Record>, Error> {
        self.inner.last(topic).await
    }
}

struct GatedReader {
    topics: GatedTopics,
    /// None once its process was taken for dead: then it is in no group.
    inner: Option<Box<dyn Reader>>,
    owned: BTreeMap<Partition, Assignment>,
    /// Read, and not delivered yet.
    event: Option<Event>,
    /// When it has come.
    comes_at: Instant,
}

impl GatedReader {
    fn new(topics: GatedTopics, inner: Box<dyn Reader>) -> Self {
        Self {
            topics,
            inner: Some(inner),
            owned: BTreeMap::new(),
            event: None,
            comes_at: Instant::now(),
        }
    }

    /// Gives up its place in the group where its process was taken for dead.
    fn expire(&mut self) {
        if self.topics.instance.life() != Life::Runs {
            self.inner = None;
            self.event = None;
        }
    }

    async fn read(&mut self) -> Result<(), Error> {
        let instance = Arc::clone(&self.topics.instance);
        let Some(inner) = &mut self.inner else {
            instance.pass().await;
            if self.owned.is_empty() {
                return std::future::pending().await;
            }
            self.event = Some(Event::Revoked(
                std::mem::take(&mut self.owned).into_keys().collect(),
            ));
            return Ok(());
        };
        tokio::select! {
            biased;
            () = instance.until(|life| life != Life::Runs) => self.expire(),
            event = inner.next() => {
                self.event = Some(event?);
                self.comes_at = Instant::now() + self.topics.world.fetch_time();
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Reader for GatedReader {
    async fn next(&mut self) -> Result<Event, Error> {
        loop {
            self.expire();
            match &self.event {
                None => self.read().await?,
                Some(Event::Records(chunk)) => {
                    let (partition, first) = (chunk.partition.clone(), chunk.records[0].offset);
                    let end = first + chunk.records.len() as i64;
                    let what = format!("reads {partition} {first}..{end}");
                    sleep_until(self.comes_at).await;
                    self.topics
                        .gate(&what, Fault::TO_A_READ, async { Ok(()) })
                        .await?;
                    self.expire();
                    if self.topics.world.mutation == Some(Mutation::CommitBeforeWriting)
                        && let (Some(inner), true) = (&mut self.inner, self.topics.is_sink())
                    {
                        inner.commit(&Progress::from([(partition, end)])).await?;
                    }
                    if let Some(event) = self.event.take() {
                        self.topics.note_reading(&event);
                        return Ok(event);
                    }
                }
                Some(Event::Assigned(_) | Event::Revoked(_)) => {
                    let event = self.event.take().expect("it was just looked at");
                    match &event {
                        Event::Assigned(partitions) => {
                            for (partition, _) in partitions {
                                self.topics
                                    .world
                                    .name(partition.topic.id, partition.topic.name.as_str());
                            }
                            self.owned.extend(partitions.iter().cloned());
                        }
                        Event::Revoked(partitions) => {
                            self.owned.retain(|partition, _| !partitions.contains(partition))
                        }
                        Event::Records(_) => {}
                    }
                    return Ok(event);
                }
            }
        }
    }

    fn pause(&mut self, partitions: &[Partition]) -> Result<(), Error> {
        self.inner
            .as_mut()
            .map_or(Ok(()), |inner| inner.pause(partitions))
    }

    fn resume(&mut self, partitions: &[Partition]) -> Result<(), Error> {
        self.inner
            .as_mut()
            .map_or(Ok(()), |inner| inner.resume(partitions))
    }

    async fn commit(&mut self, progress: &Progress) -> Result<(), Error> {
        let what = format!(
            "commits {}",
            told(
                progress
                    .iter()
                    .map(|(partition, end)| format!("{partition}→{end}"))
            )
        );
        let topics = self.topics.clone();
        let inner = &mut self.inner;
        let effect = async {
            match inner {
                Some(inner) => inner.commit(progress).await,
                None => Ok(()),
            }
        };
        topics.gate(&what, Fault::TO_A_COMMIT, effect).await
    }

    async fn close(self: Box<Self>) -> Result<(), Error> {
        Ok(())
    }
}

struct GatedCommitter {
    topics: GatedTopics,
    inner: Box<dyn Committer>,
    appender: Box<dyn Appender>,
    /// Steps that come after the next ones, where order is not kept.
    held_back: Option<Vec<Step>>,
}

#[async_trait]
impl Committer for GatedCommitter {
    async fn append_and_commit(&mut self, mut steps: Vec<Step>) -> Result<Committed, Error> {
        let bills = self.is_processor() && self.topics.bills(&steps);
        self.topics.note_admitting(&steps);
        if self.topics.world.mutation == Some(Mutation::ForgetSpending) {
            steps.iter_mut().for_each(|step| step.note = None);
        }
        let committed = self.append_and_commit_gated(steps).await?;
        if bills && committed.left_out.is_empty() {
            self.topics.world.spent();
        }
        Ok(committed)
    }
}

impl GatedCommitter {
    async fn append_and_commit_gated(&mut self, mut steps: Vec<Step>) -> Result<Committed, Error> {
        let mutation = self.topics.world.mutation;
        match mutation {
            Some(Mutation::CommitWindowsOutOfOrder) if self.is_processor() => match self.held_back.take() {
                None => {
                    self.held_back = Some(steps);
                    return Ok(Committed::default());
                }
                Some(mut held_back) => {
                    // The position moves on as it should: only the order is wrong.
                    for late in &mut held_back {
                        let of_same = steps.iter().find(|step| step.source == late.source);
                        late.next_offset =
                            of_same.map_or(late.next_offset, |step| step.next_offset.max(late.next_offset));
                    }
                    steps.extend(held_back);
                }
            },
            Some(Mutation::DecideTwice) if !self.is_processor() => {
                let mut random = self.topics.world.random(&self.topics.instance.name);
                for append in steps.iter_mut().flat_map(|step| &mut step.appends) {
                    let has_one = append.topic.as_str().ends_with("dead-letters") || is_audit(append);
                    append.partition = append
                        .partition
                        .filter(|_| has_one)
                        .or_else(|| Some(random.i32(0..2)));
                }
            }
            Some(Mutation::AuditApart) if !self.is_processor() => {
                let appends = steps
                    .iter_mut()
                    .flat_map(|step| step.appends.extract_if(.., |append| is_audit(append)));
                let appends: Vec<Append> = appends.collect();
                let what = format!("appends {} records of audit", appends.len());
                let appended = append_all(&*self.appender, appends);
                self.topics.gate(&what, Fault::TO_A_COMMIT, appended).await?;
            }
            Some(Mutation::ReverseOutcomes) if self.is_processor() => {
                steps.iter_mut().for_each(|step| step.appends.reverse());
                change_outcomes(&mut steps, |outcomes| {
                    outcomes.0.reverse();
                    outcomes.0.iter_mut().for_each(|group| group.rows.reverse());
                });
            }
            Some(Mutation::ForgetRoutes) if self.is_processor() => {
                let one = TopicName::new("work").expect("a name");
                change_outcomes(&mut steps, |outcomes| {
                    for group in &mut outcomes.0 {
                        group.common.route = Route::Work(one.clone());
                    }
                });
            }
            _ => {}
        }
        let what = told(
            steps
                .iter()
                .map(|step| format!("{}→{} with {}", step.source, step.next_offset, step.appends.len())),
        );
        let gate = self.topics.clone();
        let transactional = match self.is_processor() {
            true => self.topics.world.transactional,
            false => mutation != Some(Mutation::DecideTwice),
        };
        if transactional && mutation != Some(Mutation::CommitBeforeAppending) {
            let what = format!("appends and commits {what}");
            return gate
                .gate(
                    &what,
                    Fault::TO_A_COMMIT,
                    commit(&mut *self.inner, &self.topics, steps),
                )
                .await;
        }
        let appends: Vec<Append> = steps
            .iter_mut()
            .flat_map(|step| std::mem::take(&mut step.appends))
            .collect();
        let (what_appended, what_committed) = (format!("appends for {what}"), format!("commits {what}"));
        if mutation == Some(Mutation::CommitBeforeAppending) {
            let committed = gate
                .gate(
                    &what_committed,
                    Fault::TO_A_COMMIT,
                    commit(&mut *self.inner, &self.topics, steps),
                )
                .await?;
            gate.gate(
                &what_appended,
                Fault::TO_A_COMMIT,
                append_all(&*self.appender, appends),
            )
            .await?;
            return Ok(committed);
        }
        // A broker takes some of a batch's records and then the connection breaks.
        let (first, rest) = appends.split_at(appends.len() / 2);
        gate.gate(
            &format!("{what_appended}, the first half"),
            Fault::TO_A_COMMIT,
            append_all(&*self.appender, first.to_vec()),
        )
        .await?;
        gate.gate(
            &format!("{what_appended}, the rest"),
            Fault::TO_A_COMMIT,
            append_all(&*self.appender, rest.to_vec()),
        )
        .await?;
        gate.gate(
            &what_committed,
            Fault::TO_A_COMMIT,
            commit(&mut *self.inner, &self.topics, steps),
        )
        .await
    }

    fn is_processor(&self) -> bool {
        self.topics.instance.name.starts_with("processor")
    }
}

fn change_outcomes(steps: &mut [Step], change: impl Fn(&mut Outcomes<'_>)) {
    let appends = steps.iter_mut().flat_map(|step| &mut step.appends);
    for value in appends.filter_map(|append| append.value.as_mut()) {
        if let Ok(mut outcomes) = Outcomes::decode(value) {
            change(&mut outcomes);
            *value = outcomes.encode().into();
        }
    }
}

/// Commits past the gate, and tells what waits since then.
async fn commit(
    inner: &mut dyn Committer,
    topics: &GatedTopics,
    steps: Vec<Step>,
) -> Result<Committed, Error> {
    let committed = inner.append_and_commit(steps).await;
    topics.note_waiting().await;
    committed
}

fn is_audit(append: &Append) -> bool {
    append.topic.as_str().ends_with("audit")
}

async fn append_all(appender: &dyn Appender, appends: Vec<Append>) -> Result<(), Error> {
    appender
        .append(appends)
        .await
        .into_iter()
        .try_for_each(|appended| appended.map(drop))
}

struct GatedAppender {
    topics: GatedTopics,
    inner: Box<dyn Appender>,
}

#[async_trait]
impl Appender for GatedAppender {
    async fn append(&self, records: Vec<Append>) -> Vec<Result<(Partition, i64), Error>> {
        if records.is_empty() {
            return Vec::new();
        }
        let (count, what) = (records.len(), format!("appends {} records", records.len()));
        let appended = async { Ok(self.inner.append(records).await) };
        let gated = self.topics.gate(&what, Fault::TO_A_COMMIT, appended).await;
        gated.unwrap_or_else(|_| (0..count).map(|_| Err(broken(&what))).collect())
    }
}

fn told(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(", ")
}
