//! Makes a window ready for the device: decodes its records, tokenizes their texts, cuts micro-batches.

use std::{collections::BTreeMap, sync::Arc};

use rayon::prelude::*;
use schemas::{
    AdmittedJob, AdmittedJobs, Engine, ModelName, ModelTerms, Reason, ReasonCode, Record as _, Tenant,
};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use topics::{Assignment, Partition, Record};

use crate::{
    attempts::{DEATHS_MAX, JobKey, Standing, Suspects, key},
    batcher,
    cost::{self, Work},
    lanes::{Delivery, Taken, Waiting},
    model::{TokenizeError, Tokenizer, Tokens},
    panics::caught,
    turns::Backlogged,
};

/// A core that is given fewer records spends more on being woken than on reading them.
const RECORDS_A_CORE_MIN: usize = 8;

/// What is known of a model without its device.
#[derive(Clone)]
pub(crate) struct Reading {
    pub(crate) tokenizer: Arc<dyn Tokenizer>,
    pub(crate) engine: Engine,
    pub(crate) terms: ModelTerms,
}

/// What the lanes gave at once.
pub(crate) struct Window {
    pub(crate) taken: Taken,
    /// When.
    pub(crate) taken_at: Instant,
    /// Its place among the windows under way, until it is committed.
    pub(crate) place: OwnedSemaphorePermit,
    /// Keeps the next one in the lanes, until the device is nearly done with it.
    pub(crate) lead: OwnedSemaphorePermit,
}

/// A window that the device can run.
pub(crate) struct Prepared {
    /// As in [`Taken`].
    pub(crate) number: u64,
    /// Every job of the window, in the order of the lanes.
    pub(crate) items: Vec<Item>,
    /// What of it the device shall run.
    pub(crate) batches: Vec<MicroBatch>,
    /// The bytes of the window's records.
    pub(crate) bytes: usize,
    /// When it left the lanes.
    pub(crate) taken_at: Instant,
    /// How long it took to make it ready.
    pub(crate) took_ms: f64,
    pub(crate) place: OwnedSemaphorePermit,
    /// As in [`Window`].
    pub(crate) lead: Option<OwnedSemaphorePermit>,
}

/// What a window turned out to be worth, by which the accounts of its lanes are settled.
pub(crate) struct Settlement {
    /// As in [`Taken`].
    pub(crate) number: u64,
    pub(crate) works: BTreeMap<Tenant, Work>,
    pub(crate) backlogged: Backlogged,
}

/// A job of the window, or a record without any.
pub(crate) struct Item {
    pub(crate) source: Partition,
    pub(crate) assignment: Assignment,
    /// Of the record, which may have more jobs.
    pub(crate) offset: i64,
    pub(crate) state: ItemState,
}

/// What is known of a job before the device runs.
pub(crate) enum ItemState {
    /// It is in a micro-batch.
    Ready {
        job: AdmittedJob,
        tokens: usize,
        truncated: bool,
    },
    /// It needs no device to fail.
    Failed {
        job: AdmittedJob,
        reason: Reason<'static>,
    },
    /// The record is no admitted jobs of this tenant.
    Undecodable { record: Record, reason: String },
}

/// Texts that the device runs at once.
pub(crate) struct MicroBatch {
    pub(crate) model: ModelName,
    /// Which items, one for each of `texts`.
    pub(crate) members: Vec<usize>,
    pub(crate) texts: Vec<Tokens>,
    /// Whose texts they are, for the record of attempts.
    pub(crate) jobs: Vec<JobKey>,
    /// Whether nothing may run beside it: its one text may kill the process.
    pub(crate) alone: bool,
}

