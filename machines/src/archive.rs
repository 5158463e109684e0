//! A root filesystem as a tar archive, with all that is known of its files.
//!
//! Headers are ustar's, and what does not fit there is in extended headers (pax, POSIX.1-2017): long names and large numbers, times
//! to the nanosecond, and extended attributes as star, GNU tar and libarchive have them (`SCHILY.xattr.`). Files with several names
//! are stored once. Holes stay holes, and sockets are left out: archives have none.

mod sparse;

use std::collections::HashMap;

use block::{Error, Result};
use ext4_reader::{Entry, FileKind, Filesystem, Inode, InodeNumber, LastLink, Visits};
use ops::Control;
use sparse::Map;

pub(crate) const BLOCK: usize = 512;
/// Bytes of content moved at once.
const CHUNK: u64 = 1 << 20;
/// The largest numbers that 7 and 11 octal digits have.
const MAX_ID: u64 = 0o777_7777;
const MAX_SIZE: u64 = 0o777_7777_7777;

/// Takes the bytes of an archive, in order.
type Sink<'s> = dyn FnMut(&[u8]) -> Result<()> + 's;

/// Whether a file may be in the archive, by the path of its directory and its name.
type Check = dyn Fn(&[u8], &[u8]) -> Result<()>;

/// Writes all of a filesystem's tree, from its root on. Gives how many sockets were left out.
///
/// # Errors
/// Those of `sink`; `Unsupported` for encrypted files; `Corrupt`, `Io`; `Interrupted`.
pub fn write_tar(filesystem: &Filesystem, sink: &mut Sink<'_>, control: &Control<'_>) -> Result<u64> {
    write_tar_if(&|_, _| Ok(()), filesystem, sink, control)
}

/// The same, where `check` has nothing against any file.
pub(crate) fn write_tar_if(
    check: &Check,
    filesystem: &Filesystem,
    sink: &mut Sink<'_>,
    control: &Control<'_>,
) -> Result<u64> {
    let mut archive = Archive {
        filesystem,
        sink,
        control,
        names: HashMap::new(),
        visits: Visits::new(filesystem.superblock()),
        sockets: 0,
    };
    let root = filesystem.resolve(b"/", LastLink::Follow)?;
    archive.entry(b"./", &root)?;
    // All of a directory follows it at once: programs set its times when they see that it is left.
    let mut levels = vec![(b"./".to_vec(), archive.enter(&root)?)];
    while let Some((directory, entries)) = levels.last_mut() {
        let Some(entry) = entries.next() else {
            levels.pop();
            continue;
        };
        control.check()?;
        check(directory, &entry.name)?;
        let inode = filesystem.inode(entry.inode)?;
        let mut path = [&directory[..], &entry.name].concat();
        if inode.kind() == FileKind::Directory {
            path.push(b'/');
            archive.entry(&path, &inode)?;
            levels.push((path, archive.enter(&inode)?));
        } else {
            archive.entry(&path, &inode)?;
        }
    }
    (archive.sink)(&[0; 2 * BLOCK])?;
    Ok(archive.sockets)
}

struct Archive<'a, 's> {
    filesystem: &'a Filesystem,
    sink: &'a mut Sink<'s>,
    control: &'a Control<'a>,
    /// The first name of each file that has several.
    names: HashMap<InodeNumber, Vec<u8>>,
    visits: Visits,
    sockets: u64,
}

impl Archive<'_, '_> {
    /// What is in a directory, in the order of names.
    fn enter(&mut self, directory: &Inode) -> Result<std::vec::IntoIter<Entry>> {
        self.visits.enter(directory)?;
        let mut entries = self.filesystem.read_dir(directory)?;
        entries.sort_unstable();
        Ok(entries.into_iter())
    }

    fn entry(&mut self, path: &[u8], inode: &Inode) -> Result<()> {
        let kind = inode.kind();
        if kind == FileKind::Socket {
            self.sockets += 1;
            return Ok(());
        }
        if kind != FileKind::Directory && inode.links() > 1 {
            if let Some(first) = self.names.get(&inode.number()) {
                let first = first.clone();
                return self.header(path, inode, b'1', &first, 0);
            }
            self.names.insert(inode.number(), path.to_vec());
        }
        match kind {
            FileKind::Regular => self.file(path, inode),
            FileKind::Symlink => {
                let target = self.filesystem.read_link(inode)?;
                self.header(path, inode, b'2', &target, 0)
            }
            FileKind::CharacterDevice => self.header(path, inode, b'3', b"", 0),
            FileKind::BlockDevice => self.header(path, inode, b'4', b"", 0),
            FileKind::Directory => self.header(path, inode, b'5', b"", 0),
            FileKind::Fifo | FileKind::Socket => self.header(path, inode, b'6', b"", 0),
        }
    }

    fn file(&mut self, path: &[u8], inode: &Inode) -> Result<()> {
        let Some(map) = Map::of(self.filesystem, inode)? else {
            self.header(path, inode, b'0', b"", inode.size())?;
            return self.content(inode, inode.size());
        };
        let mut records = Vec::new();
        record(&mut records, b"GNU.sparse.major", b"1");
        record(&mut records, b"GNU.sparse.minor", b"0");
        record(&mut records, b"GNU.sparse.name", path);
        let size = inode.size().to_string();
        record(&mut records, b"GNU.sparse.realsize", size.as_bytes());
        self.header_with(records, &Map::stand_in(path), inode, b'0', b"", map.stored())?;
        (self.sink)(&map.text())?;
        self.content(inode, map.data())
    }

