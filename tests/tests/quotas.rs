//! Tenants send more than their rate, their budget and their queue let through, while processors are killed and others join.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use stories::{
    Producer,
    cluster::{Cluster, Instance, TENANTS, text, wait_for},
};

const INGESTS: [Instance; 2] = [("ingest", 0), ("ingest", 1)];
const PROCESSORS: [Instance; 3] = [("processor", 0), ("processor", 1), ("processor", 2)];
/// In work units: so much a second, and so much at once.
const RATE: u64 = 50_000;
const BURST: u64 = 25_000;
/// What the rate lets through in some 40 s.
const RATED_JOBS: u64 = 1_200;
/// More than half of what a record of work may have: a record is a job, and its work is known from the lake.
const TEXT_BYTES: usize = 4_500;
/// How far an estimate of such a record's work may be off, of what it is. Unsettled is no more of it than a burst.
const ESTIMATE_OFF_MAX: f64 = 0.05;
/// Between the moment that a job leaves its lane and the one that the lake tells, on a machine that does much else.
const WINDOW_US_MAX: u64 = 2_000_000;
/// So that money is counted in microseconds of device time.
const MICROSECOND_FOR_1: &str = "'1000000'";
const BUDGETED_JOBS_PER_S: u64 = 100;
const QUEUE_RECORDS_MAX: u64 = 100;
/// What ingest decides as one: a chunk, which is at most a mebibyte of records.
const CHUNK_RECORDS_MAX: u64 = (1 << 20) / TEXT_BYTES as u64;
/// So many records may wait when a budget is spent.
const BEYOND_BUDGET_MAX: u64 = INGESTS.len() as u64 * (QUEUE_RECORDS_MAX + CHUNK_RECORDS_MAX);

#[test]
fn a_rate_and_a_budget_are_met_by_three_processors_and_two_ingests_while_two_are_killed_and_one_joins() {
    let mut cluster = Cluster::servers("passthrough:384");
    let config = cluster.folder.path().join("tributary.toml");
    let whole = std::fs::read_to_string(&config).unwrap();
    let own = whole[..whole.find("[tenants.").unwrap()].replace("'0.000125'", MICROSECOND_FOR_1);
    // A group deals its partitions out in the order of their names: with as many of `jobs` as of all others, each ingest has
    // some of them.
    let own = own.replace("[topics]", "[topics]\njobs_partitions = 24");
    std::fs::write(&config, own).unwrap();
    apply(&cluster, u64::MAX);
    for instance in INGESTS
        .into_iter()
        .chain(PROCESSORS[..2].iter().copied())
        .chain([("sink", 0)])
    {
        cluster.spawn(instance, &[]);
    }
    let jobs = cluster.folder.path().join("jobs.jsonl");
    write_jobs(&jobs);
    cluster.produce_lines("jobs.acme", &jobs);
    let producer = Producer::start(&cluster, &["globex"], BUDGETED_JOBS_PER_S, TEXT_BYTES);
    for processor in &PROCESSORS[..2] {
        goes_on(&cluster, *processor);
    }

    cluster.spawn(PROCESSORS[2], &[]);
    goes_on(&cluster, PROCESSORS[2]);
    cluster.kill(PROCESSORS[0]);
    cluster.spawn(PROCESSORS[0], &[]);
    goes_on(&cluster, PROCESSORS[0]);
    let budget = spent(&cluster, INGESTS[0]) * 6 / 5;
    apply(&cluster, budget);
    wait_for("both ingests to know that the budget is spent", || {
        INGESTS.iter().all(|ingest| rejected(&cluster, *ingest) > 0)
    });
    // Whoever takes its partitions over knows what was spent there.
    cluster.kill(PROCESSORS[1]);
    cluster.spawn(PROCESSORS[1], &[]);
    let ran = &cluster.query_lake("SELECT count(*) FROM results WHERE tenant = 'acme'")[0][0];
    assert!(
        ran.as_u64().unwrap() < RATED_JOBS,
        "a processor was killed too late"
    );
    wait_for(
        "more jobs than could run if what was spent were forgotten",
        || {
            let rejected = INGESTS.iter().map(|ingest| rejected(&cluster, *ingest));
            rejected.sum::<u64>() > 2 * BEYOND_BUDGET_MAX
        },
    );
    let jobs = RATED_JOBS + producer.end();
    cluster.wait_for_outcomes(jobs);
    let billed =
        cluster.query_lake("SELECT floor(sum(BilledCost))::BIGINT FROM costs WHERE tenant = 'globex'");
    wait_for(
        "both ingests to know what was billed, to the last microsecond",
        || {
            INGESTS
                .iter()
                .all(|ingest| spent(&cluster, *ingest) == billed[0][0])
        },
    );
    cluster.end();
    let (seen, verified) = (cluster.read_lake(), cluster.verify(&["--data"]));
    assert!(verified.status.success(), "{}", text(&verified.stdout));
    for count in ["results", "costs", "joined", "distinct_origins"] {
        assert_eq!(seen["duckdb"][count], jobs, "{count}: {seen}");
    }
    assert_eq!(seen["duckdb"]["unbalanced_batches"], 0);
    the_rate_is_met(&cluster);
    the_budget_is_met(&cluster, budget);
}

