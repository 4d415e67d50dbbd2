//! Ways to do the protocol wrong, each of which the simulator must find: a checker that never fails checks nothing.

use std::{fmt, str::FromStr};

/// A way in which the protocol is done wrong. Each step of it is a call to the topics or to the store, so leaving one out,
/// swapping two or believing a wrong answer is done where the calls pass the gate, and the services stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// The sink commits what it has only read.
    CommitBeforeWriting,
    /// The sink neither looks for ranges that stand in the lake nor lets them stand.
    IgnoreIntents,
    /// "Already exists" is taken for success.
    TrustAlreadyExists,
    /// The sink forgets, when it starts, which origins it has seen.
    ForgetMarks,
    /// The sink forgets, when it starts, where the audit's chain stood.
    ForgetHead,
    /// The sink leaves the files of one table out.
    ForgetCosts,
    /// Stages commit what they read before they append what it became.
    CommitBeforeAppending,
    /// Ingest appends first and commits then, and decides otherwise on what it decides again.
    DecideTwice,
    /// Ingest appends its audit first, and then what it decided.
    AuditApart,
    /// The processor appends the outcomes of a window in another order.
    ReverseOutcomes,
    /// The processor commits a window before the one that came first.
    CommitWindowsOutOfOrder,
    /// Outcomes say that all work went the same way.
    ForgetRoutes,
    /// The group does not remember what was spent.
    ForgetSpending,
    /// Ingest believes that nothing waits.
    ForgetWaiting,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::CommitBeforeWriting,
        Self::IgnoreIntents,
        Self::TrustAlreadyExists,
        Self::ForgetMarks,
        Self::ForgetHead,
        Self::ForgetCosts,
        Self::CommitBeforeAppending,
        Self::DecideTwice,
        Self::AuditApart,
        Self::ReverseOutcomes,
        Self::CommitWindowsOutOfOrder,
        Self::ForgetRoutes,
        Self::ForgetSpending,
        Self::ForgetWaiting,
    ];
}

impl fmt::Display for Mutation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl FromStr for Mutation {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let names = || Self::ALL.map(|mutation| mutation.to_string()).join(", ");
        Self::ALL
            .into_iter()
            .find(|mutation| mutation.to_string() == name)
            .ok_or_else(|| format!("no mutation `{name}`: there are {}", names()))
    }
}
