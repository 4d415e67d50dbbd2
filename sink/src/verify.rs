//! What the files of a lake prove: no gap, no overlap, no duplicate, for every tenant.

mod report;
mod rows;

use std::collections::{BTreeMap, BTreeSet, HashSet};

use bytes::Bytes;
use chrono::NaiveDate;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::{ObjectStoreExt, path::Path};
use parquet::{
    errors::ParquetError,
    file::metadata::{ParquetMetaData, ParquetMetaDataReader},
};
use schemas::{Digest, Tenant, TopicId};

pub use report::{AuditReport, Report};

use crate::{
    Error, Options, Store,
    audit::{self, RangeRows},
    chain, layout,
    range::{Carried, Heads, RangeFile, RangeIntent, Table},
};
use rows::Rows;

/// Objects that are read side by side.
const READS_AT_ONCE: usize = 16;
/// A footer is read with this many bytes of the file's end; a larger one takes a second read.
const FOOTER_BYTES: u64 = 64 << 10;

/// How deep to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// The ranges and the files' footers.
    Footers,
    /// The rows too.
    Rows,
}

/// Verifies the lake at `url`.
///
/// # Errors
/// Where the lake cannot be read, or there is none. What is wrong *in* it stands in the report.
pub async fn verify(url: &str, options: &Options, depth: Depth) -> Result<Report, Error> {
    verify_store(&Store::open_written(url, options).await?, depth).await
}

/// Verifies the lake in `store`.
///
/// # Errors
/// Where the lake cannot be read. What is wrong *in* it stands in the report.
pub async fn verify_store(store: &Store, depth: Depth) -> Result<Report, Error> {
    let tables = [Table::Results, Table::Costs, Table::Audit];
    let mut walk = Walk::begin(store, depth, &tables).await?;
    for (partition, starts) in chains(store).await? {
        let (before, last) = walk.links(partition, &starts).await?;
        if let Some(last) = last {
            walk.last(before.as_ref(), last).await?;
        }
    }
    Ok(walk.end())
}

/// Verifies the audit in the lake at `url`: that its rows are those that were written, in their order. Each of `noted`
/// must be the end of one of its ranges.
///
/// # Errors
/// Where the lake cannot be read, or there is none. What is wrong *in* it stands in the report.
pub async fn verify_audit(url: &str, options: &Options, noted: &[Digest]) -> Result<AuditReport, Error> {
    verify_audit_of(&Store::open_written(url, options).await?, noted).await
}

/// The same in `store`.
///
/// # Errors
/// Where the lake cannot be read. What is wrong *in* it stands in the report.
pub async fn verify_audit_of(store: &Store, noted: &[Digest]) -> Result<AuditReport, Error> {
    let mut walk = Walk::begin(store, Depth::Rows, &[Table::Audit]).await?;
    let mut heads = BTreeMap::new();
    for (partition, starts) in chains(store).await? {
        let first = chain::intent(store, partition.0, partition.1, starts[0]).await;
        if first.is_ok_and(|first| first.heads.is_none()) {
            continue;
        }
        let (before, last) = walk.links(partition, &starts).await?;
        if let Some(last) = last {
            // Where a sink is at it, it is soon whole. Otherwise who looks must know.
            walk.link(before.as_ref(), &last, true).await?;
            let name = format!("{}[{}] before offset {}", last.topic, last.partition, last.end);
            heads.extend(last.heads.map(|heads| (name, heads.after)));
        }
    }
    let missing = noted.iter().filter(|head| !walk.passed.contains(head));
    let offences = missing.map(|head| {
        format!("no range ends with {head}, which was noted: what followed, or all, was taken out")
    });
    let offences: Vec<String> = offences.collect();
    let mut report = walk.end();
    report.offences.extend(offences);
    Ok(AuditReport { report, heads })
}

/// A walk along the chains of ranges.
struct Walk<'a> {
    store: &'a Store,
    depth: Depth,
    /// Data files that no range has named yet.
    present: BTreeSet<Path>,
    rows: Rows,
    /// The hashes that ranges of the audit end with.
    passed: HashSet<Digest>,
    report: Report,
}

impl<'a> Walk<'a> {
    async fn begin(store: &'a Store, depth: Depth, tables: &[Table]) -> Result<Self, Error> {
        let mut present = BTreeSet::new();
        for table in tables {
            present.extend(store.list(&layout::path(table.name())).await?);
        }
        let report = Report {
            rows_read: depth == Depth::Rows,
            ..Report::default()
        };
        Ok(Self {
            store,
            depth,
            present,
            rows: Rows::default(),
            passed: HashSet::new(),
            report,
        })
    }

