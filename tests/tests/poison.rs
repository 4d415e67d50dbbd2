//! Jobs that spoil their micro-batch, or kill the process that runs them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, path::Path, process::Command};

use processor::DEATHS_MAX;
use schemas::{
    AdmittedJob, AdmittedJobs, JobId, ModelName, Origin, Outcome, Outcomes, Pool, Priority, Record as _,
    Tenant, TopicId, TopicName, TopicNames,
};
use topics::{Append, Event, Subscription, TopicPattern, TopicSpec, Topics as _, local::LocalTopics};

const JOBS: i64 = 300;
/// Where they stand among the others, and what they do. Two of those that kill share a micro-batch, as like as not.
const POISON: [(i64, &str); 6] = [
    (3, "abort"),
    (4, "memory"),
    (60, "panic"),
    (61, "bad tensor"),
    (200, "abort"),
    (JOBS - 1, "memory"),
];
const KILLERS: u32 = 4;

fn names() -> TopicNames {
    TopicNames::new(&TopicName::new("jobs").unwrap(), "tributary.").unwrap()
}

fn tenants() -> [Tenant; 2] {
    ["acme", "globex"].map(|name| Tenant::new(name).unwrap())
}

fn job(offset: i64) -> AdmittedJob {
    let poison = POISON.iter().find(|(at, _)| *at == offset);
    AdmittedJob {
        origin: Origin {
            topic: TopicName::new("jobs").unwrap(),
            topic_id: TopicId::from_bytes([7; 16]),
            partition: 0,
            offset,
        },
        tenant: tenants()[usize::try_from(offset % 2).unwrap()].clone(),
        job_id: JobId::new(offset.to_string()).unwrap(),
        model: ModelName::new("obedient").unwrap(),
        input: poison.map_or_else(|| format!("text {offset}"), |(_, kind)| (*kind).to_owned()),
        text_pair: None,
        priority: None,
        submitted_at_ms: 0,
        deadline_ms: None,
        labels: BTreeMap::new(),
        trace_id: None,
    }
}

async fn produce(path: &Path) {
    let topics = LocalTopics::open(path).unwrap();
    let spec = |name| TopicSpec::new(name, 2);
    let mut specs = vec![spec(names().dead_letters())];
    for tenant in tenants() {
        specs.extend([
            spec(names().work(&Pool::default(), Priority::Normal, &tenant)),
            spec(names().outcomes(&tenant)),
        ]);
    }
    topics.ensure(&specs).await.unwrap();
    let append = |job: AdmittedJob| Append {
        topic: names().work(&Pool::default(), Priority::Normal, &job.tenant),
        partition: Some(job.origin.spread_over(2)),
        timestamp_ms: 0,
        key: None,
        value: Some(AdmittedJobs(vec![job]).encode().into()),
        headers: Vec::new(),
    };
    let appends = (0..JOBS).map(job).map(append).collect();
    for appended in topics.appender().await.unwrap().append(appends).await {
        appended.unwrap();
    }
}

/// Of each job in the topics of outcomes: its offset, and why it did not succeed.
async fn outcomes(path: &Path) -> Vec<(i64, Option<&'static str>)> {
    let topics = LocalTopics::open(path).unwrap();
    let subscription = Subscription::to(vec![TopicPattern::Under(names().outcomes_prefix())]);
    let wanted = topics.lag("reader", &subscription).await.unwrap();
    let mut reader = topics.reader("reader", &subscription).await.unwrap();
    let (mut records, mut outcomes) = (0, Vec::new());
    while records < wanted {
        if let Event::Records(chunk) = reader.next().await.unwrap() {
            records += chunk.records.len() as u64;
            for record in chunk.records {
                let value = record.value.unwrap();
                let ended = |outcome: Outcome<'_>| {
                    let reason = outcome.row.verdict.reason().map(|reason| reason.code.as_str());
                    (outcome.row.origin_offset, reason)
                };
                outcomes.extend(Outcomes::decode(&value).unwrap().unpack().map(ended));
            }
        }
    }
    outcomes
}

#[tokio::test]
async fn a_job_that_kills_the_process_costs_three_restarts_and_no_other_job() {
    let folder = tempfile::tempdir().unwrap();
    let (file, attempts) = (folder.path().join("topics.redb"), folder.path().join("attempts"));
    produce(&file).await;
    let mut deaths = 0;
    loop {
        let mut processor = Command::new(env!("CARGO_BIN_EXE_poisoned"));
        processor
            .arg("--topics")
            .arg(&file)
            .arg("--attempts")
            .arg(&attempts);
        let ended = processor.output().unwrap();
        if ended.status.success() {
            break;
        }
        deaths += 1;
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.code().is_none(), "it ended of itself: {said}");
        assert!(deaths <= KILLERS * (DEATHS_MAX + 1), "{deaths} deaths: {said}");
    }
    assert!(
        deaths >= KILLERS * DEATHS_MAX,
        "{deaths} deaths: was anybody killed?"
    );

    let mut outcomes = outcomes(&file).await;
    outcomes.sort_unstable();
    let offsets: Vec<i64> = outcomes.iter().map(|(offset, _)| *offset).collect();
    assert_eq!(offsets, (0..JOBS).collect::<Vec<_>>(), "each job has one outcome");
    for (offset, reason) in outcomes {
        let poison = POISON.iter().find(|(at, _)| *at == offset);
        let expected = poison.map(|(_, kind)| match *kind {
            "abort" | "memory" => "inference_crashed",
            _ => "inference_failed",
        });
        assert_eq!(reason, expected, "job {offset}");
    }
}
