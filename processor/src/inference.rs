//! The cores of the device: they take the micro-batches of windows in order, and give windows back in order.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};

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
            let place = self.device.place(&batch).await;
            let (device, attempts, number) = (
                Arc::clone(&self.device),
                Arc::clone(&self.attempts),
                core.number(),
            );
            let run = move || {
                attempts.begin(number, &batch);
                let ran = device.run(&batch);
                attempts.end(number, &batch);
                drop(place);
                ran
            };
            let ran = core.run(run).await;
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

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, num::NonZeroUsize, pin::pin, sync::mpsc::Receiver};

    use schemas::ModelName;
    use tokio::{sync::Semaphore, time::Instant};

    use super::*;
    use crate::model::{EncodeError, Encoder, Tokens};

    /// Says that it has begun, and ends when it may.
    struct Slow {
        began: mpsc::Sender<()>,
        may_end: Mutex<Receiver<()>>,
    }

    impl Encoder for Slow {
        fn dimension(&self) -> usize {
            1
        }

        fn encode(&self, texts: &[Tokens]) -> Result<Vec<Vec<f32>>, EncodeError> {
            self.began.try_send(()).unwrap();
            self.may_end.lock().unwrap().recv().unwrap();
            Ok(texts.iter().map(|_| vec![1.0]).collect())
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_micro_batch_is_on_the_device_until_it_ends_also_where_nobody_waits_for_it_any_more() {
        let (began, mut has_begun) = mpsc::channel(1);
        let (end, may_end) = std::sync::mpsc::channel();
        let encoder: Box<dyn Encoder> = Box::new(Slow {
            began,
            may_end: Mutex::new(may_end),
        });
        let model = ModelName::new("minilm").unwrap();
        let device = Arc::new(Device::new(
            BTreeMap::from([(model.clone(), encoder)]),
            "run".to_owned(),
        ));
        let budget = Budget {
            jobs_max: 1,
            bytes_max: 1,
            lanes_max: NonZeroUsize::MIN,
        };
        let (windows, windows_receiver) = mpsc::channel(1);
        let (whole, _whole_receiver) = mpsc::channel(1);
        let inference = Inference::new(
            Arc::clone(&device),
            Arc::new(Attempts::unrecorded()),
            1,
            windows_receiver,
            whole,
            Pace::new(1, budget, 1),
            watch::channel(budget).0,
        );
        let tokens = Tokens {
            ids: vec![0],
            truncated: false,
        };
        let batch = MicroBatch {
            model,
            members: vec![0],
            texts: vec![tokens],
            jobs: Vec::new(),
            alone: false,
        };
        let window = Prepared {
            number: 1,
            items: Vec::new(),
            batches: vec![batch],
            bytes: 1,
            taken_at: Instant::now(),
            took_ms: 0.0,
            place: Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap(),
            lead: None,
        };
        assert!(windows.try_send(window).is_ok());
        let working = tokio::spawn(async move { inference.work(Core::new(0)).await });
        has_begun.recv().await.unwrap();
        working.abort();
        assert!(working.await.unwrap_err().is_cancelled());
        let mut idle = pin!(device.idle());
        tokio::select! {
            biased;
            () = &mut idle => panic!("it has not ended"),
            () = std::future::ready(()) => {}
        }
        end.send(()).unwrap();
        idle.await;
    }
}
