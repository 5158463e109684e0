//! Extended headers, as of POSIX ("pax Extended Header"), with the records that GNU tar, star, libarchive and Red
//! Hat's tar add.

use super::fault::{Fault, printable};
use super::header::out_of_range;
use super::sparse::{PieceList, SparseRecords};
use super::{Time, Xattr};

/// All that extended headers say of an entry, or of all that follow.
#[derive(Clone, Debug, Default)]
pub(super) struct Extended {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link_path: Option<Vec<u8>>,
    pub(super) user: Option<Vec<u8>>,
    pub(super) group: Option<Vec<u8>>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) size: Option<u64>,
    pub(super) mtime: Option<Time>,
    pub(super) atime: Option<Time>,
    pub(super) ctime: Option<Time>,
    pub(super) created: Option<Time>,
    pub(super) device_major: Option<u32>,
    pub(super) device_minor: Option<u32>,
    /// As `SCHILY.xattr.` has them, the names still encoded.
    schily_xattrs: Vec<Xattr>,
    /// As `LIBARCHIVE.xattr.` has them, decoded.
    libarchive_xattrs: Vec<Xattr>,
    pub(super) selinux: Option<Vec<u8>>,
    /// Access control lists as text.
    pub(super) access_acl: Option<Vec<u8>>,
    pub(super) default_acl: Option<Vec<u8>>,
    pub(super) sparse: SparseRecords,
}

impl Extended {
    /// Adds a header's records: of two with one key, the later one holds.
    pub(super) fn add(&mut self, mut records: &[u8]) -> Result<(), Fault> {
        while !records.is_empty() {
            let record;
            (record, records) = Record::split_off(records)?;
            self.add_record(record.key, record.value)?;
        }
        Ok(())
    }

