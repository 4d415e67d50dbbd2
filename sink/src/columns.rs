//! Outcomes as columns: the result rows and the cost rows are two projections of the same values.

use std::{borrow::Cow, sync::Arc};

use arrow_array::{
    Array as _, ArrayRef, Decimal128Array, DictionaryArray, Float32Array, Int32Array, Int64Array, ListArray,
    RecordBatch, StringArray, TimestampMicrosecondArray,
    builder::{BooleanBuilder, Int32Builder, Int64Builder, MapBuilder, MapFieldNames, StringBuilder},
    types::Int32Type,
};
use arrow_buffer::{NullBuffer, OffsetBuffer};
use arrow_schema::{Field, Schema, SchemaRef};
use rust_decimal::Decimal;
use schemas::{
    Common, Row, Verdict,
    tables::{self, DECIMAL_PRECISION, MONEY_SCALE, QUANTITY_SCALE},
};

const MILLIS_PER_HOUR: i64 = 3_600_000;
/// 10 to the power of [`QUANTITY_SCALE`]: nanoseconds of a second.
const QUANTITY_ONE: i128 = 1_000_000_000;

/// Rows on their way to be columns of both tables.
#[derive(Debug, Default)]
pub(crate) struct Columns {
    alike: Alike,
    job_ids: StringBuilder,
    reason_codes: StringBuilder,
    reasons: StringBuilder,
    embeddings: Embeddings,
    input_tokens: Int32Builder,
    truncated: BooleanBuilder,
    submitted_at_ms: Vec<i64>,
    completed_at_ms: Vec<i64>,
    queue_times_ns: Int64Builder,
    device_times_ns: Vec<i64>,
    billed: Vec<i128>,
    consumed_tokens: Vec<i128>,
    labels: Option<Labels>,
    origin_partitions: Vec<i32>,
    origin_offsets: Vec<i64>,
    trace_ids: StringBuilder,
    work_units: Vec<i64>,
    batch_ids: StringBuilder,
    batch_jobs: Int32Builder,
    batch_device_times_ns: Int64Builder,
}

/// Rows of both tables.
pub(crate) struct Batches {
    pub(crate) results: RecordBatch,
    pub(crate) costs: RecordBatch,
}

impl Columns {
    /// How many rows there are.
    pub(crate) fn rows(&self) -> usize {
        self.origin_offsets.len()
    }

    /// About how many bytes they take in memory.
    pub(crate) fn held_bytes(&self) -> usize {
        /// All that a row has beside its vector, with room to grow.
        const ROW_BYTES: usize = 512;
        4 * self.embeddings.values.capacity() + ROW_BYTES * self.rows()
    }

    /// The rows that follow have something else in common.
    pub(crate) fn begin_group(&mut self) {
        self.alike.open = None;
    }

    /// Adds `row`, whose group has `common`.
    pub(crate) fn push(&mut self, common: &Common, row: &Row<'_>) {
        self.alike.push(common, row.verdict.status());
        self.job_ids.append_value(row.job_id.as_str());
        let reason = row.verdict.reason();
        self.reason_codes
            .append_option(reason.map(|reason| reason.code.as_str()));
        self.reasons.append_option(reason.map(|reason| &*reason.message));
        self.embeddings.push(&row.verdict);
        let run = row.run.as_ref();
        let input_tokens = run.map(|run| i32::try_from(run.input_tokens).unwrap_or(i32::MAX));
        self.input_tokens.append_option(input_tokens);
        self.truncated.append_option(run.map(|run| run.truncated));
        self.submitted_at_ms.push(row.submitted_at_ms);
        self.completed_at_ms.push(row.completed_at_ms);
        self.queue_times_ns
            .append_option(run.map(|run| signed(run.queue_time_ns)));
        self.device_times_ns.push(signed(row.device_time_ns()));
        self.billed
            .push(i128::from(row.device_time_ns()) * self.alike.nano_price);
        let consumed = run.map_or(0, |run| i128::from(run.input_tokens) * QUANTITY_ONE);
        self.consumed_tokens.push(consumed);
        self.labels.get_or_insert_default().push(row);
        self.origin_partitions.push(row.origin_partition);
        self.origin_offsets.push(row.origin_offset);
        self.trace_ids.append_option(row.trace_id.as_deref());
        let share = row.device.as_ref();
        self.work_units
            .push(share.map_or(0, |share| signed(share.work_units)));
        self.batch_ids.append_option(share.map(|share| &*share.batch_id));
        let batch_jobs = share.map(|share| i32::try_from(share.batch_jobs).unwrap_or(i32::MAX));
        self.batch_jobs.append_option(batch_jobs);
        let batch_time = share.map(|share| signed(share.batch_device_time_ns));
        self.batch_device_times_ns.append_option(batch_time);
    }

