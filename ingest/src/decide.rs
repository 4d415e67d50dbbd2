//! The decision on one record: a function of the record, the policies, who can prove who he is, and the time.

use std::{collections::BTreeMap, sync::Arc};

use chrono::DateTime;
use rust_decimal::Decimal;
use schemas::{
    AdmittedJob, Common, Job, JobId, ModelName, Origin, Outcome, Policies, Priority, Reason, ReasonCode,
    Route, Row, Tenant, TenantPolicy, Verdict,
};
use topics::{Partition, Record};

use crate::{
    identity::Identity,
    owner::{Owner, Sender, not_configured},
    permission::{Asked, Permissions},
    quota::Quotas,
};

/// The labels of a job may have this many bytes together: they are copied into every row of the job.
const LABELS_BYTES_MAX: usize = 8 * 1024;
/// What an outcome repeats of a name that was not checked.
pub(crate) const CLAIMED_CHARS_MAX: usize = 100;

/// A record and where it stood.
#[derive(Debug, Clone, Copy)]
pub struct Received<'a> {
    /// The partition that it was read from.
    pub source: &'a Partition,
    /// The record.
    pub record: &'a Record,
}

/// What decisions are made from, as of one moment.
#[derive(Debug, Clone, Copy)]
pub struct InForce<'a> {
    /// What each tenant may do.
    pub policies: &'a Policies,
    /// Who can prove who he is.
    pub identity: &'a Identity,
    /// Who may have what run.
    pub permissions: &'a Permissions,
    /// What each tenant has spent and has waiting.
    pub quotas: &'a Quotas,
}

/// What becomes of a record, and who says so.
#[derive(Debug, Clone, PartialEq)]
pub struct Decided {
    /// What becomes of it.
    pub decision: Decision,
    /// The access policies that decided; none where something else did, or none permitted it.
    pub by: Option<Arc<str>>,
}

/// What becomes of a record.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// The job may run.
    Admit(AdmittedJob),
    /// The job may not run, and this is its outcome.
    Reject(Outcome<'static>),
    /// The bytes are no job; why.
    DeadLetter(String),
}

/// Decides on one record as of `now_ms`, in milliseconds since 1970 UTC.
pub fn decide(received: Received<'_>, in_force: InForce<'_>, now_ms: i64) -> Decided {
    let InForce {
        policies, identity, ..
    } = in_force;
    let dead_letter = |why: String| Decided {
        decision: Decision::DeadLetter(why),
        by: None,
    };
    let Some(value) = &received.record.value else {
        return dead_letter("the record is a tombstone: it has a key but no value".to_owned());
    };
    let job = match Job::decode(value) {
        Ok(job) => job,
        Err(error) => return dead_letter(format!("the value is not a job: {error}")),
    };
    let Owner { tenant, sender } = Owner::of(&job, received, policies, identity, now_ms);
    let checked = sender
        .map_err(Rejection::from)
        .and_then(|sender| check(&job, received.record, &tenant, &sender, in_force, now_ms));
    match checked {
        Ok(Checked {
            job_id,
            model,
            priority,
            deadline_ms,
            by,
        }) => Decided {
            decision: Decision::Admit(AdmittedJob {
                origin: origin(received),
                labels: labels(job.labels, &tenant, policies),
                tenant,
                job_id,
                model,
                submitted_at_ms: submitted_at_ms(received.record),
                deadline_ms,
                priority,
                trace_id: trace_id(received.record),
                input: job.input.into_owned(),
                text_pair: job.text_pair.map(std::borrow::Cow::into_owned),
            }),
            by,
        },
        Err(Rejection { reason, by }) => Decided {
            decision: Decision::Reject(rejected(job, received, tenant, reason, policies, now_ms)),
            by,
        },
    }
}

/// Why a job may not run.
struct Rejection {
    reason: Reason<'static>,
    /// The access policies that forbid it.
    by: Option<Arc<str>>,
}

