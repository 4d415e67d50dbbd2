//! The chain of a partition's ranges, as it stands in the lake.

use std::{
    collections::{BTreeSet, VecDeque},
    future::ready,
};

use futures::TryStreamExt;
use schemas::TopicId;

use crate::{
    Error,
    encode::Source,
    layout,
    range::{Carried, RangeIntent},
    store::Store,
};

/// How far before the first offset to be read the range is looked for that it is in, at first: no more ranges than that begin
/// there, which is five requests, of a thousand names each.
const REACH_FIRST: i64 = 4096;
/// Where no range begins there, the next look reaches so many times as far. Seven looks reach past a trillion records.
const REACH_FACTOR: i64 = 16;

/// Where a partition goes on.
#[derive(Debug)]
pub(crate) struct Position {
    /// The group's progress may be here: what stands before it is whole, though it was not committed.
    pub(crate) whole_until: Option<i64>,
    /// Ranges to be done again, in order: their intents stand, and their data may not.
    pub(crate) redo: VecDeque<RangeIntent>,
    /// Where the next range begins after those.
    pub(crate) start: i64,
    /// What is handed on there.
    pub(crate) carried: Carried,
}

/// Finds where to go on with a partition whose first record to be read is at `first_offset`. The lake is the truth: a
/// range that the log is at or before is done again from its intent, and a new one begins where the last one ends. But one
/// that the log is in the middle of is not done again where all its files are there: its first records may be read no more,
/// since the group's position expired and the topic does not keep them.
///
/// # Errors
/// [`Error::Contradiction`] where the lake's ranges begin after `first_offset`: it is not the lake that this consumer
/// group has written.
pub(crate) async fn find(store: &Store, source: &Source, first_offset: i64) -> Result<Position, Error> {
    let (topic_id, partition) = (source.partition.topic.id, source.partition.index);
    let folder = layout::ranges(topic_id, partition);
    let starts = starts_from(store, topic_id, partition, first_offset).await?;
    let (Some(first), Some(last)) = (starts.first(), starts.last()) else {
        return Ok(Position {
            whole_until: None,
            redo: VecDeque::new(),
            start: first_offset,
            carried: Carried::at_the_beginning(topic_id, partition, source.tenant.is_none()),
        });
    };
    if first_offset < *first {
        return Err(Error::Contradiction {
            what: format!(
                "the ranges in `{folder}` of the lake `{}` begin at offset {first}, and the log is read from {first_offset}: the lake is not the one that this consumer group wrote; give a new lake a new sink.group",
                store.url()
            ),
        });
    }
    let last = intent(store, topic_id, partition, *last).await?;
    let (mut whole_until, mut redo) = (None, VecDeque::new());
    if first_offset < last.end {
        for start in starts.range(..last.start) {
            redo.push_back(intent(store, topic_id, partition, *start).await?);
        }
        redo.push_back(last.clone());
    }
    if let Some(first) = redo.front().filter(|range| range.start < first_offset)
        && is_whole(store, first).await?
    {
        whole_until = Some(first.end);
        redo.pop_front();
    }
    Ok(Position {
        whole_until,
        redo,
        start: last.end,
        carried: last.carried_after(),
    })
}

/// Where the range begins that `first_offset` is in or behind, and where all after it begin; all ranges where none begins at
/// or before it. A partition may have hundreds of thousands of them, so they are listed from near `first_offset` on.
async fn starts_from(
    store: &Store,
    topic_id: TopicId,
    partition: i32,
    first_offset: i64,
) -> Result<BTreeSet<i64>, Error> {
    let folder = layout::ranges(topic_id, partition);
    let mut reach = REACH_FIRST;
    loop {
        let behind = first_offset.saturating_sub(reach);
        let behind = (behind > 0).then(|| layout::intent(topic_id, partition, behind));
        let starts = store
            .list_behind(&folder, behind.as_ref())
            .try_fold(BTreeSet::new(), |mut starts, path| {
                starts.extend(layout::start_of(&path));
                while starts.iter().nth(1).is_some_and(|second| *second <= first_offset) {
                    starts.pop_first();
                }
                ready(Ok(starts))
            })
            .await?;
        if behind.is_none() || starts.first().is_some_and(|first| *first <= first_offset) {
            return Ok(starts);
        }
        reach = reach.saturating_mul(REACH_FACTOR);
    }
}

/// Whether all of `range` is in the lake: its files come last. Of one without any that is not known.
async fn is_whole(store: &Store, range: &RangeIntent) -> Result<bool, Error> {
    for file in &range.files {
        if !store.has(&layout::path(&file.path)).await? {
            return Ok(false);
        }
    }
    Ok(!range.files.is_empty())
}

