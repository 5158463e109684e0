//! What is printed.

use std::io::{self, Write};

use block::escape;
use clap::ValueEnum;
use serde_json::Value;
use serde_json::ser::{PrettyFormatter, Serializer};

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// For people.
    #[default]
    Human,
    /// For programs: the same keys and values as `qemu-img`.
    Json,
}

/// Prints `value` over several lines, indented by four.
pub(crate) fn json(out: &mut dyn Write, value: &Value) -> io::Result<()> {
    let mut serializer = Serializer::with_formatter(&mut *out, PrettyFormatter::with_indent(b"    "));
    serde::Serialize::serialize(value, &mut serializer)?;
    writeln!(out)
}

/// Bytes in the largest unit that leaves three digits: `1.27 MiB`.
pub(crate) fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    // From 1000 on, so that there are never four digits.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}", three_digits(value), UNITS[unit])
}

/// At most three significant digits, without zeros at the end of a fraction.
fn three_digits(value: f64) -> String {
    let decimals = match value {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        v if v >= 0.9995 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    if decimals == 0 {
        text
    } else {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

/// Words as one value of JSON: `base-missing`.
pub(crate) fn key(words: &str) -> String {
    words.replace(' ', "-")
}

/// How many there are of something: `1 file`, `2 files`.
pub(crate) fn counted(count: u64, one: &str, more: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { more })
}

/// Says something besides what was asked for, on standard error.
pub(crate) fn note(text: &str) {
    // With nobody left to read it there is nothing to be done about that.
    let _ = writeln!(io::stderr(), "imgtool: note: {}", escape(text));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (999, "999 B"),
            (1000, "0.977 KiB"),
            (1024, "1 KiB"),
            (196 << 10, "196 KiB"),
            (1_000_448, "977 KiB"),
            (1_331_200, "1.27 MiB"),
            (1 << 40, "1 TiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(human_size(bytes), text);
        }
    }
}
