//! Every way in which somebody may try to be somebody else, and what comes of it: a refusal, and an event of the audit.
//!
//! Where names are made, and of what:
//!
//! | name | made in | of |
//! |---|---|---|
//! | `jobs.<tenant>`, `work.<pool>.<tenant>`, `outcomes.<tenant>` and the others | `schemas::TopicNames` | `Tenant`, `Pool`, the configuration |
//! | `results/tenant=<t>/date=<d>/range-…`, `costs/…`, `audit/…`, `_ranges/…` | `layout` in `sink` | `Tenant`, `TopicId`, dates and numbers |
//! | the partition of work and of outcomes | `schemas::Origin` | where the record stood |
//!
//! No other place makes an object's path. `TopicName::new` stands elsewhere only where a name that exists is read back: from
//! the broker, the embedded log, or a dead letter; and a range's intent repeats the paths of its files, so who may write
//! `_ranges` may write the lake. `.ci/arrows` holds the code to both. So a value of a record reaches a name by becoming a
//! `Tenant` that is configured, and the attempts below are on that.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use authority::{AccessPolicies, DEFAULT};
use ingest::{
    Decided, Decision, InForce, Permissions, Received, Tally, decide,
    identity::{Config, Identity, Keys, Required},
    quota::Quotas,
};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header as TokenHeader, jwk::Jwk};
use schemas::{
    AuditEvent, AuditEvents, ModelName, ModelTerms, Outcome, Outcomes, Policies, Priority, ReasonCode,
    Record as _, Task, Tenant, TenantPolicy, TopicId, TopicName, TopicNames, Verdict,
};
use serde_json::{Value, json};
use topics::{Header, Partition, Record, TopicRef};

const NOW_S: i64 = 1_790_000_000;
const NOW_MS: i64 = NOW_S * 1_000;
const LEEWAY_S: i64 = 30;

/// Who signs, and with what. Only the first three are trusted.
#[derive(Clone, Copy)]
enum Signer {
    Rsa,
    Ec,
    Ed,
    Stranger,
}

impl Signer {
    const TRUSTED: [Self; 3] = [Self::Rsa, Self::Ec, Self::Ed];

    fn algorithm(self) -> Algorithm {
        match self {
            Self::Rsa => Algorithm::RS256,
            Self::Ec => Algorithm::ES256,
            Self::Ed | Self::Stranger => Algorithm::EdDSA,
        }
    }

    fn id(self) -> &'static str {
        match self {
            Self::Rsa => "rsa-1",
            Self::Ec => "ec-1",
            Self::Ed => "ed-1",
            Self::Stranger => "stranger-1",
        }
    }

    fn key(self) -> EncodingKey {
        match self {
            Self::Rsa => EncodingKey::from_rsa_pem(include_bytes!("keys/rsa.pem")),
            Self::Ec => EncodingKey::from_ec_pem(include_bytes!("keys/ec.pem")),
            Self::Ed => EncodingKey::from_ed_pem(include_bytes!("keys/ed.pem")),
            Self::Stranger => EncodingKey::from_ed_pem(include_bytes!("keys/stranger.pem")),
        }
        .unwrap()
    }

    fn header(self) -> TokenHeader {
        TokenHeader {
            kid: Some(self.id().to_owned()),
            ..TokenHeader::new(self.algorithm())
        }
    }

    fn signs(self, claims: &Value) -> String {
        jsonwebtoken::encode(&self.header(), claims, &self.key()).unwrap()
    }

    fn jwk(self) -> Jwk {
        let mut jwk = Jwk::from_encoding_key(&self.key(), self.algorithm()).unwrap();
        jwk.common.key_id = Some(self.id().to_owned());
        jwk
    }
}

fn jwks(signers: &[Signer]) -> String {
    let keys: Vec<Jwk> = signers.iter().map(|signer| signer.jwk()).collect();
    json!({ "keys": keys }).to_string()
}

fn identity_of(required: Required, keys: &str) -> Identity {
    Identity::new(&config_of(required), Keys::read(keys).unwrap())
}

fn config_of(required: Required) -> Config {
    Config {
        required,
        keys: None,
        issuer: Some("https://login.example".to_owned()),
        audience: Some("tributary".to_owned()),
        tenant_claim: "tenant".to_owned(),
        roles_claim: None,
        leeway_s: LEEWAY_S as u32,
    }
}

static NOWHERE: LazyLock<Identity> = LazyLock::new(Identity::nowhere);
static SHARED: LazyLock<Identity> = LazyLock::new(|| identity_of(Required::Shared, &jwks(&Signer::TRUSTED)));
static EVERYWHERE: LazyLock<Identity> =
    LazyLock::new(|| identity_of(Required::Everywhere, &jwks(&Signer::TRUSTED)));

/// What a good token says.
fn claims_of(tenant: &str) -> Value {
    json!({"iss": "https://login.example", "aud": "tributary", "exp": NOW_S + 60, "tenant": tenant})
}

/// A good token's claims with one of them changed; taken out where `value` is null.
fn claims_with(claim: &str, value: Value) -> Value {
    let mut claims = claims_of("acme");
    match value {
        Value::Null => drop(claims.as_object_mut().unwrap().remove(claim)),
        value => claims[claim] = value,
    }
    claims
}

