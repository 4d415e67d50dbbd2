//! What was done and decided, and by whom, for those who look afterwards.

use serde::{Deserialize, Serialize};

use crate::{ModelName, Record, Tenant, TopicId, TopicName};

/// Something that was done or refused, or so many jobs that were decided alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEvent {
    /// When, in milliseconds since 1970 UTC.
    pub time_ms: i64,
    /// What was asked for.
    pub operation: Operation,
    /// Whom it is about: the owner of the jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Tenant>,
    /// Who asked.
    pub actor: Actor,
    /// Where it came from: a topic, an address, a file.
    pub source: String,
    /// How often it happened.
    pub count: u64,
    /// Why it was refused, for programs; none where it was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// What was done or refused, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The policy that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// The model that the jobs may run on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelName>,
    /// Among which records the jobs stood.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origins: Option<Origins>,
    /// What departs from the usual; none where nothing was found but something done or refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finding: Option<Finding>,
}

/// What was asked for. Other people's queries rely on these words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Operation {
    /// Jobs to be run: what ingest decided.
    #[serde(rename = "jobs.decide")]
    DecideJobs,
    /// A request at the HTTP door, refused as a whole.
    #[serde(rename = "jobs.request")]
    RequestJobs,
    /// An instance to go by another set of tenants.
    #[serde(rename = "tenants.take")]
    TakeTenants,
    /// All instances to go by another set of tenants.
    #[serde(rename = "tenants.apply")]
    ApplyTenants,
    /// An instance to trust other keys.
    #[serde(rename = "keys.take")]
    TakeKeys,
    /// An instance to go by other access policies.
    #[serde(rename = "access-policies.take")]
    TakeAccessPolicies,
    /// An instance to tell how it is.
    #[serde(rename = "health.view")]
    ViewHealth,
    /// An instance to tell its metrics.
    #[serde(rename = "metrics.view")]
    ViewMetrics,
    /// Dead letters to be put back.
    #[serde(rename = "dead-letters.replay")]
    ReplayDeadLetters,
    /// Nothing: what a tenant sends departs from the usual, or does so no more.
    #[serde(rename = "departures.find")]
    FindDeparture,
}

impl Operation {
    /// The word in the column `api.operation`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DecideJobs => "jobs.decide",
            Self::RequestJobs => "jobs.request",
            Self::TakeTenants => "tenants.take",
            Self::ApplyTenants => "tenants.apply",
            Self::TakeKeys => "keys.take",
            Self::TakeAccessPolicies => "access-policies.take",
            Self::ViewHealth => "health.view",
            Self::ViewMetrics => "metrics.view",
            Self::ReplayDeadLetters => "dead-letters.replay",
            Self::FindDeparture => "departures.find",
        }
    }

    /// What it does to what is there.
    pub fn activity(self) -> Activity {
        match self {
            Self::DecideJobs | Self::RequestJobs | Self::ReplayDeadLetters | Self::FindDeparture => {
                Activity::Create
            }
            Self::ViewHealth | Self::ViewMetrics => Activity::Read,
            Self::TakeTenants | Self::ApplyTenants | Self::TakeKeys | Self::TakeAccessPolicies => {
                Activity::Update
            }
        }
    }
}

/// What an operation does to what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Something comes to be that was not there before.
    Create,
    /// Something is looked at.
    Read,
    /// Something is changed.
    Update,
}

/// Who asked, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Actor {
    /// A tenant, by its token, its topic or, where that is believed, its word; `unclaimed` where nothing holds.
    Tenant(Tenant),
    /// Somebody on the machine where a command was given, by the name that the machine gives.
    User(String),
    /// A service by itself, such as `ingest-0`.
    Service(String),
    /// Nobody knows.
    Unknown,
}

/// A stretch of the records of one partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origins {
    /// The topic's name.
    pub topic: TopicName,
    /// The topic's id.
    pub topic_id: TopicId,
    /// The partition.
    pub partition: i32,
    /// The offset of the first record that is meant,
    pub first_offset: i64,
    /// and of the last; others stand between them.
    pub last_offset: i64,
}

/// A departure of one tenant from what is usual of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Tells this departure from all others: its begin and its end have the same.
    pub uid: String,
    /// In what it departs.
    pub measure: Measure,
    /// Whether it begins or ends.
    pub stage: FindingStage,
}

/// What is usual or not of a tenant. Other people's queries rely on these words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// How many jobs come.
    Jobs,
    /// How many bytes of input are admitted.
    InputBytes,
    /// How many jobs are rejected because somebody may have tried to be somebody else.
    Attempts,
    /// How many jobs are rejected for what they are or ask for; not for want of a quota.
    Rejections,
    /// Jobs at an hour that usually has none.
    OffHours,
}

