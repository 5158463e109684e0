//! Header extensions: optional sections between the header and the backing file's name ("Header extensions").

use byteorder::{BE, ByteOrder};

use crate::address::HostOffset;
use crate::corruption::Corruption;
use crate::feature::FeatureNames;

/// Most extensions that are read from one header.
pub(crate) const MAX_EXTENSIONS: usize = 256;

const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const DATA_FILE: u32 = 0x4441_5441;
const ENCRYPTION_HEADER: u32 = 0x0537_be77;
const FEATURE_NAMES: u32 = 0x6803_f857;
const BITMAPS: u32 = 0x2385_2875;
/// Holds nothing, and leads to the extensions behind it: see [`crate::header`]'s rewriting. Unknown to everybody else,
/// who skip it. Only a power cut leaves one.
const PADDING: u32 = 0x5f70_6164;

/// Bytes of type and length in front of an extension's data.
const PREFIX: usize = 8;

/// What the extensions of a header say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// Format of the backing file. Means nothing in an image without one, and is kept there.
    pub backing_format: Option<String>,
    /// Name of the external data file.
    pub data_file: Option<String>,
    /// Where the header of full-disk encryption is.
    pub encryption_header: Option<EncryptionHeader>,
    /// Names of features, for messages.
    pub feature_names: Option<FeatureNames>,
    /// Where the bitmaps are.
    pub bitmaps: Option<BitmapsExtension>,
    /// Extensions of other types, in their order and byte for byte.
    pub unknown: Vec<UnknownExtension>,
}

/// Where the header of full-disk encryption is ("Full disk encryption header pointer").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncryptionHeader {
    /// First byte.
    pub offset: HostOffset,
    /// Length in bytes.
    pub len: u64,
}

/// Where the bitmap directory is ("Bitmaps extension"). Consistent only with
/// [`AutoclearFeatures::BITMAPS`](crate::AutoclearFeatures::BITMAPS) set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapsExtension {
    /// Bitmaps in the directory.
    pub count: u32,
    /// Length of the directory in bytes.
    pub directory_size: u64,
    /// Where the directory starts.
    pub directory_offset: HostOffset,
}

/// An extension of a type that has no meaning here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownExtension {
    /// Its type.
    pub kind: u32,
    /// Its data, without padding.
    pub data: Vec<u8>,
}

impl Extensions {
    /// Decodes the extensions in `bytes[start..end]`, where `start` is a multiple of 8.
    pub(crate) fn decode(bytes: &[u8], start: usize, end: usize) -> Result<Self, Corruption> {
        let mut extensions = Self::default();
        let mut seen = Vec::new();
        for raw in RawExtensions::new(bytes, start, end) {
            let raw = raw?;
            // Of two backing formats the last one holds, as QEMU has it: both write it anew as one.
            if seen.contains(&raw.kind) && raw.kind != BACKING_FORMAT {
                return Err(raw.problem("the header has two extensions of this type"));
            }
            if seen.len() == MAX_EXTENSIONS {
                return Err(raw.problem("the header has more than 256 extensions"));
            }
            seen.push(raw.kind);
            extensions.add(&raw)?;
        }
        Ok(extensions)
    }

    fn add(&mut self, raw: &RawExtension<'_>) -> Result<(), Corruption> {
        match raw.kind {
            BACKING_FORMAT => self.backing_format = Some(raw.text()?),
            DATA_FILE => self.data_file = Some(raw.text()?),
            ENCRYPTION_HEADER => {
                let data: &[u8; 16] = raw.fixed("it should be 16 bytes long")?;
                self.encryption_header = Some(EncryptionHeader {
                    offset: HostOffset(BE::read_u64(&data[0..])),
                    len: BE::read_u64(&data[8..]),
                });
            }
            FEATURE_NAMES => self.feature_names = Some(FeatureNames::of_table(raw.data)),
            BITMAPS => {
                let data: &[u8; 24] = raw.fixed("it should be 24 bytes long")?;
                if data[4..8] != [0; 4] {
                    return Err(raw.problem("its reserved bytes 4-7 are not zero"));
                }
                self.bitmaps = Some(BitmapsExtension {
                    count: BE::read_u32(&data[0..]),
                    directory_size: BE::read_u64(&data[8..]),
                    directory_offset: HostOffset(BE::read_u64(&data[16..])),
                });
            }
            PADDING => {}
            kind => self.unknown.push(UnknownExtension {
                kind,
                data: raw.data.to_vec(),
            }),
        }
        Ok(())
    }