fn token_with(claim: &str, value: Value) -> String {
    Signer::Ed.signs(&claims_with(claim, value))
}

fn token_of(tenant: &str) -> String {
    Signer::Ed.signs(&claims_of(tenant))
}

/// A token whose header is `header`, signed by nobody or as `signature` says.
fn forged(header: &Value, signature: &str) -> String {
    let part = |json: &Value| {
        // What `encode` writes between the dots, without a key.
        let token = jsonwebtoken::encode(
            &TokenHeader::new(Algorithm::HS256),
            json,
            &EncodingKey::from_secret(b""),
        );
        token.unwrap().split('.').nth(1).unwrap().to_owned()
    };
    format!("{}.{}.{signature}", part(header), part(&claims_of("acme")))
}

fn policies() -> Policies {
    let terms = ModelTerms {
        task: Task::Embed,
        price_per_device_second: "0.0001".parse().unwrap(),
    };
    let policy = TenantPolicy {
        priority_max: Priority::High,
        ..TenantPolicy::default()
    };
    let tenants = ["acme", "globex"].map(|name| (Tenant::new(name).unwrap(), policy.clone()));
    Policies {
        topics: TopicNames::new(&TopicName::new("jobs").unwrap(), "tributary.").unwrap(),
        tenants: tenants.into(),
        models: BTreeMap::from([(ModelName::new("minilm").unwrap(), terms)]),
        pools: BTreeMap::new(),
        input_bytes_max: 1_000,
        currency: "USD".to_owned(),
    }
}

fn job(more: &Value) -> Value {
    let mut job = json!({"id": "a", "model": "minilm", "input": "x"});
    job.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    job
}

fn tagged(tenant: &str) -> Value {
    job(&json!({ "tenant": tenant }))
}

fn bearer(token: &str) -> Vec<Header> {
    vec![Header::text("authorization", &format!("Bearer {token}"))]
}

fn record(job: &Value, headers: Vec<Header>) -> Record {
    Record {
        offset: 42,
        timestamp_ms: NOW_MS,
        stamped_by_log: false,
        key: None,
        value: Some(job.to_string().into()),
        headers,
    }
}

fn decided(identity: &Identity, topic: &str, record: &Record) -> Decided {
    decided_under(DEFAULT, identity, topic, record)
}

/// As of these access policies.
fn decided_under(access: &str, identity: &Identity, topic: &str, record: &Record) -> Decided {
    let topic = TopicRef {
        name: TopicName::new(topic).unwrap(),
        id: TopicId::from_bytes([7; 16]),
    };
    let source = &Partition {
        topic: Arc::new(topic),
        index: 1,
    };
    let in_force = InForce {
        policies: &policies(),
        identity,
        permissions: &Permissions::of(Arc::new(AccessPolicies::read(access).unwrap())),
        quotas: &Quotas::default(),
    };
    decide(Received { source, record }, in_force, NOW_MS)
}

/// What is rejected, which the audit knows too.
fn rejection(decided: Decided) -> (Outcome<'static>, ReasonCode, String) {
    let event = audited(&decided);
    let Decision::Reject(outcome) = decided.decision else {
        panic!("not rejected: {decided:?}")
    };
    let Verdict::Rejected(reason) = outcome.row.verdict.clone() else {
        panic!("{outcome:?}")
    };
    assert_eq!(event.tenant.as_ref(), Some(&outcome.common.tenant));
    assert_eq!(
        (event.count, event.refused.as_deref()),
        (1, Some(reason.code.as_str()))
    );
    (outcome, reason.code, reason.message.to_string())
}

/// The one event that the audit has of a decision.
fn audited(decided: &Decided) -> AuditEvent {
    let topic = TopicRef {
        name: TopicName::new("jobs").unwrap(),
        id: TopicId::from_bytes([7; 16]),
    };
    let source = Partition {
        topic: Arc::new(topic),
        index: 1,
    };
    let mut tally = Tally::default();
    tally.add(42, decided);
    let mut events = tally.events(&source, NOW_MS);
    assert_eq!(events.len(), 1, "{events:?}");
    events.remove(0)
}

/// Whose job it is, and where it goes from here.
fn admitted(decided: Decided) -> String {
    match decided.decision {
        Decision::Admit(job) => job.tenant.to_string(),
        other => panic!("not admitted: {other:?}"),
    }
}

struct Attempt {
    what: &'static str,
    identity: &'static Identity,
    topic: &'static str,
    job: Value,
    headers: Vec<Header>,
    /// Whose the refusal is: a tenant whose identity holds, or nobody.
    owner: &'static str,
    code: ReasonCode,
}

