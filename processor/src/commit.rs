//! Commits what became of windows: several together while more is under way, since a commit costs the broker some 20 ms of
//! CPU for ten partitions, however little it holds.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::{Instant, sleep_until},
};
use topics::{Committer, Error, Partition};

use crate::{
    accounts::{Accounts, Billed},
    metric_names,
    outcomes::{self, Context},
    service::WINDOWS_UNDER_WAY_MAX,
    windows::Inferred,
};

/// Half of the windows that may be under way, so that the device has the others while these are committed.
const WINDOWS_A_COMMIT_MAX: usize = WINDOWS_UNDER_WAY_MAX / 2;

/// When windows are committed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cadence {
    /// While more is under way, no commit begins sooner after the one before.
    pub(crate) interval: Duration,
    /// What has so many jobs waits for no more …
    pub(crate) jobs_min: usize,
    /// … nor what has so many bytes of records.
    pub(crate) bytes_min: usize,
}

/// Whether what was `gathered` waits for no more, where so many windows are `under_way`, these included.
fn is_enough(gathered: &[Inferred], under_way: usize, cadence: Cadence) -> bool {
    let sum = |of: fn(&Inferred) -> usize| gathered.iter().map(of).sum::<usize>();
    gathered.len() >= under_way.min(WINDOWS_A_COMMIT_MAX)
        || sum(|window| window.prepared.items.len()) >= cadence.jobs_min
        || sum(|window| window.prepared.bytes) >= cadence.bytes_min
}

/// Commits windows in order, and tells `committed` the number of the last one of each commit. Each window under way has one
/// of `places`.
pub(crate) async fn commit(
    mut inferred: mpsc::Receiver<Inferred>,
    mut committer: Box<dyn Committer>,
    mut accounts: Accounts,
    context: Arc<Context>,
    cadence: Cadence,
    places: Arc<Semaphore>,
    committed: watch::Sender<u64>,
) -> Result<(), Error> {
    let mut not_before = Instant::now();
    while let Some(window) = inferred.recv().await {
        let mut gathered = vec![window];
        while !is_enough(
            &gathered,
            WINDOWS_UNDER_WAY_MAX - places.available_permits(),
            cadence,
        ) {
            tokio::select! {
                biased;
                window = inferred.recv() => match window {
                    Some(window) => gathered.push(window),
                    None => break,
                },
                () = sleep_until(not_before) => break,
            }
        }
        let began = Instant::now();
        not_before = began + cadence.interval;
        let now_ms = chrono::Utc::now().timestamp_millis();
        let (mut billed, mut last, mut places) = (Vec::new(), 0, Vec::new());
        for Inferred {
            prepared, answers, ..
        } in gathered
        {
            billed.push(outcomes::steps(prepared.items, answers, &context, now_ms));
            last = prepared.number;
            places.push(prepared.place);
        }
        let steps = accounts.note(joined(billed), now_ms).await?;
        let left_out = committer.append_and_commit(steps).await?.left_out;
        if !left_out.is_empty() {
            tracing::info!(partitions = ?left_out, "outcomes left to the partitions' new owner");
            accounts.forget(&left_out);
        }
        // Before the next window may be taken, so that it has what waited for this.
        committed.send_replace(last);
        drop(places);
        metrics::histogram!(metric_names::COMMIT_SECONDS).record(began.elapsed().as_secs_f64());
    }
    Ok(())
}

/// One step for each partition out of those of `windows`, which are in order. What was read of a partition under an earlier
/// handing-over is another's to do again, and would be left out of the commit.
fn joined(windows: Vec<Vec<Billed>>) -> Vec<Billed> {
    let mut joined: BTreeMap<Partition, Billed> = BTreeMap::new();
    for billed in windows.into_iter().flatten() {
        match joined.get_mut(&billed.step.source) {
            Some(earlier) if earlier.step.assignment == billed.step.assignment => {
                earlier.step.appends.extend(billed.step.appends);
                earlier.step.next_offset = billed.step.next_offset;
                earlier.cost = earlier.cost.saturating_add(billed.cost);
            }
            _ => {
                joined.insert(billed.step.source.clone(), billed);
            }
        }
    }
    joined.into_values().collect()
}

