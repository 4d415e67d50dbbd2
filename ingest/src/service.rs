//! The loop: read, decide, append and commit together.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use schemas::{
    AdmittedJob, AdmittedJobs, AuditEvents, Authority, Outcome, Outcomes, Policies, Tenant, TenantPolicy,
    TopicName, TopicNames,
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Mutex, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use topics::{
    Append, Arrivals, Chunk, Commits, Error, Event, Partition, Retention, Step, Subscription, TopicPattern,
    TopicSpec, Topics, dead_letter,
};

use crate::{
    Decision, GroupOf, InForce, Permissions, Received, decide,
    departure::{Departure, Departures, Seen},
    identity::{Identity, without_token},
    look::{keep_looking, moment},
    metric_names,
    quota::Quotas,
    tally::Tally,
};

/// A record may be copied into the dead letters whole, so that topic takes the largest that a broker is set to take.
const DEAD_LETTER_BYTES_MAX: u32 = 64 << 20;
/// What an admitted job may have in bytes beside its input.
const ADMITTED_JOB_OVERHEAD_BYTES: usize = 64 << 10;

/// How ingest works.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The consumer group. Every instance of one pipeline has the same.
    pub group: String,
    /// A commit waits this long for more records to share it, unless it is full.
    pub linger_ms: u64,
    /// No commit begins sooner after the one before, unless it is full.
    pub commit_interval_ms: u64,
    /// A commit is full with this many records.
    pub commit_records_max: usize,
    /// A commit is full with this many bytes of records: what ingest holds in memory is about twice this.
    pub commit_bytes_max: usize,
}

/// Decides which jobs may run.
pub struct Service {
    config: Config,
    topics: Arc<dyn Topics>,
    policies: watch::Receiver<Arc<Policies>>,
    identity: watch::Receiver<Arc<Identity>>,
    authority: watch::Receiver<Arc<dyn Authority>>,
    processors: GroupOf,
    audited: bool,
    /// What is usual of the tenants: it outlives a fault, after which the service runs again.
    departures: Mutex<Departures>,
}

impl Service {
    /// Decides on the jobs in `topics`, on each chunk of them by the `policies`, the `identity` and the `authority` of that
    /// moment. Whoever sends other policies has made [their topics](Service::topic_specs) before. What tenants have spent and
    /// have waiting it knows from where the groups of `processors` stand.
    pub fn new(
        config: Config,
        topics: Arc<dyn Topics>,
        policies: watch::Receiver<Arc<Policies>>,
        identity: watch::Receiver<Arc<Identity>>,
        authority: watch::Receiver<Arc<dyn Authority>>,
        processors: GroupOf,
    ) -> Self {
        Self {
            config,
            topics,
            policies,
            identity,
            authority,
            processors,
            audited: true,
            departures: Mutex::default(),
        }
    }

    /// The same, which leaves what it decides out of the audit.
    pub fn unaudited(self) -> Self {
        Self {
            audited: false,
            ..self
        }
    }

    /// What ingest reads.
    pub fn subscription(policies: &Policies) -> Subscription {
        Subscription {
            arrivals: Arrivals::Single,
            ..Subscription::to(vec![
                TopicPattern::Exact(policies.topics.jobs()),
                TopicPattern::Under(policies.topics.doors_prefix()),
            ])
        }
    }

    /// The internal topics that must exist for these policies.
    pub fn topic_specs(policies: &Policies) -> Vec<TopicSpec> {
        let names = &policies.topics;
        let job_bytes_max = policies.input_bytes_max + ADMITTED_JOB_OVERHEAD_BYTES;
        let record_bytes_max = u32::try_from(job_bytes_max.max(Outcomes::BYTES_MAX)).unwrap_or(u32::MAX);
        let mut specs = vec![
            TopicSpec {
                message_bytes_max: Some(DEAD_LETTER_BYTES_MAX),
                ..TopicSpec::new(names.dead_letters(), 1)
            },
            TopicSpec {
                message_bytes_max: Some(record_bytes_max),
                ..TopicSpec::new(names.outcomes(&Tenant::unclaimed()), 1)
            },
            Self::audit_spec(names),
        ];
        for (tenant, policy) in &policies.tenants {
            let work = policy.priorities();
            let work = work.map(|priority| names.work(&policy.pool, priority, tenant));
            specs.extend(work.chain([names.outcomes(tenant)]).map(|name| TopicSpec {
                message_bytes_max: Some(record_bytes_max),
                retention: retention(policy),
                ..TopicSpec::new(name, policy.partitions)
            }));
        }
        specs
    }

