//! What disks boot on, and what firmware, partition tables and systemd call it.

/// Bytes from the start of a program in which what [`Arch::is_program`] looks at is.
pub(crate) const HEADERS: u64 = 4096;

/// What a disk boots on: firmware that is UEFI for this processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Arch {
    /// 64-bit x86.
    #[default]
    X86_64,
    /// 64-bit ARM.
    Arm64,
}

impl Arch {
    /// As the Discoverable Partitions Specification has it: `x86-64`, `arm64`.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86-64",
            Self::Arm64 => "arm64",
        }
    }

    /// As UEFI and systemd have it, in names of files.
    pub(crate) fn in_names(self) -> &'static str {
        match self {
            Self::X86_64 => "x64",
            Self::Arm64 => "aa64",
        }
    }

    /// The machine in the header of a program.
    fn machine(self) -> [u8; 2] {
        let machine: u16 = match self {
            Self::X86_64 => 0x8664,
            Self::Arm64 => 0xAA64,
        };
        machine.to_le_bytes()
    }

    /// Whether a file that starts with these bytes is a program for its UEFI: a PE image (Microsoft's "PE Format").
    pub(crate) fn is_program(self, start: &[u8]) -> bool {
        let field = |at: usize, len: usize| start.get(at..at.checked_add(len)?);
        let is_pe = || {
            let header = field(0x3C, 4)?.try_into().ok().map(u32::from_le_bytes)? as usize;
            Some(field(header, 4)? == b"PE\0\0" && field(header.checked_add(4)?, 2)? == self.machine())
        };
        start.starts_with(b"MZ") && is_pe() == Some(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_by_their_headers() {
        let mut program = vec![0; 256];
        program[..2].copy_from_slice(b"MZ");
        program[0x3C] = 0x80;
        program[0x80..0x86].copy_from_slice(b"PE\0\0\x64\x86");
        let is_program = |start: &[u8]| Arch::X86_64.is_program(start);
        assert!(is_program(&program) && !Arch::Arm64.is_program(&program));
        assert!(!is_program(&program[..0x85]));
        for (at, byte) in [(0, b'Z'), (0x80, b'N'), (0x84, 0x4C), (0x3F, 0xFF)] {
            let mut other = program.clone();
            other[at] = byte;
            assert!(!is_program(&other), "{at}");
        }
        assert!(!is_program(b"") && !is_program(b"#!/bin/sh\n"));
        program[0x84..0x86].copy_from_slice(b"\x64\xAA");
        assert!(!is_program(&program) && Arch::Arm64.is_program(&program));
    }
}
