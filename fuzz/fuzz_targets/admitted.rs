#![no_main]
//! Any value of a record between two stages.

use schemas::{AdmittedJob, Record};

libfuzzer_sys::fuzz_target!(|value: &[u8]| {
    if let Ok(record) = AdmittedJob::decode(value) {
        fuzz::reads_back(&record);
    }
});