/// Makes `window` ready as of `now_ms`. Texts are tokenized on all cores. Those of `suspects` run alone, and before the
/// others; then come the tenants that have nothing more waiting, who would gain nothing by coming later: the window is
/// committed whole, so that a backlog is done no sooner for being first in it.
pub(crate) fn prepare(
    window: Window,
    models: &BTreeMap<ModelName, Reading>,
    suspects: &Suspects,
    batch_tokens_max: usize,
    now_ms: i64,
) -> (Prepared, Settlement) {
    let began = Instant::now();
    let Window {
        taken,
        taken_at,
        place,
        lead,
    } = window;
    let Taken {
        number,
        waiting,
        backlogged,
    } = taken;
    let bytes = waiting.iter().map(|waiting| waiting.bytes).sum();
    let mut works: BTreeMap<Tenant, Work> = BTreeMap::new();
    for waiting in &waiting {
        works.entry(waiting.delivery.tenant.clone()).or_default().estimate += waiting.estimate;
    }
    let read: Vec<Read> = waiting
        .into_par_iter()
        .with_min_len(RECORDS_A_CORE_MIN)
        .flat_map_iter(|waiting| read(waiting, models, suspects, now_ms))
        .collect();
    let mut items = Vec::with_capacity(read.len());
    let mut ready: BTreeMap<(bool, ModelName), Vec<Text>> = BTreeMap::new();
    let mut batches = Vec::new();
    for (index, Read { tenant, item, tokens }) in read.into_iter().enumerate() {
        let has_more = backlogged.reached.contains_key(&tenant);
        works.entry(tenant).or_default().units += match &item.state {
            ItemState::Ready { tokens, .. } => cost::work_units(*tokens).max(cost::JOB_WORK_MIN),
            ItemState::Failed { .. } | ItemState::Undecodable { .. } => cost::JOB_WORK_MIN,
        };
        if let (ItemState::Ready { job, .. }, Some(tokens)) = (&item.state, tokens) {
            let text = Text {
                index,
                job: key(&job.origin),
                tokens,
            };
            match suspects.standing(&job.origin) {
                Standing::Clear => ready.entry((has_more, job.model.clone())).or_default().push(text),
                Standing::Suspect | Standing::GivenUp => batches.push(micro_batch(&job.model, [text], true)),
            }
        }
        items.push(item);
    }
    for ((_, model), texts) in ready {
        batches.extend(cut(&model, texts, batch_tokens_max));
    }
    let prepared = Prepared {
        number,
        items,
        batches,
        bytes,
        taken_at,
        took_ms: began.elapsed().as_secs_f64() * 1e3,
        place,
        lead: Some(lead),
    };
    let settlement = Settlement {
        number,
        works,
        backlogged,
    };
    (prepared, settlement)
}

/// A job of the window, or a record without any, as it was read.
struct Read {
    /// In whose lane it waited.
    tenant: Tenant,
    item: Item,
    tokens: Option<Tokens>,
}

/// A text that is ready for the device.
struct Text {
    /// Which item of the window it is of.
    index: usize,
    job: JobKey,
    tokens: Tokens,
}

fn read(
    waiting: Waiting,
    models: &BTreeMap<ModelName, Reading>,
    suspects: &Suspects,
    now_ms: i64,
) -> Vec<Read> {
    let Delivery {
        tenant,
        source,
        assignment,
        record,
        ..
    } = *waiting.delivery;
    let offset = record.offset;
    let read = |state, tokens| Read {
        tenant: tenant.clone(),
        item: Item {
            source: source.clone(),
            assignment,
            offset,
            state,
        },
        tokens,
    };
    let jobs = match jobs(&record, &tenant) {
        Ok(jobs) => jobs,
        Err(reason) => return vec![read(ItemState::Undecodable { record, reason }, None)],
    };
    let ready = |job: AdmittedJob| match tokens_of(&job, models, suspects, now_ms) {
        Ok(tokens) => {
            let state = ItemState::Ready {
                job,
                tokens: tokens.ids.len(),
                truncated: tokens.truncated,
            };
            read(state, Some(tokens))
        }
        Err(reason) => read(ItemState::Failed { job, reason }, None),
    };
    jobs.into_iter().map(ready).collect()
}

/// The jobs in `record`, or why it has none for `tenant`.
fn jobs(record: &Record, tenant: &Tenant) -> Result<Vec<AdmittedJob>, String> {
    let AdmittedJobs(jobs) = AdmittedJobs::decode(record.value.as_deref().unwrap_or_default())
        .map_err(|error| with_source(&error))?;
    match jobs.iter().find(|job| job.tenant != *tenant) {
        None if jobs.is_empty() => Err("the record has no jobs".to_owned()),
        None => Ok(jobs),
        Some(foreign) => Err(format!(
            "a job is of tenant `{}`, on a work topic of `{tenant}`",
            foreign.tenant
        )),
    }
}

fn tokens_of(
    job: &AdmittedJob,
    models: &BTreeMap<ModelName, Reading>,
    suspects: &Suspects,
    now_ms: i64,
) -> Result<Tokens, Reason<'static>> {
    if let Some(late_ms) = job
        .deadline_ms
        .map(|deadline_ms| now_ms.saturating_sub(deadline_ms))
        .filter(|late_ms| *late_ms >= 0)
    {
        let message = format!("the deadline passed {late_ms} ms before the job's turn");
        return Err(Reason::new(ReasonCode::DeadlinePassed, message));
    }
    if suspects.standing(&job.origin) == Standing::GivenUp {
        let message =
            format!("the process died {DEATHS_MAX} times with nothing but this input on the device");
        return Err(Reason::new(ReasonCode::InferenceCrashed, message));
    }
    let Some(model) = models.get(&job.model) else {
        let message = format!("no processor of this pool has model `{}`", job.model);
        return Err(Reason::new(ReasonCode::UnknownModel, message));
    };
    let tokenized = caught(|| model.tokenizer.tokenize(&job.input));
    let tokenized = tokenized.unwrap_or_else(|message| Err(TokenizeError { message }));
    tokenized.map_err(|error| {
        let message = format!("the input could not be tokenized: {error}");
        Reason::new(ReasonCode::InferenceFailed, message)
    })
}

