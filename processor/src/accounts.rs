//! What the work of each partition has cost, which the group remembers with its position.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use rust_decimal::Decimal;
use schemas::{Spending, TopicName};
use topics::{Assignment, Error, Partition, Step, Topics};

/// A step, and what the outcomes in it cost together.
pub(crate) struct Billed {
    pub(crate) step: Step,
    pub(crate) cost: Decimal,
}

/// The accounts of one processor's partitions.
///
/// An account is committed with the outcomes that it bills, so it is as exact as they are: what is not committed is billed
/// by whoever does it again. Nobody else can have changed it while a partition is this processor's, and what its last owner
/// committed stands there before its first record is read.
pub(crate) struct Accounts {
    topics: Arc<dyn Topics>,
    group: String,
    known: BTreeMap<Partition, (Assignment, Spending)>,
}

impl Accounts {
    /// Those that `group` remembers.
    pub(crate) fn new(topics: Arc<dyn Topics>, group: String) -> Self {
        Self {
            topics,
            group,
            known: BTreeMap::new(),
        }
    }

    /// The steps of `billed`, each with a note of what its partition has cost as of `now_ms`.
    pub(crate) async fn note(&mut self, mut billed: Vec<Billed>, now_ms: i64) -> Result<Vec<Step>, Error> {
        self.look_up(&billed).await?;
        for Billed { step, cost } in &mut billed {
            if let Some((_, spending)) = self.known.get_mut(&step.source) {
                spending.add(*cost, now_ms);
                step.note = Some(spending.to_note());
            }
        }
        Ok(billed.into_iter().map(|billed| billed.step).collect())
    }

    /// What was noted of `partitions` was not committed: they are another processor's.
    pub(crate) fn forget(&mut self, partitions: &[Partition]) {
        self.known.retain(|partition, _| !partitions.contains(partition));
    }

    /// Looks up the accounts of partitions that were taken over.
    async fn look_up(&mut self, billed: &[Billed]) -> Result<(), Error> {
        let steps = billed.iter().map(|billed| &billed.step);
        let is_new = |step: &&Step| {
            let known = self.known.get(&step.source);
            known.is_none_or(|(assignment, _)| *assignment != step.assignment)
        };
        let new: Vec<&Step> = steps.filter(is_new).collect();
        if new.is_empty() {
            return Ok(());
        }
        let topics: BTreeSet<TopicName> = new.iter().map(|step| step.source.topic.name.clone()).collect();
        let topics: Vec<TopicName> = topics.into_iter().collect();
        let mut standing = self.topics.standing(&self.group, &topics).await?;
        for step in new {
            let of_partition = standing.remove(&(step.source.topic.name.clone(), step.source.index));
            let note = of_partition.and_then(|of_partition| of_partition.note);
            let spending = note.map_or_else(Spending::default, |note| {
                Spending::of_note(&note).unwrap_or_else(|error| {
                    tracing::error!(partition = %step.source, note, %error, "what was spent cannot be read: it begins at zero");
                    Spending::default()
                })
            });
            let account = (step.assignment, spending);
            self.known.insert(step.source.clone(), account);
        }
        Ok(())
    }
}
