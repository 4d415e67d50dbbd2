//! The words that Tributary's services say to each other, and the tables that its readers see.
//!
//! ```text
//! Job ─▶ ingest ─▶ AdmittedJob ─▶ processor ─▶ Outcome ─▶ sink ─▶ tables: results, costs
//!          └─▶ AuditEvent ────────────────────────────────▶ sink ─▶ table: audit
//! ```
//!
//! Everything here is a value: no I/O, no clock, no Kafka, no model. Names that reach a path, a topic or a bill are
//! checked newtypes ([`Tenant`], [`Pool`], [`ModelName`], [`TopicName`]), so a value of such a type is proof of the
//! check. Records that cross a topic are versioned ([`Record`]) and held to golden files.

mod access;
mod admitted;
mod audit;
mod embedding;
mod job;
mod names;
mod origin;
mod outcome;
mod policy;
mod record;
mod shards;
pub mod tables;
mod text;
mod topic;
mod usage;

pub use access::{Action, Authority, Principal, Role, Ruling, Submission, User};
pub use admitted::{AdmittedJob, AdmittedJobs};
pub use audit::{
    Activity, Actor, AuditEvent, AuditEvents, Finding, FindingStage, Measure, Operation, Origins,
};
pub use embedding::Embedding;
pub use job::{Job, NotAJob, Priority};
pub use names::{InvalidName, JobId, ModelName, Pool, Tenant};
pub use origin::{Origin, Route};
pub use outcome::{
    Common, DeviceShare, Digest, Engine, Group, Outcome, Outcomes, Reason, ReasonCode, Row, Run, Task,
    Verdict,
};
pub use policy::{Abuse, Budget, ModelTerms, Policies, Rate, TenantPolicy, TenantSet, Tenants};
pub use record::{DecodeError, Record};
pub use shards::{Shard, Shards};
pub use text::{Text, printable};
pub use topic::{Door, InvalidTopicNames, TopicId, TopicName, TopicNames};
pub use usage::{Spending, Spent};
