//! Cuts a window into micro-batches.

/// Cuts texts of these `lengths`, in tokens, into micro-batches: indices into `lengths`, sorted by length so that little
/// is padded, each micro-batch of at most `tokens_max` tokens with its padding, but of at least one text.
///
/// A budget of tokens rather than a count of texts, because tokens are what a device takes time and memory for.
pub(crate) fn cut(lengths: &[usize], tokens_max: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(lengths[*index]));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut longest = 0;
    for index in order {
        match batches.last_mut() {
            Some(batch) if (batch.len() + 1) * longest <= tokens_max => batch.push(index),
            _ => {
                longest = lengths[index];
                batches.push(vec![index]);
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_of_like_length_share_a_micro_batch() {
        assert_eq!(cut(&[2, 100, 3, 99], 200), [vec![1, 3], vec![2, 0]]);
    }

    #[test]
    fn a_text_longer_than_the_budget_runs_alone() {
        assert_eq!(cut(&[500, 10], 200), [vec![0], vec![1]]);
        assert_eq!(cut(&[], 200), Vec::<Vec<usize>>::new());
    }

    proptest! {
        #[test]
        fn every_text_is_in_one_micro_batch_and_no_micro_batch_is_over_budget(
            lengths in prop::collection::vec(1_usize..600, 0..200),
            tokens_max in 1_usize..5_000,
        ) {
            let batches = cut(&lengths, tokens_max);
            let mut seen: Vec<usize> = batches.iter().flatten().copied().collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            for batch in &batches {
                let padded = batch.len() * batch.iter().map(|index| lengths[*index]).max().unwrap_or(0);
                prop_assert!(padded <= tokens_max || batch.len() == 1);
            }
        }
    }
}
