//! The dirty bitmaps of an open image.
//!
//! In the file, bitmaps are in one of two states:
//!
//! - *saved*: the directory describes them as they are. So they are when the image is opened and after it is closed,
//!   and so they are brought before anything is done to them or to the size of the disk;
//! - *tracked*: before the first change of the disk, the enabled ones are read into memory, and marked in use in the
//!   directory, durably. From then on every change sets bits in memory and nowhere else. Whoever finds them so, after
//!   a crash, knows that they cannot be trusted. Bitmaps that are not enabled stay as they are, valid.
//!
//! From one to the other, nothing that the file names is written over. New data, tables and a new directory go to new
//! clusters; when all of it is durable, the header names the new directory, in one sector; and only then are the
//! old clusters given back ([`switch`]). Whatever changes bitmaps goes this way: saving them, an [edit](BitmapEdit),
//! a new size of the disk. Marks of use alone are set in place, since each is a few bytes in one sector.
//!
//! What is inconsistent, because it was found in use, is left as it is: only removing it is possible.

mod edit;
mod switch;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use block::{BlockDevice, Error, Result, Storage, escape};

pub use edit::BitmapEdit;
pub(super) use switch::NewDirectory;
use switch::{Content, Draft};

use super::{Image, Writer};
use crate::address::ClusterIndex;
use crate::bitmap::bits::DirtyBits;
use crate::bitmap::directory::{self, Entry};
use crate::bitmap::table::Room;
use crate::bitmap::{self, Bitmap};
use crate::header::Header;

/// Most bits of all enabled bitmaps together: 4 GiB of memory, if all of them are needed.
const MAX_TRACKED_BITS: u64 = 1 << 35;

/// The bitmaps of an image that is open for writing.
#[derive(Debug, Default)]
pub(super) struct Bitmaps {
    /// As they are when they are saved: those that are tracked now are not in use by that.
    entries: Vec<Entry>,
    /// Host clusters of the directory.
    directory: Range<u64>,
    tracked: Vec<Tracked>,
}

/// An enabled bitmap, in memory while the disk changes.
#[derive(Debug)]
struct Tracked {
    /// Its entry.
    index: usize,
    bits: Arc<DirtyBits>,
}

impl Bitmaps {
    /// Reads the directory.
    pub(super) fn read(storage: &dyn Storage, header: &Header) -> Result<Self> {
        let entries = directory::read(storage, header)?;
        let directory = match header.extensions.bitmaps {
            Some(extension) if !entries.is_empty() => {
                let first = header.geometry.cluster_of(extension.directory_offset).0;
                first..first + header.geometry.clusters(extension.directory_size)
            }
            _ => 0..0,
        };
        Ok(Self {
            entries,
            directory,
            tracked: Vec::new(),
        })
    }

    pub(super) fn list(&self) -> impl Iterator<Item = &Bitmap> {
        self.entries.iter().map(|entry| &entry.bitmap)
    }

    /// Host clusters of the directory.
    pub(super) fn directory(&self) -> Range<u64> {
        self.directory.clone()
    }

    /// Sets the bits of a range that is about to change. It lies on the disk.
    #[inline]
    pub(super) fn mark(&self, offset: u64, len: u64) {
        for tracked in &self.tracked {
            tracked.bits.set(offset, len);
        }
    }

    /// Refuses to change the disk's size under a bitmap whose bits would then be for another one.
    pub(super) fn check_resizable(&self) -> Result<()> {
        self.list().try_for_each(Bitmap::check_usable)
    }

    fn index_of(&self, name: &str) -> Result<usize> {
        self.list()
            .position(|bitmap| bitmap.name == name)
            .ok_or_else(|| not_found(name))
    }
}

fn not_found(name: &str) -> Error {
    Error::invalid(format!("the image has no bitmap '{}'", escape(name)))
}