impl Measure {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Jobs,
        Self::InputBytes,
        Self::Attempts,
        Self::Rejections,
        Self::OffHours,
    ];

    /// The word in the column `finding_info.analytic.uid`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Jobs => "jobs",
            Self::InputBytes => "input_bytes",
            Self::Attempts => "attempts",
            Self::Rejections => "rejections",
            Self::OffHours => "off_hours",
        }
    }

    /// What is found of it, in a few words.
    pub fn title(self) -> &'static str {
        match self {
            Self::Jobs => "more jobs than usual",
            Self::InputBytes => "more input than usual",
            Self::Attempts => "more attempts to be somebody else than usual",
            Self::Rejections => "more rejected jobs than usual",
            Self::OffHours => "jobs at an hour that usually has none",
        }
    }
}

/// Where a departure stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingStage {
    /// It is told for the first time.
    Begun,
    /// All is as usual again.
    Ended,
}

/// Events that cross a topic as one record, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AuditEvents(pub Vec<AuditEvent>);

impl AuditEvent {
    /// About how many bytes it encodes to, rather more than less.
    fn size_bytes(&self) -> usize {
        const NAMES_AND_NUMBERS: usize = 1_024;
        let texts = [&self.refused, &self.detail, &self.policy];
        let texts: usize = texts.into_iter().flatten().map(String::len).sum();
        let finding = self.finding.as_ref().map_or(0, |finding| finding.uid.len());
        NAMES_AND_NUMBERS + self.source.len() + texts + finding
    }
}

impl AuditEvents {
    /// A record has about so many bytes at most, unless a single event has more.
    pub const BYTES_MAX: usize = 256 << 10;

    /// Puts `events` into as few records as their size allows.
    pub fn pack(events: impl IntoIterator<Item = AuditEvent>) -> Vec<Self> {
        let (mut records, mut bytes): (Vec<Self>, usize) = (Vec::new(), 0);
        for event in events {
            bytes += event.size_bytes();
            match records.last_mut() {
                Some(open) if bytes <= Self::BYTES_MAX => open.0.push(event),
                _ => {
                    bytes = event.size_bytes();
                    records.push(Self(vec![event]));
                }
            }
        }
        records
    }
}

impl Record for AuditEvents {
    const KIND: &'static str = "audit events";
    const VERSION: u8 = 1;

    fn size_hint(&self) -> usize {
        self.0.iter().map(AuditEvent::size_bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(detail: String) -> AuditEvent {
        let long = "x".repeat(63);
        AuditEvent {
            time_ms: i64::MAX,
            operation: Operation::ReplayDeadLetters,
            tenant: Some(Tenant::new(&long).unwrap()),
            actor: Actor::Tenant(Tenant::new(&long).unwrap()),
            source: String::new(),
            count: u64::MAX,
            refused: Some(String::new()),
            detail: Some(detail),
            policy: Some(String::new()),
            model: Some(ModelName::new(&long).unwrap()),
            origins: Some(Origins {
                topic: TopicName::new(&"x".repeat(249)).unwrap(),
                topic_id: TopicId::from_bytes([0xff; 16]),
                partition: i32::MAX,
                first_offset: i64::MAX,
                last_offset: i64::MAX,
            }),
            finding: Some(Finding {
                uid: "x".repeat(400),
                measure: Measure::InputBytes,
                stage: FindingStage::Begun,
            }),
        }
    }

    #[test]
    fn a_word_for_programs_is_the_same_in_records_and_in_columns() {
        for measure in Measure::ALL {
            let in_records = serde_json::to_string(&measure).unwrap();
            assert_eq!(in_records, format!("\"{}\"", measure.as_str()));
        }
    }

    proptest! {
        #[test]
        fn packed_events_keep_their_order_and_no_record_is_larger_than_allowed(
            sizes in prop::collection::vec(0_usize..100_000, 0..20),
        ) {
            let events: Vec<_> = sizes.iter().map(|size| event("x".repeat(*size))).collect();
            let records = AuditEvents::pack(events.clone());
            for record in &records {
                let encoded = record.encode().len();
                prop_assert!(encoded <= AuditEvents::BYTES_MAX && encoded <= record.size_hint());
            }
            let unpacked: Vec<_> = records.into_iter().flat_map(|record| record.0).collect();
            prop_assert_eq!(unpacked, events);
        }
    }
}
