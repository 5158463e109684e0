//! UEFI firmware of the host for QEMU and libvirt: its code, and the template of its variables beside it.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use block::{Error, Result};

use crate::machine::{Architecture, Boot, Machine};

/// Where distributions have it: Debian and Ubuntu, Fedora, Arch, SUSE. Builds with Secure Boot want a machine with more.
const X86_64: [&str; 6] = [
    "/usr/share/OVMF/OVMF_CODE_4M.fd",
    "/usr/share/edk2/ovmf/OVMF_CODE.fd",
    "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
    "/usr/share/edk2-ovmf/x64/OVMF_CODE.fd",
    "/usr/share/qemu/ovmf-x86_64-4m-code.bin",
    "/usr/share/OVMF/OVMF_CODE.fd",
];
const AARCH64: [&str; 4] = [
    "/usr/share/AAVMF/AAVMF_CODE.no-secboot.fd",
    "/usr/share/AAVMF/AAVMF_CODE.fd",
    "/usr/share/edk2/aarch64/QEMU_EFI-pflash.raw",
    "/usr/share/qemu/aavmf-aarch64-code.bin",
];

/// The host's firmware for an architecture.
pub fn find(architecture: Architecture) -> Option<PathBuf> {
    let places: &[&str] = match architecture {
        Architecture::X86_64 => &X86_64,
        Architecture::Aarch64 => &AARCH64,
    };
    let usable = |code: &&&str| Path::new(code).is_file() && variables_template(Path::new(code)).is_file();
    places.iter().find(usable).map(PathBuf::from)
}

/// The Debian package with firmware for an architecture.
pub fn package(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::X86_64 => "ovmf",
        Architecture::Aarch64 => "qemu-efi-aarch64",
    }
}

/// The machine with the host's firmware where it names none. Others than QEMU and libvirt have another kind.
///
/// # Errors
/// `InvalidInput` where the host has none.
pub fn resolve(machine: &Machine) -> Result<Machine> {
    let mut machine = machine.clone();
    if let Boot::Uefi {
        firmware: firmware @ None,
        ..
    } = &mut machine.boot
    {
        let architecture = machine.architecture;
        *firmware = Some(find(architecture).ok_or_else(|| {
            Error::invalid(format!("there is no UEFI firmware for {}", architecture.name())).with_hint(
                format!(
                    "install it (apt install {}), or set the machine's firmware",
                    package(architecture)
                ),
            )
        })?);
    }
    Ok(machine)
}

/// The file with the variables that go with a file of code: its name says `VARS` where that of the code says `CODE`.
pub fn variables_template(code: &Path) -> PathBuf {
    let name = code.file_name().unwrap_or_default().to_string_lossy();
    // Builds with and without Secure Boot share their variables.
    let name = name.replace(".no-secboot", "").replace(".secboot", "");
    let name = name
        .replace("CODE", "VARS")
        .replace("code", "vars")
        .replace("QEMU_EFI-pflash", "vars-template-pflash");
    code.with_file_name(name)
}

/// Makes the file with the variables of the firmware, where there is none yet: whole, or not at all.
///
/// # Errors
/// `Io` where there is no template of them beside the firmware, or no file can be made.
pub fn make_variables(machine: &Machine) -> Result<()> {
    let Boot::Uefi {
        firmware: Some(code),
        variables,
    } = &machine.boot
    else {
        return Ok(());
    };
    if variables.exists() {
        return Ok(());
    }
    let template = variables_template(code);
    let bytes = fs::read(&template).map_err(|error| {
        let error = Error::io("read the variables that go with the firmware", error).with_path(&template);
        error.with_hint(
            "name firmware whose variables lie beside it, in a file with VARS in its name for CODE",
        )
    })?;
    let failed = |error| Error::io("make the file with the firmware's variables", error).with_path(variables);
    let mut file =
        tempfile::NamedTempFile::new_in(variables.parent().unwrap_or(Path::new("."))).map_err(failed)?;
    file.write_all(&bytes).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    match file.persist_noclobber(variables) {
        // Another was faster.
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map(drop).map_err(|error| failed(error.error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_lie_beside_the_code() {
        for (code, variables) in [
            (
                "/usr/share/OVMF/OVMF_CODE_4M.fd",
                "/usr/share/OVMF/OVMF_VARS_4M.fd",
            ),
            (
                "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd",
                "/usr/share/OVMF/OVMF_VARS_4M.fd",
            ),
            (
                "/usr/share/AAVMF/AAVMF_CODE.no-secboot.fd",
                "/usr/share/AAVMF/AAVMF_VARS.fd",
            ),
            ("/a/ovmf-x86_64-4m-code.bin", "/a/ovmf-x86_64-4m-vars.bin"),
            ("/a/QEMU_EFI-pflash.raw", "/a/vars-template-pflash.raw"),
        ] {
            assert_eq!(variables_template(Path::new(code)), Path::new(variables));
        }
    }

    #[test]
    fn the_hosts_firmware_is_found() {
        assert!(
            find(Architecture::X86_64).is_some(),
            "scripts/setup.sh test installs it"
        );
    }
}
