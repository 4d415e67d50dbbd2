//! How a job ended, and what it cost: one value, of which the result row and the cost row are two projections.

use std::{borrow::Cow, collections::BTreeMap, fmt, str::FromStr};

use rust_decimal::Decimal;
use serde::{Deserialize, Deserializer, Serialize};

use crate::{Embedding, InvalidName, JobId, Origin, Record, Route, Tenant, Text, TopicId, TopicName};

/// The one end of a job. What it holds of text and numbers is its own, or lent by the record that it was read from.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome<'a> {
    /// What it has in common with the jobs around it.
    pub common: Common,
    /// What is its own.
    pub row: Row<'a>,
}

/// What the outcomes of one topic, tenant and model have in common.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Common {
    /// The topic that the producer wrote to.
    pub origin_topic: TopicName,
    /// The id of that topic, under which an offset is unique for ever.
    pub origin_topic_id: TopicId,
    /// The way that the jobs went.
    pub route: Route,
    /// Who owns these outcomes, and pays for them.
    pub tenant: Tenant,
    /// The model that the jobs asked for, as they asked.
    pub model: String,
    /// What answered; none where no model saw the jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<Engine>,
    /// The price of one second of device time, in `currency`, with at most 9 decimals.
    pub price_per_device_second: Decimal,
    /// ISO 4217, such as `USD`.
    pub currency: String,
}

/// What is an outcome's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row<'a> {
    /// The partition that the producer wrote to.
    pub origin_partition: i32,
    /// The offset of the producer's record there: with the topic and its id the identity of the job.
    pub origin_offset: i64,
    /// The producer's name for the job.
    #[serde(borrow)]
    pub job_id: JobId<'a>,
    /// How it ended.
    #[serde(borrow)]
    pub verdict: Verdict<'a>,
    /// What the model did for it; none where no model saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<Run>,
    /// The share of the device; none where the job never reached it.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceShare<'a>>,
    /// When the producer submitted the job, in milliseconds since 1970 UTC.
    pub submitted_at_ms: i64,
    /// When the outcome was decided, in milliseconds since 1970 UTC.
    pub completed_at_ms: i64,
    /// The tenant's labels.
    #[serde(borrow, default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<Text<'a>, Text<'a>>,
    /// The trace that the job belongs to.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<Text<'a>>,
}

impl Outcome<'_> {
    /// What the job pays, in the currency of its price.
    pub fn billed_cost(&self) -> Decimal {
        let device_time_s = Decimal::from_i128_with_scale(self.row.device_time_ns().into(), 9);
        let cost = device_time_s.checked_mul(self.common.price_per_device_second);
        cost.unwrap_or(Decimal::MAX)
    }

    /// The record that the producer wrote.
    pub fn origin(&self) -> Origin {
        Origin {
            topic: self.common.origin_topic.clone(),
            topic_id: self.common.origin_topic_id,
            partition: self.row.origin_partition,
            offset: self.row.origin_offset,
        }
    }
}

impl Common {
    /// About how many bytes it encodes to, rather more than less.
    fn size_bytes(&self) -> usize {
        const NAMES_AND_NUMBERS: usize = 1_024;
        NAMES_AND_NUMBERS + self.model.len()
    }
}

impl Row<'_> {
    /// The device time that the job pays for, in nanoseconds.
    pub fn device_time_ns(&self) -> u64 {
        self.device.as_ref().map_or(0, |share| share.device_time_ns)
    }

    /// About how many bytes it encodes to, rather more than less.
    fn size_bytes(&self) -> usize {
        const NAMES_AND_NUMBERS: usize = 512;
        let verdict = match &self.verdict {
            Verdict::Succeeded { embedding } => 4 * embedding.len(),
            Verdict::Failed(reason) | Verdict::Rejected(reason) => reason.message.len(),
        };
        let labels: usize = self
            .labels
            .iter()
            .map(|(key, value)| key.len() + value.len() + 10)
            .sum();
        NAMES_AND_NUMBERS + self.job_id.as_str().len() + verdict + labels
    }
}

