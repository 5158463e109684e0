//! Access control lists ("POSIX ACLs"): programs hand them over in one form, ext4 stores another, which leaves out
//! the ids that mean nothing.

use block::{Error, Result};
use byteorder::{ByteOrder, LittleEndian};

/// Names of the attributes that hold lists.
pub(crate) const ACCESS: &[u8] = b"system.posix_acl_access";
pub(crate) const DEFAULT: &[u8] = b"system.posix_acl_default";

/// Version of the form that system calls, tar archives and getxattr use, and of the one on disk.
const SYSCALL_VERSION: u32 = 2;
const DISK_VERSION: u32 = 1;

/// Bytes of the version, and of an entry in the form of system calls: tag, permissions, id.
const HEADER_SIZE: usize = 4;
const ENTRY_SIZE: usize = 8;

/// What an entry is for, in the order that lists have to have.
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// The permissions that a file with this list has, as it gets them when the list is set by a system call, and whether
/// that is all that the list says. `None` for what is no list.
pub fn permissions(syscall: &[u8]) -> Option<(u16, bool)> {
    let (version, entries) = syscall.split_first_chunk()?;
    let (entries, []) = entries.as_chunks::<ENTRY_SIZE>() else {
        return None;
    };
    if u32::from_le_bytes(*version) != SYSCALL_VERSION {
        return None;
    }
    let find = |wanted: u16| {
        let entry = entries
            .iter()
            .find(|entry| LittleEndian::read_u16(*entry) == wanted)?;
        Some(LittleEndian::read_u16(&entry[2..]) & 7)
    };
    // Where there is a mask, a mode's middle bits are the mask.
    let group = find(MASK).or_else(|| find(GROUP_OBJ))?;
    let permissions = find(USER_OBJ)? << 6 | group << 3 | find(OTHER)?;
    Some((permissions, entries.len() == 3))
}

/// The list with other ids of the users and groups that it names. What is no list stays as it is.
pub(crate) fn map_ids(syscall: &[u8], user: impl Fn(u32) -> u32, group: impl Fn(u32) -> u32) -> Vec<u8> {
    let mut list = syscall.to_vec();
    let entries = list.get_mut(HEADER_SIZE..).unwrap_or_default();
    for entry in entries.as_chunks_mut::<ENTRY_SIZE>().0 {
        let id = LittleEndian::read_u32(&entry[4..]);
        let id = match LittleEndian::read_u16(entry) {
            USER => user(id),
            GROUP => group(id),
            _ => continue,
        };
        LittleEndian::write_u32(&mut entry[4..], id);
    }
    list
}

/// The list as it is on disk; `None` for an empty one, which is none at all.
///
/// # Errors
/// `InvalidInput` for what the kernel would refuse: another version, an entry cut off, unknown or twice or out of
/// order, one of the three that every list has missing, or named users without a mask.
pub(crate) fn to_disk(syscall: &[u8]) -> Result<Option<Vec<u8>>> {
    let Some((version, entries)) = syscall.split_at_checked(HEADER_SIZE) else {
        return Err(refused("it is shorter than its version"));
    };
    let version = LittleEndian::read_u32(version);
    if version != SYSCALL_VERSION {
        return Err(refused(&format!(
            "its version is {version}, not {SYSCALL_VERSION}"
        )));
    }
    if !entries.len().is_multiple_of(ENTRY_SIZE) {
        return Err(refused(&format!(
            "an entry is cut off after {} bytes",
            syscall.len()
        )));
    }
    if entries.is_empty() {
        return Ok(None);
    }

    let mut disk = Vec::with_capacity(syscall.len());
    disk.extend(DISK_VERSION.to_le_bytes());
    let mut seen = 0;
    for entry in entries.chunks_exact(ENTRY_SIZE) {
        let tag = LittleEndian::read_u16(entry);
        let permissions = LittleEndian::read_u16(&entry[2..]);
        let id = LittleEndian::read_u32(&entry[4..]);
        let is_named = tag == USER || tag == GROUP;
        // Tags are bits in ascending order; only named ones may come again.
        let in_order = tag > highest(seen) || (is_named && tag == highest(seen));
        if !tag.is_power_of_two() || tag > OTHER || !in_order {
            return Err(refused(&format!(
                "an entry with the tag {tag:#x} is out of place"
            )));
        }
        if permissions > 7 {
            return Err(refused(&format!("permissions are {permissions:#o}")));
        }
        if is_named && id == u32::MAX {
            return Err(refused("a named user or group has no id"));
        }
        disk.extend(&entry[..if is_named { ENTRY_SIZE } else { 4 }]);
        seen |= tag;
    }
    let needed = USER_OBJ | GROUP_OBJ | OTHER;
    if seen & needed != needed {
        return Err(refused("the entry of owner, group or others is missing"));
    }
    if seen & (USER | GROUP) != 0 && seen & MASK == 0 {
        return Err(refused("it names users or groups, and has no mask"));
    }
    Ok(Some(disk))
}

