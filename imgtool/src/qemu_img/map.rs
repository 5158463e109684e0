//! `qemu-img map`.

use std::fmt::Write;

use block::{Extent, ExtentState};
use ops::{Extents, HostHoles};

use super::console::Console;
use super::getopt::Options;
use super::image::{self, Image};
use super::node::Flags;
use super::refusal::{Refusal, reason};
use super::secret::Secrets;
use super::{Outcome, number, output_format, pages};
use crate::sandbox::{self, Names};

pub(super) fn run(console: &Console, arguments: &[String]) -> Outcome {
    let (mut format, mut json, mut image_opts, mut flags) = (None, false, false, Flags::default());
    let (mut start, mut length) = (0, u64::MAX);
    let mut secrets = Secrets::default();
    let mut options = Options::new(&pages::MAP, arguments);
    while let Some((name, value)) = options.next()? {
        match name {
            "h" => return super::show(console, &pages::MAP),
            "f" => format = Some(value),
            "s" => start = number::disk_size("start offset", &value)?,
            "l" => length = number::disk_size("max length", &value)?,
            "output" => json = output_format(&value)?,
            "image-opts" => image_opts = true,
            "U" => flags.force_share = true,
            _ => secrets.add(console, &value)?,
        }
    }
    let spec = super::one_image(&options.operands(), format.as_deref(), image_opts)?;
    let image = image::open(&spec, flags)?;
    sandbox::confine(Names::None, false);
    // What is above an image and has nothing of its own: the disk lies where the image has it.
    let top = &image.layers[0];
    let has_own = top.header.is_some() || top.part.is_some() || top.format == "luks";
    let shown = top.node.disk().filter(|_| !has_own).unwrap_or(&image);
    let mut rows = rows(shown, start, length)
        .map_err(|error| Refusal::new(format!("Failed to read image metadata: {}", reason(&error))))?;
    let alignment = shown.layers[0].node.storage.alignment().offset;
    if shown.chain.active().info().cluster_size.is_none() {
        round_up(&mut rows, alignment.into());
    }
    if json {
        if rows.is_empty() {
            rows.push(Row::nothing(start));
        }
        console.print(objects(&rows))?;
        return Ok(0);
    }
    let (text, refused) = lines(&rows);
    console.print(text)?;
    refused.map(|()| 0)
}

/// A run as it is printed.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    start: u64,
    len: u64,
    depth: u32,
    present: bool,
    zero: bool,
    data: bool,
    compressed: bool,
    offset: Option<u64>,
    file: Option<String>,
}

impl Row {
    /// What there is where the disk has ended.
    fn nothing(start: u64) -> Self {
        Self {
            start,
            len: 0,
            depth: 0,
            present: false,
            zero: false,
            data: false,
            compressed: false,
            offset: None,
            file: None,
        }
    }

    fn of(image: &Image, extent: &Extent, hole: bool) -> Self {
        let zero = extent.state.reads_as_zero();
        let layer = &image.chain.layers()[extent.depth as usize];
        let data_file = layer.data_file.as_ref().and_then(|file| file.path());
        let data_file = data_file.map(|path| path.to_string_lossy().into_owned());
        let found = &image.layers[extent.depth as usize];
        // What only passes requests on has no place of its own.
        let name = || {
            if found.is_bare() {
                found.node.bottom()
            } else {
                found.node.filename()
            }
        };
        Self {
            start: extent.offset,
            len: extent.len,
            depth: extent.depth,
            present: extent.state != ExtentState::Hole,
            zero: zero || hole,
            data: !zero,
            compressed: extent.state == ExtentState::Compressed,
            offset: extent.host,
            file: extent.host.map(|_| data_file.unwrap_or_else(name)),
        }
    }

    /// Whether `next` goes on where this ends, in the same words.
    fn continued_by(&self, next: &Self) -> bool {
        let as_next = Self {
            start: next.start,
            len: next.len,
            offset: self.offset.map(|offset| offset + self.len),
            ..self.clone()
        };
        as_next == *next && self.start + self.len == next.start
    }
}

/// Data ends where what it is read in ends.
fn round_up(rows: &mut Vec<Row>, alignment: u64) {
    let [.., data, rest] = &mut rows[..] else { return };
    let end = (data.start + data.len).next_multiple_of(alignment);
    if data.data && end >= rest.start + rest.len {
        data.len += rest.len;
        rows.pop();
    }
}

fn rows(image: &Image, start: u64, length: u64) -> block::Result<Vec<Row>> {
    let holes = HostHoles::of(&image.chain)?;
    let mut rows: Vec<Row> = Vec::new();
    for extent in Extents::of(&**image.device(), start..start.saturating_add(length)) {
        let mut rest = extent?;
        loop {
            let (part, hole) = holes.look(rest)?;
            let row = Row::of(image, &part, hole);
            match rows.last_mut().filter(|last| last.continued_by(&row)) {
                Some(last) => last.len += row.len,
                None => rows.push(row),
            }
            if part.end() == rest.end() {
                break;
            }
            rest = rest.clip(part.end(), u64::MAX);
        }
    }
    Ok(rows)
}

/// For people: what has to be read, and from where.
///
/// What is in no file that it could be read from is refused, after what comes before it.
fn lines(rows: &[Row]) -> (String, Result<(), Refusal>) {
    let mut text = format!("{:<16}{:<16}{:<16}File\n", "Offset", "Length", "Mapped to");
    let mut merged: Vec<Row> = Vec::new();
    for row in rows.iter().filter(|row| row.data && !row.zero) {
        match merged.last_mut().filter(|last| last.continued_by(row)) {
            Some(last) => last.len += row.len,
            None => merged.push(row.clone()),
        }
    }
    for row in &merged {
        let Some(offset) = row.offset else {
            let refusal = Refusal::new("File contains external, encrypted or compressed clusters.");
            return (text, Err(refusal));
        };
        let [start, len, offset] = [row.start, row.len, offset].map(hexadecimal);
        let file = row.file.as_deref().unwrap_or_default();
        // Writing to a string does not fail.
        let _ = writeln!(text, "{start:<16}{len:<16}{offset:<16}{file}");
    }
    (text, Ok(()))
}

/// For programs: an object for each run, one a line.
fn objects(rows: &[Row]) -> String {
    let objects: Vec<String> = rows
        .iter()
        .map(|row| {
            let offset = row.offset.map(|offset| format!(", \"offset\": {offset}"));
            format!(
                "{{ \"start\": {}, \"length\": {}, \"depth\": {}, \"present\": {}, \"zero\": {}, \"data\": {}, \
                 \"compressed\": {}{}}}",
                row.start,
                row.len,
                row.depth,
                row.present,
                row.zero,
                row.data,
                row.compressed,
                offset.unwrap_or_default()
            )
        })
        .collect();
    format!("[{}]\n", objects.join(",\n"))
}

/// As C's `%#x` has it: zero has no prefix.
fn hexadecimal(value: u64) -> String {
    if value == 0 {
        "0".to_owned()
    } else {
        format!("{value:#x}")
    }
}
