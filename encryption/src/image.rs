//! A disk in LUKS's own form: header and key material, and behind them the sectors of the disk, each encrypted by itself under
//! the number that it has on the disk. So cryptsetup lays out block devices, and QEMU's `luks` files.
//!
//! The disk reaches to the end of the sector that the file ends in. A hole in the file is no hole of the disk: what the host says
//! are zeros decrypts to noise. So all of the disk is data, a new one reads as noise until it is written to, zeros are written as
//! any other data, and nothing is given back to the host when the guest discards it.

use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use block::{
    Access, Backing, BackingReference, BlockDevice, DeviceInfo, Error, ErrorKind, Extent, ExtentState,
    Format, Keys, Overlay, Passphrase, Preallocation, References, Resize, Result, Storage, ZeroMode,
};

use crate::cipher::SECTOR;
use crate::key_area::{KeyArea, KeySlots};
use crate::luks::Luks;
use crate::sector_io::{SectorIo, read_in_sectors};
use crate::slots::{Iterations, LuksOptions, MasterKey};

const NAME: &str = "luks";

/// Bytes of zeros that are encrypted and written at once.
static ZEROS: [u8; 128 << 10] = [0; 128 << 10];

/// In steps of so many bytes what lies in front of the data is left a hole where it is zero.
const HOLE: usize = 4096;

/// The format, for opening chains.
#[derive(Clone, Copy, Debug, Default)]
pub struct LuksFormat;

impl Format for LuksFormat {
    fn name(&self) -> &'static str {
        NAME
    }

    /// For version 1, which is all that is read here: what begins with another one is left to those who take any bytes.
    fn probe(&self, head: &[u8]) -> bool {
        Luks::probe(head) && head[6..].starts_with(&[0, 1])
    }

    fn references(&self, storage: &dyn Storage) -> Result<References> {
        read_luks(storage)?;
        Ok(References {
            encrypted: true,
            ..References::default()
        })
    }

    fn open(
        &self,
        storage: Arc<dyn Storage>,
        data_file: Option<Arc<dyn Storage>>,
        access: Access,
        backing: Backing,
        keys: Keys,
    ) -> Result<Arc<dyn Overlay>> {
        let refused = match (data_file, backing) {
            (Some(_), _) => "a luks image has no data file",
            (None, Backing::Device(_)) => "a luks image has no backing file",
            (None, Backing::None | Backing::Detached) => {
                return Ok(Arc::new(Image::open(storage, access, &keys)?));
            }
        };
        Err(Error::invalid(refused).with_path_of(storage.path()))
    }
}