    /// Walks along the ranges of a partition but for the last one, and answers that and the one before it.
    async fn links(
        &mut self,
        (topic_id, partition): (TopicId, i32),
        starts: &[i64],
    ) -> Result<(Option<RangeIntent>, Option<RangeIntent>), Error> {
        self.report.partitions += 1;
        let read = starts
            .iter()
            .map(|start| chain::intent(self.store, topic_id, partition, *start));
        let intents: Vec<Result<RangeIntent, Error>> =
            stream::iter(read).buffered(READS_AT_ONCE).collect().await;
        let (mut before, mut last): (Option<RangeIntent>, Option<RangeIntent>) = (None, None);
        for intent in intents {
            let intent = match intent {
                Ok(intent) => intent,
                Err(Error::Contradiction { what }) => {
                    self.report.offences.push(what);
                    continue;
                }
                Err(error) => return Err(error),
            };
            if let Some(whole) = last.replace(intent) {
                self.link(before.as_ref(), &whole, true).await?;
                before = Some(whole);
            }
        }
        Ok((before, last))
    }

    /// The last range of a partition may be under way.
    async fn last(&mut self, before: Option<&RangeIntent>, intent: RangeIntent) -> Result<(), Error> {
        let is_whole = intent
            .files
            .iter()
            .all(|file| self.present.contains(&layout::path(&file.path)));
        if !is_whole {
            self.report.unchecked.push(format!(
                "the last range of {}[{}], from offset {}, is not whole yet: a sink is at it, or will redo it",
                intent.topic, intent.partition, intent.start
            ));
        }
        self.link(before, &intent, is_whole).await
    }

    /// Checks a range, and its files where they should be there.
    async fn link(
        &mut self,
        before: Option<&RangeIntent>,
        intent: &RangeIntent,
        is_whole: bool,
    ) -> Result<(), Error> {
        self.report.check_link(before, intent);
        self.passed.extend(intent.heads.map(|heads| heads.after));
        if is_whole {
            self.report
                .check_files(self.store, intent, self.depth, &mut self.rows)
                .await?;
        }
        for file in &intent.files {
            self.present.remove(&layout::path(&file.path));
        }
        Ok(())
    }

    fn end(mut self) -> Report {
        let unnamed = self.present.iter();
        self.report
            .offences
            .extend(unnamed.map(|path| format!("`{path}` is a data file that no range names")));
        self.rows.end(&mut self.report);
        self.report
    }
}

/// The starts of every partition's ranges, in order.
async fn chains(store: &Store) -> Result<BTreeMap<(TopicId, i32), Vec<i64>>, Error> {
    let mut chains: BTreeMap<(TopicId, i32), Vec<i64>> = BTreeMap::new();
    for path in store.list(&layout::path(layout::RANGES)).await? {
        let parts: Vec<String> = path.parts().map(|part| part.as_ref().to_owned()).collect();
        if let [_, topic, partition, _] = parts.as_slice()
            && let Ok(topic) = topic.parse::<TopicId>()
            && let (Ok(partition), Some(start)) = (partition.parse(), layout::start_of(&path))
        {
            chains.entry((topic, partition)).or_default().push(start);
        }
    }
    Ok(chains)
}