    /// The rows as columns of both tables. What they share is the same arrays.
    pub(crate) fn finish(&mut self) -> Batches {
        let device_times: Vec<i128> = self.device_times_ns.iter().map(|ns| i128::from(*ns)).collect();
        let hours: Vec<i64> = self.completed_at_ms.iter().map(|ms| hour_of(*ms)).collect();
        let hours_end: Vec<i64> = hours.iter().map(|ms| ms + MILLIS_PER_HOUR).collect();
        let alike = self.alike.finish();
        let job_ids: ArrayRef = Arc::new(self.job_ids.finish());
        let device_times_ns: ArrayRef = integers(&mut self.device_times_ns);
        let labels: ArrayRef = self.labels.get_or_insert_default().finish();
        let partitions = std::mem::take(&mut self.origin_partitions);
        let origin_partitions: ArrayRef = Arc::new(Int32Array::from(partitions));
        let origin_offsets: ArrayRef = integers(&mut self.origin_offsets);
        let billed = decimals(std::mem::take(&mut self.billed), MONEY_SCALE);
        let results: Vec<ArrayRef> = vec![
            Arc::clone(&job_ids),
            Arc::clone(&alike.model),
            Arc::clone(&alike.model_digest),
            alike.task,
            alike.status,
            Arc::new(self.reason_codes.finish()),
            Arc::new(self.reasons.finish()),
            self.embeddings.finish(),
            Arc::new(self.input_tokens.finish()),
            Arc::new(self.truncated.finish()),
            times(&std::mem::take(&mut self.submitted_at_ms)),
            times(&std::mem::take(&mut self.completed_at_ms)),
            Arc::new(self.queue_times_ns.finish()),
            Arc::clone(&device_times_ns),
            Arc::clone(&labels),
            Arc::clone(&alike.origin_topic),
            Arc::clone(&origin_partitions),
            Arc::clone(&origin_offsets),
            Arc::new(self.trace_ids.finish()),
            Arc::clone(&alike.origin_topic_id),
            alike.model_dtype,
            alike.model_path,
        ];
        let costs: Vec<ArrayRef> = vec![
            Arc::clone(&billed),
            billed,
            alike.currency,
            times(&hours),
            times(&hours_end),
            alike.charge_category,
            alike.description,
            decimals(std::mem::take(&mut self.consumed_tokens), QUANTITY_SCALE),
            alike.consumed_unit,
            decimals(device_times, QUANTITY_SCALE),
            alike.pricing_unit,
            alike.service,
            alike.model,
            alike.tenant,
            alike.model_digest,
            labels,
            job_ids,
            device_times_ns,
            integers(&mut self.work_units),
            Arc::new(self.batch_ids.finish()),
            Arc::new(self.batch_jobs.finish()),
            Arc::new(self.batch_device_times_ns.finish()),
            alike.origin_topic,
            origin_partitions,
            origin_offsets,
            alike.origin_topic_id,
        ];
        Batches {
            results: batch(&tables::results(), results),
            costs: batch(&tables::costs(), costs),
        }
    }
}

/// A batch of a table. What is text there may be a dictionary here: Parquet's writer takes either, and writes the same.
fn batch(table: &SchemaRef, columns: Vec<ArrayRef>) -> RecordBatch {
    let field = |(field, column): (&Arc<Field>, &ArrayRef)| {
        Field::new(field.name(), column.data_type().clone(), field.is_nullable())
    };
    let fields: Vec<Field> = table.fields().iter().zip(&columns).map(field).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("the columns are those of the table")
}

/// The columns in which rows one after the other are alike, as a rule: each text is rendered once for all of them.
#[derive(Debug, Default)]
struct Alike {
    /// The status of the rows that are alike, until something else begins.
    open: Option<&'static str>,
    nano_price: i128,
    /// Of each row, which text is its own.
    keys: Vec<i32>,
    texts: Vec<AlikeText>,
}

