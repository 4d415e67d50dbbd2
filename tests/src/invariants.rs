//! What must hold of a simulated run's lake, whatever happened on the way. What the files alone can prove is
//! [`sink::verify`]'s, which the stories and the chaos run ask as well; here is what only the producer knows.

use sink::Report;

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
