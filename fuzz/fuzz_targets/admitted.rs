#![no_main]
//! Any value of a record between two stages.

use schemas::{AdmittedJobs, Record};

libfuzzer_sys::fuzz_target!(|value: &[u8]| {
    if let Ok(record) = AdmittedJobs::decode(value) {
        fuzz::jobs_read_back(&record);
    }
});
