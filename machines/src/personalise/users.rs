//! Users of a guest: passwd(5), shadow(5), group(5).

use block::{Error, ErrorKind, Result, escape};
use ext4_editor::Attributes;
use ext4_reader::{FileKind, LastLink};

use super::{Guest, MAX_FILE};
use crate::store::nearest;

/// The first number that is a person's (login.defs(5), `UID_MIN`).
const FIRST: u32 = 1000;

/// The last one (`UID_MAX`).
const LAST: u32 = 60_000;

/// What new homes start with.
const SKELETON: &str = "/etc/skel";

/// Files of that at most.
const MAX_SKELETON: u32 = 1000;

/// A user of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: String,
}

impl User {
    /// The user of a line of passwd.
    fn parse(line: &str, name: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split(':').collect();
        match fields.as_slice() {
            [of, _, uid, gid, _, home, ..] if *of == name => Some(Self {
                uid: uid.parse().ok()?,
                gid: gid.parse().ok()?,
                home: (*home).to_owned(),
            }),
            _ => None,
        }
    }
}

/// The groups of those who may do everything: Debian's and Red Hat's.
const ADMINISTRATORS: [&str; 2] = ["sudo", "wheel"];

/// The user of this name, who is made where there is none: with a group of the same name, a home, and no password. Like the user that
/// cloud images have, one who is made may do everything, where the guest has sudo: nobody else may be able to log in.
pub(super) fn find_or_make(guest: &mut Guest, name: &str) -> Result<User> {
    check(name)?;
    let passwd = guest.text("/etc/passwd")?.unwrap_or_default();
    let is_new = !passwd.lines().any(|line| User::parse(line, name).is_some());
    let user = find_or_make_as(guest, name, None)?;
    if is_new {
        allow_sudo(guest, name)?;
        let groups = guest.text("/etc/group")?.unwrap_or_default();
        for group in ADMINISTRATORS
            .into_iter()
            .filter(|group| has_line(&groups, group))
        {
            add_to_group(guest, name, group)?;
        }
    }
    Ok(user)
}

/// Lets a user do everything without a password. Whether the guest has a sudo that reads it.
pub(crate) fn allow_sudo(guest: &mut Guest, name: &str) -> Result<bool> {
    let directory = "/etc/sudoers.d";
    if guest.kind(directory)?.is_none() {
        return Ok(false);
    }
    let rule = format!("{name} ALL=(ALL:ALL) NOPASSWD: ALL\n");
    guest.put(&format!("{directory}/90-{name}"), rule.as_bytes(), 0o440)?;
    Ok(true)
}

/// The same, with a number that the user is to have.
pub(crate) fn find_or_make_as(guest: &mut Guest, name: &str, uid: Option<u32>) -> Result<User> {
    check(name)?;
    let Some(passwd) = guest.text("/etc/passwd")? else {
        return Err(Error::invalid("the guest has no /etc/passwd, and so no users"));
    };
    let user = match passwd.lines().find_map(|line| User::parse(line, name)) {
        Some(user) if uid.is_some_and(|uid| uid != user.uid) => {
            let message = format!("the user {name} is there already, with the number {}", user.uid);
            return Err(Error::invalid(message));
        }
        Some(user) if user.home.starts_with('/') => user,
        Some(_) => {
            return Err(Error::invalid(format!(
                "the user {name} has no home in the guest"
            )));
        }
        None => make(guest, name, uid, &passwd)?,
    };
    if guest.kind(&user.home)?.is_none() {
        let parent = user.home.rsplit_once('/').map_or("", |(parent, _)| parent);
        if !parent.is_empty() {
            guest
                .editor
                .make_directories(parent.as_bytes(), &Attributes::of(0o755))?;
        }
        let attributes = Attributes::of(0o700).owned_by(user.uid, user.gid);
        guest.editor.make_directory(user.home.as_bytes(), &attributes)?;
        furnish(guest, &user)?;
    }
    Ok(user)
}

