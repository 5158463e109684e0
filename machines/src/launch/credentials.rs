//! Credentials for systemd in the guest.
//!
//! They go as OEM strings of SMBIOS where the launcher and the machine have it, otherwise as files of QEMU's firmware, or on the
//! kernel's command line, where every program in the guest can read them. Strings are in base64, so that a value may be anything.

use std::fmt::Write as _;

use block::{Error, Result};

use crate::credential::CredentialName;
use crate::machine::Machine;

/// The longest command line of Linux on `x86_64` and aarch64, in bytes.
const COMMAND_LINE_MAX: usize = 2047;

/// The longest value, in bytes.
const VALUE_MAX: usize = 64 << 10;

/// Where systemd looks for them among the files of QEMU's firmware.
const FIRMWARE_DIRECTORY: &str = "opt/io.systemd.credentials/";

/// The longest name of such a file, in bytes (QEMU's `docs/specs/fw_cfg.rst`).
const FIRMWARE_NAME_MAX: usize = 55;

/// There is room for 32 files, and a machine has up to half of them itself.
const FIRMWARE_FILES_MAX: usize = 16;

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

/// A file of QEMU's firmware for each credential, with its name.
pub(super) fn firmware_files(machine: &Machine) -> Result<Vec<(String, String)>> {
    let hint = "have the machine boot by UEFI, or put it in a file of the image";
    if machine.credentials.len() > FIRMWARE_FILES_MAX {
        let message = format!(
            "there are {} credentials, and QEMU hands {FIRMWARE_FILES_MAX} to a machine without SMBIOS tables",
            machine.credentials.len()
        );
        return Err(Error::invalid(message).with_hint(hint));
    }
    let each = machine.credentials.iter();
    let file = |(name, value): (&CredentialName, &String)| {
        check(name, value)?;
        let file = format!("{FIRMWARE_DIRECTORY}{name}");
        if file.len() > FIRMWARE_NAME_MAX {
            let message = format!(
                "the name of the credential {name} has {} bytes, and QEMU hands those of {} to a machine without SMBIOS tables",
                name.as_str().len(),
                FIRMWARE_NAME_MAX - FIRMWARE_DIRECTORY.len()
            );
            return Err(Error::invalid(message).with_hint(hint));
        }
        Ok((file, value.clone()))
    };
    each.map(file).collect()
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

    #[test]
    fn what_the_firmware_has_no_room_for_is_refused() {
        let mut machine = machine();
        let longest = "n".repeat(28);
        machine.credentials = credentials([(&*longest, "x\n")]);
        let file = (format!("opt/io.systemd.credentials/{longest}"), "x\n".to_owned());
        assert_eq!(firmware_files(&machine).unwrap(), [file]);
        machine.credentials = credentials([(&*format!("{longest}n"), "x")]);
        let error = firmware_files(&machine).unwrap_err().to_string();
        assert!(error.contains("29 bytes, and QEMU hands those of 28"), "{error}");
        machine.credentials = (0..17)
            .map(|number| (format!("n{number}").parse().unwrap(), String::new()))
            .collect();
        assert!(firmware_files(&machine).is_err());
    }
}
