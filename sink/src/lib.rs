//! Makes outcomes and audit events durable and readable: plain Parquet in an object store, each row once.
//!
//! ```text
//! outcomes.<tenant> ─┐                                          ┌─▶ results/…, costs/… ─┐
//!                    ├─▶ a partition's records ─▶ range intent ─┤                       ├─▶ commit
//! audit ─────────────┘                                          └─▶ audit/… ────────────┘
//! ```
//!
//! # The protocol
//! A partition is written in **ranges** of offsets, one after the other. A range begins where the one before ended, and
//! may end anywhere: at a size, an age, when memory is short. What was chosen is fixed first, as a [`RangeIntent`]: an
//! object created, never overwritten, before any data. Then the data files are created, and only when all exist the
//! offset is committed. Whoever takes the partition over finds the intent and does that range again: the same files with
//! the same rows, since they are a function of the intent and the log. Of two sinks that both believe they own a
//! partition, one creates the intent, and the other starts over and takes that intent for its own.
//! A range whose files are all there is left as it is where the log may not have its first records any more.
//!
//! Records are encoded as they come and are not kept, so that a range takes memory for its files only. What is encoded
//! does not depend on how many came at once.
//!
//! A row whose origin is at or below the **mark** of its origin partition and route is a repetition and is dropped. The
//! marks before and after a range stand in its intent, so that whoever redoes it drops the same rows.
//!
//! Audit events go the same way, and differ in what one range hands to the next: not marks but the hash of its last row,
//! from which the rows of the next go on ([`verify_audit`] follows them). They have no marks, because they are appended in
//! the transaction of what they record, or once.
//!
//! "Already exists" is never taken for success: some stores say so of a conflict that left nothing. What is there is read
//! back and compared ([`Store::create`]); so a create that gets no answer can be tried again. All rests on create-if-absent
//! being atomic, so the sink proves that of its store before it begins ([`Store::prove_create_is_atomic`]), or refuses to
//! run.
//!
//! # What breaks it
//! A store that loses or changes objects; an outcomes topic that loses acknowledged records, or whose retention is
//! shorter than the sink's absence; a lake moved to another place under the same consumer group.
//!
//! This crate knows neither Kafka nor models.

mod audit;
mod chain;
mod columns;
mod encode;
mod error;
#[cfg(test)]
mod faults;
mod layout;
pub mod metric_names;
mod outcomes;
mod partition;
mod range;
mod read;
mod recorded;
mod seal;
mod service;
mod store;
mod summary;
mod verify;

pub use error::Error;
/// What a [`Store`] is opened over.
pub use object_store;
pub use range::{Heads, Marks, RangeFile, RangeIntent, Table};
pub use recorded::{RecordedJob, Recording, recorded};
pub use service::{Config, Service};
pub use store::{Created, Options, Store};
pub use summary::{Summary, summary};
pub use verify::{AuditReport, Depth, Report, verify, verify_audit, verify_audit_of, verify_store};
