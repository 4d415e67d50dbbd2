//! What a tenant has spent: the processors' group remembers it with its position in each partition of work, and ingest asks.

use chrono::{DateTime, Datelike, NaiveDate};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

/// What the work of one partition cost, in the UTC day and month of its last outcome. Earlier ones need not be known: a
/// budget is for the present ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spending {
    /// The day of the last outcome.
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
    /// last day that was seen.
    pub fn add(&mut self, cost: Decimal, at_ms: i64) {
        let day = day_of(at_ms).max(self.day);
        let before = self.spent_on(day);
        *self = Self {
            day,
            on_day: before.on_day.saturating_add(cost),
            in_month: before.in_month.saturating_add(cost),
        };
    }

    /// What of it was spent in the day and the month of `now_ms`, in milliseconds since 1970 UTC.
    pub fn spent_as_of(&self, now_ms: i64) -> Spent {
        self.spent_on(day_of(now_ms))
    }

    fn spent_on(&self, day: NaiveDate) -> Spent {
        let of = |is_of_period: bool, spent: Decimal| if is_of_period { spent } else { Decimal::ZERO };
        let month = |day: NaiveDate| (day.year(), day.month());
        Spent {
            on_day: of(day == self.day, self.on_day),
            in_month: of(month(day) == month(self.day), self.in_month),
        }
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
        fn what_is_spent_in_a_month_is_the_sum_of_its_days(costs in prop::collection::vec((0_i64..1 << 40, 0_i64..86_400_000 * 3), 1..50)) {
            let (mut spending, mut sum) = (Spending::default(), Decimal::ZERO);
            let begin = ms("2026-11-10T00:00:00Z");
            for (nano, after_ms) in costs {
                spending.add(Decimal::new(nano, 18), begin + after_ms);
                sum += Decimal::new(nano, 18);
            }
            prop_assert_eq!(spending.spent_as_of(begin).in_month, sum);
            prop_assert!(Spending::of_note(&spending.to_note()).unwrap() == spending);
        }
    }
}
