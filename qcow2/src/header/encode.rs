//! From a [`Header`] to the bytes of the first cluster. Names in here are the specification's.

use block::{Error, Result};
use byteorder::{BE, ByteOrder};

use super::{COMPRESSION_TYPE, Encryption, Header, MAGIC, V2_LENGTH, Version, parse};

/// What is written as one: a sector.
pub(super) const SECTOR: usize = 512;

pub(super) fn encode(header: &Header) -> Result<Vec<u8>> {
    let mut bytes = fixed_fields(header);
    header.extensions.encode(&mut bytes);
    if let Some(name) = &header.backing_name {
        let offset = bytes.len() as u64;
        BE::write_u64(&mut bytes[8..], offset);
        BE::write_u32(&mut bytes[16..], name.len() as u32);
        bytes.extend_from_slice(name.as_bytes());
    }
    let (len, cluster_size) = (bytes.len(), header.geometry.cluster_size());
    if len as u64 > cluster_size {
        let message = format!(
            "the header with its extensions and the backing file's name takes {len} bytes, and the first cluster has {cluster_size}"
        );
        return Err(Error::invalid(message).with_hint("use a shorter name, or larger clusters"));
    }
    bytes.resize(len.next_multiple_of(SECTOR), 0);
    check_readable(header, &bytes)?;
    Ok(bytes)
}

/// Everything in front of the extensions, without the backing file's name.
pub(super) fn fixed_fields(header: &Header) -> Vec<u8> {
    let mut bytes = vec![0; header.header_length()];
    let geometry = header.geometry;
    bytes[..4].copy_from_slice(&MAGIC);
    BE::write_u32(&mut bytes[20..], geometry.cluster_bits);
    BE::write_u64(&mut bytes[24..], header.size);
    let crypt_method = match header.encryption {
        Encryption::None => 0,
        Encryption::Aes => 1,
        Encryption::Luks => 2,
    };
    BE::write_u32(&mut bytes[32..], crypt_method);
    BE::write_u32(&mut bytes[36..], header.l1_entries);
    BE::write_u64(&mut bytes[40..], header.l1_offset.0);
    BE::write_u64(&mut bytes[48..], header.refcount_table_offset.0);
    BE::write_u32(&mut bytes[56..], header.refcount_table_clusters);
    BE::write_u32(&mut bytes[60..], header.snapshot_count);
    BE::write_u64(&mut bytes[64..], header.snapshots_offset.0);
    if header.version == Version::V2 {
        debug_assert_eq!(bytes.len(), V2_LENGTH);
        BE::write_u32(&mut bytes[4..], 2);
        return bytes;
    }
    BE::write_u32(&mut bytes[4..], 3);
    BE::write_u64(&mut bytes[72..], header.incompatible.bits());
    BE::write_u64(&mut bytes[80..], header.compatible.bits());
    BE::write_u64(&mut bytes[88..], header.autoclear.bits());
    BE::write_u32(&mut bytes[96..], geometry.refcount_order);
    let header_length = bytes.len() as u32;
    BE::write_u32(&mut bytes[100..], header_length);
    if let Some((compression_type, later)) = bytes[COMPRESSION_TYPE..].split_first_mut() {
        *compression_type = header.compression.encode();
        later.copy_from_slice(&header.later_fields);
    }
    bytes
}

/// A header that would be refused or misread is never written, whatever its caller did to the fields.
fn check_readable(header: &Header, bytes: &[u8]) -> Result<()> {
    let message = match parse::parse(bytes, Some(u64::MAX)) {
        Ok(read) if read == *header => return Ok(()),
        Ok(_) => "the fields of the header contradict each other".into(),
        Err(error) => format!("no valid header: {error}"),
    };
    Err(Error::invalid(message))
}
