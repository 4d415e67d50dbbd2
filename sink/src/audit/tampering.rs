//! Whoever may write to the lake changes its audit, in every way that is known, and is found.

use std::{ops::Range, sync::Arc};

use arrow_array::{
    Array, ArrayRef, Int32Array, Int64Array, ListArray, RecordBatch, StringArray, StructArray,
    TimestampMicrosecondArray, cast::AsArray, types,
};
use arrow_schema::{DataType, TimeUnit};
use object_store::{ObjectStoreExt, memory::InMemory, path::Path};
use parquet::{
    arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder},
    file::{metadata::KeyValue, properties::WriterProperties},
};
use schemas::{Digest, tables::AUDIT_HASH};

use super::link;
use crate::{
    Store,
    faults::{self, AUDIT_RECORDS, EVENTS_A_RECORD},
    layout,
    range::{RangeIntent, Table},
    verify::{AuditReport, verify_audit_of},
};

/// A lake whose audit has several ranges, of one file or, over midnight, of two.
async fn lake() -> Arc<InMemory> {
    let lake = Arc::new(InMemory::new());
    let topics = faults::topics().await;
    faults::run_sink(&topics, Store::over(Arc::clone(&lake) as _, "the lake"))
        .await
        .unwrap();
    lake
}

async fn report(lake: &Arc<InMemory>, noted: &[Digest]) -> AuditReport {
    let store = Store::over(Arc::clone(lake) as _, "the lake");
    verify_audit_of(&store, noted).await.unwrap()
}

async fn paths(lake: &Arc<InMemory>, folder: &str) -> Vec<Path> {
    let store = Store::over(Arc::clone(lake) as _, "the lake");
    store.list(&layout::path(folder)).await.unwrap()
}

/// The audit's files.
async fn files(lake: &Arc<InMemory>) -> Vec<Path> {
    paths(lake, Table::Audit.name()).await
}

/// The intents of the audit's ranges, in order.
async fn intents(lake: &Arc<InMemory>) -> Vec<(Path, RangeIntent)> {
    let mut intents = Vec::new();
    for path in paths(lake, layout::RANGES).await {
        let bytes = lake.get(&path).await.unwrap().bytes().await.unwrap();
        let intent = RangeIntent::decode(&bytes).unwrap();
        if intent.heads.is_some() {
            intents.push((path, intent));
        }
    }
    intents
}

/// A file's rows, and what its footer says.
async fn read(lake: &Arc<InMemory>, path: &Path) -> (RecordBatch, Vec<KeyValue>) {
    let bytes = lake.get(path).await.unwrap().bytes().await.unwrap();
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
    let footer = builder.metadata().file_metadata().key_value_metadata().cloned();
    let mut batches: Vec<RecordBatch> = builder.build().unwrap().map(Result::unwrap).collect();
    assert_eq!(batches.len(), 1);
    let of_ours = |entry: &KeyValue| entry.key.starts_with("tributary.");
    let footer = footer.unwrap().into_iter().filter(of_ours).collect();
    (batches.remove(0), footer)
}

async fn write(lake: &Arc<InMemory>, path: &Path, rows: &[RecordBatch], footer: Vec<KeyValue>) {
    let properties = WriterProperties::builder()
        .set_key_value_metadata(Some(footer))
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), rows[0].schema(), Some(properties)).unwrap();
    rows.iter().for_each(|rows| writer.write(rows).unwrap());
    let bytes = writer.into_inner().unwrap();
    lake.put(path, bytes.into()).await.unwrap();
}

/// Writes the file at `path` anew, with these of its rows, in this order.
async fn rearrange(lake: &Arc<InMemory>, path: &Path, of: impl Fn(usize) -> Vec<Range<usize>>) {
    let (rows, footer) = read(lake, path).await;
    let slices = of(rows.num_rows());
    let slices: Vec<RecordBatch> = slices
        .into_iter()
        .filter(|range| !range.is_empty())
        .map(|range| rows.slice(range.start, range.len()))
        .collect();
    write(lake, path, &slices, footer).await;
}

