//! Tenants that change while services run.
//!
//! ```text
//!  tenants file ──▶ look ─┐
//!                         ├─▶ read ─▶ compare with what is in force ─▶ make topics ─▶ in force
//!  policies topic ─▶ look ┘      └─ refused as a whole ◀─┘
//! ```
//!
//! What is in force is one value, and a set takes the place of another at once or not at all.

mod acls;
mod change;
mod command;
mod follow;
mod left_behind;
mod set;
mod store_policy;

pub(crate) use command::{in_force_now, read, run};
pub(crate) use follow::Follower;
pub(crate) use set::check;