/// Each attempt is refused, with its reason, for its owner; and what is refused builds the names of that owner only, and
/// repeats no token.
fn refuse_all(attempts: Vec<Attempt>) {
    let known = policies();
    for attempt in attempts {
        let what = attempt.what;
        let record = record(&attempt.job, attempt.headers);
        let decision = decided(attempt.identity, attempt.topic, &record);
        let event = audited(&decision);
        let (outcome, code, message) = rejection(decision);
        assert_eq!(
            (outcome.common.tenant.as_str(), code),
            (attempt.owner, attempt.code),
            "{what}: {message}"
        );
        assert!(
            outcome.common.tenant.is_unclaimed() || known.tenants.contains_key(&outcome.common.tenant),
            "{what}"
        );
        assert_eq!(
            event.detail,
            Some(message),
            "{what}: an attempt is told with what was wrong"
        );
        let mut encoded = Outcomes::pack([outcome])[0].encode();
        encoded.extend(AuditEvents(vec![event]).encode());
        for header in record
            .headers
            .iter()
            .filter(|header| header.name == "authorization")
        {
            let value = header.value.as_deref().unwrap_or_default();
            let token = value.rsplit(|byte| *byte == b' ').next().unwrap();
            for part in token.split(|byte| *byte == b'.').filter(|part| part.len() > 8) {
                let repeats = encoded.windows(part.len()).any(|window| window == part);
                assert!(
                    !repeats,
                    "{what}: its outcome or its audit repeats a part of the token"
                );
            }
        }
    }
}

#[test]
fn on_a_tenants_own_topic_no_tag_makes_a_job_anothers() {
    use ReasonCode::{InvalidTenant, TenantMismatch, UnknownTenant};
    let on = |what, topic, job, owner, code| Attempt {
        what,
        identity: &NOWHERE,
        topic,
        job,
        headers: Vec::new(),
        owner,
        code,
    };
    refuse_all(vec![
        on(
            "a tag of another tenant",
            "jobs.acme",
            tagged("globex"),
            "acme",
            TenantMismatch,
        ),
        on(
            "a tag of the reserved tenant",
            "jobs.acme",
            tagged("unclaimed"),
            "acme",
            TenantMismatch,
        ),
        on(
            "a tag in upper case",
            "jobs.acme",
            tagged("ACME"),
            "acme",
            TenantMismatch,
        ),
        on(
            "a tag with a look-alike letter",
            "jobs.acme",
            tagged("аcme"),
            "acme",
            TenantMismatch,
        ),
        on(
            "a tag with a space after it",
            "jobs.acme",
            tagged("acme "),
            "acme",
            TenantMismatch,
        ),
        on("an empty tag", "jobs.acme", tagged(""), "acme", TenantMismatch),
        on(
            "a tag that leads to another folder",
            "jobs.acme",
            tagged("acme/../globex"),
            "acme",
            TenantMismatch,
        ),
        on(
            "the topic of nobody",
            "jobs.ghost",
            tagged("acme"),
            "unclaimed",
            UnknownTenant,
        ),
        on(
            "the topic of the reserved tenant",
            "jobs.unclaimed",
            tagged("acme"),
            "unclaimed",
            UnknownTenant,
        ),
        on(
            "a topic whose tenant has a dot",
            "jobs.acme.globex",
            tagged("globex"),
            "unclaimed",
            InvalidTenant,
        ),
        on(
            "a topic whose tenant is nothing",
            "jobs.",
            tagged("acme"),
            "unclaimed",
            InvalidTenant,
        ),
        on(
            "a topic whose tenant is a dot",
            "jobs..",
            tagged("acme"),
            "unclaimed",
            InvalidTenant,
        ),
        on(
            "a topic whose tenant is two dots",
            "jobs...",
            tagged("acme"),
            "unclaimed",
            InvalidTenant,
        ),
        on(
            "a topic whose tenant is a number",
            "jobs.007",
            tagged("acme"),
            "unclaimed",
            InvalidTenant,
        ),
        on(
            "a topic in another case",
            "jobs.Acme",
            tagged("acme"),
            "unclaimed",
            InvalidTenant,
        ),
        on(
            "a topic that only begins alike",
            "jobsacme",
            tagged("acme"),
            "unclaimed",
            InvalidTenant,
        ),
        on(
            "an internal topic",
            "tributary.work.shared.acme",
            tagged("acme"),
            "unclaimed",
            InvalidTenant,
        ),
    ]);
}

#[test]
fn on_the_shared_topic_a_claim_that_is_no_tenant_is_nobodys() {
    let long = "a".repeat(1_000);
    let names = [
        "../acme",
        "..",
        ".",
        "/",
        "acme/",
        "acme/../globex",
        "%2F",
        "%2e%2e%2facme",
        "acme\0",
        "\0",
        "acme\n",
        "acme ",
        " acme",
        "Acme",
        "ACME",
        "аcme",
        "acmе",
        "ａｃｍｅ",
        "acme\u{200b}",
        "\u{202e}emca",
        "tenant=acme",
        "acme.globex",
        "work.shared.acme",
        "tributary.outcomes.acme",
        "-acme",
        "007",
        "",
        &long,
    ];
    let claim = |name: &str, code| Attempt {
        what: "a claim",
        identity: &NOWHERE,
        topic: "jobs",
        job: tagged(name),
        headers: Vec::new(),
        owner: "unclaimed",
        code,
    };
    let mut attempts: Vec<Attempt> = names
        .iter()
        .map(|name| claim(name, ReasonCode::InvalidTenant))
        .collect();
    let unknown = ["unclaimed", "ghost", "shared", "dead-letters", "policies"];
    attempts.extend(unknown.map(|name| claim(name, ReasonCode::UnknownTenant)));
    refuse_all(attempts);
}

