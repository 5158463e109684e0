//! Credentials for systemd in the guest.
//!
//! They go in base64, so that a value may be anything: as OEM strings of SMBIOS where the launcher and the machine have
//! it, otherwise on the kernel's command line, where every program in the guest can read them.

use std::fmt::Write as _;

use block::{Error, Result};

use crate::credential::CredentialName;
use crate::machine::Machine;

/// The longest command line of Linux on `x86_64` and aarch64, in bytes.
const COMMAND_LINE_MAX: usize = 2047;

/// The longest value, in bytes.
const VALUE_MAX: usize = 64 << 10;

/// One OEM string a credential.
pub(super) fn oem_strings(machine: &Machine) -> Result<Vec<String>> {
    let each = machine.credentials.iter();
    let string = |(name, value): (&CredentialName, &String)| {
        check(name, value)?;
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

/// Launchers get each as one argument, of which Linux takes 128 KiB.
fn check(name: &CredentialName, value: &str) -> Result<()> {
    if value.len() <= VALUE_MAX {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the credential {name} has {} bytes, and launchers take {VALUE_MAX}",
        value.len()
    )))
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
    use crate::testing::{credentials, machine};

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
    fn values_may_be_anything_up_to_what_is_taken() {
        let mut machine = machine();
        machine.credentials = credentials([("a.b", "x, \"y\"\n")]);
        assert_eq!(
            oem_strings(&machine).unwrap(),
            ["io.systemd.credential.binary:a.b=eCwgInkiCg=="]
        );
        assert_eq!(
            on_command_line("quiet", &machine).unwrap(),
            "quiet systemd.set_credential_binary=a.b:eCwgInkiCg=="
        );
        machine.credentials = credentials([("a", &*"x".repeat(2000))]);
        assert!(on_command_line("", &machine).is_err() && oem_strings(&machine).is_ok());
        machine.credentials = credentials([("a", &*"x".repeat(VALUE_MAX + 1))]);
        assert!(oem_strings(&machine).is_err());
    }
}