    fn add_record(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            // An empty value is one here: it does not undo an earlier record, as elsewhere.
            self.schily_xattrs.push((name.to_vec(), value.to_vec()));
            return Ok(());
        }
        if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
            let value = decode_base64(value).ok_or_else(|| malformed(key))?;
            self.libarchive_xattrs.push((decode_percent(name), value));
            return Ok(());
        }
        match key {
            b"path" => self.path = name(value, "path")?,
            b"linkpath" => self.link_path = name(value, "link's target")?,
            b"uname" => self.user = present(value),
            b"gname" => self.group = present(value),
            b"uid" => self.uid = decimal(value, "user id")?,
            b"gid" => self.gid = decimal(value, "group id")?,
            b"size" => self.size = decimal(value, "size")?,
            b"mtime" => self.mtime = time(value, "modification time")?,
            b"atime" => self.atime = time(value, "access time")?,
            b"ctime" => self.ctime = time(value, "change time")?,
            b"LIBARCHIVE.creationtime" => self.created = time(value, "creation time")?,
            b"SCHILY.devmajor" => self.device_major = decimal(value, "device's major number")?,
            b"SCHILY.devminor" => self.device_minor = decimal(value, "device's minor number")?,
            b"SCHILY.acl.access" => self.access_acl = present(value),
            b"SCHILY.acl.default" => self.default_acl = present(value),
            b"RHT.security.selinux" => self.selinux = present(value),
            // The two that are, are bytes to us.
            b"hdrcharset" if !matches!(value, b"" | b"BINARY" | b"ISO-IR 10646 2000 UTF-8") => {
                return Err(Fault::Unsupported("headers in other encodings than UTF-8"));
            }
            b"SCHILY.acl.ace" => return Err(Fault::Unsupported("access control lists of NFSv4")),
            b"SCHILY.realsize" => {
                return Err(Fault::Unsupported("sparse files in the format of star"));
            }
            _ if key.starts_with(b"GNU.volume.") => {
                return Err(Fault::Unsupported("parts of multi-volume archives"));
            }
            _ => {
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.add_sparse(key, value)?;
                }
            }
        }
        Ok(())
    }

    fn add_sparse(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        let sparse = &mut self.sparse;
        match key {
            b"major" => sparse.major = decimal(value, "sparse format's version")?,
            b"minor" => sparse.minor = decimal(value, "sparse format's version")?,
            b"name" => sparse.name = name(value, "path")?,
            b"size" | b"realsize" => sparse.size = decimal(value, "size of a sparse file")?,
            b"numblocks" => {
                sparse.count = decimal(value, "number of a sparse file's pieces")?;
                sparse.pieces = PieceList::default();
                sparse.offset = None;
            }
            b"offset" => sparse.offset = decimal(value, "offset in a sparse file")?,
            b"numbytes" => {
                let offset = sparse.offset.take();
                let offset = offset.ok_or(Fault::SparseMap("a length has no offset"))?;
                let len = decimal(value, "length in a sparse file")?;
                sparse
                    .pieces
                    .push(offset, len.ok_or(Fault::SparseMap("a length is missing"))?)?;
            }
            b"map" => {
                sparse.pieces = PieceList::default();
                let mut numbers = value.split(|&byte| byte == b',');
                while let Some(offset) = numbers.next().filter(|text| !text.is_empty()) {
                    let len = numbers.next().ok_or(Fault::SparseMap("a length is missing"))?;
                    let [offset, len] = [offset, len].map(|text| decimal(text, "sparse map's number"));
                    sparse
                        .pieces
                        .push(offset?.unwrap_or_default(), len?.unwrap_or_default())?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The extended attributes with their full names, sorted, each once. Access control lists are not among them,
    /// except where they came as attributes.
    pub(super) fn xattrs(&mut self) -> Result<Vec<Xattr>, Fault> {
        // libarchive encodes names as in a URL in both forms; GNU tar encodes no more than it must.
        let by_libarchive = !self.libarchive_xattrs.is_empty();
        let mut xattrs = Vec::new();
        if let Some(label) = self.selinux.take() {
            // The kernel keeps labels with a NUL, and the record has none.
            xattrs.push((b"security.selinux".to_vec(), [&label, &b"\0"[..]].concat()));
        }
        for (name, value) in self.schily_xattrs.drain(..) {
            let name = if by_libarchive {
                decode_percent(&name)
            } else {
                decode_schily(&name)
            };
            xattrs.push((name, value));
        }
        xattrs.append(&mut self.libarchive_xattrs);
        for (name, _) in &xattrs {
            if name.is_empty() {
                return Err(Fault::Empty("name of an extended attribute"));
            }
            if name.contains(&0) {
                let what = "name of an extended attribute";
                return Err(Fault::Nul { what });
            }
        }
        // Stable, so that of equal names the last one can be kept.
        xattrs.sort_by(|(a, _), (b, _)| a.cmp(b));
        xattrs.reverse();
        xattrs.dedup_by(|(a, _), (b, _)| a == b);
        xattrs.reverse();
        Ok(xattrs)
    }
}

/// `LENGTH KEY=VALUE\n`, the length that of all of it.
struct Record<'a> {
    key: &'a [u8],
    value: &'a [u8],
}

impl<'a> Record<'a> {
    /// The first record, and the others.
    fn split_off(records: &'a [u8]) -> Result<(Self, &'a [u8]), Fault> {
        Self::try_split_off(records).ok_or_else(|| malformed(records))
    }

    fn try_split_off(records: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let space = records.iter().take(20).position(|&byte| byte == b' ')?;
        let len = usize::try_from(digits(&records[..space])?).ok()?;
        let record = records.get(space + 1..len)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|&byte| byte == b'=')?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        (!key.is_empty()).then_some((Self { key, value }, &records[len..]))
    }
}

fn malformed(record: &[u8]) -> Fault {
    Fault::Record(printable(&record[..record.len().min(40)]))
}

/// The value, or none where it is empty: that says to forget what was known.
fn present(value: &[u8]) -> Option<Vec<u8>> {
    (!value.is_empty()).then(|| value.to_vec())
}

fn name(value: &[u8], what: &'static str) -> Result<Option<Vec<u8>>, Fault> {
    if value.contains(&0) {
        return Err(Fault::Nul { what });
    }
    Ok(present(value))
}

/// The decimal digits' number.
pub(super) fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    text.iter().try_fold(0_u64, |value, &digit| {
        value.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
    })
}

