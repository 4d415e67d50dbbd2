//! Every record that crosses a topic is held to committed bytes, so that a change of its encoding cannot pass
//! unnoticed: yesterday's records must be readable tomorrow. `UPDATE_GOLDEN=1` writes the files anew.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    path::Path,
};

use schemas::{
    AdmittedJob, AdmittedJobs, Cost, DecodeError, DeviceShare, Digest, JobId, ModelName, Origin, Outcome,
    Outcomes, Pool, Priority, Reason, ReasonCode, Record, Route, Run, Task, Tenant, TenantPolicy, TenantSet,
    TopicId, TopicName, Verdict,
};

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

fn succeeded() -> Outcome {
    Outcome {
        origin: origin(),
        route: Route::Work(TopicName::new("tributary.work.shared.acme").unwrap()),
        tenant: Tenant::new("acme").unwrap(),
        job_id: JobId::new("order-17").unwrap(),
        model: "minilm".to_owned(),
        verdict: Verdict::Succeeded {
            embedding: vec![0.5, -1.25, f32::MIN_POSITIVE],
        },
        run: Some(Run {
            task: Task::Embed,
            model_digest: Digest::from_bytes([0xab; 32]),
            input_tokens: 7,
            truncated: false,
            queue_time_ns: 1_500_000,
        }),
        cost: Cost {
            device: Some(DeviceShare {
                device_time_ns: 4_321,
                work_units: 9,
                batch_id: "0011223344556677-8".to_owned(),
                batch_jobs: 32,
                batch_device_time_ns: 123_456_789,
            }),
            price_per_device_second: "0.000125".parse().unwrap(),
            currency: "USD".to_owned(),
        },
        submitted_at_ms: 1_790_000_000_123,
        completed_at_ms: 1_790_000_001_000,
        labels: labels(),
        trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736".to_owned()),
    }
}

fn rejected() -> Outcome {
    Outcome {
        route: Route::Rejected,
        tenant: Tenant::unclaimed(),
        verdict: Verdict::Rejected(Reason {
            code: ReasonCode::UnknownTenant,
            message: "tenant `umbrella` is not configured".to_owned(),
        }),
        run: None,
        cost: Cost {
            device: None,
            price_per_device_second: "0".parse().unwrap(),
            currency: "USD".to_owned(),
        },
        labels: BTreeMap::new(),
        trace_id: None,
        ..succeeded()
    }
}

fn check<R: Record + PartialEq + Debug>(record: &R, file: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(file);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, record.encode()).unwrap();
    }
    let golden = std::fs::read(&path).unwrap();
    assert_eq!(
        &R::decode(&golden).unwrap(),
        record,
        "{file} no longer reads as it was written"
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
    check(&jobs, "admitted-jobs.v2.bin");
    assert_eq!(AdmittedJobs::count(&jobs.encode()).unwrap(), 2);
}

#[test]
fn outcomes_keep_their_bytes() {
    check(&Outcomes(vec![succeeded(), rejected()]), "outcomes.v2.bin");
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
    };
    let tenants = BTreeMap::from([
        (Tenant::new("acme").unwrap(), acme),
        (Tenant::new("globex").unwrap(), TenantPolicy::default()),
    ]);
    check(&TenantSet(tenants), "tenant-set.v1.bin");
}

#[test]
fn a_record_of_another_version_says_so_instead_of_being_misread() {
    let mut bytes = Outcomes(vec![succeeded()]).encode();
    bytes[0] = 3;
    let error = Outcomes::decode(&bytes).unwrap_err();
    assert!(
        matches!(
            error,
            DecodeError::UnknownVersion {
                found: 3,
                known: 2,
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
        Outcomes::decode(b"\x02rubbish"),
        Err(DecodeError::Malformed { .. })
    ));
}
