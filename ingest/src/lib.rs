//! Decides which jobs may run.
//!
//! ```text
//! jobs, jobs.<tenant> ─▶ decide ─┬─ admit ───────▶ work.<pool>.<tenant>
//!                                ├─ reject ──────▶ outcomes.<tenant>
//!                                └─ no job ──────▶ dead-letters
//! ```
//!
//! The decision ([`decide`]) is a function of the record, the policies, the keys that tokens are checked with
//! ([`identity`]), and the time. The service ([`Service`]) reads, decides, and commits what came of it together with its
//! progress, so that a job is decided once: decided twice it could get two answers, since time and policy move on. This
//! crate knows neither Kafka nor models nor Parquet.

mod decide;
mod door;
pub mod identity;
pub mod metric_names;
mod service;

pub use decide::{Decision, Received, decide};
pub use door::{Answer, HttpDoor, bearer_of_request};
pub use service::{Config, Service};
