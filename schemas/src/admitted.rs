//! What ingest hands to a processor: a job that may run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{DecodeError, JobId, ModelName, Origin, Priority, Record, Tenant};

/// A job that ingest admitted: every name in it is checked, and the tenant is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdmittedJob {
    /// The record that the producer wrote.
    pub origin: Origin,
    /// Whose job it is.
    pub tenant: Tenant,
    /// The producer's name for the job.
    #[serde(deserialize_with = "JobId::deserialize_own")]
    pub job_id: JobId<'static>,
    /// The model to run.
    pub model: ModelName,
    /// The text to run it on.
    pub input: String,
    /// The second text, for a model that compares two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_pair: Option<String>,
    /// How urgent the job is among the jobs of its tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// When the producer submitted the job, in milliseconds since 1970 UTC.
    pub submitted_at_ms: i64,
    /// When the answer stops being of use, in milliseconds since 1970 UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<i64>,
    /// The tenant's labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The trace that the job belongs to: 32 hexadecimal digits of its `traceparent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
}

impl AdmittedJob {
    /// About how many bytes it encodes to, rather more than less.
    fn size_bytes(&self) -> usize {
        const FIELD_NAMES_AND_NUMBERS: usize = 300;
        let labels = self.labels.iter();
        let labels: usize = labels.map(|(key, value)| key.len() + value.len() + 10).sum();
        let names = self.origin.topic.as_str().len() + self.job_id.as_str().len() + self.model.as_str().len();
        let texts = self.input.len() + self.text_pair.as_ref().map_or(0, String::len);
        FIELD_NAMES_AND_NUMBERS + names + self.tenant.as_str().len() + texts + labels
    }
}

/// Jobs of one tenant that cross a topic as one record, in order: what a record costs by itself, in the clients and in the
/// broker, is more than what a job costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AdmittedJobs(pub Vec<AdmittedJob>);

impl AdmittedJobs {
    /// A record has about so many bytes at most, unless a single job has more. A processor takes records whole, so this
    /// is also how finely it can divide a device: some twenty short texts, or a page.
    pub const BYTES_MAX: usize = 8 << 10;

    /// Puts `jobs` into as few records as their size allows.
    pub fn pack(jobs: impl IntoIterator<Item = AdmittedJob>) -> Vec<Self> {
        let (mut records, mut bytes): (Vec<Self>, usize) = (Vec::new(), 0);
        for job in jobs {
            bytes += job.size_bytes();
            match records.last_mut() {
                Some(open) if bytes <= Self::BYTES_MAX => open.0.push(job),
                _ => {
                    bytes = job.size_bytes();
                    records.push(Self(vec![job]));
                }
            }
        }
        records
    }

    /// How many jobs the record in `bytes` claims to have, without decoding them.
    ///
    /// # Errors
    /// As [`Record::decode`].
    pub fn count(bytes: &[u8]) -> Result<usize, DecodeError> {
        let mut body = Self::body(bytes)?;
        match rmp::decode::read_array_len(&mut body) {
            Ok(count) => Ok(count as usize),
            Err(error) => Err(DecodeError::Malformed {
                kind: Self::KIND,
                source: error.into(),
            }),
        }
    }
}

impl Record for AdmittedJobs {
    const KIND: &'static str = "admitted jobs";
    const VERSION: u8 = 2;

    fn size_hint(&self) -> usize {
        self.0.iter().map(AdmittedJob::size_bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{TopicId, TopicName};

    fn job(offset: i64, input: String) -> AdmittedJob {
        AdmittedJob {
            origin: Origin {
                topic: TopicName::new("jobs").unwrap(),
                topic_id: TopicId::from_bytes([0xff; 16]),
                partition: i32::MAX,
                offset: i64::MAX - offset,
            },
            tenant: Tenant::new("acme").unwrap(),
            job_id: JobId::new("x".repeat(256)).unwrap(),
            model: ModelName::new("minilm").unwrap(),
            input,
            text_pair: Some(String::new()),
            priority: Some(Priority::Normal),
            submitted_at_ms: i64::MAX,
            deadline_ms: Some(i64::MAX),
            labels: BTreeMap::from([("key".to_owned(), "value".to_owned())]),
            trace_id: Some("0".repeat(32)),
        }
    }

    proptest! {
        #[test]
        fn packed_jobs_keep_their_order_and_no_record_is_larger_than_allowed_or_needed(
            sizes in prop::collection::vec(0_usize..5_000, 0..50),
        ) {
            let jobs: Vec<_> = (0..).zip(&sizes).map(|(offset, size)| job(offset, "x".repeat(*size))).collect();
            let records = AdmittedJobs::pack(jobs.clone());
            for record in &records {
                let encoded = record.encode();
                prop_assert!(encoded.len() <= AdmittedJobs::BYTES_MAX && encoded.len() <= record.size_hint());
                prop_assert_eq!(AdmittedJobs::count(&encoded).unwrap(), record.0.len());
            }
            for (record, next) in records.iter().zip(records.iter().skip(1)) {
                prop_assert!(record.size_hint() + next.0[0].size_bytes() > AdmittedJobs::BYTES_MAX);
            }
            let unpacked: Vec<_> = records.into_iter().flat_map(|record| record.0).collect();
            prop_assert_eq!(unpacked, jobs);
        }
    }
}
