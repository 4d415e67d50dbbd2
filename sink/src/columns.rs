//! Outcomes as columns: the result rows and the cost rows are two projections of the same values.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, BooleanArray, Decimal128Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
    builder::{Float32Builder, ListBuilder, MapBuilder, MapFieldNames, StringBuilder},
};
use arrow_schema::Field;
use rust_decimal::Decimal;
use schemas::{
    DeviceShare, Outcome, Run, Verdict,
    tables::{self, DECIMAL_PRECISION, MONEY_SCALE, QUANTITY_SCALE},
};

const MILLIS_PER_HOUR: i64 = 3_600_000;
/// 10 to the power of [`QUANTITY_SCALE`]: nanoseconds of a second.
const QUANTITY_ONE: i128 = 1_000_000_000;

/// The rows of `results`, one an outcome.
pub(crate) fn results(outcomes: &[Outcome]) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        strings(outcomes, |outcome| outcome.job_id.as_str()),
        strings(outcomes, |outcome| &outcome.model),
        Arc::new(StringArray::from_iter(
            outcomes
                .iter()
                .map(|o| o.run.as_ref().map(|run| run.model_digest.to_string())),
        )),
        Arc::new(StringArray::from_iter(
            outcomes
                .iter()
                .map(|o| o.run.as_ref().map(|run| run.task.as_str())),
        )),
        strings(outcomes, |outcome| outcome.verdict.status()),
        Arc::new(StringArray::from_iter(
            outcomes
                .iter()
                .map(|o| o.verdict.reason().map(|why| why.code.as_str())),
        )),
        Arc::new(StringArray::from_iter(
            outcomes
                .iter()
                .map(|o| o.verdict.reason().map(|why| why.message.as_str())),
        )),
        embeddings(outcomes),
        Arc::new(Int32Array::from_iter(
            outcomes.iter().map(|o| o.run.as_ref().map(input_tokens)),
        )),
        Arc::new(BooleanArray::from_iter(
            outcomes.iter().map(|o| o.run.as_ref().map(|run| run.truncated)),
        )),
        times(outcomes, |outcome| outcome.submitted_at_ms),
        times(outcomes, |outcome| outcome.completed_at_ms),
        Arc::new(Int64Array::from_iter(
            outcomes
                .iter()
                .map(|o| o.run.as_ref().map(|run| signed(run.queue_time_ns))),
        )),
        integers(outcomes, |outcome| signed(outcome.cost.device_time_ns())),
        labels(outcomes),
        strings(outcomes, |outcome| outcome.origin.topic.as_str()),
        Arc::new(Int32Array::from_iter_values(
            outcomes.iter().map(|o| o.origin.partition),
        )),
        integers(outcomes, |outcome| outcome.origin.offset),
        Arc::new(StringArray::from_iter(
            outcomes.iter().map(|o| o.trace_id.as_deref()),
        )),
        topic_ids(outcomes),
    ];
    RecordBatch::try_new(tables::results(), columns).expect("the columns are those of the schema")
}

/// The rows of `costs`, one an outcome.
pub(crate) fn costs(outcomes: &[Outcome]) -> RecordBatch {
    let billed = money(outcomes);
    let columns: Vec<ArrayRef> = vec![
        Arc::clone(&billed),
        billed,
        strings(outcomes, |outcome| &outcome.cost.currency),
        times(outcomes, |outcome| hour_of(outcome.completed_at_ms)),
        times(outcomes, |outcome| {
            hour_of(outcome.completed_at_ms) + MILLIS_PER_HOUR
        }),
        strings(outcomes, |_| "Usage"),
        Arc::new(StringArray::from_iter_values(outcomes.iter().map(description))),
        quantities(outcomes, |outcome| {
            outcome
                .run
                .as_ref()
                .map_or(0, |run| i128::from(run.input_tokens) * QUANTITY_ONE)
        }),
        strings(outcomes, |_| "Tokens"),
        quantities(outcomes, |outcome| i128::from(outcome.cost.device_time_ns())),
        strings(outcomes, |_| "Device-Seconds"),
        strings(outcomes, |_| "Tributary"),
        strings(outcomes, |outcome| &outcome.model),
        strings(outcomes, |outcome| outcome.tenant.as_str()),
        Arc::new(StringArray::from_iter(
            outcomes
                .iter()
                .map(|o| o.run.as_ref().map(|run| run.model_digest.to_string())),
        )),
        labels(outcomes),
        strings(outcomes, |outcome| outcome.job_id.as_str()),
        integers(outcomes, |outcome| signed(outcome.cost.device_time_ns())),
        integers(outcomes, |outcome| {
            share(outcome).map_or(0, |share| signed(share.work_units))
        }),
        Arc::new(StringArray::from_iter(
            outcomes
                .iter()
                .map(|o| share(o).map(|share| share.batch_id.as_str())),
        )),
        Arc::new(Int32Array::from_iter(outcomes.iter().map(|o| {
            share(o).map(|share| i32::try_from(share.batch_jobs).unwrap_or(i32::MAX))
        }))),
        Arc::new(Int64Array::from_iter(
            outcomes
                .iter()
                .map(|o| share(o).map(|share| signed(share.batch_device_time_ns))),
        )),
        strings(outcomes, |outcome| outcome.origin.topic.as_str()),
        Arc::new(Int32Array::from_iter_values(
            outcomes.iter().map(|o| o.origin.partition),
        )),
        integers(outcomes, |outcome| outcome.origin.offset),
        topic_ids(outcomes),
    ];
    RecordBatch::try_new(tables::costs(), columns).expect("the columns are those of the schema")
}