/// Sets what a list as it is on disk says of a file's permissions, as a change of its mode does.
pub(crate) fn set_permissions(disk: &mut [u8], permissions: u16) {
    let mut places = [None; 4];
    let mut at = HEADER_SIZE;
    while let Some(entry) = disk.get(at..at + 4) {
        let (place, size) = match LittleEndian::read_u16(entry) {
            USER_OBJ => (Some(0), 4),
            GROUP_OBJ => (Some(1), 4),
            MASK => (Some(2), 4),
            OTHER => (Some(3), 4),
            _ => (None, ENTRY_SIZE),
        };
        if let Some(place) = place {
            places[place] = Some(at + 2);
        }
        at += size;
    }
    let [user, group, mask, other] = places;
    for (place, shift) in [(user, 6), (mask.or(group), 3), (other, 0)] {
        if let Some(place) = place {
            LittleEndian::write_u16(&mut disk[place..], permissions >> shift & 7);
        }
    }
}

fn highest(tags: u16) -> u16 {
    tags.checked_ilog2().map_or(0, |bit| 1 << bit)
}

fn refused(why: &str) -> Error {
    Error::invalid(format!("an access control list cannot be stored: {why}"))
        .with_hint("set it anew with setfacl where it comes from, or leave it out")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut bytes = 2u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(permissions.to_le_bytes());
            bytes.extend(id.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn an_empty_list_is_none() {
        assert_eq!(to_disk(&list(&[])).unwrap(), None);
    }

    #[test]
    fn a_change_of_mode_is_one_of_the_list() {
        const NONE: u32 = u32::MAX;
        let with = |user, group, mask, other| {
            to_disk(&list(&[
                (USER_OBJ, user, NONE),
                (USER, 5, 1),
                (GROUP_OBJ, group, NONE),
                (MASK, mask, NONE),
                (OTHER, other, NONE),
            ]))
            .unwrap()
            .unwrap()
        };
        let mut changed = with(7, 5, 7, 0);
        set_permissions(&mut changed, 0o4641);
        assert_eq!(changed, with(6, 5, 4, 1));
        let minimal = |group| {
            to_disk(&list(&[
                (USER_OBJ, 7, NONE),
                (GROUP_OBJ, group, NONE),
                (OTHER, 0, NONE),
            ]))
        };
        let mut changed = minimal(1).unwrap().unwrap();
        set_permissions(&mut changed, 0o750);
        assert_eq!(changed, minimal(5).unwrap().unwrap());
    }

    #[test]
    fn only_ids_of_named_users_and_groups_become_others() {
        const NONE: u32 = u32::MAX;
        let with = |user, group| {
            list(&[
                (USER_OBJ, 7, NONE),
                (USER, 5, user),
                (GROUP_OBJ, 5, NONE),
                (GROUP, 1, group),
                (MASK, 7, NONE),
                (OTHER, 0, NONE),
            ])
        };
        let mapped = map_ids(&with(5, 5), |id| id + 1, |id| id + 2);
        assert_eq!(mapped, with(6, 7));
        assert_eq!(map_ids(b"x", |id| id, |id| id), b"x");
    }

    #[test]
    fn permissions_are_those_of_the_list() {
        const NONE: u32 = u32::MAX;
        let of = |entries: &[(u16, u16, u32)]| permissions(&list(entries));
        let [user_obj, group_obj, other] = [(USER_OBJ, 6, NONE), (GROUP_OBJ, 4, NONE), (OTHER, 1, NONE)];
        assert_eq!(of(&[user_obj, group_obj, other]), Some((0o641, true)));
        let mask = (MASK, 7, NONE);
        assert_eq!(of(&[user_obj, group_obj, mask, other]), Some((0o671, false)));
        assert_eq!(of(&[]), None);
        assert_eq!(permissions(b"\x02\0\0\0abc"), None);
    }

    #[test]
    fn what_the_kernel_refuses_is_refused() {
        const NONE: u32 = u32::MAX;
        let [user_obj, group_obj, other] = [(USER_OBJ, 7, NONE), (GROUP_OBJ, 5, NONE), (OTHER, 0, NONE)];
        let named = (USER, 7, 1000);
        let mask = (MASK, 7, NONE);
        assert!(to_disk(&list(&[user_obj, named, named, group_obj, mask, other])).is_ok());
        for bad in [
            &[user_obj, group_obj][..],
            &[group_obj, other],
            &[user_obj, user_obj, group_obj, other],
            &[group_obj, user_obj, other],
            &[user_obj, named, group_obj, other],
            &[user_obj, group_obj, named, mask, other],
            &[user_obj, (USER, 7, NONE), group_obj, mask, other],
            &[user_obj, group_obj, (OTHER, 8, NONE)],
            &[user_obj, group_obj, (0x40, 1, NONE), other],
            &[user_obj, group_obj, (0, 1, NONE), other],
            &[user_obj, (3, 1, NONE), group_obj, other],
        ] {
            assert!(to_disk(&list(bad)).is_err(), "{bad:?}");
        }
        for bad in [&b""[..], b"\x02\0\0", b"\x01\0\0\0", b"\x02\0\0\0\x01\0\x07"] {
            assert!(to_disk(bad).is_err(), "{bad:?}");
        }
    }
}
