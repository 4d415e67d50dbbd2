//! What the files of a lake prove, and how it is told.

use std::{collections::BTreeMap, fmt};

use schemas::Digest;

use crate::audit::Counts;

/// This many offences are named; the others are counted.
const OFFENCES_SHOWN: usize = 20;

/// What a lake's files prove.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub(super) partitions: usize,
    pub(super) ranges: usize,
    pub(super) files: usize,
    /// Outcomes by tenant.
    pub(super) tenants: BTreeMap<String, u64>,
    /// Rows of the audit, and what they tell.
    pub(super) audit_rows: u64,
    pub(super) audited: Counts,
    pub(super) duplicates_dropped: u64,
    pub(super) device_time_ns: u128,
    pub(super) rows_read: bool,
    pub(super) offences: Vec<String>,
    pub(super) unchecked: Vec<String>,
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
    pub(super) report: Report,
    /// Where each chain ends, and its hash there.
    pub(super) heads: BTreeMap<String, Digest>,
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