impl From<Reason<'static>> for Rejection {
    fn from(reason: Reason<'static>) -> Self {
        Self { reason, by: None }
    }
}

struct Checked {
    job_id: JobId<'static>,
    model: ModelName,
    priority: Option<Priority>,
    deadline_ms: Option<i64>,
    /// The access policies that permit it.
    by: Option<Arc<str>>,
}

fn check(
    job: &Job<'_>,
    record: &Record,
    tenant: &Tenant,
    sender: &Sender,
    in_force: InForce<'_>,
    now_ms: i64,
) -> Result<Checked, Rejection> {
    let InForce {
        policies,
        quotas,
        permissions,
        ..
    } = in_force;
    let reject = |code, message: String| Err(Reason::new(code, message).into());
    let Some(policy) = policies.tenants.get(tenant) else {
        return reject(ReasonCode::UnknownTenant, not_configured(tenant));
    };
    let Some(claimed_id) = claimed_id(job, record) else {
        return reject(
            ReasonCode::InvalidJobId,
            "the job has no id: set `id`, or the header `ce_id`".to_owned(),
        );
    };
    let job_id = match JobId::new(claimed_id.to_owned()) {
        Ok(job_id) => job_id,
        Err(invalid) => return reject(ReasonCode::InvalidJobId, invalid.to_string()),
    };
    let model = check_model(&job.model, policy, policies)?;
    let priority = lowered(job.priority, policy);
    let asked = Asked {
        model: model.clone(),
        priority: priority.unwrap_or_default(),
        came: sender.came,
    };
    let answer = permissions.ask(sender.user.as_ref(), tenant, policy, asked);
    let by = answer.decided_by;
    if let Some(reason) = answer.refusal {
        return Err(Rejection { reason, by });
    }
    if job.input.trim().is_empty() {
        return reject(ReasonCode::EmptyInput, "`input` is empty".to_owned());
    }
    let input_bytes = job.input.len() + job.text_pair.as_ref().map_or(0, |text| text.len());
    if input_bytes > policies.input_bytes_max {
        let message = format!(
            "the input has {input_bytes} bytes, and {} are allowed",
            policies.input_bytes_max
        );
        return reject(ReasonCode::InputTooLarge, message);
    }
    if job.text_pair.is_some() {
        return reject(
            ReasonCode::TextPairNotSupported,
            format!("model `{model}` takes one text: leave out `text_pair`"),
        );
    }
    let labels_bytes: usize = job
        .labels
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    if labels_bytes > LABELS_BYTES_MAX {
        let message = format!("the labels have {labels_bytes} bytes, and {LABELS_BYTES_MAX} are allowed");
        return reject(ReasonCode::LabelsTooLarge, message);
    }
    let deadline_ms = check_deadline(job.deadline.as_deref(), now_ms)?;
    quotas.check(tenant, policy, &policies.currency, now_ms)?;
    Ok(Checked {
        job_id,
        model,
        priority,
        deadline_ms,
        by,
    })
}

/// A job that asks for more than its tenant may have is lowered and not rejected: it is as good as the others, and a
/// ceiling that comes down under way must not make it fail.
fn lowered(asked: Option<Priority>, policy: &TenantPolicy) -> Option<Priority> {
    if asked.unwrap_or_default() > policy.priority_max {
        Some(policy.priority_max)
    } else {
        asked
    }
}

/// The labels of a job, and over them those that the policy of its tenant sets: bills are split by these, so a job cannot
/// say otherwise.
fn labels(
    mut of_job: BTreeMap<String, String>,
    tenant: &Tenant,
    policies: &Policies,
) -> BTreeMap<String, String> {
    if let Some(policy) = policies.tenants.get(tenant) {
        of_job.extend(policy.labels.clone());
    }
    of_job
}

