//! Access control lists: from the text that archives have ("POSIX.1e", as getfacl prints it) to the form in which
//! the kernel takes and gives them as extended attributes.

use std::collections::HashMap;

use block::{Error, Result};

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

/// A list that names users or groups without a number, as GNU tar has them, and is complete otherwise.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedList(Vec<Entry>);

/// What a list says of one: sorts as the kernel wants them, by tag and by id.
type Entry = (u16, Id, u16);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Id {
    Number(u32),
    Name(Vec<u8>),
}

impl NamedList {
    /// The list of a text, with the numbers of the names that are known.
    pub(super) fn parse(text: &[u8], names: &Names) -> Result<Self, Fault> {
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
            entries.push(parse_entry(line, names).map_err(fail)?);
        }
        entries.sort_unstable();
        check(&entries).map_err(fail)?;
        Ok(Self(entries))
    }

    /// The list in the form in which the kernel takes and gives it, if all ids are known.
    pub(super) fn to_syscall_form(&self) -> Option<Vec<u8>> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for (tag, id, permissions) in &self.0 {
            let Id::Number(id) = id else {
                return None;
            };
            bytes.extend_from_slice(&tag.to_le_bytes());
            bytes.extend_from_slice(&permissions.to_le_bytes());
            bytes.extend_from_slice(&id.to_le_bytes());
        }
        Some(bytes)
    }

    /// The lower nine bits of the mode of what has this list.
    pub(super) fn permissions(&self) -> u16 {
        let of = |wanted: u16| {
            let entry = self.0.iter().find(|(tag, ..)| *tag == wanted);
            entry.map_or(0, |(.., permissions)| *permissions)
        };
        of(USER_OBJ) << 6 | of(MASK) << 3 | of(OTHER)
    }

    /// The list in the form of the kernel's calls, with the numbers of its names.
    ///
    /// # Errors
    /// `Unsupported` for a name that is not known; `Corrupt` for two entries for one.
    pub fn resolve(&self, names: &Names) -> Result<Vec<u8>, Error> {
        let mut list = self.clone();
        for (tag, id, _) in &mut list.0 {
            if let Id::Name(name) = id {
                let (what, found) = match *tag {
                    USER => ("user", names.users.get(name)),
                    _ => ("group", names.groups.get(name)),
                };
                let number = found.ok_or_else(|| {
                    let name = printable(name);
                    Fault::UnknownName { what, name }.error()
                })?;
                *id = Id::Number(*number);
            }
        }
        list.0.sort_unstable();
        let text = "with the numbers of its names".to_owned();
        check(&list.0).map_err(|problem| Fault::Acl { text, problem }.error())?;
        Ok(list.to_syscall_form().unwrap_or_default())
    }
}

/// Says what is wrong with a sorted list, as far as its ids are known.
fn check(entries: &[Entry]) -> Result<(), &'static str> {
    if entries
        .windows(2)
        .any(|pair| (pair[0].0, &pair[0].1) == (pair[1].0, &pair[1].1))
    {
        return Err("two entries for one");
    }
    let has = |wanted: u16| entries.iter().any(|&(tag, ..)| tag == wanted);
    if !has(USER_OBJ) || !has(GROUP_OBJ) || !has(OTHER) {
        return Err("the owner's, group's or others' entry is missing");
    }
    if (has(USER) || has(GROUP)) && !has(MASK) {
        return Err("the mask is missing");
    }
    Ok(())
}

/// `TAG:[NAME]:PERMISSIONS[:ID]` as tag, id and permissions. Of mask and others, the empty name may be missing.
fn parse_entry(line: &[u8], names: &Names) -> Result<Entry, &'static str> {
    let mut fields: Vec<&[u8]> = line.split(|&byte| byte == b':').map(<[u8]>::trim_ascii).collect();
    if fields.len() == 2 && matches!(fields[0], b"mask" | b"m" | b"other" | b"o") {
        fields.insert(1, b"");
    }
    let (tag, name, permissions, id) = match fields[..] {
        [tag, name, permissions] => (tag, name, permissions, None),
        [tag, name, permissions, id] => (tag, name, permissions, Some(id)),
        _ => return Err("an entry has not three or four fields"),
    };
    let (tag, known) = match (tag, name.is_empty()) {
        (b"user" | b"u", true) => (USER_OBJ, None),
        (b"user" | b"u", false) => (USER, Some(&names.users)),
        (b"group" | b"g", true) => (GROUP_OBJ, None),
        (b"group" | b"g", false) => (GROUP, Some(&names.groups)),
        (b"mask" | b"m", true) => (MASK, None),
        (b"other" | b"o", true) => (OTHER, None),
        _ => return Err("an entry is not for a user, a group, the mask or others"),
    };
    let id = match (known, id) {
        (None, _) => Id::Number(NO_ID),
        (Some(_), Some(id)) => Id::Number(parse_id(id).ok_or("an id is no number")?),
        (Some(known), None) => parse_id(name)
            .or_else(|| known.get(name).copied())
            .or_else(|| (name == b"root").then_some(0))
            .map_or_else(|| Id::Name(name.to_vec()), Id::Number),
    };
    if known.is_some() && id == Id::Number(NO_ID) {
        return Err("an id is out of range");
    }
    let permissions =
        parse_permissions(permissions).ok_or("permissions are not made of the letters r, w and x")?;
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
        let parse = |text, names: &Names| NamedList::parse(text, names).unwrap();
        let form = parse(gnu, &names).to_syscall_form().unwrap();
        assert_eq!(
            parse(libarchive, &Names::default()).to_syscall_form(),
            Some(form.clone())
        );
        assert_eq!(form.len(), 4 + 7 * 8);
        assert_eq!(
            form[4..20],
            *b"\x01\0\x06\0\xff\xff\xff\xff\x02\0\x07\0\x01\0\0\0"
        );
        let named = parse(gnu, &Names::default());
        assert_eq!(named.to_syscall_form(), None);
        assert_eq!(named.permissions(), 0o674);
        assert_eq!(named.resolve(&names).unwrap(), form);
        let error = named.resolve(&Names::new(b"daemon:x:1:", b"")).unwrap_err();
        assert!(error.message().contains("the group \"adm\""), "{error}");
        let error = named
            .resolve(&Names::new(b"daemon:x:4242:", b"adm:x:4:"))
            .unwrap_err();
        assert!(error.message().contains("two entries for one"), "{error}");
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
                NamedList::parse(text.as_bytes(), &Names::default()).is_err(),
                "{text}"
            );
        }
    }
}
