//! Which partitions a member of a group holds, as of this instant.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{Assignment, Partition, Step};

/// A partition by the name of its topic; its id is not known where partitions change hands.
pub(super) type Place = (String, i32);

/// What one member holds. Changed where librdkafka tells of it, on the thread that polls; read by whoever commits or pauses.
#[derive(Default)]
pub(super) struct Membership {
    held: RwLock<HashMap<Place, Assignment>>,
    /// Apart from what is held, or whoever polls would wait for a commit.
    untold: Mutex<VecDeque<Change>>,
    changed: Condvar,
}

/// A change of what is held, for the reader to tell.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    Assigned(Vec<(Place, Assignment)>),
    Revoked(Vec<Place>),
}

impl Membership {
    pub(super) fn assign(&self, places: Vec<Place>) {
        if places.is_empty() {
            return;
        }
        let assigned: Vec<_> = places
            .into_iter()
            .map(|place| (place, next_assignment()))
            .collect();
        self.held
            .write()
            .expect(NO_PANIC)
            .extend(assigned.iter().cloned());
        self.untold().push_back(Change::Assigned(assigned));
        self.changed.notify_all();
    }

    pub(super) fn revoke(&self, mut places: Vec<Place>) {
        {
            let mut held = self.held.write().expect(NO_PANIC);
            places.retain(|place| held.remove(place).is_some());
        }
        if !places.is_empty() {
            self.untold().push_back(Change::Revoked(places));
        }
        self.changed.notify_all();
    }

    /// The changes since this was last asked, oldest first.
    pub(super) fn take_changes(&self) -> VecDeque<Change> {
        std::mem::take(&mut self.untold())
    }

    /// Splits off the steps whose source has changed hands since it was read: (held, not held).
    pub(super) fn sort_out(&self, steps: Vec<Step>) -> (Vec<Step>, Vec<Step>) {
        let ((), held, others) = self.while_held(steps, |_| ());
        (held, others)
    }

    /// As [`Membership::sort_out`], and nothing is assigned or revoked until `work` on the held steps is done.
    pub(super) fn while_held<T>(
        &self,
        steps: Vec<Step>,
        work: impl FnOnce(&[Step]) -> T,
    ) -> (T, Vec<Step>, Vec<Step>) {
        let all_held = self.held();
        let (held, others): (Vec<Step>, Vec<Step>) = steps
            .into_iter()
            .partition(|step| holds(&all_held, &step.source, step.assignment));
        (work(&held), held, others)
    }

    /// Does `work` on those of `partitions` that are held as they were told, and nothing is assigned or revoked until it is
    /// done.
    pub(super) fn while_told<T>(
        &self,
        told: &HashMap<Partition, Assignment>,
        partitions: &[Partition],
        work: impl FnOnce(Vec<&Partition>) -> T,
    ) -> T {
        let all_held = self.held();
        let is_as_told = |partition: &&Partition| {
            told.get(partition)
                .is_some_and(|assignment| holds(&all_held, partition, *assignment))
        };
        work(partitions.iter().filter(is_as_told).collect())
    }

    /// Waits until something is assigned or revoked, but not longer than `limit`.
    pub(super) fn wait_for_change(&self, limit: Duration) {
        drop(self.changed.wait_timeout(self.untold(), limit).expect(NO_PANIC));
    }

    fn held(&self) -> RwLockReadGuard<'_, HashMap<Place, Assignment>> {
        self.held.read().expect(NO_PANIC)
    }

    fn untold(&self) -> MutexGuard<'_, VecDeque<Change>> {
        self.untold.lock().expect(NO_PANIC)
    }
}

const NO_PANIC: &str = "no holder of this lock panics";

fn holds(held: &HashMap<Place, Assignment>, partition: &Partition, assignment: Assignment) -> bool {
    let place = (partition.topic.name.as_str().to_owned(), partition.index);
    held.get(&place) == Some(&assignment)
}

/// Unique in this process, so that no step read by one member is ever taken for another's.
fn next_assignment() -> Assignment {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    Assignment(NEXT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use schemas::{TopicId, TopicName};

    use super::*;
    use crate::{Partition, TopicRef};

    fn step(index: i32, assignment: Assignment) -> Step {
        let topic = TopicRef {
            name: TopicName::new("t").unwrap(),
            id: TopicId::from_bytes([7; 16]),
        };
        Step {
            source: Partition {
                topic: Arc::new(topic),
                index,
            },
            assignment,
            next_offset: 1,
            appends: Vec::new(),
            note: None,
        }
    }

    fn place(index: i32) -> Place {
        ("t".to_owned(), index)
    }

    #[test]
    fn a_step_read_before_a_handing_over_is_not_this_members_even_if_the_partition_came_back() {
        let membership = Membership::default();
        membership.assign(vec![place(0), place(1)]);
        let Some(Change::Assigned(first)) = membership.take_changes().pop_front() else {
            panic!("assigned")
        };
        membership.revoke(vec![place(0)]);
        membership.assign(vec![place(0)]);
        let (held, others) = membership.sort_out(vec![step(0, first[0].1), step(1, first[1].1)]);
        assert_eq!(held.iter().map(|step| step.source.index).collect::<Vec<_>>(), [1]);
        assert_eq!(
            others.iter().map(|step| step.source.index).collect::<Vec<_>>(),
            [0]
        );
    }

    #[test]
    fn a_partition_that_changed_hands_since_it_was_told_is_left_alone_even_if_it_came_back() {
        let membership = Membership::default();
        membership.assign(vec![place(0), place(1), place(2)]);
        let Some(Change::Assigned(first)) = membership.take_changes().pop_front() else {
            panic!("assigned")
        };
        let partitions = [0, 1, 2, 3].map(|index| step(index, first[0].1).source);
        let told: HashMap<Partition, Assignment> = partitions
            .iter()
            .cloned()
            .zip(first.into_iter().map(|(_, assignment)| assignment))
            .collect();
        let held = |membership: &Membership| {
            membership.while_told(&told, &partitions, |held| {
                held.iter().map(|partition| partition.index).collect::<Vec<_>>()
            })
        };
        assert_eq!(held(&membership), [0, 1, 2], "the last one was never told");
        membership.revoke(vec![place(0), place(2)]);
        assert_eq!(held(&membership), [1]);
        membership.assign(vec![place(0)]);
        assert_eq!(held(&membership), [1]);
    }

    #[test]
    fn changes_are_told_once_in_order_and_only_for_what_was_held() {
        let membership = Membership::default();
        membership.assign(vec![place(0)]);
        membership.revoke(vec![place(0), place(9)]);
        membership.revoke(vec![place(0)]);
        let changes = membership.take_changes();
        assert!(matches!(&changes[0], Change::Assigned(assigned) if assigned[0].0 == place(0)));
        assert_eq!(
            changes.range(1..).collect::<Vec<_>>(),
            [&Change::Revoked(vec![place(0)])]
        );
        assert!(membership.take_changes().is_empty());
    }
}
