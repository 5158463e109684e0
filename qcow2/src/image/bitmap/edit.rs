//! Changing an image's bitmaps: any number of changes, made durable as one.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use block::{BlockDevice, Error, Result, Storage, escape};

use super::switch::{Content, Draft};
use super::{Bitmaps, not_found};
use crate::Bitmap;
use crate::address::HostOffset;
use crate::bitmap::bits::DirtyBits;
use crate::bitmap::directory::Entry;
use crate::bitmap::{GRANULARITY_BITS, MAX_BITMAPS, MAX_NAME};
use crate::header::Version;
use crate::image::Image;

/// Least and greatest log2 of a granularity that is not stated.
const DEFAULT_GRANULARITY_BITS: (u32, u32) = (12, 16);

impl Image {
    /// Changes the image's bitmaps: what `edit` does to them takes effect in the file as one, durably, when it
    /// returns `Ok`; if it fails, nothing is changed. Writes of other threads wait meanwhile.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use block::{Access, BlockDevice, MemStorage};
    /// # use qcow2::{CreateOptions, Image, OpenOptions};
    /// # let storage = Arc::new(MemStorage::new());
    /// # qcow2::create(&*storage, &CreateOptions { size: 1 << 30, ..CreateOptions::default() })?;
    /// # let options = OpenOptions { access: Access::WRITE, ..OpenOptions::default() };
    /// let image = Image::open(storage, options)?;
    /// image.edit_bitmaps(|bitmaps| bitmaps.add("since monday", None, true))?;
    /// image.write_at(&[1; 100], 1 << 20)?;
    /// let dirty: Vec<_> = image.dirty_bits("since monday")?.ranges().collect();
    /// assert_eq!(dirty, [1 << 20..(1 << 20) + 65_536]);
    /// // A new period starts with a new bitmap, in the same instant in which the old one stops.
    /// image.edit_bitmaps(|bitmaps| {
    ///     bitmaps.disable("since monday")?;
    ///     bitmaps.add("since tuesday", None, true)
    /// })?;
    /// # image.close()?;
    /// # Ok::<(), block::Error>(())
    /// ```
    ///
    /// # Errors
    /// What `edit` returns; `ReadOnly`, `NoSpace`, `Corrupt`, `Io`; `InvalidInput` for more bitmaps than there may be.
    pub fn edit_bitmaps(&self, edit: impl FnOnce(&mut BitmapEdit<'_>) -> Result<()>) -> Result<()> {
        let writer = self.writer("change bitmaps")?;
        let mut bitmaps = writer.bitmaps_mut();
        let edited = (|| {
            self.save_bitmaps(writer, &mut bitmaps)?;
            let mut changes = BitmapEdit {
                image: self,
                stored: &bitmaps,
                drafts: bitmaps.kept(),
                size: self.size(),
                changed: false,
            };
            edit(&mut changes)?;
            if !changes.changed {
                return Ok(());
            }
            self.clear_autoclear(writer)?;
            let drafts = changes.drafts;
            let directory = self.write_directory(writer, &bitmaps, drafts)?;
            self.switch_directory(writer, &mut bitmaps, Some(directory), |_| ())?;
            writer.begun.store(false, Ordering::Release);
            Ok(())
        })();
        drop(bitmaps);
        edited.map_err(|error: Error| error.with_path_of(self.storage.path()))
    }
}

/// Changes of an image's bitmaps that are being made; see [`Image::edit_bitmaps`].
///
/// A bitmap that is inconsistent can only be [removed](Self::remove).
#[derive(Debug)]
pub struct BitmapEdit<'a> {
    image: &'a Image,
    stored: &'a Bitmaps,
    drafts: Vec<Draft>,
    /// Of the disk, in bytes.
    size: u64,
    changed: bool,
}