#[cfg(test)]
mod tests {
    use rust_decimal::Decimal;
    use schemas::{TopicId, TopicName};
    use topics::{Append, Assignment, Step, TopicRef};

    use super::*;
    use crate::prepare::Prepared;

    const CADENCE: Cadence = Cadence {
        interval: Duration::ZERO,
        jobs_min: usize::MAX,
        bytes_min: 1_000,
    };

    fn window(bytes: usize) -> Inferred {
        let place = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        Inferred {
            prepared: Prepared {
                number: 1,
                items: Vec::new(),
                batches: Vec::new(),
                bytes,
                taken_at: Instant::now(),
                took_ms: 0.0,
                place,
                lead: None,
            },
            answers: Vec::new(),
            device_time_ns: 0,
        }
    }

    /// What came of one record of a partition, as an append of that offset.
    fn billed(index: i32, assignment: u64, offset: i64) -> Billed {
        let topic = TopicName::new("work.shared.acme").unwrap();
        let source = Partition {
            topic: Arc::new(TopicRef {
                name: topic.clone(),
                id: TopicId::from_bytes([1; 16]),
            }),
            index,
        };
        let append = Append {
            topic,
            partition: Some(index),
            timestamp_ms: offset,
            key: None,
            value: None,
            headers: Vec::new(),
        };
        let step = Step {
            source,
            assignment: Assignment(assignment),
            next_offset: offset + 1,
            appends: vec![append],
            note: None,
        };
        Billed {
            step,
            cost: Decimal::ONE,
        }
    }

    /// The partition of each step, the offsets whose outcomes it has, where it ends, and what it costs.
    fn seen(joined: &[Billed]) -> Vec<(i32, Vec<i64>, i64, Decimal)> {
        let seen = joined.iter().map(|Billed { step, cost }| {
            let offsets = step.appends.iter().map(|append| append.timestamp_ms);
            (step.source.index, offsets.collect(), step.next_offset, *cost)
        });
        seen.collect()
    }

    #[test]
    fn windows_are_gathered_while_others_are_under_way_and_until_there_are_enough() {
        let mut gathered = vec![window(100)];
        assert!(is_enough(&gathered, 1, CADENCE), "nothing else will come");
        assert!(!is_enough(&gathered, 2, CADENCE));
        gathered.push(window(899));
        assert!(!is_enough(&gathered, 3, CADENCE));
        gathered.push(window(1));
        assert!(
            is_enough(&gathered, 5, CADENCE),
            "it has the bytes of a whole one"
        );
        let gathered: Vec<Inferred> = (0..WINDOWS_A_COMMIT_MAX).map(|_| window(0)).collect();
        assert!(is_enough(&gathered, WINDOWS_UNDER_WAY_MAX, CADENCE));
    }

    #[test]
    fn windows_of_a_partition_are_one_step_in_their_order_that_costs_what_they_cost() {
        let first = vec![billed(0, 1, 10), billed(1, 1, 50)];
        let second = vec![billed(1, 1, 51), billed(2, 1, 0)];
        let third = vec![billed(1, 1, 52)];
        assert_eq!(
            seen(&joined(vec![first, second, third])),
            [
                (0, vec![10], 11, 1.into()),
                (1, vec![50, 51, 52], 53, 3.into()),
                (2, vec![0], 1, 1.into()),
            ]
        );
    }

    #[test]
    fn what_was_read_before_a_partition_went_away_and_came_back_is_in_no_step_and_on_no_bill() {
        let (before, after) = (vec![billed(0, 1, 10), billed(1, 1, 7)], vec![billed(0, 2, 10)]);
        assert_eq!(
            seen(&joined(vec![before, after])),
            [(0, vec![10], 11, 1.into()), (1, vec![7], 8, 1.into())]
        );
    }
}