/// Puts into a new home what /etc/skel has for it, as useradd(8) does.
fn furnish(guest: &mut Guest, user: &User) -> Result<()> {
    let mut ahead = vec![(SKELETON.as_bytes().to_vec(), user.home.as_bytes().to_vec())];
    let mut left = MAX_SKELETON;
    while let Some((from, to)) = ahead.pop() {
        let filesystem = guest.editor.filesystem();
        let directory = match filesystem.resolve(&from, LastLink::Keep) {
            Ok(inode) if inode.kind() == FileKind::Directory => inode,
            Ok(_) => continue,
            Err(error) if error.kind() == ErrorKind::InvalidInput => continue,
            Err(error) => return Err(error),
        };
        for entry in filesystem.read_dir(&directory)? {
            let path = |directory: &[u8]| [directory, b"/".as_slice(), entry.name.as_slice()].concat();
            let (from, to) = (path(&from), path(&to));
            left = left.checked_sub(1).ok_or_else(too_much)?;
            let inode = guest.editor.filesystem().inode(entry.inode)?;
            let attributes = Attributes::of(inode.mode() & 0o777).owned_by(user.uid, user.gid);
            match inode.kind() {
                FileKind::Directory => {
                    guest.editor.make_directory(&to, &attributes)?;
                    ahead.push((from, to));
                }
                FileKind::Regular if inode.size() <= MAX_FILE => {
                    let contents = crate::root::contents(guest.editor.filesystem(), &inode)?;
                    guest.editor.put(&to, &contents, &attributes)?;
                }
                FileKind::Symlink => {
                    let target = guest.editor.filesystem().read_link(&inode)?;
                    guest.editor.symlink(&to, &target, &attributes)?;
                }
                // No home starts with devices, nor with megabytes.
                _ => {}
            }
        }
    }
    Ok(())
}

fn too_much() -> Error {
    Error::invalid(format!(
        "the guest's {SKELETON} has more than {MAX_SKELETON} files for a new user"
    ))
}

/// Names as useradd(8) takes them.
pub(crate) fn check(name: &str) -> Result<()> {
    let first = |c: char| c.is_ascii_lowercase() || c == '_';
    let other = |c: char| first(c) || c.is_ascii_digit() || c == '-';
    if name.len() <= 32 && name.starts_with(first) && name.chars().all(other) {
        return Ok(());
    }
    Err(
        Error::invalid(format!("\"{}\" cannot be the name of a user", escape(name)))
            .with_hint("a name has up to 32 of a-z, 0-9, - and _, and does not start with a digit or -"),
    )
}

/// Makes a user who is not there. A group of the name that is there is the user's own, as of useradd(8) with `--gid`: with a second
/// one of the name, nobody knew which is meant.
fn make(guest: &mut Guest, name: &str, uid: Option<u32>, passwd: &str) -> Result<User> {
    let groups = guest.text("/etc/group")?.unwrap_or_default();
    let number = |line: &str| line.split(':').nth(2)?.parse::<u32>().ok();
    let others = groups.lines().filter(|line| !is_line_of(line, name));
    let taken: Vec<u32> = passwd.lines().chain(others).filter_map(number).collect();
    if let Some(uid) = uid.filter(|uid| taken.contains(uid)) {
        let others = groups.lines().filter(|line| !is_line_of(line, name));
        let mut owners = passwd
            .lines()
            .chain(others)
            .filter(|line| number(line) == Some(uid));
        let owner = owners
            .next()
            .and_then(|line| line.split(':').next())
            .unwrap_or_default();
        let message = format!(
            "the user {name} is to have the number {uid}, which is that of {} already",
            escape(owner)
        );
        return Err(Error::invalid(message)
            .with_hint("choose another, or leave it out: the next one that is free is taken"));
    }
    let own = groups.lines().find(|line| is_line_of(line, name));
    let gid = own.and_then(number);
    if own.is_some() && gid.is_none() {
        let message = format!("the group {name} has no number in the guest's /etc/group");
        return Err(Error::invalid(message));
    }
    // The number of the group, where a user can have it.
    let same = gid.filter(|gid| (FIRST..LAST).contains(gid) && !taken.contains(gid));
    let id = uid
        .or(same)
        .or_else(|| (FIRST..LAST).find(|id| !taken.contains(id)))
        .ok_or_else(|| Error::invalid("the guest has no number left for another user"))?;
    let gid = gid.unwrap_or(id);
    let shell = ["/bin/bash", "/bin/ash", "/bin/sh"];
    let mut shells = shell
        .iter()
        .filter(|shell| matches!(guest.kind(shell), Ok(Some(_))));
    let shell = shells.next().copied().unwrap_or("/bin/sh");
    let home = format!("/home/{name}");
    append(
        guest,
        "/etc/passwd",
        &format!("{name}:x:{id}:{gid}::{home}:{shell}"),
        0o644,
    )?;
    if own.is_none() {
        append(guest, "/etc/group", &format!("{name}:x:{gid}:"), 0o644)?;
    }
    // "*": no password fits, and unlike with "!", sshd lets in who has a key.
    append(
        guest,
        "/etc/shadow",
        &format!("{name}:*:19700:0:99999:7:::"),
        0o640,
    )?;
    let shadowed = guest.text("/etc/gshadow")?;
    if shadowed.is_some_and(|groups| !has_line(&groups, name)) {
        append(guest, "/etc/gshadow", &format!("{name}:!::"), 0o640)?;
    }
    Ok(User { uid: id, gid, home })
}