    fn header(&mut self, path: &[u8], inode: &Inode, kind: u8, target: &[u8], size: u64) -> Result<()> {
        let mut records = Vec::new();
        for (key, text) in [("path", path), ("linkpath", target)] {
            if text.len() > 100 || !text.is_ascii() {
                record(&mut records, key.as_bytes(), text);
            }
        }
        self.header_with(records, path, inode, kind, target, size)
    }

    /// A header behind records that say more of it.
    fn header_with(
        &mut self,
        mut records: Vec<u8>,
        path: &[u8],
        inode: &Inode,
        kind: u8,
        target: &[u8],
        size: u64,
    ) -> Result<()> {
        let numbers = [
            ("uid", u64::from(inode.uid()), MAX_ID),
            ("gid", inode.gid().into(), MAX_ID),
            ("size", size, MAX_SIZE),
        ];
        for (key, number, most) in numbers {
            if number > most {
                record(&mut records, key.as_bytes(), number.to_string().as_bytes());
            }
        }
        let time = inode.modified();
        if time.nanoseconds != 0 || time.seconds < 0 || time.seconds as u64 > MAX_SIZE {
            record(&mut records, b"mtime", decimal(time).as_bytes());
        }
        // The first name has them for all.
        if kind != b'1' {
            for xattr in self.filesystem.xattrs(inode)? {
                record(
                    &mut records,
                    &[b"SCHILY.xattr.", &xattr.name[..]].concat(),
                    &xattr.value,
                );
            }
        }
        if !records.is_empty() {
            let len = records.len() as u64;
            (self.sink)(&ustar(
                b"./PaxHeaders/file",
                0o644,
                (0, 0),
                len,
                0,
                b'x',
                b"",
                None,
            ))?;
            self.padded(&records)?;
        }
        let ids = (inode.uid().into(), inode.gid().into());
        let seconds = u64::try_from(time.seconds).unwrap_or(0);
        let mode = u64::from(inode.mode() & 0o7777);
        (self.sink)(&ustar(
            path,
            mode,
            ids,
            size,
            seconds,
            kind,
            target,
            inode.device(),
        ))
    }

    fn padded(&mut self, bytes: &[u8]) -> Result<()> {
        (self.sink)(bytes)?;
        self.zeros((bytes.len().next_multiple_of(BLOCK) - bytes.len()) as u64)
    }

    /// A file's data, of which there are to be `stored` bytes: all that it has, with zeros for its holes if it is more.
    fn content(&mut self, inode: &Inode, stored: u64) -> Result<()> {
        let mut done = 0;
        let mut buffer = Vec::new();
        for run in self.filesystem.content(inode)? {
            let run = run?;
            self.visits.read(run.len)?;
            if stored == inode.size() {
                self.zeros(run.offset - done)?;
                done = run.offset;
            }
            let mut skip = 0;
            while skip < run.len {
                self.control.check()?;
                buffer.resize(CHUNK.min(run.len - skip) as usize, 0);
                self.filesystem.read_run(&run, skip, &mut buffer)?;
                (self.sink)(&buffer)?;
                skip += buffer.len() as u64;
            }
            done += run.len;
        }
        let end = stored.checked_next_multiple_of(BLOCK as u64);
        let end = end.ok_or_else(|| Error::unsupported("a file is too large for an archive"))?;
        self.zeros(end - done)
    }

    fn zeros(&mut self, mut len: u64) -> Result<()> {
        let zeros = [0; 16 << 10];
        while len > 0 {
            self.control.check()?;
            let step = len.min(zeros.len() as u64);
            (self.sink)(&zeros[..step as usize])?;
            len -= step;
        }
        Ok(())
    }
}

/// Adds a record, whose length counts its own digits.
pub(crate) fn record(to: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    to.extend_from_slice(len.to_string().as_bytes());
    to.push(b' ');
    to.extend_from_slice(key);
    to.push(b'=');
    to.extend_from_slice(value);
    to.push(b'\n');
}

/// Seconds with a fraction. Nanoseconds count upwards before 1970 too.
fn decimal(time: ext4_reader::Time) -> String {
    if time.seconds < 0 && time.nanoseconds > 0 {
        let (seconds, fraction) = (-(time.seconds + 1), 1_000_000_000 - time.nanoseconds);
        return format!("-{seconds}.{fraction:09}");
    }
    format!("{}.{:09}", time.seconds, time.nanoseconds)
}

/// A header. Text that does not fit is cut, and numbers are 0: records before it say what they are.
#[expect(clippy::too_many_arguments, reason = "these are the fields of a header")]
pub(crate) fn ustar(
    path: &[u8],
    mode: u64,
    (uid, gid): (u64, u64),
    size: u64,
    mtime: u64,
    kind: u8,
    target: &[u8],
    device: Option<(u32, u32)>,
) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &path[..path.len().min(100)]);
    put(157, &target[..target.len().min(100)]);
    let mut number = |at: usize, digits: usize, value: u64| {
        let text = format!("{value:0digits$o}");
        put(
            at,
            if text.len() > digits {
                &b"00000000000"[..digits]
            } else {
                text.as_bytes()
            },
        );
    };
    number(100, 7, mode);
    number(108, 7, uid);
    number(116, 7, gid);
    number(124, 11, size);
    number(136, 11, mtime);
    let (major, minor) = device.unwrap_or_default();
    number(329, 7, major.into());
    number(337, 7, minor.into());
    put(148, b"        ");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}
