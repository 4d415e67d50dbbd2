//! Every record that crosses a topic is held to committed bytes, so that a change of its encoding cannot pass
//! unnoticed: yesterday's records must be readable tomorrow. `UPDATE_GOLDEN=1` writes the files anew.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    path::Path,
};

use schemas::{
    Abuse, Actor, AdmittedJob, AdmittedJobs, AuditEvent, AuditEvents, Budget, Common, DecodeError,
    DeviceShare, Digest, Engine, Finding, FindingStage, JobId, Measure, ModelName, Operation, Origin,
    Origins, Outcome, Outcomes, Pool, Priority, Rate, Reason, ReasonCode, Record, Route, Row, Run, Task,
    Tenant, TenantPolicy, TenantSet, TopicId, TopicName, Verdict,
};
use serde::Deserialize;

fn origin() -> Origin {
    Origin {
        topic: TopicName::new("jobs").unwrap(),
        topic_id: TopicId::from_bytes(*b"0123456789abcdef"),
        partition: 3,
        offset: 1_234_567_890_123,
    }
}

fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([("team".to_owned(), "search".to_owned())])
}

fn admitted_job() -> AdmittedJob {
    AdmittedJob {
        origin: origin(),
        tenant: Tenant::new("acme").unwrap(),
        job_id: JobId::new("order-17").unwrap(),
        model: ModelName::new("minilm").unwrap(),
        input: "Where is my parcel?".to_owned(),
        text_pair: Some("It is late.".to_owned()),
        priority: Some(Priority::High),
        submitted_at_ms: 1_790_000_000_123,
        deadline_ms: Some(1_790_000_060_000),
        labels: labels(),
        trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736".to_owned()),
    }
}

fn succeeded() -> Outcome<'static> {
    let common = Common {
        origin_topic: origin().topic,
        origin_topic_id: origin().topic_id,
        route: Route::Work(TopicName::new("tributary.work.shared.acme").unwrap()),
        tenant: Tenant::new("acme").unwrap(),
        model: "minilm".to_owned(),
        engine: Some(Engine {
            task: Task::Embed,
            model_digest: Digest::from_bytes([0xab; 32]),
            model_dtype: None,
            model_path: None,
        }),
        price_per_device_second: "0.000125".parse().unwrap(),
        currency: "USD".to_owned(),
    };
    let row = Row {
        origin_partition: origin().partition,
        origin_offset: origin().offset,
        job_id: JobId::new("order-17").unwrap(),
        verdict: Verdict::Succeeded {
            embedding: vec![0.5, -1.25, f32::MIN_POSITIVE].into(),
        },
        run: Some(Run {
            input_tokens: 7,
            truncated: false,
            queue_time_ns: 1_500_000,
        }),
        device: Some(DeviceShare {
            device_time_ns: 4_321,
            work_units: 9,
            batch_id: "0011223344556677-8".into(),
            batch_jobs: 32,
            batch_device_time_ns: 123_456_789,
        }),
        submitted_at_ms: 1_790_000_000_123,
        completed_at_ms: 1_790_000_001_000,
        labels: BTreeMap::from([("team".into(), "search".into())]),
        trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736".into()),
    };
    Outcome { common, row }
}

fn failed() -> Outcome<'static> {
    let Outcome { common, row } = succeeded();
    let row = Row {
        origin_offset: row.origin_offset + 1,
        verdict: Verdict::Failed(Reason {
            code: ReasonCode::InferenceFailed,
            message: "the model answered with no number".into(),
        }),
        ..row
    };
    Outcome { common, row }
}

fn rejected() -> Outcome<'static> {
    let Outcome { common, row } = succeeded();
    let common = Common {
        route: Route::Rejected,
        tenant: Tenant::unclaimed(),
        engine: None,
        price_per_device_second: "0".parse().unwrap(),
        ..common
    };
    let row = Row {
        verdict: Verdict::Rejected(Reason {
            code: ReasonCode::UnknownTenant,
            message: "tenant `umbrella` is not configured".into(),
        }),
        run: None,
        device: None,
        labels: BTreeMap::new(),
        trace_id: None,
        ..row
    };
    Outcome { common, row }
}

fn outcomes() -> Outcomes<'static> {
    let [record] = <[_; 1]>::try_from(Outcomes::pack([succeeded(), failed(), rejected()])).unwrap();
    record
}

fn golden(record: &impl Record, file: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(file);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, record.encode()).unwrap();
    }
    std::fs::read(&path).unwrap()
}

fn check<'a, R: Record + Deserialize<'a> + PartialEq + Debug>(record: &R, golden: &'a [u8]) {
    assert_eq!(
        &R::decode(golden).unwrap(),
        record,
        "the record no longer reads as it was written"
    );
    assert_eq!(
        record.encode(),
        golden,
        "the encoding changed: raise VERSION, keep reading the old one, or undo"
    );
}