impl Report {
    fn check_link(&mut self, before: Option<&RangeIntent>, intent: &RangeIntent) {
        self.ranges += 1;
        self.duplicates_dropped += intent.duplicates;
        let name = format!(
            "{}[{}] from offset {}",
            intent.topic, intent.partition, intent.start
        );
        if intent.end <= intent.start {
            self.offences
                .push(format!("range {name} ends at {}, before it begins", intent.end));
        }
        if let Some(before) = before {
            if before.end < intent.start {
                self.offences.push(format!(
                    "gap: no range holds the offsets from {} before range {name}",
                    before.end
                ));
            }
            if before.end > intent.start {
                self.offences.push(format!(
                    "overlap: range {name} begins before the last one ends, at {}",
                    before.end
                ));
            }
            if before.carried_after() != intent.carried_before() {
                let what = match intent.heads {
                    Some(_) => "another hash",
                    None => "other marks",
                };
                self.offences.push(format!(
                    "range {name} begins with {what} than the last one ended with"
                ));
            }
        } else {
            let beginning =
                Carried::at_the_beginning(intent.topic_id, intent.partition, intent.heads.is_some());
            if intent.carried_before() != beginning {
                self.offences.push(format!(
                    "range {name} is the first of its partition and does not begin the chain: those before it were taken out"
                ));
            }
        }
        let rows = |table| -> BTreeMap<_, _> {
            let of_table = intent
                .files
                .iter()
                .filter(|file: &&RangeFile| file.table == table);
            of_table.map(|file| (file.date, file.rows)).collect()
        };
        let results = rows(Table::Results);
        if results != rows(Table::Costs) {
            self.offences
                .push(format!("range {name} has not as many costs as results"));
        }
        self.audit_rows += rows(Table::Audit).values().sum::<u64>();
        if let Some(tenant) = &intent.tenant {
            *self.tenants.entry(tenant.to_string()).or_default() += results.values().sum::<u64>();
        }
    }

    async fn check_files(
        &mut self,
        store: &Store,
        intent: &RangeIntent,
        depth: Depth,
        rows: &mut Rows,
    ) -> Result<(), Error> {
        let digest = intent.digest();
        let checks = intent.files.iter().map(|file| async {
            let path = layout::path(&file.path);
            match depth {
                Depth::Footers => Ok(footer(store, &path)
                    .await?
                    .map(|footer| footer.map(|metadata| (metadata, None)))),
                Depth::Rows => Ok::<_, Error>(
                    store
                        .read(&path)
                        .await?
                        .map(|bytes| whole(&bytes).map(|metadata| (metadata, Some(bytes)))),
                ),
            }
        });
        let found: Vec<_> = stream::iter(checks).buffered(READS_AT_ONCE).try_collect().await?;
        let mut read = BTreeMap::new();
        for (file, found) in intent.files.iter().zip(found) {
            self.files += 1;
            let (metadata, bytes) = match found {
                None => {
                    self.offences
                        .push(format!("`{}` is named by a range and is not there", file.path));
                    continue;
                }
                Some(Err(error)) => {
                    self.offences
                        .push(format!("`{}` is no readable Parquet: {error}", file.path));
                    continue;
                }
                Some(Ok(found)) => found,
            };
            self.offences
                .extend(disagreements(&metadata, intent, &digest, file));
            if let Some(bytes) = bytes {
                read.insert((file.date, file.table), bytes);
            }
        }
        if let Some(heads) = intent.heads {
            self.check_audit(intent, heads, read);
            return Ok(());
        }
        let dates: BTreeSet<_> = read.keys().map(|(date, _)| *date).collect();
        for date in dates {
            if let (Some(results), Some(costs)) =
                (read.get(&(date, Table::Results)), read.get(&(date, Table::Costs)))
            {
                let name = format!(
                    "{}[{}] from offset {} on {date}",
                    intent.topic, intent.partition, intent.start
                );
                match rows.check(&name, results, costs) {
                    Ok(offences) => self.offences.extend(offences),
                    Err(error) => self
                        .offences
                        .push(format!("the rows of range {name} cannot be read: {error}")),
                }
            }
        }
        Ok(())
    }

    /// The rows of the audit follow one from the other. Where a file is missing or broken, that was said.
    fn check_audit(
        &mut self,
        intent: &RangeIntent,
        heads: Heads,
        mut read: BTreeMap<(NaiveDate, Table), Bytes>,
    ) {
        let files = intent.files.iter().filter_map(|file| {
            let bytes = read.remove(&(file.date, file.table))?;
            Some((file.path.as_str(), bytes))
        });
        let range = RangeRows {
            name: format!(
                "{}[{}] from offset {}",
                intent.topic, intent.partition, intent.start
            ),
            heads,
            files: files.collect(),
        };
        if range.files.len() == intent.files.len() {
            self.offences.extend(audit::check(&range, &mut self.audited));
        }
    }
}

fn whole(bytes: &Bytes) -> Result<ParquetMetaData, ParquetError> {
    ParquetMetaDataReader::new().parse_and_finish(bytes)
}

