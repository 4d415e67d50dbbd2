//! The chain of a partition's ranges, as it stands in the lake.

use std::collections::VecDeque;

use schemas::TopicId;

use crate::{
    Error, audit,
    encode::Source,
    layout,
    range::{Carried, Marks, RangeIntent},
    store::Store,
};

/// Where a partition goes on.
#[derive(Debug)]
pub(crate) struct Position {
    /// Ranges to be done again, in order: their intents stand, and their data may not.
    pub(crate) redo: VecDeque<RangeIntent>,
    /// Where the next range begins after those.
    pub(crate) start: i64,
    /// What is handed on there.
    pub(crate) carried: Carried,
}

/// Finds where to go on with a partition whose first record to be read is at `first_offset`. The lake is the truth: a
/// range that the log is at or before is done again from its intent, and a new one begins where the last one ends.
///
/// # Errors
/// [`Error::Contradiction`] where the lake's ranges begin after `first_offset`: it is not the lake that this consumer
/// group has written.
pub(crate) async fn find(store: &Store, source: &Source, first_offset: i64) -> Result<Position, Error> {
    let (topic_id, partition) = (source.partition.topic.id, source.partition.index);
    let folder = layout::ranges(topic_id, partition);
    let starts: Vec<i64> = store
        .list(&folder)
        .await?
        .iter()
        .filter_map(layout::start_of)
        .collect();
    let (Some(first), Some(last)) = (starts.first(), starts.last()) else {
        return Ok(Position {
            redo: VecDeque::new(),
            start: first_offset,
            carried: match source.tenant {
                Some(_) => Carried::Marks(Marks::default()),
                None => Carried::Head(audit::beginning(topic_id, partition)),
            },
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
    let mut redo = VecDeque::new();
    if first_offset < last.end {
        let from = starts
            .iter()
            .rposition(|start| *start <= first_offset)
            .unwrap_or(0);
        for start in &starts[from..starts.len() - 1] {
            redo.push_back(intent(store, topic_id, partition, *start).await?);
        }
        redo.push_back(last.clone());
    }
    Ok(Position {
        redo,
        start: last.end,
        carried: last.carried_after(),
    })
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
