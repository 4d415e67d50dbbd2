//! How large a window is, as much as the device does in a set time, and when the next is made ready.

use crate::lanes::Budget;

/// The share of the newest measurement in the estimates of the device's speed: they follow a change within a few windows and
/// are not thrown off by one.
const NEWEST_SHARE: f64 = 0.3;

/// A window is sized for a device that is so many mean deviations slower than it was on average, so that most windows are done
/// in time and not half of them (as timeouts are set in TCP: Jacobson, Congestion Avoidance and Control, 1988).
const DEVIATIONS: f64 = 2.0;

/// A window is made ready so many times earlier than the last ones needed it: being late costs the device's time, being
/// early a tenant's turn.
const LEAD: f64 = 2.0;

/// Sizes windows so that no more than `target_ms` pass, as a rule, from when one leaves the lanes until the device is done with
/// it: long enough that a commit is cheap beside it, and no longer than a turn may be waited for by whoever came just too late.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    target_ms: f64,
    most: Budget,
    least_bytes: usize,
    device: Option<Slowness>,
    /// How long it takes to make a window ready, in the device's time for one.
    readiness: f64,
}

/// How long the device takes for a byte of records, in milliseconds.
#[derive(Debug, Clone, Copy)]
struct Slowness {
    mean: f64,
    /// The mean deviation from it.
    deviation: f64,
}

impl Slowness {
    /// After one measurement anything may come.
    fn first(measured: f64) -> Self {
        Self {
            mean: measured,
            deviation: measured / 2.0,
        }
    }

    fn observe(&mut self, measured: f64) {
        let error = measured - self.mean;
        self.deviation += NEWEST_SHARE * (error.abs() - self.deviation);
        self.mean += NEWEST_SHARE * error;
    }
}

impl Pace {
    /// Windows of `target_ms`, never more than `most`; of `least_bytes` until the device's speed is known.
    pub(crate) fn new(target_ms: u64, most: Budget, least_bytes: usize) -> Self {
        Self {
            target_ms: target_ms as f64,
            most,
            least_bytes,
            device: None,
            readiness: 0.0,
        }
    }

    /// Takes into account that the device worked `elapsed_ms` on `bytes` that were made ready in `ready_ms`.
    pub(crate) fn observe(&mut self, bytes: usize, ready_ms: f64, elapsed_ms: f64) {
        let elapsed_ms = elapsed_ms.max(1e-3);
        self.readiness += NEWEST_SHARE * (ready_ms / elapsed_ms - self.readiness);
        let measured = elapsed_ms / bytes.max(1) as f64;
        match &mut self.device {
            Some(device) => device.observe(measured),
            None => self.device = Some(Slowness::first(measured)),
        }
    }

    /// With how many of a window's `batches` left to begin the next window is to be made ready.
    pub(crate) fn lead(&self, batches: usize) -> usize {
        (LEAD * self.readiness * batches as f64) as usize
    }

    /// What the next window may take.
    pub(crate) fn budget(&self) -> Budget {
        let device_ms = self.target_ms / (1.0 + LEAD * self.readiness);
        let wanted = self.device.map_or(self.least_bytes, |device| {
            (device_ms / (device.mean + DEVIATIONS * device.deviation)) as usize
        });
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

    use proptest::prelude::*;

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
        assert!((119_990..=120_000).contains(&pace.budget().bytes_max));
        for _ in 0..50 {
            pace.observe(2_000, 1.0, 10.0);
        }
        assert!((99_990..=100_000).contains(&pace.budget().bytes_max));
    }

    proptest! {
        /// Each window takes the device up to a third more or less than its bytes say.
        #[test]
        fn nine_windows_of_ten_are_done_in_the_set_time_though_the_device_wavers(
            wavering in prop::collection::vec(0.67..1.33, 500),
        ) {
            const MS_PER_BYTE: f64 = 0.01;
            let mut pace = Pace::new(500, MOST, 1_000);
            let mut took_ms = Vec::new();
            for wavers in wavering {
                let bytes = pace.budget().bytes_max;
                took_ms.push(bytes as f64 * MS_PER_BYTE * wavers);
                pace.observe(bytes, 0.0, took_ms[took_ms.len() - 1]);
            }
            let in_time = took_ms.iter().filter(|took_ms| **took_ms <= 500.0).count();
            prop_assert!(in_time >= 450, "{in_time} of 500");
            let mean_ms = took_ms.iter().sum::<f64>() / 500.0;
            prop_assert!(mean_ms >= 300.0, "{mean_ms} ms");
        }
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