#[test]
fn what_is_no_name_of_a_tenant_stays_in_its_column() {
    let path = "../../costs/tenant=globex/x";
    let named = record(&job(&json!({"id": path, "tenant": "acme"})), Vec::new());
    let Decision::Admit(admitted_job) = decided(&NOWHERE, "jobs", &named).decision else {
        panic!("any text without control characters is an id")
    };
    assert_eq!(
        (admitted_job.tenant.as_str(), admitted_job.job_id.as_str()),
        ("acme", path)
    );
    for model in [
        "../m",
        "minilm/../bge",
        "minilm\0",
        "MINILM",
        "hf://sentence-transformers/x",
        "",
    ] {
        let asked = record(&job(&json!({"model": model, "tenant": "acme"})), Vec::new());
        let (outcome, code, _) = rejection(decided(&NOWHERE, "jobs", &asked));
        assert_eq!(
            (outcome.common.tenant.as_str(), code),
            ("acme", ReasonCode::UnknownModel),
            "`{model}`"
        );
    }
}

#[test]
fn headers_and_keys_name_nobody_and_choose_no_partition() {
    let headers = [
        "ce_source",
        "ce_subject",
        "ce_type",
        "ce_tenant",
        "tenant",
        "x-tenant",
        "partitionkey",
    ];
    let mut spoofed = record(
        &tagged("acme"),
        headers.map(|name| Header::text(name, "globex")).into(),
    );
    spoofed.key = Some("globex".into());
    spoofed.headers.push(Header::text("ce_source", "/tenants/globex"));
    let plain = record(&tagged("acme"), Vec::new());
    let [Decision::Admit(spoofed), Decision::Admit(plain)] =
        [spoofed, plain].map(|record| decided(&NOWHERE, "jobs", &record).decision)
    else {
        panic!("not admitted")
    };
    assert_eq!(spoofed, plain);
    assert_eq!(spoofed.origin.spread_over(16), plain.origin.spread_over(16));
}

#[test]
fn a_good_token_makes_its_tenant_the_owner() {
    for signer in Signer::TRUSTED {
        let headers = || bearer(&signer.signs(&claims_of("acme")));
        for job in [job(&json!({})), tagged("acme")] {
            assert_eq!(
                admitted(decided(&SHARED, "jobs", &record(&job, headers()))),
                "acme"
            );
            assert_eq!(
                admitted(decided(&EVERYWHERE, "jobs", &record(&job, headers()))),
                "acme"
            );
            assert_eq!(
                admitted(decided(&EVERYWHERE, "jobs.acme", &record(&job, headers()))),
                "acme"
            );
        }
    }
    let audiences = token_with("aud", json!(["another", "tributary"]));
    let shouted = vec![Header::text("Authorization", &format!("bearer {audiences}"))];
    assert_eq!(
        admitted(decided(&SHARED, "jobs", &record(&tagged("acme"), shouted))),
        "acme"
    );
}

#[test]
fn where_no_token_is_demanded_one_changes_nothing() {
    for (identity, topic) in [
        (&NOWHERE, "jobs"),
        (&NOWHERE, "jobs.acme"),
        (&SHARED, "jobs.acme"),
    ] {
        for token in [token_of("globex"), "rubbish".to_owned()] {
            let owner = admitted(decided(identity, topic, &record(&tagged("acme"), bearer(&token))));
            assert_eq!(owner, "acme", "on `{topic}`");
        }
    }
}

