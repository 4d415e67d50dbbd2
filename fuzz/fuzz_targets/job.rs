#![no_main]
//! Any value of a record on a topic of jobs.

libfuzzer_sys::fuzz_target!(|value: &[u8]| fuzz::decide_on(&fuzz::record(value, Vec::new())));
