#![no_main]
//! Any bytes where an intent should stand in the lake.

use sink::RangeIntent;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(intent) = RangeIntent::decode(bytes) {
        assert_eq!(RangeIntent::decode(&intent.encode()), Ok(intent));
    }
});
