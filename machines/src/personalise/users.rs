//! Users of a guest: passwd(5), shadow(5), group(5).

use block::{Error, Result, escape};
use ext4_editor::Attributes;

use super::Guest;

/// The first number that is a person's (login.defs(5), `UID_MIN`).
const FIRST: u32 = 1000;

/// The last one (`UID_MAX`).
const LAST: u32 = 60_000;

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

/// The user of this name, who is made where there is none: with a group of the same name, a home, and no password.
pub(super) fn find_or_make(guest: &mut Guest, name: &str) -> Result<User> {
    find_or_make_as(guest, name, None)
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
    }
    Ok(user)
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

fn make(guest: &mut Guest, name: &str, uid: Option<u32>, passwd: &str) -> Result<User> {
    let group = guest.text("/etc/group")?.unwrap_or_default();
    let number = |line: &str| line.split(':').nth(2)?.parse::<u32>().ok();
    let taken: Vec<u32> = passwd.lines().chain(group.lines()).filter_map(number).collect();
    if let Some(uid) = uid.filter(|uid| taken.contains(uid)) {
        let message = format!("the number {uid} is another user's or group's already");
        return Err(Error::invalid(message));
    }
    let id = uid
        .or_else(|| (FIRST..LAST).find(|id| !taken.contains(id)))
        .ok_or_else(|| Error::invalid("the guest has no number left for another user"))?;
    let shell = ["/bin/bash", "/bin/ash", "/bin/sh"];
    let mut shells = shell
        .iter()
        .filter(|shell| matches!(guest.kind(shell), Ok(Some(_))));
    let shell = shells.next().copied().unwrap_or("/bin/sh");
    let home = format!("/home/{name}");
    append(
        guest,
        "/etc/passwd",
        &format!("{name}:x:{id}:{id}::{home}:{shell}"),
        0o644,
    )?;
    append(guest, "/etc/group", &format!("{name}:x:{id}:"), 0o644)?;
    // "*": no password fits, and unlike with "!", sshd lets in who has a key.
    append(
        guest,
        "/etc/shadow",
        &format!("{name}:*:19700:0:99999:7:::"),
        0o640,
    )?;
    if guest.kind("/etc/gshadow")?.is_some() {
        append(guest, "/etc/gshadow", &format!("{name}:!::"), 0o640)?;
    }
    Ok(User {
        uid: id,
        gid: id,
        home,
    })
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
    for path in ["/etc/group", "/etc/gshadow"] {
        if path == "/etc/gshadow" && guest.kind(path)?.is_none() {
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