fn decimal<T: TryFrom<u64>>(value: &[u8], field: &'static str) -> Result<Option<T>, Fault> {
    if value.is_empty() {
        return Ok(None);
    }
    let number = digits(value).ok_or_else(|| Fault::NotANumber {
        field,
        text: printable(value),
    })?;
    let number = number.try_into().map_err(|_| out_of_range(field, number))?;
    Ok(Some(number))
}

/// Seconds since 1970 with a fraction, of which nanoseconds are kept; rounded down.
fn time(value: &[u8], field: &'static str) -> Result<Option<Time>, Fault> {
    if value.is_empty() {
        return Ok(None);
    }
    let parsed = parse_time(value).ok_or_else(|| Fault::NotANumber {
        field,
        text: printable(value),
    })?;
    Ok(Some(parsed))
}

fn parse_time(text: &[u8]) -> Option<Time> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(text) => (true, text),
        None => (false, text),
    };
    let (number, exponent) = match text.iter().position(|byte| matches!(byte, b'e' | b'E')) {
        Some(at) => (&text[..at], parse_exponent(&text[at + 1..])?),
        None => (text, 0),
    };
    let mut parts = number.splitn(2, |&byte| byte == b'.');
    let (whole, fraction) = (parts.next()?, parts.next().unwrap_or_default());
    let all = [whole, fraction].concat();
    if whole.is_empty() || !all.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // Where the point is among the digits, or how far from them.
    let point = i64::try_from(whole.len()).ok()? + exponent;
    let digit = |place: i64| {
        let found = usize::try_from(place).ok().and_then(|place| all.get(place));
        found.map_or(0, |digit| u32::from(digit - b'0'))
    };
    let secs = (0..point).try_fold(0_i64, |secs, place| {
        secs.checked_mul(10)?.checked_add(digit(place).into())
    })?;
    let nanos = (point..point + 9).fold(0, |nanos, place| nanos * 10 + digit(place));
    if !negative {
        return Some(Time { secs, nanos });
    }
    // Down is away from zero here, whatever digits were lost.
    let lost = all.iter().skip(usize::try_from(point + 9).unwrap_or(0));
    let nanos = nanos + u32::from(lost.into_iter().any(|&digit| digit != b'0'));
    Some(match nanos {
        0 => Time { secs: -secs, nanos },
        _ => Time {
            secs: -secs - 1,
            nanos: 1_000_000_000 - nanos,
        },
    })
}

/// The power of ten that Python's tarfile writes behind numbers that are very small or very large.
fn parse_exponent(text: &[u8]) -> Option<i64> {
    const MOST: i64 = 1000;
    let (sign, text) = match text {
        [b'-', text @ ..] => (-1, text),
        [b'+', text @ ..] => (1, text),
        _ => (1, text),
    };
    let exponent = i64::try_from(digits(text)?).ok()?;
    (exponent <= MOST).then_some(sign * exponent)
}

/// What GNU tar encodes of an attribute's name: the two characters that a key cannot have.
fn decode_schily(name: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(name.len());
    let mut rest = name;
    while let [first, after @ ..] = rest {
        let (byte, after) = match rest {
            [b'%', b'3', b'D', after @ ..] => (b'=', after),
            [b'%', b'2', b'5', after @ ..] => (b'%', after),
            _ => (*first, after),
        };
        decoded.push(byte);
        rest = after;
    }
    decoded
}

/// `%` and two hexadecimal digits stand for a byte; a `%` without them for itself.
fn decode_percent(name: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let mut decoded = Vec::with_capacity(name.len());
    let mut rest = name;
    while let [first, after @ ..] = rest {
        let coded = match after {
            [high, low, ..] if *first == b'%' => digit(*high).zip(digit(*low)),
            _ => None,
        };
        if let Some((high, low)) = coded {
            decoded.push(high << 4 | low);
            rest = &after[2..];
        } else {
            decoded.push(*first);
            rest = after;
        }
    }
    decoded
}

