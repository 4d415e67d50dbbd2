//! What the fuzz targets share: policies, a place to stand, and the promise that what was encoded reads back.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use ingest::{
    Decision, InForce, Permissions, Received, decide,
    identity::{Config, Identity, Keys, Required},
    quota::Quotas,
};
use schemas::{
    Action, AdmittedJobs, Authority, DecodeError, ModelName, ModelTerms, Outcomes, Policies, Principal, Record as _, Ruling, Submission, Task, Tenant, TenantPolicy, TopicId, TopicName, TopicNames,
};
use topics::{Header, Partition, Record, TopicRef};

/// One tenant, one model.
pub fn policies() -> Policies {
    let tenant = TenantPolicy {
        partitions: 4,
        ..TenantPolicy::default()
    };
    let terms = ModelTerms {
        task: Task::Embed,
        price_per_device_second: rust_decimal::Decimal::ONE,
    };
    Policies {
        topics: names(),
        tenants: BTreeMap::from([(Tenant::new("acme").unwrap(), tenant)]),
        models: BTreeMap::from([(ModelName::new("minilm").unwrap(), terms)]),
        pools: BTreeMap::new(),
        input_bytes_max: 10_000,
        currency: "USD".to_owned(),
    }
}

/// The names of all topics.
pub fn names() -> TopicNames {
    TopicNames::new(&TopicName::new("jobs").unwrap(), "tributary.").unwrap()
}

/// A record with this value and these headers.
pub fn record(value: &[u8], headers: Vec<Header>) -> Record {
    Record {
        offset: 1,
        timestamp_ms: 1,
        stamped_by_log: false,
        key: None,
        value: Some(Bytes::copy_from_slice(value)),
        headers,
    }
}

/// Where a token is demanded of everybody, or of nobody.
pub fn identity(required: Required) -> Identity {
    let config = Config {
        required,
        keys: None,
        issuer: None,
        audience: Some("tributary".to_owned()),
        tenant_claim: "tenant".to_owned(),
        roles_claim: Some("roles".to_owned()),
        leeway_s: 30,
    };
    let keys = Keys::read(include_str!("../../ingest/tests/keys/ed.pub.pem"));
    Identity::new(&config, keys.expect("a public key"))
}

/// Permits everything: Cedar would be most of the build, and nothing that is fuzzed depends on what it answers.
#[derive(Debug)]
struct Anything;

impl Authority for Anything {
    fn may_submit(&self, _: &Principal, _: &Submission) -> Ruling {
        self.may(&Principal::Stranger, Action::PostJobs)
    }

    fn may(&self, _: &Principal, _: Action) -> Ruling {
        Ruling {
            is_allowed: true,
            policies: Vec::new(),
        }
    }
}

/// Decides on `record` as of each door, and holds what comes of it to its encoding.
pub fn decide_on(record: &Record) {
    decide_by(&identity(Required::Nowhere), record);
}

/// As [`decide_on`], where a token may be demanded.
pub fn decide_by(identity: &Identity, record: &Record) {
    let policies = policies();
    for topic in [
        policies.topics.jobs(),
        policies.topics.jobs_of(&Tenant::new("acme").unwrap()),
    ] {
        let topic = TopicRef {
            name: topic,
            id: TopicId::from_bytes([1; 16]),
        };
        let source = Partition {
            topic: Arc::new(topic),
            index: 0,
        };
        let received = Received {
            source: &source,
            record,
        };
        let in_force = InForce {
            policies: &policies,
            identity,
            permissions: &Permissions::of(Arc::new(Anything)),
            quotas: &Quotas::default(),
        };
        match decide(received, in_force, 1_790_000_000_000).decision {
            Decision::Admit(job) => jobs_read_back(&AdmittedJobs(vec![job])),
            Decision::Reject(outcome) => outcomes_read_back(&Outcomes::pack([outcome])[0]),
            Decision::DeadLetter(reason) => assert!(!reason.is_empty()),
        }
    }
}

/// Jobs that are encoded decode, to what encodes to the same bytes.
pub fn jobs_read_back(jobs: &AdmittedJobs) {
    reads_back(jobs, |bytes| AdmittedJobs::decode(bytes).map(|again| again.encode()));
}

/// Outcomes that are encoded decode, to what encodes to the same bytes.
pub fn outcomes_read_back(outcomes: &Outcomes<'_>) {
    reads_back(outcomes, |bytes| Outcomes::decode(bytes).map(|again| again.encode()));
}

/// What is encoded decodes, to what encodes to the same bytes.
pub fn reads_back(
    value: &impl schemas::Record,
    encode_again: impl FnOnce(&[u8]) -> Result<Vec<u8>, DecodeError>,
) {
    let bytes = value.encode();
    let again = encode_again(&bytes).unwrap_or_else(|error| panic!("what we wrote we cannot read: {error}"));
    assert_eq!(again, bytes);
}
