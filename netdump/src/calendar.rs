//! Seconds since 1970 as a date: UTC, Gregorian calendar.

use std::time::{SystemTime, UNIX_EPOCH};

/// A second of the calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CalendarTime {
    pub(crate) year: u64,
    /// 1 to 12.
    pub(crate) month: u8,
    /// 1 to 31.
    pub(crate) day: u8,
    /// 0 is Sunday.
    pub(crate) weekday: u8,
    pub(crate) hour: u8,
    pub(crate) minute: u8,
    pub(crate) second: u8,
}

impl CalendarTime {
    /// The second that began `seconds` after 1970-01-01 00:00:00 UTC, leap seconds not counted.
    pub(crate) fn from_unix(seconds: u64) -> Self {
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        // Count from 1600-03-01: a cycle of 400 years begins there, and the leap day is the last of its year.
        let (cycle, day) = ((days + 135_080) / 146_097, (days + 135_080) % 146_097);
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
        Self {
            year: 1600 + 400 * cycle + year + next_year,
            month: small(month),
            day: small(day),
            // 1970-01-01 was a Thursday.
            weekday: small((days + 4) % 7),
            hour: small(second / 3600),
            minute: small(second / 60 % 60),
            second: small(second % 60),
        }
    }
}

/// A time as RFC 3339 has it, to the second: `2026-11-23T14:45:06Z`. Before 1970 it is 1970.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let CalendarTime { year, month, day, hour, minute, second, .. } =
        CalendarTime::from_unix(since.as_secs());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

fn small(value: u64) -> u8 {
    u8::try_from(value).expect("a part of a date below 100")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_around_leap_days_are_right() {
        let date = |seconds| {
            let time = CalendarTime::from_unix(seconds);
            (time.year, time.month, time.day, time.weekday)
        };
        for (seconds, expected) in [
            (0, (1970, 1, 1, 4)),
            (951_782_399, (2000, 2, 28, 1)),
            (951_782_400, (2000, 2, 29, 2)),
            (951_868_800, (2000, 3, 1, 3)),
            (1_767_225_599, (2025, 12, 31, 3)),
            (1_767_225_600, (2026, 1, 1, 4)),
            (4_107_542_400, (2100, 3, 1, 1)),
        ] {
            assert_eq!(date(seconds), expected, "{seconds}");
        }
    }

    #[test]
    fn times_are_written_as_rfc_3339_has_them() {
        let time = UNIX_EPOCH + std::time::Duration::from_millis(951_782_399_900);
        assert_eq!(rfc3339(time), "2000-02-28T23:59:59Z");
    }

    #[test]
    fn times_of_day_are_right_and_no_second_is_too_late() {
        let time = CalendarTime::from_unix(86_400 + 3600 * 23 + 60 * 59 + 58);
        assert_eq!((time.hour, time.minute, time.second), (23, 59, 58));
        CalendarTime::from_unix(u64::MAX);
    }
}
