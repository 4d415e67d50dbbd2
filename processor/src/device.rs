//! The device: runs micro-batches and measures them.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use schemas::{DeviceShare, ModelName};
use tokio::time::Instant;

use crate::{
    cost, halving, metric_names,
    model::{Encoder, Tokens},
    prepare::MicroBatch,
};

/// The models on the device, and the numbering of micro-batches. Shared by the threads that run them.
pub(crate) struct Device {
    encoders: BTreeMap<ModelName, Box<dyn Encoder>>,
    /// Tells this device's micro-batches from those of any other, and of an earlier start.
    run: String,
    batches_ever: AtomicU64,
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
    pub(crate) share: DeviceShare,
    /// When the device began with its micro-batch, in nanoseconds since 1970 UTC.
    pub(crate) began_at_ns: i64,
}

impl Device {
    pub(crate) fn new(encoders: BTreeMap<ModelName, Box<dyn Encoder>>, run: String) -> Self {
        Self {
            encoders,
            run,
            batches_ever: AtomicU64::new(0),
        }
    }

    /// Runs one micro-batch.
    pub(crate) fn run(&self, batch: &MicroBatch) -> Ran {
        let number = self.batches_ever.fetch_add(1, Ordering::Relaxed) + 1;
        let batch_id = format!("{}-{number}", self.run);
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
            (
                result,
                u64::try_from(began.elapsed().as_nanos()).expect("a micro-batch ends within 500 years"),
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
fn encode(encoder: &dyn Encoder, texts: &[Tokens]) -> Result<Vec<Vec<f32>>, String> {
    let encoded = catch_unwind(AssertUnwindSafe(|| encoder.encode(texts)));
    let vectors = match encoded {
        Ok(result) => result.map_err(|error| error.to_string())?,
        Err(panic) => {
            let message = panic.downcast_ref::<&str>().map(ToString::to_string);
            let message = message.or_else(|| panic.downcast_ref::<String>().cloned());
            return Err(format!("the model panicked: {}", message.unwrap_or_default()));
        }
    };
    match vectors.iter().flatten().find(|value| !value.is_finite()) {
        Some(value) => Err(format!("the model gave {value}, which is no number")),
        None => Ok(vectors),
    }
}
