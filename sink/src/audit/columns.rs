//! Audit events as columns, in the words of OCSF. A newer build that does an older one's range again must come to the same
//! hashes: what is made here of an event stays so, and what becomes otherwise goes with a new version of the record.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, Int32Array, Int64Array, ListArray, RecordBatch, StringArray, StructArray,
    TimestampMicrosecondArray,
};
use arrow_buffer::{NullBuffer, OffsetBuffer};
use arrow_schema::{DataType, Fields, Schema};
use schemas::{Activity, Actor, AuditEvent, Digest, Finding, FindingStage, Origins, tables};

/// The version of OCSF whose words these are.
const OCSF_VERSION: &str = "1.7.0";
const PRODUCT: &str = "Tributary";
/// "Statistical": how a finding was made.
const STATISTICAL: i32 = 3;

/// What an event is in OCSF.
struct Kind {
    category_uid: i32,
    class_uid: i32,
    activity_id: i32,
    severity_id: i32,
    status_id: i32,
}

impl Kind {
    fn of(event: &AuditEvent) -> Self {
        match &event.finding {
            Some(finding) => Self::of_finding(finding.stage),
            None => Self::of_activity(event),
        }
    }

    /// "API Activity" of "Application Activity": "Create", "Read" or "Update", which came out as "Success" or "Failure". It is
    /// "Informational": what an operator makes of it is up to him.
    fn of_activity(event: &AuditEvent) -> Self {
        Self {
            category_uid: 6,
            class_uid: 6_003,
            activity_id: match event.operation.activity() {
                Activity::Create => 1,
                Activity::Read => 2,
                Activity::Update => 3,
            },
            severity_id: 1,
            status_id: if event.refused.is_none() { 1 } else { 2 },
        }
    }

    /// "Detection Finding" of "Findings": a "Create" of "Medium" severity is "New", and a "Close" is "Resolved".
    fn of_finding(stage: FindingStage) -> Self {
        let (activity_id, severity_id, status_id) = match stage {
            FindingStage::Begun => (1, 3, 1),
            FindingStage::Ended => (3, 1, 4),
        };
        Self {
            category_uid: 2,
            class_uid: 2_004,
            activity_id,
            severity_id,
            status_id,
        }
    }

    fn type_uid(&self) -> i64 {
        i64::from(self.class_uid) * 100 + i64::from(self.activity_id)
    }
}

/// The rows of the record at `offset`, without their hashes.
pub(super) fn of(offset: i64, events: &[AuditEvent]) -> RecordBatch {
    let kinds: Vec<Kind> = events.iter().map(Kind::of).collect();
    let integers =
        |of: fn(&Kind) -> i32| -> ArrayRef { Arc::new(Int32Array::from_iter_values(kinds.iter().map(of))) };
    let longs = |of: &dyn Fn(&AuditEvent) -> Option<i64>| -> ArrayRef {
        Arc::new(events.iter().map(of).collect::<Int64Array>())
    };
    let times = events.iter().map(|event| event.time_ms.saturating_mul(1_000));
    let origins = |of: fn(&Origins) -> i64| longs(&move |event| event.origins.as_ref().map(of));
    let partitions = events.iter().map(|event| Some(event.origins.as_ref()?.partition));
    let indexes = 0..i32::try_from(events.len()).expect("a record has fewer events than bytes");
    let columns: Vec<ArrayRef> = vec![
        integers(|kind| kind.activity_id),
        integers(|kind| kind.category_uid),
        integers(|kind| kind.class_uid),
        Arc::new(Int64Array::from_iter_values(kinds.iter().map(Kind::type_uid))),
        integers(|kind| kind.severity_id),
        longs(&|event| Some(event.time_ms)),
        Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC")),
        longs(&|event| Some(i64::try_from(event.count).unwrap_or(i64::MAX))),
        integers(|kind| kind.status_id),
        texts(events, |event| event.refused.clone()),
        texts(events, |event| event.detail.clone()),
        metadata(events),
        actor(events),
        field(
            "api",
            &[texts(events, |event| Some(event.operation.as_str().to_owned()))],
            None,
        ),
        field(
            "src_endpoint",
            &[texts(events, |event| Some(event.source.clone()))],
            None,
        ),
        model(events),
        texts(events, |event| Some(event.origins.as_ref()?.topic.to_string())),
        texts(events, |event| Some(event.origins.as_ref()?.topic_id.to_string())),
        Arc::new(partitions.collect::<Int32Array>()),
        origins(|origins| origins.first_offset),
        origins(|origins| origins.last_offset),
        longs(&|_| Some(offset)),
        Arc::new(Int32Array::from_iter_values(indexes)),
        finding(events),
    ];
    let table = tables::audit();
    let fields = table
        .fields()
        .iter()
        .filter(|field| field.name() != tables::AUDIT_HASH);
    let fields: Fields = fields.cloned().collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("the columns are those of the table")
}

/// `rows`, and their hashes.
pub(super) fn with_hashes(rows: &RecordBatch, hashes: &[Digest]) -> RecordBatch {
    let mut columns = rows.columns().to_vec();
    let hashes = hashes.iter().map(Digest::to_string);
    let table = tables::audit();
    let (at, _) = table
        .column_with_name(tables::AUDIT_HASH)
        .expect("the table has hashes");
    columns.insert(at, Arc::new(StringArray::from_iter_values(hashes)));
    RecordBatch::try_new(table, columns).expect("a hash a row")
}

