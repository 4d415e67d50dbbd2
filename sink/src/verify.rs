//! What the files of a lake prove: no gap, no overlap, no duplicate, for every tenant.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
};

use arrow_array::{Array, RecordBatch, cast::AsArray, types};
use bytes::Bytes;
use chrono::NaiveDate;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::{ObjectStoreExt, path::Path};
use parquet::{
    arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder},
    errors::ParquetError,
    file::metadata::{ParquetMetaData, ParquetMetaDataReader},
};
use schemas::{Digest, Tenant, TopicId};

use crate::{
    Error, Options, Store,
    audit::{self, Counts, RangeRows},
    chain, layout,
    range::{Heads, RangeFile, RangeIntent, Table},
};

/// Objects that are read side by side.
const READS_AT_ONCE: usize = 16;
/// A footer is read with this many bytes of the file's end; a larger one takes a second read.
const FOOTER_BYTES: u64 = 64 << 10;
/// This many offences are named; the others are counted.
const OFFENCES_SHOWN: usize = 20;

/// How deep to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// The ranges and the files' footers.
    Footers,
    /// The rows too.
    Rows,
}

/// What a lake's files prove.
#[derive(Debug, Clone, Default)]
pub struct Report {
    partitions: usize,
    ranges: usize,
    files: usize,
    /// Outcomes by tenant.
    tenants: BTreeMap<String, u64>,
    /// Rows of the audit, and what they tell.
    audit_rows: u64,
    audited: Counts,
    duplicates_dropped: u64,
    device_time_ns: u128,
    rows_read: bool,
    offences: Vec<String>,
    unchecked: Vec<String>,
}

impl Report {
    /// Whether no offence was found.
    pub fn is_sound(&self) -> bool {
        self.offences.is_empty()
    }

    /// What is wrong with the lake, each offence with the object that it is about.
    pub fn offences(&self) -> &[String] {
        &self.offences
    }

    /// What could not be checked, and why.
    pub fn unchecked(&self) -> &[String] {
        &self.unchecked
    }

    /// How many outcomes the lake holds.
    pub fn outcomes(&self) -> u64 {
        self.tenants.values().sum()
    }

    /// How many outcomes the lake holds of each tenant.
    pub fn outcomes_by_tenant(&self) -> &BTreeMap<String, u64> {
        &self.tenants
    }
}

/// What the files of a lake prove of its audit.
#[derive(Debug, Clone, Default)]
pub struct AuditReport {
    report: Report,
    /// Where each chain ends, and its hash there.
    heads: BTreeMap<String, Digest>,
}

impl AuditReport {
    /// Whether every row is the one that was written.
    pub fn is_sound(&self) -> bool {
        self.report.is_sound()
    }

    /// What is wrong, each with the row or the object that it is about.
    pub fn offences(&self) -> &[String] {
        self.report.offences()
    }

    /// How often something happened: by operation, tenant and, where it was refused, why.
    pub fn counts(&self) -> &BTreeMap<(String, Option<String>, Option<String>), u64> {
        &self.report.audited
    }

