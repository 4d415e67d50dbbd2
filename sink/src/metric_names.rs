//! The metrics of the sink.

/// Rows made durable, by `tenant`. Each outcome is one, though it is a row in both tables.
pub const ROWS: &str = "tributary_sink_rows_total";
/// Rows of the audit made durable.
pub const AUDIT_ROWS: &str = "tributary_sink_audit_rows_total";
/// Repeated outcomes dropped.
pub const DUPLICATES: &str = "tributary_sink_duplicates_total";
/// Records that could not be decoded.
pub const DEAD_LETTERS: &str = "tributary_sink_dead_letters_total";
/// Ranges sealed.
pub const RANGES: &str = "tributary_sink_ranges_total";
/// Bytes of data files written.
pub const FILE_BYTES: &str = "tributary_sink_file_bytes_total";
/// Duration of sealing a range, in seconds.
pub const SEAL_SECONDS: &str = "tributary_sink_seal_seconds";
/// Bytes of memory that hold files under way, and the records that wait to be part of them.
pub const BUFFERED_BYTES: &str = "tributary_sink_buffered_bytes";

/// Has every counter there from the start, at zero, but those of tenants: from a series that begins with its first event
/// `increase` hides that one.
pub fn register() {
    for counter in [AUDIT_ROWS, DUPLICATES, DEAD_LETTERS, RANGES, FILE_BYTES] {
        metrics::counter!(counter).increment(0);
    }
}
