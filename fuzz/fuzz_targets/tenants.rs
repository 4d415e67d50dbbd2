#![no_main]
//! Any value of a record on the topic of policies.

use schemas::{Record, TenantSet};

libfuzzer_sys::fuzz_target!(|value: &[u8]| {
    if let Ok(set) = TenantSet::decode(value) {
        fuzz::reads_back(&set, |bytes| TenantSet::decode(bytes).map(|again| again.encode()));
    }
});