    /// Appends the extensions and their end marker, known ones first and always in the same order.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        if let Some(format) = &self.backing_format {
            push(out, BACKING_FORMAT, format.as_bytes());
        }
        if let Some(name) = &self.data_file {
            push(out, DATA_FILE, name.as_bytes());
        }
        if let Some(header) = &self.encryption_header {
            let mut data = [0; 16];
            BE::write_u64(&mut data[0..], header.offset.0);
            BE::write_u64(&mut data[8..], header.len);
            push(out, ENCRYPTION_HEADER, &data);
        }
        if let Some(names) = &self.feature_names {
            push(out, FEATURE_NAMES, names.encode());
        }
        if let Some(bitmaps) = &self.bitmaps {
            let mut data = [0; 24];
            BE::write_u32(&mut data[0..], bitmaps.count);
            BE::write_u64(&mut data[8..], bitmaps.directory_size);
            BE::write_u64(&mut data[16..], bitmaps.directory_offset.0);
            push(out, BITMAPS, &data);
        }
        for extension in &self.unknown {
            push(out, extension.kind, &extension.data);
        }
        push(out, END, &[]);
    }
}

/// The feature name table of `bytes[start..end]` and nothing else, whatever is wrong with the rest: for an image
/// that can't be parsed further because it uses an unknown feature.
pub(crate) fn find_feature_names(bytes: &[u8], start: usize, end: usize) -> Option<FeatureNames> {
    RawExtensions::new(bytes, start, end)
        .map_while(Result::ok)
        .find(|raw| raw.kind == FEATURE_NAMES)
        .map(|raw| FeatureNames::of_table(raw.data))
}

/// Where the extensions of `bytes[start..end]` end, their end marker included.
pub(crate) fn area_end(bytes: &[u8], start: usize, end: usize) -> usize {
    let mut extensions = RawExtensions::new(bytes, start, end);
    let mut last = start;
    while let Some(Ok(_)) = extensions.next() {
        last = extensions.at;
    }
    (last + PREFIX).min(extensions.area.len())
}

/// The beginning of an extension without meaning that takes `len` bytes in all, a multiple of 8.
pub(crate) fn padding_prefix(len: usize) -> Option<[u8; PREFIX]> {
    let mut prefix = [0; PREFIX];
    BE::write_u32(&mut prefix[0..], PADDING);
    BE::write_u32(&mut prefix[4..], len.checked_sub(PREFIX)? as u32);
    Some(prefix)
}

fn push(out: &mut Vec<u8>, kind: u32, data: &[u8]) {
    let mut prefix = [0; PREFIX];
    BE::write_u32(&mut prefix[0..], kind);
    BE::write_u32(&mut prefix[4..], data.len() as u32);
    out.extend_from_slice(&prefix);
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(8), 0);
}

/// An extension as it lies in the header.
struct RawExtension<'a> {
    kind: u32,
    /// Where it starts in the header, for messages.
    at: usize,
    data: &'a [u8],
}

impl RawExtension<'_> {
    fn problem(&self, problem: &'static str) -> Corruption {
        Corruption::Extension {
            kind: self.kind,
            at: self.at as u64,
            problem,
        }
    }

    fn text(&self) -> Result<String, Corruption> {
        match str::from_utf8(self.data) {
            Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
            _ => Err(self.problem("its text is not UTF-8, or has a NUL in it")),
        }
    }

    fn fixed<const N: usize>(&self, problem: &'static str) -> Result<&[u8; N], Corruption> {
        self.data.try_into().map_err(|_| self.problem(problem))
    }
}

/// Walks the extensions up to the end marker, or the end of their area: old images have no marker.
struct RawExtensions<'a> {
    area: &'a [u8],
    at: usize,
}