#[test]
fn a_token_that_proves_nothing_leaves_a_job_to_nobody() {
    use ReasonCode::{InvalidTenant, TokenExpired, TokenInvalid, TokenMissing};
    let with = |what, headers, code| Attempt {
        what,
        identity: &SHARED,
        topic: "jobs",
        job: tagged("acme"),
        headers,
        owner: "unclaimed",
        code,
    };
    let token = |what, token: String, code| with(what, bearer(&token), code);
    let good = token_of("acme");
    let [header, claims, signature] = good.split('.').collect::<Vec<_>>()[..] else {
        panic!("three parts")
    };
    let claims_of_globex = token_of("globex");
    let claims_of_globex = claims_of_globex.split('.').nth(1).unwrap();
    let signed_as = |header: &TokenHeader, key: &EncodingKey| {
        jsonwebtoken::encode(header, &claims_of("acme"), key).unwrap()
    };
    let changed = |change: &dyn Fn(&mut TokenHeader)| {
        let mut header = Signer::Ed.header();
        change(&mut header);
        signed_as(&header, &Signer::Ed.key())
    };
    let hmac = |alg, secret: &[u8], id: &str| {
        let header = TokenHeader {
            kid: Some(id.to_owned()),
            ..TokenHeader::new(alg)
        };
        signed_as(&header, &EncodingKey::from_secret(secret))
    };
    let public_key = DecodingKey::from_ed_pem(include_bytes!("keys/ed.pub.pem")).unwrap();
    let twice = [bearer(&good), bearer(&token_of("globex"))].concat();
    let long = "x".repeat(9_000);
    refuse_all(vec![
        with("no header", Vec::new(), TokenMissing),
        with(
            "a header of another name",
            vec![Header::text("token", &good)],
            TokenMissing,
        ),
        with("two tokens", twice, TokenInvalid),
        with(
            "a header without a value",
            vec![Header {
                name: "authorization".to_owned(),
                value: None,
            }],
            TokenInvalid,
        ),
        with(
            "another scheme",
            vec![Header::text("authorization", &format!("Basic {good}"))],
            TokenInvalid,
        ),
        with(
            "a token without a scheme",
            vec![Header::text("authorization", &good)],
            TokenInvalid,
        ),
        with("a scheme without a token", bearer(""), TokenInvalid),
        token(
            "a token with text after it",
            format!("{good} {good}"),
            TokenInvalid,
        ),
        token("a token with a line after it", format!("{good}\nx"), TokenInvalid),
        token(
            "a token with a fourth part",
            format!("{good}.{signature}"),
            TokenInvalid,
        ),
        token("a token of 9,000 bytes", long, TokenInvalid),
        token("rubbish", "a.b.c".to_owned(), TokenInvalid),
        token(
            "a token without a signature",
            format!("{header}.{claims}."),
            TokenInvalid,
        ),
        token("a token of two parts", format!("{header}.{claims}"), TokenInvalid),
        token(
            "the claims of another token",
            format!("{header}.{claims_of_globex}.{signature}"),
            TokenInvalid,
        ),
        token(
            "a signature that was cut",
            good[..good.len() - 4].to_owned(),
            TokenInvalid,
        ),
        token("`alg` none", forged(&json!({"alg": "none"}), ""), TokenInvalid),
        token(
            "`alg` None",
            forged(&json!({"alg": "None", "kid": "ed-1"}), ""),
            TokenInvalid,
        ),
        token(
            "`alg` none with a signature",
            forged(&json!({"alg": "none", "kid": "ed-1"}), signature),
            TokenInvalid,
        ),
        token(
            "no `alg`",
            forged(&json!({"kid": "ed-1"}), signature),
            TokenInvalid,
        ),
        token(
            "HS256 with a public key's text for a secret",
            hmac(Algorithm::HS256, include_bytes!("keys/rsa.pub.pem"), "rsa-1"),
            TokenInvalid,
        ),
        token(
            "HS256 with a public key's bytes for a secret",
            hmac(Algorithm::HS256, public_key.try_get_as_bytes().unwrap(), "ed-1"),
            TokenInvalid,
        ),
        token(
            "HS512 with an empty secret",
            hmac(Algorithm::HS512, b"", "ed-1"),
            TokenInvalid,
        ),
        token(
            "RS512, which is not taken, with a good key",
            signed_as(
                &TokenHeader {
                    kid: Some("rsa-1".to_owned()),
                    ..TokenHeader::new(Algorithm::RS512)
                },
                &Signer::Rsa.key(),
            ),
            TokenInvalid,
        ),
        token(
            "`alg` of one key and `kid` of another",
            changed(&|header| header.kid = Some("rsa-1".to_owned())),
            TokenInvalid,
        ),
        token(
            "another's key",
            Signer::Stranger.signs(&claims_of("acme")),
            TokenInvalid,
        ),
        token(
            "another's key under a good `kid`",
            signed_as(&Signer::Ed.header(), &Signer::Stranger.key()),
            TokenInvalid,
        ),
        token(
            "another's key in the token itself",
            signed_as(
                &TokenHeader {
                    jwk: Some(Signer::Stranger.jwk()),
                    ..Signer::Ed.header()
                },
                &Signer::Stranger.key(),
            ),
            TokenInvalid,
        ),
        token(
            "an unknown `kid`",
            changed(&|header| header.kid = Some("ed-2".to_owned())),
            TokenInvalid,
        ),
        token(
            "a `kid` that is a path",
            changed(&|header| header.kid = Some("../../dev/null".to_owned())),
            TokenInvalid,
        ),
        token(
            "no `kid` where the keys have one",
            changed(&|header| header.kid = None),
            TokenInvalid,
        ),
        token(
            "a `crit` extension",
            changed(&|header| header.crit = Some(vec!["b64".to_owned()])),
            TokenInvalid,
        ),
        token(
            "an empty `crit`",
            changed(&|header| header.crit = Some(Vec::new())),
            TokenInvalid,
        ),
        token("no `exp`", token_with("exp", Value::Null), TokenInvalid),
        token(
            "an `exp` that is a text",
            token_with("exp", json!("2099-01-01")),
            TokenInvalid,
        ),
        token("a negative `exp`", token_with("exp", json!(-1)), TokenInvalid),
        token(
            "expired",
            token_with("exp", json!(NOW_S - LEEWAY_S)),
            TokenExpired,
        ),
        token("expired long ago", token_with("exp", json!(0)), TokenExpired),
        token(
            "not yet valid",
            token_with("nbf", json!(NOW_S + LEEWAY_S + 1)),
            TokenInvalid,
        ),
        token(
            "an `nbf` that is a text",
            token_with("nbf", json!("now")),
            TokenInvalid,
        ),
        token(
            "another audience",
            token_with("aud", json!("another")),
            TokenInvalid,
        ),
        token(
            "other audiences",
            token_with("aud", json!(["another", "tributary2"])),
            TokenInvalid,
        ),
        token("no audience", token_with("aud", Value::Null), TokenInvalid),
        token(
            "an audience that is none",
            token_with("aud", json!([])),
            TokenInvalid,
        ),
        token(
            "another issuer",
            token_with("iss", json!("https://login.example.evil")),
            TokenInvalid,
        ),
        token("no issuer", token_with("iss", Value::Null), TokenInvalid),
        token("no tenant", token_with("tenant", Value::Null), TokenInvalid),
        token(
            "a tenant that is a list",
            token_with("tenant", json!(["acme"])),
            TokenInvalid,
        ),
        token(
            "a tenant that is a path",
            token_with("tenant", json!("../acme")),
            InvalidTenant,
        ),
        token(
            "a tenant in upper case",
            token_with("tenant", json!("Acme")),
            InvalidTenant,
        ),
        token("an empty tenant", token_with("tenant", json!("")), InvalidTenant),
    ]);
}

