//! Turns a window with its answers into what is committed: outcomes, by the partition that each job came from.

use std::collections::BTreeMap;

use rust_decimal::Decimal;
use schemas::{
    AdmittedJob, Common, DeviceShare, ModelName, Outcome, Outcomes, Reason, ReasonCode, Record as _, Route,
    Row, Run, Tenant, TopicNames, Verdict,
};
use topics::{Append, Assignment, Partition, Step, dead_letter};

use crate::{
    accounts::Billed,
    device::Answer,
    metric_names,
    prepare::{Item, ItemState, Reading},
};

/// What outcomes are made with.
pub(crate) struct Context {
    pub(crate) names: TopicNames,
    pub(crate) models: BTreeMap<ModelName, Reading>,
    pub(crate) currency: String,
}

/// One step for each partition in the window: its outcomes in the order of their jobs, on the partition of the same
/// number, so that the order along the route is kept.
pub(crate) fn steps(
    items: Vec<Item>,
    answers: Vec<Option<Answer>>,
    context: &Context,
    completed_at_ms: i64,
) -> Vec<Billed> {
    let mut drafts: BTreeMap<Partition, Draft> = BTreeMap::new();
    let mut tally = Tally::default();
    for (item, answer) in items.into_iter().zip(answers) {
        let Item {
            source,
            assignment,
            offset,
            state,
        } = item;
        let draft = drafts.entry(source.clone()).or_insert_with(|| Draft {
            assignment,
            next_offset: 0,
            cost: Decimal::ZERO,
            outcomes: BTreeMap::new(),
            dead_letters: Vec::new(),
        });
        draft.next_offset = offset + 1;
        match state {
            ItemState::Ready {
                job,
                tokens,
                truncated,
            } => {
                let answer = answer.expect("a ready item is in exactly one micro-batch");
                let outcome = ran(job, tokens, truncated, answer, &source, context, completed_at_ms);
                tally.add(&outcome);
                draft.add(outcome);
            }
            ItemState::Failed { job, reason } => {
                let outcome = not_run(job, reason, &source, context, completed_at_ms);
                tally.add(&outcome);
                draft.add(outcome);
            }
            ItemState::Undecodable { record, reason } => {
                tracing::error!(%source, offset, reason, "record of work cannot be decoded");
                metrics::counter!(metric_names::DEAD_LETTERS).increment(1);
                draft.dead_letters.push(dead_letter(
                    &source,
                    &record,
                    &reason,
                    context.names.dead_letters(),
                    completed_at_ms,
                ));
            }
        }
    }
    tally.record();
    drafts
        .into_iter()
        .map(|(source, draft)| draft.into_billed(source, context, completed_at_ms))
        .collect()
}

/// What a window makes of one partition.
struct Draft {
    assignment: Assignment,
    next_offset: i64,
    cost: Decimal,
    /// In the order of their jobs. A topic of work holds one tenant's, so there is one entry, unless somebody else wrote there.
    outcomes: BTreeMap<Tenant, Vec<Outcome<'static>>>,
    dead_letters: Vec<Append>,
}

impl Draft {
    fn add(&mut self, outcome: Outcome<'static>) {
        self.cost = self.cost.saturating_add(outcome.billed_cost());
        self.outcomes
            .entry(outcome.common.tenant.clone())
            .or_default()
            .push(outcome);
    }

    fn into_billed(self, source: Partition, context: &Context, now_ms: i64) -> Billed {
        let mut appends = self.dead_letters;
        for (tenant, outcomes) in self.outcomes {
            let topic = context.names.outcomes(&tenant);
            appends.extend(Outcomes::pack(outcomes).iter().map(|record| Append {
                topic: topic.clone(),
                partition: Some(source.index),
                timestamp_ms: now_ms,
                key: None,
                value: Some(record.encode().into()),
                headers: Vec::new(),
            }));
        }
        let step = Step {
            source,
            assignment: self.assignment,
            next_offset: self.next_offset,
            appends,
            note: None,
        };
        Billed {
            step,
            cost: self.cost,
        }
    }
}

