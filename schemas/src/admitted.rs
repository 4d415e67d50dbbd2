//! What ingest hands to a processor: a job that may run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{JobId, ModelName, Origin, Priority, Record, Tenant};

/// A job that ingest admitted: every name in it is checked, and the tenant is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdmittedJob {
    /// The record that the producer wrote.
    pub origin: Origin,
    /// Whose job it is.
    pub tenant: Tenant,
    /// The producer's name for the job.
    pub job_id: JobId,
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

impl Record for AdmittedJob {
    const KIND: &'static str = "admitted job";
    const VERSION: u8 = 1;

    fn size_hint(&self) -> usize {
        512 + self.input.len()
    }
}