/// The header of the disk in `storage`; reading it takes no key.
///
/// # Errors
/// As [`Luks::parse`]; `Corrupt` for a file that ends in front of the data; `Io`.
pub fn read_luks(storage: &dyn Storage) -> Result<Luks> {
    let read = || {
        let (luks, len) = (KeyArea::new(storage, 0).read()?, storage.len()?);
        if luks.payload_offset() > len {
            let message = format!(
                "the data starts at byte {}, behind the end of the file, which has {len}",
                luks.payload_offset()
            );
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        Ok(luks)
    };
    read().map_err(|error: Error| error.with_path_of(storage.path()))
}

/// Bytes of the disk behind a header in a storage of `len` bytes.
///
/// # Errors
/// `Unsupported` for more than a file can hold.
pub fn disk_size(luks: &Luks, len: u64) -> Result<u64> {
    Ok(checked_sectors(len)?.saturating_sub(luks.payload_offset()))
}

/// A disk in LUKS's own form, open.
#[derive(Debug)]
pub struct Image {
    storage: Arc<dyn Storage>,
    write: bool,
    /// `None` in a disk that was opened without a key.
    unlocked: Option<(SectorIo, MasterKey)>,
    /// Where the data starts in the storage, a multiple of sectors.
    payload: u64,
    /// Bytes, a multiple of sectors.
    size: AtomicU64,
    /// Held while the size or the key slots change.
    changing: Mutex<()>,
}

impl Image {
    /// Opens the disk in `storage`.
    ///
    /// # Errors
    /// As [`read_luks`]; `Unsupported` for a cipher or hash that is not known; `Key` for keys that do not open it.
    pub fn open(storage: Arc<dyn Storage>, access: Access, keys: &Keys) -> Result<Self> {
        let luks = read_luks(&*storage)?;
        let unlocked = unlock(&*storage, &luks, keys);
        let unlocked = unlocked.map_err(|error| error.with_path_of(storage.path()))?;
        Ok(Self {
            write: access.write,
            unlocked,
            payload: luks.payload_offset(),
            size: AtomicU64::new(disk_size(&luks, storage.len()?)?),
            changing: Mutex::new(()),
            storage,
        })
    }

    fn sectors(&self) -> Result<&SectorIo> {
        let (sectors, _) = self.unlocked.as_ref().ok_or_else(|| self.named(locked()))?;
        Ok(sectors)
    }

    fn named(&self, error: Error) -> Error {
        error.with_path_of(self.path())
    }

    fn check(&self, op: &str, offset: u64, len: u64) -> Result<()> {
        let size = self.size();
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(()),
            _ => Err(self.named(Error::out_of_bounds(op, offset, len, size))),
        }
    }

    fn check_writable(&self, op: &str) -> Result<()> {
        if self.write {
            Ok(())
        } else {
            Err(self.named(Error::read_only(op)))
        }
    }

    /// Decrypts what lies at `offset`, in bounds.
    fn read(&self, sectors: &SectorIo, buf: &mut [u8], offset: u64) -> Result<()> {
        read_in_sectors(buf, offset, |buf, at| {
            self.storage.read_exact_at(buf, self.payload + at)?;
            sectors.decrypt(at / SECTOR as u64, buf);
            Ok(())
        })
    }

    fn write_zeros(&self, range: Range<u64>) -> Result<()> {
        write_zeros(self.sectors()?, &*self.storage, self.payload, range)
    }

    /// Writes zeros behind the end of the disk, in a storage that can grow. They make it longer: its length is the disk's size, and
    /// what ends this half-way leaves a disk that is shorter than asked for, and has no noise at its end.
    fn grow_with_zeros(&self, added: Range<u64>) -> Result<()> {
        // No longer yet than the disk; refused by devices, which would take writes.
        self.storage.set_len(self.payload + added.start)?;
        self.write_zeros(added)
    }

    /// [Changes the size](BlockDevice::resize) without writing what is added: it reads as noise until it is written to, as on a
    /// new disk. But with [`Preallocation::Full`], where it reads as zeros.
    ///
    /// # Errors
    /// As there.
    pub fn resize_unwritten(&self, size: u64, how: Resize) -> Result<()> {
        self.check_writable("resize")?;
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let (old, new) = (self.size(), checked_sectors(size).map_err(|e| self.named(e))?);
        check_preallocation(how.preallocation).map_err(|error| self.named(error))?;
        let len = new.checked_add(self.payload);
        let len = len.filter(|len| i64::try_from(*len).is_ok());
        let len = len.ok_or_else(|| self.named(too_large(new)))?;
        if new < old && !how.shrink {
            let message = format!(
                "shrinking from {old} to {new} bytes would cut off {} bytes",
                old - new
            );
            let hint = "allow it to shrink, once nothing beyond the new end is needed";
            return Err(self.named(Error::invalid(message).with_hint(hint)));
        }
        let before = self.storage.len()?;
        let laid_out = match how.preallocation {
            Preallocation::Full if new > old => self.grow_with_zeros(old..new),
            Preallocation::Falloc if new > old => {
                self.storage.set_len(len)?;
                self.storage.allocate(self.payload + old, new - old)
            }
            _ => self.storage.set_len(len),
        };
        if let Err(error) = laid_out {
            // The first error says what is wrong; that the file could not be put back adds nothing to it.
            let _ = self.storage.set_len(before);
            return Err(error);
        }
        self.size.store(new, Ordering::Release);
        Ok(())
    }
}

