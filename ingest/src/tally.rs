//! What was decided, counted by class: for the metrics, and for the audit of a commit.

use std::{collections::BTreeMap, sync::Arc};

use schemas::{Actor, AuditEvent, Finding, Measure, ModelName, Operation, Origins, ReasonCode, Tenant};
use topics::Partition;

use crate::{
    Decided, Decision,
    departure::{Counts, Departure},
    metric_names,
};

/// So many attempts to be somebody else, or to do what he may not, are told one by one of a commit and a partition, with what
/// was wrong. Who makes more of them makes them by the thousand, and the audit must not grow by what somebody refused can send:
/// the rest is counted in its class.
pub const ATTEMPTS_TOLD_MAX: usize = 16;
/// What the audit calls a record that is no job.
const NO_JOB: &str = "no_job";

/// Decisions on records of one partition, counted by class.
#[derive(Debug, Default)]
pub struct Tally {
    classes: BTreeMap<Class, Stretch>,
    attempts: Vec<Attempt>,
    departures: Vec<Departure>,
}

/// Decisions that are alike.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Class {
    tenant: Tenant,
    fate: Fate,
    /// The access policies that decided.
    by: Option<Arc<str>>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    Admitted(ModelName),
    Rejected(ReasonCode),
    DeadLetter,
}

/// How many there are, and among which records.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    count: u64,
    input_bytes: u64,
    first_offset: i64,
    last_offset: i64,
}

/// An attempt to be somebody else, or to do what he may not.
#[derive(Debug)]
struct Attempt {
    class: Class,
    offset: i64,
    message: String,
}

impl Tally {
    /// Counts the decision on the record at `offset`.
    pub fn add(&mut self, offset: i64, decided: &Decided) {
        let class = Class::of(decided);
        if let Decision::Reject(outcome) = &decided.decision
            && class.fate.is_attempt()
            && self.attempts.len() < ATTEMPTS_TOLD_MAX
        {
            let reason = outcome.row.verdict.reason().expect("a rejection has its reason");
            self.attempts.push(Attempt {
                class: class.clone(),
                offset,
                message: reason.message.to_string(),
            });
        }
        let input_bytes = match &decided.decision {
            Decision::Admit(job) => job.input.len() as u64,
            Decision::Reject(_) | Decision::DeadLetter(_) => 0,
        };
        let one = Stretch {
            input_bytes,
            ..Stretch::of_one(offset)
        };
        self.count(class, one);
    }

    /// Takes what was found to depart from the usual.
    pub(crate) fn find(&mut self, departures: Vec<Departure>) {
        self.departures.extend(departures);
    }

    /// What came of each tenant.
    pub(crate) fn counts(&self) -> BTreeMap<Tenant, Counts> {
        let mut counts: BTreeMap<Tenant, Counts> = BTreeMap::new();
        for (Class { tenant, fate, .. }, stretch) in &self.classes {
            let counts = counts.entry(tenant.clone()).or_default();
            counts.add(Measure::Jobs, stretch.count);
            counts.add(Measure::InputBytes, stretch.input_bytes);
            if let Some(measure) = fate.departs_in() {
                counts.add(measure, stretch.count);
            }
        }
        counts
    }

    /// Counts what `later` has, of records that come after.
    pub(crate) fn extend(&mut self, later: Self) {
        for (class, stretch) in later.classes {
            self.count(class, stretch);
        }
        let room = ATTEMPTS_TOLD_MAX - self.attempts.len();
        self.attempts.extend(later.attempts.into_iter().take(room));
        self.departures.extend(later.departures);
    }

    fn count(&mut self, class: Class, more: Stretch) {
        let none = Stretch {
            count: 0,
            input_bytes: 0,
            ..more
        };
        let same = self.classes.entry(class).or_insert(none);
        same.count += more.count;
        same.input_bytes += more.input_bytes;
        same.last_offset = more.last_offset;
    }

    /// Adds it to the metrics: looking a metric up for each record would cost as much as deciding on it.
    pub(crate) fn measure(&self) {
        for (Class { tenant, fate, .. }, Stretch { count, .. }) in &self.classes {
            let word = match fate {
                Fate::Admitted(_) => "admitted",
                Fate::Rejected(code) => {
                    metrics::counter!(metric_names::REJECTED, "tenant" => tenant.to_string(), "reason_code" => code.as_str())
                        .increment(*count);
                    "rejected"
                }
                Fate::DeadLetter => {
                    metrics::counter!(metric_names::DEAD_LETTERS).increment(*count);
                    continue;
                }
            };
            metrics::counter!(metric_names::DECIDED, "tenant" => tenant.to_string(), "decision" => word)
                .increment(*count);
        }
    }

