//! How a job ended, and what it cost: one value, of which the result row and the cost row are two projections.

use std::{collections::BTreeMap, fmt, str::FromStr};

use rust_decimal::Decimal;
use serde::{Deserialize, Deserializer, Serialize};

use crate::{InvalidName, JobId, Origin, Record, Route, Tenant};

/// The one end of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The record that the producer wrote.
    pub origin: Origin,
    /// The way that the job went.
    pub route: Route,
    /// Who owns this outcome, and pays for it.
    pub tenant: Tenant,
    /// The producer's name for the job.
    pub job_id: JobId,
    /// The model that the job asked for, as it asked.
    pub model: String,
    /// How it ended.
    pub verdict: Verdict,
    /// What the model did for it; none where no model saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<Run>,
    /// What it cost.
    pub cost: Cost,
    /// When the producer submitted the job, in milliseconds since 1970 UTC.
    pub submitted_at_ms: i64,
    /// When the outcome was decided, in milliseconds since 1970 UTC.
    pub completed_at_ms: i64,
    /// The tenant's labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The trace that the job belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
}

impl Outcome {
    /// About how many bytes it encodes to, rather more than less.
    fn size_bytes(&self) -> usize {
        const NAMES_AND_NUMBERS: usize = 1_024;
        let verdict = match &self.verdict {
            Verdict::Succeeded { embedding } => size_of_val(&**embedding),
            Verdict::Failed(reason) | Verdict::Rejected(reason) => reason.message.len(),
        };
        let labels: usize = self
            .labels
            .iter()
            .map(|(key, value)| key.len() + value.len() + 10)
            .sum();
        NAMES_AND_NUMBERS + verdict + labels + self.model.len()
    }
}

/// Outcomes that cross a topic as one record, in order: what a record costs by itself, in the clients and in the broker,
/// is more than what an outcome costs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Outcomes(pub Vec<Outcome>);

impl Outcomes {
    /// A record has about so many bytes at most, unless a single outcome has more.
    pub const BYTES_MAX: usize = 256 << 10;

    /// Puts `outcomes` into as few records as their size allows.
    pub fn pack(outcomes: impl IntoIterator<Item = Outcome>) -> Vec<Self> {
        let (mut records, mut bytes): (Vec<Self>, usize) = (Vec::new(), 0);
        for outcome in outcomes {
            bytes += outcome.size_bytes();
            match records.last_mut() {
                Some(open) if bytes <= Self::BYTES_MAX => open.0.push(outcome),
                _ => {
                    bytes = outcome.size_bytes();
                    records.push(Self(vec![outcome]));
                }
            }
        }
        records
    }
}

impl Record for Outcomes {
    const KIND: &'static str = "outcomes";
    const VERSION: u8 = 2;

    fn size_hint(&self) -> usize {
        self.0.iter().map(Outcome::size_bytes).sum()
    }
}

/// Whether a job succeeded, and with what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The model answered.
    Succeeded {
        /// The vector of the text, as long as the model's dimension.
        #[serde(with = "f32_le")]
        embedding: Vec<f32>,
    },
    /// The job was admitted, and could not be answered.
    Failed(Reason),
    /// The job was not admitted.
    Rejected(Reason),
}

impl Verdict {
    /// The `status` column: `succeeded`, `failed` or `rejected`.
    pub fn status(&self) -> &'static str {
        match self {
            Self::Succeeded { .. } => "succeeded",
            Self::Failed(_) => "failed",
            Self::Rejected(_) => "rejected",
        }
    }

    /// Why it did not succeed.
    pub fn reason(&self) -> Option<&Reason> {
        match self {
            Self::Succeeded { .. } => None,
            Self::Failed(reason) | Self::Rejected(reason) => Some(reason),
        }
    }
}

/// Why a job did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// For programs.
    pub code: ReasonCode,
    /// For people: what was wrong, and what would be right.
    pub message: String,
}

/// Why a job did not succeed, for programs. Other people's queries rely on these words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReasonCode {
    /// The tenant's name is not a possible one.
    InvalidTenant,
    /// No such tenant is configured.
    UnknownTenant,
    /// The job came through one tenant's topic and names another.
    TenantMismatch,
    /// The job's id is empty, too long or has control characters.
    InvalidJobId,
    /// No such model is configured.
    UnknownModel,
    /// The tenant may not use this model.
    ModelNotAllowed,
    /// The input is empty, or only white space.
    EmptyInput,
    /// The input has more bytes than allowed.
    InputTooLarge,
    /// The model does not take a second text.
    TextPairNotSupported,
    /// The labels are too many or too long.
    LabelsTooLarge,
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
            Self::InvalidJobId => "invalid_job_id",
            Self::UnknownModel => "unknown_model",
            Self::ModelNotAllowed => "model_not_allowed",
            Self::EmptyInput => "empty_input",
            Self::InputTooLarge => "input_too_large",
            Self::TextPairNotSupported => "text_pair_not_supported",
            Self::LabelsTooLarge => "labels_too_large",
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

