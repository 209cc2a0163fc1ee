//! The calendar behind the clock's registers: bytes to a time of day and a date, and forward.

use crate::planted::{self, Flaw};

/// Seconds of a day.
pub const DAY: u64 = 86_400;
/// Days of 10,000 years, after which the four digits of the year begin anew: 25 times the 400
/// years in which the Gregorian calendar repeats.
const ERA: u64 = 25 * 146_097;

/// A time and date. Every field is in its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calendar {
    /// Second of the day, below [`DAY`].
    pub second_of_day: u64,
    /// Day of the week, 1 to 7; 1 is Sunday.
    pub weekday: u64,
    /// Days since 1 January of year 0, less than 10,000 years of them.
    pub day: u64,
}

/// A date of the Gregorian calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    /// 0 to 9999.
    pub year: u64,
    /// 1 to 12.
    pub month: u64,
    /// 1 to 31.
    pub day: u64,
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

/// Days before 1 January of `year`.
fn days_before(year: u64) -> u64 {
    // Year 0 is a leap year, and counts as soon as it is over.
    let leaps = |n: u64| year.div_ceil(n);
    365 * year + leaps(4) - leaps(100) + leaps(400)
}

/// Days of a month.
fn days_of(year: u64, month: u64) -> u64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if is_leap(year) => 29,
        2 => 28,
        _ if planted::has(Flaw::RtcMonth) => [31; 12][month as usize - 1],
        _ => 31,
    }
}

impl Date {
    /// The nearest date to these numbers: each is brought into its range.
    pub fn nearest(year: u64, month: u64, day: u64) -> Date {
        let months = if planted::has(Flaw::RtcMonth) { u64::MAX } else { 12 };
        let (year, month) = (year.min(9999), month.clamp(1, months));
        Date { year, month, day: day.clamp(1, days_of(year, month)) }
    }

    /// Days since 1 January of year 0.
    pub fn to_days(self) -> u64 {
        let months: u64 = (1..self.month).map(|m| days_of(self.year, m)).sum();
        days_before(self.year) + months + self.day - 1
    }

    /// The date that many days after 1 January of year 0; years begin anew after 9999.
    pub fn from_days(days: u64) -> Date {
        let days = days % ERA;
        // From the mean length of a year, never too low, and a year or two too high at most.
        let mut year = days * 400 / 146_097 + 1;
        while days_before(year) > days {
            year -= 1;
        }
        let mut day = days - days_before(year);
        let mut month = 1;
        while day >= days_of(year, month) {
            day -= days_of(year, month);
            month += 1;
        }
        Date { year, month, day: day + 1 }
    }
}

impl Calendar {
    /// The time that many seconds after the beginning of 1970.
    pub fn from_unix(seconds: u64) -> Calendar {
        let epoch = Date { year: 1970, month: 1, day: 1 };
        // It was a Thursday.
        let start = Calendar { second_of_day: 0, weekday: 5, day: epoch.to_days() };
        start.after(seconds)
    }

    /// The time `seconds` later.
    #[must_use]
    pub fn after(self, seconds: u64) -> Calendar {
        let second = self.second_of_day + seconds % DAY;
        let days = seconds / DAY + second / DAY;
        let weekday = (self.weekday - 1 + days % 7) % 7 + 1;
        Calendar {
            second_of_day: second % DAY,
            weekday: if planted::has(Flaw::RtcSaturday) { weekday % 7 } else { weekday },
            day: (self.day + days) % ERA,
        }
    }
}

/// A time of day at which an alarm goes off; a field that is not there is any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// 0 to 23.
    pub hour: Option<u64>,
    /// 0 to 59.
    pub minute: Option<u64>,
    /// 0 to 59.
    pub second: Option<u64>,
}

impl Alarm {
    /// Seconds from `second_of_day` to the next time the alarm goes off: 1 to [`DAY`].
    pub fn seconds_from(self, second_of_day: u64) -> u64 {
        let start = second_of_day + 1;
        let mut t = start;
        // To the beginning of the next hour that fits, the next minute, the next second; a field
        // that carries makes those before it look again, the hour at most once more.
        loop {
            let (h, m, s) = (t / 3600 % 24, t / 60 % 60, t % 60);
            if let Some(hour) = self.hour.filter(|&hour| hour != h) {
                t += (24 + hour - h) % 24 * 3600 - m * 60 - s;
            } else if let Some(minute) = self.minute.filter(|&minute| minute != m) {
                t += (60 + minute - m) % 60 * 60 - s;
            } else if let Some(second) = self.second.filter(|&second| second != s) {
                t += (60 + second - s) % 60;
            } else {
                return t - second_of_day;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_day_has_its_date() {
        let mut date = Date { year: 0, month: 1, day: 1 };
        for days in 0..ERA {
            assert_eq!(Date::from_days(days), date);
            assert_eq!(date.to_days(), days);
            date.day += 1;
            if date.day > days_of(date.year, date.month) {
                date = Date { day: 1, month: date.month + 1, ..date };
            }
            if date.month > 12 {
                date = Date { month: 1, year: date.year + 1, ..date };
            }
        }
        assert_eq!(date.year, 10_000);
        assert_eq!(Date::from_days(ERA), Date { year: 0, month: 1, day: 1 });
    }

    #[test]
    fn known_times() {
        for (unix, date, weekday, second) in [
            (0, (1970, 1, 1), 5, 0),
            (951_782_400, (2000, 2, 29), 3, 0),
            (1_709_251_199, (2024, 2, 29), 5, DAY - 1),
            (4_107_542_400, (2100, 3, 1), 2, 0),
            (253_402_300_799, (9999, 12, 31), 6, DAY - 1),
        ] {
            let c = Calendar::from_unix(unix);
            let (year, month, day) = date;
            assert_eq!(Date::from_days(c.day), Date { year, month, day });
            assert_eq!((c.weekday, c.second_of_day), (weekday, second), "{date:?}");
        }
    }

    #[test]
    fn seconds_add_up() {
        let start = Calendar::from_unix(1_234_567_890);
        for (a, b) in [(1, 86_399), (100_000, 1 << 40), (u64::MAX >> 2, u64::MAX >> 2)] {
            assert_eq!(start.after(a).after(b), start.after(a + b));
        }
    }

    #[test]
    fn the_next_alarm_is_the_first_second_that_fits() {
        let options = |values: [u64; 3]| [None, Some(values[0]), Some(values[1]), Some(values[2])];
        for hour in options([0, 13, 23]) {
            for minute in options([0, 30, 59]) {
                for second in options([0, 1, 59]) {
                    let alarm = Alarm { hour, minute, second };
                    let fits = |t: u64| {
                        hour.is_none_or(|h| h == t / 3600 % 24)
                            && minute.is_none_or(|m| m == t / 60 % 60)
                            && second.is_none_or(|s| s == t % 60)
                    };
                    for t in [0, 1, 58, 59, 60, 3599, 3600, 46_799, 48_600, 86_340, 86_399] {
                        let next = (1..=DAY).find(|d| fits(t + d)).expect("once a day");
                        assert_eq!(alarm.seconds_from(t), next, "{alarm:?} from {t}");
                    }
                }
            }
        }
    }
}