/// Outcomes that cross a topic as one record, in order: what a record costs by itself, in the clients and in the broker,
/// is more than what an outcome costs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Outcomes<'a>(#[serde(borrow)] pub Vec<Group<'a>>);

/// Outcomes one after the other that have more in common than not: it is written, read and rendered once for all of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group<'a> {
    /// What they have in common.
    pub common: Common,
    /// What is each one's own.
    #[serde(borrow)]
    pub rows: Vec<Row<'a>>,
}

impl<'a> Outcomes<'a> {
    /// A record has about so many bytes at most, unless a single outcome has more.
    pub const BYTES_MAX: usize = 256 << 10;

    /// Puts `outcomes` into as few records as their size allows.
    pub fn pack(outcomes: impl IntoIterator<Item = Outcome<'a>>) -> Vec<Self> {
        let (mut records, mut bytes): (Vec<Self>, usize) = (Vec::new(), 0);
        for Outcome { common, row } in outcomes {
            let (row_bytes, common_bytes) = (row.size_bytes(), common.size_bytes());
            if records.is_empty() || bytes + common_bytes + row_bytes > Self::BYTES_MAX {
                records.push(Self(Vec::new()));
                bytes = 0;
            }
            let Self(groups) = records.last_mut().expect("a record is open");
            bytes += row_bytes;
            match groups.last_mut() {
                Some(group) if group.common == common => group.rows.push(row),
                _ => {
                    bytes += common_bytes;
                    let rows = vec![row];
                    groups.push(Group { common, rows });
                }
            }
        }
        records
    }

    /// The outcomes, one by one.
    pub fn unpack(self) -> impl Iterator<Item = Outcome<'a>> {
        self.0.into_iter().flat_map(|Group { common, rows }| {
            rows.into_iter().map(move |row| Outcome {
                common: common.clone(),
                row,
            })
        })
    }
}

impl Record for Outcomes<'_> {
    const KIND: &'static str = "outcomes";
    const VERSION: u8 = 3;

    fn size_hint(&self) -> usize {
        let rows = |group: &Group<'_>| group.rows.iter().map(Row::size_bytes).sum::<usize>();
        self.0
            .iter()
            .map(|group| group.common.size_bytes() + rows(group))
            .sum()
    }
}

/// Whether a job succeeded, and with what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict<'a> {
    /// The model answered.
    Succeeded {
        /// The vector of the text, as long as the model's dimension.
        #[serde(borrow)]
        embedding: Embedding<'a>,
    },
    /// The job was admitted, and could not be answered.
    #[serde(borrow)]
    Failed(Reason<'a>),
    /// The job was not admitted.
    #[serde(borrow)]
    Rejected(Reason<'a>),
}

impl<'a> Verdict<'a> {
    /// The `status` column: `succeeded`, `failed` or `rejected`.
    pub fn status(&self) -> &'static str {
        match self {
            Self::Succeeded { .. } => "succeeded",
            Self::Failed(_) => "failed",
            Self::Rejected(_) => "rejected",
        }
    }

    /// Why it did not succeed.
    pub fn reason(&self) -> Option<&Reason<'a>> {
        match self {
            Self::Succeeded { .. } => None,
            Self::Failed(reason) | Self::Rejected(reason) => Some(reason),
        }
    }
}

/// Why a job did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason<'a> {
    /// For programs.
    pub code: ReasonCode,
    /// For people: what was wrong, and what would be right.
    #[serde(borrow)]
    pub message: Text<'a>,
}

impl<'a> Reason<'a> {
    /// The reason of this code.
    pub fn new(code: ReasonCode, message: impl Into<Text<'a>>) -> Self {
        let message = message.into();
        Self { code, message }
    }
}

