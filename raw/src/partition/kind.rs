//! What a partition is for: type GUIDs with their names, and the types of the MBR.

use std::fmt;
use std::str::FromStr;

use block::{Error, Result, escape};

use super::Guid;

/// Names of types, for the command line, and their GUIDs: those of the UEFI specification, of the Discoverable
/// Partitions Specification and of those who defined them.
const NAMES: [(&str, Guid); 24] = [
    ("efi", Guid::of("C12A7328-F81F-11D2-BA4B-00A0C93EC93B")),
    ("bios-boot", Guid::of("21686148-6449-6E6F-744E-656564454649")),
    ("xbootldr", Guid::of("BC13C2FF-59E6-4262-A352-B275FD6F7172")),
    ("prep", Guid::of("9E1A2D38-C612-4316-AA26-8B49521E5A8B")),
    ("linux", Guid::of("0FC63DAF-8483-4772-8E79-3D69D8477DE4")),
    ("swap", Guid::of("0657FD6D-A4AB-43C4-84E5-0933C84B4F4F")),
    ("lvm", Guid::of("E6D6D379-F507-44C2-A23C-238F2A3DF928")),
    ("raid", Guid::of("A19D880F-05FC-4D3B-A006-743F0F84911E")),
    ("luks", Guid::of("CA7D7CCB-63ED-4C53-861C-1742536059CC")),
    ("home", Guid::of("933AC7E1-2EB4-4F13-B844-0E14E2AEF915")),
    ("srv", Guid::of("3B8F8425-20E0-4F3B-907F-1A25A76F98E8")),
    ("var", Guid::of("4D21B016-B534-45C2-A9FB-5C16E091FD2D")),
    ("tmp", Guid::of("7EC6F557-3BC5-4ACA-B293-16EF5DF639D1")),
    ("root-x86", Guid::of("44479540-F297-41B2-9AF7-D131D5F0458A")),
    ("root-x86-64", Guid::of("4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709")),
    ("root-arm", Guid::of("69DAD710-2CE4-4E3C-B16C-21A1D49ABED3")),
    ("root-arm64", Guid::of("B921B045-1DF0-41C3-AF44-4C6F280D3FAE")),
    ("root-riscv64", Guid::of("72EC70A6-CF74-40E6-BD49-4BDA08E8F224")),
    ("usr-x86-64", Guid::of("8484680C-9521-48C6-9C11-B0720656F69E")),
    ("usr-arm64", Guid::of("B0E01050-EE5F-4390-949A-9101B17104E9")),
    ("basic-data", Guid::of("EBD0A0A2-B9E5-4433-87C0-68B6B72699C7")),
    ("ms-reserved", Guid::of("E3C9E316-0B5C-4DB8-817D-F92DF00215AE")),
    ("ms-recovery", Guid::of("DE94BBA4-06D1-4D40-A16A-BFD50179D6AC")),
    ("ms-ldm-data", Guid::of("AF9B60A0-1431-4F62-BC68-3311714A69AD")),
];

/// What a partition is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PartitionKind {
    /// A type GUID, in a GPT.
    Gpt(Guid),
    /// A type byte, in an MBR.
    Mbr(u8),
}

impl PartitionKind {
    /// A partition of Linux data, which says no more than that.
    pub const LINUX: Self = Self::Gpt(NAMES[4].1);

    /// The well-known name, where there is one.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Gpt(guid) => NAMES
                .iter()
                .find(|(_, known)| *known == guid)
                .map(|(name, _)| *name),
            Self::Mbr(kind) => Some(match kind {
                0x01 | 0x04 | 0x06 | 0x0e => "fat16",
                0x0b | 0x0c => "fat32",
                0x05 | 0x0f | 0x85 => "extended",
                0x07 => "ntfs",
                0x82 => "swap",
                0x83 => "linux",
                0x8e => "lvm",
                0xee => "protective",
                0xef => "efi",
                0xfd => "raid",
                _ => return None,
            }),
        }
    }

    /// The well-known names of types of a GPT.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMES.iter().map(|(name, _)| *name)
    }
}

/// A type of a GPT: a well-known name, or a GUID.
impl FromStr for PartitionKind {
    type Err = Error;

    /// # Errors
    /// `InvalidInput` for what is neither; the hint lists the names.
    fn from_str(text: &str) -> Result<Self> {
        if let Some((_, guid)) = NAMES.iter().find(|(name, _)| *name == text) {
            return Ok(Self::Gpt(*guid));
        }
        match text.parse() {
            Ok(guid) if guid != Guid::NIL => Ok(Self::Gpt(guid)),
            _ => {
                let names: Vec<_> = Self::names().collect();
                let message = format!("there is no partition type \"{}\"", escape(text));
                Err(Error::invalid(message).with_hint(format!("a GUID, or one of {}", names.join(", "))))
            }
        }
    }
}

/// The name, or else the GUID or the byte.
impl fmt::Display for PartitionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name(), self) {
            (Some(name), _) => f.write_str(name),
            (None, Self::Gpt(guid)) => guid.fmt(f),
            (None, Self::Mbr(kind)) => write!(f, "{kind:#04x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::run;

    #[test]
    fn names_mean_the_types_that_other_people_know() {
        let known = run("sfdisk", &["--list-types", "-X", "gpt"]);
        for (name, guid) in NAMES {
            // Its list is older than this one.
            assert!(
                known.contains(&guid.to_string()) || name == "luks",
                "{name}: {guid}"
            );
            assert_eq!(name.parse::<PartitionKind>().unwrap(), PartitionKind::Gpt(guid));
            assert_eq!(PartitionKind::Gpt(guid).to_string(), name);
        }
        let line = |guid: &str| known.lines().find(|line| line.starts_with(guid)).unwrap();
        assert!(line(&NAMES[0].1.to_string()).contains("EFI System"));
        assert_eq!(PartitionKind::LINUX.to_string(), "linux");
        assert!(line(&NAMES[4].1.to_string()).contains("Linux filesystem"));
        assert!(line(&NAMES[14].1.to_string()).contains("Linux root (x86-64)"));
    }

    #[test]
    fn an_unknown_type_is_refused_with_those_there_are() {
        for text in ["", "Linux", "00000000-0000-0000-0000-000000000000", "83"] {
            let error = text.parse::<PartitionKind>().unwrap_err();
            assert!(error.hint().unwrap().contains("efi, bios-boot"), "{error}");
        }
    }
}
