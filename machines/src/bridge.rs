//! Bridges of the host, and the program of QEMU's that connects machines to them for whoever is allowed to.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use block::{Error, Result, escape};

/// Where distributions have that program.
const HELPERS: [&str; 3] = [
    "/usr/lib/qemu/qemu-bridge-helper",
    "/usr/libexec/qemu-bridge-helper",
    "/usr/lib/qemu-bridge-helper",
];
/// Where it reads which bridges it may use.
const ALLOWED: &str = "/etc/qemu/bridge.conf";

/// That QEMU can connect a machine to a bridge.
///
/// # Errors
/// `InvalidInput` for a bridge that is not there, and for one that is not allowed.
pub(crate) fn check(name: &str) -> Result<()> {
    let shown = escape(name).into_owned();
    let is_one = !name.contains('/') && Path::new("/sys/class/net").join(name).join("bridge").is_dir();
    if !is_one {
        return Err(
            Error::invalid(format!("there is no bridge \"{shown}\"")).with_hint(format!(
                "make it: ip link add {shown} type bridge && ip link set {shown} up"
            )),
        );
    }
    helper().map_err(|(wrong, hint)| Error::invalid(wrong).with_hint(hint))?;
    let fits = |names: Vec<String>| names.iter().any(|allowed| allowed == "all" || allowed == name);
    if !allowed().is_none_or(fits) {
        return Err(
            Error::invalid(format!("{ALLOWED} does not allow the bridge \"{shown}\"")).with_hint(format!(
                "allow it: mkdir -p /etc/qemu && echo 'allow {shown}' >>{ALLOWED}"
            )),
        );
    }
    Ok(())
}

/// The program; or what is wrong, and what to do.
pub(crate) fn helper() -> Result<&'static str, (String, String)> {
    let Some(path) = HELPERS.into_iter().find(|path| Path::new(path).is_file()) else {
        return Err((
            "there is no qemu-bridge-helper".to_owned(),
            "install it: apt install qemu-system-common".to_owned(),
        ));
    };
    let mode = fs::metadata(path).map(|metadata| metadata.permissions().mode());
    if mode.is_ok_and(|mode| mode & 0o4000 == 0) && !rustix::process::geteuid().is_root() {
        return Err((
            format!("{path} does not run as root"),
            format!("chmod u+s {path}, if users may put machines on bridges"),
        ));
    }
    Ok(path)
}

/// The bridges that are allowed, `all` for all of them. `None` where that cannot be told: whoever runs machines need not be
/// able to read the file, and it can include others.
pub(crate) fn allowed() -> Option<Vec<String>> {
    let text = match fs::read_to_string(ALLOWED) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        other => other.ok()?,
    };
    names(&text)
}

fn names(text: &str) -> Option<Vec<String>> {
    let lines = text.lines().map(str::trim);
    let included = lines.clone().any(|line| line.starts_with("include"));
    let names = lines.filter_map(|line| line.strip_prefix("allow "));
    (!included).then(|| names.map(|name| name.trim().to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allowed_is_read_where_all_of_it_is_there() {
        assert_eq!(
            names("# allow br9\n  allow br0\ndeny br1\nallow all\n").unwrap(),
            ["br0", "all"]
        );
        assert_eq!(names("allow br0\ninclude /etc/qemu/alice.conf\n"), None);
    }

    #[test]
    fn a_bridge_that_is_none_is_refused() {
        for name in ["no-such-br", "lo", "../net/lo", ""] {
            let error = check(name).unwrap_err();
            assert!(error.to_string().contains("no bridge"), "{name}: {error}");
        }
    }
}
