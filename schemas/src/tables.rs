//! The tables that readers see, as Arrow schemas: `results`, `costs` and `audit`.
//!
//! Other people's queries rely on these columns: add nullable ones at the end, never rename or retype. Each column has
//! a field id, so that a table format can adopt the files later. Times are microseconds in UTC, because Spark cannot
//! read nanoseconds; vectors are plain lists, because ClickHouse cannot read fixed-size ones.

use std::{collections::HashMap, sync::Arc};

use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};

/// Decimals of an amount of money: a quantity's nine times a price's nine, so that no bill is ever rounded.
pub const MONEY_SCALE: i8 = 18;
/// Decimals of a quantity: nanoseconds of a second.
pub const QUANTITY_SCALE: i8 = 9;
/// Digits of either, the most that DuckDB and Spark can hold.
pub const DECIMAL_PRECISION: u8 = 38;

/// How every job ended: one row an outcome.
pub fn results() -> SchemaRef {
    table([
        required("job_id", DataType::Utf8),
        required("model", DataType::Utf8),
        nullable("model_digest", DataType::Utf8),
        nullable("task", DataType::Utf8),
        required("status", DataType::Utf8),
        nullable("reason_code", DataType::Utf8),
        nullable("reason", DataType::Utf8),
        nullable("embedding", DataType::List(embedding_item())),
        nullable("input_tokens", DataType::Int32),
        nullable("truncated", DataType::Boolean),
        required("submitted_at", time()),
        required("completed_at", time()),
        nullable("queue_time_ns", DataType::Int64),
        required("device_time_ns", DataType::Int64),
        required("labels", labels()),
        required("origin_topic", DataType::Utf8),
        required("origin_partition", DataType::Int32),
        required("origin_offset", DataType::Int64),
        nullable("trace_id", DataType::Utf8),
        required("origin_topic_id", DataType::Utf8),
        nullable("model_dtype", DataType::Utf8),
        nullable("model_path", DataType::Utf8),
    ])
}

/// What every outcome cost: one row an outcome, in the columns of the FinOps FOCUS specification where it has one
/// (<https://focus.finops.org>), our own prefixed `x_`.
pub fn costs() -> SchemaRef {
    table([
        required("BilledCost", money()),
        required("EffectiveCost", money()),
        required("BillingCurrency", DataType::Utf8),
        required("ChargePeriodStart", time()),
        required("ChargePeriodEnd", time()),
        required("ChargeCategory", DataType::Utf8),
        required("ChargeDescription", DataType::Utf8),
        required("ConsumedQuantity", quantity()),
        required("ConsumedUnit", DataType::Utf8),
        required("PricingQuantity", quantity()),
        required("PricingUnit", DataType::Utf8),
        required("ServiceName", DataType::Utf8),
        required("SkuId", DataType::Utf8),
        required("SubAccountId", DataType::Utf8),
        nullable("ResourceId", DataType::Utf8),
        required("Tags", labels()),
        required("x_job_id", DataType::Utf8),
        required("x_device_time_ns", DataType::Int64),
        required("x_work_units", DataType::Int64),
        nullable("x_batch_id", DataType::Utf8),
        nullable("x_batch_jobs", DataType::Int32),
        nullable("x_batch_device_time_ns", DataType::Int64),
        required("origin_topic", DataType::Utf8),
        required("origin_partition", DataType::Int32),
        required("origin_offset", DataType::Int64),
        required("origin_topic_id", DataType::Utf8),
    ])
}

