//! A partition entry (UEFI specification, 5.3.3).

use block::{Error, Result, escape};
use byteorder::{ByteOrder, LittleEndian as LE};

use super::{Guid, Lba, Partition, PartitionKind, SectorSize};

/// Bytes of an entry that mean something; entries may be longer.
pub(super) const MIN_ENTRY_SIZE: u32 = 128;

/// UTF-16 units of a name at most.
const NAME_LEN: usize = 36;

/// The partition that `bytes` describe, if the entry is used.
pub(super) fn parse(bytes: &[u8], number: u32, sector: SectorSize) -> Option<Partition> {
    let guid = |at: usize| {
        let mut guid = [0; 16];
        guid.copy_from_slice(&bytes[at..at + 16]);
        Guid::from_bytes(guid)
    };
    let kind = guid(0);
    if kind.is_nil() {
        return None;
    }
    let units = bytes[56..56 + 2 * NAME_LEN].chunks(2).map(LE::read_u16);
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    Some(Partition {
        number,
        first: Lba(LE::read_u64(&bytes[32..])),
        last: Lba(LE::read_u64(&bytes[40..])),
        sector,
        kind: PartitionKind::Gpt(kind),
        guid: Some(guid(16)),
        name: String::from_utf16_lossy(&units),
        attributes: LE::read_u64(&bytes[48..]),
    })
}

/// Writes what `parse` would find into `bytes`, the entry's; what it has beyond that stays.
///
/// # Errors
/// `InvalidInput` for a name that is too long or that nobody could write.
pub(super) fn encode(partition: &Partition, kind: Guid, guid: Guid, bytes: &mut [u8]) -> Result<()> {
    let name: Vec<u16> = partition.name.encode_utf16().collect();
    if name.len() > NAME_LEN || name.contains(&0) {
        let message = format!(
            "a partition cannot be called \"{}\": names have {NAME_LEN} UTF-16 units at most, and no NUL",
            escape(&partition.name)
        );
        return Err(Error::invalid(message));
    }
    bytes[..16].copy_from_slice(&kind.to_bytes());
    bytes[16..32].copy_from_slice(&guid.to_bytes());
    LE::write_u64(&mut bytes[48..], partition.attributes);
    move_to(bytes, partition.first, partition.last);
    let field = &mut bytes[56..56 + 2 * NAME_LEN];
    field.fill(0);
    LE::write_u16_into(&name, &mut field[..2 * name.len()]);
    Ok(())
}

/// Gives an entry other sectors.
pub(super) fn move_to(bytes: &mut [u8], first: Lba, last: Lba) {
    LE::write_u64(&mut bytes[32..], first.0);
    LE::write_u64(&mut bytes[40..], last.0);
}
