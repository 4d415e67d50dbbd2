//! `tributary simulate`: what the jobs of a lake would have waited and cost under another set of tenants, and which of them
//! would have been rejected.

mod fates;

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, ensure};
use processor::replay::{Recorded, Settings, speed};
use rust_decimal::Decimal;
use schemas::{Action, ModelName, ReasonCode, Tenant, Tenants};
use sink::{RecordedJob, Recording};

use crate::{
    access,
    cli::{SimulateArgs, print},
    config::{Config, ModelSection},
    tenants,
};
use fates::{Fate, Terms, fates};

/// Why a job is rejected in a replay. What else ingest decides is not decided again.
const QUOTAS: [ReasonCode; 2] = [ReasonCode::BudgetExhausted, ReasonCode::QueueFull];

/// Replays the lake under the set in force and under that of the file, and prints both beside what was recorded.
pub(crate) async fn run(config: &Config, args: &SimulateArgs) -> anyhow::Result<()> {
    access::permit(config, Action::Simulate)?;
    let lake = args.lake.as_deref().unwrap_or(&config.sink.url);
    let pool = &config.processor.pool;
    let mut file = tenants::read(config, &args.file)?;
    let mut in_force = tenants::in_force_now(config).await?;
    file.retain(|_, policy| policy.pool == *pool);
    in_force.retain(|_, policy| policy.pool == *pool);
    let Recording {
        ran: mut jobs,
        rejected,
    } = sink::recorded(lake, &config.sink.options).await?;
    jobs.retain(|job| in_force.contains_key(&job.tenant) || file.contains_key(&job.tenant));
    jobs.sort_by(|a, b| (a.submitted_at_ns, &a.tenant).cmp(&(b.submitted_at_ns, &b.tenant)));
    let recorded: Vec<Recorded> = jobs.iter().map(recorded).collect();
    let speed = args.speed.or(speed(&recorded)).with_context(|| {
        format!(
            "no job of a tenant of pool `{pool}` ran, as far as `{lake}` says: there is nothing to replay"
        )
    })?;
    ensure!(speed > 0.0, "--speed must be more than 0");
    let device = Settings {
        speed,
        window_ms: config.processor.window_ms,
        window_tenants_max: config.processor.window_tenants_max,
    };
    let (names, models) = (config.topics.names(), config.models_of(pool));
    let costs: Vec<Decimal> = jobs.iter().map(|job| bill(job, &models)).collect();
    let replayed = |tenants: &Tenants| {
        let terms = Terms {
            tenants,
            device,
            currency: &config.currency,
            names: &names,
        };
        ends(&jobs, &costs, &fates(&recorded, &costs, terms))
    };
    print(&format!(
        "{} jobs of pool `{pool}`, on a device that does {speed:.2} s of work a second: how many run, how long they wait for it, what\n\
         they cost, and how many are rejected\n",
        jobs.len()
    ))?;
    let sets = [
        ("recorded", as_recorded(&jobs, &rejected)),
        ("in force", replayed(&in_force)),
        ("file", replayed(&file)),
    ];
    table(&sets, &config.currency)
        .iter()
        .try_for_each(|line| print(line))
}

fn recorded(job: &RecordedJob) -> Recorded {
    Recorded {
        tenant: job.tenant.clone(),
        submitted_at_ns: job.submitted_at_ns,
        queue_time_ns: job.queue_time_ns,
        input_tokens: job.input_tokens,
        device_time_ns: job.device_time_ns,
    }
}

/// What became of the jobs of one tenant.
#[derive(Debug, Clone, Default, PartialEq)]
struct Ends {
    /// Of those that ran.
    waits: Vec<Duration>,
    /// Theirs together.
    cost: Decimal,
    /// How many were rejected, and why.
    rejected: BTreeMap<&'static str, u64>,
}

/// What became of the jobs of each tenant, by the cost and the fate of each job; nothing of those that have none.
fn ends(jobs: &[RecordedJob], costs: &[Decimal], fates: &[Option<Fate>]) -> BTreeMap<Tenant, Ends> {
    let mut of_tenants: BTreeMap<Tenant, Ends> = BTreeMap::new();
    for ((job, cost), fate) in jobs.iter().zip(costs).zip(fates) {
        let Some(fate) = fate else { continue };
        let ends = of_tenants.entry(job.tenant.clone()).or_default();
        match fate {
            Fate::Ran(waited) => {
                ends.waits.push(*waited);
                ends.cost += cost;
            }
            Fate::Rejected(code) => *ends.rejected.entry(code.as_str()).or_default() += 1,
        }
    }
    of_tenants
}

/// What became of `jobs`, which ran, beside those that were rejected then.
fn as_recorded(jobs: &[RecordedJob], rejected: &BTreeMap<(Tenant, String), u64>) -> BTreeMap<Tenant, Ends> {
    let billed: Vec<Decimal> = jobs.iter().map(|job| job.billed).collect();
    let ran = |job: &RecordedJob| Some(Fate::Ran(Duration::from_nanos(job.queue_time_ns)));
    let ran: Vec<Option<Fate>> = jobs.iter().map(ran).collect();
    let mut of_tenants = ends(jobs, &billed, &ran);
    for (tenant, ends) in &mut of_tenants {
        let of_code = |code: ReasonCode| {
            let key = (tenant.clone(), code.as_str().to_owned());
            Some((code.as_str(), *rejected.get(&key)?))
        };
        ends.rejected = QUOTAS.into_iter().filter_map(of_code).collect();
    }
    of_tenants
}

