//! The builder: a tree that grows as entries come, and whose data is placed as it comes.

use std::ops::Range;

use block::{Error, Result, Storage};

use crate::allocator::{Allocator, Cursor, Run};
use crate::checksum::Checksum;
use crate::disk::Disk;
use crate::extent::Extent;
use crate::features::Features;
use crate::geometry::Geometry;
use crate::group_descriptor::Seal;
use crate::inode::{FileType, MAX_LINKS, XATTR_ROOM};
use crate::options::{Options, Size};
use crate::placement::{PlacedRun, Placement};
use crate::time::Time;
use crate::tree::{Content, Record, Tree};
use crate::xattr::{self, Plan, Xattr};
use crate::xattr_sets::XattrSets;
use crate::{Metadata, Node, Special, Summary, acl, inline_data, layout};

/// The directory that is always there.
pub(crate) const LOST_AND_FOUND: &[u8] = b"lost+found";

/// Bytes of the longest target of a symlink.
const MAX_TARGET: usize = 4095;

/// Makes one filesystem on a storage.
///
/// Entries may come in any order in which directories come before what is in them. Data is placed when a file comes, and is
/// for the caller to write; all metadata is written by [`finish`](Self::finish), and the superblock last. The storage holds
/// what it did until the first data is placed, and from then on no filesystem, also when a builder is dropped.
///
/// Of two entries by one name, the last wins.
#[derive(Debug)]
pub struct Builder<'s> {
    pub(crate) disk: Disk<'s>,
    pub(crate) options: Options,
    pub(crate) geometry: Geometry,
    pub(crate) features: Features,
    pub(crate) seal: Seal,
    pub(crate) descriptor_room: u32,
    pub(crate) allocator: Allocator,
    pub(crate) tree: Tree,
    /// Runs of files that have more than one, or start with a hole.
    pub(crate) runs: Vec<Vec<Extent>>,
    pub(crate) xattrs: XattrSets,
    /// Nothing on the storage is taken for a filesystem any more.
    erased: bool,
}

impl<'s> Builder<'s> {
    /// Starts a filesystem of a root directory and `lost+found`. What the storage held is lost when the first data is
    /// placed, though not all of it is overwritten.
    ///
    /// # Errors
    /// `InvalidInput` for options that cannot be, before anything is written; `Io`, `NoSpace`, and `Unsupported` for a
    /// storage that is too short for a given size and cannot grow.
    pub fn new(storage: &'s dyn Storage, options: Options) -> Result<Self> {
        options.validate()?;
        let geometry = Geometry::new(options.block_size);
        let given = match options.size {
            Size::Given(size) => Some(size),
            Size::Fit(_) | Size::Shrink => None,
        };
        let descriptor_room = layout::descriptor_room(&options, geometry)?;
        let features = Features {
            inline_data: options.inline_data,
            ..Features::of(options.compat)
        };
        let seal = if features.metadata_checksums {
            Seal::Crc32c(Checksum::of_filesystem(&options.uuid))
        } else {
            Seal::Crc16(options.uuid)
        };
        let cursor = Cursor::new(geometry, 1 + descriptor_room);
        let end = given.map_or(u64::MAX, |size| size / geometry.block_size());
        let root = Metadata {
            permissions: 0o755,
            ..Metadata::at(options.time)
        };
        let mut builder = Self {
            disk: Disk::new(storage, geometry.block_size(), given)?,
            geometry,
            features,
            seal,
            descriptor_room,
            allocator: Allocator::new(cursor, end),
            tree: Tree::new(record(&options, &root, FileType::Directory)),
            runs: Vec::new(),
            xattrs: XattrSets::default(),
            erased: false,
            options,
        };
        let lost_and_found = Metadata {
            permissions: 0o700,
            ..root
        };
        builder.directory(builder.root(), LOST_AND_FOUND, &lost_and_found)?;
        if let Some(size) = given {
            builder.check_size(size)?;
            builder.disk.grow(size)?;
        }
        Ok(builder)
    }

