//! The raw format: the bytes of the file are the bytes of the disk.
//!
//! A disk has whole sectors of 512 bytes, a file any length. As in QEMU, the disk ends with the sector that the
//! file ends in: what lies past the end of the file reads as zeros, and writing there grows the file.
//!
//! A disk may be a part of a file ([`Image::open_part`]), as in an archive or behind somebody's header: then what is said here of
//! the file's start and end holds for the part's.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use block::{
    Access, Backing, BackingReference, BlockDevice, DeviceInfo, Error, ErrorKind, Extent, ExtentState,
    Format, HostCopy, Keys, OffloadedWrite, Overlay, Preallocation, References, Resize, Result, Storage,
    ZeroMode,
};

/// The unit of a disk's size, in bytes.
pub const SECTOR: u64 = 512;

/// Bytes of zeros written at once for full preallocation.
const ZERO_CHUNK: u64 = 1 << 20;

const NAME: &str = "raw";

/// The raw format, for opening chains.
#[derive(Clone, Copy, Debug, Default)]
pub struct Raw;

impl Format for Raw {
    fn name(&self) -> &'static str {
        NAME
    }

    /// Never: any file could be a raw disk, and a guest writes what it likes to the first sector of one.
    fn probe(&self, _head: &[u8]) -> bool {
        false
    }

    fn references(&self, _storage: &dyn Storage) -> Result<References> {
        Ok(References::default())
    }

    fn open(
        &self,
        storage: Arc<dyn Storage>,
        data_file: Option<Arc<dyn Storage>>,
        access: Access,
        backing: Backing,
        _: Keys,
    ) -> Result<Arc<dyn Overlay>> {
        let refused = match (data_file, backing) {
            (Some(_), _) => "a raw image has no data file",
            (None, Backing::Device(_)) => "a raw image has no backing file",
            (None, Backing::None | Backing::Detached) => return Ok(Arc::new(Image::open(storage, access)?)),
        };
        Err(Error::invalid(refused).with_path_of(storage.path()))
    }
}

/// A raw disk image, open.
///
/// [`discard_at`](BlockDevice::discard_at) gives room back where the host can, and the range then reads as zeros;
/// where the host cannot, the bytes stay. There are no clusters of which more could be promised.
#[derive(Debug)]
pub struct Image {
    storage: Arc<dyn Storage>,
    /// Where in the storage the disk starts, in bytes.
    start: u64,
    /// The disk does not end where the storage does.
    fixed: bool,
    write: bool,
    zero_init: bool,
    /// Bytes, a multiple of [`SECTOR`].
    size: AtomicU64,
    /// Held while the size changes.
    resizing: Mutex<()>,
}

impl Image {
    /// Opens what is in `storage`, whatever it is. The size is that of the storage now, in whole sectors.
    ///
    /// # Errors
    /// `Io`; `Unsupported` for a size that is not a file offset when rounded up to sectors.
    pub fn open(storage: Arc<dyn Storage>, access: Access) -> Result<Self> {
        Self::open_part(storage, access, 0, None)
    }

    /// Opens the part of `storage` from byte `start` on: `len` bytes, which must be whole sectors and there, or all up to the end.
    /// Only without a `len` can the size be changed.
    ///
    /// # Errors
    /// As [`open`](Self::open); `InvalidInput` for a part that is not there, or of no whole number of sectors.
    pub fn open_part(
        storage: Arc<dyn Storage>,
        access: Access,
        start: u64,
        len: Option<u64>,
    ) -> Result<Self> {
        let size = part_size(storage.len()?, start, len);
        let size = size.map_err(|error| error.with_path_of(storage.path()))?;
        // What cannot be found out is not promised.
        let first = storage.host_extent(start, size);
        Ok(Self {
            start,
            fixed: len.is_some(),
            write: access.write,
            zero_init: first.is_ok_and(|first| !first.data && first.len >= size),
            size: AtomicU64::new(size),
            resizing: Mutex::new(()),
            storage,
        })
    }

