//! Windows on the device: their micro-batches come back in any order, the windows leave whole and in order.

use std::collections::VecDeque;

use crate::{
    device::{Answer, Ran},
    prepare::Prepared,
};

/// A window with its answers.
pub(crate) struct Inferred {
    pub(crate) prepared: Prepared,
    /// One an item; none for those that were in no micro-batch.
    pub(crate) answers: Vec<Option<Answer>>,
    /// The time that the device worked on the window, in nanoseconds, over all its threads.
    pub(crate) device_time_ns: u64,
}

/// The windows that the device has begun and not yet given back, the oldest first.
#[derive(Default)]
pub(crate) struct Windows {
    open: VecDeque<Open>,
    /// How many were given back: the number of the oldest that is open.
    given_back: u64,
}

struct Open {
    window: Inferred,
    /// Micro-batches without an answer.
    unanswered: usize,
}

impl Windows {
    /// Begins a window whose micro-batches will be answered one by one. Its number is for [`answer`](Self::answer).
    pub(crate) fn open(&mut self, prepared: Prepared, batches: usize) -> u64 {
        let number = self.given_back + self.open.len() as u64;
        self.open.push_back(Open {
            window: Inferred {
                answers: prepared.items.iter().map(|_| None).collect(),
                prepared,
                device_time_ns: 0,
            },
            unanswered: batches,
        });
        number
    }

    /// Takes in what came of one micro-batch of window `number`.
    pub(crate) fn answer(&mut self, number: u64, ran: Ran) {
        let open = &mut self.open[(number - self.given_back) as usize];
        for (item, answer) in ran.answers {
            open.window.answers[item] = Some(answer);
        }
        open.window.device_time_ns += ran.device_time_ns;
        open.unanswered -= 1;
    }

    /// Gives back the oldest window, if it is whole.
    pub(crate) fn take_whole(&mut self) -> Option<Inferred> {
        let whole = self.open.pop_front_if(|open| open.unanswered == 0)?;
        self.given_back += 1;
        Some(whole.window)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use tokio::{sync::Semaphore, time::Instant};

    use super::*;

    fn window(bytes: usize) -> Prepared {
        Prepared {
            number: 1,
            items: Vec::new(),
            batches: Vec::new(),
            bytes,
            taken_at: Instant::now(),
            took_ms: 0.0,
            place: Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap(),
            lead: None,
        }
    }

    fn ran() -> Ran {
        Ran {
            answers: Vec::new(),
            device_time_ns: 1,
        }
    }

    proptest! {
        #[test]
        fn windows_leave_whole_and_in_order_whatever_the_order_of_the_answers(
            batches in prop::collection::vec(0_usize..4, 1..20),
            order in prop::collection::vec(any::<prop::sample::Index>(), 80),
        ) {
            let mut windows = Windows::default();
            let mut pending = Vec::new();
            for (position, &batches) in batches.iter().enumerate() {
                let number = windows.open(window(position), batches);
                pending.extend(std::iter::repeat_n(number, batches));
            }
            let mut left = batches.clone();
            let mut order = order.into_iter();
            let mut next = 0;
            loop {
                while let Some(whole) = windows.take_whole() {
                    prop_assert_eq!(whole.prepared.bytes, next);
                    prop_assert_eq!(left[next], 0);
                    prop_assert_eq!(whole.device_time_ns, batches[next] as u64);
                    next += 1;
                }
                prop_assert!(next == batches.len() || left[next] > 0, "a whole window was kept");
                if pending.is_empty() {
                    break;
                }
                let number = pending.swap_remove(order.next().unwrap().index(pending.len()));
                left[number as usize] -= 1;
                windows.answer(number, ran());
            }
            prop_assert_eq!(next, batches.len());
        }
    }
}