fn cut(model: &ModelName, texts: Vec<Text>, batch_tokens_max: usize) -> Vec<MicroBatch> {
    let lengths: Vec<usize> = texts.iter().map(|text| text.tokens.ids.len()).collect();
    let mut texts: Vec<Option<Text>> = texts.into_iter().map(Some).collect();
    batcher::cut(&lengths, batch_tokens_max)
        .into_iter()
        .map(|batch| {
            let texts = batch.into_iter().filter_map(|index| texts[index].take());
            micro_batch(model, texts, false)
        })
        .collect()
}

fn micro_batch(model: &ModelName, texts: impl IntoIterator<Item = Text>, alone: bool) -> MicroBatch {
    let mut batch = MicroBatch {
        model: model.clone(),
        members: Vec::new(),
        texts: Vec::new(),
        jobs: Vec::new(),
        alone,
    };
    for Text { index, job, tokens } in texts {
        batch.members.push(index);
        batch.texts.push(tokens);
        batch.jobs.push(job);
    }
    batch
}

fn with_source(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use rust_decimal::Decimal;
    use schemas::{Digest, JobId, Origin, Task, TopicId, TopicName};

    use super::*;

    const NOW_MS: i64 = 1_790_000_000_000;

    fn job(model: &str, input: &str) -> AdmittedJob {
        AdmittedJob {
            origin: Origin {
                topic: TopicName::new("jobs").unwrap(),
                topic_id: TopicId::from_bytes([1; 16]),
                partition: 0,
                offset: 0,
            },
            tenant: Tenant::new("acme").unwrap(),
            job_id: JobId::new("job").unwrap(),
            model: ModelName::new(model).unwrap(),
            input: input.to_owned(),
            text_pair: None,
            priority: None,
            submitted_at_ms: NOW_MS,
            deadline_ms: None,
            labels: BTreeMap::new(),
            trace_id: None,
        }
    }

    fn refusal(deadline_ms: i64) -> Option<ReasonCode> {
        let job = AdmittedJob {
            deadline_ms: Some(deadline_ms),
            ..job("unknown", "Where is my parcel?")
        };
        let tokens = tokens_of(&job, &BTreeMap::new(), &Suspects::default(), NOW_MS);
        tokens.err().map(|reason| reason.code)
    }

    #[test]
    fn a_deadline_may_be_any_number_and_has_passed_from_its_millisecond_on() {
        for deadline_ms in [i64::MIN, i64::MIN + 1, -1, NOW_MS] {
            let refused = refusal(deadline_ms);
            assert_eq!(refused, Some(ReasonCode::DeadlinePassed), "{deadline_ms}");
        }
        for deadline_ms in [NOW_MS + 1, i64::MAX] {
            let refused = refusal(deadline_ms);
            assert_eq!(refused, Some(ReasonCode::UnknownModel), "{deadline_ms}");
        }
    }

    /// Reads a byte as a token, and panics at a question.
    struct Fragile;

    impl Tokenizer for Fragile {
        fn tokenize(&self, text: &str) -> Result<Tokens, TokenizeError> {
            assert!(!text.contains('?'), "no answer");
            let ids = text.bytes().map(u32::from).collect();
            let truncated = false;
            Ok(Tokens { ids, truncated })
        }
    }

    #[test]
    fn a_text_at_which_the_tokenizer_panics_fails_alone() {
        let reading = Reading {
            tokenizer: Arc::new(Fragile),
            engine: Engine {
                task: Task::Embed,
                model_digest: Digest::from_bytes([0; 32]),
                model_dtype: None,
                model_path: None,
            },
            terms: ModelTerms {
                task: Task::Embed,
                price_per_device_second: Decimal::ONE,
            },
        };
        let models = BTreeMap::from([(ModelName::new("m").unwrap(), reading)]);
        let tokens = |input| tokens_of(&job("m", input), &models, &Suspects::default(), NOW_MS);
        assert_eq!(tokens("ok").unwrap().ids.len(), 2);
        let Reason { code, message } = tokens("ok?").unwrap_err();
        assert_eq!(code, ReasonCode::InferenceFailed);
        assert!(message.ends_with("it panicked: no answer"), "{message}");
    }
}
