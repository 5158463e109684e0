//! The formats that are told apart.

/// A format of disk images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Format {
    /// The bytes of the file are the disk's.
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
    /// Its first version. Recognised only.
    Qcow,
    /// QEMU's enhanced disk.
    Qed,
    /// `VMware`'s disks: sparse files, and descriptors of others.
    Vmdk,
    /// Virtual PC's and Azure's disks, `vpc` in QEMU.
    Vhd,
    /// Hyper-V's disks.
    Vhdx,
    /// `VirtualBox`'s disks.
    Vdi,
    /// ISO 9660: what optical discs hold.
    Iso,
    /// UDF: the other thing that they hold. Recognised only.
    Udf,
    /// An encrypted disk of its own.
    Luks,
    /// Recognised only.
    Parallels,
    /// Recognised only.
    Bochs,
    /// Compressed loop images. Recognised only.
    Cloop,
    /// Apple's disk images. Recognised only.
    Dmg,
    /// A GUID partition table, which raw disks have.
    Gpt,
    /// A master boot record with partitions.
    Mbr,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::Raw,
        Self::Qcow2,
        Self::Qcow,
        Self::Qed,
        Self::Vmdk,
        Self::Vhd,
        Self::Vhdx,
        Self::Vdi,
        Self::Iso,
        Self::Udf,
        Self::Luks,
        Self::Parallels,
        Self::Bochs,
        Self::Cloop,
        Self::Dmg,
        Self::Gpt,
        Self::Mbr,
    ];

    /// What it is called, in reports too: this does not change.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Qcow => "qcow",
            Self::Qed => "qed",
            Self::Vmdk => "vmdk",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
            Self::Vdi => "vdi",
            Self::Iso => "iso",
            Self::Udf => "udf",
            Self::Luks => "luks",
            Self::Parallels => "parallels",
            Self::Bochs => "bochs",
            Self::Cloop => "cloop",
            Self::Dmg => "dmg",
            Self::Gpt => "gpt",
            Self::Mbr => "mbr",
        }
    }

    /// The format of this name, or of QEMU's for it.
    pub fn named(name: &str) -> Option<Self> {
        let name = if name == "vpc" { "vhd" } else { name };
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// It is what a disk holds, and not what holds a disk.
    pub fn is_partition_table(self) -> bool {
        matches!(self, Self::Gpt | Self::Mbr)
    }
}
