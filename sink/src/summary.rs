//! What a lake says of its newest outcomes, tenant by tenant.

use std::{collections::BTreeMap, fmt};

use arrow_array::{Array, RecordBatch, cast::AsArray, types};
use rust_decimal::Decimal;
use schemas::tables::MONEY_SCALE;

use crate::{
    Error, Options, Store,
    read::{Wanted, read_outcomes},
};

/// What the outcomes of some time came to, by tenant.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    tenants: BTreeMap<String, Totals>,
    currency: String,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Totals {
    succeeded: u64,
    failed: u64,
    rejected: u64,
    reasons: BTreeMap<String, u64>,
    tokens: u64,
    truncated: u64,
    device_time_ns: u64,
    cost: Decimal,
}

/// Sums up the outcomes completed at or after `since_ms`, in milliseconds since 1970 UTC, in the lake at `url`.
///
/// # Errors
/// Where the lake cannot be read.
pub async fn summary(url: &str, options: &Options, since_ms: i64) -> Result<Summary, Error> {
    let store = Store::open(url, options)?;
    let wanted = Wanted {
        of_results: &[
            "status",
            "reason_code",
            "input_tokens",
            "truncated",
            "completed_at",
            "device_time_ns",
        ],
        of_costs: &["BilledCost", "BillingCurrency"],
    };
    let mut summary = Summary::default();
    read_outcomes(&store, wanted, |tenant, rows, bills| {
        summary.add(tenant, rows, bills, since_ms);
    })
    .await?;
    summary
        .tenants
        .retain(|_, totals| totals.succeeded + totals.failed + totals.rejected > 0);
    Ok(summary)
}

impl Summary {
    fn add(&mut self, tenant: &str, rows: &RecordBatch, bills: &RecordBatch, since_ms: i64) {
        let totals = self.tenants.entry(tenant.to_owned()).or_default();
        let status = rows["status"].as_string::<i32>();
        let reason = rows["reason_code"].as_string::<i32>();
        let tokens = rows["input_tokens"].as_primitive::<types::Int32Type>();
        let truncated = rows["truncated"].as_boolean();
        let completed = rows["completed_at"].as_primitive::<types::TimestampMicrosecondType>();
        let device = rows["device_time_ns"].as_primitive::<types::Int64Type>();
        let billed = bills["BilledCost"].as_primitive::<types::Decimal128Type>();
        let currency = bills["BillingCurrency"].as_string::<i32>();
        for row in (0..rows.num_rows()).filter(|row| completed.value(*row) >= since_ms * 1_000) {
            match status.value(row) {
                "succeeded" => totals.succeeded += 1,
                "failed" => totals.failed += 1,
                _ => totals.rejected += 1,
            }
            if reason.is_valid(row) {
                *totals.reasons.entry(reason.value(row).to_owned()).or_default() += 1;
            }
            if tokens.is_valid(row) {
                totals.tokens += u64::from(tokens.value(row).unsigned_abs());
                totals.truncated += u64::from(truncated.value(row));
            }
            totals.device_time_ns += device.value(row).unsigned_abs();
            totals.cost +=
                Decimal::from_i128_with_scale(billed.value(row), MONEY_SCALE.unsigned_abs().into());
            currency.value(row).clone_into(&mut self.currency);
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<12} {:>7} {:>10} {:>7} {:>9} {:>9} {:>10} {:>12} {:>15}",
            "tenant", "jobs", "succeeded", "failed", "rejected", "tokens", "truncated", "device time", "cost"
        )?;
        for (tenant, totals) in &self.tenants {
            writeln!(
                f,
                "{tenant:<12} {:>7} {:>10} {:>7} {:>9} {:>9} {:>10} {:>10} s {:>11} {}",
                totals.succeeded + totals.failed + totals.rejected,
                totals.succeeded,
                totals.failed,
                totals.rejected,
                totals.tokens,
                totals.truncated,
                format!("{:.3}", totals.device_time_ns as f64 / 1e9),
                totals.cost.round_dp(6),
                self.currency,
            )?;
            if !totals.reasons.is_empty() {
                let reasons: Vec<String> = totals
                    .reasons
                    .iter()
                    .map(|(code, jobs)| format!("{jobs} {code}"))
                    .collect();
                writeln!(f, "{:<12} {}", "", reasons.join(", "))?;
            }
        }
        Ok(())
    }
}
