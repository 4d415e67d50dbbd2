//! What must hold of a simulated run's lake, whatever happened on the way. What the files alone can prove is
//! [`sink::verify`]'s, which the stories and the chaos run ask as well; here is what only the producer knows.

use std::collections::BTreeMap;

use schemas::Operation;
use sink::{AuditReport, Report};

/// What was produced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Expected {
    /// Records that are jobs: each has one outcome.
    pub outcomes: u64,
    /// Records that are none: each is in the dead letters.
    pub dead_letters: u64,
}

/// Each promise that the lake of `report`, and as many records in the dead letters, break.
pub fn violations(report: &Report, dead_letters: u64, expected: &Expected) -> Vec<String> {
    let mut violations = report.offences().to_vec();
    violations.extend(
        report
            .unchecked()
            .iter()
            .filter(|what| what.contains("not whole"))
            .cloned(),
    );
    let (found, wanted) = (report.outcomes(), expected.outcomes);
    if found < wanted {
        violations.push(format!("lost: {wanted} jobs have {found} outcomes"));
    }
    if found > wanted {
        violations.push(format!("doubled: {wanted} jobs have {found} outcomes"));
    }
    if dead_letters != expected.dead_letters {
        violations.push(format!(
            "{} records are no jobs, and there are {dead_letters} dead letters",
            expected.dead_letters
        ));
    }
    violations
}

/// Each promise that the audit of `audit` breaks, beside a lake of `report` and as many records in the dead letters.
pub fn violations_of_audit(audit: &AuditReport, report: &Report, dead_letters: u64) -> Vec<String> {
    let mut violations = audit.offences().to_vec();
    let (mut decided, mut no_jobs): (BTreeMap<String, u64>, u64) = (BTreeMap::new(), 0);
    for ((operation, tenant, refused), count) in audit.counts() {
        match refused.as_deref() {
            _ if operation != Operation::DecideJobs.as_str() => {}
            Some("no_job") => no_jobs += count,
            _ => *decided.entry(tenant.clone().unwrap_or_default()).or_default() += count,
        }
    }
    let mut outcomes = report.outcomes_by_tenant().clone();
    outcomes.retain(|_, count| *count > 0);
    if decided != outcomes {
        violations.push(format!(
            "the audit counts {decided:?} decisions, and there are {outcomes:?} outcomes"
        ));
    }
    if no_jobs != dead_letters {
        violations.push(format!(
            "the audit counts {no_jobs} records that are no jobs, and there are {dead_letters} dead letters"
        ));
    }
    violations
}