    /// It as events of `time_ms`, on records of `source`: attempts one by one, and of each class the others. The counts of
    /// all of them add up to the records. Then what departs from the usual.
    pub fn events(mut self, source: &Partition, time_ms: i64) -> Vec<AuditEvent> {
        let mut events = Vec::new();
        for Attempt {
            class,
            offset,
            message,
        } in std::mem::take(&mut self.attempts)
        {
            if let Some(stretch) = self.classes.get_mut(&class) {
                stretch.count -= 1;
            }
            events.push(AuditEvent {
                detail: Some(message),
                ..class.event(source, Stretch::of_one(offset), time_ms)
            });
        }
        let rest = self.classes.iter().filter(|(_, stretch)| stretch.count > 0);
        events.extend(rest.map(|(class, stretch)| class.event(source, *stretch, time_ms)));
        let departures = std::mem::take(&mut self.departures).into_iter();
        events.extend(departures.map(|departure| event_of(departure, source, time_ms)));
        events
    }
}

impl Stretch {
    fn of_one(offset: i64) -> Self {
        Self {
            count: 1,
            input_bytes: 0,
            first_offset: offset,
            last_offset: offset,
        }
    }

    fn of(self, source: &Partition) -> Origins {
        Origins {
            topic: source.topic.name.clone(),
            topic_id: source.topic.id,
            partition: source.index,
            first_offset: self.first_offset,
            last_offset: self.last_offset,
        }
    }
}

fn event_of(departure: Departure, source: &Partition, time_ms: i64) -> AuditEvent {
    let Departure {
        tenant,
        uid,
        measure,
        stage,
        detail,
        offset,
    } = departure;
    AuditEvent {
        time_ms,
        operation: Operation::FindDeparture,
        actor: Actor::Tenant(tenant.clone()),
        tenant: Some(tenant),
        source: source.topic.name.to_string(),
        count: 1,
        refused: None,
        detail: Some(detail),
        policy: None,
        model: None,
        origins: Some(Stretch::of_one(offset).of(source)),
        finding: Some(Finding { uid, measure, stage }),
    }
}

impl Class {
    fn of(Decided { decision, by }: &Decided) -> Self {
        let (tenant, fate) = match decision {
            Decision::Admit(job) => (job.tenant.clone(), Fate::Admitted(job.model.clone())),
            Decision::Reject(outcome) => {
                let reason = outcome.row.verdict.reason().expect("a rejection has its reason");
                (outcome.common.tenant.clone(), Fate::Rejected(reason.code))
            }
            Decision::DeadLetter(_) => (Tenant::unclaimed(), Fate::DeadLetter),
        };
        Self {
            tenant,
            fate,
            by: by.clone(),
        }
    }

    fn event(&self, source: &Partition, stretch: Stretch, time_ms: i64) -> AuditEvent {
        let (model, refused) = match &self.fate {
            Fate::Admitted(model) => (Some(model.clone()), None),
            Fate::Rejected(code) => (None, Some(code.as_str())),
            Fate::DeadLetter => (None, Some(NO_JOB)),
        };
        AuditEvent {
            time_ms,
            operation: Operation::DecideJobs,
            tenant: Some(self.tenant.clone()),
            actor: Actor::Tenant(self.tenant.clone()),
            source: source.topic.name.to_string(),
            count: stretch.count,
            refused: refused.map(str::to_owned),
            detail: None,
            policy: self.by.as_deref().map(str::to_owned),
            model,
            origins: Some(stretch.of(source)),
            finding: None,
        }
    }
}

impl Fate {
    /// What such a fate counts as, beside a job. What wants for a quota says that the quota works, and a deadline
    /// passes where ingest was away.
    fn departs_in(&self) -> Option<Measure> {
        match self {
            Self::Admitted(_)
            | Self::Rejected(
                ReasonCode::BudgetExhausted
                | ReasonCode::QueueFull
                | ReasonCode::Throttled
                | ReasonCode::DeadlinePassed,
            ) => None,
            Self::Rejected(_) if self.is_attempt() => Some(Measure::Attempts),
            Self::Rejected(_) | Self::DeadLetter => Some(Measure::Rejections),
        }
    }

    /// Whether somebody may have tried to be somebody else, or to do what he may not: then it is told with what was wrong.
    fn is_attempt(&self) -> bool {
        let Self::Rejected(code) = self else { return false };
        matches!(
            code,
            ReasonCode::InvalidTenant
                | ReasonCode::UnknownTenant
                | ReasonCode::TenantMismatch
                | ReasonCode::TokenMissing
                | ReasonCode::TokenInvalid
                | ReasonCode::TokenExpired
                | ReasonCode::NotPermitted
        )
    }
}

#[cfg(test)]
mod tests {
    use authority::AccessPolicies;
    use proptest::prelude::*;
    use rust_decimal::Decimal;
    use schemas::{
        AuditEvents, ModelTerms, Policies, Record as _, Task, TenantPolicy, TopicId, TopicName, TopicNames,
    };
    use topics::{Record, TopicRef};

