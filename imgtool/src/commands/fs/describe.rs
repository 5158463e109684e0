//! Files as they are described, for people and for programs.

use std::fmt::Write;

use block::escape;
use ext4_reader::{FileKind, Inode, Time, Xattr};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

/// Bytes as text: what is not UTF-8 as `\xNN`, and control characters escaped, so that no name steers a terminal.
pub(super) fn shown(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(&escape(chunk.valid()));
        for byte in chunk.invalid() {
            // Writing to a string does not fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// Puts bytes into an object: as text where they are UTF-8, else as they are shown and in hexadecimal digits beside that.
pub(super) fn put_bytes(object: &mut Value, key: &str, bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        object[key] = text.into();
    } else {
        object[key] = shown(bytes).into();
        object[format!("{key}-hex")] = hexadecimal(bytes).into();
    }
}

pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What a file is, in a word.
pub(super) fn kind(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Regular => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
        FileKind::CharacterDevice => "character-device",
        FileKind::BlockDevice => "block-device",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
    }
}

/// Type and permissions as `ls -l` has them: `-rwsr-xr-x`.
pub(super) fn mode(inode: &Inode) -> String {
    let letter = match inode.kind() {
        FileKind::Regular => '-',
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
        FileKind::CharacterDevice => 'c',
        FileKind::BlockDevice => 'b',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
    };
    let mut text = String::from(letter);
    text.push_str(&permissions(inode.mode()));
    text
}

fn permissions(mode: u16) -> String {
    let mut text = String::with_capacity(9);
    // Each three bits, and the one of the upper three that shows in place of their x.
    for (shift, special, letters) in [(6, 0o4000, "sS"), (3, 0o2000, "sS"), (0, 0o1000, "tT")] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        let (execute, special) = (bits & 1 != 0, mode & special != 0);
        text.push(match (execute, special) {
            (false, false) => '-',
            (true, false) => 'x',
            (true, true) => letters.as_bytes()[0].into(),
            (false, true) => letters.as_bytes()[1].into(),
        });
    }
    text
}

fn timestamp(time: Time) -> Timestamp {
    // Every time that the format has is one of jiff's.
    Timestamp::UNIX_EPOCH + SignedDuration::new(time.seconds, time.nanoseconds.cast_signed())
}

/// A moment as clocks in this time zone have it, to the second.
pub(super) fn date(time: Time, zone: &TimeZone) -> String {
    let time = zone.to_datetime(timestamp(time));
    time.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// A moment as clocks in this time zone have it, to the nanosecond and with the zone.
pub(super) fn exact_date(time: Time, zone: &TimeZone) -> String {
    let time = timestamp(time).to_zoned(zone.clone());
    time.strftime("%Y-%m-%d %H:%M:%S.%9f %z").to_string()
}

/// What everyone wants to know of a file, for programs. Times are in UTC.
pub(super) fn json(path: &[u8], inode: &Inode, target: Option<&[u8]>) -> Value {
    let mut object = json!({});
    put_bytes(&mut object, "path", path);
    object["type"] = kind(inode.kind()).into();
    object["inode"] = inode.number().0.into();
    object["mode"] = format!("{:04o}", inode.mode() & 0o7777).into();
    object["links"] = inode.links().into();
    object["uid"] = inode.uid().into();
    object["gid"] = inode.gid().into();
    object["size"] = inode.size().into();
    object["modified"] = universal(inode.modified()).into();
    if let Some(target) = target {
        put_bytes(&mut object, "target", target);
    }
    if let Some((major, minor)) = inode.device() {
        object["device"] = json!({ "major": major, "minor": minor });
    }
    object
}

/// A moment in UTC, to the nanosecond.
pub(super) fn universal(time: Time) -> String {
    format!("{:.9}", timestamp(time))
}

/// Attributes for programs.
pub(super) fn xattrs_json(xattrs: &[Xattr]) -> Value {
    let objects = xattrs.iter().map(|xattr| {
        let mut object = json!({});
        put_bytes(&mut object, "name", &xattr.name);
        put_bytes(&mut object, "value", &xattr.value);
        object
    });
    objects.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_shown_and_none_acts() {
        assert_eq!(shown("ä\n\x1b".as_bytes()), "ä\\n\\u{1b}");
        assert_eq!(shown(b"a\xff\xc3b"), "a\\xff\\xc3b");
        let mut object = json!({});
        put_bytes(&mut object, "a", b"\xfe");
        put_bytes(&mut object, "b", b"\n");
        assert_eq!(object, json!({"a": "\\xfe", "a-hex": "fe", "b": "\n"}));
    }

    #[test]
    fn permissions_are_letters() {
        for (mode, letters) in [
            (0o644, "rw-r--r--"),
            (0o7777, "rwsrwsrwt"),
            (0o7000, "--S--S--T"),
            (0o1755, "rwxr-xr-t"),
        ] {
            assert_eq!(permissions(mode), letters);
        }
    }

    #[test]
    fn times_from_end_to_end_are_dates() {
        let time = |seconds, nanoseconds| Time { seconds, nanoseconds };
        assert_eq!(universal(time(-0x8000_0000, 0)), "1901-12-13T20:45:52.000000000Z");
        assert_eq!(
            universal(time(0x3_7FFF_FFFF, 999_999_999)),
            "2446-05-10T22:38:55.999999999Z"
        );
        assert_eq!(universal(time(-2, 500_000_000)), "1969-12-31T23:59:58.500000000Z");
        assert_eq!(date(time(0, 1), &TimeZone::UTC), "1970-01-01 00:00:00");
        let east = TimeZone::fixed(jiff::tz::offset(2));
        assert_eq!(
            exact_date(time(0, 1), &east),
            "1970-01-01 02:00:00.000000001 +0200"
        );
    }
}
