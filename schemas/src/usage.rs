//! What a tenant has spent: the processors' group remembers it with its position in each partition of work, and ingest asks.

use chrono::{DateTime, Datelike, NaiveDate};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

/// So many days are known of a partition: the last one, the one before it for whoever has not seen midnight yet, and one more
/// for a clock that is ahead.
const DAYS_MAX: usize = 3;

/// What the work of one partition cost, in the UTC day and month of its last outcome. Earlier ones need not be known, since a
/// budget is for the present ones; but for the last few that were seen, since the last one may be that of a clock which is
/// ahead.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spending {
    #[serde(flatten)]
    last: Day,
    /// Of the days that were seen before it, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    earlier: Vec<Day>,
}

/// What was spent until the end of a day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Day {
    day: NaiveDate,
    /// What was spent on it.
    on_day: Decimal,
    /// What was spent in its month.
    in_month: Decimal,
}

/// What was spent in the present periods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// This UTC day.
    pub on_day: Decimal,
    /// This UTC month.
    pub in_month: Decimal,
}

impl Spending {
    /// Adds `cost`, which arose at `at_ms`, in milliseconds since 1970 UTC. By a clock that is behind, it counts as of the
    /// later days that were seen too.
    pub fn add(&mut self, cost: Decimal, at_ms: i64) {
        let day = day_of(at_ms);
        let mut days = std::mem::take(&mut self.earlier);
        if self.last != Day::default() {
            days.push(self.last);
        }
        let at = days.partition_point(|known| known.day < day);
        if days.get(at).is_none_or(|known| known.day > day) {
            let before = at.checked_sub(1).map(|before| days[before]);
            let Spent { on_day, in_month } = before.unwrap_or_default().spent_on(day);
            days.insert(
                at,
                Day {
                    day,
                    on_day,
                    in_month,
                },
            );
        }
        for known in &mut days[at..] {
            known.on_day = known.on_day.saturating_add(cost);
            known.in_month = known.in_month.saturating_add(cost);
        }
        if days.len() > DAYS_MAX {
            days.remove(usize::from(at == 0));
        }
        self.last = days.pop().unwrap_or_default();
        self.earlier = days;
    }

    /// What of it was spent in the day and the month of `now_ms`, in milliseconds since 1970 UTC. Days that have not begun by
    /// then do not count.
    pub fn spent_as_of(&self, now_ms: i64) -> Spent {
        let day = day_of(now_ms);
        let mut days = std::iter::once(&self.last).chain(self.earlier.iter().rev());
        let begun = days.find(|known| known.day <= day);
        begun.map_or_else(Spent::default, |begun| begun.spent_on(day))
    }

    /// As a note that a group keeps with its position.
    pub fn to_note(&self) -> String {
        serde_json::to_string(self).expect("dates and decimals are text")
    }

    /// What [`Spending::to_note`] wrote.
    ///
    /// # Errors
    /// Where somebody else wrote it.
    pub fn of_note(note: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(note)
    }
}

impl Day {
    /// What of it was spent on `day` and in its month.
    fn spent_on(&self, day: NaiveDate) -> Spent {
        let of = |is_of_period: bool, spent: Decimal| if is_of_period { spent } else { Decimal::ZERO };
        let month = |day: NaiveDate| (day.year(), day.month());
        Spent {
            on_day: of(day == self.day, self.on_day),
            in_month: of(month(day) == month(self.day), self.in_month),
        }
    }
}

