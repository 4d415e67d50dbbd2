//! What is usual at an hour: a function of what came at the hours before.
//!
//! Of each hour the busiest interval is remembered, its **peak**. What is **usual** is the lower of two:
//!
//! - the highest peak of a day, of all days but one in each fortnight: the exceptions, so that a flood is not usual because
//!   it came once, and what comes once a week is;
//! - the same of this hour of the day and its neighbours, and as many times more as that is above the middle day's. Where
//!   the middle day has nothing at this hour, the hour says nothing.
//!
//! Before a week is known it is the highest peak of all. No shape of traffic is assumed, but that it repeats by days or weeks.

/// So many days are remembered.
const DAYS: i64 = 28;
/// Of so many days one may be an exception.
const DAYS_AN_EXCEPTION: i64 = 14;
/// Before so many days are known, no day or hour says anything by itself: a weekday may have followed a Sunday.
const DAYS_OF_A_SEASON: i64 = 7;
/// Before so many days are known, no hour is taken for silent: each weekday has been there twice then.
const DAYS_OF_SILENCE: i64 = 14;
/// Silence is taken for usual where it would be by chance this seldom, for somebody who sends as often at any hour.
const CHANCE: f64 = 1e-6;
const HOURS_A_DAY: i64 = 24;
/// The hours of the days, and the neighbours of the first.
const HOURS: usize = 29 * HOURS_A_DAY as usize;
/// Steps of a peak's logarithm: what is remembered is at most an eighth of its power of e too high.
const STEPS: f64 = 8.0;

/// The peaks of the last four weeks. One that never had any takes no memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Peaks(Option<Box<Hours>>);

/// What peaks take at most.
#[cfg(test)]
pub(crate) const BYTES_MAX: usize = size_of::<Hours>();

#[derive(Debug, Clone)]
struct Hours {
    newest: i64,
    /// By the hour since 1970 modulo their number. Hours after the newest are as good as written.
    codes: [u8; HOURS],
}

impl Peaks {
    /// So much came in an interval of `hour`, in hours since 1970.
    pub(crate) fn note(&mut self, hour: i64, value: u64) {
        if value == 0 {
            return;
        }
        let hours = self.0.get_or_insert_with(|| {
            Box::new(Hours {
                newest: hour,
                codes: [0; HOURS],
            })
        });
        let passed = hour.saturating_sub(hours.newest).clamp(0, HOURS as i64);
        for silent in hour - passed + 1..=hour {
            hours.codes[slot(silent)] = 0;
        }
        hours.newest = hours.newest.max(hour);
        if hours.newest - hour < HOURS as i64 {
            let code = &mut hours.codes[slot(hour)];
            *code = encoded(value).max(*code);
        }
    }

    /// The clock was ahead, and it is `hour`: what is remembered of later ones never was. Whether what came until then is
    /// remembered still.
    pub(crate) fn go_back_to(&mut self, hour: i64) -> bool {
        let Some(hours) = &mut self.0 else { return true };
        let ahead = hours.newest.saturating_sub(hour).clamp(0, HOURS as i64);
        for wrong in hours.newest - ahead + 1..=hours.newest {
            hours.codes[slot(wrong)] = 0;
        }
        hours.newest = hours.newest.min(hour);
        ahead < HOURS as i64
    }

    /// The code of the peak of `hour`; 0 where nothing came, or nobody remembers.
    fn code(&self, hour: i64) -> u8 {
        let remembered = |hours: &&Hours| (0..HOURS as i64).contains(&(hours.newest - hour));
        let hours = self.0.as_deref().filter(remembered);
        hours.map_or(0, |hours| hours.codes[slot(hour)])
    }

    /// The most that is usual in an interval of `hour`, by what is known since an hour; none while that is less than a day.
    pub(crate) fn usual(&self, known_since: i64, hour: i64) -> Option<u64> {
        let days = days_known(known_since, hour);
        if days == 0 {
            return None;
        }
        if days < DAYS_OF_A_SEASON {
            let all = (known_since..hour).map(|before| self.code(before));
            return all.max().map(decoded);
        }
        let exceptions = (days / DAYS_AN_EXCEPTION) as usize;
        let of_day = |day| {
            let begin = hour - day * HOURS_A_DAY;
            (begin..begin + HOURS_A_DAY).map(|hour| self.code(hour)).max()
        };
        let day = *highest_first((1..=days).filter_map(of_day)).get(exceptions)?;
        let of_hour = |day| around(hour, day).map(|hour| self.code(hour)).max();
        let hours = highest_first((1..=days).filter_map(of_hour));
        let (highest, middle) = (*hours.get(exceptions)?, hours[hours.len() / 2]);
        let at_hour = (middle > 0).then(|| highest.saturating_add(highest.saturating_sub(middle)));
        Some(decoded(at_hour.map_or(day, |hour| hour.min(day))))
    }

