//! Tells whether a file that somebody sent is one harmless disk image.
//!
//! A service that takes images from strangers has to know, before anything else opens one, that every program will take
//! it for the same format, that it leads to no other file, and that its tables say nothing that a file of its length
//! cannot. [`inspect`] answers from the file alone: it opens nothing, whatever the image names, and what it
//! holds in memory follows the length of the file, never a number in it.
//!
//! ```
//! use std::sync::Arc;
//! use block::MemStorage;
//! use inspector::{Format, Limits, inspect};
//! use qcow2::CreateOptions;
//!
//! let storage = Arc::new(MemStorage::new());
//! qcow2::create(&*storage, &CreateOptions { size: 1 << 30, ..CreateOptions::default() })?;
//! let report = inspect(storage, &Limits::default())?;
//! assert_eq!((report.format, report.is_safe()), (Some(Format::Qcow2), true));
//! # Ok::<(), block::Error>(())
//! ```
//!
//! # How it is decided
//!
//! Formats are recognised by their signatures ([`signatures`](Report::signatures)), each looked for where its readers do,
//! whatever else was found: a file with two is named as both, and unsafe. The exception are partition tables, which are what a
//! raw disk, an ISO image for USB sticks, or a fixed VHD is expected to hold. What is one format is then parsed in a file of that
//! name here, as far as it takes to fill the other [checks](Check). What cannot be judged (a version, a feature, or a
//! format that is recognised and not parsed) is unsafe.

mod disk;
mod file;
mod format;
mod iso;
mod luks;
mod qcow2_image;
mod qed;
mod report;
mod signature;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;

use std::sync::Arc;

use block::{Result, Storage};

use file::File;
use signature::one_format;

pub use format::Format;
pub use report::{Check, Problem, Report};
pub use signature::Signature;

/// Bytes of the largest disk that is sane unless somebody says otherwise: 64 TiB.
const MAX_DISK: u64 = 64 << 40;
/// Twice what deflate can make of a byte (1032).
const MAX_RATIO: u64 = 2000;

/// What is still sane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The format that the image must be in, whatever it looks like.
    pub format: Option<Format>,
    /// Bytes of the largest disk.
    pub max_disk: u64,
    /// How many bytes of data on the disk, at most, a byte of the file may stand for. Zeros are no data.
    pub max_ratio: u64,
}

impl Default for Limits {
    /// Any format, 64 TiB, and 2000.
    fn default() -> Self {
        Self {
            format: None,
            max_disk: MAX_DISK,
            max_ratio: MAX_RATIO,
        }
    }
}

/// The signatures of all formats that the file in `storage` has, of which nothing else is looked at.
///
/// # Errors
/// `Io`.
pub fn signatures(storage: Arc<dyn Storage>) -> Result<Vec<Signature>> {
    signature::find(&File::new(storage)?)
}

/// Whether QEMU, where it is to guess, goes by the name: it does so for one format only, and for files that it knows nothing else of.
fn is_guessed_by_name(file: &File, format: Option<Format>) -> bool {
    let unknown = matches!(format, Some(Format::Raw | Format::Iso | Format::Vhd));
    let name = file.storage().path().and_then(|path| path.file_name());
    unknown && name.is_some_and(|name| name.as_encoded_bytes().ends_with(b".dmg"))
}

/// Inspects the image in `storage`.
///
/// # Errors
/// `Io`. Whatever is wrong with the image is in the report.
pub fn inspect(storage: Arc<dyn Storage>, limits: &Limits) -> Result<Report> {
    let file = File::new(storage)?;
    let mut report = Report::new(file.len());
    report.signatures = signature::find(&file)?;
    if file.len() == 0 {
        report.problem(Check::Sizes, "the file is empty");
    }
    report.format = one_format(&mut report);
    if let (Some(wanted), Some(found)) = (limits.format, report.format)
        && wanted != found
    {
        let text = format!("it should be {}, and is {}", wanted.name(), found.name());
        report.problem(Check::Format, text);
    }
    if is_guessed_by_name(&file, report.format) {
        report.problem(
            Check::Format,
            "its name ends with .dmg, by which QEMU takes it for a disk of macOS; give it another name",
        );
    }
    match report.format {
        Some(Format::Raw) => disk::judge(&file, &mut report)?,
        Some(Format::Qcow2) => qcow2_image::judge(&file, limits, &mut report)?,
        Some(Format::Qed) => qed::judge(&file, &mut report)?,
        Some(Format::Vmdk) => vmdk::judge(&file, limits, &mut report)?,
        Some(Format::Vhd) => vhd::judge(&file, limits, &mut report)?,
        Some(Format::Vhdx) => vhdx::judge(&file, &mut report)?,
        Some(Format::Vdi) => vdi::judge(&file, &mut report)?,
        Some(Format::Iso) => iso::judge(&file, &mut report)?,
        Some(Format::Luks) => luks::judge(&file, &mut report)?,
        Some(other) => {
            let text = format!("nothing is known here of what {} images can do", other.name());
            report.problem(Check::Format, text);
        }
        None => {}
    }
    if let Some(size) = report.disk_size.filter(|size| *size > limits.max_disk) {
        let text = format!("the disk has {size} bytes, and {} are the limit", limits.max_disk);
        report.problem(Check::Sizes, text);
    }
    Ok(report)
}