fn unlock(storage: &dyn Storage, luks: &Luks, keys: &Keys) -> Result<Option<(SectorIo, MasterKey)>> {
    let passphrases = match keys {
        Keys::Locked => return Ok(None),
        Keys::None => &[][..],
        Keys::Passphrases(passphrases) => passphrases,
    };
    if passphrases.is_empty() {
        let message = "the disk is encrypted with LUKS, and no passphrase was given";
        return Err(Error::new(ErrorKind::Key, message).with_hint("open it with its passphrase"));
    }
    let key = KeyArea::new(storage, 0).unlock(luks, passphrases)?;
    let Some(key) = key else {
        let message = "the passphrase opens none of the disk's key slots";
        return Err(Error::new(ErrorKind::Key, message));
    };
    Ok(Some((SectorIo::new(luks.cipher(&key)?), key)))
}

fn locked() -> Error {
    let message = "the disk is encrypted, and was opened without a passphrase";
    Error::new(ErrorKind::Key, message)
}

/// Encrypts and writes zeros to a range of a disk whose data starts at byte `payload` of the storage.
fn write_zeros(sectors: &SectorIo, storage: &dyn Storage, payload: u64, range: Range<u64>) -> Result<()> {
    let mut at = range.start;
    while at < range.end {
        // Each piece ends with a page, since direct I/O writes whole pages and cuts off afterwards what is too long.
        let len = (range.end - at).min(ZEROS.len() as u64 - (payload + at) % HOLE as u64);
        let zeros = [IoSlice::new(&ZEROS[..len as usize])];
        sectors.write(storage, &zeros, payload + at, at / SECTOR as u64)?;
        at += len;
    }
    Ok(())
}

impl BlockDevice for Image {
    fn info(&self) -> DeviceInfo {
        let mut info = DeviceInfo::new(NAME);
        info.read_only = !self.write;
        info.encrypted = true;
        info.alignment = self.storage.alignment().offset.max(SECTOR as u32);
        info
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.check("read", offset, buf.len() as u64)?;
        self.read(self.sectors()?, buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.write_vectored_at(&[IoSlice::new(buf)], offset)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], mut offset: u64) -> Result<()> {
        self.check("read", offset, bufs.iter().map(|buf| buf.len() as u64).sum())?;
        let sectors = self.sectors()?;
        for buf in bufs {
            self.read(sectors, buf, offset)?;
            offset += buf.len() as u64;
        }
        Ok(())
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> Result<()> {
        self.check_writable("write")?;
        self.check("write", offset, bufs.iter().map(|buf| buf.len() as u64).sum())?;
        let (at, number) = (self.payload + offset, offset / SECTOR as u64);
        self.sectors()?.write(&*self.storage, bufs, at, number)
    }

    fn zero_at(&self, offset: u64, len: u64, _: ZeroMode) -> Result<()> {
        self.check_writable("write zeros")?;
        self.check("write zeros", offset, len)?;
        self.write_zeros(offset..offset + len)
    }

    /// Nothing is given back: a hole would read as noise, and show which sectors are in use.
    fn discard_at(&self, offset: u64, len: u64) -> Result<()> {
        self.check_writable("discard")?;
        self.check("discard", offset, len)
    }

    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        let rest = self.size().saturating_sub(offset).min(len);
        if rest == 0 {
            return Err(self.named(Error::out_of_bounds("map", offset, len, self.size())));
        }
        Ok(Extent {
            offset,
            len: rest,
            state: ExtentState::Data,
            depth: 0,
            host: None,
        })
    }

    fn flush(&self) -> Result<()> {
        self.storage.sync_data()
    }