    /// Whether nothing usually comes at `hour`, by what is known since an hour: nothing ever came at this hour of the day
    /// and its neighbours, or on this day of the week, and of somebody who sends so many hours of all that is no chance.
    pub(crate) fn is_silent(&self, known_since: i64, hour: i64) -> bool {
        let days = days_known(known_since, hour);
        if days < DAYS_OF_SILENCE {
            return false;
        }
        let is_used = |hour: &i64| self.code(*hour) > 0;
        let known = hour - HOURS_A_DAY * days..hour;
        let share = known.clone().filter(is_used).count() as f64 / (known.end - known.start) as f64;
        let hours_enough = CHANCE.ln() / (-share).ln_1p();
        let none_of = |hours: Vec<i64>| hours.len() as f64 >= hours_enough && !hours.iter().any(is_used);
        let of_day = (1..=days).flat_map(|day| around(hour, day));
        let midnight = hour - hour.rem_euclid(HOURS_A_DAY);
        let of_weekday = (1..=days / 7).flat_map(|week| {
            let midnight = midnight - week * 7 * HOURS_A_DAY;
            midnight..midnight + HOURS_A_DAY
        });
        none_of(of_day.collect()) || none_of(of_weekday.collect())
    }
}

/// How many whole days are known and remembered.
fn days_known(known_since: i64, hour: i64) -> i64 {
    ((hour - known_since) / HOURS_A_DAY).clamp(0, DAYS)
}

fn highest_first(codes: impl Iterator<Item = u8>) -> Vec<u8> {
    let mut codes: Vec<u8> = codes.collect();
    codes.sort_unstable_by_key(|code| std::cmp::Reverse(*code));
    codes
}

/// The hour so many days before, and its neighbours.
fn around(hour: i64, days_before: i64) -> impl Iterator<Item = i64> {
    let then = hour - days_before * HOURS_A_DAY;
    then - 1..=then + 1
}

fn slot(hour: i64) -> usize {
    hour.rem_euclid(HOURS as i64) as usize
}

/// A value in a byte, by its logarithm, rather too high than too low.
fn encoded(value: u64) -> u8 {
    match value {
        0 => 0,
        _ => (((value as f64).ln() * STEPS).ceil() as u8).saturating_add(1),
    }
}

