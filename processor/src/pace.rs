//! How large a window is: as much as the device does in a set time.

use crate::lanes::Budget;

/// The share of the newest measurement in the estimate of the device's speed: the estimate follows a change within a
/// few windows and is not thrown off by one.
const NEWEST_SHARE: f64 = 0.3;

/// Sizes windows so that the device works about `target_ms` on each: long enough that a commit is cheap beside it, short
/// enough that nobody waits long for a turn.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    target_ms: f64,
    most: Budget,
    least_bytes: usize,
    bytes_per_ms: Option<f64>,
}

impl Pace {
    /// Windows of `target_ms`, never more than `most`; of `least_bytes` until the device's speed is known.
    pub(crate) fn new(target_ms: u64, most: Budget, least_bytes: usize) -> Self {
        Self {
            target_ms: target_ms as f64,
            most,
            least_bytes,
            bytes_per_ms: None,
        }
    }

    /// Takes into account that the device worked `elapsed_ms` on `bytes`.
    pub(crate) fn observe(&mut self, bytes: usize, elapsed_ms: f64) {
        let newest = bytes as f64 / elapsed_ms.max(1e-3);
        self.bytes_per_ms = Some(
            self.bytes_per_ms
                .map_or(newest, |known| known + NEWEST_SHARE * (newest - known)),
        );
    }

    /// What the next window may take.
    pub(crate) fn budget(&self) -> Budget {
        let wanted = self
            .bytes_per_ms
            .map_or(self.least_bytes, |speed| (speed * self.target_ms) as usize);
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
    fn a_window_grows_to_what_the_device_does_in_the_set_time() {
        let mut pace = Pace::new(500, MOST, 1_000);
        assert_eq!(pace.budget().bytes_max, 1_000);
        for _ in 0..50 {
            pace.observe(2_000, 10.0);
        }
        assert_eq!(pace.budget().bytes_max, 100_000);
    }

    #[test]
    fn a_window_is_bounded_whatever_was_measured() {
        let mut pace = Pace::new(500, MOST, 1_000);
        pace.observe(1 << 30, 0.0);
        assert_eq!(pace.budget(), MOST);
        let mut pace = Pace::new(500, MOST, 1_000);
        pace.observe(1, 1e9);
        assert_eq!(pace.budget().bytes_max, 1_000);
    }
}
