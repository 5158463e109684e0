//! `--object throttle-group`: limits that nothing here has a use for, judged as QEMU judges them.

use super::object_text::Members;
use super::refusal::Refusal;

/// What can be limited.
const LIMITED: [&str; 6] = [
    "bps-total",
    "bps-read",
    "bps-write",
    "iops-total",
    "iops-read",
    "iops-write",
];

/// The most of anything in a second.
const MOST: i64 = 1_000_000_000_000_000;

/// One limit, and a higher one for a while.
#[derive(Clone, Copy, Debug)]
struct Limit {
    average: i64,
    most: i64,
    /// Seconds.
    burst: i64,
}

/// All limits of a group.
#[derive(Debug)]
pub(super) struct Limits {
    /// In the order of their names.
    each: [Limit; LIMITED.len()],
    /// Bytes of a request that counts as one.
    request: i64,
    wrong: Option<Refusal>,
}

impl Limits {
    /// Reads them, in both ways in which they may be given.
    pub(super) fn take(members: &mut Members) -> Result<Self, Refusal> {
        let mut limits = Self {
            each: [Limit {
                average: 0,
                most: 0,
                burst: 1,
            }; LIMITED.len()],
            request: 0,
            wrong: None,
        };
        if let Some(mut inner) = members.object("limits")? {
            limits.read(&mut inner, "")?;
            inner.finish()?;
        }
        limits.read(members, "x-")?;
        Ok(limits)
    }

    fn read(&mut self, members: &mut Members, prefix: &str) -> Result<(), Refusal> {
        for (index, name) in LIMITED.iter().enumerate() {
            let name = format!("{prefix}{name}");
            let limit = self.each[index];
            self.each[index] = Limit {
                average: self.number(members, &name)?.unwrap_or(limit.average),
                most: self
                    .number(members, &format!("{name}-max"))?
                    .unwrap_or(limit.most),
                burst: self
                    .number(members, &format!("{name}-max-length"))?
                    .unwrap_or(limit.burst),
            };
        }
        self.request = self
            .number(members, &format!("{prefix}iops-size"))?
            .unwrap_or(self.request);
        Ok(())
    }

    /// Takes a number away, and keeps what is wrong with it for when all are read.
    fn number(&mut self, members: &mut Members, name: &str) -> Result<Option<i64>, Refusal> {
        let number = members.integer(name)?;
        let by_itself = name.starts_with("x-");
        let wrong = match number {
            Some(..0) if by_itself => "Property values cannot be negative".to_owned(),
            Some(number) if name.ends_with("-max-length") && u32::try_from(number).is_err() => {
                // As QEMU has it.
                let space = if by_itself { "" } else { " " };
                format!("{name} value must be in the{space}range [0, {}]", u32::MAX)
            }
            _ => return Ok(number),
        };
        self.wrong.get_or_insert_with(|| Refusal::new(wrong));
        Ok(number)
    }

    /// Fails for limits that there cannot be.
    pub(super) fn judge(self) -> Result<(), Refusal> {
        if let Some(wrong) = self.wrong {
            return Err(wrong);
        }
        let [bytes, requests] = [&self.each[..3], &self.each[3..]];
        let both = |group: &[Limit], value: fn(&Limit) -> i64| {
            value(&group[0]) != 0 && group[1..].iter().any(|limit| value(limit) != 0)
        };
        let conflict = [bytes, requests]
            .into_iter()
            .any(|group| both(group, |limit| limit.average) || both(group, |limit| limit.most));
        let wrong = if conflict {
            Some("bps/iops/max total values and read/write values cannot be used at the same time")
        } else if self.request != 0 && requests.iter().all(|limit| limit.average == 0) {
            Some("iops size requires an iops value to be set")
        } else {
            self.each.iter().find_map(Limit::wrong)
        };
        wrong.map_or(Ok(()), |wrong| Err(Refusal::new(wrong)))
    }
}

impl Limit {
    fn wrong(&self) -> Option<&'static str> {
        let Self { average, most, burst } = *self;
        Some(match () {
            () if [average, most].iter().any(|value| !(0..=MOST).contains(value)) => {
                "bps/iops/max values must be within [0, 1000000000000000]"
            }
            () if burst == 0 => "the burst length cannot be 0",
            () if burst > 1 && most == 0 => "burst length set without burst rate",
            () if most != 0 && burst > MOST / most => "burst length too high for this burst rate",
            () if most != 0 && average == 0 => "bps_max/iops_max require corresponding bps/iops values",
            () if most != 0 && most < average => "bps_max/iops_max cannot be lower than bps/iops",
            () => return None,
        })
    }
}
