//! What the fields of a header must be to each other and to the length of the file.

use super::{Encryption, Header, MAX_SNAPSHOTS};
use crate::address::HostOffset;
use crate::bitmap::MAX_BITMAPS;
use crate::corruption::Corruption;
use crate::feature::{AutoclearFeatures, IncompatibleFeatures};
use crate::geometry::{Geometry, MAX_L1_BYTES, MAX_REFCOUNT_TABLE_BYTES, MIN_CLUSTER_BITS_EXTENDED_L2};
use crate::snapshot::MIN_SNAPSHOT_LEN;

pub(super) fn check(header: &Header, file_len: u64) -> Result<(), Corruption> {
    check_limits(header)?;
    check_features(header)?;
    check_counts(header)?;
    let mut tables = tables(header);
    for table in &tables {
        table.check(header.geometry, file_len)?;
    }
    tables.push(Table {
        what: "the header",
        field: "",
        start: HostOffset(0),
        len: header.geometry.cluster_size(),
    });
    check_disjoint(tables)
}

/// What must hold of a header for its tables to be looked for.
pub(super) fn check_damaged(header: &Header) -> Result<(), Corruption> {
    check_limits(header)?;
    check_features(header)?;
    for table in tables(header)
        .into_iter()
        .filter(|table| table.field != SNAPSHOTS)
    {
        table.check_aligned(header.geometry)?;
        if table
            .start
            .0
            .checked_add(table.len)
            .is_none_or(|end| end > MAX_OFFSET)
        {
            return Err(table.problem("no file is that long"));
        }
    }
    Ok(())
}

fn check_limits(header: &Header) -> Result<(), Corruption> {
    let geometry = header.geometry;
    field(
        !geometry.extended_l2 || geometry.cluster_bits >= MIN_CLUSTER_BITS_EXTENDED_L2,
        "cluster_bits",
        geometry.cluster_bits.into(),
        "must be at least 14 with extended L2 entries",
    )?;
    field(
        u64::from(header.l1_entries) * 8 <= MAX_L1_BYTES,
        "l1_size",
        header.l1_entries.into(),
        "the L1 table may take 32 MiB (4194304 entries) at most",
    )?;
    field(
        geometry.l1_entries(header.size) <= header.l1_entries.into(),
        "l1_size",
        header.l1_entries.into(),
        "the virtual size needs more L1 entries",
    )?;
    field(
        refcount_table_bytes(header) <= MAX_REFCOUNT_TABLE_BYTES,
        "refcount_table_clusters",
        header.refcount_table_clusters.into(),
        "the refcount table may take 8 MiB at most",
    )
}

/// Counts that a repair can set right.
fn check_counts(header: &Header) -> Result<(), Corruption> {
    field(
        header.refcount_table_clusters > 0,
        "refcount_table_clusters",
        0,
        "every image has a refcount table",
    )?;
    field(
        header.snapshot_count <= MAX_SNAPSHOTS,
        "nb_snapshots",
        header.snapshot_count.into(),
        "there may be 65536 at most",
    )
}

fn field(holds: bool, field: &'static str, value: u64, rule: &'static str) -> Result<(), Corruption> {
    if holds {
        Ok(())
    } else {
        Err(Corruption::HeaderField { field, value, rule })
    }
}

fn refcount_table_bytes(header: &Header) -> u64 {
    u64::from(header.refcount_table_clusters) << header.geometry.cluster_bits
}

fn check_features(header: &Header) -> Result<(), Corruption> {
    let autoclear = |bit: AutoclearFeatures| header.autoclear.contains(bit);
    let bitmaps = header.extensions.bitmaps.map(|bitmaps| bitmaps.count);
    let rule = if autoclear(AutoclearFeatures::BITMAPS) && bitmaps.is_none() {
        "bit 0 (bitmaps) needs the bitmaps extension"
    } else if autoclear(AutoclearFeatures::BITMAPS) && !matches!(bitmaps, Some(1..=MAX_BITMAPS)) {
        "bit 0 (bitmaps) needs 1 to 65535 bitmaps"
    } else if autoclear(AutoclearFeatures::RAW_EXTERNAL_DATA)
        && !header
            .incompatible
            .contains(IncompatibleFeatures::EXTERNAL_DATA_FILE)
    {
        "bit 1 (raw external data) needs an external data file"
    } else if autoclear(AutoclearFeatures::RAW_EXTERNAL_DATA) && header.backing_name.is_some() {
        "bit 1 (raw external data) excludes a backing file"
    } else {
        return check_encryption(header);
    };
    Err(Corruption::HeaderField {
        field: "autoclear_features",
        value: header.autoclear.bits(),
        rule,
    })
}