/// `column` with another value at `row`.
fn changed(column: &ArrayRef, row: usize) -> ArrayRef {
    let longs = |values: Vec<Option<i64>>| -> Vec<Option<i64>> {
        let change = |(at, value): (usize, Option<i64>)| match at == row {
            true => Some(value.map_or(0, |value| value + 1)),
            false => value,
        };
        values.into_iter().enumerate().map(change).collect()
    };
    match column.data_type() {
        DataType::Int32 => {
            let values = column.as_primitive::<types::Int32Type>();
            let values = longs(values.iter().map(|value| value.map(i64::from)).collect());
            let values = values.into_iter().map(|value| value.map(|value| value as i32));
            Arc::new(values.collect::<Int32Array>())
        }
        DataType::Int64 => {
            let values = column.as_primitive::<types::Int64Type>();
            Arc::new(Int64Array::from(longs(values.iter().collect())))
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            let values = column.as_primitive::<types::TimestampMicrosecondType>();
            let values = TimestampMicrosecondArray::from(longs(values.iter().collect()));
            Arc::new(values.with_timezone("UTC"))
        }
        DataType::Utf8 => {
            let values = column.as_string::<i32>().iter().enumerate();
            let change = |(at, value): (usize, Option<&str>)| match at == row {
                true => Some(format!("{}x", value.unwrap_or_default())),
                false => value.map(str::to_owned),
            };
            Arc::new(values.map(change).collect::<StringArray>())
        }
        DataType::Struct(fields) => {
            let group = column.as_struct();
            let mut columns = group.columns().to_vec();
            columns[0] = changed(&columns[0], row);
            // A group that was not there is there now.
            let present = (0..group.len()).map(|at| at == row || group.is_valid(at));
            let present: Vec<bool> = present.collect();
            Arc::new(StructArray::new(fields.clone(), columns, Some(present.into())))
        }
        DataType::List(element) => {
            let list: &ListArray = column.as_list();
            let values = changed(list.values(), 0);
            let list = ListArray::new(
                element.clone(),
                list.offsets().clone(),
                values,
                list.nulls().cloned(),
            );
            Arc::new(list)
        }
        other => unreachable!("the audit has no column of type {other}"),
    }
}

/// The file is named, and the chain alone would have found it. It may break in the file of the next day.
fn assert_found(report: &AuditReport, path: &Path, what: &str) {
    let offences = report.offences();
    let named = offences.iter().any(|offence| offence.contains(path.as_ref()));
    let chain = ["does not follow", "does not end with", "rows were moved"];
    let broken = offences
        .iter()
        .any(|offence| chain.iter().any(|words| offence.contains(words)));
    assert!(named && broken, "{what}: {offences:#?}");
}

#[tokio::test]
async fn an_audit_that_nobody_touched_is_sound_and_says_what_happened() {
    let lake = lake().await;
    let report = report(&lake, &[]).await;
    assert!(report.is_sound(), "{report}");
    let events = report.counts().values().sum::<u64>();
    assert_eq!(events, AUDIT_RECORDS as u64 * EVENTS_A_RECORD as u64);
    assert!(files(&lake).await.len() > 3, "it has several files");
    assert_eq!(report.heads().count(), 1);
}

#[tokio::test]
async fn a_changed_value_is_found_whichever_column_it_is_in() {
    let lake = lake().await;
    let path = &files(&lake).await[1];
    let (rows, footer) = read(&lake, path).await;
    for (number, field) in rows.schema().fields().iter().enumerate() {
        for row in [0, rows.num_rows() - 1] {
            let mut columns = rows.columns().to_vec();
            columns[number] = changed(&columns[number], row);
            let tampered = RecordBatch::try_new(rows.schema(), columns).unwrap();
            write(&lake, path, &[tampered], footer.clone()).await;
            let what = format!("{}, row {row}", field.name());
            assert_found(&report(&lake, &[]).await, path, &what);
        }
    }
    write(&lake, path, &[rows], footer).await;
    assert!(
        report(&lake, &[]).await.is_sound(),
        "as it was, written by another"
    );
}

#[tokio::test]
async fn rows_that_were_taken_out_put_in_or_moved_are_found() {
    type Rearranged = fn(usize) -> Vec<Range<usize>>;
    let ways: [(&str, Rearranged); 6] = [
        ("the first row is gone", |rows| vec![1..2, 2..rows]),
        ("a row in the middle is gone", |rows| vec![0..1, 2..rows]),
        ("the last row is gone", |rows| vec![0..1, 1..rows - 1]),
        ("two rows changed places", |rows| vec![1..2, 0..1, 2..rows]),
        ("a row is there twice", |rows| vec![0..1, 0..rows]),
        ("the rows stand the other way round", |rows| {
            (0..rows).rev().map(|row| row..row + 1).collect()
        }),
    ];
    for (what, way) in ways {
        for number in 0..3 {
            let lake = lake().await;
            let path = &files(&lake).await[number];
            rearrange(&lake, path, way).await;
            assert_found(&report(&lake, &[]).await, path, what);
        }
    }
}

