//! The threads of the device: they take the micro-batches of windows in order, and give windows back in order.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{mpsc, watch};

use crate::{
    device::Device,
    lanes::Budget,
    pace::Pace,
    prepare::{MicroBatch, Prepared},
    windows::{Inferred, Windows},
};

/// What the threads of one device share. The micro-batches of the next window are begun while the last of this one still
/// run, so that no thread waits for another.
pub(crate) struct Inference {
    device: Arc<Device>,
    threads: usize,
    feed: Mutex<Feed>,
    progress: Mutex<Progress>,
}

struct Feed {
    windows: mpsc::Receiver<Prepared>,
    /// Micro-batches that no thread has taken yet, with the number of their window.
    batches: VecDeque<(u64, MicroBatch)>,
}

struct Progress {
    windows: Windows,
    whole: mpsc::Sender<Inferred>,
    pace: Pace,
    budget: watch::Sender<Budget>,
}

/// Nobody takes windows any more.
struct Closed;

impl Inference {
    /// `threads` threads will [`work`](Self::work) on `windows`. Whole ones go to `whole`, which must have room for as many
    /// as are under way; what the next may take goes to `budget`.
    pub(crate) fn new(
        device: Arc<Device>,
        threads: usize,
        windows: mpsc::Receiver<Prepared>,
        whole: mpsc::Sender<Inferred>,
        pace: Pace,
        budget: watch::Sender<Budget>,
    ) -> Self {
        Self {
            device,
            threads,
            feed: Mutex::new(Feed {
                windows,
                batches: VecDeque::new(),
            }),
            progress: Mutex::new(Progress {
                windows: Windows::default(),
                whole,
                pace,
                budget,
            }),
        }
    }

    /// Runs micro-batches until there are no more windows, or nobody takes them.
    pub(crate) fn work(&self) {
        while let Ok(Some((window, batch))) = self.next() {
            let ran = self.device.run(&batch);
            let mut progress = lock(&self.progress);
            progress.windows.answer(window, ran);
            if progress.give_back(self.threads).is_err() {
                return;
            }
        }
    }

    fn next(&self) -> Result<Option<(u64, MicroBatch)>, Closed> {
        let mut feed = lock(&self.feed);
        loop {
            if let Some(batch) = feed.batches.pop_front() {
                return Ok(Some(batch));
            }
            let Some(mut window) = feed.windows.blocking_recv() else {
                return Ok(None);
            };
            let batches = std::mem::take(&mut window.batches);
            let mut progress = lock(&self.progress);
            let number = progress.windows.open(window, batches.len());
            feed.batches
                .extend(batches.into_iter().map(|batch| (number, batch)));
            progress.give_back(self.threads)?;
        }
    }
}

impl Progress {
    /// Passes on the oldest windows, as far as they are whole.
    fn give_back(&mut self, threads: usize) -> Result<(), Closed> {
        while let Some(window) = self.windows.take_whole() {
            let elapsed_ms = window.device_time_ns as f64 / 1e6 / threads as f64;
            self.pace.observe(window.prepared.bytes, elapsed_ms);
            self.budget.send_replace(self.pace.budget());
            self.whole.blocking_send(window).map_err(|_| Closed)?;
        }
        Ok(())
    }
}

/// A thread that panicked has left its window unanswered, and the service ends with its panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
