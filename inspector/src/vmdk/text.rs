//! The text that describes a disk: lines of `key=value`, and of extents as `RW 8192 SPARSE "name"`.

use block::{Result, escape};

use super::{COMPRESSED, Header, SECTOR};
use crate::file::File;
use crate::report::{Check, Report};

/// Where QEMU looks for it, whatever the header says.
const PLACE: u64 = SECTOR;
/// Bytes of it that QEMU reads.
const MOST: u64 = 20 * SECTOR;
/// Digits of a number that identifies contents, at most.
const CID_DIGITS: usize = 8;
/// Bytes of the longest text. Usual ones have 10 or 20 KiB of room.
const MAX_ROOM: u64 = 1 << 20;
/// No parent.
const NO_PARENT: &str = "ffffffff";
const HINT: &str = "parentfilenamehint";
const SPARSE: &str = "monolithicsparse";
const STREAM: &str = "streamoptimized";
/// Keys of the "disk data base" that say nothing of other files.
const DATA_BASE: [&str; 18] = [
    "adaptertype",
    "comment",
    "deletable",
    "encoding",
    "geometry.bioscylinders",
    "geometry.biosheads",
    "geometry.biossectors",
    "geometry.cylinders",
    "geometry.heads",
    "geometry.sectors",
    "longcontentid",
    "thinprovisioned",
    "toolsinstalltype",
    "toolsversion",
    "uuid",
    "uuid.image",
    "uuid.modification",
    "virtualhwversion",
];
/// Keys of it that name a parent, unless they are full of zeros.
const PARENTS: [&str; 2] = ["uuid.parent", "uuid.parentmodification"];

/// The text in a sparse file. Whether there can be one where the header has it; what else is wrong with it is told only.
pub(super) fn judge(file: &File, header: &Header, report: &mut Report) -> Result<bool> {
    let (at, len) = (header.text, header.text_len);
    if at != PLACE || len == 0 || len > MAX_ROOM {
        let text = format!(
            "the text that describes it has {len} bytes at {at}, and should have up to {MAX_ROOM} at {PLACE}"
        );
        report.problem(Check::Structure, text);
        return Ok(false);
    }
    if !report.require_inside("the text that describes it", at, len) {
        return Ok(false);
    }
    let room = file.some(at, len as usize)?;
    let end = room.iter().position(|byte| *byte == 0).unwrap_or(room.len());
    let (text, rest) = room.split_at(end);
    report.require(
        !rest.is_empty() && is_old_end(text, rest) && (end as u64) < MOST,
        Check::Structure,
        format!("the text that describes it has no end within {MOST} bytes, or something is behind it"),
    );
    let plain = |byte: &u8| matches!(byte, b' '..=b'~' | b'\t' | b'\r' | b'\n');
    match str::from_utf8(text) {
        Ok(text) if text.bytes().all(|byte| plain(&byte)) => lines(text, header, report),
        _ => report.problem(
            Check::Structure,
            "the text that describes it has other letters than those of ASCII",
        ),
    }
    Ok(true)
}

/// Whether there is nothing in `rest` that nobody wrote by accident: it is zeros, or begins as QEMU leaves it. That changes the number
/// of the contents (`CID=`), which may then have fewer digits, so that the text is shorter and its old end stays behind the new one.
fn is_old_end(text: &[u8], rest: &[u8]) -> bool {
    let len = rest
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    let Some(old_end) = text.len().checked_sub(len).filter(|_| len < CID_DIGITS) else {
        return false;
    };
    let mut bytes = rest[..len].iter().zip(&text[old_end..]);
    bytes.all(|(byte, old)| *byte == 0 || byte == old)
}

/// Each line is one that is known, and no key is there twice: programs take the first or the last.
fn lines(text: &str, header: &Header, report: &mut Report) {
    if text.to_ascii_lowercase().contains(HINT) {
        // QEMU finds this anywhere, in a comment too.
        report.problem(Check::References, "it names a parent image");
    }
    let mut keys = Vec::new();
    let mut extents = 0;
    let kind = if header.has(COMPRESSED) { STREAM } else { SPARSE };
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if line.starts_with("RW ") || line.starts_with("RDONLY ") || line.starts_with("NOACCESS ") {
            extents += 1;
            extent(line, header, report);
            continue;
        }
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        let (key, value) = (key.trim().to_ascii_lowercase(), value.trim());
        let value = value
            .strip_prefix('"')
            .and_then(|value| value.strip_suffix('"'))
            .unwrap_or(value);
        match entry(&key, &value.to_ascii_lowercase(), kind) {
            Ok(()) => {}
            Err(check) => report.problem(
                check,
                format!("its text says what no image by itself does: {}", escape(line)),
            ),
        }
        keys.push(key);
    }
    report.require(
        extents == 1,
        Check::References,
        format!("it has {extents} extents, and only one can be in this file"),
    );
    for needed in ["version", "cid", "parentcid", "createtype"] {
        let there = keys.iter().any(|key| key == needed);
        report.require(there, Check::Structure, format!("its text does not say {needed}"));
    }
    keys.sort_unstable();
    let mut pairs = keys.iter().zip(keys.iter().skip(1));
    if let Some((key, _)) = pairs.find(|(one, next)| one == next) {
        let text = format!("its text says {} twice", escape(key));
        report.problem(Check::Structure, text);
    }
}

/// Whether a key may have this value; if not, what it should be.
fn entry(key: &str, value: &str, kind: &str) -> std::result::Result<(), Check> {
    let holds = |holds: bool, check| if holds { Ok(()) } else { Err(check) };
    match key {
        "version" => holds(matches!(value, "1" | "2" | "3"), Check::Features),
        "cid" => holds(
            (1..=8).contains(&value.len()) && value.bytes().all(|byte| byte.is_ascii_hexdigit()),
            Check::Structure,
        ),
        "parentcid" => holds(value == NO_PARENT, Check::References),
        "createtype" => holds(value == kind, Check::References),
        "isnativesnapshot" => holds(value == "no", Check::References),
        "encoding" => Ok(()),
        _ => {
            let known = key.strip_prefix("ddb.").ok_or(Check::Features)?;
            if PARENTS.contains(&known) {
                let zeros = value.bytes().all(|byte| matches!(byte, b'0' | b'-'));
                return holds(zeros, Check::References);
            }
            holds(DATA_BASE.contains(&known), Check::Features)
        }
    }
}

/// The one extent is this file: a name without a directory, all of the disk, and nothing behind.
fn extent(line: &str, header: &Header, report: &mut Report) {
    let mut words = line.splitn(4, ' ');
    let (access, sectors, kind, name) = (words.next(), words.next(), words.next(), words.next());
    let name = name
        .and_then(|name| name.trim_end().strip_prefix('"'))
        .and_then(|name| name.strip_suffix('"'));
    let plain = name.is_some_and(|name| {
        !name.is_empty() && !name.contains(['/', '\\', ':', '"']) && !matches!(name, "." | "..")
    });
    let same = sectors.and_then(|sectors| sectors.parse().ok()) == Some(header.capacity);
    if access == Some("NOACCESS") || kind != Some("SPARSE") || !plain || !same {
        let text = format!(
            "it has an extent in another file, or not its own: {}",
            escape(line)
        );
        report.problem(Check::References, text);
    }
}
