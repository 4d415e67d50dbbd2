//! Finds the shortest story of a failure.

use super::{Plan, Ran, run};

/// Spares one fault after the other for as long as the run still fails, and gives the run with the fewest faults. None
/// where the plan does not fail.
pub fn shortest(plan: &Plan) -> Option<Ran> {
    let mut best = run(plan);
    if best.violations.is_empty() {
        return None;
    }
    let mut plan = plan.clone();
    loop {
        let shorter = best.faults.iter().rev().find_map(|(step, _)| {
            let mut spared = plan.spared.clone();
            spared.push(*step);
            let sparing = Plan {
                spared,
                ..plan.clone()
            };
            let ran = run(&sparing);
            let shorter = !ran.violations.is_empty() && ran.faults.len() < best.faults.len();
            shorter.then_some((sparing, ran))
        });
        match shorter {
            Some((sparing, ran)) => (plan, best) = (sparing, ran),
            None => return Some(best),
        }
    }
}
