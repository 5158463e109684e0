//! Times in directory entries ("Date and Time Formats"): a date of years since 1980, months and days, and a time of day in
//! steps of two seconds. They are meant in the time of the place; here that is UTC.

/// A point in time: seconds since 1970, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Seconds, negative before 1970. What FAT cannot say becomes the nearest that it can, from 1980 to 2107.
    pub secs: i64,
}

const DAY: i64 = 24 * 60 * 60;

/// 1980-01-01 00:00:00.
const FIRST: i64 = 315_532_800;

/// 2107-12-31 23:59:59.
const LAST: i64 = 4_354_819_199;

/// A time as the fields of a directory entry have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) date: u16,
    /// To two seconds.
    pub(crate) time: u16,
    /// Hundredths of a second on top of that.
    pub(crate) hundredths: u8,
}

impl Time {
    pub(crate) fn stamp(self) -> Stamp {
        let secs = self.secs.clamp(FIRST, LAST);
        let (year, month, day) = civil(secs / DAY);
        let second = secs % DAY;
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        Stamp {
            date: ((year - 1980) << 9 | month << 5 | day) as u16,
            time: (hour << 11 | minute << 5 | (second / 2)) as u16,
            hundredths: (second % 2 * 100) as u8,
        }
    }
}

/// Year, month and day of the `days`th day after 1970-01-01. Years are counted from March on, so that the day that some
/// of them have more is their last.
fn civil(days: i64) -> (i64, i64, i64) {
    // Days since 0000-03-01; 400 years have always the same number of days.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Months from March on: 31, 30, 31, 30, 31 days, and again.
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(secs: i64) -> (u16, u16, u16, u16, u16, u16) {
        let Stamp {
            date,
            time,
            hundredths,
        } = Time { secs }.stamp();
        let second = (time & 31) * 2 + u16::from(hundredths / 100);
        (
            1980 + (date >> 9),
            date >> 5 & 15,
            date & 31,
            time >> 11,
            time >> 5 & 63,
            second,
        )
    }

    #[test]
    fn times_are_those_that_date_prints() {
        for (secs, expected) in [
            (951_782_399, (2000, 2, 28, 23, 59, 59)),
            (951_782_400, (2000, 2, 29, 0, 0, 0)),
            (951_868_800, (2000, 3, 1, 0, 0, 0)),
            (1_700_000_000, (2023, 11, 14, 22, 13, 20)),
            (1_735_689_599, (2024, 12, 31, 23, 59, 59)),
            (4_107_542_400, (2100, 3, 1, 0, 0, 0)),
            (4_107_542_399, (2100, 2, 28, 23, 59, 59)),
        ] {
            assert_eq!(parts(secs), expected, "{secs}");
        }
    }

    #[test]
    fn what_fat_cannot_say_becomes_the_nearest_that_it_can() {
        for early in [i64::MIN, -1, 0, FIRST] {
            assert_eq!(parts(early), (1980, 1, 1, 0, 0, 0));
        }
        for late in [LAST, LAST + 1, i64::MAX] {
            assert_eq!(parts(late), (2107, 12, 31, 23, 59, 59));
        }
    }
}
