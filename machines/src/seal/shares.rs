//! Passwords of shares, in what says what is mounted, and in files of their own: mount.cifs(8).

/// Options whose value is a password.
const PASSWORDS: [&str; 3] = ["password", "password2", "pass"];

/// The text without passwords in options of mounts, in comments too. What is mounted stays.
pub(super) fn without_share_passwords(text: &str) -> Option<String> {
    let words = text.split_inclusive(char::is_whitespace);
    let open: String = words
        .map(|word| {
            let options = word.trim_end();
            let end = &word[options.len()..];
            match without_password(options) {
                Some(changed) => changed + end,
                None => word.to_owned(),
            }
        })
        .collect();
    (open != text).then_some(open)
}

/// Options without those that are a password; `None` where there are none.
fn without_password(options: &str) -> Option<String> {
    let (unit, list) = match options.strip_prefix("Options=") {
        Some(list) => ("Options=", list),
        None => ("", options),
    };
    let kept: Vec<&str> = list.split(',').filter_map(kept).collect();
    let open = kept.join(",");
    if open == list {
        return None;
    }
    let open = if open.is_empty() { "defaults" } else { &open };
    Some(format!("{unit}{open}"))
}

/// What stays of one option: `user=NAME%PASSWORD` is one of two things.
fn kept(option: &str) -> Option<&str> {
    match option.split_once('=') {
        Some((key, _)) if PASSWORDS.contains(&key) => None,
        Some(("user" | "username", _)) => option.split('%').next(),
        _ => Some(option),
    }
}

/// Files that options of mounts name, in which there are a name and a password.
pub(super) fn credentials_files(text: &str) -> Vec<String> {
    let options = text.split([',', ' ', '\t', '\n', '\r']);
    let options = options.map(|option| option.strip_prefix("Options=").unwrap_or(option));
    let named = options.filter_map(|option| match option.split_once('=') {
        Some(("credentials" | "cred", path)) => Some(path),
        _ => None,
    });
    // A path as people write it, and no pattern.
    let is_plain = |path: &&str| path.starts_with('/') && !path.contains('*') && !path.contains("/..");
    named.filter(is_plain).map(str::to_owned).collect()
}

/// Whether a file of names and passwords has one of the latter.
pub(super) fn has_password(text: &str) -> bool {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .any(|(key, value)| {
            PASSWORDS.contains(&&*key.trim().to_ascii_lowercase()) && !value.trim().is_empty()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_go_and_mounts_stay() {
        for (text, open) in [
            (
                "//nas/a /a cifs rw,username=me,password=secret,uid=5 0 0\n",
                Some("//nas/a /a cifs rw,username=me,uid=5 0 0\n"),
            ),
            (
                "//nas/a /a\tcifs\tpass=secret\t0 0",
                Some("//nas/a /a\tcifs\tdefaults\t0 0"),
            ),
            (
                "#//nas/a /a cifs user=me%secret,ro 0 0\n",
                Some("#//nas/a /a cifs user=me,ro 0 0\n"),
            ),
            (
                "[Mount]\nType=cifs\nOptions=password=secret,ro\n",
                Some("[Mount]\nType=cifs\nOptions=ro\n"),
            ),
            (
                "a -fstype=cifs,password2=x,ro ://nas/a\n",
                Some("a -fstype=cifs,ro ://nas/a\n"),
            ),
            ("/dev/vda / ext4 user,errors=remount-ro 0 1\n", None),
            ("//nas/a /a cifs credentials=/etc/nas 0 0\n", None),
        ] {
            assert_eq!(without_share_passwords(text).as_deref(), open, "{text}");
        }
    }

    #[test]
    fn files_of_credentials_are_those_that_mounts_name() {
        let text = "//nas/a /a cifs ro,credentials=/root/.nas,uid=5 0 0\n//nas/b /b cifs cred=/etc/b 0 0\n\
                    Options=credentials=/etc/c\n//nas/d /d cifs credentials=relative,cred=/etc/*,cred=/etc/../x 0 0\n";
        assert_eq!(credentials_files(text), ["/root/.nas", "/etc/b", "/etc/c"]);
        assert!(has_password("username=me\nPassword = secret\n") && has_password("pass=x"));
        assert!(!has_password("username=me\npassword=\n") && !has_password("root:x:0:0"));
    }
}