    /// The hashes that the chains end with.
    pub fn heads(&self) -> impl Iterator<Item = Digest> {
        self.heads.values().copied()
    }
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
        self.report.check_batches(self.rows);
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
        } else if let Some(heads) = intent.heads
            && heads.before != audit::beginning(intent.topic_id, intent.partition)
        {
            self.offences.push(format!(
                "range {name} is the first of its partition and does not begin the chain: those before it were taken out"
            ));
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
                if let Err(error) = self.check_rows(&name, results, costs, rows) {
                    self.offences
                        .push(format!("the rows of range {name} cannot be read: {error}"));
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

    /// Results and costs are projections of the same outcomes in the same order, so they join row by row.
    fn check_rows(
        &mut self,
        name: &str,
        results: &Bytes,
        costs: &Bytes,
        rows: &mut Rows,
    ) -> Result<(), ParquetError> {
        let of_results = origins(&read_columns(
            results,
            &["origin_topic_id", "origin_partition", "origin_offset"],
        )?);
        let cost_columns = [
            "origin_topic_id",
            "origin_partition",
            "origin_offset",
            "x_device_time_ns",
            "x_batch_id",
            "x_batch_jobs",
            "x_batch_device_time_ns",
        ];
        let batches = read_columns(costs, &cost_columns)?;
        if of_results != origins(&batches) {
            self.offences.push(format!(
                "results and costs of range {name} do not join one to one"
            ));
        }
        for origin in of_results {
            let text = format!("{}[{}]@{}", origin.0, origin.1, origin.2);
            if !rows.origins.insert(origin) {
                self.offences.push(format!(
                    "duplicate: job {text} has a second outcome in range {name}"
                ));
            }
        }
        for batch in &batches {
            let time = batch["x_device_time_ns"].as_primitive::<types::Int64Type>();
            let id = batch["x_batch_id"].as_string::<i32>();
            let jobs = batch["x_batch_jobs"].as_primitive::<types::Int32Type>();
            let whole = batch["x_batch_device_time_ns"].as_primitive::<types::Int64Type>();
            for row in 0..batch.num_rows() {
                self.device_time_ns += u128::from(time.value(row).unsigned_abs());
                if id.is_valid(row) {
                    let shared = rows.batches.entry(id.value(row).to_owned()).or_default();
                    shared.rows += 1;
                    shared.sum_ns += time.value(row);
                    (shared.jobs, shared.whole_ns) = (jobs.value(row), whole.value(row));
                }
            }
        }
        Ok(())
    }

    fn check_batches(&mut self, rows: Rows) {
        let mut partial = 0;
        for (id, batch) in rows.batches {
            if batch.rows < batch.jobs {
                partial += 1;
            } else if batch.rows > batch.jobs || batch.sum_ns != batch.whole_ns {
                self.offences.push(format!(
                    "micro-batch {id}: {} of {} jobs pay {} ns for {} ns of device time",
                    batch.rows, batch.jobs, batch.sum_ns, batch.whole_ns
                ));
            }
        }
        if partial > 0 {
            self.unchecked.push(format!(
                "the device time of {partial} micro-batches, not all of whose jobs are in the lake"
            ));
        }
    }
}

/// What is gathered over all rows.
#[derive(Default)]
struct Rows {
    origins: HashSet<(String, i32, i64)>,
    batches: HashMap<String, Batch>,
}

#[derive(Default)]
struct Batch {
    rows: i32,
    jobs: i32,
    sum_ns: i64,
    whole_ns: i64,
}

fn origins(batches: &[RecordBatch]) -> Vec<(String, i32, i64)> {
    let mut origins = Vec::new();
    for batch in batches {
        let topic = batch["origin_topic_id"].as_string::<i32>();
        let partition = batch["origin_partition"].as_primitive::<types::Int32Type>();
        let offset = batch["origin_offset"].as_primitive::<types::Int64Type>();
        origins.extend((0..batch.num_rows()).map(|row| {
            (
                topic.value(row).to_owned(),
                partition.value(row),
                offset.value(row),
            )
        }));
    }
    origins
}

/// The columns called `names` of a Parquet file.
pub(crate) fn read_columns(file: &Bytes, names: &[&str]) -> Result<Vec<RecordBatch>, ParquetError> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(file.clone())?;
    let mask = ProjectionMask::columns(builder.parquet_schema(), names.iter().copied());
    let reader = builder.with_projection(mask).build()?;
    reader
        .map(|batch| batch.map_err(|error| ParquetError::External(Box::new(error))))
        .collect()
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

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} partitions, {} ranges, {} files, {} outcomes",
            self.partitions,
            self.ranges,
            self.files,
            self.outcomes()
        )?;
        for (tenant, rows) in &self.tenants {
            writeln!(f, "  {tenant:<20} {rows:>12} outcomes")?;
        }
        if self.audit_rows > 0 {
            writeln!(f, "{} rows of audit", self.audit_rows)?;
        }
        if self.duplicates_dropped > 0 {
            writeln!(
                f,
                "{} repeated outcomes were dropped when the files were written",
                self.duplicates_dropped
            )?;
        }
        if self.rows_read {
            writeln!(f, "{} ns of device time are billed", self.device_time_ns)?;
        } else {
            writeln!(
                f,
                "rows were not read: --data checks duplicates, the join and the sums of device time too"
            )?;
        }
        for unchecked in &self.unchecked {
            writeln!(f, "not checked: {unchecked}")?;
        }
        if self.is_sound() {
            return write!(
                f,
                "sound: no gap, no overlap{}",
                if self.rows_read { ", no duplicate" } else { "" }
            );
        }
        self.list_offences(f)
    }
}

impl Report {
    fn list_offences(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for offence in self.offences.iter().take(OFFENCES_SHOWN) {
            writeln!(f, "offence: {offence}")?;
        }
        write!(f, "{} offences", self.offences.len())
    }
}

impl fmt::Display for AuditReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = &self.report;
        writeln!(
            f,
            "{} partitions, {} ranges, {} files, {} rows of audit",
            report.partitions, report.ranges, report.files, report.audit_rows
        )?;
        let mut totals: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for ((operation, _, refused), count) in &report.audited {
            let result = refused.as_deref().unwrap_or("done");
            *totals.entry((operation, result)).or_default() += count;
        }
        for ((operation, result), count) in totals {
            writeln!(f, "  {operation:<20} {result:<24} {count:>12}")?;
        }
        for (place, head) in &self.heads {
            writeln!(f, "head of {place}: {head}")?;
        }
        if self.is_sound() {
            return write!(f, "sound: each row follows from the one before it");
        }
        report.list_offences(f)
    }
}