fn decoded(code: u8) -> u64 {
    match code {
        0 => 0,
        _ => (f64::from(code - 1) / STEPS).exp().ceil() as u64,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A Monday's midnight, in hours since 1970.
    const MONDAY: i64 = 2_955 * 7 * 24 + 4 * 24;

    fn at(day: i64, hour: i64) -> i64 {
        MONDAY + day * HOURS_A_DAY + hour
    }

    /// The peaks of so many days of somebody who works from nine to five, from Monday to Friday.
    fn office(days: i64) -> Peaks {
        let mut peaks = Peaks::default();
        for day in (0..days).filter(|day| day % 7 < 5) {
            (9..17).for_each(|hour| peaks.note(at(day, hour), 50));
        }
        peaks
    }

    #[test]
    fn nights_and_weekends_of_an_office_are_silent_from_the_third_week_on() {
        let is_silent = |days, hour| office(days).is_silent(MONDAY, at(days, hour));
        assert!(is_silent(21, 3), "on a Monday night");
        assert!(is_silent(26, 12), "at noon of a Saturday");
        for hour in 8..18 {
            assert!(!is_silent(21, hour), "at {hour} on a Monday");
        }
        assert!(is_silent(18, 3) && !is_silent(13, 3));
    }

    #[test]
    fn what_came_on_one_day_of_a_fortnight_is_not_usual_and_what_came_on_two_is() {
        let mut peaks = office(20);
        let usual = |peaks: &Peaks| peaks.usual(MONDAY, at(21, 12)).unwrap();
        let before = usual(&peaks);
        assert!((50..57).contains(&before), "{before}");
        peaks.note(at(17, 12), 5_000);
        assert_eq!(usual(&peaks), before);
        peaks.note(at(18, 13), 5_000);
        assert!(usual(&peaks) >= 5_000);
    }

    #[test]
    fn what_comes_once_a_week_is_usual_from_the_second_time_on() {
        let mut peaks = office(0);
        peaks.note(at(0, 6), 1_000);
        for week in 1..10 {
            let hour = at(7 * week, 6);
            assert!(peaks.usual(MONDAY, hour).unwrap() >= 1_000, "in week {week}");
            peaks.note(hour, 1_000);
        }
    }

    #[test]
    fn at_an_hour_with_less_every_day_less_is_usual() {
        let mut peaks = Peaks::default();
        (0..28 * HOURS_A_DAY)
            .for_each(|hour| peaks.note(MONDAY + hour, if hour % 24 < 8 { 10 } else { 1_000 }));
        let usual = |hour| peaks.usual(MONDAY, at(28, hour)).unwrap();
        assert!((10..12).contains(&usual(3)), "{}", usual(3));
        assert!((1_000..1_140).contains(&usual(12)), "{}", usual(12));
        assert!(usual(7) >= 1_000, "the hour after has more");
    }

    #[test]
    fn at_an_hour_that_varies_from_day_to_day_more_is_usual_than_ever_came() {
        let mut peaks = Peaks::default();
        for day in 0..28 {
            peaks.note(at(day, 3), if day % 4 == 0 { 100 } else { 10 });
            peaks.note(at(day, 12), 100_000);
        }
        let usual = peaks.usual(MONDAY, at(28, 3)).unwrap();
        assert!((900..1_300).contains(&usual), "{usual}");
    }

    #[test]
    fn nothing_is_said_of_the_first_day_and_then_all_that_is_known_is_usual() {
        let peaks = office(1);
        assert_eq!(peaks.usual(MONDAY, at(0, 23)), None);
        assert!(peaks.usual(MONDAY, at(1, 3)).unwrap() >= 50);
    }

    #[test]
    fn the_largest_count_there_is_is_remembered_as_one_as_large_as_can_be() {
        assert_eq!(encoded(u64::MAX), u8::MAX);
        assert_eq!(encoded(1), 1);
    }

    proptest! {
        #[test]
        fn a_peak_is_remembered_for_four_weeks_and_is_never_too_low_nor_an_eighth_too_high(
            value in 1_u64..1 << 45, hours_later in 0..40 * HOURS_A_DAY,
        ) {
            let mut peaks = Peaks::default();
            peaks.note(MONDAY, value);
            peaks.note(MONDAY + hours_later, 1);
            let found = decoded(peaks.code(MONDAY));
            let most = value as f64 * (1.0 / STEPS).exp() * (1.0 + 1e-9) + 1.0;
            let is_remembered = hours_later < HOURS as i64;
            prop_assert_eq!(found > 0, is_remembered);
            prop_assert!(!is_remembered || (found >= value && found as f64 <= most), "{} of {}", found, value);
        }

        #[test]
        fn what_a_clock_said_that_was_ahead_is_forgotten_and_nothing_else(
            before in 1_u64..1_000, hours_ahead in 1..40 * HOURS_A_DAY, hours_ago in 0..20 * HOURS_A_DAY,
        ) {
            let mut peaks = Peaks::default();
            peaks.note(MONDAY - hours_ago, before);
            peaks.note(MONDAY + hours_ahead, 7_000_000);
            let remembers = peaks.go_back_to(MONDAY);
            prop_assert_eq!(remembers, hours_ahead < HOURS as i64);
            let is_remembered = hours_ahead + hours_ago < HOURS as i64;
            for ago in 0..HOURS as i64 {
                let expected = if ago == hours_ago && is_remembered { encoded(before) } else { 0 };
                prop_assert_eq!(peaks.code(MONDAY - ago), expected, "{} hours ago", ago);
            }
        }

        /// Whatever came, on whichever days and in whichever order, as often as not behind the clock.
        #[test]
        fn an_hour_has_the_highest_peak_that_was_noted_of_it(
            notes in prop::collection::vec((0..HOURS as i64, 0_u64..1_000), 1..200), of: prop::sample::Index,
        ) {
            let mut peaks = Peaks::default();
            notes.iter().for_each(|(hour, value)| peaks.note(*hour, *value));
            let (asked, _) = notes[of.index(notes.len())];
            let highest = notes.iter().filter(|(hour, _)| *hour == asked).map(|(_, value)| *value).max();
            prop_assert_eq!(peaks.code(asked), encoded(highest.unwrap()));
        }

        #[test]
        fn no_hour_of_somebody_who_sends_seldom_and_at_any_time_is_silent(seed: u64) {
            let (mut peaks, mut random) = (Peaks::default(), fastrand::Rng::with_seed(seed));
            for hour in 0..28 * HOURS_A_DAY {
                peaks.note(MONDAY + hour, u64::from(random.u8(..100) < 5));
            }
            for hour in 0..HOURS_A_DAY {
                prop_assert!(!peaks.is_silent(MONDAY, at(28, hour)));
            }
        }
    }
}