fn check_encryption(header: &Header) -> Result<(), Corruption> {
    let luks = header.encryption == Encryption::Luks;
    if luks == header.extensions.encryption_header.is_some() {
        return Ok(());
    }
    Err(Corruption::HeaderField {
        field: "crypt_method",
        value: match header.encryption {
            Encryption::None => 0,
            Encryption::Aes => 1,
            Encryption::Luks => 2,
        },
        rule: "the encryption header pointer belongs to method 2 (LUKS), and to no other",
    })
}

const SNAPSHOTS: &str = "snapshots_offset";
/// Largest offset in a file.
const MAX_OFFSET: u64 = i64::MAX as u64;

/// A contiguous table that the header places.
struct Table {
    what: &'static str,
    /// The field that says where it is.
    field: &'static str,
    start: HostOffset,
    len: u64,
}

/// The tables that there are. The length of the snapshot table is known only when it is read, so that this is
/// the least it can be.
fn tables(header: &Header) -> Vec<Table> {
    let mut tables = vec![
        Table {
            what: "the L1 table",
            field: "l1_table_offset",
            start: header.l1_offset,
            len: u64::from(header.l1_entries) * 8,
        },
        Table {
            what: "the refcount table",
            field: "refcount_table_offset",
            start: header.refcount_table_offset,
            len: refcount_table_bytes(header),
        },
        Table {
            what: "the snapshot table",
            field: SNAPSHOTS,
            start: header.snapshots_offset,
            len: u64::from(header.snapshot_count) * MIN_SNAPSHOT_LEN,
        },
    ];
    let bitmaps = header.extensions.bitmaps.as_ref();
    if let Some(bitmaps) = bitmaps.filter(|_| header.autoclear.contains(AutoclearFeatures::BITMAPS)) {
        tables.push(Table {
            what: "the bitmap directory",
            field: "bitmap_directory_offset",
            start: bitmaps.directory_offset,
            len: bitmaps.directory_size,
        });
    }
    if let Some(encryption) = header.extensions.encryption_header {
        tables.push(Table {
            what: "the encryption header",
            field: "of the encryption header",
            start: encryption.offset,
            len: encryption.len,
        });
    }
    tables.retain(|table| table.len > 0);
    tables
}

impl Table {
    fn check(&self, geometry: Geometry, file_len: u64) -> Result<(), Corruption> {
        self.check_aligned(geometry)?;
        if self.start.0 == 0 {
            return Err(self.problem("the header is there"));
        }
        if self
            .start
            .0
            .checked_add(self.len)
            .is_none_or(|end| end > file_len)
        {
            return Err(Corruption::BeyondEnd {
                what: self.what,
                start: self.start,
                len: self.len,
                file_len,
            });
        }
        Ok(())
    }

    fn check_aligned(&self, geometry: Geometry) -> Result<(), Corruption> {
        if geometry.is_aligned(self.start.0) {
            return Ok(());
        }
        Err(self.problem("must be a multiple of the cluster size"))
    }

    fn problem(&self, rule: &'static str) -> Corruption {
        Corruption::HeaderOffset {
            field: self.field,
            offset: self.start,
            rule,
        }
    }
}

/// Tables start with a cluster, so that two which share no byte share no cluster either.
fn check_disjoint(mut tables: Vec<Table>) -> Result<(), Corruption> {
    tables.sort_by_key(|table| table.start);
    for pair in tables.windows(2) {
        if pair[0].start + pair[0].len > pair[1].start {
            return Err(Corruption::Overlap {
                first: pair[0].what,
                second: pair[1].what,
                at: pair[1].start,
            });
        }
    }
    Ok(())
}
