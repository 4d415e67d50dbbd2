//! What was done and decided, and by whom, for those who look afterwards.

use serde::{Deserialize, Serialize};

use crate::{ModelName, Record, Tenant, TopicId, TopicName};

/// Of a text of an event so many bytes are told, and how many more there are. All the texts of one are fewer than
/// [`AuditEvents::BYTES_MAX`] then, or a large one could never be appended, and would hold up those behind it.
const TEXT_BYTES_MAX: usize = 40 << 10;

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
        let actor = match &self.actor {
            Actor::User(name) | Actor::Service(name) => name.len(),
            Actor::Tenant(_) | Actor::Unknown => 0,
        };
        let texts = [&self.refused, &self.detail, &self.policy];
        let texts: usize = texts.into_iter().flatten().map(String::len).sum();
        let finding = self.finding.as_ref().map_or(0, |finding| finding.uid.len());
        NAMES_AND_NUMBERS + actor + self.source.len() + texts + finding
    }

    /// As much of it as is told.
    fn cut(mut self) -> Self {
        let actor = match &mut self.actor {
            Actor::User(name) | Actor::Service(name) => Some(name),
            Actor::Tenant(_) | Actor::Unknown => None,
        };
        let finding = self.finding.as_mut().map(|finding| &mut finding.uid);
        let texts = [
            Some(&mut self.source),
            self.refused.as_mut(),
            self.detail.as_mut(),
            self.policy.as_mut(),
            actor,
            finding,
        ];
        texts.into_iter().flatten().for_each(cut);
        self
    }
}

fn cut(text: &mut String) {
    if text.len() > TEXT_BYTES_MAX {
        let end = text.floor_char_boundary(TEXT_BYTES_MAX);
        let more = format!("… and {} bytes more", text.len() - end);
        text.replace_range(end.., &more);
    }
}

impl AuditEvents {
    /// A record has at most so many bytes.
    pub const BYTES_MAX: usize = 256 << 10;

    /// Puts `events` into as few records as their size allows. Very long texts are cut.
    pub fn pack(events: impl IntoIterator<Item = AuditEvent>) -> Vec<Self> {
        let (mut records, mut bytes): (Vec<Self>, usize) = (Vec::new(), 0);
        for event in events.into_iter().map(AuditEvent::cut) {
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

    #[test]
    fn of_a_text_that_no_record_would_hold_is_told_as_much_as_one_may_have_and_how_much_more_there_is() {
        let long = "ö".repeat(AuditEvents::BYTES_MAX);
        let whole = AuditEvent {
            source: long.clone(),
            refused: Some(long.clone()),
            policy: Some(long.clone()),
            actor: Actor::User(long.clone()),
            ..event(long)
        };
        let records = AuditEvents::pack([whole, event("short".to_owned())]);
        let all: Vec<_> = records.iter().flat_map(|record| &record.0).collect();
        let told = all[0].detail.as_deref().unwrap();
        assert!(told.starts_with("ööö"), "{told:.20}");
        assert!(
            told.ends_with("ö… and 483328 bytes more"),
            "{:?}",
            &told[TEXT_BYTES_MAX..]
        );
        assert_eq!(all[1], &event("short".to_owned()));
        for record in &records {
            let encoded = record.encode().len();
            assert!(encoded <= AuditEvents::BYTES_MAX && encoded <= record.size_hint());
        }
    }

    proptest! {
        #[test]
        fn packed_events_keep_their_order_and_no_record_is_larger_than_allowed(
            sizes in prop::collection::vec(0_usize..=TEXT_BYTES_MAX, 0..40),
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