/// What a window's outcomes add to the metrics, by tenant and status: looking a metric up for each outcome would cost as
/// much as encoding it.
#[derive(Default)]
struct Tally {
    outcomes: BTreeMap<(Tenant, &'static str), u64>,
    tokens: BTreeMap<Tenant, u64>,
    queue_seconds: Vec<f64>,
}

impl Tally {
    fn add(&mut self, outcome: &Outcome<'_>) {
        let key = (outcome.common.tenant.clone(), outcome.row.verdict.status());
        *self.outcomes.entry(key).or_default() += 1;
        if let Some(run) = &outcome.row.run {
            *self.tokens.entry(outcome.common.tenant.clone()).or_default() += u64::from(run.input_tokens);
            self.queue_seconds.push(run.queue_time_ns as f64 / 1e9);
        }
    }

    fn record(self) {
        for ((tenant, status), count) in self.outcomes {
            metrics::counter!(metric_names::OUTCOMES, "tenant" => tenant.to_string(), "status" => status)
                .increment(count);
        }
        for (tenant, count) in self.tokens {
            metrics::counter!(metric_names::TOKENS, "tenant" => tenant.to_string()).increment(count);
        }
        let queue_seconds = metrics::histogram!(metric_names::QUEUE_SECONDS);
        for seconds in self.queue_seconds {
            queue_seconds.record(seconds);
        }
    }
}

fn ran(
    job: AdmittedJob,
    tokens: usize,
    truncated: bool,
    answer: Answer,
    source: &Partition,
    context: &Context,
    completed_at_ms: i64,
) -> Outcome<'static> {
    let model = &context.models[&job.model];
    let queue_time_ns = answer
        .began_at_ns
        .saturating_sub(job.submitted_at_ms.saturating_mul(1_000_000))
        .max(0);
    let run = Run {
        input_tokens: u32::try_from(tokens).expect("a text is cut to the model's window"),
        truncated,
        queue_time_ns: queue_time_ns.unsigned_abs(),
    };
    let verdict = match answer.result {
        Ok(embedding) => Verdict::Succeeded {
            embedding: embedding.into(),
        },
        Err(message) => Verdict::Failed(Reason::new(ReasonCode::InferenceFailed, message)),
    };
    let ended = Ended {
        verdict,
        ran: Some((run, answer.share)),
        completed_at_ms,
    };
    outcome(job, ended, Some(model), source, context)
}

fn not_run(
    job: AdmittedJob,
    reason: Reason<'static>,
    source: &Partition,
    context: &Context,
    completed_at_ms: i64,
) -> Outcome<'static> {
    let ended = Ended {
        verdict: Verdict::Failed(reason),
        ran: None,
        completed_at_ms,
    };
    outcome(job, ended, None, source, context)
}

/// How a job ended.
struct Ended {
    verdict: Verdict<'static>,
    ran: Option<(Run, DeviceShare<'static>)>,
    completed_at_ms: i64,
}

fn outcome(
    job: AdmittedJob,
    ended: Ended,
    model: Option<&Reading>,
    source: &Partition,
    context: &Context,
) -> Outcome<'static> {
    let common = Common {
        origin_topic: job.origin.topic,
        origin_topic_id: job.origin.topic_id,
        route: Route::Work(source.topic.name.clone()),
        tenant: job.tenant,
        model: job.model.to_string(),
        engine: model.map(|model| model.engine.clone()),
        price_per_device_second: model.map_or(Decimal::ZERO, |model| model.terms.price_per_device_second),
        currency: context.currency.clone(),
    };
    let (run, device) = ended.ran.unzip();
    let own = |(key, value): (String, String)| (key.into(), value.into());
    let row = Row {
        origin_partition: job.origin.partition,
        origin_offset: job.origin.offset,
        job_id: job.job_id,
        verdict: ended.verdict,
        run,
        device,
        submitted_at_ms: job.submitted_at_ms,
        completed_at_ms: ended.completed_at_ms,
        labels: job.labels.into_iter().map(own).collect(),
        trace_id: job.trace_id.map(Into::into),
    };
    Outcome { common, row }
}
