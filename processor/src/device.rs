//! The device: runs micro-batches and measures them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use schemas::{DeviceShare, ModelName};
use tokio::{
    sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock},
    time::Instant,
};

use crate::{
    cost, halving, metric_names,
    model::{EncodeError, Encoder, Tokens},
    panics::caught,
    prepare::MicroBatch,
};

/// The models on the device, and the numbering of micro-batches. Shared by the threads that run them.
pub(crate) struct Device {
    encoders: BTreeMap<ModelName, Box<dyn Encoder>>,
    /// Tells this device's micro-batches from those of any other, and of an earlier start.
    run: String,
    batches_ever: AtomicU64,
    /// The largest micro-batch that is worth trying, in tokens, padding included, as far as is known.
    batch_tokens_max: AtomicUsize,
    /// Held for writing by a micro-batch that must be alone on the device, and for reading by any other.
    in_use: Arc<RwLock<()>>,
}

/// A micro-batch's place on the device, which it has until it ends, also where nobody waits for it any more.
pub(crate) enum Place {
    Alone { _held: OwnedRwLockWriteGuard<()> },
    Shared { _held: OwnedRwLockReadGuard<()> },
}

/// A micro-batch with its answers.
pub(crate) struct Ran {
    /// One an item of the micro-batch: which of the window's, and what the device made of it.
    pub(crate) answers: Vec<(usize, Answer)>,
    /// The time that the device worked on it, in nanoseconds.
    pub(crate) device_time_ns: u64,
}

/// What the device made of one text.
pub(crate) struct Answer {
    pub(crate) result: Result<Vec<f32>, String>,
    pub(crate) share: DeviceShare<'static>,
    /// When the device began with its micro-batch, in nanoseconds since 1970 UTC.
    pub(crate) began_at_ns: i64,
}

impl Device {
    pub(crate) fn new(encoders: BTreeMap<ModelName, Box<dyn Encoder>>, run: String) -> Self {
        Self {
            encoders,
            run,
            batches_ever: AtomicU64::new(0),
            batch_tokens_max: AtomicUsize::new(usize::MAX),
            in_use: Arc::default(),
        }
    }

    /// Waits until `batch` may run.
    pub(crate) async fn place(&self, batch: &MicroBatch) -> Place {
        let in_use = Arc::clone(&self.in_use);
        if batch.alone {
            let _held = in_use.write_owned().await;
            Place::Alone { _held }
        } else {
            let _held = in_use.read_owned().await;
            Place::Shared { _held }
        }
    }

    /// Waits until no micro-batch is on the device.
    pub(crate) async fn idle(&self) {
        drop(self.in_use.write().await);
    }

    /// The largest micro-batch that the device's memory is known to allow, in tokens, padding included.
    pub(crate) fn batch_tokens_max(&self) -> usize {
        self.batch_tokens_max.load(Ordering::Relaxed)
    }

    /// Keeps later micro-batches to half of what was too much for the device's memory. A single text cannot be cut.
    fn remember_limit(&self, texts: &[Tokens], error: &EncodeError) {
        if texts.len() < 2 || !matches!(error, EncodeError::OutOfMemory { .. }) {
            return;
        }
        let longest = texts.iter().map(|tokens| tokens.ids.len()).max().unwrap_or(0);
        let limit = longest * texts.len() / 2;
        if self.batch_tokens_max.fetch_min(limit, Ordering::Relaxed) > limit {
            tracing::warn!(
                batch_tokens_max = limit,
                %error,
                "the device is out of memory: smaller micro-batches from now on"
            );
        }
    }