    /// Refuses a given size that cannot hold even what there is now.
    fn check_size(&self, size: u64) -> Result<()> {
        if size / self.geometry.block_size() > self.allocator.cursor().next() {
            return Ok(());
        }
        let message = format!("cannot make an ext4 filesystem of {size} bytes");
        Err(Error::invalid(message).with_hint("choose a size of 1 MiB or more"))
    }

    /// What it is made on, for whoever writes data there.
    pub fn storage(&self) -> &'s dyn Storage {
        self.disk.storage()
    }

    /// The root directory.
    pub fn root(&self) -> Node {
        Node(0)
    }

    /// What a directory has by a name.
    pub fn lookup(&self, directory: Node, name: &[u8]) -> Option<Node> {
        self.tree.lookup(directory, name)
    }

    /// What is in a directory, in no certain order.
    pub fn entries(&self, directory: Node) -> impl Iterator<Item = (&[u8], Node)> {
        self.tree.entries(directory)
    }

    /// The directory that a directory is in: for the root, itself.
    pub fn parent(&self, directory: Node) -> Node {
        match self.tree.record(directory).content {
            Content::Directory { parent, .. } => Node(parent),
            _ => self.root(),
        }
    }

    /// What a symlink points to; `None` for anything else.
    pub fn target(&self, node: Node) -> Option<&[u8]> {
        match self.tree.record(node).content {
            Content::Symlink { target } => Some(self.tree.bytes(target)),
            _ => None,
        }
    }

    /// When it is made, as the options say.
    pub fn time(&self) -> Time {
        self.options.time
    }

    pub(crate) fn file_type(&self, node: Node) -> FileType {
        self.tree.record(node).file_type
    }

    /// Whether a node is a file, and neither a directory nor anything else.
    pub fn is_file(&self, node: Node) -> bool {
        self.tree.record(node).file_type == FileType::Regular
    }

    /// Whether a node is a directory.
    pub fn is_directory(&self, node: Node) -> bool {
        self.tree.record(node).is_directory()
    }

    /// Puts a directory into another. One that is there by that name keeps what is in it and its extended attributes,
    /// and gets this metadata.
    ///
    /// # Errors
    /// `InvalidInput` for a name, metadata or a parent that cannot be.
    pub fn directory(&mut self, parent: Node, name: &[u8], metadata: &Metadata) -> Result<Node> {
        self.check_place(parent, name, FileType::Directory)?;
        if let Some(node) = self.tree.lookup(parent, name)
            && self.is_directory(node)
        {
            self.set_metadata(node, metadata)?;
            return Ok(node);
        }
        let record = self.record(metadata, FileType::Directory);
        self.put(parent, name, record)
    }

    /// Puts a file of `size` bytes into a directory, and says where its data goes. `data` are the ranges that hold
    /// any, in order; all others read as zeros and take no room.
    ///
    /// When a given size is used up, data goes nowhere any more: [`finish`](Self::finish) will say which size would do.
    ///
    /// # Errors
    /// `InvalidInput` for a name, metadata, a parent, a size or ranges that cannot be; `Io` and `NoSpace` where blocks
    /// that are not all data had to be zeroed.
    pub fn file(
        &mut self,
        parent: Node,
        name: &[u8],
        metadata: &Metadata,
        size: u64,
        data: &[Range<u64>],
    ) -> Result<(Node, Placement)> {
        self.check_place(parent, name, FileType::Regular)?;
        let block_size = self.geometry.block_size();
        let most = u64::from(u32::MAX) * block_size;
        if size > most {
            let message = format!(
                "{:?}: a file of {size} bytes is larger than the {most} that ext4 can hold",
                String::from_utf8_lossy(name)
            );
            return Err(Error::invalid(message).with_hint("blocks of 4096 bytes allow for the most"));
        }
        let blocks = self.data_blocks(size, data)?;
        let record = self.record(metadata, FileType::Regular);
        if !blocks.is_empty() {
            self.erase()?;
        }
        let (extents, placement) = self.place(size, data, &blocks)?;
        let content = match extents[..] {
            [] => Content::Empty,
            [only] if only.logical == 0 => Content::Run {
                start: only.physical,
                blocks: only.len,
            },
            _ => {
                self.runs.push(extents);
                Content::Runs(self.runs.len() as u32 - 1)
            }
        };
        let record = Record {
            content,
            size,
            ..record
        };
        Ok((self.put(parent, name, record)?, placement))
    }

    /// Whether [`small_file`](Self::small_file) is the better way to put a file of `size` bytes that holds `data`: it is
    /// small, has no holes, and inline data is asked for.
    pub fn is_small_file(&self, size: u64, data: &[Range<u64>]) -> bool {
        let is_whole = matches!(data, [all] if *all == (0..size));
        self.options.inline_data && is_whole && size <= inline_data::MAX_FILE as u64
    }

    /// Puts a file of at most 128 bytes into a directory, whose contents may then be in its inode.
    ///
    /// # Errors
    /// As for [`directory`](Self::directory); `InvalidInput` for more bytes than that.
    pub fn small_file(
        &mut self,
        parent: Node,
        name: &[u8],
        metadata: &Metadata,
        contents: &[u8],
    ) -> Result<Node> {
        self.check_place(parent, name, FileType::Regular)?;
        if contents.len() > inline_data::MAX_FILE {
            let message = format!("a file of {} bytes is no small one", contents.len());
            return Err(Error::invalid(message));
        }
        let content = if contents.is_empty() {
            Content::Empty
        } else {
            Content::Small {
                contents: self.tree.put_bytes(contents)?,
            }
        };
        let record = Record {
            size: contents.len() as u64,
            content,
            ..self.record(metadata, FileType::Regular)
        };
        self.put(parent, name, record)
    }

    /// Whether a given size is used up: data goes nowhere any more.
    pub(crate) fn is_full(&self) -> bool {
        self.allocator.overflowed()
    }

    /// Whether a node has no name any more.
    pub(crate) fn is_removed(&self, node: Node) -> bool {
        self.tree.record(node).links == 0
    }

    /// All of a file whose data is written. `None` for what is no file, and for more than `most` bytes.
    ///
    /// # Errors
    /// `Io`.
    pub fn contents(&self, node: Node, most: u64) -> Result<Option<Vec<u8>>> {
        let record = self.tree.record(node);
        if record.file_type != FileType::Regular || record.size > most {
            return Ok(None);
        }
        let mut bytes = vec![0; record.size as usize];
        let block_size = self.geometry.block_size() as usize;
        let mut read = |logical: u32, physical: u64, blocks: u32| {
            let start = logical as usize * block_size;
            let end = bytes.len().min(start + blocks as usize * block_size);
            let bytes = bytes.get_mut(start..end).unwrap_or_default();
            self.storage().read_exact_at(bytes, self.disk.offset(physical))
        };
        match record.content {
            Content::Run { start, blocks } => read(0, start, blocks)?,
            Content::Runs(index) => {
                for extent in &self.runs[index as usize] {
                    read(extent.logical, extent.physical, extent.len)?;
                }
            }
            Content::Small { contents } => return Ok(Some(self.tree.bytes(contents).to_vec())),
            _ => {}
        }
        Ok(Some(bytes))
    }

    /// Puts a symlink into a directory.
    ///
    /// # Errors
    /// As for [`directory`](Self::directory); `InvalidInput` for a target that is empty or too long too.
    pub fn symlink(&mut self, parent: Node, name: &[u8], metadata: &Metadata, target: &[u8]) -> Result<Node> {
        self.check_place(parent, name, FileType::Symlink)?;
        let most = MAX_TARGET.min(self.options.block_size as usize - 1);
        if target.is_empty() || target.len() > most || target.contains(&0) {
            let message = format!(
                "{:?}: a symlink cannot point to {} bytes of {:?}",
                String::from_utf8_lossy(name),
                target.len(),
                String::from_utf8_lossy(&target[..target.len().min(40)])
            );
            let hint = format!("targets have 1 to {most} bytes here, no NUL among them");
            return Err(Error::invalid(message).with_hint(hint));
        }
        let record = Record {
            size: target.len() as u64,
            content: Content::Symlink {
                target: self.tree.put_bytes(target)?,
            },
            ..self.record(metadata, FileType::Symlink)
        };
        self.put(parent, name, record)
    }

    /// Puts a device, fifo or socket into a directory.
    ///
    /// # Errors
    /// As for [`directory`](Self::directory); `InvalidInput` for a device number that cannot be too.
    pub fn special(
        &mut self,
        parent: Node,
        name: &[u8],
        metadata: &Metadata,
        special: Special,
    ) -> Result<Node> {
        let (file_type, content) = match special {
            Special::Fifo => (FileType::Fifo, Content::Empty),
            Special::Socket => (FileType::Socket, Content::Empty),
            Special::CharacterDevice { major, minor } => {
                (FileType::CharacterDevice, Content::Device { major, minor })
            }
            Special::BlockDevice { major, minor } => {
                (FileType::BlockDevice, Content::Device { major, minor })
            }
        };
        if let Content::Device { major, minor } = content
            && (major >= 1 << 12 || minor >= 1 << 20)
        {
            let message = format!("there is no device {major}:{minor}");
            return Err(Error::invalid(message).with_hint("majors end at 4095, minors at 1048575"));
        }
        self.check_place(parent, name, file_type)?;
        let record = Record {
            content,
            ..self.record(metadata, file_type)
        };
        self.put(parent, name, record)
    }

    /// Gives a node that is no directory another name.
    ///
    /// # Errors
    /// As for [`directory`](Self::directory); `InvalidInput` for a directory, and for more than 65,000 names, too.
    pub fn hard_link(&mut self, parent: Node, name: &[u8], node: Node) -> Result<()> {
        let Record { file_type, links, .. } = *self.tree.record(node);
        self.check_place(parent, name, file_type)?;
        let refuse = |what: &str| {
            let name = String::from_utf8_lossy(name);
            Err(Error::invalid(format!("{name:?} cannot be a link: {what}")))
        };
        if file_type == FileType::Directory {
            return refuse("directories have one name only");
        }
        if links == 0 {
            return refuse("what it names was removed");
        }
        if self.tree.lookup(parent, name) == Some(node) {
            return Ok(());
        }
        if links >= MAX_LINKS {
            return refuse("a file has 65,000 names at most");
        }
        // What is replaced may be a directory that its only other name is in: that must not be the end of its contents.
        self.tree.record_mut(node).links += 1;
        self.unlink(parent, name);
        self.tree.record_mut(node).links -= 1;
        self.tree.link(parent, name, node)
    }

    /// Removes what a directory has by a name, with all that is in it. Returns whether there was anything.
    /// `lost+found` is only emptied.
    pub fn remove(&mut self, parent: Node, name: &[u8]) -> bool {
        match self.tree.lookup(parent, name) {
            Some(node) if parent == self.root() && name == LOST_AND_FOUND => self.clear(node),
            Some(_) => self.unlink(parent, name),
            None => return false,
        }
        true
    }

    /// Removes everything that is in a directory.
    pub fn clear(&mut self, directory: Node) {
        let (allocator, runs) = (&mut self.allocator, &mut self.runs);
        self.tree
            .clear(directory, |record| release(allocator, runs, record));
    }

    /// A node's metadata.
    pub fn metadata(&self, node: Node) -> Metadata {
        let record = self.tree.record(node);
        let [accessed, changed, modified, created] = record.times.map(Time::of_fields);
        Metadata {
            permissions: record.permissions,
            uid: record.uid,
            gid: record.gid,
            accessed,
            changed,
            modified,
            created,
        }
    }

    /// Replaces a node's metadata. Of an access control list, what it says of permissions follows, as when a mode is changed.
    ///
    /// # Errors
    /// `InvalidInput` for metadata that cannot be.
    pub fn set_metadata(&mut self, node: Node, metadata: &Metadata) -> Result<()> {
        let old = *self.tree.record(node);
        let new = self.record(metadata, old.file_type);
        *self.tree.record_mut(node) = Record {
            times: new.times,
            uid: new.uid,
            gid: new.gid,
            permissions: new.permissions,
            ..old
        };
        if new.permissions != old.permissions && old.xattrs != XattrSets::EMPTY {
            let mut set = self.xattrs.plans()[old.xattrs as usize].set().to_vec();
            for xattr in &mut set {
                xattr.set_permissions(new.permissions);
            }
            return self.put_xattrs(node, set);
        }
        Ok(())
    }

    /// Whether a node can have an extended attribute of such a name: ext4 has room for it, and it is none of users (`user.x`)
    /// on anything but a file or directory, where the kernel would not show it.
    pub fn takes_xattr(&self, node: Node, name: &[u8]) -> bool {
        xattr::is_known(name) && (has_users(self.file_type(node)) || !name.starts_with(b"user."))
    }

    /// Gives a node these extended attributes and no others: each a full name (`user.x`) and a value in the form that
    /// system calls have. Of two by one name, the last counts. They are kept in memory up to the end, equal sets once.
    ///
    /// An access control list sets the permissions, as it does when it is set on a file; one that says nothing else is
    /// not stored.
    ///
    /// # Errors
    /// `InvalidInput` for names, values and lists that cannot be, for those of users on what is neither a file nor a
    /// directory, and for more than fits an inode and a block.
    pub fn set_xattrs<'x>(
        &mut self,
        node: Node,
        xattrs: impl IntoIterator<Item = (&'x [u8], &'x [u8])>,
    ) -> Result<()> {
        let all = xattrs.into_iter().map(|(name, value)| (name, Some(value)));
        self.add_xattrs(node, Vec::new(), all)
    }

    /// Gives a node extended attributes besides those that it has, or takes away those without a value; otherwise as
    /// [`set_xattrs`](Self::set_xattrs).
    ///
    /// # Errors
    /// As there.
    pub fn change_xattrs<'x>(
        &mut self,
        node: Node,
        changes: impl IntoIterator<Item = (&'x [u8], Option<&'x [u8]>)>,
    ) -> Result<()> {
        let set = self.xattrs.plans()[self.tree.record(node).xattrs as usize].set();
        self.add_xattrs(node, set.to_vec(), changes)
    }

    /// Gives a node a set with changes.
    fn add_xattrs<'x>(
        &mut self,
        node: Node,
        mut set: Vec<Xattr>,
        changes: impl IntoIterator<Item = (&'x [u8], Option<&'x [u8]>)>,
    ) -> Result<()> {
        let file_type = self.tree.record(node).file_type;
        let mut permissions = None;
        for (name, value) in changes {
            let parts = xattr::split_name(name)?;
            set.retain(|xattr| !xattr.has_name(parts));
            let Some(value) = value else {
                continue;
            };
            check_type(name, file_type)?;
            let xattr = Xattr::new(name, value)?;
            if name == acl::ACCESS {
                permissions = acl::permissions(value);
                if permissions.is_some_and(|(_, is_all)| is_all) {
                    continue;
                }
            }
            set.extend(xattr);
        }
        self.put_xattrs(node, set)?;
        if let Some((permissions, _)) = permissions {
            let record = self.tree.record_mut(node);
            record.permissions = record.permissions & !0o777 | permissions;
        }
        Ok(())
    }

    fn put_xattrs(&mut self, node: Node, set: Vec<Xattr>) -> Result<()> {
        let block_size = self.options.block_size as usize;
        let plan = Plan::new(set, XATTR_ROOM, block_size, self.features.ea_inode)?;
        self.tree.record_mut(node).xattrs = self.xattrs.put(plan)?;
        Ok(())
    }

    /// Says that all data of files placed so far is written, or never will be: blocks of those that were replaced or
    /// removed since can be used again.
    pub fn settle(&mut self) {
        self.allocator.settle();
    }

    /// Writes all metadata, and the superblock when everything else is durable. Data must be written before.
    ///
    /// # Errors
    /// `NoSpace` where a given size is too small, with the size that would do; `Io`. The storage then holds no
    /// filesystem, unless it is the very last sync that failed.
    pub fn finish(mut self) -> Result<Summary> {
        self.erase()?;
        crate::finish::finish(self)
    }

    /// Removes what the storage held, before the first byte is written and not earlier: where a source turns out to be
    /// none, nothing is lost.
    fn erase(&mut self) -> Result<()> {
        if !self.erased {
            self.disk.erase()?;
            self.erased = true;
        }
        Ok(())
    }

    /// An inode of this metadata, and nothing else yet.
    fn record(&self, metadata: &Metadata, file_type: FileType) -> Record {
        record(&self.options, metadata, file_type)
    }

    fn check_place(&self, parent: Node, name: &[u8], file_type: FileType) -> Result<()> {
        let refuse = |message: String| Err(Error::invalid(message));
        let shown = String::from_utf8_lossy(name);
        if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
            return refuse(format!("{shown:?} cannot be a name in a directory"));
        }
        if name.len() > 255 {
            let message = format!("{shown:?} has {} bytes; a name has 255 at most", name.len());
            return refuse(message);
        }
        let record = self.tree.record(parent);
        if !record.is_directory() || record.links == 0 {
            return refuse(format!("{shown:?} is to be put in what is no directory"));
        }
        if parent == self.root() && name == LOST_AND_FOUND && file_type != FileType::Directory {
            return refuse("lost+found must be a directory: repairs put files there".into());
        }
        Ok(())
    }

    fn put(&mut self, parent: Node, name: &[u8], record: Record) -> Result<Node> {
        let node = self.tree.add(record)?;
        self.unlink(parent, name);
        self.tree.link(parent, name, node)?;
        Ok(node)
    }

    fn unlink(&mut self, parent: Node, name: &[u8]) {
        let (allocator, runs) = (&mut self.allocator, &mut self.runs);
        self.tree
            .unlink(parent, name, |record| release(allocator, runs, record));
    }

    /// The blocks of a file that ranges of its bytes are in.
    fn data_blocks(&self, size: u64, data: &[Range<u64>]) -> Result<Vec<Range<u64>>> {
        let block_size = self.geometry.block_size();
        let mut blocks: Vec<Range<u64>> = Vec::new();
        let mut last = 0;
        for range in data {
            if range.start < last || range.end < range.start || range.end > size {
                let message = format!("data at {range:?} is out of order or past the end at {size}");
                return Err(Error::invalid(message));
            }
            last = range.end;
            if range.is_empty() {
                continue;
            }
            let (start, end) = (range.start / block_size, range.end.div_ceil(block_size));
            match blocks.last_mut() {
                Some(before) if before.end >= start => before.end = end,
                _ => blocks.push(start..end),
            }
        }
        Ok(blocks)
    }

    /// Allocates a file's blocks, and zeroes what the data leaves of them.
    fn place(
        &mut self,
        size: u64,
        data: &[Range<u64>],
        blocks: &[Range<u64>],
    ) -> Result<(Vec<Extent>, Placement)> {
        let block_size = self.geometry.block_size();
        let fresh = self.allocator.cursor().next();
        let count = blocks.iter().map(|range| range.end - range.start).sum();
        let placed = self.allocator.allocate(count);
        let overflowed = self.allocator.overflowed();
        let mut pieces = placed.into_iter();
        let mut piece = 0..0;
        let mut extents: Vec<Extent> = Vec::new();
        let mut placement = Placement::default();
        for range in blocks {
            let mut start = range.start;
            while start < range.end {
                if piece.is_empty() {
                    piece = pieces.next().unwrap_or(piece);
                }
                let len = (piece.end - piece.start).min(range.end - start);
                let run = piece.start..piece.start + len;
                piece.start += len;
                placement.runs.extend((!overflowed).then(|| PlacedRun {
                    file_offset: start * block_size,
                    storage_offset: self.disk.offset(run.start),
                    len: (len * block_size).min(size - start * block_size),
                    zeroed: run.start >= fresh && self.disk.is_zeroed(),
                }));
                push_extent(&mut extents, start, &run);
                start += len;
            }
        }
        for byte in edges(data, block_size) {
            for (offset, _) in placement.places(byte..byte + 1) {
                let block = offset / block_size;
                if block < fresh || !self.disk.is_zeroed() {
                    self.disk.write(block, &vec![0; block_size as usize])?;
                }
            }
        }
        Ok((extents, placement))
    }
}

