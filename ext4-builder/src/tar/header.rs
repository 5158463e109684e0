//! A header block, as of POSIX ("ustar Interchange Format") and the GNU tar manual ("Basic Tar Format").

use super::fault::{Fault, printable};

/// Bytes of a header, and what everything in an archive is rounded up to.
pub(super) const BLOCK: usize = 512;

/// Who wrote the header: what lies behind the magic, and which fields come after the owner's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    /// No magic: the fields up to the link's name.
    V7,
    /// 155 bytes of prefix.
    Ustar,
    /// As ustar, with times, and room for a sparse map, instead of the prefix.
    Gnu,
    /// As ustar, with times at the end of a shorter prefix.
    Star,
}

/// A header whose checksum is right. Fields are parsed when asked for: an extended header may replace one that
/// would not parse.
#[derive(Clone, Debug)]
pub(super) struct Header {
    block: [u8; BLOCK],
    dialect: Dialect,
}

impl Header {
    pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Self, Fault> {
        let stored = number(&block[148..156], "checksum")?;
        // The sum counts its own field as spaces. Some old programs summed signed characters.
        let others = || block[..148].iter().chain(&block[156..]);
        let spaces = 8 * i64::from(b' ');
        let unsigned = spaces + others().map(|&byte| i64::from(byte)).sum::<i64>();
        if stored != unsigned {
            let signed = spaces + others().map(|&byte| i64::from(byte.cast_signed())).sum::<i64>();
            if stored != signed {
                return Err(Fault::Checksum {
                    stored,
                    sum: unsigned,
                });
            }
        }
        Ok(Self {
            block: *block,
            dialect: dialect(block),
        })
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.block[156]
    }

    /// The name, with its prefix.
    pub(super) fn path(&self) -> Vec<u8> {
        let prefix = match self.dialect {
            Dialect::V7 | Dialect::Gnu => &[],
            Dialect::Ustar => text(&self.block[345..500]),
            Dialect::Star => text(&self.block[345..476]),
        };
        let name = text(&self.block[..100]);
        if prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, b"/", name].concat()
    }

    pub(super) fn link_path(&self) -> &[u8] {
        text(&self.block[157..257])
    }

    /// Permissions, without the type that some old programs stored with them.
    pub(super) fn mode(&self) -> Result<u16, Fault> {
        Ok((number(&self.block[100..108], "mode")? & 0o7777) as u16)
    }

    pub(super) fn uid(&self) -> Result<u32, Fault> {
        unsigned(&self.block[108..116], "user id")
    }

    pub(super) fn gid(&self) -> Result<u32, Fault> {
        unsigned(&self.block[116..124], "group id")
    }

    /// Bytes that follow the header, if its type has any.
    pub(super) fn size(&self) -> Result<u64, Fault> {
        unsigned(&self.block[124..136], "size")
    }

    pub(super) fn mtime(&self) -> Result<i64, Fault> {
        number(&self.block[136..148], "modification time")
    }

    pub(super) fn user(&self) -> &[u8] {
        match self.dialect {
            Dialect::V7 => &[],
            _ => text(&self.block[265..297]),
        }
    }

    pub(super) fn group(&self) -> &[u8] {
        match self.dialect {
            Dialect::V7 => &[],
            _ => text(&self.block[297..329]),
        }
    }

    pub(super) fn device_major(&self) -> Result<u32, Fault> {
        unsigned(&self.block[329..337], "device's major number")
    }

    pub(super) fn device_minor(&self) -> Result<u32, Fault> {
        unsigned(&self.block[337..345], "device's minor number")
    }

    /// Access and change time, where the dialect has a place for them and they are there.
    pub(super) fn other_times(&self) -> Result<[Option<i64>; 2], Fault> {
        let fields = match self.dialect {
            Dialect::V7 | Dialect::Ustar => return Ok([None; 2]),
            Dialect::Gnu => [&self.block[345..357], &self.block[357..369]],
            Dialect::Star => [&self.block[476..488], &self.block[488..500]],
        };
        let [access, change] = fields.map(|field| {
            let present = field[0] != 0;
            present
                .then(|| number(field, "access or change time"))
                .transpose()
        });
        Ok([access?, change?])
    }

    /// The start of a sparse map in a GNU header: its four pieces, whether more follow, and the file's size.
    pub(super) fn gnu_sparse(&self) -> Result<(&[u8], bool, u64), Fault> {
        if self.dialect != Dialect::Gnu {
            return Err(Fault::Unsupported("sparse files in the format of star"));
        }
        let size = unsigned(&self.block[483..495], "size of a sparse file")?;
        Ok((&self.block[386..482], self.block[482] != 0, size))
    }
}

fn dialect(block: &[u8; BLOCK]) -> Dialect {
    let is_time = |field: &[u8]| (b'0'..=b'7').contains(&field[0]) && field[11] == b' ';
    if &block[257..265] == b"ustar  \0" {
        Dialect::Gnu
    } else if &block[257..262] != b"ustar" {
        Dialect::V7
    } else if block[475] == 0 && is_time(&block[476..488]) && is_time(&block[488..500]) {
        Dialect::Star
    } else {
        Dialect::Ustar
    }
}

/// A field up to its NUL, if it has one.
fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&byte| byte == 0);
    &field[..end.unwrap_or(field.len())]
}

/// A field's number: octal digits between blanks, nothing at all for 0, or in binary where the first bit is set
/// (two's complement, big-endian, of all the other bits).
pub(super) fn number(field: &[u8], name: &'static str) -> Result<i64, Fault> {
    if field[0] & 0x80 != 0 {
        let first = i128::from(field[0] & 0x3f) - i128::from(field[0] & 0x40);
        let value = field[1..]
            .iter()
            .fold(first, |value, &byte| value << 8 | i128::from(byte));
        return value.try_into().map_err(|_| out_of_range(name, value));
    }
    let field = field.trim_ascii_start();
    let end = field.iter().position(|byte| !(b'0'..=b'7').contains(byte));
    let (digits, rest) = field.split_at(end.unwrap_or(field.len()));
    if rest.first().is_some_and(|&byte| byte != 0 && byte != b' ') {
        return Err(Fault::NotANumber {
            field: name,
            text: printable(text(field)),
        });
    }
    Ok(digits
        .iter()
        .fold(0, |value, &digit| value << 3 | i64::from(digit - b'0')))
}

/// A field's number, in the type that holds all that make sense.
pub(super) fn unsigned<T: TryFrom<i64>>(field: &[u8], name: &'static str) -> Result<T, Fault> {
    let value = number(field, name)?;
    value.try_into().map_err(|_| out_of_range(name, value))
}

/// An owner or a group: a kernel takes the last number for none.
pub(super) fn owner(id: u32, name: &'static str) -> Result<u32, Fault> {
    if id == u32::MAX {
        return Err(out_of_range(name, id));
    }
    Ok(id)
}

pub(super) fn out_of_range(field: &'static str, value: impl Into<i128>) -> Fault {
    let value = value.into();
    Fault::OutOfRange { field, value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        let number = |field: &[u8]| number(field, "size").ok();
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644  "), Some(0o644));
        assert_eq!(number(b"77777777"), Some(0o77_777_777));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"        "), Some(0));
        assert_eq!(number(b"\x80\0\0\0\0\0\x01\x02"), Some(0x102));
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xfe"), Some(-2));
        assert_eq!(number(b"0000649\0"), None);
        assert_eq!(number(b"-1\0\0\0\0\0\0"), None);
        assert_eq!(number(b"\x80\0\0\0\x80\0\0\0\0\0\0\0"), None);
    }
}
