//! From one bitmap directory to the next: see the [module above](super).

use std::ops::Range;
use std::sync::Arc;

use block::{Error, Result, Storage, ZeroMode};

use super::Bitmaps;
use crate::address::{ClusterIndex, HostOffset};
use crate::allocator::Use;
use crate::bitmap::bits::{DirtyBits, StoredChunk};
use crate::bitmap::directory::{self, Entry, MAX_DIRECTORY};
use crate::bitmap::table::{self, TableEntry};
use crate::extension::BitmapsExtension;
use crate::feature::AutoclearFeatures;
use crate::header::Header;
use crate::image::{Image, Writer};

/// A bitmap of the next directory.
#[derive(Debug)]
pub(super) struct Draft {
    /// Its table is filled in when it is written.
    pub(super) entry: Entry,
    pub(super) content: Content,
}

#[derive(Debug)]
pub(super) enum Content {
    /// What entry number so-and-so of the present directory names.
    Kept(usize),
    New(Arc<DirtyBits>),
}

impl Draft {
    pub(super) fn is_kept(&self) -> bool {
        matches!(self.content, Content::Kept(_))
    }
}

impl Bitmaps {
    /// The present directory as a draft of the next.
    pub(super) fn kept(&self) -> Vec<Draft> {
        let draft = |(index, entry): (usize, &Entry)| Draft {
            entry: entry.clone(),
            content: Content::Kept(index),
        };
        self.entries.iter().enumerate().map(draft).collect()
    }
}

/// A directory that is written, and that the header does not name yet.
#[derive(Debug)]
pub(in crate::image) struct NewDirectory {
    entries: Vec<Entry>,
    /// Of the directory.
    clusters: Range<u64>,
    extension: Option<BitmapsExtension>,
    /// What only the directory before it names.
    replaced: Vec<Range<u64>>,
}

impl NewDirectory {
    fn name_in(&self, header: &mut Header) {
        header.extensions.bitmaps = self.extension;
        let bitmaps = AutoclearFeatures::BITMAPS;
        header.autoclear.set(bitmaps, self.extension.is_some());
    }
}

impl Image {
    /// Writes a directory, and the contents that are new, to new clusters. If that fails, they are given back.
    pub(super) fn write_directory(
        &self,
        writer: &Writer,
        bitmaps: &Bitmaps,
        drafts: Vec<Draft>,
    ) -> Result<NewDirectory> {
        let replaced = self.replaced_clusters(bitmaps, &drafts)?;
        let mut new = NewClusters {
            image: self,
            writer,
            clusters: Vec::new(),
        };
        let written = self.write_drafts(&mut new, drafts, replaced);
        if written.is_err() {
            new.give_back()?;
        }
        written
    }

    /// The clusters of the present directory, and of every table in it that the next does not name.
    fn replaced_clusters(&self, bitmaps: &Bitmaps, drafts: &[Draft]) -> Result<Vec<Range<u64>>> {
        let mut kept = vec![false; bitmaps.entries.len()];
        for draft in drafts {
            if let Content::Kept(index) = draft.content {
                kept[index] = true;
            }
        }
        let mut replaced = vec![bitmaps.directory()];
        for (entry, _) in bitmaps.entries.iter().zip(kept).filter(|(_, kept)| !kept) {
            replaced.extend(table::clusters(&self.storage, &entry.bitmap, self.geometry)?);
        }
        replaced.retain(|clusters| !clusters.is_empty());
        Ok(replaced)
    }