#[test]
fn a_good_token_reaches_its_own_tenant_only() {
    use ReasonCode::{TenantMismatch, TokenExpired, TokenMissing, UnknownTenant};
    let on = |what, identity: &'static Identity, topic, job, headers, owner, code| Attempt {
        what,
        identity,
        topic,
        job,
        headers,
        owner,
        code,
    };
    let (acme, globex) = (|| bearer(&token_of("acme")), || bearer(&token_of("globex")));
    let expired = bearer(&token_with("exp", json!(0)));
    refuse_all(vec![
        on(
            "a token under another tenant's tag",
            &SHARED,
            "jobs",
            tagged("globex"),
            acme(),
            "acme",
            TenantMismatch,
        ),
        on(
            "a replayed token under the reserved tag",
            &SHARED,
            "jobs",
            tagged("unclaimed"),
            acme(),
            "acme",
            TenantMismatch,
        ),
        on(
            "a token under a tag that is a path",
            &SHARED,
            "jobs",
            tagged("../globex"),
            acme(),
            "acme",
            TenantMismatch,
        ),
        on(
            "a token of an unknown tenant",
            &SHARED,
            "jobs",
            job(&json!({})),
            bearer(&token_of("ghost")),
            "unclaimed",
            UnknownTenant,
        ),
        on(
            "a token of the reserved tenant",
            &SHARED,
            "jobs",
            job(&json!({})),
            bearer(&token_of("unclaimed")),
            "unclaimed",
            UnknownTenant,
        ),
        on(
            "another's token on a tenant's topic",
            &EVERYWHERE,
            "jobs.acme",
            tagged("acme"),
            globex(),
            "unclaimed",
            TenantMismatch,
        ),
        on(
            "another's token and tag on a tenant's topic",
            &EVERYWHERE,
            "jobs.acme",
            tagged("globex"),
            globex(),
            "unclaimed",
            TenantMismatch,
        ),
        on(
            "a good token under another's tag on one's own topic",
            &EVERYWHERE,
            "jobs.acme",
            tagged("globex"),
            acme(),
            "acme",
            TenantMismatch,
        ),
        on(
            "no token on a tenant's topic",
            &EVERYWHERE,
            "jobs.acme",
            tagged("acme"),
            Vec::new(),
            "unclaimed",
            TokenMissing,
        ),
        on(
            "an expired token on a tenant's topic",
            &EVERYWHERE,
            "jobs.acme",
            tagged("acme"),
            expired,
            "unclaimed",
            TokenExpired,
        ),
    ]);
}

#[test]
fn a_token_is_good_until_its_end_and_the_leeway() {
    for (claim, seconds, is_good) in [
        ("exp", 1 - LEEWAY_S, true),
        ("exp", -LEEWAY_S, false),
        ("nbf", LEEWAY_S, true),
        ("nbf", LEEWAY_S + 1, false),
    ] {
        let token = token_with(claim, json!(NOW_S + seconds));
        let decided = decided(&SHARED, "jobs", &record(&tagged("acme"), bearer(&token)));
        assert_eq!(
            matches!(decided.decision, Decision::Admit(_)),
            is_good,
            "`{claim}` {seconds} s from now"
        );
    }
}

#[test]
fn a_backlog_outlives_its_tokens_only_by_the_clock_of_the_log() {
    const DAY_S: i64 = 24 * 60 * 60;
    let token = token_with("exp", json!(NOW_S - DAY_S));
    let stamped = |seconds: i64, stamped_by_log| Record {
        timestamp_ms: (NOW_S - DAY_S + seconds) * 1_000,
        stamped_by_log,
        ..record(&tagged("acme"), bearer(&token))
    };
    assert_eq!(admitted(decided(&SHARED, "jobs", &stamped(-1, true))), "acme");
    for (seconds, stamped_by_log) in [(-1, false), (LEEWAY_S, true), (LEEWAY_S, false)] {
        let (outcome, code, _) = rejection(decided(&SHARED, "jobs", &stamped(seconds, stamped_by_log)));
        assert_eq!(
            (outcome.common.tenant.as_str(), code),
            ("unclaimed", ReasonCode::TokenExpired)
        );
    }
    let mut claimed = stamped(0, false);
    claimed
        .headers
        .push(Header::text("ce_time", "2020-01-01T00:00:00Z"));
    assert_eq!(
        rejection(decided(&SHARED, "jobs", &claimed)).1,
        ReasonCode::TokenExpired
    );
}

