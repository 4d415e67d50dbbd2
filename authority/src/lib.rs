//! Who may do what, by policies in Cedar (<https://docs.cedarpolicy.com>).
//!
//! ```text
//!  text ─▶ parse ─▶ hold to the schema ─▶ AccessPolicies ─▶ Ruling
//!             └─ refused as a whole ◀─┘        ▲
//!                              who asks, for what (schemas)
//! ```
//!
//! The words that policies may use are in `tributary.cedarschema`; those that are in force where nobody has written any, in
//! `default.cedar`. Everything here is a function of values: no I/O, no clock. No other crate knows Cedar.

mod policies;
mod words;

pub use policies::{AccessPolicies, Refused};

/// The schema that policies are held to.
pub const SCHEMA: &str = include_str!("tributary.cedarschema");
/// The policies that are in force where nobody has written any.
pub const DEFAULT: &str = include_str!("default.cedar");
