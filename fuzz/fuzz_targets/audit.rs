#![no_main]
//! Any value of a record on the topic of the audit.

use schemas::{AuditEvents, Record};

libfuzzer_sys::fuzz_target!(|value: &[u8]| {
    if let Ok(events) = AuditEvents::decode(value) {
        fuzz::reads_back(&events, |bytes| AuditEvents::decode(bytes).map(|again| again.encode()));
    }
});