/// Whether the kernel knows attributes of users there.
fn has_users(file_type: FileType) -> bool {
    matches!(file_type, FileType::Regular | FileType::Directory)
}

/// Refuses attributes where the kernel knows none such.
fn check_type(name: &[u8], file_type: FileType) -> Result<()> {
    let why = match (name, file_type) {
        (name, _) if name.starts_with(b"user.") && !has_users(file_type) => {
            "only files and directories have attributes of users"
        }
        (acl::ACCESS | acl::DEFAULT, FileType::Symlink) => "a symlink has no access control list",
        (acl::ACCESS, _) | (acl::DEFAULT, FileType::Directory) => return Ok(()),
        (acl::DEFAULT, _) => "only directories have an access control list for what is made in them",
        _ => return Ok(()),
    };
    Err(Error::invalid(why).with_hint(format!("leave out {}", String::from_utf8_lossy(name))))
}

/// The first byte of each block that data starts or ends in without filling it.
fn edges(data: &[Range<u64>], block_size: u64) -> impl Iterator<Item = u64> {
    data.iter()
        .filter(|range| !range.is_empty())
        .flat_map(|range| [range.start, range.end])
        .filter(move |edge| !edge.is_multiple_of(block_size))
        .map(move |edge| edge / block_size * block_size)
}