/// A line for each tenant of the first set, and each set, under a heading.
fn table(sets: &[(&str, BTreeMap<Tenant, Ends>); 3], currency: &str) -> Vec<String> {
    let cost = format!("cost, {currency}");
    let [budget, queue] = QUOTAS.map(ReasonCode::as_str);
    let heading = format!(
        "{:<16} {:<8} {:>8} {:>9} {:>9} {cost:>14} {budget:>16} {queue:>10}",
        "tenant", "set", "ran", "median, s", "99th, s"
    );
    let line = |tenant: &Tenant, set: &str, ends: Option<&Ends>| {
        let tenant = tenant.as_str();
        let Some(ends) = ends else {
            return format!("{tenant:<16} {set:<8} elsewhere");
        };
        let (median, last) = percentiles(ends.waits.clone());
        let cost = ends.cost.round_dp(6).normalize();
        let [budget, queue] =
            [budget, queue].map(|code| ends.rejected.get(code).copied().unwrap_or_default());
        format!(
            "{tenant:<16} {set:<8} {:>8} {median:>9} {last:>9} {cost:>14} {budget:>16} {queue:>10}",
            ends.waits.len()
        )
    };
    let lines = sets[0].1.keys().flat_map(|tenant| {
        sets.iter()
            .map(move |(set, ends)| line(tenant, set, ends.get(tenant)))
    });
    std::iter::once(heading).chain(lines).collect()
}

/// The median and the 99th percentile, in seconds.
fn percentiles(mut waits: Vec<Duration>) -> (String, String) {
    waits.sort_unstable();
    let at = |hundredths: usize| {
        let index = (waits.len() * hundredths).div_ceil(100).checked_sub(1);
        index.map_or("-".to_owned(), |index| {
            format!("{:.3}", waits[index].as_secs_f64())
        })
    };
    (at(50), at(99))
}

/// What `job` costs at the prices of `models`; as it was billed where its model is none of them.
fn bill(job: &RecordedJob, models: &BTreeMap<ModelName, ModelSection>) -> Decimal {
    let model = ModelName::new(&job.model).ok();
    match model.and_then(|model| models.get(&model)) {
        Some(model) => {
            model.price_per_device_second * Decimal::from_i128_with_scale(job.device_time_ns.into(), 9)
        }
        None => job.billed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> Tenant {
        Tenant::new(name).unwrap()
    }

    /// A job that waited so long, ran and was billed 1.
    fn job(name: &str, queue_time_s: u64, device_time_ns: u64) -> RecordedJob {
        RecordedJob {
            tenant: tenant(name),
            model: "minilm".to_owned(),
            submitted_at_ns: 0,
            queue_time_ns: queue_time_s * 1_000_000_000,
            input_tokens: 10,
            device_time_ns,
            billed: Decimal::ONE,
        }
    }

    #[test]
    fn a_job_costs_what_the_prices_of_now_make_of_it_and_what_it_did_where_its_model_has_none() {
        let minilm = toml::from_str("source = 'x'\nprice_per_device_second = '0.5'").unwrap();
        let models = BTreeMap::from([(ModelName::new("minilm").unwrap(), minilm)]);
        assert_eq!(bill(&job("acme", 0, 500_000_000), &models), Decimal::new(25, 2));
        assert_eq!(bill(&job("acme", 0, 500_000_000), &BTreeMap::new()), Decimal::ONE);
    }

    #[test]
    fn each_tenant_has_its_waits_its_cost_and_what_was_rejected_of_it_under_each_set() {
        let jobs = [job("acme", 3, 0), job("globex", 1, 0), job("acme", 2, 0)];
        let rejected = BTreeMap::from([
            ((tenant("acme"), "queue_full".to_owned()), 7),
            ((tenant("acme"), "empty_input".to_owned()), 5),
            ((tenant("initech"), "queue_full".to_owned()), 9),
        ]);
        let costs = [Decimal::new(5, 1), Decimal::new(25, 2), Decimal::new(15, 1)];
        let ran = |seconds| Some(Fate::Ran(Duration::from_secs(seconds)));
        let exhausted = Some(Fate::Rejected(ReasonCode::BudgetExhausted));
        let sets = [
            ("recorded", as_recorded(&jobs, &rejected)),
            ("in force", ends(&jobs, &costs, &[exhausted, ran(4), ran(9)])),
            ("file", ends(&jobs, &costs, &[exhausted, None, exhausted])),
        ];
        let lines = table(&sets, "USD");
        let mut rows = lines.iter().filter(|line| !line.ends_with("elsewhere"));
        assert!(
            rows.all(|row| row.len() == lines[0].len() && row.len() <= 120),
            "{lines:#?}"
        );
        let lines: Vec<Vec<&str>> = lines
            .iter()
            .map(|line| line.split_whitespace().collect())
            .collect();
        let expected = [
            "tenant set ran median, s 99th, s cost, USD budget_exhausted queue_full",
            "acme recorded 2 2.000 3.000 2 0 7",
            "acme in force 1 9.000 9.000 1.5 1 0",
            "acme file 0 - - 0 2 0",
            "globex recorded 1 1.000 1.000 1 0 0",
            "globex in force 1 4.000 4.000 0.25 0 0",
            "globex file elsewhere",
        ];
        assert_eq!(lines, expected.map(|line| line.split(' ').collect::<Vec<_>>()));
    }
}