    fn write_drafts(
        &self,
        new: &mut NewClusters<'_>,
        drafts: Vec<Draft>,
        replaced: Vec<Range<u64>>,
    ) -> Result<NewDirectory> {
        let mut entries = Vec::with_capacity(drafts.len());
        for Draft { mut entry, content } in drafts {
            if let Content::New(bits) = content {
                (entry.bitmap.table_offset, entry.bitmap.table_entries) = new.write_bits(&bits)?;
            }
            entries.push(entry);
        }
        let bytes = directory::encode(&entries);
        let len = bytes.len() as u64;
        if len > MAX_DIRECTORY {
            let message = format!("the bitmap directory would take {len} bytes; {MAX_DIRECTORY} is the most");
            return Err(Error::invalid(message).with_hint("remove bitmaps that are not needed"));
        }
        let mut directory = NewDirectory {
            entries,
            clusters: 0..0,
            extension: None,
            replaced,
        };
        if !bytes.is_empty() {
            let place = new.write(&bytes)?;
            let first = self.geometry.cluster_of(place).0;
            directory.clusters = first..first + self.geometry.clusters(len);
            directory.extension = Some(BitmapsExtension {
                count: directory.entries.len() as u32,
                directory_size: len,
                directory_offset: place,
            });
        }
        Ok(directory)
    }

    /// Makes everything durable and then changes the header, which from then on names `directory` if there is one;
    /// gives back what nothing names any more. Nobody is changing the disk.
    pub(in crate::image) fn switch_directory(
        &self,
        writer: &Writer,
        bitmaps: &mut Bitmaps,
        directory: Option<NewDirectory>,
        change: impl FnOnce(&mut Header),
    ) -> Result<()> {
        self.write_back()?;
        let _one_at_a_time = writer.flushing();
        self.update_header(|header| {
            change(header);
            if let Some(directory) = &directory {
                directory.name_in(header);
            }
        })
        .inspect_err(|error| writer.latch(error))?;
        if let Some(directory) = directory {
            bitmaps.entries = directory.entries;
            bitmaps.directory = directory.clusters;
            // No request reads them, and the file does not name them any more.
            let mut meta = writer.meta();
            for clusters in directory.replaced {
                let released = meta.allocator.release(clusters, 1);
                released.inspect_err(|error| writer.latch(error))?;
            }
        }
        Ok(())
    }
}

/// Clusters that nothing names yet.
struct NewClusters<'a> {
    image: &'a Image,
    writer: &'a Writer,
    clusters: Vec<Range<u64>>,
}

impl NewClusters<'_> {
    /// Writes a bitmap's data and its table. Returns where the table is, and its entries.
    fn write_bits(&mut self, bits: &DirtyBits) -> Result<(HostOffset, u32)> {
        let mut table = Vec::new();
        for chunk in bits.stored_chunks() {
            table.push(match chunk {
                StoredChunk::Zeros => TableEntry::Zeros,
                StoredChunk::Ones => TableEntry::Ones,
                StoredChunk::Data(bytes) => TableEntry::Data(self.write(&bytes)?),
            });
        }
        let bytes: Vec<u8> = table
            .iter()
            .flat_map(|entry| entry.encode().to_be_bytes())
            .collect();
        Ok((self.write(&bytes)?, table.len() as u32))
    }

    /// Writes bytes, of which there are some, to clusters of their own; zeros follow up to the end of the last.
    fn write(&mut self, bytes: &[u8]) -> Result<HostOffset> {
        let geometry = self.image.geometry;
        let len = bytes.len() as u64;
        let count = geometry.clusters(len);
        let allocation = self.writer.meta().allocator.allocate(count, Use::Metadata)?;
        self.clusters.push(allocation.clusters.clone());
        let place = geometry.offset_of(ClusterIndex(allocation.clusters.start));
        let rest = (count << geometry.cluster_bits) - len;
        let storage = &self.image.storage;
        storage.write_all_at(bytes, place.0)?;
        // Past the end of the file there are zeros.
        if rest > 0 && !allocation.fresh {
            storage.zero((place + len).0, rest, ZeroMode::Allocate)?;
        }
        Ok(place)
    }

    fn give_back(self) -> Result<()> {
        let mut meta = self.writer.meta();
        for clusters in self.clusters {
            meta.allocator.give_back(clusters)?;
        }
        Ok(())
    }
}
