//! What a lake says of the jobs that ran: whose each was, when it came, how long it waited, and what it took.

use std::collections::BTreeMap;

use arrow_array::{Array, RecordBatch, cast::AsArray, types};
use rust_decimal::Decimal;
use schemas::{Tenant, tables::MONEY_SCALE};

use crate::{
    Error, Options, Store,
    read::{Wanted, read_outcomes},
};

/// A job that ran, and what was billed for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedJob {
    /// Whose it was.
    pub tenant: Tenant,
    /// The model, as the job called it.
    pub model: String,
    /// When it was submitted, in nanoseconds since 1970 UTC: what its producer says, but no later than it was done.
    pub submitted_at_ns: u64,
    /// How long it waited for the device, in nanoseconds.
    pub queue_time_ns: u64,
    /// The tokens of its text.
    pub input_tokens: u32,
    /// Its share of the device, in nanoseconds.
    pub device_time_ns: u64,
    /// What it cost.
    pub billed: Decimal,
}

/// What a lake says of its jobs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recording {
    /// Those that a model saw, in no order.
    pub ran: Vec<RecordedJob>,
    /// How many of each tenant were rejected, by the word for the reason. Nothing tells how long they were.
    pub rejected: BTreeMap<(Tenant, String), u64>,
}

/// The jobs in the lake at `url`.
///
/// # Errors
/// Where the lake cannot be read.
pub async fn recorded(url: &str, options: &Options) -> Result<Recording, Error> {
    let store = Store::open_written(url, options).await?;
    let wanted = Wanted {
        of_results: &[
            "model",
            "submitted_at",
            "completed_at",
            "queue_time_ns",
            "input_tokens",
            "device_time_ns",
            "status",
            "reason_code",
        ],
        of_costs: &["BilledCost"],
    };
    let mut recording = Recording::default();
    read_outcomes(&store, wanted, |tenant, rows, bills| {
        if let Ok(tenant) = Tenant::new(tenant) {
            recording.ran.extend(ran(&tenant, rows, bills));
            for reason in rejected(rows) {
                *recording.rejected.entry((tenant.clone(), reason)).or_default() += 1;
            }
        }
    })
    .await?;
    Ok(recording)
}

fn rejected(rows: &RecordBatch) -> impl Iterator<Item = String> {
    let status = rows["status"].as_string::<i32>();
    let reason = rows["reason_code"].as_string::<i32>();
    let rejected = (0..rows.num_rows()).filter(move |row| status.value(*row) == "rejected");
    rejected.map(move |row| reason.value(row).to_owned())
}

fn ran(tenant: &Tenant, rows: &RecordBatch, bills: &RecordBatch) -> impl Iterator<Item = RecordedJob> {
    let model = rows["model"].as_string::<i32>();
    let submitted = rows["submitted_at"].as_primitive::<types::TimestampMicrosecondType>();
    let completed = rows["completed_at"].as_primitive::<types::TimestampMicrosecondType>();
    let queued = rows["queue_time_ns"].as_primitive::<types::Int64Type>();
    let tokens = rows["input_tokens"].as_primitive::<types::Int32Type>();
    let device = rows["device_time_ns"].as_primitive::<types::Int64Type>();
    let billed = bills["BilledCost"].as_primitive::<types::Decimal128Type>();
    let seen = (0..rows.num_rows()).filter(move |row| queued.is_valid(*row));
    seen.map(move |row| RecordedJob {
        tenant: tenant.clone(),
        model: model.value(row).to_owned(),
        submitted_at_ns: submitted_at_ns(submitted.value(row), completed.value(row)),
        queue_time_ns: queued.value(row).unsigned_abs(),
        input_tokens: tokens.value(row).unsigned_abs(),
        device_time_ns: device.value(row).unsigned_abs(),
        billed: Decimal::from_i128_with_scale(billed.value(row), MONEY_SCALE.unsigned_abs().into()),
    })
}

/// When a job was submitted, as its producer says it: not later than it was done, whatever he says.
fn submitted_at_ns(submitted_us: i64, completed_us: i64) -> u64 {
    let submitted_us = submitted_us.min(completed_us).max(0).unsigned_abs();
    submitted_us.saturating_mul(1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_claims_to_come_from_the_future_was_submitted_when_it_was_done() {
        const DONE_US: i64 = 1_790_000_000_000_000;
        assert_eq!(submitted_at_ns(DONE_US - 7, DONE_US), 1_789_999_999_999_993_000);
        // As of the year 9999, which does not fit into nanoseconds.
        assert_eq!(
            submitted_at_ns(253_402_300_799_000_000, DONE_US),
            1_790_000_000_000_000_000
        );
        assert_eq!(submitted_at_ns(-7, DONE_US), 0);
    }
}
