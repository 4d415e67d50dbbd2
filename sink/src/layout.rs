//! Where objects stand in the lake. Paths are built from checked names and numbers only.

use chrono::NaiveDate;
use object_store::path::Path;
use schemas::{Tenant, TopicId};

use crate::range::Table;

/// The folder of the ranges of all partitions.
pub(crate) const RANGES: &str = "_ranges";
/// The folder of the probes that a sink writes and removes when it starts.
pub(crate) const PROBES: &str = "_probes";

/// The folder of one partition's ranges.
pub(crate) fn ranges(topic: TopicId, partition: i32) -> Path {
    path(&format!("{RANGES}/{topic}/{partition}"))
}

/// The intent of the range that begins at `start`. Names sort as offsets do.
pub(crate) fn intent(topic: TopicId, partition: i32, start: i64) -> Path {
    path(&format!("{RANGES}/{topic}/{partition}/{start:020}.json"))
}

/// The start of the range whose intent stands at `path`.
pub(crate) fn start_of(path: &Path) -> Option<i64> {
    path.filename()?.strip_suffix(".json")?.parse().ok()
}

/// A data file: the rows of `table` on `date` of the range that begins at `start`, of one tenant or of none in particular. A
/// topic's id may begin with `_`, and Spark, Hive, Trino and pyarrow take a file of such a name for none of the table's: hence
/// the word before it.
pub(crate) fn data(
    table: Table,
    tenant: Option<&Tenant>,
    date: NaiveDate,
    topic: TopicId,
    partition: i32,
    start: i64,
) -> String {
    let of_tenant = tenant.map_or(String::new(), |tenant| format!("tenant={tenant}/"));
    format!(
        "{}/{of_tenant}date={date}/range-{topic}-{partition}-{start:020}.parquet",
        table.name()
    )
}

/// A path from text that is known to be one.
pub(crate) fn path(text: &str) -> Path {
    Path::parse(text).expect("checked names and numbers make a valid path")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intents_sort_by_their_start_and_give_it_back() {
        let topic = TopicId::from_bytes([7; 16]);
        let (nine, ten) = (intent(topic, 3, 9), intent(topic, 3, 10));
        assert!(nine < ten);
        assert_eq!(start_of(&ten), Some(10));
        assert_eq!(start_of(&path("_ranges/x/0/readme.txt")), None);
    }

    #[test]
    fn a_data_file_stands_where_glob_readers_find_it_and_its_tenant_and_date() {
        let date = NaiveDate::from_ymd_opt(2026, 11, 24).unwrap();
        let path = data(
            Table::Results,
            Some(&Tenant::new("acme").unwrap()),
            date,
            TopicId::from_bytes([0xff; 16]),
            1,
            42,
        );
        assert_eq!(
            path,
            "results/tenant=acme/date=2026-11-24/range-_____________________w-1-00000000000000000042.parquet"
        );
    }
}
