//! Disks as they are read here: qcow2 and raw ones by this toolkit, others by the few lines that a sound image of them takes.

use std::io::Read;
use std::sync::Arc;

use block::size::whole_sectors;
use block::{Backing, BlockDevice, Error, Keys, MemStorage, Passphrase};
use byteorder::{BE, ByteOrder, LE};
use encryption::Luks;
use flate2::read::ZlibDecoder;
use inspector::{Format, Report};
use qcow2::OpenOptions;

use crate::seeds::SECRET_KEY;

/// The bytes of the disk, or why they cannot be read.
pub(crate) fn read(bytes: &[u8], format: Format, report: &Report) -> Result<Vec<u8>, String> {
    let size = report.disk_size.unwrap_or_default() as usize;
    match format {
        Format::Raw | Format::Iso => Ok(bytes.to_vec()),
        Format::Qcow2 => {
            let storage = Arc::new(MemStorage::from(bytes.to_vec()));
            qcow2_disk(storage).map_err(|error| error.to_string())
        }
        Format::Vdi => Ok(blocks(bytes, size, vdi)),
        Format::Qed => Ok(blocks(bytes, size, qed)),
        Format::Vhdx => Ok(blocks(bytes, size, vhdx)),
        Format::Vhd if BE::read_u32(&bytes[bytes.len() - 452..]) == 2 => Ok(bytes[..size].to_vec()),
        Format::Vhd => Ok(blocks(bytes, size, vhd)),
        Format::Vmdk => vmdk(bytes, size).map_err(|error| error.to_string()),
        Format::Luks => luks(bytes).map_err(|error| error.to_string()),
        other => Err(format!("no reader for {}", other.name())),
    }
}

fn qcow2_disk(storage: Arc<MemStorage>) -> block::Result<Vec<u8>> {
    let options = OpenOptions {
        backing: Backing::None,
        keys: Keys::Passphrases(vec![Passphrase::new(SECRET_KEY)]),
        ..OpenOptions::default()
    };
    let image = qcow2::Image::open(storage, options)?;
    let mut disk = vec![0; image.size() as usize];
    image.read_at(&mut disk, 0)?;
    Ok(disk)
}

fn luks(bytes: &[u8]) -> block::Result<Vec<u8>> {
    let luks = Luks::parse(bytes)?;
    let material = |slot| Ok(bytes.get(luks.material(slot)).unwrap_or_default().to_vec());
    let key = luks.unlock(SECRET_KEY, material)?;
    let key = key.ok_or_else(|| Error::invalid("the key opens no slot"))?;
    let mut disk = bytes[luks.payload_offset() as usize..].to_vec();
    disk.resize(whole_sectors(disk.len() as u64) as usize, 0);
    luks.cipher(&key)?.decrypt(0, &mut disk);
    Ok(disk)
}

/// A disk of blocks: `find` gives the length of each, and where the one with a number is.
fn blocks(bytes: &[u8], size: usize, find: impl Fn(&[u8], usize) -> (usize, Option<usize>)) -> Vec<u8> {
    let mut disk = vec![0; size];
    let block = find(bytes, 0).0;
    for (number, piece) in disk.chunks_mut(block).enumerate() {
        if let Some(at) = find(bytes, number).1 {
            // The last block of a file may be cut where the disk ends.
            let there = bytes.get(at..).unwrap_or_default();
            let len = piece.len().min(there.len());
            piece[..len].copy_from_slice(&there[..len]);
        }
    }
    disk
}

fn le32(bytes: &[u8], at: usize) -> usize {
    LE::read_u32(&bytes[at..]) as usize
}

fn le64(bytes: &[u8], at: usize) -> usize {
    LE::read_u64(&bytes[at..]) as usize
}

fn vdi(bytes: &[u8], number: usize) -> (usize, Option<usize>) {
    let (map, data, block) = (le32(bytes, 340), le32(bytes, 344), le32(bytes, 376));
    let entry = le32(bytes, map + 4 * number);
    (block, (entry < 0xffff_fffe).then_some(data + entry * block))
}

fn qed(bytes: &[u8], number: usize) -> (usize, Option<usize>) {
    let (cluster, l1) = (le32(bytes, 4), le64(bytes, 40));
    let entries = le32(bytes, 8) * cluster / 8;
    let l2 = le64(bytes, l1 + number / entries * 8);
    let entry = if l2 == 0 {
        0
    } else {
        le64(bytes, l2 + number % entries * 8)
    };
    (cluster, (entry > 1).then_some(entry))
}

fn vhd(bytes: &[u8], number: usize) -> (usize, Option<usize>) {
    let be32 = |at: usize| BE::read_u32(&bytes[at..]) as usize;
    let header = BE::read_u64(&bytes[16..]) as usize;
    let (table, block) = (BE::read_u64(&bytes[header + 16..]) as usize, be32(header + 32));
    let entry = be32(table + 4 * number);
    let bitmap = (block / 4096).next_multiple_of(512);
    (block, (entry != 0xffff_ffff).then_some(entry * 512 + bitmap))
}

fn vhdx(bytes: &[u8], number: usize) -> (usize, Option<usize>) {
    const REGIONS: usize = 192 << 10;
    // By the first bytes of their identifiers.
    let find = |table: usize, id: [u8; 4]| {
        let mut entries = bytes[table..table + (64 << 10)].chunks_exact(32);
        entries.find(|entry| entry[..4] == id).unwrap()
    };
    let map = le64(find(REGIONS + 16, [0x66, 0x77, 0xc2, 0x2d]), 16);
    let metadata = le64(find(REGIONS + 16, [0x06, 0xa2, 0x7c, 0x8b]), 16);
    let parameters = metadata + le32(find(metadata, [0x37, 0x67, 0xa1, 0xca]), 16);
    let block = le32(bytes, parameters);
    let chunk = (1 << 32) / block;
    let entry = le64(bytes, map + 8 * (number + number / chunk));
    (block, (entry & 7 == 6).then_some(entry >> 20 << 20))
}

fn vmdk(bytes: &[u8], size: usize) -> std::io::Result<Vec<u8>> {
    let header = if le64(bytes, 56) == usize::MAX {
        &bytes[bytes.len() - 1024..]
    } else {
        bytes
    };
    let (grain, directory) = (512 * le64(header, 20), 512 * le64(header, 56));
    let mut disk = vec![0; size];
    for (number, piece) in disk.chunks_mut(grain).enumerate() {
        let table = 512 * le32(bytes, directory + number / 512 * 4);
        let entry = if table == 0 {
            0
        } else {
            le32(bytes, table + number % 512 * 4)
        };
        let at = 512 * entry;
        if entry <= 1 {
            continue;
        }
        if header[77] == 1 {
            let len = le32(bytes, at + 8);
            let mut decoder = ZlibDecoder::new(&bytes[at + 12..at + 12 + len]);
            decoder.read_exact(piece)?;
        } else {
            let there = &bytes[at..bytes.len().min(at + piece.len())];
            piece[..there.len()].copy_from_slice(there);
        }
    }
    Ok(disk)
}