fn texts(events: &[AuditEvent], of: impl Fn(&AuditEvent) -> Option<String>) -> ArrayRef {
    Arc::new(events.iter().map(of).collect::<StringArray>())
}

/// The group that the table calls `name`, null where `present` says so.
fn field(name: &str, columns: &[ArrayRef], present: Option<Vec<bool>>) -> ArrayRef {
    let table = tables::audit();
    let field = table.field_with_name(name).expect("the table has this column");
    group(field.data_type(), columns, present)
}

fn group(of: &DataType, columns: &[ArrayRef], present: Option<Vec<bool>>) -> ArrayRef {
    let DataType::Struct(fields) = of else {
        unreachable!("only groups have fields")
    };
    Arc::new(StructArray::new(
        fields.clone(),
        columns.to_vec(),
        present.map(NullBuffer::from),
    ))
}

/// The group that `of` calls `name`.
fn inner(of: &DataType, name: &str, columns: &[ArrayRef], present: Option<Vec<bool>>) -> ArrayRef {
    let DataType::Struct(fields) = of else {
        unreachable!("only groups have fields")
    };
    let (_, field) = fields.find(name).expect("the group has this field");
    group(field.data_type(), columns, present)
}

fn metadata(events: &[AuditEvent]) -> ArrayRef {
    let always = |text: &str| texts(events, |_| Some(text.to_owned()));
    let table = tables::audit();
    let of = table
        .field_with_name("metadata")
        .expect("the table has this column");
    let product = inner(of.data_type(), "product", &[always(PRODUCT)], None);
    let tenants = texts(events, |event| Some(event.tenant.as_ref()?.to_string()));
    group(of.data_type(), &[always(OCSF_VERSION), product, tenants], None)
}

fn actor(events: &[AuditEvent]) -> ArrayRef {
    let table = tables::audit();
    let of = table.field_with_name("actor").expect("the table has this column");
    let user = |event: &AuditEvent| match &event.actor {
        Actor::Tenant(tenant) => Some(tenant.to_string()),
        Actor::User(name) => Some(name.clone()),
        Actor::Service(_) | Actor::Unknown => None,
    };
    let service = |event: &AuditEvent| match &event.actor {
        Actor::Service(name) => Some(name.clone()),
        _ => None,
    };
    let has_user: Vec<bool> = events.iter().map(|event| user(event).is_some()).collect();
    let names = texts(events, |event| Some(user(event).unwrap_or_default()));
    let users = inner(of.data_type(), "user", &[names], Some(has_user));
    group(
        of.data_type(),
        &[users, texts(events, service), authorizations(events)],
        None,
    )
}

/// The policy that decided, where one did, and what it said.
fn authorizations(events: &[AuditEvent]) -> ArrayRef {
    let element = tables::audit_authorization();
    let decided = || events.iter().filter(|event| event.policy.is_some());
    let decisions = decided().map(|event| match event.refused {
        None => "allowed",
        Some(_) => "denied",
    });
    let decisions: ArrayRef = Arc::new(StringArray::from_iter_values(decisions));
    let ids: ArrayRef = Arc::new(
        decided()
            .map(|event| event.policy.as_deref())
            .collect::<StringArray>(),
    );
    let policies = inner(element.data_type(), "policy", &[ids], None);
    let elements = group(element.data_type(), &[decisions, policies], None);
    let lengths = events.iter().map(|event| usize::from(event.policy.is_some()));
    let present: Vec<bool> = events.iter().map(|event| event.policy.is_some()).collect();
    Arc::new(ListArray::new(
        element,
        OffsetBuffer::from_lengths(lengths),
        elements,
        Some(NullBuffer::from(present)),
    ))
}

fn model(events: &[AuditEvent]) -> ArrayRef {
    let names = texts(events, |event| {
        Some(event.model.as_ref().map_or(String::new(), ToString::to_string))
    });
    let providers = texts(events, |_| Some(PRODUCT.to_owned()));
    let present = events.iter().map(|event| event.model.is_some()).collect();
    field("ai_model", &[providers, names], Some(present))
}

fn finding(events: &[AuditEvent]) -> ArrayRef {
    let table = tables::audit();
    let of = table
        .field_with_name("finding_info")
        .expect("the table has this column");
    let text = |of: fn(&Finding) -> &str| {
        texts(events, move |event| {
            Some(
                event
                    .finding
                    .as_ref()
                    .map_or(String::new(), |finding| of(finding).to_owned()),
            )
        })
    };
    let statistical: ArrayRef = Arc::new(Int32Array::from(vec![STATISTICAL; events.len()]));
    let analytic = [statistical, text(|finding| finding.measure.as_str())];
    let analytic = inner(of.data_type(), "analytic", &analytic, None);
    let present = events.iter().map(|event| event.finding.is_some()).collect();
    let columns = [
        text(|finding| &finding.uid),
        text(|finding| finding.measure.title()),
        analytic,
    ];
    group(of.data_type(), &columns, Some(present))
}