/// What the model did for a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// What the model does.
    pub task: Task,
    /// The weights and settings that answered.
    pub model_digest: Digest,
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

/// What a job cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// The share of the device; none where the job never reached it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceShare>,
    /// The price of one second of device time, in `currency`, with at most 9 decimals.
    pub price_per_device_second: Decimal,
    /// ISO 4217, such as `USD`.
    pub currency: String,
}

impl Cost {
    /// The device time that the job pays for, in nanoseconds.
    pub fn device_time_ns(&self) -> u64 {
        self.device.as_ref().map_or(0, |share| share.device_time_ns)
    }
}

/// A job's share of the micro-batch that it ran in. The shares of a micro-batch add up to its measured time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceShare {
    /// This job's share, in nanoseconds.
    pub device_time_ns: u64,
    /// What the share was split by: an estimate of this job's work.
    pub work_units: u64,
    /// The micro-batch, unique over all processors.
    pub batch_id: String,
    /// How many jobs shared the micro-batch.
    pub batch_jobs: u32,
    /// The measured time of the whole micro-batch, in nanoseconds.
    pub batch_device_time_ns: u64,
}

/// Vectors as little-endian bytes: a quarter of the cost of a MessagePack array, and exact.
mod f32_le {
    use serde::{Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(vector: &[f32], serializer: S) -> Result<S::Ok, S::Error> {
        if cfg!(target_endian = "little") {
            return serializer.serialize_bytes(bytemuck::cast_slice(vector));
        }
        let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
        serializer.serialize_bytes(&bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f32>, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Vec<f32>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("little-endian 32-bit floats")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Vec<f32>, E> {
                let (values, rest) = bytes.as_chunks::<4>();
                if !rest.is_empty() {
                    return Err(E::invalid_length(bytes.len(), &self));
                }
                Ok(values.iter().map(|value| f32::from_le_bytes(*value)).collect())
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
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
            InvalidJobId,
            UnknownModel,
            ModelNotAllowed,
            EmptyInput,
            InputTooLarge,
            TextPairNotSupported,
            LabelsTooLarge,
            InvalidDeadline,
            DeadlinePassed,
            InferenceFailed,
        ] {
            assert_eq!(serde_json::to_string(&code).unwrap(), format!("\"{code}\""));
        }
    }

    fn rejected(message: String) -> Outcome {
        Outcome {
            origin: Origin {
                topic: crate::TopicName::new("jobs").unwrap(),
                topic_id: crate::TopicId::from_bytes([7; 16]),
                partition: 0,
                offset: 0,
            },
            route: Route::Rejected,
            tenant: Tenant::unclaimed(),
            job_id: JobId::new("a").unwrap(),
            model: "minilm".to_owned(),
            verdict: Verdict::Rejected(Reason {
                code: ReasonCode::UnknownModel,
                message,
            }),
            run: None,
            cost: Cost {
                device: None,
                price_per_device_second: Decimal::ZERO,
                currency: "USD".to_owned(),
            },
            submitted_at_ms: 0,
            completed_at_ms: 0,
            labels: BTreeMap::new(),
            trace_id: None,
        }
    }

    proptest::proptest! {
        #[test]
        fn packed_outcomes_keep_their_order_and_no_record_is_larger_than_allowed_or_needed(
            sizes in proptest::collection::vec(0_usize..200_000, 0..20),
        ) {
            let outcomes: Vec<_> = sizes.iter().map(|size| rejected("x".repeat(*size))).collect();
            let records = Outcomes::pack(outcomes.clone());
            for record in &records {
                let bytes = record.encode().len();
                proptest::prop_assert!(bytes <= Outcomes::BYTES_MAX && bytes <= record.size_hint());
            }
            for (record, next) in records.iter().zip(records.iter().skip(1)) {
                proptest::prop_assert!(record.size_hint() + next.0[0].size_bytes() > Outcomes::BYTES_MAX);
            }
            let unpacked: Vec<_> = records.into_iter().flat_map(|record| record.0).collect();
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
