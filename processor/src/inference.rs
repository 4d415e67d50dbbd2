//! The cores of the device: they take the micro-batches of windows in order, and give windows back in order.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, RwLock, mpsc, watch};

use crate::{
    attempts::Attempts,
    core::Core,
    device::Device,
    lanes::Budget,
    metric_names,
    pace::Pace,
    prepare::{MicroBatch, Prepared},
    windows::{Inferred, Windows},
};

/// What the cores of one device share. The micro-batches of the next window are begun while the last of this one still
/// run, so that no core waits for another.
pub(crate) struct Inference {
    device: Arc<Device>,
    attempts: Arc<Attempts>,
    cores: usize,
    /// Held for writing by a micro-batch that must be alone on the device, and for reading by any other.
    in_use: RwLock<()>,
    /// Waited for by the cores that have nothing to do.
    feed: tokio::sync::Mutex<Feed>,
    progress: Mutex<Progress>,
}

struct Feed {
    windows: mpsc::Receiver<Prepared>,
    /// Micro-batches that no core has taken yet, with the number of their window.
    batches: VecDeque<(u64, MicroBatch)>,
    /// Given back when no more than so many of them are left, so that the next window is ready when they are done.
    lead: Option<(usize, OwnedSemaphorePermit)>,
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
    /// `cores` of them will [`work`](Self::work) on `windows`. Whole ones go to `whole`, which must have room for as many
    /// as are under way; what the next may take goes to `budget`.
    pub(crate) fn new(
        device: Arc<Device>,
        attempts: Arc<Attempts>,
        cores: usize,
        windows: mpsc::Receiver<Prepared>,
        whole: mpsc::Sender<Inferred>,
        pace: Pace,
        budget: watch::Sender<Budget>,
    ) -> Self {
        Self {
            device,
            attempts,
            cores,
            in_use: RwLock::new(()),
            feed: tokio::sync::Mutex::new(Feed {
                windows,
                batches: VecDeque::new(),
                lead: None,
            }),
            progress: Mutex::new(Progress {
                windows: Windows::default(),
                whole,
                pace,
                budget,
            }),
        }
    }

    /// Runs micro-batches on `core` until there are no more windows, or nobody takes them.
    pub(crate) async fn work(&self, core: Core) {
        while let Ok(Some((window, batch))) = self.next().await {
            let alone = if batch.alone {
                Some(self.in_use.write().await)
            } else {
                None
            };
            let beside = if batch.alone {
                None
            } else {
                Some(self.in_use.read().await)
            };
            let (device, attempts, number) = (
                Arc::clone(&self.device),
                Arc::clone(&self.attempts),
                core.number(),
            );
            let run = move || {
                attempts.begin(number, &batch);
                let ran = device.run(&batch);
                attempts.end(number, &batch);
                ran
            };
            let ran = core.run(run).await;
            drop((alone, beside));
            let given_back = self.progress(|progress| {
                progress.windows.answer(window, ran);
                progress.give_back(self.cores)
            });
            if given_back.is_err() {
                return;
            }
        }
    }

    async fn next(&self) -> Result<Option<(u64, MicroBatch)>, Closed> {
        let mut feed = self.feed.lock().await;
        loop {
            let batch = feed.batches.pop_front();
            let left = feed.batches.len();
            feed.lead.take_if(|(few, _)| left <= *few);
            if batch.is_some() {
                return Ok(batch);
            }
            let Some(mut window) = feed.windows.recv().await else {
                return Ok(None);
            };
            let batches = std::mem::take(&mut window.batches);
            let lead = window.lead.take();
            let (number, few) = self.progress(|progress| {
                let number = progress.windows.open(window, batches.len());
                let few = progress.pace.lead(batches.len());
                progress.give_back(self.cores).map(|()| (number, few))
            })?;
            feed.lead = lead.map(|lead| (few, lead));
            feed.batches
                .extend(batches.into_iter().map(|batch| (number, batch)));
        }
    }

    /// Nothing is awaited in `change`.
    fn progress<T>(&self, change: impl FnOnce(&mut Progress) -> T) -> T {
        change(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Progress {
    /// Passes on the oldest windows, as far as they are whole.
    fn give_back(&mut self, cores: usize) -> Result<(), Closed> {
        while let Some(window) = self.windows.take_whole() {
            let whole_s = window.prepared.taken_at.elapsed().as_secs_f64();
            metrics::histogram!(metric_names::WINDOW_SECONDS).record(whole_s);
            // A window of jobs that all failed before the device says nothing of its speed.
            if window.device_time_ns > 0 {
                let elapsed_ms = window.device_time_ns as f64 / 1e6 / cores as f64;
                self.pace
                    .observe(window.prepared.bytes, window.prepared.took_ms, elapsed_ms);
                self.budget.send_replace(self.pace.budget());
            }
            self.whole.try_send(window).map_err(|_| Closed)?;
        }
        Ok(())
    }
}
