//! An archive from its first header to its end.

use std::io::Read;
use std::ops::Range;

use block::{Error, Result};

use super::acl::NamedList;
use super::blocks::Blocks;
use super::fault::Fault;
use super::header::{BLOCK, Header, owner};
use super::other;
use super::pax::Extended;
use super::sparse::{MapParser, PaxMap, PieceList, gnu_extension};
use super::{Entry, Kind, Options, Time, Xattr};
use crate::acl::{ACCESS, DEFAULT, permissions};

/// Bytes of a name, of an entry or a link's target.
const MAX_NAME: u64 = 64 << 10;

/// Parts of a path: no path that a kernel takes (`PATH_MAX`) has more. Each may be a directory that nothing else names, and takes memory and room.
const MAX_PARTS: usize = 2047;

/// Bytes of all extended headers in front of an entry, and of all global ones in an archive.
const MAX_RECORDS: u64 = 16 << 20;

/// Bytes that an entry may have, so that sums with it do not overflow.
const MAX_SIZE: u64 = i64::MAX as u64 / 2;

/// A tar archive that is read from a stream, entry by entry.
///
/// ```
/// use ext4_builder::tar::{Archive, Kind, Options};
///
/// # fn read(input: impl std::io::Read) -> block::Result<()> {
/// let mut archive = Archive::new(input, Options::default());
/// let mut buffer = vec![0; 1 << 20];
/// while let Some(entry) = archive.next_entry()? {
///     if let Kind::File { size, data } = &entry.kind {
///         println!("{} bytes, of which the archive has the ranges {data:?}", size);
///         while archive.read_data(&mut buffer)? > 0 {
///             // The bytes of these ranges, one after the other.
///         }
///     }
/// }
/// # Ok(())
/// # }
/// ```
pub struct Archive<R> {
    blocks: Blocks<R>,
    options: Options,
    /// What global extended headers said so far, and in how many bytes.
    global: Extended,
    global_len: u64,
    /// The entry whose data comes next: its name, for errors, and the bytes that are left of it, without and with
    /// what fills up the last block.
    name: Vec<u8>,
    left: u64,
    stored_left: u64,
    state: State,
}

enum State {
    Open,
    Ended,
    /// An error holds for every later call too: after it, nobody knows where the next header would be.
    Failed(Error),
}

/// Access control lists with the names of their attributes.
type NamedLists = Vec<(Vec<u8>, NamedList)>;

/// A header with all that was said in front of it.
struct Headers {
    header: Header,
    offset: u64,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    extended: Extended,
}

impl<R: Read> Archive<R> {
    /// Nothing is read yet.
    pub fn new(input: R, options: Options) -> Self {
        Self {
            blocks: Blocks::new(input),
            options,
            global: Extended::default(),
            global_len: 0,
            name: Vec::new(),
            left: 0,
            stored_left: 0,
            state: State::Open,
        }
    }