    /// What is added is written, since it would read as noise otherwise: see [`Image::resize_unwritten`].
    fn resize(&self, size: u64, how: Resize) -> Result<()> {
        let preallocation = match how.preallocation {
            Preallocation::Off | Preallocation::Falloc => Preallocation::Full,
            other => other,
        };
        self.resize_unwritten(size, Resize { preallocation, ..how })
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

impl KeySlots for Image {
    fn luks(&self) -> Result<Option<Luks>> {
        read_luks(&*self.storage).map(Some)
    }

    fn add_key(&self, passphrase: &Passphrase, slot: Option<usize>, iterations: Iterations) -> Result<usize> {
        self.change_keys("add a key", |area, luks| {
            let (_, key) = self.unlocked.as_ref().ok_or_else(locked)?;
            area.add_key(luks, key, passphrase, slot, iterations)
        })
    }

    fn remove_key(&self, slot: usize, even_the_last: bool) -> Result<()> {
        self.change_keys("remove a key", |area, luks| {
            area.remove_key(luks, slot, even_the_last)
        })
    }

    fn slots_opened_by(&self, passphrase: &Passphrase) -> Result<Vec<usize>> {
        let luks = read_luks(&*self.storage)?;
        KeyArea::new(&*self.storage, 0).slots_opened_by(&luks, passphrase)
    }
}

impl Image {
    /// Runs a change of the key slots while nobody else changes any.
    fn change_keys<T>(
        &self,
        op: &str,
        change: impl FnOnce(KeyArea<'_>, &mut Luks) -> Result<T>,
    ) -> Result<T> {
        self.check_writable(op)?;
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut luks = read_luks(&*self.storage)?;
        let changed = change(KeyArea::new(&*self.storage, 0), &mut luks);
        changed.map_err(|error| self.named(error))
    }
}

/// Makes `storage` an encrypted disk of `size` bytes, rounded up to whole sectors, that reads as noise, or as zeros with
/// [`Preallocation::Full`]. A block device only has to be long enough. The header is written last, after
/// the keys that it describes and the zeros that are promised.
///
/// # Errors
/// `InvalidInput` for a preallocation that such disks don't have, a block device that is too short, and as [`Luks::format`];
/// `Unsupported` for a size that no file can have; `NoSpace`, `Io`.
pub fn create(
    storage: &dyn Storage,
    size: u64,
    options: &LuksOptions,
    passphrase: &Passphrase,
    preallocation: Preallocation,
) -> Result<()> {
    let named = |error: Error| error.with_path_of(storage.path());
    check_preallocation(preallocation).map_err(named)?;
    let end = checked_sectors(size).and_then(|size| {
        let end = size.checked_add(options.area_len());
        end.filter(|end| i64::try_from(*end).is_ok())
            .ok_or_else(|| too_large(size))
    });
    let end = end.map_err(named)?;
    let (luks, area, key) = Luks::format_with_key(options, passphrase.as_bytes())?;
    let fresh = make_room(storage, end).map_err(named)?;
    for (number, block) in area.chunks(HOLE).enumerate().skip(1) {
        if !fresh || !block::is_zero(block) {
            storage.write_all_at(block, (number * HOLE) as u64)?;
        }
    }
    let payload = luks.payload_offset();
    match preallocation {
        Preallocation::Off | Preallocation::Metadata => {}
        Preallocation::Falloc => storage.allocate(payload, end - payload)?,
        Preallocation::Full => {
            let sectors = SectorIo::new(luks.cipher(&key)?);
            write_zeros(&sectors, storage, payload, 0..end - payload)?;
        }
    }
    storage.write_all_at(&area[..HOLE], 0)
}

/// Makes the storage `len` bytes long; whether it is all zeros then.
fn make_room(storage: &dyn Storage, len: u64) -> Result<bool> {
    // Not for a file that is empty already: ext4 writes a file out when it is closed, if it was cut to nothing before.
    let emptied = if storage.is_empty()? {
        Ok(())
    } else {
        storage.set_len(0)
    };
    match emptied {
        Ok(()) => storage.set_len(len).map(|()| true),
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            let there = storage.len()?;
            if there < len {
                let message = format!("the device has {there} bytes, too few for an image of {len}");
                return Err(Error::invalid(message));
            }
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

fn check_preallocation(preallocation: Preallocation) -> Result<()> {
    match preallocation {
        Preallocation::Metadata => Err(Error::invalid("a luks image has no metadata to preallocate")
            .with_hint("use preallocation off, falloc or full")),
        Preallocation::Off | Preallocation::Falloc | Preallocation::Full => Ok(()),
    }
}

/// `size` rounded up to sectors; refused where that is no offset in a file.
fn checked_sectors(size: u64) -> Result<u64> {
    match size.checked_next_multiple_of(SECTOR as u64) {
        Some(whole) if i64::try_from(whole).is_ok() => Ok(whole),
        _ => Err(too_large(size)),
    }
}

fn too_large(size: u64) -> Error {
    Error::unsupported(format!("a disk of {size} bytes is larger than any file"))
}

#[cfg(test)]
mod tests;