    use super::*;
    use crate::{InForce, Permissions, Received, decide, identity::Identity, quota::Quotas};

    const VALUES: [&str; 5] = [
        r#"{"id":"a","tenant":"acme","model":"minilm","input":"x"}"#,
        r#"{"id":"a","tenant":"globex","model":"minilm","input":"x"}"#,
        r#"{"id":"a","tenant":"acme","model":"minilm","input":""}"#,
        r#"{"id":"a","tenant":"../acme","model":"minilm","input":"x"}"#,
        "no job",
    ];
    const SPOOFED: usize = 3;

    fn policies() -> Policies {
        let terms = ModelTerms {
            task: Task::Embed,
            price_per_device_second: Decimal::ZERO,
        };
        let tenants = ["acme", "globex"].map(|name| (Tenant::new(name).unwrap(), TenantPolicy::default()));
        Policies {
            topics: TopicNames::new(&TopicName::new("jobs").unwrap(), "tributary.").unwrap(),
            tenants: tenants.into(),
            models: BTreeMap::from([(ModelName::new("minilm").unwrap(), terms)]),
            pools: BTreeMap::new(),
            input_bytes_max: 1_000,
            currency: "USD".to_owned(),
        }
    }

    fn source() -> Partition {
        let topic = TopicRef {
            name: TopicName::new("jobs").unwrap(),
            id: TopicId::from_bytes([7; 16]),
        };
        Partition {
            topic: Arc::new(topic),
            index: 1,
        }
    }

    /// The events of records with these values, which came in chunks of `chunk` records.
    fn events(values: &[usize], chunk: usize) -> Vec<AuditEvent> {
        let (policies, source) = (policies(), source());
        let permissions = Permissions::of(Arc::new(AccessPolicies::built_in()));
        let mut whole = Tally::default();
        let records: Vec<_> = (100..).zip(values).collect();
        for records in records.chunks(chunk) {
            let mut tally = Tally::default();
            for (offset, value) in records {
                let record = Record {
                    offset: *offset,
                    timestamp_ms: 0,
                    stamped_by_log: false,
                    key: None,
                    value: Some(VALUES[**value].into()),
                    headers: Vec::new(),
                };
                let received = Received {
                    source: &source,
                    record: &record,
                };
                let in_force = InForce {
                    policies: &policies,
                    identity: &Identity::nowhere(),
                    permissions: &permissions,
                    quotas: &Quotas::default(),
                };
                tally.add(*offset, &decide(received, in_force, 0));
            }
            whole.extend(tally);
        }
        whole.events(&source, 1)
    }

    proptest! {
        #[test]
        fn events_count_each_record_once_and_tell_no_more_attempts_than_allowed(
            values in prop::collection::vec(0..VALUES.len(), 1..100),
            chunk in 1_usize..30,
        ) {
            let events = events(&values, chunk);
            let mut counted = BTreeMap::new();
            for event in &events {
                let class = (event.tenant.as_ref().unwrap().to_string(), event.refused.clone());
                *counted.entry(class).or_insert(0) += event.count;
                let origins = event.origins.as_ref().unwrap();
                prop_assert!(origins.first_offset <= origins.last_offset);
            }
            let mut expected = BTreeMap::new();
            for value in &values {
                let (tenant, refused) = [
                    ("acme", None),
                    ("globex", None),
                    ("acme", Some("empty_input")),
                    ("unclaimed", Some("invalid_tenant")),
                    ("unclaimed", Some("no_job")),
                ][*value];
                *expected.entry((tenant.to_owned(), refused.map(str::to_owned))).or_insert(0) += 1;
            }
            prop_assert_eq!(counted, expected);
            let spoofed = values.iter().filter(|value| **value == SPOOFED).count();
            let told = events.iter().filter(|event| event.detail.is_some()).count();
            prop_assert_eq!(told, spoofed.min(ATTEMPTS_TOLD_MAX));
            prop_assert!(events.len() <= ATTEMPTS_TOLD_MAX + VALUES.len());
        }
    }

    #[test]
    fn a_class_covers_its_records_from_the_first_to_the_last() {
        let events = events(&[4, 0, 1, 0, 4, 0], 2);
        let covered: Vec<_> = events
            .iter()
            .map(|event| {
                let origins = event.origins.as_ref().unwrap();
                (event.count, origins.first_offset, origins.last_offset)
            })
            .collect();
        assert_eq!(covered, [(3, 101, 105), (1, 102, 102), (2, 100, 104)]);
    }

    #[test]
    fn a_commit_of_three_tenants_is_audited_in_about_a_kilobyte() {
        let values: Vec<usize> = (0..20_000).map(|number| number % 3).collect();
        let records = AuditEvents::pack(events(&values, 1_000));
        let [record] = &records[..] else {
            panic!("{records:?}")
        };
        let bytes = record.encode().len();
        assert!(bytes < 1_200, "{bytes} bytes for 20,000 jobs");
    }
}