/// Behind the last record of a partition stands the marker of the transaction that it came in, which nobody commits beyond.
#[test]
fn a_queue_of_one_record_lets_the_next_job_in_when_the_one_before_is_done() {
    const JOBS: u64 = 3;
    let (ingest, tenant) = (INGESTS[0], TENANTS[4]);
    let mut cluster = Cluster::servers("passthrough:384");
    let config = cluster.folder.path().join("tributary.toml");
    // The tenant is the last thing in it.
    let limited = std::fs::read_to_string(&config).unwrap() + "queue_records_max = 1\n";
    std::fs::write(&config, limited).unwrap();
    for instance in [ingest, PROCESSORS[0], ("sink", 0)] {
        cluster.spawn(instance, &[]);
    }
    let file = cluster.folder.path().join("job.jsonl");
    for number in 1..=JOBS {
        let job = serde_json::json!({"id": number.to_string(), "tenant": tenant, "model": "minilm", "input": "one"});
        std::fs::write(&file, job.to_string() + "\n").unwrap();
        cluster.produce_lines(&format!("jobs.{tenant}"), &file);
        cluster.wait_for_outcomes(number);
        let waiting = format!("tributary_ingest_queue_records{{tenant=\"{tenant}\"}}");
        wait_for("the queue to be empty", || cluster.metric(ingest, &waiting) == 0);
    }
    let succeeded = cluster.query_lake("SELECT count(*) FROM results WHERE status = 'succeeded'");
    assert_eq!(succeeded[0][0], JOBS);
    cluster.end();
}

/// What ran in any time is no more than the bound of ARCHITECTURE.md allows, and on the whole no less than half of the rate,
/// of which each processor that was killed took its part away for a while.
fn the_rate_is_met(cluster: &Cluster) {
    let ran = cluster.query_lake(
        "SELECT epoch_us(completed_at), x_work_units FROM results JOIN costs USING (tenant, origin_topic_id, origin_partition, origin_offset) \
         WHERE tenant = 'acme' AND status = 'succeeded' ORDER BY completed_at",
    );
    let ran: Vec<[u64; 2]> = serde_json::from_value(ran).unwrap();
    assert_eq!(ran.len() as u64, RATED_JOBS);
    // What a bucket holds that leaks at the rate: the most that ran in any time beyond what the rate lets through in it.
    let (mut level, mut most, mut before_us) = (0.0_f64, 0.0_f64, 0);
    for [at_us, work] in &ran {
        level = (level - through(at_us - before_us)).max(0.0) + *work as f64;
        (most, before_us) = (most.max(level), *at_us);
    }
    let largest = ran.iter().map(|[_, work]| *work).max().unwrap() as f64;
    let (processors, starts) = (PROCESSORS.len() as f64, PROCESSORS.len() as f64 + 2.0);
    let each = largest + ESTIMATE_OFF_MAX * BURST as f64;
    let bound = through(WINDOW_US_MAX) + BURST as f64 + (processors + starts) * each;
    let all: u64 = ran.iter().map(|[_, work]| work).sum();
    let took_us = ran.last().unwrap()[0] - ran[0][0];
    assert!(most <= bound, "{most} units ran beyond the rate, and {bound} may");
    assert!(
        all as f64 > through(took_us) / 2.0,
        "{all} units took {took_us} us"
    );
}

/// How many work units the rate lets through in so long.
fn through(us: u64) -> f64 {
    RATE as f64 * us as f64 / 1e6
}

/// What ran when the budget was spent are no more records than may have waited then.
fn the_budget_is_met(cluster: &Cluster, budget: u64) {
    let beyond = cluster.query_lake(&format!(
        "SELECT count(*) FROM (SELECT status, sum(BilledCost) OVER (ORDER BY completed_at ROWS UNBOUNDED PRECEDING EXCLUDE CURRENT ROW) \
         AS spent FROM results JOIN costs USING (tenant, origin_topic_id, origin_partition, origin_offset) WHERE tenant = 'globex') \
         WHERE status = 'succeeded' AND spent >= {budget}"
    ));
    let beyond = beyond[0][0].as_u64().unwrap();
    assert!(
        beyond <= BEYOND_BUDGET_MAX,
        "{beyond} jobs ran beyond the budget, and {BEYOND_BUDGET_MAX} may"
    );
}

/// Puts tenants in force: `acme` has a rate, `globex` a budget for a day. More than half of the partitions are those of `acme`,
/// so that it is never all at one processor.
fn apply(cluster: &Cluster, budget: u64) {
    let file = cluster.folder.path().join("tenants.toml");
    let set = format!(
        "[tenants.acme]\npartitions = 12\n\
         rate = {{ work_units_per_s = {RATE}, burst_work_units = {BURST} }}\n\
         [tenants.globex]\npartitions = 6\n\
         budget = {{ per_day = '{budget}' }}\nqueue_records_max = {QUEUE_RECORDS_MAX}\n"
    );
    std::fs::write(&file, set).unwrap();
    let applied = cluster
        .tributary(&["tenants", "apply"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(applied.status.success(), "{}", text(&applied.stderr));
}

fn write_jobs(file: &std::path::Path) {
    let job = |number: u64| {
        let input = format!("{number:.<TEXT_BYTES$}");
        serde_json::json!({"id": number.to_string(), "tenant": "acme", "model": "minilm", "input": input})
            .to_string()
            + "\n"
    };
    std::fs::write(file, (0..RATED_JOBS).map(job).collect::<String>()).unwrap();
}

/// How many jobs `ingest` has rejected because the budget was spent.
fn rejected(cluster: &Cluster, ingest: Instance) -> u64 {
    let metric = "tributary_ingest_rejected_total{tenant=\"globex\",reason_code=\"budget_exhausted\"}";
    cluster.metric(ingest, metric)
}

/// In microseconds of device time, as `ingest` knows it.
fn spent(cluster: &Cluster, ingest: Instance) -> u64 {
    cluster.metric(ingest, "tributary_ingest_spent{tenant=\"globex\"")
}

/// Waits until `processor` has done more than it had.
fn goes_on(cluster: &Cluster, processor: Instance) {
    let done = || cluster.metric(processor, "tributary_processor_outcomes_total");
    let before = done();
    wait_for(&format!("{processor:?} to do more"), || done() > before + 20);
}
