//! Tar archives of a few files, written to storage: some of a length that is known only when they are there.

use std::io::{self, Write};

use block::{Result, Storage};

use crate::archive::{BLOCK, record, ustar};

/// Bytes of the headers of a file whose length may be anything.
const HEADERS: u64 = 3 * BLOCK as u64;

/// An archive in the making.
pub(super) struct Tarball<'s> {
    storage: &'s dyn Storage,
    at: u64,
    /// Seconds since 1970, of all files.
    time: u64,
}

/// A file whose bytes are written now, and whose headers follow.
pub(super) struct Member<'s> {
    storage: &'s dyn Storage,
    /// Its first byte.
    pub(super) start: u64,
    /// Behind its last byte so far.
    pub(super) end: u64,
}

impl<'s> Tarball<'s> {
    pub(super) fn new(storage: &'s dyn Storage, time: i64) -> Self {
        Self {
            storage,
            at: 0,
            time: u64::try_from(time).unwrap_or(0),
        }
    }

    /// Adds a file.
    pub(super) fn file(&mut self, name: &str, content: &[u8]) -> Result<()> {
        let mut member = self.member();
        member.add(content)?;
        self.end(name, &member)
    }

    /// Begins a file, which is to be [ended](Self::end).
    pub(super) fn member(&self) -> Member<'s> {
        let start = self.at + HEADERS;
        Member {
            storage: self.storage,
            start,
            end: start,
        }
    }

    /// Writes the headers of a file whose bytes are there.
    pub(super) fn end(&mut self, name: &str, member: &Member<'_>) -> Result<()> {
        let len = member.end - member.start;
        let mut records = Vec::new();
        record(&mut records, b"size", len.to_string().as_bytes());
        let mut headers = ustar(
            b"./PaxHeaders/file",
            0o644,
            (0, 0),
            records.len() as u64,
            self.time,
            b'x',
            b"",
            None,
        )
        .to_vec();
        headers.extend(records);
        headers.resize(2 * BLOCK, 0);
        headers.extend(ustar(
            name.as_bytes(),
            0o644,
            (0, 0),
            len,
            self.time,
            b'0',
            b"",
            None,
        ));
        self.storage.write_all_at(&headers, self.at)?;
        let end = member.end.next_multiple_of(BLOCK as u64);
        self.storage
            .write_all_at(&vec![0; (end - member.end) as usize], member.end)?;
        self.at = end;
        Ok(())
    }

    /// Ends the archive.
    pub(super) fn finish(self) -> Result<()> {
        self.storage.write_all_at(&[0; 2 * BLOCK], self.at)
    }
}

impl Member<'_> {
    pub(super) fn add(&mut self, bytes: &[u8]) -> Result<()> {
        self.storage.write_all_at(bytes, self.end)?;
        self.end += bytes.len() as u64;
        Ok(())
    }
}

impl Write for Member<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.add(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
