//! Makes disks that boot by UEFI: a GPT, an EFI system partition with a boot loader and kernels, and an ext4 root.
//!
//! [`build`] takes a disk in an image of any format, or a device, and a closure that fills the root filesystem, so that it
//! can be made of whatever [`ext4_builder`] takes: a directory, an archive, a container image, or one file after the
//! other. Kernels, initrds and the boot loader are then looked for in it. The same options and the same tree make the same
//! bytes: all GUIDs follow from the UUID of the root.
//!
//! # How it works
//!
//! The root filesystem comes first, since it is made of a source that can be gone through only once, and since its size may
//! only be known then. It goes behind the room for the EFI system partition. What firmware and boot loader need is then
//! read back from it, wherever the source had it, and put into the EFI system partition. The partition table comes last.
//!
//! What a disk held is as it was until the first data is placed, so a source that is none costs nothing. From then on the
//! disk has no partition table, until it is whole.
//!
//! ```
//! use std::sync::Arc;
//!
//! use block::{Access, BlockDevice, MemStorage};
//! use disk_builder::{BootLoader, Options, build};
//! use ext4_builder::{Metadata, Options as Root, Size};
//! use raw::partition::PartitionTable;
//!
//! # let mut program = vec![0; 4096];
//! # program[..2].copy_from_slice(b"MZ");
//! # program[0x3C] = 0x80;
//! # program[0x80..0x86].copy_from_slice(b"PE\0\0\x64\x86");
//! # let kernel = &program;
//! let disk: Arc<dyn BlockDevice> =
//!     Arc::new(raw::Image::open(Arc::new(MemStorage::new()), Access::WRITE)?);
//! let mut options = Options::new(Root::new(Size::Shrink, [7; 16]));
//! options.esp_size = 40 << 20;
//! options.loader = BootLoader::program("systemd-bootx64.efi", program.clone());
//! options.append = "console=ttyS0".into();
//! let made = build(
//!     &disk,
//!     &options,
//!     |root| {
//!         let metadata = Metadata { permissions: 0o755, ..Metadata::default() };
//!         let boot = root.directory(root.root(), b"boot", &metadata)?;
//!         let len = kernel.len() as u64;
//!         let (_, place) = root.file(boot, b"vmlinuz-6.1", &metadata, len, &[0..len])?;
//!         place.write(root.storage(), kernel, 0)
//!     },
//!     &|_| Ok(()),
//! )?;
//! assert_eq!(made.system.kernels[0].version, "6.1");
//! assert_eq!(PartitionTable::read(&*disk, None)?.partitions()[1].name, "root");
//! # Ok::<(), block::Error>(())
//! ```

mod arch;
mod disk;
mod esp;
mod loader;
mod options;
mod room;
mod system;

pub use arch::Arch;
pub use disk::{Made, build};
pub use loader::BootLoader;
pub use options::Options;
pub use system::{Kernel, System};
