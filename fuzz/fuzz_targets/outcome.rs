#![no_main]
//! Any value of a record between two stages.

use schemas::{Outcomes, Record};

libfuzzer_sys::fuzz_target!(|value: &[u8]| {
    if let Ok(record) = Outcomes::decode(value) {
        fuzz::outcomes_read_back(&record);
    }
});
