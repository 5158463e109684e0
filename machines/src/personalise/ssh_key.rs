//! Keys for ssh: a host key that is made for a machine (OpenSSH's PROTOCOL.key), and those of who may log in.

use std::fmt;

use block::{Error, Result};
use ed25519_compact::{KeyPair, Seed};
use ext4_editor::Attributes;
use ext4_reader::FileKind;

use super::Guest;
use super::users::User;

const KIND: &str = "ssh-ed25519";

/// A private key of Ed25519, the kind that every sshd of the last decade takes and makes.
#[derive(Clone)]
pub struct HostKey {
    seed: [u8; 32],
    public: [u8; 32],
}

impl HostKey {
    /// A new one.
    ///
    /// # Errors
    /// `Io` where the host has no random numbers.
    pub fn generate() -> Result<Self> {
        let mut seed = [0; 32];
        let mut filled = 0;
        while filled < seed.len() {
            filled += rustix::rand::getrandom(&mut seed[filled..], rustix::rand::GetRandomFlags::empty())
                .map_err(|error| Error::io("draw random numbers", error.into()))?;
        }
        Ok(Self::of(seed))
    }

    fn of(seed: [u8; 32]) -> Self {
        let pair = KeyPair::from_seed(Seed::new(seed));
        Self {
            seed,
            public: *pair.pk,
        }
    }

    /// The line of the public key, with a comment.
    pub fn public_line(&self, comment: &str) -> String {
        format!("{KIND} {} {comment}\n", base64(&self.public_blob()))
    }

    fn public_blob(&self) -> Vec<u8> {
        let mut blob = Vec::new();
        string(&mut blob, KIND.as_bytes());
        string(&mut blob, &self.public);
        blob
    }

    /// The file of the private key, which nothing encrypts: a host reads it when nobody is there.
    fn private_file(&self, comment: &str) -> String {
        let mut private = Vec::new();
        // Twice the same number, by which who decrypts sees whether that was right; here, any will do.
        private.extend([self.public[0], self.public[1], self.public[2], self.public[3]].repeat(2));
        string(&mut private, KIND.as_bytes());
        string(&mut private, &self.public);
        string(&mut private, &[self.seed, self.public].concat());
        string(&mut private, comment.as_bytes());
        // To a multiple of the block size of no cipher.
        let padding = private.len().next_multiple_of(8) - private.len();
        private.extend((1..=8).take(padding));
        let mut file = b"openssh-key-v1\0".to_vec();
        string(&mut file, b"none");
        string(&mut file, b"none");
        string(&mut file, b"");
        file.extend(1u32.to_be_bytes());
        string(&mut file, &self.public_blob());
        string(&mut file, &private);
        let mut text = "-----BEGIN OPENSSH PRIVATE KEY-----\n".to_owned();
        for line in base64(&file).as_bytes().chunks(70) {
            text.push_str(&String::from_utf8_lossy(line));
            text.push('\n');
        }
        text + "-----END OPENSSH PRIVATE KEY-----\n"
    }

    /// Puts it where sshd looks, if there is one. Others are gone already.
    pub(super) fn set(&self, guest: &mut Guest, hostname: &str) -> Result<()> {
        let directory = "/etc/ssh";
        if guest.kind(directory)? != Some(FileKind::Directory) {
            return Ok(());
        }
        let comment = format!("root@{hostname}");
        let path = format!("{directory}/ssh_host_ed25519_key");
        guest.put(&path, self.private_file(&comment).as_bytes(), 0o600)?;
        guest.put(
            &format!("{path}.pub"),
            self.public_line(&comment).as_bytes(),
            0o644,
        )
    }
}

impl fmt::Debug for HostKey {
    /// Without the private part.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HostKey")
            .field(&self.public_line("").trim_end())
            .finish()
    }
}

/// A string of RFC 4251, section 5.
fn string(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend((bytes.len() as u32).to_be_bytes());
    to.extend(bytes);
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let mut whole = [0; 4];
        whole[1..=group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes(whole);
        for digit in 0..4 {
            text.push(if digit <= group.len() {
                char::from(DIGITS[(bits >> (18 - 6 * digit)) as usize & 63])
            } else {
                '='
            });
        }
    }
    text
}

/// Public keys, as in a file of authorized keys (sshd(8)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizedKeys(Vec<String>);