pub(crate) fn push_extent(extents: &mut Vec<Extent>, logical: u64, run: &Run) {
    let len = (run.end - run.start) as u32;
    match extents.last_mut() {
        Some(last)
            if u64::from(last.logical) + u64::from(last.len) == logical
                && last.physical + u64::from(last.len) == run.start =>
        {
            last.len += len;
        }
        _ => extents.push(Extent {
            logical: logical as u32,
            physical: run.start,
            len,
            unwritten: false,
        }),
    }
}

/// Gives back the blocks of what is removed.
fn release(allocator: &mut Allocator, runs: &mut [Vec<Extent>], record: &Record) {
    match record.content {
        Content::Run { start, blocks } => allocator.release(start..start + u64::from(blocks)),
        Content::Runs(index) => {
            for extent in std::mem::take(&mut runs[index as usize]) {
                allocator.release(extent.physical..extent.physical + u64::from(extent.len));
            }
        }
        _ => {}
    }
}

fn record(options: &Options, metadata: &Metadata, file_type: FileType) -> Record {
    let fields = |time: Time| {
        let time = options.clamp.map_or(time, |clamp| time.min(clamp));
        time.clamped().fields()
    };
    Record {
        times: [
            fields(metadata.accessed),
            fields(metadata.changed),
            fields(metadata.modified),
            fields(metadata.created),
        ],
        content: Content::Empty,
        size: 0,
        uid: metadata.uid,
        gid: metadata.gid,
        links: 0,
        number: 0,
        xattrs: XattrSets::EMPTY,
        permissions: metadata.permissions & 0o7777,
        file_type,
    }
}
