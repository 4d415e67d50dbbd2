//! Which partitions a member of a group holds, as of this instant.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{Assignment, Step};

/// A partition by the name of its topic; its id is not known where partitions change hands.
pub(super) type Place = (String, i32);

/// What one member holds. Changed where librdkafka tells of it, on the thread that polls; read by whoever commits.
#[derive(Default)]
pub(super) struct Membership {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    held: HashMap<Place, Assignment>,
    untold: VecDeque<Change>,
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
        let mut state = self.lock();
        let assigned: Vec<_> = places
            .into_iter()
            .map(|place| (place, next_assignment()))
            .collect();
        state.held.extend(assigned.iter().cloned());
        state.untold.push_back(Change::Assigned(assigned));
        self.changed.notify_all();
    }

    pub(super) fn revoke(&self, mut places: Vec<Place>) {
        let mut state = self.lock();
        places.retain(|place| state.held.remove(place).is_some());
        if !places.is_empty() {
            state.untold.push_back(Change::Revoked(places));
        }
        self.changed.notify_all();
    }

    /// The changes since this was last asked, oldest first.
    pub(super) fn take_changes(&self) -> VecDeque<Change> {
        std::mem::take(&mut self.lock().untold)
    }

    /// Splits off the steps whose source has changed hands since it was read: (held, not held).
    pub(super) fn sort_out(&self, steps: Vec<Step>) -> (Vec<Step>, Vec<Step>) {
        let state = self.lock();
        steps.into_iter().partition(|step| state.holds(step))
    }

    /// As [`Membership::sort_out`], and nothing is assigned or revoked until `work` on the held steps is done.
    pub(super) fn while_held<T>(
        &self,
        steps: Vec<Step>,
        work: impl FnOnce(&[Step]) -> T,
    ) -> (T, Vec<Step>, Vec<Step>) {
        let state = self.lock();
        let (held, others) = steps.into_iter().partition::<Vec<_>, _>(|step| state.holds(step));
        (work(&held), held, others)
    }

    /// Waits until something is assigned or revoked, but not longer than `limit`.
    pub(super) fn wait_for_change(&self, limit: Duration) {
        drop(
            self.changed
                .wait_timeout(self.lock(), limit)
                .expect("no holder of this lock panics"),
        );
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

impl State {
    fn holds(&self, step: &Step) -> bool {
        let place = (step.source.topic.name.as_str().to_owned(), step.source.index);
        self.held.get(&place) == Some(&step.assignment)
    }
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