/// Changes a field, counted from 0, of a user's line in a file such as passwd.
pub(crate) fn set_field(guest: &mut Guest, path: &str, name: &str, field: usize, value: &str) -> Result<()> {
    if value.contains([':', '\n']) {
        return Err(Error::invalid(format!(
            "\"{}\" cannot be in {path}",
            escape(value)
        )));
    }
    change_line(guest, path, name, |fields| {
        if let Some(old) = fields.get_mut(field) {
            value.clone_into(old);
        }
    })
}

/// Makes a user a member of a group that is there.
pub(crate) fn add_to_group(guest: &mut Guest, user: &str, group: &str) -> Result<()> {
    let groups = guest.text("/etc/group")?.unwrap_or_default();
    if !has_line(&groups, group) {
        let names = groups.lines().filter_map(|line| line.split(':').next());
        let near = nearest(group, names);
        let hint = match near.as_slice() {
            [] => "the guest's /etc/group has those that there are; a package may have to be added that makes it".to_owned(),
            near => format!("there is {}", near.join(", ")),
        };
        let message = format!("the system has no group \"{}\"", escape(group));
        return Err(Error::invalid(message).with_hint(hint));
    }
    for path in ["/etc/group", "/etc/gshadow"] {
        // The second need not have what the first has.
        if path == "/etc/gshadow" && !has_line(&guest.text(path)?.unwrap_or_default(), group) {
            continue;
        }
        change_line(guest, path, group, |fields| {
            let Some(members) = fields.get_mut(3) else { return };
            if !members.split(',').any(|member| member == user) {
                if !members.is_empty() {
                    members.push(',');
                }
                members.push_str(user);
            }
        })?;
    }
    Ok(())
}

/// Whether a line starts with a name.
fn has_line(text: &str, name: &str) -> bool {
    text.lines().any(|line| is_line_of(line, name))
}

fn is_line_of(line: &str, name: &str) -> bool {
    line.split(':').next() == Some(name)
}

/// Changes the fields of the line that starts with a name.
fn change_line(guest: &mut Guest, path: &str, name: &str, change: impl Fn(&mut [String])) -> Result<()> {
    let text = guest.text(path)?.unwrap_or_default();
    let mut found = false;
    let mut changed = String::with_capacity(text.len());
    for line in text.lines() {
        let mut fields: Vec<String> = line.split(':').map(ToOwned::to_owned).collect();
        if fields[0] == name {
            change(&mut fields);
            found = true;
        }
        changed.push_str(&fields.join(":"));
        changed.push('\n');
    }
    if !found {
        let message = format!("there is no line for \"{}\" in the guest's {path}", escape(name));
        return Err(Error::invalid(message));
    }
    guest.put(path, changed.as_bytes(), 0o644)
}

fn append(guest: &mut Guest, path: &str, line: &str, permissions: u16) -> Result<()> {
    let mut text = guest.text(path)?.unwrap_or_default();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(line);
    text.push('\n');
    guest.put(path, text.as_bytes(), permissions)
}
