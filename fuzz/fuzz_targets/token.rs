#![no_main]
//! Any token of a job, and any file of keys.

use ingest::identity::{Keys, Required};
use topics::Header;

const JOB: &[u8] = br#"{"id":"a","model":"minilm","input":"text","tenant":"acme"}"#;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let header = Header {
        name: "authorization".to_owned(),
        value: Some([&b"Bearer "[..], bytes].concat().into()),
    };
    fuzz::decide_by(&fuzz::identity(Required::Everywhere), &fuzz::record(JOB, vec![header]));
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(keys) = Keys::read(text)
    {
        assert!(keys.count() > 0);
    }
});
