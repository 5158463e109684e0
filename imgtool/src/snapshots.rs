//! How snapshots are printed.

use std::io::{self, Write};

use block::escape;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use qcow2::Snapshot;
use serde_json::{Value, json as value};

use crate::output::human_size;

const NANOSECONDS: u64 = 1_000_000_000;

/// Finds out what local time is, for when files can no longer be opened.
pub(crate) fn know_time_zone() {
    // It is kept.
    let _ = TimeZone::system();
}

/// What a column is so wide in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    /// What a reader sees.
    Characters,
    /// What C counts.
    Bytes,
}

/// The table of `qemu-img snapshot -l`; dates are in local time.
pub(crate) fn print(out: &mut dyn Write, snapshots: &[Snapshot], width: Width) -> io::Result<()> {
    writeln!(out, "Snapshot list:")?;
    let heads = ["ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT"];
    print_row(out, heads.map(str::to_owned), width)?;
    let zone = TimeZone::system();
    snapshots
        .iter()
        .try_for_each(|snapshot| print_row(out, row(snapshot, &zone), width))
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

fn row(snapshot: &Snapshot, zone: &TimeZone) -> [String; 6] {
    let clock = snapshot.vm_clock_nanoseconds / 1_000_000;
    let (ms, seconds) = (clock % 1000, clock / 1000);
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    [
        escape(&snapshot.id).into_owned(),
        escape(&snapshot.name).into_owned(),
        human_size(snapshot.vm_state_size),
        date(snapshot.date_seconds, zone),
        format!("{hours:04}:{minutes:02}:{:02}.{ms:03}", seconds % 60),
        snapshot
            .icount
            .map_or_else(|| "--".to_owned(), |icount| icount.to_string()),
    ]
}

fn print_row(out: &mut dyn Write, columns: [String; 6], width: Width) -> io::Result<()> {
    let [id, tag, size, date, clock, icount] = columns;
    let [id, tag] = [(id, 7), (tag, 16)].map(|(name, columns)| filled(name, columns, width));
    writeln!(out, "{id} {tag} {size:>8} {date:>19} {clock:>15} {icount:>10}")
}

fn filled(name: String, columns: usize, width: Width) -> String {
    let len = match width {
        Width::Characters => name.chars().count(),
        Width::Bytes => name.len(),
    };
    name + &" ".repeat(columns.saturating_sub(len))
}

/// Seconds since the Epoch as a date and time of day, as clocks in this time zone have it.
fn date(seconds: u32, zone: &TimeZone) -> String {
    let time = Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds.into());
    zone.to_datetime(time).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let east = TimeZone::fixed(jiff::tz::offset(2));
        for (seconds, utc, local) in [
            (0, "1970-01-01 00:00:00", "1970-01-01 02:00:00"),
            (951_782_399, "2000-02-28 23:59:59", "2000-02-29 01:59:59"),
            (1_795_385_620, "2026-11-22 22:13:40", "2026-11-23 00:13:40"),
            (u32::MAX, "2106-02-07 06:28:15", "2106-02-07 08:28:15"),
        ] {
            assert_eq!(date(seconds, &TimeZone::UTC), utc);
            assert_eq!(date(seconds, &east), local);
        }
    }
}