/// Why a job did not succeed, for programs. Other people's queries rely on these words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReasonCode {
    /// The tenant's name is not a possible one.
    InvalidTenant,
    /// No such tenant is configured.
    UnknownTenant,
    /// The job names another tenant than the topic that it came through, or its token.
    TenantMismatch,
    /// A token is demanded, and there is none.
    TokenMissing,
    /// The token proves nothing.
    TokenInvalid,
    /// The token was good once.
    TokenExpired,
    /// The job's id is empty, too long or has control characters.
    InvalidJobId,
    /// No such model is configured.
    UnknownModel,
    /// The tenant may not use this model.
    ModelNotAllowed,
    /// The access policies do not let whoever sent it have such a job run.
    NotPermitted,
    /// The input is empty, or only white space.
    EmptyInput,
    /// The input has more bytes than allowed.
    InputTooLarge,
    /// The model does not take a second text.
    TextPairNotSupported,
    /// The labels are too many or too long.
    LabelsTooLarge,
    /// The tenant has spent what it may in this day or month.
    BudgetExhausted,
    /// As much of the tenant's work waits as may.
    QueueFull,
    /// The tenant sends far more than usual, and its policy has a limit for that.
    Throttled,
    /// The deadline is not a time in RFC 3339.
    InvalidDeadline,
    /// The deadline had passed.
    DeadlinePassed,
    /// The model could not run this input.
    InferenceFailed,
    /// The process died, more than once, while it ran this input alone.
    InferenceCrashed,
}

impl ReasonCode {
    /// The word in the `reason_code` column.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidTenant => "invalid_tenant",
            Self::UnknownTenant => "unknown_tenant",
            Self::TenantMismatch => "tenant_mismatch",
            Self::TokenMissing => "token_missing",
            Self::TokenInvalid => "token_invalid",
            Self::TokenExpired => "token_expired",
            Self::InvalidJobId => "invalid_job_id",
            Self::UnknownModel => "unknown_model",
            Self::ModelNotAllowed => "model_not_allowed",
            Self::NotPermitted => "not_permitted",
            Self::EmptyInput => "empty_input",
            Self::InputTooLarge => "input_too_large",
            Self::TextPairNotSupported => "text_pair_not_supported",
            Self::LabelsTooLarge => "labels_too_large",
            Self::BudgetExhausted => "budget_exhausted",
            Self::QueueFull => "queue_full",
            Self::Throttled => "throttled",
            Self::InvalidDeadline => "invalid_deadline",
            Self::DeadlinePassed => "deadline_passed",
            Self::InferenceFailed => "inference_failed",
            Self::InferenceCrashed => "inference_crashed",
        }
    }
}

impl fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a model does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// One vector a text.
    #[default]
    Embed,
}

impl Task {
    /// The word in the `task` column.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Embed => "embed",
        }
    }
}

/// What answers jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engine {
    /// What the model does.
    pub task: Task,
    /// The weights and settings that answer.
    pub model_digest: Digest,
    /// The numbers that it computed with, such as `bf16`; none where the writer knew no such field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_dtype: Option<Cow<'static, str>>,
    /// The code that ran it, such as `avx512`; none where the writer knew no such field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_path: Option<Cow<'static, str>>,
}

/// What the model did for a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Tokens that the model read, special ones included.
    pub input_tokens: u32,
    /// Whether the text was longer than the model's window, and cut.
    pub truncated: bool,
    /// From the submission until the device began, in nanoseconds.
    pub queue_time_ns: u64,
}

/// A SHA-256, shown as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest with these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 64];
        for (digits, byte) in text.as_chunks_mut::<2>().0.iter_mut().zip(self.0) {
            *digits = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
        }
        f.write_str(std::str::from_utf8(&text).expect("hexadecimal digits are ASCII"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

impl FromStr for Digest {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = || InvalidName::new("digest", text, "have 64 hexadecimal digits");
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else {
            return Err(invalid());
        };
        let mut bytes = [0; 32];
        if pairs.len() != bytes.len() {
            return Err(invalid());
        }
        let digit = |digit: u8| char::from(digit).to_digit(16).ok_or_else(invalid);
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = (digit(*high)? << 4 | digit(*low)?) as u8;
        }
        Ok(Self(bytes))
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::text::deserialize(deserializer, "a digest", Self::from_str)
    }
}