    /// The topic of the audit. Its one partition makes it one chain.
    pub fn audit_spec(names: &TopicNames) -> TopicSpec {
        TopicSpec {
            message_bytes_max: u32::try_from(2 * AuditEvents::BYTES_MAX).ok(),
            ..TopicSpec::new(names.audit(), 1)
        }
    }

    /// The tenants' own topics of jobs.
    pub fn door_specs(policies: &Policies) -> Vec<TopicSpec> {
        let door = |(tenant, policy): (&Tenant, &TenantPolicy)| TopicSpec {
            retention: retention(policy),
            ..TopicSpec::new(policies.topics.jobs_of(tenant), policy.partitions)
        };
        policies.tenants.iter().map(door).collect()
    }

    /// Works until `shutdown`, then commits what it has decided and leaves the group. Calls `ready` once it reads.
    ///
    /// # Errors
    /// Those of the topics. After a retryable one, run again: it goes on from the committed positions.
    pub async fn run(
        &self,
        shutdown: CancellationToken,
        ready: &(dyn Fn() + Send + Sync),
    ) -> Result<(), Error> {
        let mut policies = self.policies.clone();
        let mut in_force = Arc::clone(&policies.borrow_and_update());
        self.topics.ensure(&Self::topic_specs(&in_force)).await?;
        let subscription = Self::subscription(&in_force);
        let mut authority = self.authority.clone();
        let mut permissions = Permissions::of(Arc::clone(&authority.borrow_and_update()));
        let mut quotas = Quotas::default();
        let mut departures = self.departures.lock().await;
        departures.start_over();
        let first = moment(self.topics.as_ref(), Arc::clone(&in_force), &self.processors).await?;
        quotas.looked(Arc::clone(&first.ledger));
        let (moments_sender, mut moments) = watch::channel(first);
        let mut looking = JoinSet::new();
        looking.spawn(keep_looking(
            Arc::clone(&self.topics),
            policies,
            Arc::clone(&self.processors),
            moments_sender,
        ));
        let (mut reader, committer) = self.topics.stage(&self.config.group, &subscription).await?;
        ready();
        let mut commits = Commits::new(committer);
        let mut gathered = Gathered::default();
        let mut commit_began = Instant::now();
        let mut not_before = commit_began;
        loop {
            let full = gathered.is_full(&self.config);
            let due = gathered.due(not_before, &self.config);
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                committed = commits.finished() => {
                    committed?;
                    metrics::histogram!(metric_names::COMMIT_SECONDS).record(commit_began.elapsed().as_secs_f64());
                }
                () = wait_until(due), if commits.is_idle() => {
                    commit_began = Instant::now();
                    not_before = commit_began + Duration::from_millis(self.config.commit_interval_ms);
                    commits.start(gathered.take(self.audit_topic(&in_force).as_ref()));
                }
                Ok(()) = moments.changed() => {
                    let moment = moments.borrow_and_update().clone();
                    if !Arc::ptr_eq(&in_force, &moment.policies) {
                        permissions.forget();
                    }
                    in_force = moment.policies;
                    quotas.looked(moment.ledger);
                }
                Ok(()) = authority.changed() => {
                    permissions = Permissions::of(Arc::clone(&authority.borrow_and_update()));
                }
                event = reader.next(), if !full => match event? {
                    Event::Assigned(partitions) => {
                        tracing::info!(?partitions, "partitions assigned");
                        let partitions = partitions.iter().map(|(partition, _)| partition);
                        departures.assigned(partitions, now_ms());
                    }
                    Event::Revoked(partitions) => {
                        tracing::info!(?partitions, "partitions revoked");
                        gathered.forget(&partitions);
                        departures.revoked(&partitions);
                    }
                    Event::Records(chunk) => {
                        let identity = Arc::clone(&self.identity.borrow());
                        let (appends, mut tally) =
                            Self::decide_chunk(&in_force, &identity, &permissions, &mut quotas, &chunk);
                        let counts = tally.counts();
                        let seen = Seen::of(&chunk, &counts);
                        let found = departures.see(&seen, &in_force, &mut quotas, now_ms());
                        found.iter().for_each(Departure::tell);
                        tally.find(found);
                        gathered.add(appends, tally, &chunk);
                    }
                },
                else => unreachable!("the commit under way or the reader always answers"),
            }
        }
        if !commits.is_idle() {
            commits.finished().await?;
        }
        if !gathered.steps.is_empty() {
            commits.start(gathered.take(self.audit_topic(&in_force).as_ref()));
            commits.finished().await?;
        }
        reader.close().await
    }

    fn audit_topic(&self, policies: &Policies) -> Option<TopicName> {
        self.audited.then(|| policies.topics.audit())
    }

    fn decide_chunk(
        policies: &Policies,
        identity: &Identity,
        permissions: &Permissions,
        quotas: &mut Quotas,
        chunk: &Chunk,
    ) -> (Vec<Append>, Tally) {
        let now_ms = now_ms();
        let source = &chunk.partition;
        let mut tally = Tally::default();
        let mut appends = Vec::new();
        let mut admitted: BTreeMap<(TopicName, i32), (Tenant, Vec<AdmittedJob>)> = BTreeMap::new();
        let mut rejected: BTreeMap<(TopicName, i32), Vec<Outcome<'static>>> = BTreeMap::new();
        for record in &chunk.records {
            let in_force = InForce {
                policies,
                identity,
                permissions,
                quotas,
            };
            let decided = decide(Received { source, record }, in_force, now_ms);
            tally.add(record.offset, &decided);
            match decided.decision {
                Decision::Admit(job) => {
                    let policy = &policies.tenants[&job.tenant];
                    let priority = job.priority.unwrap_or_default();
                    let topic = policies.topics.work(&policy.pool, priority, &job.tenant);
                    let partition = job.origin.spread_over(policy.partitions);
                    let tenant = job.tenant.clone();
                    let of_partition = admitted.entry((topic, partition));
                    of_partition.or_insert_with(|| (tenant, Vec::new())).1.push(job);
                }
                Decision::Reject(outcome) => {
                    let tenant = &outcome.common.tenant;
                    let topic = policies.topics.outcomes(tenant);
                    let partition = outcome.origin().spread_over(policies.partitions_of(tenant));
                    rejected.entry((topic, partition)).or_default().push(outcome);
                }
                Decision::DeadLetter(reason) => {
                    tracing::warn!(%source, offset = record.offset, reason, "record is no job");
                    let topic = policies.topics.dead_letters();
                    let record = without_token(record);
                    appends.push(dead_letter(source, &record, &reason, topic, now_ms));
                }
            }
        }
        for ((topic, partition), (tenant, jobs)) in admitted {
            for record in AdmittedJobs::pack(jobs) {
                quotas.admitted(&tenant);
                appends.push(append(topic.clone(), partition, &record, now_ms));
            }
        }
        for ((topic, partition), outcomes) in rejected {
            for record in Outcomes::pack(outcomes) {
                appends.push(append(topic.clone(), partition, &record, now_ms));
            }
        }
        tally.measure();
        (appends, tally)
    }
}