    fn check(&self, op: &str, offset: u64, len: u64) -> Result<()> {
        let size = self.size();
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(()),
            _ => Err(Error::out_of_bounds(op, offset, len, size).with_path_of(self.path())),
        }
    }

    fn check_write(&self, op: &str, offset: u64, len: u64) -> Result<()> {
        self.check_writable(op)?;
        self.check(op, offset, len)
    }

    fn check_writable(&self, op: &str) -> Result<()> {
        if self.write {
            Ok(())
        } else {
            Err(Error::read_only(op).with_path_of(self.path()))
        }
    }
}

impl BlockDevice for Image {
    /// `zero_init` tells whether the file was one hole when it was opened.
    fn info(&self) -> DeviceInfo {
        let mut info = DeviceInfo::new(NAME);
        info.read_only = !self.write;
        info.fast_zero = self.write;
        info.zero_init = self.zero_init;
        let alignment = self.storage.alignment().offset;
        if self.start.is_multiple_of(alignment.into()) {
            info.alignment = alignment;
        }
        info
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.check("read", offset, buf.len() as u64)?;
        self.storage.read_exact_at(buf, self.start + offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.check_write("write", offset, buf.len() as u64)?;
        self.storage.write_all_at(buf, self.start + offset)
    }

    fn read_vectored_at(&self, bufs: &mut [std::io::IoSliceMut<'_>], offset: u64) -> Result<()> {
        self.check("read", offset, bufs.iter().map(|buf| buf.len() as u64).sum())?;
        self.storage.read_vectored_at(bufs, self.start + offset)
    }

    fn write_vectored_at(&self, bufs: &[std::io::IoSlice<'_>], offset: u64) -> Result<()> {
        self.check_write("write", offset, bufs.iter().map(|buf| buf.len() as u64).sum())?;
        self.storage.write_vectored_at(bufs, self.start + offset)
    }

    fn zero_at(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.check_write("write zeros", offset, len)?;
        if len == 0 {
            return Ok(());
        }
        self.storage.zero(self.start + offset, len, mode)
    }

    fn discard_at(&self, offset: u64, len: u64) -> Result<()> {
        self.check_write("discard", offset, len)?;
        self.storage.discard(self.start + offset, len)
    }

    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        let size = self.size();
        if offset >= size || len == 0 {
            return Err(Error::out_of_bounds("map", offset, len, size).with_path_of(self.path()));
        }
        let host = self.start + offset;
        let run = self.storage.host_extent(host, len.min(size - offset))?;
        Ok(Extent {
            offset,
            len: run.len,
            state: if run.data {
                ExtentState::Data
            } else {
                ExtentState::Zero
            },
            depth: 0,
            host: Some(host),
        })
    }

    fn flush(&self) -> Result<()> {
        self.storage.sync_data()
    }

    /// The new size is rounded up to whole sectors. Requests to a part that is being cut off meanwhile may bring
    /// the file's length back, though not the disk's.
    fn resize(&self, size: u64, how: Resize) -> Result<()> {
        self.check_writable("resize")?;
        let _resizing = self.resizing.lock().unwrap_or_else(PoisonError::into_inner);
        let named = |error: Error| error.with_path_of(self.path());
        if self.fixed {
            return Err(named(Error::unsupported(
                "a part of a file of this size stays as long as it is",
            )));
        }
        let (old, new) = (self.size(), whole_sectors(size).map_err(named)?);
        let end = part_end(self.start, new).map_err(named)?;
        check_preallocation(how.preallocation).map_err(named)?;
        if new < old {
            if !how.shrink {
                return Err(named(shrink_refused(old, new)));
            }
            // What is cut off in the last sector does not come back.
            self.storage.set_len(self.start + size)?;
            self.storage.set_len(end)?;
        } else if new > old {
            grow(&*self.storage, self.start + old, end, how.preallocation)?;
        }
        self.size.store(new, Ordering::Release);
        Ok(())
    }

    fn offloaded(&self) -> Option<&dyn OffloadedWrite> {
        self.write.then_some(self)
    }
}

impl OffloadedWrite for Image {
    fn may_copy_from(&self, source: &dyn Storage, how: HostCopy) -> bool {
        self.storage.may_copy_from(source, how)
    }

    fn copy_from(
        &self,
        offset: u64,
        source: &dyn Storage,
        source_offset: u64,
        len: u64,
        how: HostCopy,
    ) -> Result<u64> {
        self.check_write("write", offset, len)?;
        self.storage
            .copy_from(self.start + offset, source, source_offset, len, how)
    }
}

impl Overlay for Image {
    fn backing(&self) -> Option<Arc<dyn BlockDevice>> {
        None
    }

    fn backing_reference(&self) -> Option<BackingReference> {
        None
    }

    fn own_extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        self.extent_at(offset, len)
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    fn path(&self) -> Option<&Path> {
        self.storage.path()
    }
}

/// Makes `storage` a raw image of `size` bytes, rounded up to whole sectors, that reads as zeros. A block device
/// only has to be long enough, and keeps what is on it.
///
/// # Errors
/// `InvalidInput` for a preallocation that raw images don't have, or a block device that is too short;
/// `Unsupported` for [`Preallocation::Falloc`] on a host that cannot reserve room; `NoSpace`, `Io`. The storage is
/// then empty.
pub fn create(storage: &dyn Storage, size: u64, preallocation: Preallocation) -> Result<()> {
    let named = |error: Error| error.with_path_of(storage.path());
    check_preallocation(preallocation).map_err(named)?;
    let size = whole_sectors(size).map_err(named)?;
    // Not for a file that is empty already: ext4 writes a file out when it is closed, if it was cut to nothing before.
    match if storage.is_empty()? {
        Ok(())
    } else {
        storage.set_len(0)
    } {
        Ok(()) => grow(storage, 0, size, preallocation),
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            let len = storage.len()?;
            if len < size {
                let message = format!("the device has {len} bytes, too few for an image of {size}");
                return Err(named(Error::invalid(message)));
            }
            lay_out(storage, 0, size, preallocation)
        }
        Err(error) => Err(error),
    }
}

/// Grows the storage from `old` to `new` bytes; after a failure it is as long as before.
fn grow(storage: &dyn Storage, old: u64, new: u64, preallocation: Preallocation) -> Result<()> {
    let len = storage.len()?;
    let result = storage
        .set_len(new)
        .and_then(|()| lay_out(storage, old, new, preallocation));
    if result.is_err() {
        // The first error says what is wrong; that the file could not be put back adds nothing to it.
        let _ = storage.set_len(len);
    }
    result
}

fn lay_out(storage: &dyn Storage, mut start: u64, end: u64, preallocation: Preallocation) -> Result<()> {
    match preallocation {
        _ if start >= end => Ok(()),
        Preallocation::Off | Preallocation::Metadata => Ok(()),
        Preallocation::Falloc => storage.allocate(start, end - start),
        Preallocation::Full => {
            let zeros = vec![0; (end - start).min(ZERO_CHUNK) as usize];
            while start < end {
                let len = (end - start).min(zeros.len() as u64);
                storage.write_all_at(&zeros[..len as usize], start)?;
                start += len;
            }
            Ok(())
        }
    }
}

fn check_preallocation(preallocation: Preallocation) -> Result<()> {
    match preallocation {
        Preallocation::Metadata => Err(Error::invalid("a raw image has no metadata to preallocate")
            .with_hint("use preallocation off, falloc or full")),
        Preallocation::Off | Preallocation::Falloc | Preallocation::Full => Ok(()),
    }
}

fn shrink_refused(old: u64, new: u64) -> Error {
    let message = format!(
        "shrinking from {old} to {new} bytes would cut off {} bytes",
        old - new
    );
    Error::invalid(message).with_hint("allow it to shrink, once nothing beyond the new end is needed")
}

/// Bytes of the disk in a part of a storage of `file` bytes.
fn part_size(file: u64, start: u64, len: Option<u64>) -> Result<u64> {
    let there = file.checked_sub(start);
    let size = match (there, len) {
        (Some(there), Some(len)) if len <= there && len.is_multiple_of(SECTOR) => Ok(len),
        (Some(_), Some(len)) if !len.is_multiple_of(SECTOR) => {
            let message = format!("a disk of {len} bytes has no whole number of sectors of {SECTOR}");
            Err(Error::invalid(message))
        }
        (Some(there), None) => whole_sectors(there),
        _ => {
            let message = match len {
                Some(len) => {
                    format!("the file has {file} bytes, and the {len} from byte {start} on are not all there")
                }
                None => format!("the file has {file} bytes, and byte {start} is behind its end"),
            };
            Err(Error::invalid(message))
        }
    };
    size.and_then(|size| part_end(start, size).map(|_| size))
}

/// Where a disk that starts there ends; refused where that is no offset in a file.
fn part_end(start: u64, size: u64) -> Result<u64> {
    let end = start.checked_add(size).filter(|end| i64::try_from(*end).is_ok());
    end.ok_or_else(|| {
        Error::unsupported(format!(
            "a disk of {size} bytes at byte {start} is larger than any file"
        ))
    })
}

/// `size` rounded up to sectors; refused where that is no offset in a file.
fn whole_sectors(size: u64) -> Result<u64> {
    match size.checked_next_multiple_of(SECTOR) {
        Some(size) if i64::try_from(size).is_ok() => Ok(size),
        _ => Err(Error::unsupported(format!(
            "a disk of {size} bytes is larger than any file"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::testing::{Loop, Mount, run, text};
    use crate::{File, OpenOptions};

    fn directory() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.raw");
        (directory, path)
    }

    fn new_file(path: &Path) -> File {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path)
            .unwrap()
    }

    fn open(path: &Path) -> Image {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        Image::open(Arc::new(file), Access::WRITE).unwrap()
    }

    /// The map as `qemu-img map --output=json` prints it.
    fn map(image: &Image) -> String {
        let (mut at, mut lines) = (0, Vec::new());
        while at < image.size() {
            let run = image.extent_at(at, u64::MAX).unwrap();
            let data = run.state == ExtentState::Data;
            lines.push(format!(
                "{{ \"start\": {}, \"length\": {}, \"depth\": 0, \"present\": true, \"zero\": {}, \"data\": {data}, \
                 \"compressed\": false, \"offset\": {}}}",
                run.offset,
                run.len,
                !data,
                run.host.unwrap()
            ));
            at = run.end();
        }
        format!("[{}]\n", lines.join(",\n"))
    }

    #[test]
    fn the_map_is_that_of_qemu() {
        let (_directory, path) = directory();
        let file = new_file(&path);
        file.write_all_at(&[1; 8192], 65536).unwrap();
        file.write_all_at(&[1; 1000], 200_000).unwrap();
        drop(file);
        let ours = map(&open(&path));
        assert_eq!(
            ours,
            run("qemu-img", &["map", "--output=json", "-f", "raw", text(&path)])
        );
        assert_eq!(ours.matches("\"data\": true").count(), 2, "{ours}");
    }

    #[test]
    fn the_last_sector_is_whole_whatever_the_length_of_the_file() {
        let (_directory, path) = directory();
        fs::write(&path, [7; 1000]).unwrap();
        let qemu = run("qemu-img", &["info", "-f", "raw", text(&path)]);
        assert!(qemu.contains("(1024 bytes)"), "{qemu}");

        let image = open(&path);
        let mut tail = [0xee; 24];
        image.read_at(&mut tail, 1000).unwrap();
        assert_eq!((image.size(), tail), (1024, [0; 24]));
        assert_eq!(image.extent_at(1000, 100).unwrap().state, ExtentState::Zero);
        image.write_at(&[8; 4], 1020).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 1024);
        for error in [image.write_at(&[8; 5], 1020), image.read_at(&mut [0], 1024)] {
            assert_eq!(error.unwrap_err().kind(), ErrorKind::OutOfBounds);
        }
        image.extent_at(1024, 1).unwrap_err();
    }

    #[test]
    fn what_is_cut_off_in_the_middle_of_a_sector_does_not_come_back() {
        let (_directory, path) = directory();
        fs::write(&path, [7; 2048]).unwrap();
        let image = open(&path);
        let shrink = Resize {
            shrink: true,
            ..Resize::default()
        };
        image.resize(700, shrink).unwrap();
        assert_eq!(image.size(), 1024);
        image.resize(2048, Resize::default()).unwrap();
        drop(image);
        let (kept, rest) = (vec![7; 700], vec![0; 1348]);
        assert!(fs::read(&path).unwrap() == [kept, rest].concat());
    }

    #[test]
    fn qemu_reads_what_we_write() {
        let (_directory, path) = directory();
        let file = new_file(&path);
        create(&file, 1 << 20, Preallocation::Off).unwrap();
        let image = Image::open(Arc::new(file), Access::WRITE).unwrap();
        assert!(image.info().zero_init);
        image.write_at(&vec![0x5a; 70_000], 1234).unwrap();
        image.zero_at(2000, 5000, ZeroMode::Unmap).unwrap();
        image.flush().unwrap();
        drop(image);
        assert!(!open(&path).info().zero_init);
        let reads = [
            "read -P 0 0 1234",
            "read -P 0x5a 1234 766",
            "read -P 0 2000 5000",
            "read -P 0x5a 7000 64234",
            "read -P 0 71234 977342",
        ];
        for read in reads {
            let printed = run("qemu-io", &["-r", "-f", "raw", "-c", read, text(&path)]);
            assert!(!printed.contains("failed"), "{read}: {printed}");
        }
    }

    #[test]
    fn preallocation_reserves_or_writes_the_whole() {
        let mount = Mount::ext4(16 << 20);
        for (preallocation, allocated, data) in [
            (Preallocation::Off, 0, false),
            (Preallocation::Falloc, 1 << 20, false),
            (Preallocation::Full, 1 << 20, true),
        ] {
            let file = new_file(&mount.path().join(format!("{preallocation:?}")));
            create(&file, (1 << 20) - 3, preallocation).unwrap();
            let size = file.len().unwrap();
            assert_eq!(
                (size, file.allocated().unwrap()),
                (1 << 20, Some(allocated)),
                "{preallocation:?}"
            );
            assert_eq!(file.host_extent(0, size).unwrap().data, data, "{preallocation:?}");
        }
    }

    #[test]
    fn metadata_is_refused_by_name_before_anything_is_done() {
        let (_directory, path) = directory();
        let file = new_file(&path);
        file.write_all_at(b"old", 0).unwrap();
        let error = create(&file, 1 << 20, Preallocation::Metadata).unwrap_err();
        assert_eq!((error.kind(), file.len().unwrap()), (ErrorKind::InvalidInput, 3));
        assert_eq!(
            create(&file, u64::MAX, Preallocation::Off).unwrap_err().kind(),
            ErrorKind::Unsupported
        );
    }

    #[test]
    fn resize_asks_before_it_cuts_and_grows_with_zeros() {
        let (_directory, path) = directory();
        fs::write(&path, vec![9; 4096]).unwrap();
        let image = open(&path);
        let shrink = Resize {
            shrink: true,
            ..Resize::default()
        };
        assert_eq!(
            image.resize(1024, Resize::default()).unwrap_err().kind(),
            ErrorKind::InvalidInput
        );
        assert_eq!((image.size(), fs::metadata(&path).unwrap().len()), (4096, 4096));
        image.resize(1024, shrink).unwrap();
        image.resize(2001, Resize::default()).unwrap();
        let mut bytes = [0xee; 2048];
        image.read_at(&mut bytes, 0).unwrap();
        assert!(bytes[..1024] == [9; 1024] && bytes[1024..] == [0; 1024]);
        assert_eq!((image.size(), fs::metadata(&path).unwrap().len()), (2048, 2048));
    }

    #[test]
    fn growing_that_fails_leaves_the_image_as_it_was() {
        let mount = Mount::tmpfs(1 << 20);
        let path = mount.path().join("disk.raw");
        fs::write(&path, [9; 4096]).unwrap();
        let image = open(&path);
        for preallocation in [Preallocation::Falloc, Preallocation::Full] {
            let how = Resize {
                preallocation,
                ..Resize::default()
            };
            assert_eq!(image.resize(2 << 20, how).unwrap_err().kind(), ErrorKind::NoSpace);
            assert_eq!((image.size(), fs::metadata(&path).unwrap().len()), (4096, 4096));
        }
    }

    #[test]
    fn a_block_device_holds_images_up_to_its_length() {
        let backing = tempfile::NamedTempFile::new().unwrap();
        backing.as_file().set_len(1 << 20).unwrap();
        let device = Loop::over(backing.path(), 512);
        let file = Arc::new(OpenOptions::new().write(true).open(device.path()).unwrap());
        create(&*file, 1 << 20, Preallocation::Full).unwrap();
        let error = create(&*file, (1 << 20) + 1, Preallocation::Off).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        let image = Image::open(file, Access::WRITE).unwrap();
        assert_eq!(image.size(), 1 << 20);
        assert_eq!(
            image.resize(2 << 20, Resize::default()).unwrap_err().kind(),
            ErrorKind::Unsupported
        );
    }

    #[test]
    fn read_only_is_read_only_and_nothing_lies_below() {
        let (_directory, path) = directory();
        fs::write(&path, [1; 512]).unwrap();
        let storage: Arc<dyn Storage> = Arc::new(File::open(&path).unwrap());
        let open = |backing| Raw.open(storage.clone(), None, Access::READ, backing, Keys::None);
        let image = open(Backing::None).unwrap();
        let results = [
            image.write_at(&[0], 0),
            image.zero_at(0, 1, ZeroMode::Unmap),
            image.discard_at(0, 1),
            image.resize(0, Resize::default()),
        ];
        assert!(
            results
                .into_iter()
                .all(|result| result.unwrap_err().kind() == ErrorKind::ReadOnly)
        );
        assert!(image.backing().is_none() && image.backing_reference().is_none());
        assert!(image.info().read_only && !Raw.probe(b"QFI\xfb"));
        assert_eq!(
            open(Backing::Device(image)).unwrap_err().kind(),
            ErrorKind::InvalidInput
        );
        let data_file = Raw.open(
            storage.clone(),
            Some(storage.clone()),
            Access::READ,
            Backing::None,
            Keys::None,
        );
        assert_eq!(data_file.unwrap_err().kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn a_part_of_a_file_is_a_disk_and_nothing_beside_it_is_touched() {
        let (_directory, path) = directory();
        fs::write(&path, vec![5; 10_000]).unwrap();
        let part = |start, len| {
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            Image::open_part(Arc::new(file), Access::WRITE, start, len)
        };
        let image = part(700, Some(1024)).unwrap();
        image.write_at(&[6; 1000], 0).unwrap();
        image.zero_at(1000, 24, ZeroMode::Unmap).unwrap();
        let mut bytes = [1; 30];
        image.read_at(&mut bytes, 994).unwrap();
        assert!(bytes[..6] == [6; 6] && bytes[6..] == [0; 24]);
        image.read_at(&mut [0], 1024).unwrap_err();
        assert_eq!(image.extent_at(24, 100).unwrap().host, Some(724));
        assert_eq!(
            image.resize(2048, Resize::default()).unwrap_err().kind(),
            ErrorKind::Unsupported
        );
        drop(image);
        let all = fs::read(&path).unwrap();
        assert!(all[..700] == [5; 700] && all[1724..] == [5; 8276]);

        let rest = part(9000, None).unwrap();
        assert_eq!(rest.size(), 1024);
        rest.resize(4096, Resize::default()).unwrap();
        assert_eq!((rest.size(), fs::metadata(&path).unwrap().len()), (4096, 13_096));
        drop(rest);
        assert_eq!(part(13_096, None).unwrap().size(), 0);
        for (start, len) in [
            (13_097, None),
            (0, Some(13_312)),
            (u64::MAX, Some(512)),
            (1, Some(500)),
        ] {
            assert_eq!(part(start, len).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn an_empty_file_is_an_empty_disk() {
        let (_directory, path) = directory();
        fs::write(&path, "").unwrap();
        let image = open(&path);
        assert_eq!(image.size(), 0);
        image.read_at(&mut [], 0).unwrap();
        image.zero_at(0, 0, ZeroMode::Allocate).unwrap();
        image.extent_at(0, 1).unwrap_err();
    }
}
