//! The metrics of the processor.

/// Outcomes decided; a window that is done again after a fault counts again. By `tenant` and `status` (succeeded, failed).
pub const OUTCOMES: &str = "tributary_processor_outcomes_total";
/// 1 for the `shard` of its pool that the processor is, where the pool has shards.
pub const SHARD: &str = "tributary_processor_shard";
/// Records of work that could not be decoded.
pub const DEAD_LETTERS: &str = "tributary_processor_dead_letters_total";
/// Device time measured, in nanoseconds.
pub const DEVICE_TIME_NS: &str = "tributary_processor_device_time_ns_total";
/// Tokens read, by `tenant`.
pub const TOKENS: &str = "tributary_processor_tokens_total";
/// Work units that turns were charged with, settled, by `tenant`. A window that is done again counts again.
pub const WORK_UNITS: &str = "tributary_processor_work_units_total";
/// Jain's index over the lanes that had work all through a window, of what they got of it for their weights: 1 if all got the
/// same. A window that is small beside its lanes cannot reach 1.
pub const FAIRNESS: &str = "tributary_processor_fairness";
/// How long the lane of a `tenant` had work and waited for its rate, in milliseconds.
pub const RATE_WAIT_MS: &str = "tributary_processor_rate_wait_ms_total";
/// How long the lane of a `tenant` had work and waited for a commit, since as much of its work was under way as may be, in
/// milliseconds.
pub const CONCURRENCY_WAIT_MS: &str = "tributary_processor_concurrency_wait_ms_total";
/// Device time of one micro-batch, in seconds.
pub const BATCH_SECONDS: &str = "tributary_processor_batch_seconds";
/// Jobs in one micro-batch.
pub const BATCH_JOBS: &str = "tributary_processor_batch_jobs";
/// Time from submission until the device began, in seconds.
pub const QUEUE_SECONDS: &str = "tributary_processor_queue_seconds";
/// Time from when a window left the lanes until the device was done with it, in seconds: `processor.window_ms` is for most of them.
pub const WINDOW_SECONDS: &str = "tributary_processor_window_seconds";
/// Duration of a commit, in seconds.
pub const COMMIT_SECONDS: &str = "tributary_processor_commit_seconds";
/// Bytes that wait in lanes.
pub const LANES_BYTES: &str = "tributary_processor_lanes_bytes";

/// Has every counter there from the start, at zero, but those of tenants: from a series that begins with its first event
/// `increase` hides that one.
pub fn register() {
    for counter in [DEAD_LETTERS, DEVICE_TIME_NS] {
        metrics::counter!(counter).increment(0);
    }
}