#[test]
fn admitted_jobs_keep_their_bytes() {
    let shortest = AdmittedJob {
        text_pair: None,
        priority: None,
        deadline_ms: None,
        labels: BTreeMap::new(),
        trace_id: None,
        ..admitted_job()
    };
    let jobs = AdmittedJobs(vec![admitted_job(), shortest]);
    check(&jobs, &golden(&jobs, "admitted-jobs.v2.bin"));
    assert_eq!(AdmittedJobs::count(&jobs.encode()).unwrap(), 2);
}

#[test]
fn outcomes_keep_their_bytes() {
    check(&outcomes(), &golden(&outcomes(), "outcomes.v3.bin"));
}

#[test]
fn outcomes_that_say_what_ran_keep_their_bytes() {
    let mut outcome = succeeded();
    let engine = outcome.common.engine.as_mut().unwrap();
    engine.model_dtype = Some("bf16".into());
    engine.model_path = Some("avx512".into());
    let outcomes = Outcomes::pack([outcome]).remove(0);
    check(&outcomes, &golden(&outcomes, "outcomes-with-numbers.v3.bin"));
}

#[test]
fn a_name_that_breaks_its_rule_makes_the_record_malformed() {
    let bytes = outcomes().encode();
    for (name, wrong) in [
        ("order-17", "order\n17"),
        ("tributary.work.shared.acme", "tributary/work.shared.acme"),
        ("unclaimed", "Unclaimed"),
    ] {
        let at = bytes
            .windows(name.len())
            .position(|part| part == name.as_bytes())
            .unwrap();
        let mut changed = bytes.clone();
        changed[at..at + name.len()].copy_from_slice(wrong.as_bytes());
        let error = Outcomes::decode(&changed).unwrap_err();
        assert!(
            matches!(&error, DecodeError::Malformed { source, .. } if source.to_string().contains("is not a valid name")),
            "`{wrong}`: {error:?}"
        );
    }
}

#[test]
fn a_field_that_a_newer_writer_adds_is_passed_over() {
    let bytes = outcomes().encode();
    let (key, more) = (b"\xa7run_new".as_slice(), b"\x07".as_slice());
    // A row is a map of so many fields, the first of which is its partition.
    let first = b"\xb0origin_partition";
    let at = bytes.windows(first.len()).position(|part| part == first).unwrap();
    let mut longer = [&bytes[..at], key, more, &bytes[at..]].concat();
    longer[at - 1] += 1;
    assert_eq!(Outcomes::decode(&longer).unwrap(), outcomes());
}

#[test]
fn a_set_of_tenants_keeps_its_bytes() {
    let acme = TenantPolicy {
        pool: Pool::new("gold").unwrap(),
        partitions: 4,
        models: Some(BTreeSet::from([ModelName::new("minilm").unwrap()])),
        weight: 3.try_into().unwrap(),
        priority_max: Priority::Normal,
        retention_days: Some(30.try_into().unwrap()),
        labels: labels(),
        ..TenantPolicy::default()
    };
    let globex = TenantPolicy {
        priority_max: Priority::High,
        ..TenantPolicy::default()
    };
    let tenants = BTreeMap::from([
        (Tenant::new("acme").unwrap(), acme),
        (Tenant::new("globex").unwrap(), globex),
    ]);
    let set = TenantSet(tenants);
    check(&set, &golden(&set, "tenant-set.v1.bin"));
}

#[test]
fn a_set_of_tenants_with_quotas_keeps_its_bytes() {
    let acme = TenantPolicy {
        priority_max: Priority::High,
        rate: Some(Rate {
            work_units_per_s: 500.try_into().unwrap(),
            burst_work_units: Some(2_000.try_into().unwrap()),
        }),
        budget: Some(Budget {
            per_day: Some("2.50".parse().unwrap()),
            per_month: Some("40".parse().unwrap()),
        }),
        queue_records_max: Some(1_000.try_into().unwrap()),
        ..TenantPolicy::default()
    };
    let set = TenantSet(BTreeMap::from([(Tenant::new("acme").unwrap(), acme)]));
    check(&set, &golden(&set, "tenant-set-with-quotas.v1.bin"));
}

#[test]
fn a_set_of_tenants_with_limits_of_concurrent_work_keeps_its_bytes() {
    let acme = TenantPolicy {
        concurrent_work_units_max: Some(50_000.try_into().unwrap()),
        ..TenantPolicy::default()
    };
    let set = TenantSet(BTreeMap::from([(Tenant::new("acme").unwrap(), acme)]));
    check(&set, &golden(&set, "tenant-set-of-concurrent-work.v1.bin"));
}