impl BitmapEdit<'_> {
    /// The bitmaps as they are to be. Where their tables will lie is not known.
    pub fn list(&self) -> impl Iterator<Item = &Bitmap> {
        self.drafts.iter().map(|draft| &draft.entry.bitmap)
    }

    /// Adds a bitmap in which nothing is dirty. `granularity` is the bytes of the disk that a bit stands for, a power
    /// of two from 512 bytes to 2 GiB; that of the cluster size if it is not stated, but from 4 to 64 KiB. An `enabled`
    /// one records all writes from now on.
    ///
    /// # Errors
    /// `InvalidInput` for a name that is taken, empty or longer than 1023 bytes, and a granularity that cannot be or
    /// is too small for the disk's size; `Unsupported` in an image of version 2.
    pub fn add(&mut self, name: &str, granularity: Option<u64>, enabled: bool) -> Result<()> {
        self.check_new(name)?;
        let granularity_bits = if let Some(bytes) = granularity {
            granularity_bits(bytes)?
        } else {
            let (least, greatest) = DEFAULT_GRANULARITY_BITS;
            self.image.geometry.cluster_bits.clamp(least, greatest)
        };
        let bits = DirtyBits::clean(self.size, granularity_bits, self.image.geometry)?;
        let bitmap = Bitmap {
            name: name.to_owned(),
            granularity_bits,
            in_use: false,
            auto: enabled,
            extra_data_compatible: false,
            table_offset: HostOffset(0),
            table_entries: 0,
            extra_data_len: 0,
        };
        self.drafts.push(Draft {
            entry: Entry {
                bitmap,
                extra_data: Vec::new(),
            },
            content: Content::New(Arc::new(bits)),
        });
        self.changed = true;
        Ok(())
    }

    fn check_new(&self, name: &str) -> Result<()> {
        if self.image.locked_header().version < Version::V3 {
            let message = "an image of version 2 (compat=0.10) cannot have bitmaps";
            return Err(Error::unsupported(message)
                .with_hint("make it one of version 3 first: `imgtool amend -o compat=1.1`"));
        }
        let message = match name.len() {
            0 => "the name of a bitmap cannot be empty".to_owned(),
            len if len > MAX_NAME => {
                format!("the name of a bitmap can have {MAX_NAME} bytes, and this one has {len}")
            }
            _ if self.list().any(|bitmap| bitmap.name == name) => {
                format!("there is a bitmap '{}' already", escape(name))
            }
            _ if self.drafts.len() >= MAX_BITMAPS as usize => {
                format!("an image can have {MAX_BITMAPS} bitmaps at most")
            }
            _ => return Ok(()),
        };
        Err(Error::invalid(message))
    }

    /// Removes a bitmap, whatever its state.
    ///
    /// # Errors
    /// `InvalidInput` if it is not there.
    pub fn remove(&mut self, name: &str) -> Result<()> {
        let index = self.index_of(name)?;
        self.drafts.remove(index);
        self.changed = true;
        Ok(())
    }

    /// Makes a bitmap say that nothing is dirty.
    ///
    /// # Errors
    /// `InvalidInput` if it is not there, `Unsupported` if it is inconsistent or has unknown extra data.
    pub fn clear(&mut self, name: &str) -> Result<()> {
        let (size, geometry) = (self.size, self.image.geometry);
        let draft = self.usable(name)?;
        let granularity_bits = draft.entry.bitmap.granularity_bits;
        draft.content = Content::New(Arc::new(DirtyBits::clean(size, granularity_bits, geometry)?));
        self.changed = true;
        Ok(())
    }

    /// Makes a bitmap record all writes from now on.
    ///
    /// # Errors
    /// As [`clear`](Self::clear).
    pub fn enable(&mut self, name: &str) -> Result<()> {
        self.set_enabled(name, true)
    }

    /// Makes a bitmap stay as it is, whatever is written.
    ///
    /// # Errors
    /// As [`clear`](Self::clear).
    pub fn disable(&mut self, name: &str) -> Result<()> {
        self.set_enabled(name, false)
    }

    fn set_enabled(&mut self, name: &str, enabled: bool) -> Result<()> {
        let bitmap = &mut self.usable(name)?.entry.bitmap;
        let changed = bitmap.auto != enabled;
        bitmap.auto = enabled;
        self.changed |= changed;
        Ok(())
    }

    /// Makes dirty in a bitmap what is so in `source`, of this image or another.
    ///
    /// # Errors
    /// As [`clear`](Self::clear); `InvalidInput` if `source` is of a disk of another size; `Corrupt`, `Io`.
    pub fn merge(&mut self, name: &str, source: &DirtyBits) -> Result<()> {
        if source.size() != self.size {
            let message = format!(
                "a bitmap of a disk of {} bytes cannot be merged into '{}', which is of one of {}",
                source.size(),
                escape(name),
                self.size
            );
            return Err(Error::invalid(message));
        }
        let bits = self.dirty_bits(name)?;
        bits.absorb(source);
        self.usable(name)?.content = Content::New(Arc::new(bits));
        self.changed = true;
        Ok(())
    }

    /// What a bitmap says is dirty.
    ///
    /// # Errors
    /// As [`clear`](Self::clear); `Corrupt`, `Io`.
    pub fn dirty_bits(&self, name: &str) -> Result<DirtyBits> {
        match &self.drafts[self.index_of(name)?].content {
            Content::Kept(index) => {
                let mut room = self.image.room()?;
                self.image.load_bits(&self.stored.entries[*index], &mut room)
            }
            Content::New(bits) => Ok(DirtyBits::clone(bits)),
        }
    }

    fn usable(&mut self, name: &str) -> Result<&mut Draft> {
        let index = self.index_of(name)?;
        let draft = &mut self.drafts[index];
        draft.entry.bitmap.check_usable()?;
        Ok(draft)
    }

    fn index_of(&self, name: &str) -> Result<usize> {
        self.list()
            .position(|bitmap| bitmap.name == name)
            .ok_or_else(|| not_found(name))
    }
}

fn granularity_bits(bytes: u64) -> Result<u32> {
    let bits = bytes.checked_ilog2().filter(|_| bytes.is_power_of_two());
    bits.filter(|bits| GRANULARITY_BITS.contains(bits))
        .ok_or_else(|| {
            let message = format!("the granularity of a bitmap cannot be {bytes} bytes");
            Error::invalid(message).with_hint("give a power of two from 512 to 2G")
        })
}
