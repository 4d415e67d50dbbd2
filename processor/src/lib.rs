//! Turns admitted jobs into outcomes on a device.
//!
//! ```text
//! work.<pool>.<tenant> ─▶ lanes ─▶ window ─▶ tokens ─▶ micro-batches ─▶ model ─▶ outcomes.<tenant>
//! ```
//!
//! Whose turn it is ([`turns`]) and which of his jobs have it ([`priorities`]), what waits for one ([`lanes`]) or, by the part
//! of a tenant's limits that a processor has ([`parts`]), for its rate ([`rate`]) or for a commit ([`under_way`]), how large a
//! window is ([`pace`]), which texts share a micro-batch ([`batcher`]), who spoiled one ([`halving`]) and who pays for it
//! ([`cost`]) are functions of values. The model stands behind one small trait, [`model::Encoder`]: tokens in, vectors out.
//! This crate knows neither Kafka nor Parquet.

mod accounts;
mod attempts;
mod batcher;
mod commit;
mod core;
mod cost;
mod device;
mod halving;
mod inference;
mod lanes;
pub mod metric_names;
pub mod model;
#[cfg(test)]
mod mutations;
mod outcomes;
mod pace;
mod panics;
mod parts;
mod prepare;
mod priorities;
mod quotas;
mod rate;
pub mod replay;
mod service;
mod turns;
mod under_way;
mod windows;

pub use attempts::{Attempts, DEATHS_MAX};
pub use service::{Config, Served, Service};
