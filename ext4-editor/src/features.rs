//! What a filesystem may have for its being changed here, and what it may not.

use block::{Error, Result};

use crate::superblock::{COMPATIBLE, INCOMPATIBLE, READ_ONLY_COMPATIBLE, Superblock};

/// `filetype`, `needs_recovery`, `meta_bg`, `extent`, `64bit`, `flex_bg`, `ea_inode`, `metadata_csum_seed`,
/// `large_dir`, `inline_data`.
const INCOMPATIBLE_KNOWN: u32 = 0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000;
/// `sparse_super`, `large_file`, `btree_dir`, `huge_file`, `uninit_bg`, `dir_nlink`, `extra_isize`,
/// `metadata_csum`, `project`.
const READ_ONLY_COMPATIBLE_KNOWN: u32 = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x400 | 0x2000;
/// `orphan_present`: the orphan file may hold something.
pub(crate) const ORPHANS: u32 = 0x1_0000;

const NAMES: [(usize, u32, &str); 14] = [
    (INCOMPATIBLE, 0x1, "compression"),
    (INCOMPATIBLE, 0x8, "journal_dev"),
    (INCOMPATIBLE, 0x100, "mmp"),
    (INCOMPATIBLE, 0x1000, "dirdata"),
    (INCOMPATIBLE, 0x1_0000, "encrypt"),
    (INCOMPATIBLE, 0x2_0000, "casefold"),
    (READ_ONLY_COMPATIBLE, 0x80, "snapshot"),
    (READ_ONLY_COMPATIBLE, 0x100, "quota"),
    (READ_ONLY_COMPATIBLE, 0x200, "bigalloc"),
    (READ_ONLY_COMPATIBLE, 0x800, "replica"),
    (READ_ONLY_COMPATIBLE, 0x1000, "read-only"),
    (READ_ONLY_COMPATIBLE, 0x4000, "shared_blocks"),
    (READ_ONLY_COMPATIBLE, 0x8000, "verity"),
    (COMPATIBLE, 0x2, "imagic_inodes"),
];

/// Fails unless all features are known and the filesystem says of itself that it is sound.
///
/// # Errors
/// `Unsupported`, `Corrupt`.
pub(crate) fn check(superblock: &Superblock) -> Result<()> {
    refuse_unknown(superblock)?;
    let damaged = |message: &'static str| {
        let error = Error::new(block::ErrorKind::Corrupt, message);
        Err(error.with_hint("check and repair it with e2fsck -f, on a copy, before it is changed"))
    };
    if superblock.has_errors() {
        return damaged("the filesystem is marked as having errors");
    }
    if !superblock.is_clean() && !superblock.needs_recovery() {
        return damaged("the filesystem was not unmounted, and has no journal to tell what is missing");
    }
    if superblock.u32(0x18) >= 6 {
        return Err(Error::unsupported(
            "blocks of 64 KiB are not supported for changes",
        ));
    }
    Ok(())
}

fn refuse_unknown(superblock: &Superblock) -> Result<()> {
    let mut refused = Vec::new();
    for (set, known, kind) in [
        (COMPATIBLE, !0x2, "compatible"),
        (INCOMPATIBLE, INCOMPATIBLE_KNOWN, "incompatible"),
        (
            READ_ONLY_COMPATIBLE,
            READ_ONLY_COMPATIBLE_KNOWN | ORPHANS,
            "read-only compatible",
        ),
    ] {
        let mut unknown = superblock.features(set) & !known;
        for (of, feature, name) in NAMES {
            if of == set && unknown & feature != 0 {
                refused.push(name.to_owned());
                unknown &= !feature;
            }
        }
        if unknown != 0 {
            refused.push(format!("{kind} features {unknown:#x}"));
        }
    }
    if refused.is_empty() {
        return Ok(());
    }
    let message = format!(
        "a filesystem with these features cannot be changed: {}",
        refused.join(", ")
    );
    Err(Error::unsupported(message))
}
