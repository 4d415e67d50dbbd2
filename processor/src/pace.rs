//! How large a window is, as much as the device does in a set time, and when the next is made ready.

use crate::lanes::Budget;

/// The share of the newest measurement in the estimate of the device's speed: the estimate follows a change within a
/// few windows and is not thrown off by one.
const NEWEST_SHARE: f64 = 0.3;

/// A window is made ready so many times earlier than the last ones needed it: being late costs the device's time, being
/// early a tenant's turn.
const LEAD: f64 = 2.0;

/// Sizes windows so that about `target_ms` pass from when one leaves the lanes until the device is done with it: long enough
/// that a commit is cheap beside it, and no longer than a turn may be waited for by whoever came just too late.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    target_ms: f64,
    most: Budget,
    least_bytes: usize,
    bytes_per_ms: Option<f64>,
    /// How long it takes to make a window ready, in the device's time for one.
    readiness: f64,
}

impl Pace {
    /// Windows of `target_ms`, never more than `most`; of `least_bytes` until the device's speed is known.
    pub(crate) fn new(target_ms: u64, most: Budget, least_bytes: usize) -> Self {
        Self {
            target_ms: target_ms as f64,
            most,
            least_bytes,
            bytes_per_ms: None,
            readiness: 0.0,
        }
    }

    /// Takes into account that the device worked `elapsed_ms` on `bytes` that were made ready in `ready_ms`.
    pub(crate) fn observe(&mut self, bytes: usize, ready_ms: f64, elapsed_ms: f64) {
        let elapsed_ms = elapsed_ms.max(1e-3);
        self.readiness += NEWEST_SHARE * (ready_ms / elapsed_ms - self.readiness);
        let newest = bytes as f64 / elapsed_ms;
        self.bytes_per_ms = Some(
            self.bytes_per_ms
                .map_or(newest, |known| known + NEWEST_SHARE * (newest - known)),
        );
    }

    /// With how many of a window's `batches` left to begin the next window is to be made ready.
    pub(crate) fn lead(&self, batches: usize) -> usize {
        (LEAD * self.readiness * batches as f64) as usize
    }

    /// What the next window may take.
    pub(crate) fn budget(&self) -> Budget {
        let device_ms = self.target_ms / (1.0 + LEAD * self.readiness);
        let wanted = self
            .bytes_per_ms
            .map_or(self.least_bytes, |speed| (speed * device_ms) as usize);
        let bytes_max = wanted.clamp(self.least_bytes.min(self.most.bytes_max), self.most.bytes_max);
        Budget {
            bytes_max,
            ..self.most
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    const MOST: Budget = Budget {
        jobs_max: 100,
        bytes_max: 1_000_000,
        lanes_max: NonZeroUsize::MAX,
    };

    #[test]
    fn a_window_grows_to_what_the_device_does_in_the_set_time_less_what_it_is_made_ready_in() {
        let mut pace = Pace::new(600, MOST, 1_000);
        assert_eq!(pace.budget().bytes_max, 1_000);
        for _ in 0..50 {
            pace.observe(2_000, 0.0, 10.0);
        }
        assert_eq!(pace.budget().bytes_max, 120_000);
        for _ in 0..50 {
            pace.observe(2_000, 1.0, 10.0);
        }
        assert_eq!(pace.budget().bytes_max, 100_000);
    }

    #[test]
    fn the_next_window_is_begun_in_time_to_be_ready_and_not_before() {
        let mut pace = Pace::new(500, MOST, 1_000);
        for _ in 0..50 {
            pace.observe(2_000, 1.0, 100.0);
        }
        assert_eq!((pace.lead(10), pace.lead(200)), (0, 3));
        for _ in 0..50 {
            pace.observe(2_000, 200.0, 100.0);
        }
        assert!(
            pace.lead(10) >= 10,
            "it takes longer to be made ready than to be run"
        );
    }

    #[test]
    fn a_window_is_bounded_whatever_was_measured() {
        let mut pace = Pace::new(500, MOST, 1_000);
        pace.observe(1 << 30, 0.0, 0.0);
        assert_eq!(pace.budget(), MOST);
        let mut pace = Pace::new(500, MOST, 1_000);
        pace.observe(1, 0.0, 1e9);
        assert_eq!(pace.budget().bytes_max, 1_000);
    }
}
