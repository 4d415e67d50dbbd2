//! The metrics of ingest.

use schemas::ReasonCode;

/// Records decided on, by `tenant` (a configured one, or `unclaimed`) and `decision` (admitted, rejected).
pub const DECIDED: &str = "tributary_ingest_decided_total";
/// Rejected jobs by `tenant` and `reason_code`.
pub const REJECTED: &str = "tributary_ingest_rejected_total";
/// Departures of a tenant's use from the usual, by `tenant` and `measure` (jobs, input_bytes, attempts, rejections, off_hours).
pub const DEPARTURES: &str = "tributary_ingest_departures_total";
/// Records that were no job.
pub const DEAD_LETTERS: &str = "tributary_ingest_dead_letters_total";
/// Duration of a commit, in seconds.
pub const COMMIT_SECONDS: &str = "tributary_ingest_commit_seconds";
/// HTTP requests that were refused as a whole for want of a good token or of permission, by `reason_code`.
pub const HTTP_REFUSED: &str = "tributary_ingest_http_refused_total";
/// HTTP requests that were put off, since those under way left no room for their jobs.
pub const HTTP_PUT_OFF: &str = "tributary_ingest_http_put_off_total";
/// Lines that came through the HTTP door, by `answer` (accepted, refused, unknown).
pub const HTTP_LINES: &str = "tributary_ingest_http_lines_total";
/// What a tenant that has a budget has spent, in the currency of the configuration, by `tenant` and `period` (day, month).
pub const SPENT: &str = "tributary_ingest_spent";
/// What is left of its budget; below zero where more was admitted than it could pay for. By `tenant` and `period`.
pub const BUDGET_LEFT: &str = "tributary_ingest_budget_left";
/// Records of work that wait or are under way, of each `tenant` that has a limit of them.
pub const QUEUE_RECORDS: &str = "tributary_ingest_queue_records";

/// Has every counter there from the start, at zero, but those of tenants: from a series that begins with its first event
/// `increase` hides that one.
pub fn register() {
    metrics::counter!(DEAD_LETTERS).increment(0);
    metrics::counter!(HTTP_PUT_OFF).increment(0);
    for answer in ["accepted", "refused", "unknown"] {
        metrics::counter!(HTTP_LINES, "answer" => answer).increment(0);
    }
}

/// The same of [`HTTP_REFUSED`], which a process without ingest has too.
pub fn register_http_refused() {
    for code in [
        ReasonCode::TokenMissing,
        ReasonCode::TokenInvalid,
        ReasonCode::TokenExpired,
        ReasonCode::InvalidTenant,
        ReasonCode::NotPermitted,
    ] {
        metrics::counter!(HTTP_REFUSED, "reason_code" => code.as_str()).increment(0);
    }
}