    /// The next entry, or none when the archive has ended as it should and all of the input was read. What was not
    /// read of the previous entry's data is left out.
    ///
    /// # Errors
    /// `Corrupt` for what contradicts the format, an early end among it; `Unsupported`; `Io`. After an error there
    /// are no more entries: every call returns it again.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        match &self.state {
            State::Failed(error) => return Err(error.clone()),
            State::Ended => return Ok(None),
            State::Open => {}
        }
        let entry = self.read_entry();
        match &entry {
            Ok(Some(_)) => {}
            Ok(None) => self.state = State::Ended,
            Err(error) => self.state = State::Failed(error.clone()),
        }
        entry
    }

    /// Reads on in the data of the latest entry: of a sparse file, the bytes of its ranges without the holes between
    /// them. Fills `buffer` except at the end of the data, and returns how much it read.
    ///
    /// # Errors
    /// `Corrupt` where the archive ends before the data does; `Io`.
    pub fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize> {
        if let State::Failed(error) = &self.state {
            return Err(error.clone());
        }
        let len = self.left.min(buffer.len() as u64);
        if len == 0 {
            return Ok(0);
        }
        let read = self
            .blocks
            .read_exact(&mut buffer[..len as usize], truncated(&self.name));
        if let Err(error) = read {
            self.state = State::Failed(error.clone());
            return Err(error);
        }
        self.left -= len;
        self.stored_left -= len;
        Ok(len as usize)
    }

    /// Where in the archive, once it is decompressed, the next byte of data is.
    pub fn data_offset(&self) -> u64 {
        self.blocks.offset()
    }

    fn read_entry(&mut self) -> Result<Option<Entry>> {
        self.blocks.skip(self.left, truncated(&self.name))?;
        let rest = self.stored_left - self.left;
        (self.left, self.stored_left) = (0, 0);
        // Programs that do not end an archive do not fill up its last block either.
        if self.options.end_mark_optional && (1..BLOCK as u64).contains(&rest) && self.blocks.is_at_end()? {
            return Ok(None);
        }
        self.blocks.skip(rest, truncated(&self.name))?;
        let Some(headers) = self.read_headers()? else {
            return Ok(None);
        };
        self.name = headers.name();
        let offset = headers.offset;
        self.read_described(headers)
            .map(Some)
            .map_err(|problem| match problem {
                Problem::Fault(fault) => fault.at(offset, Some(&self.name)),
                Problem::Error(error) => error,
            })
    }

    /// Reads up to the header of an entry; none at the archive's end.
    fn read_headers(&mut self) -> Result<Option<Headers>> {
        let (mut long_name, mut long_link, mut extended) = (None, None, None);
        let mut extended_len: u64 = 0;
        loop {
            let offset = self.blocks.offset();
            let fail = |fault: Fault| fault.at(offset, None);
            let dangling = long_name.is_some() || long_link.is_some() || extended.is_some();
            let block = match self.blocks.next()? {
                Some(block) if block != [0; BLOCK] => block,
                _ if dangling => return Err(fail(Fault::DanglingHeader)),
                Some(_) => {
                    self.read_end()?;
                    return Ok(None);
                }
                None if self.options.end_mark_optional => return Ok(None),
                None => return Err(fail(Fault::NoEndMark)),
            };
            let header = Header::parse(&block).map_err(|fault| {
                fail(match offset {
                    0 => other::name(&block).map_or(Fault::NoArchive, Fault::Other),
                    _ => fault,
                })
            })?;
            let size = header.size();
            match header.type_flag() {
                b'L' => long_name = Some(self.read_name(size.map_err(fail)?, offset)?),
                b'K' => long_link = Some(self.read_name(size.map_err(fail)?, offset)?),
                // Solaris wrote X before POSIX settled on x.
                b'x' | b'X' => {
                    let size = size.map_err(fail)?;
                    extended_len = extended_len.saturating_add(size);
                    check_len("extended header", extended_len, MAX_RECORDS).map_err(fail)?;
                    let records = self.read_records(size)?;
                    let extended = extended.get_or_insert_with(|| self.global.clone());
                    extended.add(&records).map_err(fail)?;
                }
                b'g' => {
                    let size = size.map_err(fail)?;
                    self.global_len = self.global_len.saturating_add(size);
                    check_len("global extended headers", self.global_len, MAX_RECORDS).map_err(fail)?;
                    let records = self.read_records(size)?;
                    self.global.add(&records).map_err(fail)?;
                }
                // The archive's label.
                b'V' => self.skip_data(size.map_err(fail)?, offset)?,
                _ => {
                    return Ok(Some(Headers {
                        header,
                        offset,
                        long_name,
                        long_link,
                        extended: extended.unwrap_or_else(|| self.global.clone()),
                    }));
                }
            }
        }
    }

    /// Reads the rest of the archive after its first block of zeros. A second one should be there, but the first already
    /// says that no entry is missing.
    fn read_end(&mut self) -> Result<()> {
        let offset = self.blocks.offset();
        match self.blocks.next()? {
            Some(block) if block != [0; BLOCK] => return Err(Fault::LoneZeroBlock.at(offset, None)),
            _ => {}
        }
        if self.blocks.drain_zeros()? {
            return Ok(());
        }
        Err(Fault::DataAfterEnd.at(self.blocks.offset(), None))
    }

    /// The data of an entry that names the next one.
    fn read_name(&mut self, len: u64, offset: u64) -> Result<Vec<u8>> {
        check_len("name", len, MAX_NAME).map_err(|fault| fault.at(offset, None))?;
        let mut name = self
            .blocks
            .read_vec(len, |at| Fault::Truncated("a long name").at(at, None))?;
        let end = name.iter().position(|&byte| byte == 0);
        name.truncate(end.unwrap_or(name.len()));
        Ok(name)
    }

    /// The data of an extended header, whose length was checked.
    fn read_records(&mut self, len: u64) -> Result<Vec<u8>> {
        self.blocks
            .read_vec(len, |at| Fault::Truncated("an extended header").at(at, None))
    }

    fn skip_data(&mut self, len: u64, offset: u64) -> Result<()> {
        check_len("data", len, MAX_SIZE).map_err(|fault| fault.at(offset, None))?;
        let stored = len.next_multiple_of(BLOCK as u64);
        self.blocks
            .skip(stored, |at| Fault::Truncated("the archive's label").at(at, None))
    }

    /// The entry whose headers were read, up to its data.
    fn read_described(&mut self, headers: Headers) -> Result<Entry, Problem> {
        let Headers {
            header,
            long_link,
            mut extended,
            ..
        } = headers;
        let path = normalise(&self.name, "name", &self.options)?;
        let size = match extended.size {
            Some(size) => size,
            None => header.size()?,
        };
        check_len("data", size, MAX_SIZE)?;
        let link = extended
            .link_path
            .take()
            .or(long_link)
            .unwrap_or_else(|| header.link_path().to_vec());

        let is_directory_name = self.name.ends_with(b"/");
        let map = std::mem::take(&mut extended.sparse).map()?;
        let kind = match header.type_flag() {
            // Before there was a type for directories, a slash made one.
            b'0' | b'7' | 0 if is_directory_name => Kind::Directory,
            b'0' | b'7' | 0 | b'S' => self.read_map(&header, size, map)?,
            b'1' => Kind::HardLink {
                target: link_target(&link, &self.options)?,
            },
            b'2' => Kind::Symlink {
                target: symlink_target(link)?,
            },
            type_flag @ (b'3' | b'4') => {
                let major = extended.device_major.map_or_else(|| header.device_major(), Ok)?;
                let minor = extended.device_minor.map_or_else(|| header.device_minor(), Ok)?;
                if type_flag == b'3' {
                    Kind::CharacterDevice { major, minor }
                } else {
                    Kind::BlockDevice { major, minor }
                }
            }
            // A D has as data what an incremental dump found there.
            b'5' | b'D' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => return Err(unknown_type(other).into()),
        };
        if path.is_empty() && kind != Kind::Directory {
            return Err(Fault::RootIsNoDirectory.into());
        }
        if !matches!(kind, Kind::File { .. }) {
            self.pass_over_data(header.type_flag(), size)?;
        }

        let [atime, ctime] = header.other_times()?.map(|time| time.map(Time::from_secs));
        let mut mode = match kind {
            // Whatever was stored: those of a symbolic link mean nothing, and the kernel knows no others.
            Kind::Symlink { .. } => 0o777,
            _ => header.mode()?,
        };
        let (xattrs, named_lists) = xattrs(&mut extended, &kind, &mut mode, &self.options)?;
        Ok(Entry {
            path,
            kind,
            mode,
            uid: owner(extended.uid.map_or_else(|| header.uid(), Ok)?, "user id")?,
            gid: owner(extended.gid.map_or_else(|| header.gid(), Ok)?, "group id")?,
            user: extended.user.unwrap_or_else(|| header.user().to_vec()),
            group: extended.group.unwrap_or_else(|| header.group().to_vec()),
            mtime: match extended.mtime {
                Some(time) => time,
                None => Time::from_secs(header.mtime()?),
            },
            atime: extended.atime.or(atime),
            ctime: extended.ctime.or(ctime),
            created: extended.created,
            xattrs,
            named_lists,
        })
    }

    /// A file with `stored` bytes in the archive: reads what of its map is in front of the data.
    fn read_map(&mut self, header: &Header, mut stored: u64, map: Option<PaxMap>) -> Result<Kind, Problem> {
        let (size, data) = match map {
            _ if header.type_flag() == b'S' => self.read_gnu_map(header, stored)?,
            None => (stored, whole(stored)),
            Some(PaxMap::Records { size, pieces }) => (size, pieces.finish(size, stored)?),
            Some(PaxMap::Data { size }) => {
                let mut parser = MapParser::default();
                loop {
                    stored = stored
                        .checked_sub(BLOCK as u64)
                        .ok_or(Fault::SparseMap("it is longer than the data"))?;
                    if parser.add(&self.read_map_block()?)? {
                        break;
                    }
                }
                (size, parser.pieces().finish(size, stored)?)
            }
        };
        self.left = stored;
        self.stored_left = stored.next_multiple_of(BLOCK as u64);
        Ok(Kind::File { size, data })
    }

    fn read_gnu_map(&mut self, header: &Header, stored: u64) -> Result<(u64, Vec<Range<u64>>), Problem> {
        let (first, mut more, size) = header.gnu_sparse()?;
        let mut pieces = PieceList::default();
        pieces.add_gnu(first)?;
        while more {
            let block = self.read_map_block()?;
            let rest;
            (rest, more) = gnu_extension(&block);
            pieces.add_gnu(rest)?;
        }
        Ok((size, pieces.finish(size, stored)?))
    }

    fn read_map_block(&mut self) -> Result<[u8; BLOCK], Problem> {
        let mut block = [0; BLOCK];
        let truncated = |at| Fault::Truncated("a sparse map").at(at, Some(&self.name));
        self.blocks.read_exact(&mut block, truncated)?;
        Ok(block)
    }

    /// Has the data left out of an entry that is no file. Some programs store a size with such an entry and no data,
    /// some store a hard link's data once more: what follows the header tells.
    fn pass_over_data(&mut self, type_flag: u8, size: u64) -> Result<(), Problem> {
        if size == 0 {
            return Ok(());
        }
        let has_data = match self.blocks.peek()? {
            _ if type_flag == b'D' => true,
            Some(block) => block != [0; BLOCK] && Header::parse(&block).is_err(),
            None => false,
        };
        if has_data {
            self.stored_left = size.next_multiple_of(BLOCK as u64);
        }
        Ok(())
    }
}