/// A job's share of the micro-batch that it ran in. The shares of a micro-batch add up to its measured time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceShare<'a> {
    /// This job's share, in nanoseconds.
    pub device_time_ns: u64,
    /// What the share was split by: an estimate of this job's work.
    pub work_units: u64,
    /// The micro-batch, unique over all processors.
    #[serde(borrow)]
    pub batch_id: Text<'a>,
    /// How many jobs shared the micro-batch.
    pub batch_jobs: u32,
    /// The measured time of the whole micro-batch, in nanoseconds.
    pub batch_device_time_ns: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_for_programs_is_the_same_in_records_and_in_columns() {
        use ReasonCode::*;
        for code in [
            InvalidTenant,
            UnknownTenant,
            TenantMismatch,
            TokenMissing,
            TokenInvalid,
            TokenExpired,
            InvalidJobId,
            UnknownModel,
            ModelNotAllowed,
            NotPermitted,
            EmptyInput,
            InputTooLarge,
            TextPairNotSupported,
            LabelsTooLarge,
            BudgetExhausted,
            QueueFull,
            Throttled,
            InvalidDeadline,
            DeadlinePassed,
            InferenceFailed,
        ] {
            assert_eq!(serde_json::to_string(&code).unwrap(), format!("\"{code}\""));
        }
    }

    fn rejected(model: &str, message: String) -> Outcome<'static> {
        let common = Common {
            origin_topic: TopicName::new("jobs").unwrap(),
            origin_topic_id: TopicId::from_bytes([7; 16]),
            route: Route::Rejected,
            tenant: Tenant::unclaimed(),
            model: model.to_owned(),
            engine: None,
            price_per_device_second: Decimal::ZERO,
            currency: "USD".to_owned(),
        };
        let row = Row {
            origin_partition: 0,
            origin_offset: 0,
            job_id: JobId::new("a").unwrap(),
            verdict: Verdict::Rejected(Reason {
                code: ReasonCode::UnknownModel,
                message: message.into(),
            }),
            run: None,
            device: None,
            submitted_at_ms: 0,
            completed_at_ms: 0,
            labels: BTreeMap::new(),
            trace_id: None,
        };
        Outcome { common, row }
    }

    proptest::proptest! {
        #[test]
        fn packed_outcomes_keep_their_order_and_no_record_is_larger_than_allowed_or_needed(
            sizes in proptest::collection::vec((0_usize..200_000, "[ab]"), 0..20),
        ) {
            let outcomes: Vec<_> = sizes.iter().map(|(size, model)| rejected(model, "x".repeat(*size))).collect();
            let records = Outcomes::pack(outcomes.clone());
            for record in &records {
                let bytes = record.encode().len();
                proptest::prop_assert!(bytes <= Outcomes::BYTES_MAX && bytes <= record.size_hint());
                let alike = record.0.windows(2).any(|groups| groups[0].common == groups[1].common);
                proptest::prop_assert!(!alike, "what neighbours have in common is there once");
            }
            for (record, next) in records.iter().zip(records.iter().skip(1)) {
                let first = &next.0[0];
                let bytes = first.common.size_bytes() + first.rows[0].size_bytes();
                proptest::prop_assert!(record.size_hint() + bytes > Outcomes::BYTES_MAX);
            }
            let unpacked: Vec<_> = records.into_iter().flat_map(Outcomes::unpack).collect();
            proptest::prop_assert_eq!(unpacked, outcomes);
        }
    }

    #[test]
    fn a_digest_reads_back_and_refuses_anything_else() {
        let digest = Digest::from_bytes(std::array::from_fn(|i| i as u8 * 7));
        assert_eq!(digest.to_string().parse(), Ok(digest));
        for text in ["", "zz", &"g".repeat(64), &"é".repeat(32)] {
            assert!(text.parse::<Digest>().is_err(), "`{text}`");
        }
    }
}