fn check_model(
    claimed: &str,
    policy: &TenantPolicy,
    policies: &Policies,
) -> Result<ModelName, Reason<'static>> {
    let unknown = |message: String| Reason::new(ReasonCode::UnknownModel, message);
    let model = ModelName::new(claimed).map_err(|invalid| unknown(invalid.to_string()))?;
    if !policies.models.contains_key(&model) {
        let known: Vec<&str> = policies.models.keys().map(ModelName::as_str).collect();
        return Err(unknown(format!(
            "model `{model}` is not configured; there are: {}",
            known.join(", ")
        )));
    }
    match &policy.models {
        Some(allowed) if !allowed.contains(&model) => Err(Reason::new(
            ReasonCode::ModelNotAllowed,
            format!("the tenant may not use model `{model}`"),
        )),
        _ if !policies.has_model(&policy.pool, &model) => Err(Reason::new(
            ReasonCode::ModelNotAllowed,
            format!(
                "the processors of the tenant's pool, `{}`, do not have model `{model}`",
                policy.pool
            ),
        )),
        _ => Ok(model),
    }
}

fn check_deadline(deadline: Option<&str>, now_ms: i64) -> Result<Option<i64>, Reason<'static>> {
    let Some(deadline) = deadline else { return Ok(None) };
    let Some(deadline_ms) = rfc3339_ms(deadline) else {
        return Err(Reason::new(
            ReasonCode::InvalidDeadline,
            "the deadline is not a time in RFC 3339, such as `2026-11-24T12:00:00Z`",
        ));
    };
    if deadline_ms <= now_ms {
        let message = format!(
            "the deadline passed {} ms before the job was read",
            now_ms - deadline_ms
        );
        return Err(Reason::new(ReasonCode::DeadlinePassed, message));
    }
    Ok(Some(deadline_ms))
}

fn rejected(
    mut job: Job<'_>,
    received: Received<'_>,
    tenant: Tenant,
    reason: Reason<'static>,
    policies: &Policies,
    now_ms: i64,
) -> Outcome<'static> {
    let labels_bytes: usize = job
        .labels
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    if labels_bytes > LABELS_BYTES_MAX {
        job.labels.clear();
    }
    let labels = labels(std::mem::take(&mut job.labels), &tenant, policies);
    let Origin {
        topic,
        topic_id,
        partition,
        offset,
    } = origin(received);
    let common = Common {
        origin_topic: topic,
        origin_topic_id: topic_id,
        route: Route::Rejected,
        tenant,
        model: job
            .model
            .chars()
            .filter(|c| !c.is_control())
            .take(CLAIMED_CHARS_MAX)
            .collect(),
        engine: None,
        price_per_device_second: Decimal::ZERO,
        currency: policies.currency.clone(),
    };
    let row = Row {
        origin_partition: partition,
        origin_offset: offset,
        job_id: JobId::nearest(claimed_id(&job, received.record).unwrap_or_default()),
        verdict: Verdict::Rejected(reason),
        run: None,
        device: None,
        submitted_at_ms: submitted_at_ms(received.record),
        completed_at_ms: now_ms,
        labels: labels
            .into_iter()
            .map(|(key, value)| (key.into(), value.into()))
            .collect(),
        trace_id: trace_id(received.record).map(Into::into),
    };
    Outcome { common, row }
}

fn claimed_id<'a>(job: &'a Job<'_>, record: &'a Record) -> Option<&'a str> {
    job.id.as_deref().or_else(|| record.header("ce_id"))
}

fn origin(received: Received<'_>) -> Origin {
    let topic = &received.source.topic;
    Origin {
        topic: topic.name.clone(),
        topic_id: topic.id,
        partition: received.source.index,
        offset: received.record.offset,
    }
}

/// The CloudEvents time of the job where it has one, otherwise the record's.
fn submitted_at_ms(record: &Record) -> i64 {
    record
        .header("ce_time")
        .and_then(rfc3339_ms)
        .unwrap_or(record.timestamp_ms)
}