#[test]
fn audit_events_keep_their_bytes() {
    let decided = AuditEvent {
        time_ms: 1_790_000_000_123,
        operation: Operation::DecideJobs,
        tenant: Some(Tenant::new("acme").unwrap()),
        actor: Actor::Tenant(Tenant::new("acme").unwrap()),
        source: "jobs".to_owned(),
        count: 3,
        refused: Some("tenant_mismatch".to_owned()),
        detail: Some("the job came through `jobs.acme` and names tenant `globex`".to_owned()),
        policy: Some("submitters".to_owned()),
        model: Some(ModelName::new("minilm").unwrap()),
        origins: Some(Origins {
            topic: origin().topic,
            topic_id: origin().topic_id,
            partition: origin().partition,
            first_offset: origin().offset,
            last_offset: origin().offset + 7,
        }),
        finding: None,
    };
    let others = [
        (Operation::RequestJobs, Actor::Unknown),
        (Operation::TakeTenants, Actor::Service("ingest-0".to_owned())),
        (Operation::ApplyTenants, Actor::User("ada".to_owned())),
        (Operation::TakeKeys, Actor::Service("ingest-0".to_owned())),
        (Operation::ReplayDeadLetters, Actor::User("ada".to_owned())),
    ];
    let others = others.map(|(operation, actor)| AuditEvent {
        operation,
        actor,
        tenant: None,
        refused: None,
        detail: None,
        policy: None,
        model: None,
        origins: None,
        ..decided.clone()
    });
    let events = AuditEvents([decided].into_iter().chain(others).collect());
    check(&events, &golden(&events, "audit-events.v1.bin"));
}

#[test]
fn audit_events_of_access_keep_their_bytes() {
    let operations = [
        Operation::TakeAccessPolicies,
        Operation::ViewHealth,
        Operation::ViewMetrics,
    ];
    let events = AuditEvents(operations.map(refused).into());
    check(&events, &golden(&events, "audit-events-of-access.v1.bin"));
}

fn refused(operation: Operation) -> AuditEvent {
    AuditEvent {
        time_ms: 1_790_000_000_123,
        operation,
        tenant: None,
        actor: Actor::Unknown,
        source: "203.0.113.7".to_owned(),
        count: 1,
        refused: Some(ReasonCode::NotPermitted.as_str().to_owned()),
        detail: Some("a stranger: policy `known-people-only` forbids it".to_owned()),
        policy: Some("known-people-only".to_owned()),
        model: None,
        origins: None,
        finding: None,
    }
}

#[test]
fn findings_keep_their_bytes() {
    let begun = AuditEvent {
        time_ms: 1_790_000_000_123,
        operation: Operation::FindDeparture,
        tenant: Some(Tenant::new("acme").unwrap()),
        actor: Actor::Tenant(Tenant::new("acme").unwrap()),
        source: "jobs".to_owned(),
        count: 1,
        refused: None,
        detail: Some("more jobs than usual: 1201 in 10 minutes, and at most 300 are usual".to_owned()),
        policy: None,
        model: None,
        origins: None,
        finding: Some(Finding {
            uid: "1790000000123-acme-jobs".to_owned(),
            measure: Measure::Jobs,
            stage: FindingStage::Begun,
        }),
    };
    let ended = AuditEvent {
        finding: begun.finding.clone().map(|finding| Finding {
            stage: FindingStage::Ended,
            ..finding
        }),
        ..begun.clone()
    };
    let events = AuditEvents(vec![begun, ended]);
    check(&events, &golden(&events, "audit-findings.v1.bin"));
}

#[test]
fn a_set_of_tenants_that_are_throttled_keeps_its_bytes() {
    let acme = TenantPolicy {
        abuse: Abuse {
            detect: true,
            times_usual: 5.try_into().unwrap(),
            throttle: true,
        },
        priority_max: Priority::High,
        ..TenantPolicy::default()
    };
    let set = TenantSet(BTreeMap::from([(Tenant::new("acme").unwrap(), acme)]));
    check(&set, &golden(&set, "tenant-set-throttled.v1.bin"));
}

#[test]
fn a_record_of_another_version_says_so_instead_of_being_misread() {
    let mut bytes = outcomes().encode();
    bytes[0] = 4;
    let error = Outcomes::decode(&bytes).unwrap_err();
    assert!(
        matches!(
            error,
            DecodeError::UnknownVersion {
                found: 4,
                known: 3,
                ..
            }
        ),
        "{error}"
    );
    assert!(
        error.to_string().ends_with("upgrade the readers first"),
        "{error}"
    );
    bytes[0] = 1;
    let error = Outcomes::decode(&bytes).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("let the readers of that version finish first"),
        "{error}"
    );
    assert!(matches!(Outcomes::decode(&[]), Err(DecodeError::Empty { .. })));
    assert!(matches!(
        Outcomes::decode(b"\x03rubbish"),
        Err(DecodeError::Malformed { .. })
    ));
}
