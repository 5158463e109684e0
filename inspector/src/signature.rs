//! By what formats are recognised, and where.

use block::size::whole_sectors;
use block::{Result, foreign_formats};
use byteorder::{BE, ByteOrder, LE};

use crate::Format;
use crate::file::File;
use crate::iso;
use crate::report::{Check, Report};

/// Bytes from the start in which signatures are looked for, but for those of optical discs.
const HEAD: usize = 8192;
/// Sizes of sectors that a GPT may count in: its header is the second one.
const SECTORS: [usize; 4] = [512, 1024, 2048, 4096];

/// Bytes of a VHD's footer, now and before 2004.
const FOOTERS: [u64; 2] = [512, 511];
/// From where before the end in whole sectors QEMU looks for a DMG's trailer, and in how many bytes.
const TRAILER: (u64, usize) = (1023, 515);

/// What says that a file is in a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The format.
    pub format: Format,
    /// Where in the file, in bytes.
    pub offset: u64,
}

/// Every signature in the file, in the order in which they are there.
pub(crate) fn find(file: &File) -> Result<Vec<Signature>> {
    let head = file.some(0, HEAD)?;
    let mut found = at_start(&head);
    found.extend(partition_table(&head));
    found.extend(iso::signature(file)?);
    // A VHD has its footer at both ends, or at the end only.
    let known = |one: &Signature| found.iter().any(|other| other.format == one.format);
    let end: Vec<Signature> = at_end(file)?.into_iter().filter(|one| !known(one)).collect();
    found.extend(end);
    found.sort_by_key(|one| one.offset);
    Ok(found)
}

/// What formats have at the end of a file.
fn at_end(file: &File) -> Result<Vec<Signature>> {
    let mut found = Vec::new();
    for len in FOOTERS {
        let offset = file.len().saturating_sub(len);
        if file.bytes(offset)?.as_ref() == Some(b"conectix") {
            found.push(Signature {
                format: Format::Vhd,
                offset,
            });
        }
    }
    let start = whole_sectors(file.len()).saturating_sub(TRAILER.0);
    let tail = file.some(start, TRAILER.1)?;
    if let Some(at) = tail.windows(4).position(|window| window == b"koly") {
        found.push(Signature {
            format: Format::Dmg,
            offset: start + at as u64,
        });
    }
    Ok(found)
}

fn at_start(head: &[u8]) -> Vec<Signature> {
    const MAGICS: [(&[u8], Format); 2] = [
        (b"LUKS\xba\xbe", Format::Luks),
        (b"#!/bin/sh\n#V2.0 Format\n", Format::Cloop),
    ];
    let signature = |format, offset| Signature { format, offset };
    let foreign = foreign_formats(head).filter_map(|(name, at)| Some(signature(Format::named(name)?, at)));
    let others = MAGICS.iter().filter(|(magic, _)| head.starts_with(magic));
    let mut found: Vec<Signature> = foreign
        .chain(others.map(|(_, format)| signature(*format, 0)))
        .collect();
    if head.starts_with(b"QFI\xfb") {
        // Versions that do not exist yet will be qcow2's.
        let version = head.get(4..8).map_or(0, BE::read_u32);
        let format = if version == 1 { Format::Qcow } else { Format::Qcow2 };
        found.push(signature(format, 0));
    }
    found
}

/// The partition table that a disk which starts so has.
fn partition_table(head: &[u8]) -> Option<Signature> {
    let is_gpt = |at: &usize| head.get(*at..at + 8) == Some(b"EFI PART");
    if let Some(at) = SECTORS.into_iter().find(is_gpt) {
        return Some(Signature {
            format: Format::Gpt,
            offset: at as u64,
        });
    }
    let record = head.get(..512).filter(|record| record[510..] == [0x55, 0xaa])?;
    let mut entries = record[446..510].chunks_exact(16);
    // The signature alone is that of any boot sector; its code may stand where a table would be.
    let is_table = entries.clone().all(|entry| matches!(entry[0], 0 | 0x80))
        && entries.any(|entry| entry[4] != 0 && LE::read_u32(&entry[12..]) != 0);
    is_table.then_some(Signature {
        format: Format::Mbr,
        offset: 510,
    })
}

/// The one format that all programs take the file for. If there is none, that is a problem.
pub(crate) fn one_format(report: &mut Report) -> Option<Format> {
    let images: Vec<Signature> = report
        .signatures
        .iter()
        .copied()
        .filter(|one| !one.format.is_partition_table())
        .collect();
    let table = report
        .signatures
        .iter()
        .copied()
        .find(|one| one.format.is_partition_table());
    let [image] = images.as_slice() else {
        if images.is_empty() {
            return Some(Format::Raw);
        }
        several(report, &images);
        return None;
    };
    // What starts as a disk does can hold one; all others begin with something else.
    let footer_only = image.format == Format::Vhd && image.offset > 0;
    match table {
        Some(table) if image.format != Format::Iso && !footer_only => {
            several(report, &[*image, table]);
            None
        }
        _ => Some(image.format),
    }
}

fn several(report: &mut Report, found: &[Signature]) {
    let named: Vec<String> = found
        .iter()
        .map(|one| format!("{} (by what is at {})", one.format.name(), one.offset))
        .collect();
    let text = format!("it is several formats at once: {}", named.join(", "));
    report.problem(Check::Format, text);
}
