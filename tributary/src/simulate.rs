//! `tributary simulate`: what the jobs of a lake would have waited and cost under another set of tenants.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    time::Duration,
};

use anyhow::{Context, ensure};
use processor::replay::{Recorded, Replay, replay, speed};
use rust_decimal::Decimal;
use schemas::{Action, ModelName, Tenant, Tenants};
use sink::RecordedJob;

use crate::{
    access,
    cli::{SimulateArgs, print},
    config::{Config, ModelSection},
    tenants,
};

/// Replays the lake under the set in force and under that of the file, and prints both beside what was recorded.
pub(crate) async fn run(config: &Config, args: &SimulateArgs) -> anyhow::Result<()> {
    access::permit(config, Action::Simulate)?;
    let lake = args.lake.as_deref().unwrap_or(&config.sink.url);
    let file = tenants::read(config, &args.file)?;
    let in_force = tenants::in_force_now(config).await?;
    let mut jobs = sink::recorded(lake, &config.sink.options).await?;
    let pool = &config.processor.pool;
    let is_of = |set: &Tenants, tenant: &Tenant| set.get(tenant).is_some_and(|policy| policy.pool == *pool);
    jobs.retain(|job| is_of(&in_force, &job.tenant) || is_of(&file, &job.tenant));
    let all: Vec<Recorded> = jobs.iter().map(recorded).collect();
    let speed = args.speed.or(speed(&all)).with_context(|| {
        format!(
            "no job of a tenant of pool `{pool}` ran, as far as `{lake}` says: there is nothing to replay"
        )
    })?;
    ensure!(speed > 0.0, "--speed must be more than 0");
    let how = Replay {
        speed,
        window_ms: config.processor.window_ms,
        window_tenants_max: config.processor.window_tenants_max,
    };
    let names = config.topics.names();
    let waits_under = |set: &Tenants| {
        let run: Vec<usize> = (0..jobs.len())
            .filter(|index| is_of(set, &jobs[*index].tenant))
            .collect();
        let of_set: Vec<Recorded> = run.iter().map(|index| all[*index].clone()).collect();
        let weight_of = |tenant: &Tenant| set.get(tenant).map_or(NonZeroU32::MIN, |policy| policy.weight);
        let mut waits = vec![None; jobs.len()];
        for (index, wait) in run.into_iter().zip(replay(&of_set, how, &names, weight_of)) {
            waits[index] = Some(wait);
        }
        waits
    };
    let replays = Replays {
        recorded: jobs
            .iter()
            .map(|job| Some(Duration::from_nanos(job.queue_time_ns)))
            .collect(),
        in_force: waits_under(&in_force),
        file: waits_under(&file),
    };
    print(&format!(
        "{} jobs, on a device that did {speed:.2} s of work a second while there was any; what they would have waited in pool \
         `{pool}`, median and 99th percentile, and cost\n",
        jobs.len()
    ))?;
    table(&jobs, &replays, &config.models_of(pool), &config.currency)
        .iter()
        .try_for_each(|line| print(line))
}

/// The waits of each job; none where the set has it in another pool, or not at all.
struct Replays {
    recorded: Vec<Option<Duration>>,
    in_force: Vec<Option<Duration>>,
    file: Vec<Option<Duration>>,
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

/// A line for each tenant, under a heading.
fn table(
    jobs: &[RecordedJob],
    replays: &Replays,
    models: &BTreeMap<ModelName, ModelSection>,
    currency: &str,
) -> Vec<String> {
    let heading = format!(
        "{:<16} {:>7} {:>17} {:>17} {:>17} {:>14} {:>14}",
        "tenant", "jobs", "recorded, s", "in force, s", "file, s", "billed", "at these prices"
    );
    let tenants: BTreeSet<&Tenant> = jobs.iter().map(|job| &job.tenant).collect();
    let line = |tenant: &Tenant| {
        let of: Vec<usize> = (0..jobs.len())
            .filter(|index| jobs[*index].tenant == *tenant)
            .collect();
        let waits = |waits: &[Option<Duration>]| {
            let waits: Option<Vec<Duration>> = of.iter().map(|index| waits[*index]).collect();
            waits.map_or("elsewhere".to_owned(), shown)
        };
        let billed: Decimal = of.iter().map(|index| jobs[*index].billed).sum();
        let bill = of
            .iter()
            .map(|index| bill(&jobs[*index], models))
            .sum::<Decimal>();
        format!(
            "{tenant:<16} {:>7} {:>17} {:>17} {:>17} {:>14} {:>14} {currency}",
            of.len(),
            waits(&replays.recorded),
            waits(&replays.in_force),
            waits(&replays.file),
            billed.round_dp(6).normalize(),
            bill.round_dp(6).normalize(),
        )
    };
    std::iter::once(heading)
        .chain(tenants.into_iter().map(line))
        .collect()
}

/// The median and the 99th percentile.
fn shown(mut waits: Vec<Duration>) -> String {
    waits.sort_unstable();
    let at = |hundredths: usize| waits[(waits.len() * hundredths).div_ceil(100).max(1) - 1].as_secs_f64();
    format!("{:.3} {:.3}", at(50), at(99))
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

    #[test]
    fn each_tenant_has_its_waits_and_its_bill_at_the_prices_of_now() {
        let job = |tenant: &str, device_time_ns| RecordedJob {
            tenant: Tenant::new(tenant).unwrap(),
            model: "minilm".to_owned(),
            submitted_at_ns: 0,
            queue_time_ns: 0,
            input_tokens: 10,
            device_time_ns,
            billed: Decimal::ONE,
        };
        let jobs = [
            job("acme", 1_000_000_000),
            job("globex", 500_000_000),
            job("acme", 1),
        ];
        let wait = |seconds| Some(Duration::from_secs(seconds));
        let replays = Replays {
            recorded: vec![wait(3), wait(1), wait(2)],
            in_force: vec![wait(3), wait(1), wait(2)],
            file: vec![wait(9), None, wait(1)],
        };
        let minilm = toml::from_str("source = 'x'\nprice_per_device_second = '0.5'").unwrap();
        let models = BTreeMap::from([(ModelName::new("minilm").unwrap(), minilm)]);
        let lines = table(&jobs, &replays, &models, "USD");
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(
            words(&lines[1]),
            [
                "acme", "2", "2.000", "3.000", "2.000", "3.000", "1.000", "9.000", "2", "0.5", "USD"
            ]
        );
        assert_eq!(
            words(&lines[2]),
            [
                "globex",
                "1",
                "1.000",
                "1.000",
                "1.000",
                "1.000",
                "elsewhere",
                "1",
                "0.25",
                "USD"
            ]
        );
    }
}