#[tokio::test]
async fn a_chain_that_was_made_anew_up_to_the_end_of_its_file_is_found() {
    let lake = lake().await;
    let (_, intent) = intents(&lake).await.remove(1);
    let path = &layout::path(&intent.files[0].path);
    let (rows, footer) = read(&lake, path).await;
    let mut columns = rows.columns().to_vec();
    let count = rows.schema().index_of("count").unwrap();
    columns[count] = changed(&columns[count], 0);
    let forged = RecordBatch::try_new(rows.schema(), columns).unwrap();
    let mut head = intent.heads.unwrap().before;
    let hashes = link::chain(&mut head, &forged).unwrap();
    let mut columns = forged.columns().to_vec();
    let hashes = hashes.iter().map(Digest::to_string);
    columns[rows.schema().index_of(AUDIT_HASH).unwrap()] = Arc::new(StringArray::from_iter_values(hashes));
    let forged = RecordBatch::try_new(rows.schema(), columns).unwrap();
    write(&lake, path, &[forged], footer).await;
    assert_found(&report(&lake, &[]).await, path, "a chain made anew");
}

#[tokio::test]
async fn a_file_that_is_gone_or_another_is_named() {
    let of = lake().await;
    let all = files(&of).await;
    for (number, path) in all.iter().enumerate() {
        let lake = lake().await;
        // Topics have random ids, so each lake has files of its own.
        let path_here = &files(&lake).await[number];
        assert_ne!(path, path_here);
        lake.delete(path_here).await.unwrap();
        let found = report(&lake, &[]).await;
        let missing = format!("`{path_here}` is named by a range and is not there");
        assert!(found.offences().contains(&missing), "{found}");

        let (rows, footer) = read(&of, path).await;
        write(&lake, path_here, &[rows], footer).await;
        let found = report(&lake, &[]).await;
        assert!(
            found
                .offences()
                .iter()
                .any(|offence| offence.contains(path_here.as_ref())),
            "{found}"
        );
    }
}

#[tokio::test]
async fn the_rows_of_another_range_under_the_right_footer_are_found() {
    let lake = lake().await;
    let all = files(&lake).await;
    let (_, footer) = read(&lake, &all[0]).await;
    let (rows, _) = read(&lake, &all[1]).await;
    write(&lake, &all[0], &[rows], footer).await;
    assert_found(&report(&lake, &[]).await, &all[0], "rows of another range");
}

#[tokio::test]
async fn a_file_that_nobody_wrote_is_named() {
    let lake = lake().await;
    let (rows, footer) = read(&lake, &files(&lake).await[0]).await;
    let planted = layout::path("audit/date=2026-09-21/range-planted.parquet");
    write(&lake, &planted, &[rows], footer).await;
    let found = report(&lake, &[]).await;
    let planted = format!("`{planted}` is a data file that no range names");
    assert!(found.offences().contains(&planted), "{found}");
}

#[tokio::test]
async fn a_range_that_was_taken_out_with_its_files_or_changed_is_found() {
    let count = intents(&lake().await).await.len();
    for number in 0..count - 1 {
        let lake = lake().await;
        let (path, mut intent) = intents(&lake).await.remove(number);
        let heads = intent.heads.as_mut().unwrap();
        (heads.before, heads.after) = (heads.after, heads.before);
        lake.put(&path, intent.encode().into()).await.unwrap();
        let found = report(&lake, &[]).await;
        assert!(!found.is_sound(), "range {number} was changed");

        lake.delete(&path).await.unwrap();
        for file in &intent.files {
            lake.delete(&layout::path(&file.path)).await.unwrap();
        }
        let found = report(&lake, &[]).await;
        let words = match number {
            0 => "does not begin the chain",
            _ => "begins with another hash than the last one ended with",
        };
        assert!(
            found.offences().iter().any(|offence| offence.contains(words)),
            "range {number} is gone: {found}"
        );
    }
}

#[tokio::test]
async fn a_tail_that_was_cut_off_whole_is_found_by_a_head_that_was_noted() {
    let lake = lake().await;
    let noted: Vec<Digest> = report(&lake, &[]).await.heads().collect();
    assert!(report(&lake, &noted).await.is_sound());
    let (path, last) = intents(&lake).await.pop().unwrap();
    lake.delete(&path).await.unwrap();
    for file in &last.files {
        lake.delete(&layout::path(&file.path)).await.unwrap();
    }
    assert!(report(&lake, &[]).await.is_sound(), "the files alone cannot know");
    let found = report(&lake, &noted).await;
    assert!(
        found
            .offences()
            .iter()
            .any(|offence| offence.contains(&noted[0].to_string())),
        "{found}"
    );
}