fn now_ms() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

/// How long the topics of a tenant keep a record.
fn retention(policy: &TenantPolicy) -> Retention {
    const DAY_MS: u64 = 24 * 60 * 60 * 1_000;
    policy.retention_days.map_or(Retention::Cluster, |days| {
        Retention::TimeMs(u64::from(days.get()) * DAY_MS)
    })
}

fn append(topic: TopicName, partition: i32, record: &impl schemas::Record, now_ms: i64) -> Append {
    Append {
        topic,
        partition: Some(partition),
        timestamp_ms: now_ms,
        key: None,
        value: Some(record.encode().into()),
        headers: Vec::new(),
    }
}

/// What was decided since the last commit.
#[derive(Default)]
struct Gathered {
    steps: BTreeMap<Partition, (Step, Tally)>,
    records: usize,
    bytes: usize,
    /// When the first of it came.
    since: Option<Instant>,
}

impl Gathered {
    fn add(&mut self, appends: Vec<Append>, tally: Tally, chunk: &Chunk) {
        let Some(last) = chunk.records.last() else { return };
        self.since.get_or_insert_with(Instant::now);
        self.records += chunk.records.len();
        self.bytes += chunk
            .records
            .iter()
            .map(topics::Record::size_bytes)
            .sum::<usize>();
        let (step, tallied) = self.steps.entry(chunk.partition.clone()).or_insert_with(|| {
            let step = Step {
                source: chunk.partition.clone(),
                assignment: chunk.assignment,
                next_offset: 0,
                appends: Vec::new(),
                note: None,
            };
            (step, Tally::default())
        });
        step.next_offset = last.offset + 1;
        step.appends.extend(appends);
        tallied.extend(tally);
    }

