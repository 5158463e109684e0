//! ACLs ("POSIX ACLs"): on the disk, entries that name nobody have no room for an id; in system calls all have.

use byteorder::{ByteOrder, LittleEndian};

const DISK_VERSION: u32 = 1;
const SYSCALL_VERSION: u32 = 2;
const NO_ID: u32 = !0;
const USER: u16 = 0x2;
const GROUP: u16 = 0x8;

/// The form that `getxattr` gives. `None` for what is no ACL.
pub(crate) fn to_syscall(disk: &[u8]) -> Option<Vec<u8>> {
    let (version, mut rest) = disk.split_at_checked(4)?;
    if LittleEndian::read_u32(version) != DISK_VERSION {
        return None;
    }
    let mut out = SYSCALL_VERSION.to_le_bytes().to_vec();
    while !rest.is_empty() {
        let (entry, after) = rest.split_at_checked(4)?;
        rest = after;
        out.extend_from_slice(entry);
        let names_somebody = matches!(LittleEndian::read_u16(entry), USER | GROUP);
        if names_somebody {
            let (id, after) = rest.split_at_checked(4)?;
            rest = after;
            out.extend_from_slice(id);
        } else {
            out.extend(NO_ID.to_le_bytes());
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_get_the_id_that_they_lack() {
        // user::rw-, user:1000:r--
        let disk = [1, 0, 0, 0, 1, 0, 6, 0, 2, 0, 4, 0, 0xE8, 3, 0, 0];
        let call = [
            2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 0xE8, 3, 0, 0,
        ];
        assert_eq!(to_syscall(&disk).unwrap(), call);
        assert_eq!(to_syscall(&disk[..14]), None);
        assert_eq!(to_syscall(&[2, 0, 0, 0]), None);
    }
}