/// The footer of a file, without its data; none where the file is not there.
async fn footer(store: &Store, path: &Path) -> Result<Option<Result<ParquetMetaData, ParquetError>>, Error> {
    let failed = |source| Error::Unavailable {
        what: format!("read the footer of `{path}`"),
        source,
    };
    let inner = store.inner();
    let size = match inner.head(path).await {
        Ok(meta) => meta.size,
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if size == 0 {
        return Ok(Some(Err(ParquetError::EOF("it has no bytes".to_owned()))));
    }
    let mut wanted = FOOTER_BYTES.min(size);
    loop {
        let tail = inner.get_range(path, size - wanted..size).await.map_err(failed)?;
        let mut reader = ParquetMetaDataReader::new();
        match reader.try_parse_sized(&tail, size) {
            Ok(()) => return Ok(Some(reader.finish())),
            Err(ParquetError::NeedMoreData(needed)) if needed as u64 > wanted && wanted < size => {
                wanted = (needed as u64).min(size);
            }
            Err(error) => return Ok(Some(Err(error))),
        }
    }
}

fn disagreements(
    metadata: &ParquetMetaData,
    intent: &RangeIntent,
    digest: &str,
    file: &RangeFile,
) -> Vec<String> {
    let entries = metadata.file_metadata().key_value_metadata();
    let value = |key: &str| {
        let name = format!("tributary.{key}");
        entries
            .into_iter()
            .flatten()
            .find(|entry| entry.key == name)
            .and_then(|entry| entry.value.as_deref())
    };
    let rows = metadata.file_metadata().num_rows().to_string();
    let expected = [
        ("topic_id", Some(intent.topic_id.to_string())),
        ("partition", Some(intent.partition.to_string())),
        ("start", Some(intent.start.to_string())),
        ("end", Some(intent.end.to_string())),
        ("tenant", intent.tenant.as_ref().map(Tenant::to_string)),
        ("rows", Some(file.rows.to_string())),
        ("intent_digest", Some(digest.to_owned())),
    ];
    let mut found: Vec<String> = expected
        .into_iter()
        .filter(|(key, expected)| value(key) != expected.as_deref())
        .map(|(key, expected)| {
            format!(
                "`{}`: its footer says {key} {:?}, its range {:?}",
                file.path,
                value(key).unwrap_or("nothing"),
                expected.as_deref().unwrap_or("nothing"),
            )
        })
        .collect();
    if rows != file.rows.to_string() {
        found.push(format!(
            "`{}` has {rows} rows, and its range says {}",
            file.path, file.rows
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::{ObjectStore, memory::InMemory};

    use super::*;
    use crate::faults;

    /// A lake with several ranges in each partition, and what stands in `folder` there.
    async fn lake(folder: &str) -> (Arc<dyn ObjectStore>, Vec<Path>) {
        let lake: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let store = Store::over(Arc::clone(&lake), "the lake");
        faults::run_sink(&faults::topics().await, store.clone())
            .await
            .unwrap();
        let paths = store.list(&layout::path(folder)).await.unwrap();
        (lake, paths)
    }

    async fn offences(lake: &Arc<dyn ObjectStore>, depth: Depth) -> Vec<String> {
        let store = Store::over(Arc::clone(lake), "the lake");
        verify_store(&store, depth).await.unwrap().offences
    }

    #[tokio::test]
    async fn a_partition_whose_first_range_is_gone_with_its_files_is_not_sound() {
        let (lake, intents) = lake(layout::RANGES).await;
        for path in intents {
            let bytes = lake.get(&path).await.unwrap().bytes().await.unwrap();
            let intent = RangeIntent::decode(&bytes).unwrap();
            if intent.start == 0 && intent.heads.is_none() {
                lake.delete(&path).await.unwrap();
                for file in &intent.files {
                    lake.delete(&layout::path(&file.path)).await.unwrap();
                }
            }
        }
        let found = offences(&lake, Depth::Footers).await;
        let told = found
            .iter()
            .filter(|offence| offence.contains("those before it were taken out"));
        assert_eq!((told.count(), found.len()), (2, 2), "{found:?}");
    }

    #[tokio::test]
    async fn a_data_file_without_bytes_is_named() {
        let (lake, files) = lake(Table::Results.name()).await;
        lake.put(&files[0], Bytes::new().into()).await.unwrap();
        for depth in [Depth::Footers, Depth::Rows] {
            let found = offences(&lake, depth).await;
            let named = format!("`{}` is no readable Parquet", files[0]);
            assert!(
                found.iter().any(|offence| offence.starts_with(&named)),
                "{found:?}"
            );
        }
    }
}