fn rfc3339_ms(time: &str) -> Option<i64> {
    DateTime::parse_from_rfc3339(time)
        .ok()
        .map(|time| time.timestamp_millis())
}

/// The trace id of a W3C `traceparent` (<https://www.w3.org/TR/trace-context/>).
fn trace_id(record: &Record) -> Option<String> {
    let mut parts = record.header("traceparent")?.split('-');
    let (_version, trace_id) = (parts.next()?, parts.next()?);
    let valid = trace_id.len() == 32 && trace_id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (valid && trace_id.bytes().any(|b| b != b'0')).then(|| trace_id.to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use authority::AccessPolicies;
    use bytes::Bytes;
    use proptest::prelude::*;
    use schemas::{ModelTerms, Pool, Task, TopicId, TopicName, TopicNames};
    use topics::{Header, TopicRef};

    use super::*;
    use crate::permission::Came;

    const NOW_MS: i64 = 1_790_000_000_000;

    fn policies() -> Policies {
        let terms = ModelTerms {
            task: Task::Embed,
            price_per_device_second: "0.0001".parse().unwrap(),
        };
        let minilm = ModelName::new("minilm").unwrap();
        let tenant = |models| TenantPolicy {
            partitions: 2,
            models,
            ..TenantPolicy::default()
        };
        Policies {
            topics: TopicNames::new(&TopicName::new("jobs").unwrap(), "tributary.").unwrap(),
            tenants: BTreeMap::from([
                (Tenant::new("acme").unwrap(), tenant(None)),
                (
                    Tenant::new("globex").unwrap(),
                    tenant(Some(BTreeSet::from([minilm.clone()]))),
                ),
            ]),
            models: BTreeMap::from([(minilm, terms.clone()), (ModelName::new("bge").unwrap(), terms)]),
            pools: BTreeMap::new(),
            input_bytes_max: 1_000,
            currency: "USD".to_owned(),
        }
    }

    fn source(topic: &str) -> Partition {
        let topic = TopicRef {
            name: TopicName::new(topic).unwrap(),
            id: TopicId::from_bytes([7; 16]),
        };
        Partition {
            topic: Arc::new(topic),
            index: 1,
        }
    }

    fn record(value: impl Into<Bytes>) -> Record {
        Record {
            offset: 42,
            timestamp_ms: NOW_MS - 5,
            stamped_by_log: false,
            key: None,
            value: Some(value.into()),
            headers: Vec::new(),
        }
    }

    fn decide_on(topic: &str, record: &Record) -> Decision {
        decide_under(&policies(), topic, record)
    }

    fn decide_under(policies: &Policies, topic: &str, record: &Record) -> Decision {
        let source = &source(topic);
        let in_force = InForce {
            policies,
            identity: &Identity::nowhere(),
            permissions: &Permissions::of(Arc::new(AccessPolicies::built_in())),
            quotas: &Quotas::default(),
        };
        decide(Received { source, record }, in_force, NOW_MS).decision
    }

    fn rejection(topic: &str, value: &str) -> (String, ReasonCode, String) {
        match decide_on(topic, &record(value.to_owned())) {
            Decision::Reject(Outcome {
                common,
                row:
                    Row {
                        verdict: Verdict::Rejected(reason),
                        ..
                    },
            }) => (common.tenant.to_string(), reason.code, reason.message.to_string()),
            other => panic!("`{value:.80}` was not rejected: {other:?}"),
        }
    }

    #[test]
    fn a_good_job_is_admitted_with_all_that_it_brought() {
        let mut record = record(
            r#"{"id":"a-1","tenant":"acme","model":"minilm","input":"Hello","labels":{"team":"x"},"deadline":"2099-01-01T00:00:00Z"}"#,
        );
        record.headers = vec![
            Header::text(
                "traceparent",
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            ),
            Header::text("ce_time", "2026-01-01T00:00:00Z"),
        ];
        let Decision::Admit(job) = decide_on("jobs", &record) else {
            panic!("not admitted")
        };
        assert_eq!(job.tenant.as_str(), "acme");
        assert_eq!((job.origin.partition, job.origin.offset), (1, 42));
        assert_eq!(job.submitted_at_ms, 1_767_225_600_000);
        assert_eq!(job.trace_id.as_deref(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
        assert_eq!(job.deadline_ms, Some(4_070_908_800_000));
        assert_eq!(job.labels["team"], "x");
    }

    #[test]
    fn on_a_tenants_own_topic_the_tag_may_be_left_out_but_not_lie() {
        let untagged = record(r#"{"id":"a","model":"minilm","input":"x"}"#);
        assert!(
            matches!(decide_on("jobs.acme", &untagged), Decision::Admit(job) if job.tenant.as_str() == "acme")
        );
        let (tenant, code, message) = rejection(
            "jobs.acme",
            r#"{"id":"a","tenant":"globex","model":"minilm","input":"x"}"#,
        );
        assert_eq!((tenant.as_str(), code), ("acme", ReasonCode::TenantMismatch));
        assert_eq!(
            message,
            "the job came through `jobs.acme` and names tenant `globex`"
        );
        let (tenant, code, _) = rejection("jobs.ghost", r#"{"id":"a","model":"minilm","input":"x"}"#);
        assert_eq!((tenant.as_str(), code), ("unclaimed", ReasonCode::UnknownTenant));
        let (tenant, code, _) = rejection("jobs.007", r#"{"id":"a","model":"minilm","input":"x"}"#);
        assert_eq!((tenant.as_str(), code), ("unclaimed", ReasonCode::InvalidTenant));
    }

    #[test]
    fn a_job_of_no_known_tenant_belongs_to_unclaimed_and_builds_no_path() {
        for claimed in [
            "../acme",
            "%2F",
            "007",
            "Acme",
            "acme ",
            " acme",
            "аcme",
            "acme\\u0000",
            "",
            "a/b",
            "tenant=acme",
        ] {
            let value = format!(r#"{{"id":"a","tenant":"{claimed}","model":"minilm","input":"x"}}"#);
            let (tenant, code, _) = rejection("jobs", &value);
            assert_eq!(
                (tenant.as_str(), code),
                ("unclaimed", ReasonCode::InvalidTenant),
                "`{claimed}`"
            );
        }
        for claimed in ["umbrella", "unclaimed"] {
            let value = format!(r#"{{"id":"a","tenant":"{claimed}","model":"minilm","input":"x"}}"#);
            let (tenant, code, _) = rejection("jobs", &value);
            assert_eq!(
                (tenant.as_str(), code),
                ("unclaimed", ReasonCode::UnknownTenant),
                "`{claimed}`"
            );
        }
        let (_, code, message) = rejection("jobs", r#"{"id":"a","model":"minilm","input":"x"}"#);
        assert_eq!(code, ReasonCode::UnknownTenant);
        assert!(message.contains("names no tenant"), "{message}");
    }

    #[test]
    fn each_bad_value_is_rejected_with_its_own_reason() {
        let long = "x".repeat(1_001);
        let labels = "y".repeat(9_000);
        let id = "z".repeat(257);
        for (fields, expected, complaint) in [
            (
                r#""id":"a","model":"gpt-9","input":"x""#,
                ReasonCode::UnknownModel,
                "there are: bge, minilm",
            ),
            (
                r#""id":"a","model":"../m","input":"x""#,
                ReasonCode::UnknownModel,
                "must match",
            ),
            (
                r#""id":"a","model":"bge","input":"x""#,
                ReasonCode::ModelNotAllowed,
                "may not use model `bge`",
            ),
            (
                r#""id":"a","model":"minilm","input":"""#,
                ReasonCode::EmptyInput,
                "empty",
            ),
            (
                r#""id":"a","model":"minilm","input":" \n\t""#,
                ReasonCode::EmptyInput,
                "empty",
            ),
            (
                r#""id":"","model":"minilm","input":"x""#,
                ReasonCode::InvalidJobId,
                "1 to 256 bytes",
            ),
            (
                r#""id":"a\nb","model":"minilm","input":"x""#,
                ReasonCode::InvalidJobId,
                "control characters",
            ),
            (
                r#""model":"minilm","input":"x""#,
                ReasonCode::InvalidJobId,
                "no id",
            ),
            (
                r#""id":"a","model":"minilm","input":"x","text_pair":"y""#,
                ReasonCode::TextPairNotSupported,
                "one text",
            ),
            (
                r#""id":"a","model":"minilm","input":"x","deadline":"soon""#,
                ReasonCode::InvalidDeadline,
                "RFC 3339",
            ),
            (
                r#""id":"a","model":"minilm","input":"x","deadline":"2020-01-01T00:00:00Z""#,
                ReasonCode::DeadlinePassed,
                "ms before",
            ),
            (
                &format!(r#""id":"a","model":"minilm","input":"{long}""#),
                ReasonCode::InputTooLarge,
                "1001 bytes",
            ),
            (
                &format!(r#""id":"{id}","model":"minilm","input":"x""#),
                ReasonCode::InvalidJobId,
                "1 to 256",
            ),
            (
                &format!(r#""id":"a","model":"minilm","input":"x","labels":{{"k":"{labels}"}}"#),
                ReasonCode::LabelsTooLarge,
                "9001 bytes",
            ),
        ] {
            let (tenant, code, message) = rejection("jobs", &format!(r#"{{"tenant":"globex",{fields}}}"#));
            assert_eq!((tenant.as_str(), code), ("globex", expected), "{fields:.80}");
            assert!(message.contains(complaint), "{fields:.80}: {message}");
        }
    }

    #[test]
    fn a_job_for_a_model_that_its_pool_does_not_have_is_rejected_and_one_of_another_pool_is_not() {
        let mut policies = policies();
        let (gold, minilm) = (Pool::new("gold").unwrap(), ModelName::new("minilm").unwrap());
        policies.pools = BTreeMap::from([(gold.clone(), Some(BTreeSet::from([minilm])))]);
        let job = record(r#"{"id":"a","model":"bge","input":"x"}"#.to_owned());
        assert!(matches!(
            decide_under(&policies, "jobs.acme", &job),
            Decision::Admit(_)
        ));
        policies
            .tenants
            .get_mut(&Tenant::new("acme").unwrap())
            .unwrap()
            .pool = gold;
        let Decision::Reject(outcome) = decide_under(&policies, "jobs.acme", &job) else {
            panic!("not rejected")
        };
        let reason = outcome.row.verdict.reason().unwrap();
        assert_eq!(reason.code, ReasonCode::ModelNotAllowed);
        assert!(reason.message.contains("pool, `gold`"), "{}", reason.message);
    }

    #[test]
    fn a_job_that_is_wrong_anyway_is_told_so_whatever_its_tenant_has_spent() {
        let mut policies = policies();
        let acme = policies.tenants.get_mut(&Tenant::new("acme").unwrap()).unwrap();
        acme.budget = Some(schemas::Budget {
            per_day: Some(Decimal::ZERO),
            per_month: None,
        });
        for (input, expected) in [("x", ReasonCode::BudgetExhausted), ("", ReasonCode::EmptyInput)] {
            let job = format!(r#"{{"id":"a","model":"minilm","input":"{input}"}}"#);
            let Decision::Reject(outcome) = decide_under(&policies, "jobs.acme", &record(job)) else {
                panic!("not rejected")
            };
            assert_eq!(outcome.row.verdict.reason().unwrap().code, expected);
            assert_eq!(outcome.billed_cost(), Decimal::ZERO);
        }
    }

    #[test]
    fn what_is_no_job_becomes_a_dead_letter_that_says_why() {
        let deep = format!(r#"{{"model":{}"#, "[".repeat(5_000));
        for (value, complaint) in [
            ("{", "EOF"),
            ("[]", "not a job"),
            (
                r#"{"id":"a","tenant":"acme","model":"minilm"}"#,
                "missing field `input`",
            ),
            (
                r#"{"id":"a","tenant":"acme","model":"minilm","input":1}"#,
                "invalid type",
            ),
            (
                r#"{"id":"a","id":"b","tenant":"acme","model":"minilm","input":"x"}"#,
                "duplicate field",
            ),
            (
                r#"{"id":"a","tenant":"acme","model":"minilm","input":"x","prioritty":"low"}"#,
                "unknown field `prioritty`",
            ),
            (deep.as_str(), "line 1 column"),
        ] {
            let decision = decide_on("jobs", &record(value.to_owned()));
            assert!(
                matches!(&decision, Decision::DeadLetter(why) if why.contains(complaint)),
                "{value:.60}: {decision:?}"
            );
        }
        let invalid = decide_on("jobs", &record(&b"{\"id\":\"\xff\"}"[..]));
        assert!(
            matches!(&invalid, Decision::DeadLetter(why) if why.contains("unicode")),
            "{invalid:?}"
        );
        let tombstone = Record {
            value: None,
            ..record("")
        };
        assert!(
            matches!(decide_on("jobs", &tombstone), Decision::DeadLetter(why) if why.contains("tombstone"))
        );
    }

    #[test]
    fn a_cloud_event_names_the_job_where_the_body_does_not() {
        let mut record = record(r#"{"tenant":"acme","model":"minilm","input":"x"}"#);
        record.headers = vec![Header::text("ce_id", "event-9")];
        assert!(
            matches!(decide_on("jobs", &record), Decision::Admit(job) if job.job_id.as_str() == "event-9")
        );
    }

    #[test]
    fn a_job_that_asks_for_more_than_its_ceiling_is_lowered_to_it_and_runs() {
        use Priority::{High, Low, Normal};
        for (asked, ceiling, expected) in [
            (Some(High), High, Some(High)),
            (Some(High), Normal, Some(Normal)),
            (Some(Low), Normal, Some(Low)),
            (None, Normal, None),
            (None, Low, Some(Low)),
        ] {
            let mut policies = policies();
            let acme = policies.tenants.get_mut(&Tenant::new("acme").unwrap()).unwrap();
            acme.priority_max = ceiling;
            let job = serde_json::json!({"id": "a", "model": "minilm", "input": "x", "priority": asked});
            let decision = decide_under(&policies, "jobs.acme", &record(job.to_string()));
            let Decision::Admit(job) = decision else {
                panic!("not admitted: {decision:?}")
            };
            assert_eq!(job.priority, expected, "{asked:?} under {ceiling:?}");
        }
    }

    #[test]
    fn the_labels_of_a_tenant_stand_on_all_its_outcomes_and_a_job_cannot_say_otherwise() {
        let mut policies = policies();
        let acme = policies.tenants.get_mut(&Tenant::new("acme").unwrap()).unwrap();
        acme.labels = BTreeMap::from([("cost-centre".to_owned(), "17".to_owned())]);
        let labels = r#""labels":{"team":"x","cost-centre":"another's"}"#;
        let expected = BTreeMap::from([("cost-centre", "17"), ("team", "x")]);
        let job = |input| format!(r#"{{"id":"a","model":"minilm","input":"{input}",{labels}}}"#);
        for input in ["good", ""] {
            let decision = decide_under(&policies, "jobs.acme", &record(job(input)));
            let found: BTreeMap<&str, &str> = match &decision {
                Decision::Admit(job) => job.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect(),
                Decision::Reject(outcome) => outcome.row.labels.iter().map(|(k, v)| (&**k, &**v)).collect(),
                Decision::DeadLetter(_) => panic!("`{input}` is no job"),
            };
            assert_eq!(found, expected, "`{input}`");
        }
    }

    #[test]
    fn an_oversized_input_is_rejected_without_being_repeated_in_its_outcome() {
        let value = format!(
            r#"{{"id":"a","tenant":"acme","model":"minilm","input":"{}"}}"#,
            "x".repeat(20 << 20)
        );
        let Decision::Reject(outcome) = decide_on("jobs", &record(value)) else {
            panic!("not rejected")
        };
        assert!(schemas::Record::encode(&schemas::Outcomes::pack([outcome])[0]).len() < 2_000);
    }

    proptest! {
        #[test]
        fn any_record_gets_exactly_one_decision_and_never_a_panic(
            value in prop::option::of(prop::collection::vec(any::<u8>(), 0..300)),
            id in any::<String>(), tenant in any::<String>(), model in any::<String>(), input in any::<String>(),
        ) {
            let _ = decide_on("jobs", &Record { value: value.map(Bytes::from), ..record("") });
            let job = serde_json::json!({"id": id, "tenant": tenant, "model": model, "input": input});
            match decide_on("jobs", &record(job.to_string())) {
                Decision::Admit(job) => prop_assert!(["acme", "globex"].contains(&job.tenant.as_str())),
                Decision::Reject(outcome) => prop_assert!(outcome.row.verdict.reason().is_some()),
                Decision::DeadLetter(why) => prop_assert!(false, "a well-formed job became a dead letter: {why}"),
            }
        }
    }

    /// Prints nanoseconds a job: to decide on it, where the access policies were asked about such a job before and where
    /// they are asked about each one, and what of the former is to look the answer up.
    #[test]
    #[ignore = "a measurement, which `bench/run access` runs"]
    fn what_access_policies_cost() {
        const ROUND_JOBS: u32 = 1_000;
        let (policies, authority) = (policies(), Arc::new(AccessPolicies::built_in()));
        let (source, identity) = (&source("jobs"), &Identity::nowhere());
        let record =
            &record(r#"{"id":"a-1","tenant":"acme","model":"minilm","input":"Where is my parcel?"}"#);
        let permissions = Permissions::of(authority.clone());
        let decide_by = |permissions: &Permissions| {
            let in_force = InForce {
                policies: &policies,
                identity,
                permissions,
                quotas: &Quotas::default(),
            };
            let decided = decide(Received { source, record }, in_force, NOW_MS);
            assert!(decided.by.is_some());
        };
        let tenant = Tenant::new("acme").unwrap();
        let ask = || {
            let asked = Asked {
                model: ModelName::new("minilm").unwrap(),
                priority: Priority::default(),
                came: Came {
                    by_own_topic: false,
                    with_token: false,
                },
            };
            let answer = permissions.ask(None, &tenant, &policies.tenants[&tenant], asked);
            assert!(answer.decided_by.is_some());
        };
        let job_ns = |job: &dyn Fn()| {
            let mut rounds: Vec<u64> = (0..100)
                .map(|_| {
                    let began = std::time::Instant::now();
                    (0..ROUND_JOBS).for_each(|_| job());
                    began.elapsed().as_nanos() as u64
                })
                .collect();
            rounds.sort_unstable();
            rounds[rounds.len() / 2] / u64::from(ROUND_JOBS)
        };
        let remembered = job_ns(&|| decide_by(&permissions));
        let asked_each = job_ns(&|| decide_by(&Permissions::of(authority.clone())));
        let looked_up = job_ns(&ask);
        println!(
            r#"{{"remembered_ns": {remembered}, "asked_each_ns": {asked_each}, "looked_up_ns": {looked_up}}}"#
        );
    }
}
