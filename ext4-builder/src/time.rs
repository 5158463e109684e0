//! Times in inodes ("Inode Timestamps"): 32 bits of seconds that count as signed, and a field of 30 bits of
//! nanoseconds above two bits that say how many times 2^32 seconds are to be added.

/// A point in time, counted from 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Seconds, negative before 1970.
    pub secs: i64,
    /// Nanoseconds on top of them, less than 1,000,000,000.
    pub nanos: u32,
}

impl Time {
    /// The first time that an inode can say, in December 1901.
    pub const MIN: Self = Self {
        secs: i32::MIN as i64,
        nanos: 0,
    };

    /// The last time that an inode can say, in May 2446.
    pub const MAX: Self = Self {
        secs: 0x3_7FFF_FFFF,
        nanos: 999_999_999,
    };

    /// This time, or the nearest that an inode can say.
    #[must_use]
    pub fn clamped(self) -> Self {
        self.clamp(Self::MIN, Self::MAX)
    }

    /// The field of seconds, and the one with nanoseconds and the epoch; for a time that [`clamped`](Self::clamped)
    /// leaves as it is.
    pub fn fields(self) -> (u32, u32) {
        let low = self.secs as i32;
        let epoch = (self.secs - i64::from(low)) >> 32;
        (low as u32, self.nanos << 2 | epoch as u32 & 3)
    }

    /// The time that [`fields`](Self::fields) say.
    pub fn of_fields((low, extra): (u32, u32)) -> Self {
        Self {
            secs: i64::from(low.cast_signed()) + (i64::from(extra & 3) << 32),
            nanos: extra >> 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_the_documentation_holds() {
        // "The table below" of the section on timestamps: extra bits, low word's sign, and the range they span.
        for (secs, low, epoch) in [
            (-0x8000_0000, 0x8000_0000, 0), // 1901-12-13
            (-1, 0xFFFF_FFFF, 0),           // 1969-12-31
            (0, 0, 0),                      // 1970-01-01
            (0x7FFF_FFFF, 0x7FFF_FFFF, 0),  // 2038-01-19
            (0x8000_0000, 0x8000_0000, 1),  // 2038-01-19
            (0xFFFF_FFFF, 0xFFFF_FFFF, 1),  // 2106-02-07
            (0x1_0000_0000, 0, 1),          // 2106-02-07
            (0x1_7FFF_FFFF, 0x7FFF_FFFF, 1),
            (0x1_8000_0000, 0x8000_0000, 2), // 2174-02-25
            (0x3_7FFF_FFFF, 0x7FFF_FFFF, 3), // 2446-05-10
        ] {
            let time = Time { secs, nanos: 5 };
            assert_eq!(time.fields(), (low, 5 << 2 | epoch), "{secs}");
            assert_eq!(Time::of_fields(time.fields()), time);
        }
    }

    #[test]
    fn what_does_not_fit_becomes_the_nearest_that_does() {
        let early = Time {
            secs: i64::MIN,
            nanos: 7,
        };
        let late = Time {
            secs: i64::MAX,
            nanos: 7,
        };
        let fits = Time {
            secs: -5,
            nanos: 999_999_999,
        };
        assert_eq!(early.clamped(), Time::MIN);
        assert_eq!(late.clamped(), Time::MAX);
        assert_eq!(fits.clamped(), fits);
    }
}