impl Image {
    /// The image's bitmaps, in the order of the directory; none if they are not marked consistent.
    ///
    /// # Errors
    /// As [`Bitmap::list`].
    pub fn bitmaps(&self) -> Result<Vec<Bitmap>> {
        match &self.writer {
            Some(writer) => Ok(writer.bitmaps().list().cloned().collect()),
            None => Bitmap::list(&self.storage, &self.locked_header()),
        }
    }

    /// What a bitmap says is dirty, as of now: writes that come later do not change it.
    ///
    /// # Errors
    /// `InvalidInput` for a bitmap that is not there, `Unsupported` for one that is inconsistent or has unknown extra
    /// data; `Corrupt`, `Io`.
    pub fn dirty_bits(&self, name: &str) -> Result<DirtyBits> {
        let bits = if let Some(writer) = &self.writer {
            self.dirty_bits_in(&writer.bitmaps(), name)
        } else {
            Bitmaps::read(&self.storage, &self.header())
                .and_then(|bitmaps| self.dirty_bits_in(&bitmaps, name))
        };
        bits.map_err(|error| error.with_path_of(self.storage.path()))
    }

    /// Hands every bitmap to `each`, with what it says is dirty as [`dirty_bits`](Self::dirty_bits) has it. Their directory is read
    /// once, where asking for each by name reads it every time.
    ///
    /// # Errors
    /// `Corrupt`, `Io`; what `each` returns.
    pub fn each_bitmap(&self, mut each: impl FnMut(&Bitmap, Result<DirtyBits>) -> Result<()>) -> Result<()> {
        let mut all = |bitmaps: &Bitmaps| {
            let mut room = self.room()?;
            let mut entries = bitmaps.entries.iter().enumerate();
            entries.try_for_each(|(index, entry)| {
                each(&entry.bitmap, self.dirty_bits_at(bitmaps, index, &mut room))
            })
        };
        let done = match &self.writer {
            Some(writer) => all(&writer.bitmaps()),
            None => Bitmaps::read(&self.storage, &self.header()).and_then(|bitmaps| all(&bitmaps)),
        };
        done.map_err(|error| error.with_path_of(self.storage.path()))
    }

    fn dirty_bits_in(&self, bitmaps: &Bitmaps, name: &str) -> Result<DirtyBits> {
        self.dirty_bits_at(bitmaps, bitmaps.index_of(name)?, &mut self.room()?)
    }

    fn room(&self) -> Result<Room> {
        Ok(Room::new(self.storage.len()?, self.geometry))
    }

    fn dirty_bits_at(&self, bitmaps: &Bitmaps, index: usize, room: &mut Room) -> Result<DirtyBits> {
        match bitmaps.tracked.iter().find(|tracked| tracked.index == index) {
            Some(tracked) => Ok(DirtyBits::clone(&tracked.bits)),
            None => self.load_bits(&bitmaps.entries[index], room),
        }
    }

    fn load_bits(&self, entry: &Entry, room: &mut Room) -> Result<DirtyBits> {
        entry.bitmap.check_usable()?;
        let bits = DirtyBits::load(&self.storage, &entry.bitmap, self.size(), self.geometry, room);
        bits.map_err(|error| {
            let name = escape(&entry.bitmap.name);
            error.with_hint(format!(
                "bitmap '{name}' cannot be read; remove it with `imgtool bitmap --remove`"
            ))
        })
    }

    /// From saved to tracked.
    pub(super) fn track_bitmaps(&self, bitmaps: &mut Bitmaps) -> Result<()> {
        let mut tracked = Vec::new();
        let mut bits_left = MAX_TRACKED_BITS;
        let mut room = self.room()?;
        for (index, entry) in bitmaps.entries.iter().enumerate() {
            if !entry.bitmap.auto || entry.bitmap.in_use {
                continue;
            }
            let bits = bitmap::bits(self.size(), entry.bitmap.granularity_bits);
            bits_left = bits_left.checked_sub(bits).ok_or_else(too_much)?;
            let bits = Arc::new(self.load_bits(entry, &mut room)?);
            tracked.push(Tracked { index, bits });
        }
        if tracked.is_empty() {
            return Ok(());
        }
        let start = self.geometry.offset_of(ClusterIndex(bitmaps.directory.start));
        let flags: Vec<_> = directory::flags_in_use(&bitmaps.entries).collect();
        for Tracked { index, .. } in &tracked {
            let (at, flags) = flags[*index];
            self.storage.write_all_at(&flags, (start + at).0)?;
        }
        self.storage.sync_data()?;
        bitmaps.tracked = tracked;
        Ok(())
    }