/// What was done and decided: one row an event, in the columns of the Open Cybersecurity Schema Framework's API Activity,
/// 1.7, with its profiles `datetime` and `ai_operation` (<https://schema.ocsf.io/1.7.0/classes/api_activity>), our own
/// prefixed `x_`. A departure from the usual is a Detection Finding
/// (<https://schema.ocsf.io/1.7.0/classes/detection_finding>), and alone has `finding_info`. [`AUDIT_HASH`] chains the rows of a
/// partition together.
pub fn audit() -> SchemaRef {
    table([
        required("activity_id", DataType::Int32),
        required("category_uid", DataType::Int32),
        required("class_uid", DataType::Int32),
        required("type_uid", DataType::Int64),
        required("severity_id", DataType::Int32),
        required("time", DataType::Int64),
        required("time_dt", time()),
        required("count", DataType::Int64),
        required("status_id", DataType::Int32),
        nullable("status_code", DataType::Utf8),
        nullable("status_detail", DataType::Utf8),
        required("metadata", audit_metadata()),
        required("actor", audit_actor()),
        required("api", group([required("operation", DataType::Utf8)])),
        required("src_endpoint", group([required("name", DataType::Utf8)])),
        nullable("ai_model", audit_model()),
        nullable("x_origin_topic", DataType::Utf8),
        nullable("x_origin_topic_id", DataType::Utf8),
        nullable("x_origin_partition", DataType::Int32),
        nullable("x_first_offset", DataType::Int64),
        nullable("x_last_offset", DataType::Int64),
        required("x_record_offset", DataType::Int64),
        required("x_record_index", DataType::Int32),
        required(AUDIT_HASH, DataType::Utf8),
        nullable("finding_info", audit_finding()),
    ])
}

/// The column of the audit that holds a row's hash over the row before and itself.
pub const AUDIT_HASH: &str = "x_hash";

fn audit_metadata() -> DataType {
    group([
        required("version", DataType::Utf8),
        required("product", group([required("name", DataType::Utf8)])),
        nullable("tenant_uid", DataType::Utf8),
    ])
}

fn audit_actor() -> DataType {
    group([
        nullable("user", group([required("name", DataType::Utf8)])),
        nullable("app_uid", DataType::Utf8),
        nullable("authorizations", DataType::List(audit_authorization())),
    ])
}

/// The element of the list `actor.authorizations`.
pub fn audit_authorization() -> Arc<Field> {
    let policy = group([required("uid", DataType::Utf8)]);
    let fields = [required("decision", DataType::Utf8), required("policy", policy)];
    Arc::new(Field::new("element", group(fields), false))
}

fn audit_model() -> DataType {
    group([
        required("ai_provider", DataType::Utf8),
        required("name", DataType::Utf8),
    ])
}

fn audit_finding() -> DataType {
    let analytic = group([
        required("type_id", DataType::Int32),
        required("uid", DataType::Utf8),
    ]);
    group([
        required("uid", DataType::Utf8),
        required("title", DataType::Utf8),
        required("analytic", analytic),
    ])
}

fn group<const N: usize>(fields: [Field; N]) -> DataType {
    DataType::Struct(fields.into_iter().collect())
}

/// The element of the `embedding` list: a float that is never null.
pub fn embedding_item() -> Arc<Field> {
    Arc::new(Field::new("element", DataType::Float32, false))
}

/// The entries of a map from text to text, as in `labels` and `Tags`.
pub fn label_entries() -> Arc<Field> {
    let fields = vec![
        Field::new("key", DataType::Utf8, false),
        Field::new("value", DataType::Utf8, false),
    ];
    Arc::new(Field::new("key_value", DataType::Struct(fields.into()), false))
}

fn labels() -> DataType {
    DataType::Map(label_entries(), false)
}

fn time() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

fn money() -> DataType {
    DataType::Decimal128(DECIMAL_PRECISION, MONEY_SCALE)
}

fn quantity() -> DataType {
    DataType::Decimal128(DECIMAL_PRECISION, QUANTITY_SCALE)
}

fn required(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, false)
}

fn nullable(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, true)
}

fn table<const N: usize>(fields: [Field; N]) -> SchemaRef {
    let numbered = fields.into_iter().zip(1..).map(|(field, id): (Field, i32)| {
        field.with_metadata(HashMap::from([("PARQUET:field_id".to_owned(), id.to_string())]))
    });
    Arc::new(Schema::new(numbered.collect::<Vec<_>>()))
}
