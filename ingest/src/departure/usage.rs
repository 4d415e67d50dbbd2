//! What came of one tenant, what of that departs from the usual, and since when.

use schemas::{Abuse, Measure};

use super::{INTERVAL_MINUTES, INTERVALS_AN_HOUR, hour_of};
use crate::usual::Peaks;

/// What counts are of; off-hours use is one of jobs.
pub(super) const COUNTED: usize = 4;

/// A departure ends after so many intervals within its limit: one that comes and goes is told once.
pub(super) const CALM_INTERVALS: i64 = INTERVALS_AN_HOUR;

/// A departure of less hurts nobody, however unusual it is.
fn floor(measure: Measure) -> u64 {
    match measure {
        Measure::Jobs | Measure::Attempts | Measure::Rejections => 50,
        Measure::InputBytes => 1 << 20,
        Measure::OffHours => 10,
    }
}

/// What came of one tenant in a stretch of records, by measure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts([u64; COUNTED]);

impl Counts {
    /// Adds so much of what is counted: anything but off-hours use, which is told by the jobs.
    pub(crate) fn add(&mut self, measure: Measure, count: u64) {
        self.0[measure as usize] += count;
    }

    fn of(&self, measure: Measure) -> u64 {
        match measure {
            Measure::OffHours => self.of(Measure::Jobs),
            counted => self.0[counted as usize],
        }
    }
}

/// The use of one tenant.
#[derive(Debug, Clone)]
pub(super) struct Usage {
    /// The hour in which it was first seen.
    pub(super) known_since: i64,
    pub(super) peaks: [Peaks; COUNTED],
    /// Of the interval under way.
    counts: Counts,
    /// By measure; none before something came in the interval under way.
    limits: Option<[Option<Limit>; Measure::ALL.len()]>,
    /// By measure.
    pub(super) states: [State; Measure::ALL.len()],
}

/// What a count departs from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limit {
    usual: u64,
    /// More than this departs.
    most: u64,
}

#[derive(Debug, Clone, Default)]
pub(super) enum State {
    #[default]
    Usual,
    Departed {
        uid: String,
        calm_intervals: i64,
    },
}

impl Usage {
    pub(super) fn new(hour: i64) -> Self {
        Self {
            known_since: hour,
            peaks: Default::default(),
            counts: Counts::default(),
            limits: None,
            states: Default::default(),
        }
    }

    pub(super) fn forget_what_is_under_way(&mut self) {
        self.counts = Counts::default();
        self.states = Default::default();
    }

    /// The clock was ahead: what it knows is of the time until `interval`, which begins.
    pub(super) fn go_back_to(&mut self, interval: i64) {
        let hour = hour_of(interval);
        let is_known = self.peaks.iter_mut().fold(true, |is_known, peaks| {
            let remembers = peaks.go_back_to(hour);
            is_known && remembers
        });
        self.known_since = if is_known {
            self.known_since.min(hour)
        } else {
            hour
        };
        self.begin_interval();
    }

    fn begin_interval(&mut self) {
        self.counts = Counts::default();
        self.limits = None;
    }

    /// Adds to the interval under way, and says in what it departs from now on.
    pub(super) fn count(&mut self, more: Counts, interval: i64, abuse: &Abuse) -> Vec<Measure> {
        if self.limits.is_none() {
            self.limits = Some(Measure::ALL.map(|measure| self.limit(measure, hour_of(interval), abuse)));
        }
        for (count, more) in self.counts.0.iter_mut().zip(more.0) {
            *count += more;
        }
        let departs =
            |measure: &Measure| self.is_over(*measure) && matches!(self.state(*measure), State::Usual);
        Measure::ALL.into_iter().filter(departs).collect()
    }

    /// It is told of `measure` under this name.
    pub(super) fn begin(&mut self, measure: Measure, uid: String) {
        self.states[measure as usize] = State::Departed {
            uid,
            calm_intervals: 0,
        };
    }

    /// What a count departs from at `hour`; none where that is not known.
    fn limit(&self, measure: Measure, hour: i64, abuse: &Abuse) -> Option<Limit> {
        if measure == Measure::OffHours {
            let is_silent = self.peaks[Measure::Jobs as usize].is_silent(self.known_since, hour);
            return is_silent.then_some(Limit {
                usual: 0,
                most: floor(measure) - 1,
            });
        }
        let usual = self.peaks[measure as usize].usual(self.known_since, hour)?;
        Some(Limit {
            usual,
            most: usual
                .saturating_mul(abuse.times_usual.get().into())
                .saturating_add(floor(measure)),
        })
    }

    fn limit_under_way(&self, measure: Measure) -> Option<Limit> {
        self.limits?[measure as usize]
    }

    pub(super) fn is_over(&self, measure: Measure) -> bool {
        let limit = self.limit_under_way(measure);
        limit.is_some_and(|limit| self.counts.of(measure) > limit.most)
    }

    fn state(&self, measure: Measure) -> &State {
        &self.states[measure as usize]
    }

    /// Remembers the interval that is over, of `passed` that are, and says which departures ended with it.
    pub(super) fn close(&mut self, interval: i64, passed: i64) -> Vec<(Measure, String)> {
        let ended = Measure::ALL.map(|measure| self.calm_down(measure, passed));
        for (measure, peaks) in Measure::ALL.into_iter().zip(&mut self.peaks) {
            let most = self.limits.and_then(|limits| limits[measure as usize]);
            let count = self.counts.of(measure);
            peaks.note(
                hour_of(interval),
                most.map_or(count, |limit| limit.most.min(count)),
            );
        }
        self.begin_interval();
        let ended = Measure::ALL.into_iter().zip(ended);
        ended.filter_map(|(measure, uid)| Some((measure, uid?))).collect()
    }

    /// Counts the intervals that were within the limit, and says which departure ends with them. Of those that passed, only
    /// the first can have been above it.
    fn calm_down(&mut self, measure: Measure, passed: i64) -> Option<String> {
        let was_over = self.is_over(measure);
        let state = &mut self.states[measure as usize];
        let State::Departed { uid, calm_intervals } = state else {
            return None;
        };
        *calm_intervals = match was_over {
            true => passed - 1,
            false => *calm_intervals + passed,
        };
        let ends = (*calm_intervals >= CALM_INTERVALS).then(|| std::mem::take(uid));
        if ends.is_some() {
            *state = State::Usual;
        }
        ends
    }

    pub(super) fn describe(&self, measure: Measure, throttle: bool) -> String {
        let count = self.counts.of(measure);
        let usual = self.limit_under_way(measure).map_or(0, |limit| limit.usual);
        let until = if throttle && matches!(measure, Measure::Jobs | Measure::InputBytes) {
            "; further jobs are rejected until these minutes are over"
        } else {
            ""
        };
        format!(
            "{}: {count} within {INTERVAL_MINUTES} minutes, where {usual} at most are usual{until}",
            measure.title()
        )
    }
}
