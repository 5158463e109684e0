//! A filesystem that is being changed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use block::{BlockDevice, Error, Result};
use ext4_builder::format::{Checksum, Seal};
use ext4_reader::{Filesystem, Superblock as Layout};

use crate::features;
use crate::options::{Durability, Options};
use crate::staging::Staging;
use crate::superblock::{OFFSET, SIZE, Superblock};

/// A filesystem that is being changed, in memory until [`commit`](Self::commit). New contents of files are written
/// before, to blocks that are free. Dropped without a commit, it leaves the filesystem as it was, and gives back the room that such
/// contents took in an image, as a trim does.
///
/// An operation that fails changes nothing. Files are named by their path from the root; symbolic links on the way are
/// followed inside of the filesystem.
#[derive(Debug)]
pub struct Editor {
    pub(crate) device: Arc<dyn BlockDevice>,
    pub(crate) staging: Arc<Staging>,
    /// Reads all as it will be.
    pub(crate) filesystem: Filesystem,
    pub(crate) superblock: Superblock,
    pub(crate) options: Options,
    pub(crate) descriptor_seal: Option<Seal>,
    /// By group, the blocks that were in use when the last transaction was committed and are free now: they are not
    /// used again before the next.
    pub(crate) freed: HashMap<u32, Vec<u8>>,
    /// Bytes of the disk that new contents have taken room for since then: in the filesystem on it they are free.
    pub(crate) taken: Vec<Range<u64>>,
    /// Clusters of the image at the ends of those, which it did not hold before.
    pub(crate) clusters: HashSet<u64>,
    /// What the filesystem's journal held when it was opened, if that was not on the disk: it has to go there first.
    pub(crate) replayed: BTreeMap<u64, Vec<u8>>,
    /// Copies of superblock and descriptors, by their place, that are to be written when all else is.
    pub(crate) copies: Vec<(u64, Vec<u8>)>,
    /// Files made so far.
    pub(crate) made: u32,
    /// Orphans were settled, and that is not committed yet.
    pub(crate) has_settled: bool,
    /// A commit failed: nobody knows what is on the disk.
    pub(crate) failed: bool,
}

impl Editor {
    /// The filesystem on `device`, which nobody else may change meanwhile. What its journal holds counts as done, and
    /// is written by the next [`commit`](Self::commit).
    ///
    /// # Errors
    /// `InvalidInput` where there is none; `Unsupported` for features that are not known or cannot be kept right;
    /// `Corrupt` for one that says of itself that it is damaged, or that is; `Io`.
    pub fn open(device: Arc<dyn BlockDevice>, options: Options) -> Result<Self> {
        let before = Filesystem::open(device.clone())?;
        let bits = before.superblock().block_size().ilog2();
        let staging = Arc::new(Staging::new(device.clone(), bits));
        let mut replayed = BTreeMap::new();
        for (block, bytes) in before.replayed()? {
            staging.put(block, bytes.clone())?;
            replayed.insert(block, bytes);
        }
        let mut superblock = read_superblock(&staging)?;
        features::check(&superblock)?;
        let recovering = superblock.needs_recovery();
        if recovering {
            superblock.set_needs_recovery(false);
            // The journal may have been empty; the mark is to go even so.
            replayed
                .entry(OFFSET >> bits)
                .or_insert(staging.block(OFFSET >> bits)?);
            put_superblock(&staging, &superblock)?;
        }
        let filesystem = Filesystem::open(staging.clone())?;
        let layout = filesystem.superblock();
        if u64::from(layout.blocks_per_group()) > layout.block_size() * 8 {
            let problem = format!(
                "a block group has {} blocks, more than its bitmap",
                layout.blocks_per_group()
            );
            return Err(crate::damaged(problem));
        }
        let descriptor_seal = match layout.checksum_seed() {
            Some(seed) => Some(Seal::Crc32c(Checksum::of_value(seed))),
            None if superblock.has_group_checksums() => Some(Seal::Crc16(layout.uuid())),
            None => None,
        };
        let mut editor = Self {
            device,
            staging,
            filesystem,
            superblock,
            options,
            descriptor_seal,
            freed: HashMap::new(),
            taken: Vec::new(),
            clusters: HashSet::new(),
            replayed,
            copies: Vec::new(),
            made: 0,
            has_settled: false,
            failed: false,
        };
        for block in editor.replayed.keys().copied().collect::<Vec<_>>() {
            editor.pin(block..block + 1);
        }
        if recovering {
            editor.count_free()?;
        }
        let free = editor.superblock.free_blocks();
        editor.settle_orphans()?;
        editor.has_settled = editor.superblock.free_blocks() != free;
        Ok(editor)
    }

