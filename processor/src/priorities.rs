//! Which of a tenant's jobs have the tenant's turn: the most urgent ones, and now and then the others.

use std::collections::VecDeque;

use schemas::Priority;

/// After so many turns in a row that went to others, the next is for a job of this priority; where two are due, for the less
/// urgent one. So a low job waits for at most 16 turns of each one before it of its own priority, and a normal one for at most 5.
fn passed_over_max(priority: Priority) -> u32 {
    match priority {
        Priority::High => 0,
        Priority::Normal => 4,
        Priority::Low => 16,
    }
}

/// What waits of one tenant: a queue for each priority.
pub(crate) struct Queue<T> {
    classes: [Class<T>; 3],
}

struct Class<T> {
    priority: Priority,
    waiting: VecDeque<T>,
    /// How many turns went to others since this one had its last, or had nothing.
    passed_over: u32,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        let class = |priority| Class {
            priority,
            waiting: VecDeque::new(),
            passed_over: 0,
        };
        Self {
            classes: Priority::ALL.map(class),
        }
    }
}

impl<T> Queue<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.classes.iter().all(|class| class.waiting.is_empty())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.classes.iter().flat_map(|class| &class.waiting)
    }

    pub(crate) fn push_back(&mut self, priority: Priority, item: T) {
        self.classes[priority as usize].waiting.push_back(item);
    }

    /// The next one, whose turn this is, and its priority: the first of the most urgent ones, unless less urgent ones are due. What has nothing
    /// for a while saves nothing up.
    pub(crate) fn pop_front(&mut self) -> Option<(Priority, T)> {
        let next = self.next()?;
        for class in &mut self.classes {
            class.passed_over = match class.priority == next || class.waiting.is_empty() {
                true => 0,
                false => class.passed_over + 1,
            };
        }
        let item = self.classes[next as usize].waiting.pop_front()?;
        Some((next, item))
    }

    pub(crate) fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        for class in &mut self.classes {
            class.waiting.retain(&keep);
        }
    }

    fn next(&self) -> Option<Priority> {
        let waiting = || {
            self.classes
                .iter()
                .rev()
                .filter(|class| !class.waiting.is_empty())
        };
        let is_due = |class: &&Class<T>| class.passed_over >= passed_over_max(class.priority);
        let next = waiting().rfind(is_due).or_else(|| waiting().next());
        next.map(|class| class.priority)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use Priority::{High, Low, Normal};

    /// The priorities of the next so many turns, where each has plenty of work.
    fn turns(priorities: &[Priority], count: usize) -> Vec<Priority> {
        let mut queue = Queue::default();
        for priority in priorities {
            (0..count).for_each(|_| queue.push_back(*priority, ()));
        }
        (0..count)
            .filter_map(|_| queue.pop_front())
            .map(|(priority, _)| priority)
            .collect()
    }

    fn count(turns: &[Priority], priority: Priority) -> usize {
        turns.iter().filter(|turn| **turn == priority).count()
    }

    #[test]
    fn the_most_urgent_go_first_and_the_others_are_not_forgotten() {
        assert_eq!(
            turns(&[Low, Normal, High], 6),
            [High, High, High, High, Normal, High]
        );
        let turns = turns(&[Low, Normal, High], 200);
        let counts = [High, Normal, Low].map(|priority| count(&turns, priority));
        assert_eq!(counts, [150, 39, 11]);
    }

    #[test]
    fn where_nothing_more_urgent_waits_a_low_job_waits_for_nothing() {
        assert_eq!(count(&turns(&[Low], 50), Low), 50);
        assert_eq!(count(&turns(&[Low, Normal], 170), Low), 10);
    }

    proptest! {
        /// Whatever comes and goes: nothing that waits is passed over more often than stated, and each priority keeps its order.
        #[test]
        fn jobs_of_a_priority_wait_for_no_more_turns_than_stated(
            events in prop::collection::vec(
                prop_oneof![
                    2 => (0_usize..3, 1_usize..20).prop_map(|(priority, items)| (Some(priority), items)),
                    3 => (1_usize..30).prop_map(|pops| (None, pops)),
                ],
                1..100,
            ),
        ) {
            let mut queue = Queue::default();
            let (mut pushed, mut popped, mut passed_over) = ([0_u32; 3], [0_u32; 3], [0_u32; 3]);
            for (class, times) in events {
                for _ in 0..times {
                    if let Some(class) = class {
                        queue.push_back(Priority::ALL[class], pushed[class]);
                        pushed[class] += 1;
                        continue;
                    }
                    let Some((priority, number)) = queue.pop_front() else {
                        prop_assert_eq!(pushed, popped);
                        break;
                    };
                    let next = priority as usize;
                    prop_assert_eq!(number, popped[next]);
                    popped[next] += 1;
                    for class in 0..3 {
                        let waits = class != next && pushed[class] > popped[class];
                        passed_over[class] = if waits { passed_over[class] + 1 } else { 0 };
                        let most = match Priority::ALL[class] {
                            High => 2,
                            Normal => 5,
                            Low => 16,
                        };
                        prop_assert!(passed_over[class] <= most, "{:?}", Priority::ALL[class]);
                    }
                }
            }
        }
    }
}