impl Headers {
    /// The entry's name as it was written: the most capable way of saying it counts.
    fn name(&self) -> Vec<u8> {
        let extended = &self.extended;
        [&extended.sparse.name, &extended.path, &self.long_name]
            .into_iter()
            .flatten()
            .next()
            .cloned()
            .unwrap_or_else(|| self.header.path())
    }
}

/// A fault of the entry at hand, which is yet to be named, or an error that is complete.
enum Problem {
    Fault(Fault),
    Error(Error),
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

fn truncated(name: &[u8]) -> impl Fn(u64) -> Error {
    move |offset| Fault::Truncated("its data").at(offset, Some(name))
}

fn check_len(what: &'static str, len: u64, limit: u64) -> Result<(), Fault> {
    if len > limit {
        return Err(Fault::TooLong { what, len, limit });
    }
    Ok(())
}

fn whole(size: u64) -> Vec<Range<u64>> {
    (size > 0).then_some(0..size).into_iter().collect()
}

/// A path's components with one slash between them: none at the start or end, no `.`, and no `..`, which could lead
/// out of the tree.
fn normalise(path: &[u8], what: &'static str, options: &Options) -> Result<Vec<u8>, Fault> {
    check_len(what, path.len() as u64, MAX_NAME)?;
    let text = || super::fault::printable(path);
    if path.is_empty() {
        return Err(Fault::Empty(what));
    }
    if path[0] == b'/' && !options.absolute_names {
        return Err(Fault::Absolute { what, path: text() });
    }
    let mut normal = Vec::with_capacity(path.len());
    let mut parts = 0;
    for component in path.split(|&byte| byte == b'/') {
        match component {
            b"" | b"." => continue,
            b".." => return Err(Fault::ParentDirectory { what, path: text() }),
            _ => {}
        }
        parts += 1;
        if parts > MAX_PARTS {
            return Err(Fault::TooDeep {
                what,
                limit: MAX_PARTS,
            });
        }
        if !normal.is_empty() {
            normal.push(b'/');
        }
        normal.extend_from_slice(component);
    }
    Ok(normal)
}

fn link_target(link: &[u8], options: &Options) -> Result<Vec<u8>, Fault> {
    let target = normalise(link, "link's target", options)?;
    if target.is_empty() {
        return Err(Fault::Empty("link's target"));
    }
    Ok(target)
}

fn symlink_target(link: Vec<u8>) -> Result<Vec<u8>, Fault> {
    check_len("link's target", link.len() as u64, MAX_NAME)?;
    if link.is_empty() {
        return Err(Fault::Empty("link's target"));
    }
    Ok(link)
}

fn unknown_type(type_flag: u8) -> Fault {
    match type_flag {
        b'M' => Fault::Unsupported("parts of multi-volume archives"),
        b'N' => Fault::Unsupported("long names of GNU tar before 1.0"),
        b'A' => Fault::Unsupported("access control lists of Solaris"),
        other => Fault::UnknownType(char::from(other)),
    }
}

/// All extended attributes, access control lists among them in the kernel's form, and those lists that have names whose
/// numbers are not known. Sets `mode` to what the list of
/// those who have access says, as setting it on a file would: bsdtar's headers have the owning group's permissions
/// where a mode has the mask.
fn xattrs(
    extended: &mut Extended,
    kind: &Kind,
    mode: &mut u16,
    options: &Options,
) -> Result<(Vec<Xattr>, NamedLists), Fault> {
    let mut xattrs = extended.xattrs()?;
    let mut named = Vec::new();
    let access = extended.access_acl.take();
    let default = extended.default_acl.take();
    let default = default.filter(|_| *kind == Kind::Directory);
    for (name, text) in [(ACCESS, access), (DEFAULT, default)] {
        // The kernel's own form, where it is there too, needs no names.
        if let (Some(text), Err(place)) = (text, find(&xattrs, name)) {
            let list = NamedList::parse(&text, &options.names)?;
            match list.to_syscall_form() {
                Some(form) => xattrs.insert(place, (name.into(), form)),
                None => named.push((name.to_vec(), list)),
            }
        }
    }
    if let Ok(place) = find(&xattrs, ACCESS)
        && let Some((permissions, is_all)) = permissions(&xattrs[place].1)
    {
        *mode = *mode & !0o777 | permissions;
        if is_all {
            xattrs.remove(place);
        }
    }
    if let Some((_, list)) = named.iter().find(|(name, _)| name == ACCESS) {
        *mode = *mode & !0o777 | list.permissions();
    }
    Ok((xattrs, named))
}

/// Where the attribute is among others sorted by name, or where it would have to be.
fn find(xattrs: &[Xattr], name: &[u8]) -> Result<usize, usize> {
    xattrs.binary_search_by(|(other, _)| other.as_slice().cmp(name))
}