/// The intent of the range that begins at `start`.
pub(crate) async fn intent(
    store: &Store,
    topic_id: TopicId,
    partition: i32,
    start: i64,
) -> Result<RangeIntent, Error> {
    let path = layout::intent(topic_id, partition, start);
    let contradiction = |why: &str| Error::Contradiction {
        what: format!("range `{path}` of the lake `{}` {why}", store.url()),
    };
    let Some(bytes) = store.read(&path).await? else {
        return Err(contradiction("was listed and is not there"));
    };
    let intent =
        RangeIntent::decode(&bytes).map_err(|why| contradiction(&format!("cannot be read: {why}")))?;
    if (intent.topic_id, intent.partition, intent.start) != (topic_id, partition, start) {
        return Err(contradiction("is of another range than its name says"));
    }
    Ok(intent)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use chrono::NaiveDate;
    use object_store::memory::InMemory;
    use proptest::prelude::*;
    use schemas::{Tenant, TopicName};
    use topics::{Partition, TopicRef};

    use super::*;
    use crate::range::{Marks, RangeFile, Table};

    const TOPIC: TopicId = TopicId::from_bytes([1; 16]);

    fn source() -> Source {
        let topic = TopicRef {
            name: TopicName::new("outcomes.acme").unwrap(),
            id: TOPIC,
        };
        Source {
            partition: Partition {
                topic: topic.into(),
                index: 0,
            },
            tenant: Some(Tenant::new("acme").unwrap()),
        }
    }

    /// A lake with ranges that begin at 0, 10 and 20, and end at 30. Of the last one `files` of two are there.
    async fn lake(files: usize) -> Store {
        let store = Store::over(Arc::new(InMemory::new()), "the lake");
        for start in [0, 10, 20] {
            let date = NaiveDate::from_ymd_opt(2026, 11, 27).unwrap();
            let tenant = source().tenant;
            let file = |table| RangeFile {
                path: layout::data(table, tenant.as_ref(), date, TOPIC, 0, start),
                table,
                date,
                rows: 10,
            };
            let range = RangeIntent {
                version: 1,
                topic: source().partition.topic.name.clone(),
                topic_id: TOPIC,
                partition: 0,
                tenant: tenant.clone(),
                start,
                end: start + 10,
                files: vec![file(Table::Results), file(Table::Costs)],
                duplicates: 0,
                undecodable: 0,
                marks_before: Marks::default(),
                marks_after: Marks::default(),
                heads: None,
            };
            let path = layout::intent(TOPIC, 0, start);
            store.create(&path, range.encode()).await.unwrap();
            let there = if start == 20 { files } else { 2 };
            for file in &range.files[..there] {
                store.create(&layout::path(&file.path), "rows").await.unwrap();
            }
        }
        store
    }

    /// Up to where all is whole, which ranges are done again, and where the next begins.
    async fn found(store: &Store, first_offset: i64) -> (Option<i64>, Vec<i64>, i64) {
        let position = find(store, &source(), first_offset).await.unwrap();
        let redo = position.redo.iter().map(|range| range.start).collect();
        (position.whole_until, redo, position.start)
    }

    #[tokio::test]
    async fn ranges_are_done_again_from_the_first_record_that_is_read() {
        let store = lake(2).await;
        assert_eq!(found(&store, 10).await, (None, vec![10, 20], 30));
        assert_eq!(found(&store, 20).await, (None, vec![20], 30));
        assert_eq!(found(&store, 31).await, (None, vec![], 30));
    }

    #[tokio::test]
    async fn a_whole_range_whose_first_records_are_gone_from_the_log_is_not_done_again() {
        let store = lake(2).await;
        assert_eq!(found(&store, 13).await, (Some(20), vec![20], 30));
        assert_eq!(found(&store, 25).await, (Some(30), vec![], 30));
        assert_eq!(found(&lake(1).await, 25).await, (None, vec![20], 30));
    }

    /// Ranges and a first offset that are as far apart as they may be, and as near.
    fn starts_and_first_offset() -> impl Strategy<Value = (BTreeSet<i64>, i64)> {
        let offset = (0..40_u32, any::<i64>()).prop_map(|(bits, any)| any & ((1 << bits) - 1));
        (prop::collection::btree_set(offset.clone(), 0..12), offset)
    }

    proptest! {
        #[test]
        fn the_ranges_from_the_first_record_on_are_found_however_far_it_is_from_the_others((starts, first_offset) in starts_and_first_offset()) {
            let store = Store::over(Arc::new(InMemory::new()), "the lake");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let found = runtime.block_on(async {
                for start in &starts {
                    store.create(&layout::intent(TOPIC, 0, *start), "").await.unwrap();
                }
                // Another partition is none of this one's business.
                store.create(&layout::intent(TOPIC, 1, first_offset), "").await.unwrap();
                starts_from(&store, TOPIC, 0, first_offset).await.unwrap()
            });
            let from = starts.range(..=first_offset).next_back().copied().unwrap_or(0);
            prop_assert_eq!(found, starts.range(from..).copied().collect::<BTreeSet<_>>());
        }
    }
}
