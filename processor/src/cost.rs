//! Splits measured device time over the jobs that shared it, to the nanosecond.

use crate::halving::Attempt;

/// The estimated work of a text of `tokens` tokens, by which device time is split. The linear layers of an encoder do
/// work in proportion to the tokens and attention to their square; for the BERT family the two are equal at some
/// thousands of tokens, so for common lengths this is close to the number of tokens.
pub(crate) fn work_units(tokens: usize) -> u64 {
    let tokens = tokens as u64;
    tokens + tokens * tokens / 2048
}

/// Splits `total` in proportion to `weights`, so that the parts add up to it: the whole part of each share, then one
/// more to the largest remainders, earlier ones first (the method of Hamilton). Equal parts where all weights are 0.
///
/// # Panics
/// Where there is something to split and nobody to take it.
pub(crate) fn split(total: u64, weights: &[u64]) -> Vec<u64> {
    assert!(
        !weights.is_empty() || total == 0,
        "{total} ns have nobody to pay for them"
    );
    let sum: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
    if sum == 0 && !weights.is_empty() {
        return split(total, &vec![1; weights.len()]);
    }
    let exact = |weight: &u64| u128::from(total) * u128::from(*weight);
    let mut parts: Vec<u64> = Vec::with_capacity(weights.len());
    for weight in weights {
        parts.push(u64::try_from(exact(weight) / sum).expect("a share is at most the total"));
    }
    let left_over = usize::try_from(total - parts.iter().sum::<u64>()).expect("fewer than there are parts");
    let mut by_remainder: Vec<usize> = (0..weights.len()).collect();
    by_remainder.sort_by_key(|index| std::cmp::Reverse(exact(&weights[*index]) % sum));
    for index in by_remainder.into_iter().take(left_over) {
        parts[index] += 1;
    }
    parts
}

/// What each text of a micro-batch pays, in nanoseconds: the parts add up to all `attempts`. A failed attempt is paid by
/// those who made it fail, so that a neighbour pays nothing for them; by all in it where it failed for no one's fault.
pub(crate) fn shares(attempts: &[Attempt], failed: &[bool], units: &[u64]) -> Vec<u64> {
    let mut shares = vec![0; units.len()];
    for attempt in attempts {
        let mut payers: Vec<usize> = attempt
            .members
            .clone()
            .filter(|index| !attempt.succeeded && failed[*index])
            .collect();
        if payers.is_empty() {
            payers = attempt.members.clone().collect();
        }
        let weights: Vec<u64> = payers.iter().map(|index| units[*index]).collect();
        for (index, part) in payers.into_iter().zip(split(attempt.elapsed_ns, &weights)) {
            shares[index] += part;
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::halving;

    #[test]
    fn the_remainder_goes_to_the_largest_fractions() {
        assert_eq!(split(10, &[1, 1, 1]), [4, 3, 3]);
        assert_eq!(split(7, &[5, 3, 1]), [4, 2, 1]);
        assert_eq!(split(5, &[0, 0]), [3, 2]);
        assert_eq!(split(0, &[]), Vec::<u64>::new());
    }

    #[test]
    fn the_culprit_pays_for_the_attempts_that_it_spoiled() {
        let halved = halving::run(&[false, false, true, false], |part| {
            (
                if part.contains(&true) {
                    Err(String::new())
                } else {
                    Ok(vec![(); part.len()])
                },
                100,
            )
        });
        let failed: Vec<bool> = halved.results.iter().map(Result::is_err).collect();
        assert_eq!(
            shares(&halved.attempts, &failed, &[1, 1, 1, 1]),
            [50, 50, 300, 100]
        );
    }

    proptest! {
        #[test]
        fn the_parts_add_up_to_the_whole_and_each_is_within_one_of_its_exact_share(
            total in 0_u64..1 << 60,
            weights in prop::collection::vec(0_u64..1 << 40, 1..200),
        ) {
            let parts = split(total, &weights);
            prop_assert_eq!(parts.iter().sum::<u64>(), total);
            let sum: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
            if sum > 0 {
                for (part, weight) in parts.iter().zip(&weights) {
                    let exact = u128::from(total) * u128::from(*weight);
                    prop_assert!((u128::from(*part) * sum).abs_diff(exact) < sum);
                }
            }
        }

        #[test]
        fn the_shares_of_a_micro_batch_add_up_to_its_measured_time_whatever_failed(
            texts in prop::collection::vec((any::<bool>(), 1_usize..600), 1..60),
            times in prop::collection::vec(0_u64..1 << 40, 256),
        ) {
            let mut times = times.into_iter().cycle();
            let halved = halving::run(&texts, |part| {
                let answer = if part.iter().any(|(bad, _)| *bad) { Err(String::new()) } else { Ok(vec![(); part.len()]) };
                (answer, times.next().unwrap())
            });
            let failed: Vec<bool> = halved.results.iter().map(Result::is_err).collect();
            let units: Vec<u64> = texts.iter().map(|(_, tokens)| work_units(*tokens)).collect();
            let measured: u64 = halved.attempts.iter().map(|attempt| attempt.elapsed_ns).sum();
            prop_assert_eq!(shares(&halved.attempts, &failed, &units).iter().sum::<u64>(), measured);
        }
    }
}