/// The texts of rows that are alike.
#[derive(Debug)]
struct AlikeText {
    model: String,
    model_digest: Option<String>,
    model_dtype: Option<Cow<'static, str>>,
    model_path: Option<Cow<'static, str>>,
    task: Option<&'static str>,
    status: &'static str,
    origin_topic: String,
    origin_topic_id: String,
    currency: String,
    tenant: String,
    description: String,
}

struct AlikeColumns {
    model: ArrayRef,
    model_digest: ArrayRef,
    model_dtype: ArrayRef,
    model_path: ArrayRef,
    task: ArrayRef,
    status: ArrayRef,
    origin_topic: ArrayRef,
    origin_topic_id: ArrayRef,
    currency: ArrayRef,
    tenant: ArrayRef,
    description: ArrayRef,
    charge_category: ArrayRef,
    consumed_unit: ArrayRef,
    pricing_unit: ArrayRef,
    service: ArrayRef,
}

impl Alike {
    fn push(&mut self, common: &Common, status: &'static str) {
        if self.open != Some(status) {
            self.open = Some(status);
            self.nano_price = nano_price(common.price_per_device_second);
            self.texts.push(AlikeText::new(common, status));
        }
        let key = i32::try_from(self.texts.len() - 1).expect("a batch has no more texts than rows");
        self.keys.push(key);
    }

    fn finish(&mut self) -> AlikeColumns {
        let keys = Int32Array::from(std::mem::take(&mut self.keys));
        let texts = std::mem::take(&mut self.texts);
        self.open = None;
        let column = |text: &dyn Fn(&AlikeText) -> Option<&str>| -> ArrayRef {
            let values = StringArray::from_iter(texts.iter().map(text));
            Arc::new(DictionaryArray::<Int32Type>::new(keys.clone(), Arc::new(values)))
        };
        AlikeColumns {
            model: column(&|text| Some(&text.model)),
            model_digest: column(&|text| text.model_digest.as_deref()),
            model_dtype: column(&|text| text.model_dtype.as_deref()),
            model_path: column(&|text| text.model_path.as_deref()),
            task: column(&|text| text.task),
            status: column(&|text| Some(text.status)),
            origin_topic: column(&|text| Some(&text.origin_topic)),
            origin_topic_id: column(&|text| Some(&text.origin_topic_id)),
            currency: column(&|text| Some(&text.currency)),
            tenant: column(&|text| Some(&text.tenant)),
            description: column(&|text| Some(&text.description)),
            charge_category: column(&|_| Some("Usage")),
            consumed_unit: column(&|_| Some("Tokens")),
            pricing_unit: column(&|_| Some("Device-Seconds")),
            service: column(&|_| Some("Tributary")),
        }
    }
}

impl AlikeText {
    fn new(common: &Common, status: &'static str) -> Self {
        let engine = common.engine.as_ref();
        let task = engine.map(|engine| engine.task.as_str());
        Self {
            model: common.model.clone(),
            model_digest: engine.map(|engine| engine.model_digest.to_string()),
            model_dtype: engine.and_then(|engine| engine.model_dtype.clone()),
            model_path: engine.and_then(|engine| engine.model_path.clone()),
            task,
            status,
            origin_topic: common.origin_topic.to_string(),
            origin_topic_id: common.origin_topic_id.to_string(),
            currency: common.currency.clone(),
            tenant: common.tenant.to_string(),
            description: format!("{} with {}: {status}", task.unwrap_or("job"), common.model),
        }
    }
}

/// Vectors: their values one after the other, how many each has, and whether there is one.
#[derive(Debug, Default)]
struct Embeddings {
    values: Vec<f32>,
    lengths: Vec<usize>,
    valid: Vec<bool>,
}

impl Embeddings {
    fn push(&mut self, verdict: &Verdict<'_>) {
        let before = self.values.len();
        if let Verdict::Succeeded { embedding } = verdict {
            embedding.append_to(&mut self.values);
        }
        self.lengths.push(self.values.len() - before);
        self.valid.push(matches!(verdict, Verdict::Succeeded { .. }));
    }

