//! What texts are worth in work units, and how measured device time is split by them, to the nanosecond.

use crate::halving::Attempt;

/// What a window took of one tenant, in work units.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Work {
    /// As it was charged when its turns came.
    pub(crate) estimate: u64,
    /// As its tokens say.
    pub(crate) units: u64,
}

/// The estimated work of a text of `tokens` tokens, by which device time is split. The linear layers of an encoder do
/// work in proportion to the tokens and attention to their square; for the BERT family the two are equal at some
/// thousands of tokens, so for common lengths this is close to the number of tokens.
pub(crate) fn work_units(tokens: usize) -> u64 {
    let tokens = tokens as u64;
    tokens + tokens * tokens / 2048
}

/// What a record of `jobs` jobs in `bytes` bytes will be in work units, about: its texts are not tokenized yet. A model
/// reads at most `tokens_max` of each.
pub(crate) fn estimate(jobs: u64, bytes: usize, tokens_max: usize) -> u64 {
    /// What an admitted job has beside its text: names of fields, its origin, ids and times.
    const JOB_BYTES: u64 = 160;
    /// Of English, and nearly of code.
    const TOKEN_BYTES: u64 = 4;
    /// That a model of the BERT family adds to each text.
    const SPECIAL_TOKENS: u64 = 2;
    let text_bytes = (bytes as u64 / jobs).saturating_sub(JOB_BYTES);
    let tokens = text_bytes / TOKEN_BYTES + SPECIAL_TOKENS;
    jobs * work_units(tokens_max.min(tokens as usize)).max(JOB_WORK_MIN)
}

/// What a job counts at least when turns are given out, in work units: one that fails before the device has taken room in a
/// window and in a commit all the same, and were it free, a tenant of such jobs would always be next.
pub(crate) const JOB_WORK_MIN: u64 = 1;

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
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use schemas::{
        AdmittedJob, AdmittedJobs, JobId, ModelName, Origin, Record as _, Tenant, TopicId, TopicName,
    };

    use super::*;
    use crate::halving;

    /// A record of jobs with texts of so many bytes.
    fn record(text_bytes: usize, jobs: i64) -> Vec<u8> {
        let job = |number| AdmittedJob {
            origin: Origin {
                topic: TopicName::new("jobs.acme").unwrap(),
                topic_id: TopicId::from_bytes([7; 16]),
                partition: 3,
                offset: 1_000_000 + number,
            },
            tenant: Tenant::new("acme").unwrap(),
            job_id: JobId::new("a-job-of-acme").unwrap(),
            model: ModelName::new("minilm").unwrap(),
            input: "x".repeat(text_bytes),
            text_pair: None,
            priority: None,
            submitted_at_ms: 1_764_000_000_000,
            deadline_ms: None,
            labels: BTreeMap::new(),
            trace_id: None,
        };
        AdmittedJobs((0..jobs).map(job).collect()).encode()
    }

    #[test]
    fn an_estimate_is_near_the_work_where_tokens_have_four_bytes() {
        for (text_bytes, jobs) in [(40, 20), (200, 10), (1_000, 4), (7_000, 1)] {
            let estimate = estimate(jobs, record(text_bytes, jobs as i64).len(), 512);
            let work = jobs * work_units((text_bytes / 4 + 2).min(512));
            assert!(
                estimate.abs_diff(work) <= work / 4 + jobs,
                "{jobs} texts of {text_bytes} bytes: {estimate} for {work}"
            );
        }
        assert_eq!(
            estimate(1, 0, 512),
            work_units(2),
            "what is no record costs little"
        );
    }

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
