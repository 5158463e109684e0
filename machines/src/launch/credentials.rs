//! Credentials for systemd in the guest.
//!
//! They go in base64, so that a value may be anything: as OEM strings of SMBIOS where the launcher and the machine have
//! it, otherwise on the kernel's command line, where every program in the guest can read them.

use std::fmt::Write as _;

use block::{Error, Result, escape};

use crate::machine::Machine;

/// The longest command line of Linux on `x86_64` and aarch64, in bytes.
const COMMAND_LINE_MAX: usize = 2047;

/// One OEM string a credential.
pub(super) fn oem_strings(machine: &Machine) -> Result<Vec<String>> {
    let each = machine.credentials.iter();
    let string = |(name, value): &(String, String)| {
        check(name)?;
        Ok(format!(
            "io.systemd.credential.binary:{name}={}",
            base64(value.as_bytes())
        ))
    };
    each.map(string).collect()
}

/// The command line, and the credentials after it.
pub(super) fn on_command_line(command_line: &str, machine: &Machine) -> Result<String> {
    let mut whole = command_line.to_owned();
    for (name, value) in &machine.credentials {
        check(name)?;
        let value = base64(value.as_bytes());
        let _ = write!(whole, " systemd.set_credential_binary={name}:{value}");
    }
    if whole.len() > COMMAND_LINE_MAX {
        let message = format!(
            "the kernel's command line would have {} bytes with the credentials, and {COMMAND_LINE_MAX} are read",
            whole.len()
        );
        return Err(Error::invalid(message)
            .with_hint("use a launcher with SMBIOS: qemu, libvirt, cloud-hypervisor or crosvm"));
    }
    Ok(whole)
}

/// systemd makes a file of that name.
fn check(name: &str) -> Result<()> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !name.is_empty() && name.len() <= 255 && name.chars().all(fine) {
        return Ok(());
    }
    let message = format!("\"{}\" is no name of a credential", escape(name));
    Err(Error::invalid(message).with_hint("use letters, digits, full stops, hyphens and underscores"))
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |i: usize| u32::from(group.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * i)) as usize & 63];
            text.push(if i <= group.len() { digit.into() } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::machine;

    #[test]
    fn base64_is_that_of_the_rfc() {
        let pairs = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (plain, coded) in pairs {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
        assert_eq!(base64(&[0xff, 0xef, 0xbe]), "/+++");
    }

    #[test]
    fn values_may_be_anything_and_names_may_not() {
        let mut machine = machine();
        machine.credentials = vec![("a.b".into(), "x, \"y\"\n".into())];
        assert_eq!(
            oem_strings(&machine).unwrap(),
            ["io.systemd.credential.binary:a.b=eCwgInkiCg=="]
        );
        assert_eq!(
            on_command_line("quiet", &machine).unwrap(),
            "quiet systemd.set_credential_binary=a.b:eCwgInkiCg=="
        );
        machine.credentials = vec![("a b".into(), String::new())];
        assert!(oem_strings(&machine).is_err() && on_command_line("", &machine).is_err());
        machine.credentials = vec![("a".into(), "x".repeat(2000))];
        assert!(on_command_line("", &machine).is_err() && oem_strings(&machine).is_ok());
    }
}