/// The UTC day of a time, in milliseconds since 1970. One beyond any calendar is of its first day.
fn day_of(time_ms: i64) -> NaiveDate {
    DateTime::from_timestamp_millis(time_ms)
        .unwrap_or_default()
        .date_naive()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(time: &str) -> i64 {
        DateTime::parse_from_rfc3339(time).unwrap().timestamp_millis()
    }

    fn spent(on_day: i64, in_month: i64) -> Spent {
        Spent {
            on_day: on_day.into(),
            in_month: in_month.into(),
        }
    }

    #[test]
    fn a_day_and_a_month_begin_with_nothing_spent() {
        let mut spending = Spending::default();
        spending.add(1.into(), ms("2026-11-29T23:59:59.999Z"));
        spending.add(2.into(), ms("2026-11-30T00:00:00Z"));
        assert_eq!(spending.spent_as_of(ms("2026-11-30T23:59:59Z")), spent(2, 3));
        assert_eq!(spending.spent_as_of(ms("2026-12-01T00:00:00Z")), spent(0, 0));
        spending.add(5.into(), ms("2026-12-01T00:00:00Z"));
        assert_eq!(spending.spent_as_of(ms("2026-12-01T09:00:00Z")), spent(5, 5));
        assert_eq!(
            spending.spent_as_of(ms("2027-12-01T09:00:00Z")),
            spent(0, 0),
            "the same month of another year"
        );
    }

    #[test]
    fn what_a_clock_that_is_behind_spends_is_not_lost() {
        let mut spending = Spending::default();
        spending.add(1.into(), ms("2026-12-01T00:00:01Z"));
        spending.add(2.into(), ms("2026-11-30T23:59:59Z"));
        assert_eq!(spending.spent_as_of(ms("2026-12-01T00:00:02Z")), spent(3, 3));
    }

    #[test]
    fn what_a_clock_that_is_ahead_spends_neither_hides_what_is_spent_now_nor_counts_before_its_day() {
        let mut spending = Spending::default();
        spending.add(1.into(), ms("2026-11-27T10:00:00Z"));
        spending.add(100.into(), ms("2026-11-30T10:00:00Z"));
        assert_eq!(spending.spent_as_of(ms("2026-11-27T11:00:00Z")), spent(1, 1));
        spending.add(200.into(), ms("2026-12-01T00:00:00Z"));
        spending.add(2.into(), ms("2026-11-27T12:00:00Z"));
        assert_eq!(spending.spent_as_of(ms("2026-11-27T13:00:00Z")), spent(3, 3));
        assert_eq!(spending.spent_as_of(ms("2026-11-29T00:00:00Z")), spent(0, 3));
        assert_eq!(spending.spent_as_of(ms("2026-11-30T00:00:00Z")), spent(102, 103));
        spending.add(4.into(), ms("2026-11-28T12:00:00Z"));
        assert_eq!(spending.spent_as_of(ms("2026-11-28T13:00:00Z")), spent(4, 7));
    }

    #[test]
    fn what_is_spent_now_is_seen_however_long_a_clock_has_been_ahead() {
        let mut spending = Spending::default();
        for day in 10..20 {
            spending.add(100.into(), ms(&format!("2026-11-{day}T12:00:00Z")));
        }
        spending.add(1.into(), ms("2026-11-05T12:00:00Z"));
        assert_eq!(spending.spent_as_of(ms("2026-11-05T13:00:00Z")), spent(1, 1));
        assert!(spending.to_note().len() < 300, "{}", spending.to_note());
    }

    #[test]
    fn a_note_is_short_text_that_anybody_can_read() {
        let mut spending = Spending::default();
        spending.add(
            "0.000000125000000001".parse().unwrap(),
            ms("2026-11-30T12:00:00Z"),
        );
        let note = spending.to_note();
        assert_eq!(
            note,
            r#"{"day":"2026-11-30","on_day":"0.000000125000000001","in_month":"0.000000125000000001"}"#
        );
        assert_eq!(Spending::of_note(&note).unwrap(), spending);
        assert!(Spending::of_note("something else").is_err());
    }

    proptest! {
        #[test]
        fn what_is_spent_in_a_month_is_the_sum_of_its_days_until_now(costs in prop::collection::vec((0_i64..1 << 40, 0_i64..86_400_000 * 3), 1..50)) {
            const DAY_MS: i64 = 86_400_000;
            let mut spending = Spending::default();
            let begin = ms("2026-11-10T00:00:00Z");
            for (nano, after_ms) in &costs {
                spending.add(Decimal::new(*nano, 18), begin + after_ms);
            }
            for day in 1..=3 {
                let until_now = costs.iter().filter(|(_, after_ms)| *after_ms < day * DAY_MS);
                let sum: Decimal = until_now.map(|(nano, _)| Decimal::new(*nano, 18)).sum();
                prop_assert_eq!(spending.spent_as_of(begin + day * DAY_MS - 1).in_month, sum);
            }
            prop_assert_eq!(Spending::of_note(&spending.to_note()).unwrap(), spending);
        }
    }
}