    /// Sets the counts of what is free in all. A kernel keeps only those of groups while it uses a filesystem.
    fn count_free(&mut self) -> Result<()> {
        let (mut blocks, mut inodes) = (0, 0);
        for number in 0..self.layout().groups() {
            let group = self.group(number)?;
            blocks += u64::from(group.free_blocks());
            inodes = group.free_inodes().saturating_add(inodes);
        }
        self.change_superblock(|superblock| {
            superblock.set_free_blocks(blocks);
            superblock.set_free_inodes(inodes);
        })
    }

    /// The filesystem as it will be, for reading.
    pub fn filesystem(&self) -> &Filesystem {
        &self.filesystem
    }

    /// Bytes that are free for contents and metadata. What was freed since the last commit is among them, and can be used
    /// after the next.
    pub fn free_bytes(&self) -> u64 {
        self.superblock
            .free_blocks()
            .saturating_mul(self.layout().block_size())
    }

    pub(crate) fn layout(&self) -> &Layout {
        self.filesystem.superblock()
    }

    pub(crate) fn block_size(&self) -> usize {
        self.layout().block_size() as usize
    }

    /// What checksums of metadata start from, where there are any.
    pub(crate) fn seed(&self) -> Option<Checksum> {
        self.layout().checksum_seed().map(Checksum::of_value)
    }

    /// Changes a block of metadata.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn change(&self, block: u64, change: impl FnOnce(&mut [u8])) -> Result<()> {
        let mut bytes = self.staging.block(block)?;
        change(&mut bytes);
        self.staging.put(block, bytes)
    }

    /// Changes the superblock.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn change_superblock(&mut self, change: impl FnOnce(&mut Superblock)) -> Result<()> {
        change(&mut self.superblock);
        put_superblock(&self.staging, &self.superblock)
    }

    /// Does all of an operation, or nothing of it where it fails. Before the first, what orphans held is given back in a
    /// transaction of its own: it can be all the room that there is, and is no room before that.
    ///
    /// # Errors
    /// Those of `operation`.
    pub(crate) fn atomically<T>(&mut self, operation: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.failed {
            let message = "an earlier commit failed, and the filesystem cannot be changed further";
            return Err(Error::invalid(message).with_hint("open it anew, which replays its journal"));
        }
        if self.has_settled {
            self.commit()?;
        }
        let superblock = self.superblock.clone();
        let taken = self.taken.len();
        self.staging.begin();
        let result = operation(self);
        self.staging.end(result.is_ok());
        if result.is_err() {
            self.superblock = superblock;
            self.give_back(taken);
        }
        result
    }

    /// Notes which of these bytes, that are about to be written, will take room in an image: those of clusters that it did not
    /// hold before. Of a plain file nobody says whether its holes are reserved, so it keeps all that it is given.
    pub(crate) fn note_room(&mut self, offset: u64, len: u64) {
        let info = self.device.info();
        let cluster_size = info
            .cluster_size
            .filter(|_| self.options.durability != Durability::Expendable);
        let Some(cluster_size) = cluster_size else {
            return;
        };
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let Ok(run) = self.device.extent_at(at, end - at) else {
                return;
            };
            let (first, last) = (at / cluster_size, (run.end() - 1) / cluster_size);
            // What was given back before may say that it is zero, and has no place either.
            if run.depth > 0 || run.host.is_none() && run.state.reads_as_zero() {
                self.taken.push(at..run.end());
                // Other contents may come to share these.
                self.clusters.extend([first, last]);
            } else {
                let mut edges = vec![first, last];
                edges.dedup();
                for cluster in edges.iter().filter(|cluster| self.clusters.contains(cluster)) {
                    let start = cluster * cluster_size;
                    self.taken
                        .push(at.max(start)..run.end().min(start + cluster_size));
                }
            }
            at = run.end();
        }
    }

    /// Has the disk forget new contents that no file is going to have, but for the `first` that were noted.
    fn give_back(&mut self, first: usize) {
        let mut runs = self.taken.split_off(first);
        // Whole units of the disk are given back, of which each run alone may have none.
        runs.sort_unstable_by_key(|run| run.start);
        runs.dedup_by(|next, run| {
            let follows = next.start == run.end;
            if follows {
                run.end = next.end;
            }
            follows
        });
        for run in runs {
            // What stays takes room, and does no harm.
            let _ = self.device.discard_at(run.start, run.end - run.start);
        }
    }
}

impl Drop for Editor {
    fn drop(&mut self) {
        // After a commit that failed, files may have them.
        if !self.failed {
            self.give_back(0);
        }
    }
}

fn read_superblock(staging: &Staging) -> Result<Superblock> {
    let mut bytes = [0; SIZE];
    staging.read_at(&mut bytes, OFFSET)?;
    Ok(Superblock::new(&bytes))
}

pub(crate) fn put_superblock(staging: &Staging, superblock: &Superblock) -> Result<()> {
    let size = staging.block_size();
    let mut bytes = staging.block(OFFSET / size)?;
    bytes[(OFFSET % size) as usize..][..SIZE].copy_from_slice(&superblock.sealed());
    staging.put(OFFSET / size, bytes)
}