    fn finish(&mut self) -> ArrayRef {
        // The next rows will have as many.
        let room = Vec::with_capacity(self.values.len());
        let values = Float32Array::from(std::mem::replace(&mut self.values, room));
        let offsets = OffsetBuffer::from_lengths(self.lengths.drain(..));
        let nulls = NullBuffer::from(std::mem::take(&mut self.valid));
        Arc::new(ListArray::new(
            tables::embedding_item(),
            offsets,
            Arc::new(values),
            (nulls.null_count() > 0).then_some(nulls),
        ))
    }
}

#[derive(Debug)]
struct Labels(MapBuilder<StringBuilder, StringBuilder>);

impl Default for Labels {
    fn default() -> Self {
        let names = MapFieldNames {
            entry: tables::label_entries().name().clone(),
            key: "key".to_owned(),
            value: "value".to_owned(),
        };
        let text = |name: &str| Field::new(name, arrow_schema::DataType::Utf8, false);
        let maps = MapBuilder::new(Some(names), StringBuilder::new(), StringBuilder::new())
            .with_keys_field(text("key"))
            .with_values_field(text("value"));
        Self(maps)
    }
}

impl Labels {
    fn push(&mut self, row: &Row<'_>) {
        for (key, value) in &row.labels {
            self.0.keys().append_value(&**key);
            self.0.values().append_value(&**value);
        }
        self.0.append(true).expect("each key has its value");
    }

    fn finish(&mut self) -> ArrayRef {
        Arc::new(self.0.finish())
    }
}

/// A price in billionths. More decimals than 9 are not configurable; a foreign record's are rounded. Device time in
/// nanoseconds times this is what is billed, in units of 10 to the power of minus [`MONEY_SCALE`], and so never rounded.
fn nano_price(price: Decimal) -> i128 {
    let price = price.round_dp(QUANTITY_SCALE.unsigned_abs().into());
    price.mantissa() * 10_i128.pow(u32::from(QUANTITY_SCALE.unsigned_abs()) - price.scale())
}

fn hour_of(time_ms: i64) -> i64 {
    time_ms - time_ms.rem_euclid(MILLIS_PER_HOUR)
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn integers(values: &mut Vec<i64>) -> ArrayRef {
    Arc::new(Int64Array::from(std::mem::take(values)))
}

fn times(times_ms: &[i64]) -> ArrayRef {
    let micros = times_ms.iter().map(|time_ms| time_ms.saturating_mul(1_000));
    Arc::new(TimestampMicrosecondArray::from_iter_values(micros).with_timezone("UTC"))
}

fn decimals(values: Vec<i128>, scale: i8) -> ArrayRef {
    Arc::new(
        Decimal128Array::from(values)
            .with_precision_and_scale(DECIMAL_PRECISION, scale)
            .expect("38 digits take either scale"),
    )
}

#[cfg(test)]
mod tests {
    use arrow_array::cast::AsArray as _;
    use proptest::prelude::*;

    use super::*;
    use crate::faults::outcome;

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
    fn a_row_says_what_ran_its_model_and_leaves_open_what_an_older_writer_did_not_say() {
        let mut columns = Columns::default();
        let mut push = |dtype: Option<&'static str>| {
            let mut outcome = outcome(0);
            let engine = outcome.common.engine.as_mut().unwrap();
            engine.model_dtype = dtype.map(Cow::Borrowed);
            engine.model_path = dtype.map(|_| Cow::Borrowed("avx512"));
            columns.begin_group();
            columns.push(&outcome.common, &outcome.row);
        };
        push(Some("bf16"));
        push(Some("int8"));
        push(None);
        let results = columns.finish().results;
        for (name, wanted) in [
            ("model_dtype", [Some("bf16"), Some("int8"), None]),
            ("model_path", [Some("avx512"), Some("avx512"), None]),
        ] {
            let column = results.column_by_name(name).unwrap();
            let column = column.as_dictionary::<Int32Type>();
            let texts = column.values().as_string::<i32>();
            let text = |key: &i32| {
                let key = usize::try_from(*key).unwrap();
                texts.is_valid(key).then(|| texts.value(key))
            };
            let found: Vec<_> = column.keys().values().iter().map(text).collect();
            assert_eq!(found, wanted, "{name}");
        }
    }

    #[test]
    fn a_charge_period_is_the_utc_hour() {
        assert_eq!(hour_of(1_790_000_123_456) % MILLIS_PER_HOUR, 0);
        assert_eq!(hour_of(-1), -MILLIS_PER_HOUR);
    }
}
