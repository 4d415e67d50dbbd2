//! What the rows of outcomes prove: each job has one, results and costs join one to one, every micro-batch is paid in full.

use std::collections::{HashMap, HashSet};

use arrow_array::{Array, RecordBatch, cast::AsArray, types};
use bytes::Bytes;
use parquet::errors::ParquetError;

use super::Report;
use crate::{range::Table, read::read_columns};

/// What is gathered over all rows.
#[derive(Default)]
pub(super) struct Rows {
    origins: HashSet<Origin>,
    batches: HashMap<String, Batch>,
    device_time_ns: u128,
}

/// The topic's id, the partition and the offset.
type Origin = (String, i32, i64);

/// A micro-batch, as far as its jobs were seen.
#[derive(Default)]
struct Batch {
    rows: i32,
    jobs: i32,
    sum_ns: i128,
    whole_ns: i128,
}

impl Rows {
    /// What is wrong with the rows of range `name`. Results and costs are projections of the same outcomes in the same order,
    /// so they join row by row.
    pub(super) fn check(
        &mut self,
        name: &str,
        results: &Bytes,
        costs: &Bytes,
    ) -> Result<Vec<String>, ParquetError> {
        const ORIGIN: [&str; 3] = ["origin_topic_id", "origin_partition", "origin_offset"];
        const SHARE: [&str; 4] = [
            "x_device_time_ns",
            "x_batch_id",
            "x_batch_jobs",
            "x_batch_device_time_ns",
        ];
        let of_results = origins(&read_columns(results, Table::Results, &ORIGIN)?);
        let bills = read_columns(costs, Table::Costs, &[&ORIGIN[..], &SHARE].concat())?;
        let mut offences = Vec::new();
        if of_results != origins(&bills) {
            offences.push(format!(
                "results and costs of range {name} do not join one to one"
            ));
        }
        for origin in of_results {
            let text = format!("{}[{}]@{}", origin.0, origin.1, origin.2);
            if !self.origins.insert(origin) {
                offences.push(format!(
                    "duplicate: job {text} has a second outcome in range {name}"
                ));
            }
        }
        bills.iter().for_each(|bills| self.add(bills));
        Ok(offences)
    }

    fn add(&mut self, bills: &RecordBatch) {
        let time = bills["x_device_time_ns"].as_primitive::<types::Int64Type>();
        let id = bills["x_batch_id"].as_string::<i32>();
        let jobs = bills["x_batch_jobs"].as_primitive::<types::Int32Type>();
        let whole = bills["x_batch_device_time_ns"].as_primitive::<types::Int64Type>();
        for row in 0..bills.num_rows() {
            self.device_time_ns += u128::from(time.value(row).unsigned_abs());
            if id.is_valid(row) {
                let shared = self.batches.entry(id.value(row).to_owned()).or_default();
                shared.rows += 1;
                shared.sum_ns += i128::from(time.value(row));
                (shared.jobs, shared.whole_ns) = (jobs.value(row), i128::from(whole.value(row)));
            }
        }
    }

    /// Says what they prove together.
    pub(super) fn end(self, report: &mut Report) {
        report.device_time_ns = self.device_time_ns;
        let mut partial = 0;
        for (id, batch) in self.batches {
            if batch.rows < batch.jobs {
                partial += 1;
            } else if batch.rows > batch.jobs || batch.sum_ns != batch.whole_ns {
                report.offences.push(format!(
                    "micro-batch {id}: {} of {} jobs pay {} ns for {} ns of device time",
                    batch.rows, batch.jobs, batch.sum_ns, batch.whole_ns
                ));
            }
        }
        if partial > 0 {
            report.unchecked.push(format!(
                "the device time of {partial} micro-batches, not all of whose jobs are in the lake"
            ));
        }
    }
}

fn origins(batches: &[RecordBatch]) -> Vec<Origin> {
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
