//! Finds the text that makes a micro-batch fail: halve until it is alone.

use std::ops::Range;

/// One attempt to run part of a micro-batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attempt {
    /// Which of the micro-batch's texts it was about.
    pub(crate) members: Range<usize>,
    /// How long it took the device, in nanoseconds.
    pub(crate) elapsed_ns: u64,
    /// Whether the device answered.
    pub(crate) succeeded: bool,
}

/// What came of a micro-batch.
#[derive(Debug)]
pub(crate) struct Halved<R> {
    /// One a text: its answer, or why there is none.
    pub(crate) results: Vec<Result<R, String>>,
    /// Every attempt, in order.
    pub(crate) attempts: Vec<Attempt>,
}

/// Runs `batch` through `run`, which answers for all texts or fails for all, and says how many nanoseconds it took.
pub(crate) fn run<T, R>(
    batch: &[T],
    mut run: impl FnMut(&[T]) -> (Result<Vec<R>, String>, u64),
) -> Halved<R> {
    let mut halved = Halved {
        results: Vec::with_capacity(batch.len()),
        attempts: Vec::new(),
    };
    // Parts yet to run, the leftmost on top, so that results come in order.
    let mut parts: Vec<Range<usize>> = Vec::new();
    if !batch.is_empty() {
        parts.push(0..batch.len());
    }
    while let Some(part) = parts.pop() {
        let (result, elapsed_ns) = run(&batch[part.clone()]);
        let result = result.and_then(|answers| {
            let (got, wanted) = (answers.len(), part.len());
            if got == wanted {
                Ok(answers)
            } else {
                Err(format!("the model gave {got} answers for {wanted} texts"))
            }
        });
        halved.attempts.push(Attempt {
            members: part.clone(),
            elapsed_ns,
            succeeded: result.is_ok(),
        });
        match result {
            Ok(answers) => halved.results.extend(answers.into_iter().map(Ok)),
            Err(error) if part.len() == 1 => halved.results.push(Err(error)),
            Err(_) => {
                let middle = part.start + part.len() / 2;
                parts.push(middle..part.end);
                parts.push(part.start..middle);
            }
        }
    }
    halved
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_culprits_fail_and_their_neighbours_succeed_whatever_the_mix(culprits in prop::collection::vec(any::<bool>(), 0..70)) {
            let halved = run(&culprits, |part| {
                let answer = if part.contains(&true) { Err("bad".to_owned()) } else { Ok(vec![(); part.len()]) };
                (answer, 1)
            });
            let failed: Vec<bool> = halved.results.iter().map(Result::is_err).collect();
            prop_assert_eq!(&failed, &culprits);
            let bad = culprits.iter().filter(|bad| **bad).count();
            let levels = culprits.len().next_power_of_two().ilog2() as usize;
            prop_assert!(halved.attempts.len() <= 1 + 2 * bad * levels, "{} attempts", halved.attempts.len());
        }
    }

    #[test]
    fn a_wrong_number_of_answers_is_a_failure() {
        let halved = run(&[1], |_| (Ok(vec![(), ()]), 1));
        assert_eq!(
            halved.results,
            [Err("the model gave 2 answers for 1 texts".to_owned())]
        );
    }
}