    fn forget(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            self.steps.remove(partition);
        }
        if self.steps.is_empty() {
            *self = Self::default();
        }
    }

    /// When it is to be committed; `not_before` may be waited for, unless it is full.
    fn due(&self, not_before: Instant, config: &Config) -> Option<Instant> {
        let since = self.since?;
        if self.is_full(config) {
            return Some(since);
        }
        Some(not_before.max(since + Duration::from_millis(config.linger_ms)))
    }

    fn is_full(&self, config: &Config) -> bool {
        self.records >= config.commit_records_max || self.bytes >= config.commit_bytes_max
    }

    /// It as steps, each with its audit on the topic of that: what is left out of the commit is left out of the audit.
    fn take(&mut self, audit: Option<&TopicName>) -> Vec<Step> {
        let now_ms = now_ms();
        let gathered = std::mem::take(self).steps.into_values();
        let step = |(mut step, tally): (Step, Tally)| {
            if let Some(audit) = audit {
                let records = AuditEvents::pack(tally.events(&step.source, now_ms));
                let append = |record| append(audit.clone(), 0, &record, now_ms);
                step.appends.extend(records.into_iter().map(append));
            }
            step
        };
        gathered.map(step).collect()
    }
}

async fn wait_until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use authority::AccessPolicies;
    use rust_decimal::Decimal;
    use schemas::{ModelName, ModelTerms, Operation, Record as _, Task, TopicId, TopicNames};
    use topics::{Assignment, Header, Record, TopicRef};

    use super::*;

    fn policies() -> Policies {
        let terms = ModelTerms {
            task: Task::Embed,
            price_per_device_second: Decimal::ZERO,
        };
        Policies {
            topics: TopicNames::new(&TopicName::new("jobs").unwrap(), "tributary.").unwrap(),
            tenants: BTreeMap::from([(Tenant::new("acme").unwrap(), TenantPolicy::default())]),
            models: BTreeMap::from([(ModelName::new("minilm").unwrap(), terms)]),
            pools: BTreeMap::new(),
            input_bytes_max: 1_000,
            currency: "USD".to_owned(),
        }
    }

    fn decide_chunk(chunk: &Chunk) -> (Vec<Append>, Tally) {
        let permissions = Permissions::of(Arc::new(AccessPolicies::built_in()));
        let mut quotas = Quotas::default();
        Service::decide_chunk(
            &policies(),
            &Identity::nowhere(),
            &permissions,
            &mut quotas,
            chunk,
        )
    }

    #[test]
    fn a_commit_waits_for_the_one_before_unless_it_is_full_and_for_little_after_a_quiet_time() {
        let config = Config {
            group: String::new(),
            linger_ms: 5,
            commit_interval_ms: 100,
            commit_records_max: 10,
            commit_bytes_max: 1_000,
        };
        let since = Instant::now();
        let after = |ms| since + Duration::from_millis(ms);
        let mut gathered = Gathered::default();
        assert_eq!(gathered.due(since, &config), None, "there is nothing to commit");
        gathered.since = Some(since);
        assert_eq!(gathered.due(since, &config), Some(after(5)));
        assert_eq!(gathered.due(after(90), &config), Some(after(90)));
        gathered.records = 10;
        assert_eq!(gathered.due(after(90), &config), Some(since));
    }

    #[test]
    fn a_dead_letter_keeps_every_header_but_the_token() {
        let topic = TopicRef {
            name: TopicName::new("jobs").unwrap(),
            id: TopicId::from_bytes([7; 16]),
        };
        let headers = ["authorization", "traceparent", "Authorization", "AUTHORIZATION"];
        let record = Record {
            offset: 0,
            timestamp_ms: 0,
            stamped_by_log: false,
            key: None,
            value: Some("no job".into()),
            headers: headers.map(|name| Header::text(name, "Bearer secret")).into(),
        };
        let chunk = Chunk {
            partition: Partition {
                topic: Arc::new(topic),
                index: 0,
            },
            assignment: Assignment(0),
            records: vec![record],
        };
        let (appends, _) = decide_chunk(&chunk);
        let kept: Vec<&str> = appends[0]
            .headers
            .iter()
            .filter(|header| header.value.as_deref() == Some(b"Bearer secret"))
            .map(|header| header.name.as_str())
            .collect();
        assert_eq!(kept, ["traceparent"]);
    }

    #[test]
    fn whatever_time_a_producer_claims_what_becomes_of_its_record_is_stamped_with_now() {
        let topic = TopicRef {
            name: TopicName::new("jobs").unwrap(),
            id: TopicId::from_bytes([7; 16]),
        };
        let values = [
            r#"{"id":"a","tenant":"acme","model":"minilm","input":"admitted"}"#,
            r#"{"id":"b","tenant":"acme","model":"minilm","input":""}"#,
            "a dead letter",
        ];
        let records = [(-1, "0001-01-01T00:00:00Z"), (i64::MAX, "9999-12-31T23:59:59Z")]
            .into_iter()
            .flat_map(|(timestamp_ms, ce_time)| {
                values.map(|value| Record {
                    offset: 0,
                    timestamp_ms,
                    stamped_by_log: false,
                    key: None,
                    value: Some(value.into()),
                    headers: vec![Header::text("ce_time", ce_time)],
                })
            });
        let chunk = Chunk {
            partition: Partition {
                topic: Arc::new(topic),
                index: 0,
            },
            assignment: Assignment(0),
            records: records.collect(),
        };
        let began_ms = chrono::Utc::now().timestamp_millis();
        let (appends, _) = decide_chunk(&chunk);
        let ended_ms = chrono::Utc::now().timestamp_millis();
        assert_eq!(appends.len(), 4, "jobs share a record, and so do rejections");
        for append in appends {
            assert!((began_ms..=ended_ms).contains(&append.timestamp_ms), "{append:?}");
        }
    }

    #[test]
    fn what_is_gathered_of_a_partition_is_audited_in_its_step_and_forgotten_with_it() {
        let partition = |index| Partition {
            topic: Arc::new(TopicRef {
                name: TopicName::new("jobs").unwrap(),
                id: TopicId::from_bytes([7; 16]),
            }),
            index,
        };
        let gathered = || {
            let mut gathered = Gathered::default();
            for (index, offset) in [(0, 10), (1, 20), (0, 11)] {
                let record = Record {
                    offset,
                    timestamp_ms: 0,
                    stamped_by_log: false,
                    key: None,
                    value: Some(r#"{"id":"a","tenant":"acme","model":"minilm","input":"x"}"#.into()),
                    headers: Vec::new(),
                };
                let chunk = Chunk {
                    partition: partition(index),
                    assignment: Assignment(0),
                    records: vec![record],
                };
                let (appends, tally) = decide_chunk(&chunk);
                gathered.add(appends, tally, &chunk);
            }
            gathered
        };
        let audit = policies().topics.audit();
        let audited = |steps: Vec<Step>| -> Vec<(i32, u64)> {
            let of_step = |step: &Step| -> u64 {
                let appends = step.appends.iter().filter(|append| append.topic == audit);
                let events = appends
                    .flat_map(|append| AuditEvents::decode(append.value.as_deref().unwrap()).unwrap().0);
                events.map(|event| event.count).sum()
            };
            steps
                .iter()
                .map(|step| (step.source.index, of_step(step)))
                .collect()
        };
        assert_eq!(audited(gathered().take(Some(&audit))), [(0, 2), (1, 1)]);
        let mut half = gathered();
        half.forget(&[partition(0)]);
        assert_eq!(audited(half.take(Some(&audit))), [(1, 1)]);
        assert_eq!(
            audited(gathered().take(None)),
            [(0, 0), (1, 0)],
            "where nothing is audited"
        );
    }

    #[test]
    fn a_flood_is_audited_in_the_step_in_which_it_is_found_and_held_back_from_the_next_chunk_on() {
        const TEN_MINUTES_MS: i64 = 600_000;
        let partition = Partition {
            topic: Arc::new(TopicRef {
                name: TopicName::new("jobs").unwrap(),
                id: TopicId::from_bytes([7; 16]),
            }),
            index: 0,
        };
        let mut policies = policies();
        let throttle = |policy: &mut TenantPolicy| policy.abuse.throttle = true;
        policies.tenants.values_mut().for_each(throttle);
        let (mut departures, mut quotas) = (Departures::default(), Quotas::default());
        let permissions = Permissions::of(Arc::new(AccessPolicies::built_in()));
        // As the departures see it, the flood comes ten minutes from now, and nothing more is taken for as long.
        let flood_ms = now_ms() + TEN_MINUTES_MS;
        let begin_ms = flood_ms - 300 * TEN_MINUTES_MS;
        departures.assigned([&partition], begin_ms);
        let mut come = |jobs: usize, now_ms: i64| {
            let record = Record {
                offset: 42,
                timestamp_ms: now_ms,
                stamped_by_log: false,
                key: None,
                value: Some(r#"{"id":"a","tenant":"acme","model":"minilm","input":"x"}"#.into()),
                headers: Vec::new(),
            };
            let chunk = Chunk {
                partition: partition.clone(),
                assignment: Assignment(0),
                records: vec![record; jobs],
            };
            let identity = Identity::nowhere();
            let (appends, mut tally) =
                Service::decide_chunk(&policies, &identity, &permissions, &mut quotas, &chunk);
            let counts = tally.counts();
            tally.find(departures.see(&Seen::of(&chunk, &counts), &policies, &mut quotas, now_ms));
            let mut gathered = Gathered::default();
            gathered.add(appends, tally, &chunk);
            let audit = policies.topics.audit();
            let step = gathered.take(Some(&audit)).remove(0);
            let of_audit = step.appends.into_iter().filter(|append| append.topic == audit);
            of_audit
                .flat_map(|append| AuditEvents::decode(append.value.as_deref().unwrap()).unwrap().0)
                .map(|event| (event.operation, event.count, event.refused))
                .collect::<Vec<_>>()
        };
        for interval in 0..300 {
            let decided = (Operation::DecideJobs, 10, None);
            assert_eq!(come(10, begin_ms + interval * TEN_MINUTES_MS), [decided]);
        }
        let decided = (Operation::DecideJobs, 500, None);
        assert_eq!(
            come(500, flood_ms),
            [decided, (Operation::FindDeparture, 1, None)]
        );
        let throttled = (Operation::DecideJobs, 500, Some("throttled".to_owned()));
        assert_eq!(come(500, flood_ms), [throttled]);
    }
}
