#![no_main]
//! Any headers, a line each, name and value apart by a colon: of a job, and of a dead letter.

use topics::{Header, Letter};

const JOB: &[u8] = br#"{"model":"minilm","input":"text","tenant":"acme"}"#;

libfuzzer_sys::fuzz_target!(|lines: &[u8]| {
    let headers = lines.split(|byte| *byte == b'\n').map(|line| {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let name = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
        Header {
            name,
            value: parts.next().map(|value| value.to_vec().into()),
        }
    });
    let record = fuzz::record(JOB, headers.collect());
    fuzz::decide_on(&record);
    if let Some(Letter::Dead(letter)) = Letter::read(&record) {
        assert!(letter.record.headers.len() < record.headers.len());
    }
});