impl AuthorizedKeys {
    /// Those in a text: lines with a key, empty ones, and comments.
    ///
    /// # Errors
    /// `InvalidInput` for a line that has no public key, and a text that has none: a private key above all.
    pub fn parse(text: &str) -> Result<Self> {
        if text.contains("PRIVATE KEY") {
            let error = Error::invalid("this is a private key, which stays where it is");
            return Err(error.with_hint("give the public one, in the file beside it whose name ends in .pub"));
        }
        let mut keys = Vec::new();
        for (number, line) in text.lines().map(str::trim).enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if !has_key(line) {
                // What it says may be a secret.
                let message = format!("line {} is no public key for ssh", number + 1);
                return Err(Error::invalid(message)
                    .with_hint("such a line is in the file that ssh-keygen makes whose name ends in .pub"));
            }
            keys.push(line.to_owned());
        }
        if keys.is_empty() {
            return Err(Error::invalid("there is no public key in it"));
        }
        Ok(Self(keys))
    }

    /// The keys, a line each.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Adds them to those of a user.
    pub(crate) fn add(&self, guest: &mut Guest, user: &User) -> Result<()> {
        let directory = format!("{}/.ssh", user.home);
        let path = format!("{directory}/authorized_keys");
        if guest.kind(&directory)?.is_none() {
            let attributes = Attributes::of(0o700).owned_by(user.uid, user.gid);
            guest.editor.make_directory(directory.as_bytes(), &attributes)?;
        }
        let mut text = guest.text(&path)?.unwrap_or_default();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        for key in &self.0 {
            if !text.lines().any(|line| line == key) {
                text.push_str(key);
                text.push('\n');
            }
        }
        let attributes = Attributes::of(0o600).owned_by(user.uid, user.gid);
        guest.editor.put(path.as_bytes(), text.as_bytes(), &attributes)
    }
}

/// Whether a line has a key: a kind, and base64 that starts with the kind. Options may come before.
fn has_key(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    words.windows(2).any(|pair| {
        let kind = pair[0];
        let known = ["ssh-", "ecdsa-sha2-", "sk-"]
            .iter()
            .any(|start| kind.starts_with(start));
        let mut blob = Vec::new();
        string(&mut blob, kind.as_bytes());
        // Digits that are all of the kind; the next one has bits of what follows.
        let whole = blob.len() / 3 * 4;
        known
            && base64(&blob)
                .get(..whole)
                .is_some_and(|start| pair[1].starts_with(start))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    fn keygen(arguments: &[&str]) -> String {
        let output = Command::new("ssh-keygen").args(arguments).output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn openssh_reads_the_key_and_signs_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        for round in 0..8u8 {
            let key = HostKey::of([round + 1; 32]);
            // Comments of all lengths, and so all paddings.
            let comment = "root@guest".repeat(3)[..usize::from(10 + round)].to_owned();
            let (private, message) = (path("key"), path("message"));
            fs::write(&private, key.private_file(&comment)).unwrap();
            fs::set_permissions(&private, fs::Permissions::from_mode(0o600)).unwrap();
            assert_eq!(keygen(&["-y", "-f", &private]), key.public_line(&comment));
            fs::write(&message, "a message").unwrap();
            let _ = fs::remove_file(path("message.sig"));
            keygen(&["-q", "-Y", "sign", "-f", &private, "-n", "file", &message]);
            let verified = Command::new("ssh-keygen")
                .args(["-Y", "check-novalidate", "-n", "file", "-s", &path("message.sig")])
                .stdin(fs::File::open(&message).unwrap())
                .output();
            assert!(verified.unwrap().status.success());
        }
        assert_ne!(
            HostKey::generate().unwrap().seed,
            HostKey::generate().unwrap().seed
        );
    }

    #[test]
    fn public_keys_are_told_from_what_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("id").to_str().unwrap().to_owned();
        for kind in ["ed25519", "ecdsa", "rsa"] {
            let _ = fs::remove_file(&path);
            keygen(&["-q", "-t", kind, "-N", "", "-f", &path, "-C", "me and you"]);
            let public = fs::read_to_string(format!("{path}.pub")).unwrap();
            assert_eq!(AuthorizedKeys::parse(&public).unwrap().0, [public.trim()]);
            let option = format!("# mine\n\nno-pty,command=\"a b\" {public}");
            assert_eq!(AuthorizedKeys::parse(&option).unwrap().0.len(), 1);
            let private = fs::read_to_string(&path).unwrap();
            assert!(
                AuthorizedKeys::parse(&private)
                    .unwrap_err()
                    .to_string()
                    .contains("private key")
            );
        }
        for wrong in [
            "",
            "# none",
            "ssh-ed25519",
            "ssh-ed25519 AAAA",
            "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAA",
            "x y",
        ] {
            assert!(AuthorizedKeys::parse(wrong).is_err(), "{wrong}");
        }
        let error = AuthorizedKeys::parse("# mine\n\nhunter2\n").unwrap_err();
        assert_eq!(error.to_string(), "line 3 is no public key for ssh");
    }
}