/// What an outcome is billed, in units of 10 to the power of minus [`MONEY_SCALE`]: device seconds with 9 decimals times a
/// price with 9 decimals, and so never rounded.
fn billed(outcome: &Outcome) -> i128 {
    i128::from(outcome.cost.device_time_ns()) * nano_price(outcome.cost.price_per_device_second)
}

/// A price in billionths. More decimals than 9 are not configurable; a foreign record's are rounded.
fn nano_price(price: Decimal) -> i128 {
    let price = price.round_dp(QUANTITY_SCALE.unsigned_abs().into());
    price.mantissa() * 10_i128.pow(u32::from(QUANTITY_SCALE.unsigned_abs()) - price.scale())
}

fn description(outcome: &Outcome) -> String {
    let task = outcome.run.as_ref().map_or("job", |run| run.task.as_str());
    format!("{task} with {}: {}", outcome.model, outcome.verdict.status())
}

fn hour_of(time_ms: i64) -> i64 {
    time_ms - time_ms.rem_euclid(MILLIS_PER_HOUR)
}

fn input_tokens(run: &Run) -> i32 {
    i32::try_from(run.input_tokens).unwrap_or(i32::MAX)
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn strings<'a>(outcomes: &'a [Outcome], value: impl Fn(&'a Outcome) -> &'a str) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(outcomes.iter().map(value)))
}

fn integers(outcomes: &[Outcome], value: impl Fn(&Outcome) -> i64) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(outcomes.iter().map(value)))
}

fn topic_ids(outcomes: &[Outcome]) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(
        outcomes.iter().map(|outcome| outcome.origin.topic_id.to_string()),
    ))
}

fn times(outcomes: &[Outcome], time_ms: impl Fn(&Outcome) -> i64) -> ArrayRef {
    let micros = outcomes
        .iter()
        .map(|outcome| time_ms(outcome).saturating_mul(1_000));
    Arc::new(TimestampMicrosecondArray::from_iter_values(micros).with_timezone("UTC"))
}

fn money(outcomes: &[Outcome]) -> ArrayRef {
    decimals(
        Decimal128Array::from_iter_values(outcomes.iter().map(billed)),
        MONEY_SCALE,
    )
}

fn quantities(outcomes: &[Outcome], value: impl Fn(&Outcome) -> i128) -> ArrayRef {
    decimals(
        Decimal128Array::from_iter_values(outcomes.iter().map(value)),
        QUANTITY_SCALE,
    )
}

fn decimals(values: Decimal128Array, scale: i8) -> ArrayRef {
    Arc::new(
        values
            .with_precision_and_scale(DECIMAL_PRECISION, scale)
            .expect("38 digits take either scale"),
    )
}

fn embeddings(outcomes: &[Outcome]) -> ArrayRef {
    let values = outcomes
        .iter()
        .map(|outcome| embedding(outcome).map_or(0, <[f32]>::len))
        .sum();
    let mut lists = ListBuilder::with_capacity(Float32Builder::with_capacity(values), outcomes.len())
        .with_field(tables::embedding_item());
    for outcome in outcomes {
        let vector = embedding(outcome);
        lists.values().append_slice(vector.unwrap_or_default());
        lists.append(vector.is_some());
    }
    Arc::new(lists.finish())
}

fn share(outcome: &Outcome) -> Option<&DeviceShare> {
    outcome.cost.device.as_ref()
}

fn embedding(outcome: &Outcome) -> Option<&[f32]> {
    match &outcome.verdict {
        Verdict::Succeeded { embedding } => Some(embedding),
        Verdict::Failed(_) | Verdict::Rejected(_) => None,
    }
}

fn labels(outcomes: &[Outcome]) -> ArrayRef {
    let entries = tables::label_entries();
    let names = MapFieldNames {
        entry: entries.name().clone(),
        key: "key".to_owned(),
        value: "value".to_owned(),
    };
    let text = |name: &str| Field::new(name, arrow_schema::DataType::Utf8, false);
    let mut maps = MapBuilder::new(Some(names), StringBuilder::new(), StringBuilder::new())
        .with_keys_field(text("key"))
        .with_values_field(text("value"));
    for outcome in outcomes {
        for (key, value) in &outcome.labels {
            maps.keys().append_value(key);
            maps.values().append_value(value);
        }
        maps.append(true).expect("each key has its value");
    }
    Arc::new(maps.finish())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_bill_is_exactly_the_time_times_the_price(device_time_ns in 0_u64..1 << 50, nano_units in 0_i64..1_000_000_000_000) {
            let price = Decimal::new(nano_units, 9);
            prop_assert_eq!(
                i128::from(device_time_ns) * nano_price(price),
                i128::from(device_time_ns) * i128::from(nano_units),
            );
        }
    }

    #[test]
    fn a_charge_period_is_the_utc_hour() {
        assert_eq!(hour_of(1_790_000_123_456) % MILLIS_PER_HOUR, 0);
        assert_eq!(hour_of(-1), -MILLIS_PER_HOUR);
    }
}
