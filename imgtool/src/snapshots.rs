//! How snapshots are printed.

use std::io::{self, Write};

use block::escape;
use qcow2::Snapshot;
use serde_json::{Value, json as value};

use crate::output::human_size;

const NANOSECONDS: u64 = 1_000_000_000;

/// The table of `qemu-img snapshot -l`, but with dates in UTC.
pub(crate) fn print(out: &mut dyn Write, snapshots: &[Snapshot]) -> io::Result<()> {
    writeln!(out, "Snapshot list:")?;
    let heads = ["ID", "TAG", "VM_SIZE", "DATE (UTC)", "VM_CLOCK", "ICOUNT"];
    print_row(out, heads.map(str::to_owned))?;
    snapshots
        .iter()
        .try_for_each(|snapshot| print_row(out, row(snapshot)))
}

/// The keys and values of `qemu-img info`.
pub(crate) fn json(snapshot: &Snapshot) -> Value {
    let mut object = value!({
        "id": snapshot.id,
        "name": snapshot.name,
        "vm-state-size": snapshot.vm_state_size,
        "date-sec": snapshot.date_seconds,
        "date-nsec": snapshot.date_nanoseconds,
        "vm-clock-sec": snapshot.vm_clock_nanoseconds / NANOSECONDS,
        "vm-clock-nsec": snapshot.vm_clock_nanoseconds % NANOSECONDS,
    });
    if let Some(icount) = snapshot.icount {
        object["icount"] = icount.into();
    }
    object
}

fn row(snapshot: &Snapshot) -> [String; 6] {
    let clock = snapshot.vm_clock_nanoseconds / 1_000_000;
    let (ms, seconds) = (clock % 1000, clock / 1000);
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    [
        escape(&snapshot.id).into_owned(),
        escape(&snapshot.name).into_owned(),
        human_size(snapshot.vm_state_size),
        date(snapshot.date_seconds.into()),
        format!("{hours:04}:{minutes:02}:{:02}.{ms:03}", seconds % 60),
        snapshot
            .icount
            .map_or_else(|| "--".to_owned(), |icount| icount.to_string()),
    ]
}

fn print_row(out: &mut dyn Write, columns: [String; 6]) -> io::Result<()> {
    let [id, tag, size, date, clock, icount] = columns;
    writeln!(
        out,
        "{id:<7} {tag:<16} {size:>8} {date:>19} {clock:>15} {icount:>10}"
    )
}

/// Seconds since the Epoch as a date and time of day, in UTC.
fn date(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years that start in March, so that a leap day is the last of one, in cycles of 400 years.
    let days = days + 719_468;
    let (cycle, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (
        day - (153 * month + 2) / 5 + 1,
        if month < 10 { month + 3 } else { month - 9 },
    );
    let year = cycle * 400 + year + u64::from(month <= 2);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!(
        "{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02}",
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::date;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_795_385_620, "2026-11-22 22:13:40"),
            (u64::from(u32::MAX), "2106-02-07 06:28:15"),
        ] {
            assert_eq!(date(seconds), text);
        }
    }
}
