//! Decides which jobs may run.
//!
//! ```text
//! jobs, jobs.<tenant> ─▶ decide ─┬─ admit ───────▶ work.<pool>.<tenant>
//!                                ├─ reject ──────▶ outcomes.<tenant>
//!                                ├─ no job ──────▶ dead-letters
//!                                └─ what of it ──▶ audit
//! ```
//!
//! The decision ([`decide`]) is a function of the record, the policies, the keys that tokens are checked with
//! ([`identity`]), what the access policies permit ([`Permissions`]), what the tenant has spent and has waiting ([`quota`]),
//! and the time. What was decided is held to what is usual of the tenant (`departure`).
//!
//! The service ([`Service`]) reads, decides, and commits what came of it together with its progress, so that a job is
//! decided once: decided twice it could get two answers, since time and policy move on. This crate knows neither Kafka nor
//! models nor Parquet.

mod decide;
mod departure;
mod door;
pub mod identity;
mod look;
pub mod metric_names;
mod owner;
mod permission;
mod queues;
pub mod quota;
mod service;
mod tally;
mod usual;

pub use decide::{Decided, Decision, InForce, Received, decide};
pub use door::{
    Answer, Asker, HttpDoor, LINES_MAX, asker_at_the_door, asker_of_request, count_lines, count_put_off,
    count_refused,
};
pub use look::{GroupOf, LOOK};
pub use permission::Permissions;
pub use service::{Config, Service};
pub use tally::{ATTEMPTS_TOLD_MAX, Tally};