    /// Runs one micro-batch.
    pub(crate) fn run(&self, batch: &MicroBatch) -> Ran {
        let number = self.batches_ever.fetch_add(1, Ordering::Relaxed) + 1;
        let batch_id = schemas::Text::from(format!("{}-{number}", self.run));
        let began_at_ns = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos() as i64);
        let encoder = self
            .encoders
            .get(&batch.model)
            .expect("only texts of known models were prepared");
        let halved = halving::run(&batch.texts, |texts| {
            let began = Instant::now();
            let result = encode(encoder.as_ref(), texts);
            // Nothing is free, under a clock that stands still neither.
            let elapsed = began.elapsed().as_nanos().max(1);
            if let Err(error) = &result {
                self.remember_limit(texts, error);
            }
            (
                result.map_err(|error| error.to_string()),
                u64::try_from(elapsed).expect("a micro-batch ends within 500 years"),
            )
        });
        let failed: Vec<bool> = halved.results.iter().map(Result::is_err).collect();
        let units: Vec<u64> = batch
            .texts
            .iter()
            .map(|tokens| cost::work_units(tokens.ids.len()))
            .collect();
        let shares = cost::shares(&halved.attempts, &failed, &units);
        let batch_device_time_ns = halved.attempts.iter().map(|attempt| attempt.elapsed_ns).sum();
        metrics::counter!(metric_names::DEVICE_TIME_NS).increment(batch_device_time_ns);
        metrics::histogram!(metric_names::BATCH_SECONDS).record(batch_device_time_ns as f64 / 1e9);
        metrics::histogram!(metric_names::BATCH_JOBS).record(batch.texts.len() as f64);
        let batch_jobs = u32::try_from(batch.texts.len()).expect("a micro-batch is bounded by its tokens");
        let answers = halved.results.into_iter().enumerate().map(|(position, result)| {
            let share = DeviceShare {
                device_time_ns: shares[position],
                work_units: units[position],
                batch_id: batch_id.clone(),
                batch_jobs,
                batch_device_time_ns,
            };
            let answer = Answer {
                result,
                share,
                began_at_ns,
            };
            (batch.members[position], answer)
        });
        Ran {
            answers: answers.collect(),
            device_time_ns: batch_device_time_ns,
        }
    }
}

/// The vectors of `texts`; an error for all of them if the model fails, panics, or gives anything that is no number.
fn encode(encoder: &dyn Encoder, texts: &[Tokens]) -> Result<Vec<Vec<f32>>, EncodeError> {
    let vectors =
        caught(|| encoder.encode(texts)).unwrap_or_else(|message| Err(EncodeError::Failed { message }))?;
    match vectors.iter().flatten().find(|value| !value.is_finite()) {
        Some(value) => Err(EncodeError::Failed {
            message: format!("it gave {value}, which is no number"),
        }),
        None => Ok(vectors),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attempts::JobKey;

    /// A device whose memory takes so many tokens.
    struct Small(usize);

    impl Encoder for Small {
        fn dimension(&self) -> usize {
            1
        }

        fn encode(&self, texts: &[Tokens]) -> Result<Vec<Vec<f32>>, EncodeError> {
            let longest = texts.iter().map(|tokens| tokens.ids.len()).max().unwrap_or(0);
            if longest * texts.len() > self.0 {
                return Err(EncodeError::OutOfMemory {
                    texts: texts.len(),
                    tokens: longest * texts.len(),
                    message: "no room".to_owned(),
                });
            }
            Ok(texts.iter().map(|_| vec![1.0]).collect())
        }
    }

    #[test]
    fn too_little_memory_costs_no_job_its_answer_and_later_micro_batches_are_smaller() {
        let model = ModelName::new("minilm").unwrap();
        let encoder: Box<dyn Encoder> = Box::new(Small(100));
        let device = Device::new(BTreeMap::from([(model.clone(), encoder)]), "run".to_owned());
        let tokens = Tokens {
            ids: vec![0; 10],
            truncated: false,
        };
        let batch = MicroBatch {
            model,
            members: (0..32).collect(),
            texts: vec![tokens; 32],
            jobs: Vec::<JobKey>::new(),
            alone: false,
        };
        let ran = device.run(&batch);
        assert_eq!(ran.answers.len(), 32);
        assert!(ran.answers.iter().all(|(_, answer)| answer.result.is_ok()));
        assert_eq!(device.batch_tokens_max(), 80);
    }
}