#[test]
fn keys_rotate_side_by_side_and_a_key_that_is_taken_out_is_good_no_more() {
    let job = |signer: Signer| record(&tagged("acme"), bearer(&signer.signs(&claims_of("acme"))));
    let both = identity_of(Required::Shared, &jwks(&[Signer::Ed, Signer::Ec]));
    let new = identity_of(Required::Shared, &jwks(&[Signer::Ec]));
    for (identity, signer, is_good) in [
        (&both, Signer::Ed, true),
        (&both, Signer::Ec, true),
        (&new, Signer::Ec, true),
        (&new, Signer::Ed, false),
    ] {
        let decided = decided(identity, "jobs", &job(signer));
        assert_eq!(
            matches!(decided.decision, Decision::Admit(_)),
            is_good,
            "{}",
            signer.id()
        );
    }
}

#[test]
fn a_key_in_pem_has_no_name_and_takes_any_kid_but_one_algorithm() {
    let pems = [
        include_str!("keys/rsa.pub.pem"),
        include_str!("keys/ec.pub.pem"),
        include_str!("keys/ed.pub.pem"),
    ];
    for (own, pem) in pems.iter().enumerate() {
        let identity = identity_of(Required::Shared, pem);
        for (signed, signer) in Signer::TRUSTED.into_iter().enumerate() {
            let record = record(&tagged("acme"), bearer(&signer.signs(&claims_of("acme"))));
            let is_good = matches!(decided(&identity, "jobs", &record).decision, Decision::Admit(_));
            assert_eq!(is_good, own == signed, "a token of {}", signer.id());
        }
    }
}