/// Base64, whose padding may be missing.
pub(crate) fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    let end = text
        .iter()
        .rposition(|&byte| byte != b'=')
        .map_or(0, |last| last + 1);
    let text = &text[..end];
    if text.len() % 4 == 1 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for group in text.chunks(4) {
        let mut bits = 0_u32;
        for &character in group {
            let value = match character {
                b'A'..=b'Z' => character - b'A',
                b'a'..=b'z' => character - b'a' + 26,
                b'0'..=b'9' => character - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        bits <<= 6 * (4 - group.len());
        bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rounded_down() {
        let time = |text: &str| parse_time(text.as_bytes()).map(|time| (time.secs, time.nanos));
        assert_eq!(time("1"), Some((1, 0)));
        assert_eq!(time("1.5"), Some((1, 500_000_000)));
        assert_eq!(time("1.0000000019"), Some((1, 1)));
        assert_eq!(time("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time("-0.0000000001"), Some((-1, 999_999_999)));
        assert_eq!(time("-3"), Some((-3, 0)));
        assert_eq!(time("-0.9999999999"), Some((-1, 0)));
        assert_eq!(time("9223372036854775807.5"), Some((i64::MAX, 500_000_000)));
        // As Python's tarfile has them.
        assert_eq!(time("-9.9e-10"), Some((-1, 999_999_999)));
        assert_eq!(time("9.9e-10"), Some((0, 0)));
        assert_eq!(time("1e-07"), Some((0, 100)));
        assert_eq!(time("-1.5e-05"), Some((-1, 999_985_000)));
        assert_eq!(time("1.25E+3"), Some((1250, 0)));
        assert_eq!(time("1.2345e2"), Some((123, 450_000_000)));
        assert_eq!(time("0e999"), Some((0, 0)));
        assert_eq!(time("-1e-999"), Some((-1, 999_999_999)));
        for wrong in [
            "",
            ".",
            "-",
            "1.x",
            "+1",
            "9223372036854775808",
            "1e19",
            "1e",
            "1e+",
            "1e1001",
            "e5",
            "1e5.",
            "1e-x",
            "nan",
        ] {
            assert_eq!(time(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn names_and_values_are_decoded() {
        assert_eq!(decode_schily(b"user.a%3Db%2525%41"), b"user.a=b%25%41");
        assert_eq!(decode_percent(b"user.%C3%a4%3D%2x%"), b"user.\xc3\xa4=%2x%");
        assert_eq!(decode_base64(b"AP8=").unwrap(), [0, 255]);
        assert_eq!(decode_base64(b"AP8").unwrap(), [0, 255]);
        assert_eq!(decode_base64(b"AP8B").unwrap(), [0, 255, 1]);
        assert_eq!(decode_base64(b"").unwrap(), [0_u8; 0]);
        assert!(decode_base64(b"A").is_none());
        assert!(decode_base64(b"A-==").is_none());
    }

    #[test]
    fn records_must_be_whole() {
        for wrong in [
            "9 a=b\n", "6 a=b", "6 ab\n ", "5 =b\n", "x", "6  a=b\n", "-6 a=b\n", "1 \n", "0 a=b\n",
        ] {
            assert!(Extended::default().add(wrong.as_bytes()).is_err(), "{wrong:?}");
        }
        let mut extended = Extended::default();
        extended
            .add(b"10 path=a\n10 path=b\n17 comment=a=b\n\nx\n")
            .unwrap_err();
        extended.add(b"10 path=a\n10 path=b\n15 comment=a=b\n").unwrap();
        assert_eq!(extended.path.as_deref(), Some(&b"b"[..]));
        extended.add(b"8 path=\n").unwrap();
        assert_eq!(extended.path, None);
    }
}
