//! Access control lists: from the text that archives have ("POSIX.1e", as getfacl prints it) to the form in which
//! the kernel takes and gives them as extended attributes.

use std::collections::HashMap;

use super::fault::{Fault, printable};

/// Version of the kernel's form, in its first four bytes.
const VERSION: u32 = 2;

/// The id of entries that need none.
const NO_ID: u32 = u32::MAX;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// Numbers of users and groups by name, for lists that name them without.
#[derive(Clone, Debug, Default)]
pub struct Names {
    users: HashMap<Vec<u8>, u32>,
    groups: HashMap<Vec<u8>, u32>,
}

impl Names {
    /// The names in the contents of `/etc/passwd` and `/etc/group`, of the host's or of another system. Lines that
    /// are not as they should be are passed over.
    pub fn new(passwd: &[u8], group: &[u8]) -> Self {
        Self {
            users: names_in(passwd),
            groups: names_in(group),
        }
    }
}

/// `NAME:PASSWORD:NUMBER`, and more, on each line. Of two lines with one name, the first counts.
fn names_in(file: &[u8]) -> HashMap<Vec<u8>, u32> {
    let mut names = HashMap::new();
    for line in file.split(|&byte| byte == b'\n') {
        let mut fields = line.split(|&byte| byte == b':');
        if let (Some(name), Some(_), Some(id)) = (fields.next(), fields.next(), fields.next())
            && let Some(id) = parse_id(id)
        {
            names.entry(name.to_vec()).or_insert(id);
        }
    }
    names
}

fn parse_id(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The list in the kernel's form.
pub(super) fn to_syscall_form(text: &[u8], names: &Names) -> Result<Vec<u8>, Fault> {
    let fail = |problem| Fault::Acl {
        text: printable(text),
        problem,
    };
    let mut entries = Vec::new();
    for line in text.split(|byte| matches!(byte, b',' | b'\n')) {
        let line = line.split(|&byte| byte == b'#').next().unwrap_or_default();
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        entries.push(parse_entry(line, names, fail)?);
    }
    // The kernel wants them by tag, and those with ids by id.
    entries.sort_unstable();
    if entries
        .windows(2)
        .any(|pair| (pair[0].0, pair[0].1) == (pair[1].0, pair[1].1))
    {
        return Err(fail("two entries for one"));
    }
    let has = |wanted: u16| entries.iter().any(|&(tag, ..)| tag == wanted);
    if !has(USER_OBJ) || !has(GROUP_OBJ) || !has(OTHER) {
        return Err(fail("the owner's, group's or others' entry is missing"));
    }
    if (has(USER) || has(GROUP)) && !has(MASK) {
        return Err(fail("the mask is missing"));
    }
    let mut bytes = VERSION.to_le_bytes().to_vec();
    for (tag, id, permissions) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    Ok(bytes)
}

/// `TAG:[NAME]:PERMISSIONS[:ID]` as tag, id and permissions. Of mask and others, the empty name may be missing.
fn parse_entry(
    line: &[u8],
    names: &Names,
    fail: impl Fn(&'static str) -> Fault,
) -> Result<(u16, u32, u16), Fault> {
    let mut fields: Vec<&[u8]> = line.split(|&byte| byte == b':').map(<[u8]>::trim_ascii).collect();
    if fields.len() == 2 && matches!(fields[0], b"mask" | b"m" | b"other" | b"o") {
        fields.insert(1, b"");
    }
    let (tag, name, permissions, id) = match fields[..] {
        [tag, name, permissions] => (tag, name, permissions, None),
        [tag, name, permissions, id] => (tag, name, permissions, Some(id)),
        _ => return Err(fail("an entry has not three or four fields")),
    };
    let (tag, known) = match (tag, name.is_empty()) {
        (b"user" | b"u", true) => (USER_OBJ, None),
        (b"user" | b"u", false) => (USER, Some(&names.users)),
        (b"group" | b"g", true) => (GROUP_OBJ, None),
        (b"group" | b"g", false) => (GROUP, Some(&names.groups)),
        (b"mask" | b"m", true) => (MASK, None),
        (b"other" | b"o", true) => (OTHER, None),
        _ => return Err(fail("an entry is not for a user, a group, the mask or others")),
    };
    let id = match (known, id) {
        (None, _) => NO_ID,
        (Some(_), Some(id)) => parse_id(id).ok_or_else(|| fail("an id is no number"))?,
        (Some(known), None) => parse_id(name)
            .or_else(|| known.get(name).copied())
            .or_else(|| (name == b"root").then_some(0))
            .ok_or_else(|| Fault::UnknownName {
                name: printable(name),
            })?,
    };
    if known.is_some() && id == NO_ID {
        return Err(fail("an id is out of range"));
    }
    let permissions = parse_permissions(permissions)
        .ok_or_else(|| fail("permissions are not made of the letters r, w and x"))?;
    Ok((tag, id, permissions))
}

fn parse_permissions(text: &[u8]) -> Option<u16> {
    text.iter().try_fold(0, |bits, letter| {
        Some(match letter {
            b'r' => bits | 4,
            b'w' => bits | 2,
            b'x' => bits | 1,
            b'-' => bits,
            _ => return None,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_programs_texts_are_understood() {
        let names = Names::new(b"root:x:0:0::/:\ndaemon:x:1:1\nbroken\n", b"adm:x:4:\n");
        let gnu = b"user::rw-\nuser:daemon:rwx\t#effective:r--\nuser:4242:r--\ngroup::r--\ngroup:adm:r--\nmask::rwx\nother::r--\n";
        let libarchive =
            b"user::rw-,group::r--,other::r--,user:x:rwx:1,user:4242:r--,group:adm:r--:4,mask::rwx";
        let form = to_syscall_form(gnu, &names).unwrap();
        assert_eq!(to_syscall_form(libarchive, &Names::default()).unwrap(), form);
        assert_eq!(form.len(), 4 + 7 * 8);
        assert_eq!(
            form[4..20],
            *b"\x01\0\x06\0\xff\xff\xff\xff\x02\0\x07\0\x01\0\0\0"
        );
        assert!(matches!(
            to_syscall_form(gnu, &Names::default()),
            Err(Fault::UnknownName { name }) if name == "daemon"
        ));
    }

    #[test]
    fn what_the_kernel_would_refuse_is_refused() {
        for text in [
            "",
            "user::rw-,group::r--",
            "user::rw-,group::r--,other::r--,user:5:r--",
            "user::rw-,user::rw-,group::r--,other::r--",
            "user::rw-,group::r--,other::r--,mask::rwx,user:5:r--,user:5:rwx",
            "user::rq-,group::r--,other::r--",
            "user::rw-,group::r--,other::r--,mask::rwx,user:4294967295:r--",
            "user::rw-,group::r--,other::r--,mask:x:rwx",
            "user::rw-:1:2,group::r--,other::r--",
        ] {
            assert!(
                to_syscall_form(text.as_bytes(), &Names::default()).is_err(),
                "{text}"
            );
        }
    }
}