#[test]
fn what_holds_no_public_key_is_refused_with_the_reason() {
    let jwk = |signer: Signer, key: &str, value: Value| {
        let mut jwk = serde_json::to_value(signer.jwk()).unwrap();
        jwk[key] = value;
        json!({ "keys": [jwk] }).to_string()
    };
    let two = include_str!("keys/ed.pub.pem").repeat(2);
    for (text, complaint) in [
        ("", "neither a public key in PEM"),
        ("{}", "missing field `keys`"),
        (r#"{"keys": []}"#, "no key for RS256"),
        (
            "-----BEGIN PUBLIC KEY-----\nrubbish\n-----END PUBLIC KEY-----",
            "no key for RS256",
        ),
        (include_str!("keys/ed.pem"), "a private key"),
        (&two, "for several, write a JWKS"),
        (
            r#"{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "a"}]}"#,
            "a symmetric key",
        ),
        (&jwk(Signer::Ed, "d", json!("c2VjcmV0")), "a private key"),
        (
            &jwk(Signer::Ed, "x", json!("c2hvcnQ")),
            "key 1 cannot be used: an EdDSA key is one of Ed25519",
        ),
        (&jwk(Signer::Ed, "x", json!("no base64!")), "key 1 cannot be used"),
        (&jwk(Signer::Ec, "x", json!("c2hvcnQ")), "a point on P-256"),
        (&jwk(Signer::Rsa, "n", json!("c2hvcnQ")), "at least 2048 bits"),
        (&jwk(Signer::Rsa, "use", json!("enc")), "no key for RS256"),
        (&jwk(Signer::Rsa, "alg", json!("RSA-OAEP")), "no key for RS256"),
        (
            &jwk(Signer::Rsa, "key_ops", json!(["encrypt"])),
            "no key for RS256",
        ),
        (&jwk(Signer::Ec, "crv", json!("P-521")), "no key for RS256"),
    ] {
        let refused = Keys::read(text).unwrap_err().to_string();
        assert!(refused.contains(complaint), "`{text:.60}`: {refused}");
    }
    let mut mixed: Value = serde_json::from_str(&jwks(&Signer::TRUSTED)).unwrap();
    mixed["keys"]
        .as_array_mut()
        .unwrap()
        .push(json!({"kty": "PQ", "x": "?"}));
    assert_eq!(
        Keys::read(&mixed.to_string()).unwrap().count(),
        3,
        "an unknown kind is passed over"
    );
}

/// A token of somebody with roles, where tokens tell of them.
fn token_of_user(tenant: Value, roles: Value) -> String {
    let mut claims = claims_with("tenant", tenant);
    claims["sub"] = json!("ada");
    if !roles.is_null() {
        claims["roles"] = roles;
    }
    Signer::Ed.signs(&claims)
}

static ROLES: LazyLock<Identity> = LazyLock::new(|| {
    let config = Config {
        roles_claim: Some("roles".to_owned()),
        ..config_of(Required::Everywhere)
    };
    Identity::new(&config, Keys::read(&jwks(&Signer::TRUSTED)).unwrap())
});

#[test]
fn where_tokens_tell_of_roles_only_a_submitter_has_jobs_run_and_only_those_of_its_tenant() {
    use ReasonCode::{NotPermitted, TenantMismatch, TokenInvalid};
    for roles in [
        json!(["submitter"]),
        json!(["admin", "submitter", "reader"]),
        json!("openid submitter"),
    ] {
        for topic in ["jobs", "jobs.acme"] {
            let token = token_of_user(json!("acme"), roles.clone());
            let decided = decided(&ROLES, topic, &record(&tagged("acme"), bearer(&token)));
            assert_eq!(
                decided.by.as_deref(),
                Some("a-submitter-submits-its-tenants-jobs"),
                "{roles}"
            );
            assert_eq!(audited(&decided).policy.as_deref(), decided.by.as_deref());
            assert_eq!(admitted(decided), "acme");
        }
    }
    let with = |what, job, tenant: Value, roles, owner, code| Attempt {
        what,
        identity: &ROLES,
        topic: "jobs",
        job,
        headers: bearer(&token_of_user(tenant, roles)),
        owner,
        code,
    };
    let of_acme = |what, roles, owner, code| with(what, tagged("acme"), json!("acme"), roles, owner, code);
    refuse_all(vec![
        of_acme("no claim of roles", Value::Null, "acme", NotPermitted),
        of_acme("no role", json!([]), "acme", NotPermitted),
        of_acme(
            "other roles",
            json!(["reader", "finance", "auditor"]),
            "acme",
            NotPermitted,
        ),
        of_acme("the role of the house", json!(["operator"]), "acme", NotPermitted),
        of_acme("a role in upper case", json!(["Submitter"]), "acme", NotPermitted),
        of_acme("a role with a space", json!([" submitter"]), "acme", NotPermitted),
        of_acme(
            "a role that only begins alike",
            json!("submitters"),
            "acme",
            NotPermitted,
        ),
        of_acme("a look-alike role", json!(["ѕubmitter"]), "acme", NotPermitted),
        of_acme(
            "a role by its name in Cedar",
            json!("Role::\"submitter\""),
            "acme",
            NotPermitted,
        ),
        of_acme("a role that is a number", json!(7), "unclaimed", TokenInvalid),
        of_acme(
            "a role in a list that is none",
            json!(["submitter", 7]),
            "unclaimed",
            TokenInvalid,
        ),
        of_acme(
            "roles as a table",
            json!({"submitter": true}),
            "unclaimed",
            TokenInvalid,
        ),
        with(
            "a submitter of another tenant",
            tagged("acme"),
            json!("globex"),
            json!(["submitter"]),
            "globex",
            TenantMismatch,
        ),
        with(
            "a submitter of no tenant",
            tagged("acme"),
            Value::Null,
            json!(["submitter", "operator"]),
            "unclaimed",
            TokenInvalid,
        ),
    ]);
}

#[test]
fn a_name_in_a_token_is_a_name_and_no_policy() {
    let forbid = "@id(\"not-ada\") forbid (principal == User::\"ada\", action, resource);";
    let access = format!("{DEFAULT}{forbid}");
    let sent_by = |name: &str| {
        let mut claims = claims_of("acme");
        claims["sub"] = json!(name);
        claims["roles"] = json!("submitter");
        let record = record(&tagged("acme"), bearer(&Signer::Ed.signs(&claims)));
        decided_under(&access, &ROLES, "jobs", &record)
    };
    for name in ["ada\" || true", "Ada", "User::\"ada\"", "ada\0", "", "acme"] {
        assert_eq!(admitted(sent_by(name)), "acme", "`{name}`");
    }
    let refused = sent_by("ada");
    assert_eq!(audited(&refused).policy.as_deref(), Some("not-ada"));
    let (outcome, code, message) = rejection(refused);
    assert_eq!(
        (outcome.common.tenant.as_str(), code),
        ("acme", ReasonCode::NotPermitted)
    );
    assert_eq!(
        message,
        "`ada` of tenant `acme`, in the role of submitter, may not have such a job run on `minilm`: policy `not-ada` forbids it"
    );
}

#[test]
fn a_policy_can_take_a_tenants_word_for_nothing() {
    let forbid = "@id(\"prove-it\") forbid (principal == Tenant::\"acme\", action == Action::\"submit\", resource) \
                  when { context.door == Door::\"shared\" && !context.has_token };";
    let access = format!("{DEFAULT}{forbid}");
    let sent = |identity: &Identity, topic: &str, headers| {
        decided_under(&access, identity, topic, &record(&tagged("acme"), headers))
    };
    assert_eq!(
        rejection(sent(&NOWHERE, "jobs", Vec::new())).1,
        ReasonCode::NotPermitted
    );
    assert_eq!(admitted(sent(&NOWHERE, "jobs.acme", Vec::new())), "acme");
    assert_eq!(admitted(sent(&SHARED, "jobs", bearer(&token_of("acme")))), "acme");
}

#[test]
fn an_answer_of_the_policies_is_not_taken_for_another_question() {
    let forbid = "@id(\"not-so-fast\") forbid (principal, action == Action::\"submit\", resource) \
                  when { context.priority == Priority::\"high\" && principal == Tenant::\"acme\" };";
    let permissions = Permissions::of(Arc::new(
        AccessPolicies::read(&format!("{DEFAULT}{forbid}")).unwrap(),
    ));
    let topic = TopicRef {
        name: TopicName::new("jobs").unwrap(),
        id: TopicId::from_bytes([7; 16]),
    };
    let source = &Partition {
        topic: Arc::new(topic),
        index: 1,
    };
    let in_force = InForce {
        policies: &policies(),
        identity: &NOWHERE,
        permissions: &permissions,
        quotas: &Quotas::default(),
    };
    for _ in 0..2 {
        for (tenant, priority, may) in [
            ("acme", "normal", true),
            ("acme", "high", false),
            ("globex", "high", true),
            ("acme", "low", true),
        ] {
            let record = &record(&job(&json!({"tenant": tenant, "priority": priority})), Vec::new());
            let decided = decide(Received { source, record }, in_force, NOW_MS);
            let is_admitted = matches!(decided.decision, Decision::Admit(_));
            assert_eq!(is_admitted, may, "{tenant} {priority}");
        }
    }
}
