//! The audit: its events as rows, each chained to the one before, so that what is changed afterwards is found.
//!
//! The **hash** of a row is the SHA-256 of the hash of the row before and of the row's own canonical bytes ([`link`]). The
//! rows of a partition make one chain, in the order of their records on the topic, through all its ranges and days. An
//! intent holds the hash before its range and the one at its end, so that no range or file can be exchanged either; and
//! like all of an intent they are a function of the log and of the range before, so that whoever redoes a range makes the
//! same hashes.

mod check;
mod columns;
mod link;
#[cfg(test)]
mod tampering;

use std::collections::BTreeMap;

use chrono::NaiveDate;
use object_store::PutPayload;
use parquet::arrow::ArrowWriter;
use schemas::{AuditEvent, Digest, tables};

pub(crate) use check::{Counts, RangeRows, check};
pub(crate) use link::beginning;

use crate::{
    encode::{self, File, Footer, writer},
    range::{Heads, Table},
};

/// The rows of a range of audit events, under way.
#[derive(Debug)]
pub(crate) struct AuditRows {
    heads: Heads,
    days: BTreeMap<NaiveDate, Day>,
}

#[derive(Debug)]
struct Day {
    writer: ArrowWriter<File>,
    rows: u64,
}

impl AuditRows {
    /// Rows that go on from the one whose hash is `head`.
    pub(crate) fn new(head: Digest) -> Self {
        Self {
            heads: Heads {
                before: head,
                after: head,
            },
            days: BTreeMap::new(),
        }
    }

    pub(crate) fn heads(&self) -> Heads {
        self.heads
    }

    pub(crate) fn held_bytes(&self) -> usize {
        let held = |day: &Day| day.writer.memory_size() + day.writer.bytes_written();
        self.days.values().map(held).sum()
    }

    /// Adds the events of the record at `offset`.
    pub(crate) fn add(&mut self, date: NaiveDate, offset: i64, events: &[AuditEvent]) {
        if events.is_empty() {
            return;
        }
        let rows = columns::of(offset, events);
        let hashes =
            link::chain(&mut self.heads.after, &rows).expect("these are columns that can be chained");
        let day = self.days.entry(date).or_insert_with(|| Day {
            writer: writer(tables::audit(), encode::properties().build()),
            rows: 0,
        });
        day.rows += events.len() as u64;
        let rows = columns::with_hashes(&rows, &hashes);
        day.writer.write(&rows).expect("memory takes what is written");
    }

    /// The files of the rows, and how many each has.
    pub(crate) fn files(&self) -> Vec<(Table, NaiveDate, u64)> {
        let file = |(date, day): (&NaiveDate, &Day)| (Table::Audit, *date, day.rows);
        self.days.iter().map(file).collect()
    }

    /// Their bytes, in the same order.
    pub(crate) fn close(self, footer: &Footer<'_>) -> Vec<PutPayload> {
        let close = |(date, day): (NaiveDate, Day)| footer.close(day.writer, date, day.rows);
        self.days.into_iter().map(close).collect()
    }
}
