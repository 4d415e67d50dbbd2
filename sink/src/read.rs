//! Reads the files of outcomes back: some of their columns, results and costs side by side.

use arrow_array::RecordBatch;
use arrow_schema::Field;
use bytes::Bytes;
use parquet::{
    arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder},
    errors::ParquetError,
};

use crate::{Error, Store, layout, range::Table};

/// The columns called `names` of a file of `table`.
///
/// # Errors
/// Where it is no Parquet, or one of them is not there as it is in the table.
pub(crate) fn read_columns(
    file: &Bytes,
    table: Table,
    names: &[&str],
) -> Result<Vec<RecordBatch>, ParquetError> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(file.clone())?;
    let schema = table.schema();
    for name in names {
        let wanted = schema.field_with_name(name).expect("it is a column of the table");
        let found = builder.schema().field_with_name(name).map(Field::data_type);
        if found.ok() != Some(wanted.data_type()) {
            let problem = format!("it has no column `{name}` of {}", wanted.data_type());
            return Err(ParquetError::General(problem));
        }
    }
    let mask = ProjectionMask::columns(builder.parquet_schema(), names.iter().copied());
    let reader = builder.with_projection(mask).build()?;
    reader
        .map(|batch| batch.map_err(|error| ParquetError::External(Box::new(error))))
        .collect()
}

/// Which columns are read.
#[derive(Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) of_results: &'a [&'a str],
    pub(crate) of_costs: &'a [&'a str],
}

/// Hands all outcomes in `store` to `take`, so many rows at a time: the tenant's name, and the same rows of both tables.
///
/// # Errors
/// Where the lake cannot be read, or has a file that is none of its own.
pub(crate) async fn read_outcomes(
    store: &Store,
    wanted: Wanted<'_>,
    mut take: impl FnMut(&str, &RecordBatch, &RecordBatch),
) -> Result<(), Error> {
    let (of_results, of_costs) = (Table::Results.name(), Table::Costs.name());
    for path in store.list(&layout::path(of_results)).await? {
        let twin = layout::path(&path.as_ref().replacen(of_results, of_costs, 1));
        // A sink may be at it: the twin is written beside it.
        let (Some(results), Some(costs)) = (store.read(&path).await?, store.read(&twin).await?) else {
            continue;
        };
        let contradiction = |why: String| Error::Contradiction {
            what: format!("`{path}` or its twin `{twin}` is no file of a lake: {why}"),
        };
        let unreadable = |error: ParquetError| contradiction(error.to_string());
        let rows = read_columns(&results, Table::Results, wanted.of_results).map_err(unreadable)?;
        let bills = read_columns(&costs, Table::Costs, wanted.of_costs).map_err(unreadable)?;
        let count = |batches: &[RecordBatch]| batches.iter().map(RecordBatch::num_rows).collect::<Vec<_>>();
        if count(&rows) != count(&bills) {
            return Err(contradiction("they have not as many rows".to_owned()));
        }
        let parts: Vec<_> = path.parts().collect();
        let tenant = parts
            .iter()
            .find_map(|part| part.as_ref().strip_prefix("tenant="));
        for (rows, bills) in rows.iter().zip(&bills) {
            take(tenant.unwrap_or_default(), rows, bills);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{ArrayRef, Int32Array, StringArray};
    use parquet::arrow::ArrowWriter;

    use super::*;

    /// A file of one column.
    fn file(name: &str, column: ArrayRef) -> Bytes {
        let batch = RecordBatch::try_from_iter([(name, column)]).unwrap();
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.into_inner().unwrap().into()
    }

    #[test]
    fn a_foreign_file_is_told_by_the_column_that_it_has_not() {
        let read = |file: &Bytes| read_columns(file, Table::Results, &["status"]);
        let good = file("status", Arc::new(StringArray::from(vec!["succeeded"])));
        assert_eq!(read(&good).unwrap()[0].num_rows(), 1);
        let other = file("state", Arc::new(StringArray::from(vec!["succeeded"])));
        let numbers = file("status", Arc::new(Int32Array::from(vec![1])));
        for foreign in [other, numbers] {
            let error = read(&foreign).unwrap_err().to_string();
            assert!(error.contains("it has no column `status` of Utf8"), "{error}");
        }
    }
}