    /// From tracked to saved. Nobody is changing the disk. What fails can be tried again; until it succeeds, the
    /// bitmaps stay marked in use.
    pub(super) fn save_bitmaps(&self, writer: &Writer, bitmaps: &mut Bitmaps) -> Result<()> {
        if bitmaps.tracked.is_empty() {
            return Ok(());
        }
        let mut drafts = bitmaps.kept();
        for Tracked { index, bits } in &bitmaps.tracked {
            if bits.is_changed() {
                drafts[*index].content = Content::New(Arc::clone(bits));
            }
        }
        let directory = self.write_directory(writer, bitmaps, drafts)?;
        self.switch_directory(writer, bitmaps, Some(directory), |_| ())?;
        bitmaps.tracked.clear();
        writer.begun.store(false, Ordering::Release);
        Ok(())
    }

    /// A directory with the bitmaps as they are to be on a disk of `size` bytes, if that makes any difference.
    pub(super) fn resize_bitmaps(
        &self,
        writer: &Writer,
        bitmaps: &Bitmaps,
        size: u64,
    ) -> Result<Option<NewDirectory>> {
        let old = self.size();
        let (mut drafts, mut room) = (bitmaps.kept(), self.room()?);
        for (draft, entry) in drafts.iter_mut().zip(&bitmaps.entries) {
            let bits = |size| bitmap::bits(size, entry.bitmap.granularity_bits);
            if bits(old) != bits(size) {
                draft.content = Content::New(Arc::new(self.load_bits(entry, &mut room)?.resized(size)?));
            }
        }
        self.write_if_changed(writer, bitmaps, drafts)
    }

    /// A directory for a disk of `size` bytes, all of which has changed, if that makes any difference: enabled bitmaps
    /// say that everything is dirty, others what they said.
    pub(super) fn dirty_all(
        &self,
        writer: &Writer,
        bitmaps: &Bitmaps,
        size: u64,
    ) -> Result<Option<NewDirectory>> {
        let old = self.size();
        let (mut drafts, mut room) = (bitmaps.kept(), self.room()?);
        for (draft, entry) in drafts.iter_mut().zip(&bitmaps.entries) {
            let granularity_bits = entry.bitmap.granularity_bits;
            let bits = |size| bitmap::bits(size, granularity_bits);
            if entry.bitmap.auto && !entry.bitmap.in_use {
                entry.bitmap.check_usable()?;
                let all = DirtyBits::all(size, granularity_bits, self.geometry)?;
                draft.content = Content::New(Arc::new(all));
            } else if bits(old) != bits(size) {
                draft.content = Content::New(Arc::new(self.load_bits(entry, &mut room)?.resized(size)?));
            }
        }
        self.write_if_changed(writer, bitmaps, drafts)
    }

    fn write_if_changed(
        &self,
        writer: &Writer,
        bitmaps: &Bitmaps,
        drafts: Vec<Draft>,
    ) -> Result<Option<NewDirectory>> {
        if drafts.iter().all(Draft::is_kept) {
            return Ok(None);
        }
        self.write_directory(writer, bitmaps, drafts).map(Some)
    }
}

fn too_much() -> Error {
    Error::unsupported("the enabled bitmaps would take more than 4 GiB of memory")
        .with_hint("disable some of them with `imgtool bitmap --disable`")
}
