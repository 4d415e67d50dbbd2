//! How a row is chained to the one before: a function of the row alone, whatever its columns are.
//!
//! The canonical bytes of a row are those of a group of its columns, but for [`AUDIT_HASH`]:
//!
//! - an integer or a time (in microseconds): 8 bytes, big-endian;
//! - a text: its length in bytes as such an integer, and its UTF-8;
//! - a list: its length as such an integer, and its elements;
//! - a group: of each field that is not null, in order, its name as a text and its value; then the integer 0.
//!
//! So no two different rows of a table have the same bytes; a column that is added later is covered without a word here;
//! and rows that have nothing in it keep their hashes, so that a newer build can do an older one's range again.

use arrow_array::{Array, ArrayRef, RecordBatch, cast::AsArray, types};
use arrow_schema::{DataType, Fields, TimeUnit};
use schemas::{Digest, TopicId, tables::AUDIT_HASH};
use sha2::{Digest as _, Sha256};

/// Where the chain of a partition begins: the hash before its first row.
pub(crate) fn beginning(topic_id: TopicId, partition: i32) -> Digest {
    let text = format!("tributary audit of {topic_id}[{partition}]");
    Digest::from_bytes(Sha256::digest(text).into())
}

/// The hashes of `rows`, which follow the row whose hash is `head`; this is that of the last of them then.
///
/// # Errors
/// A column whose type has no canonical bytes.
pub(crate) fn chain(head: &mut Digest, rows: &RecordBatch) -> Result<Vec<Digest>, String> {
    let bytes = canonical(rows)?;
    let hash = |row: &Vec<u8>| {
        *head = follow(head, row);
        *head
    };
    Ok(bytes.iter().map(hash).collect())
}

/// The hash of the row of these canonical bytes after the one whose hash is `before`.
pub(super) fn follow(before: &Digest, canonical: &[u8]) -> Digest {
    let mut hash = Sha256::new();
    hash.update(before.as_bytes());
    hash.update(canonical);
    Digest::from_bytes(hash.finalize().into())
}

/// The canonical bytes of each of `rows`.
///
/// # Errors
/// A column whose type has none.
pub(super) fn canonical(rows: &RecordBatch) -> Result<Vec<Vec<u8>>, String> {
    let row = |row| {
        let mut bytes = Vec::new();
        push_group(&mut bytes, rows.schema().fields(), rows.columns(), row)?;
        Ok(bytes)
    };
    (0..rows.num_rows()).map(row).collect()
}

fn push_group(bytes: &mut Vec<u8>, fields: &Fields, columns: &[ArrayRef], row: usize) -> Result<(), String> {
    let fields = fields.iter().zip(columns);
    for (field, column) in fields.filter(|(field, column)| field.name() != AUDIT_HASH && column.is_valid(row))
    {
        push_text(bytes, field.name());
        push(bytes, column, row)?;
    }
    bytes.extend(0_u64.to_be_bytes());
    Ok(())
}

fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_be_bytes());
    bytes.extend(text.as_bytes());
}

fn push(bytes: &mut Vec<u8>, column: &ArrayRef, row: usize) -> Result<(), String> {
    let mut integer = |integer: i64| bytes.extend(integer.to_be_bytes());
    match column.data_type() {
        DataType::Int32 => integer(column.as_primitive::<types::Int32Type>().value(row).into()),
        DataType::Int64 => integer(column.as_primitive::<types::Int64Type>().value(row)),
        DataType::Timestamp(TimeUnit::Microsecond, _) => integer(
            column
                .as_primitive::<types::TimestampMicrosecondType>()
                .value(row),
        ),
        DataType::Utf8 => push_text(bytes, column.as_string::<i32>().value(row)),
        DataType::Struct(fields) => push_group(bytes, fields, column.as_struct().columns(), row)?,
        DataType::List(_) => {
            let list = column.as_list::<i32>().value(row);
            bytes.extend((list.len() as u64).to_be_bytes());
            for element in 0..list.len() {
                push(bytes, &list, element)?;
            }
        }
        other => return Err(format!("a column is of type {other}")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{Int64Array, StringArray};
    use arrow_schema::{Field, Schema};
    use proptest::prelude::*;

    use super::*;

    type Cells = (Option<i64>, Option<String>, Option<String>);

    fn rows(cells: &[Cells]) -> RecordBatch {
        let fields = [
            Field::new("number", DataType::Int64, true),
            Field::new("one", DataType::Utf8, true),
            Field::new("other", DataType::Utf8, true),
        ];
        let columns: Vec<ArrayRef> = vec![
            Arc::new(cells.iter().map(|(number, ..)| *number).collect::<Int64Array>()),
            Arc::new(
                cells
                    .iter()
                    .map(|(_, one, _)| one.as_deref())
                    .collect::<StringArray>(),
            ),
            Arc::new(
                cells
                    .iter()
                    .map(|(.., other)| other.as_deref())
                    .collect::<StringArray>(),
            ),
        ];
        RecordBatch::try_new(Arc::new(Schema::new(fields.to_vec())), columns).unwrap()
    }

    proptest! {
        #[test]
        fn rows_have_the_same_canonical_bytes_only_if_they_are_the_same(
            one: Cells,
            other: Cells,
        ) {
            let bytes = canonical(&rows(&[one.clone(), other.clone()])).unwrap();
            prop_assert_eq!(bytes[0] == bytes[1], one == other);
        }

        #[test]
        fn a_chain_is_the_same_in_however_many_pieces_its_rows_come(cells in prop::collection::vec(any::<Cells>(), 1..10), at: prop::sample::Index) {
            let start = beginning(TopicId::from_bytes([7; 16]), 0);
            let at = at.index(cells.len());
            let (mut whole, mut pieces) = (start, start);
            let hashes = chain(&mut whole, &rows(&cells)).unwrap();
            let mut again = chain(&mut pieces, &rows(&cells[..at])).unwrap();
            again.extend(chain(&mut pieces, &rows(&cells[at..])).unwrap());
            prop_assert_eq!((whole, hashes), (pieces, again));
        }
    }

    #[test]
    fn a_column_that_is_added_and_has_nothing_of_a_row_leaves_its_bytes_alone() {
        let row = rows(&[(Some(1), Some("a".to_owned()), None)]);
        assert_eq!(canonical(&row), canonical(&row.project(&[0, 1]).unwrap()));
    }

    #[test]
    fn a_text_cannot_move_from_one_column_to_the_next_unseen() {
        let text = |text: &str| Some(text.to_owned());
        let bytes = canonical(&rows(&[
            (None, text("ab"), text("c")),
            (None, text("a"), text("bc")),
            (None, text("abc"), None),
            (None, text("abc"), text("")),
        ]))
        .unwrap();
        for (number, one) in bytes.iter().enumerate() {
            assert_eq!(bytes.iter().position(|other| other == one), Some(number));
        }
    }
}