impl<'a> RawExtensions<'a> {
    fn new(bytes: &'a [u8], start: usize, end: usize) -> Self {
        Self {
            area: &bytes[..end.min(bytes.len())],
            at: start,
        }
    }
}

impl<'a> Iterator for RawExtensions<'a> {
    type Item = Result<RawExtension<'a>, Corruption>;

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.at;
        let rest = self.area.get(at..).filter(|rest| rest.len() >= PREFIX)?;
        let kind = BE::read_u32(&rest[0..]);
        if kind == END {
            self.at = self.area.len();
            return None;
        }
        let len = BE::read_u32(&rest[4..]) as usize;
        let data = &rest[PREFIX..];
        let Some(data) = data.get(..len) else {
            self.at = self.area.len();
            return Some(Err(Corruption::Extension {
                kind,
                at: at as u64,
                problem: "it reaches past the end of the extension area",
            }));
        };
        self.at = at + PREFIX + len.next_multiple_of(8);
        Some(Ok(RawExtension { kind, at, data }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> Result<Extensions, Corruption> {
        Extensions::decode(bytes, 0, bytes.len())
    }

    fn full() -> Extensions {
        Extensions {
            backing_format: Some("raw".into()),
            data_file: Some("data".into()),
            encryption_header: Some(EncryptionHeader {
                offset: HostOffset(0x5_0000),
                len: 1234,
            }),
            feature_names: Some(FeatureNames::known()),
            bitmaps: Some(BitmapsExtension {
                count: 2,
                directory_size: 64,
                directory_offset: HostOffset(0x7_0000),
            }),
            unknown: vec![
                UnknownExtension {
                    kind: 7,
                    data: b"odd".to_vec(),
                },
                UnknownExtension {
                    kind: 3,
                    data: vec![],
                },
            ],
        }
    }

    #[test]
    fn every_extension_survives_a_round_trip() {
        let mut bytes = Vec::new();
        full().encode(&mut bytes);
        assert_eq!(bytes.len() % 8, 0);
        assert_eq!(decode(&bytes), Ok(full()));
    }

    #[test]
    fn an_area_without_end_marker_ends_where_it_ends() {
        let mut bytes = Vec::new();
        full().encode(&mut bytes);
        bytes.truncate(bytes.len() - PREFIX);
        assert_eq!(decode(&bytes), Ok(full()));
    }

    #[test]
    fn the_last_extension_may_lack_its_padding() {
        let mut bytes = Vec::new();
        push(&mut bytes, BACKING_FORMAT, b"raw");
        bytes.truncate(PREFIX + 3);
        assert_eq!(decode(&bytes).unwrap().backing_format.as_deref(), Some("raw"));
    }

    #[test]
    fn refuses_two_of_a_type_too_many_and_too_long() {
        let mut twice = Vec::new();
        push(&mut twice, 9, b"a");
        push(&mut twice, 9, b"b");
        assert!(decode(&twice).unwrap_err().to_string().contains("two extensions"));
        let mut formats = Vec::new();
        push(&mut formats, BACKING_FORMAT, b"raw");
        push(&mut formats, BACKING_FORMAT, b"qcow2");
        assert_eq!(decode(&formats).unwrap().backing_format.as_deref(), Some("qcow2"));

        let mut many = Vec::new();
        for kind in 1..=257 {
            push(&mut many, kind, b"");
        }
        assert!(decode(&many).unwrap_err().to_string().contains("256"));

        let mut long = Vec::new();
        push(&mut long, 9, b"12345678");
        long.truncate(PREFIX + 7);
        assert!(decode(&long).unwrap_err().to_string().contains("past the end"));
        long[4..8].fill(0xff);
        assert!(decode(&long).is_err());
    }

    #[test]
    fn refuses_text_that_is_none_and_lengths_that_are_wrong() {
        for (kind, data) in [
            (BACKING_FORMAT, &b"ra\0w"[..]),
            (DATA_FILE, b"\xff\xfe"),
            (BITMAPS, b"short"),
            (BITMAPS, &[1; 24]),
            (ENCRYPTION_HEADER, &[0; 17]),
        ] {
            let mut bytes = Vec::new();
            push(&mut bytes, kind, data);
            assert!(decode(&bytes).is_err(), "{kind:#x}");
        }
    }
}
