//! A file's bytes one after the other, for whoever wants a [`Read`].

use std::io::{self, Read};

use block::Result;

use crate::{Content, Filesystem, Inode, Run};

/// Reads a regular file from its start to its end, holes as zeros. Each call reads from the disk: give it large buffers.
/// Its errors have a [`block::Error`] inside.
#[derive(Debug)]
pub struct Reader<'a> {
    filesystem: &'a Filesystem,
    content: Content<'a>,
    /// The run that ends behind `position`, if there is one.
    run: Option<Run>,
    position: u64,
    size: u64,
}

impl Filesystem {
    /// A reader of a file's content.
    ///
    /// # Errors
    /// As [`content`](Self::content).
    pub fn reader<'a>(&'a self, inode: &'a Inode) -> Result<Reader<'a>> {
        Ok(Reader {
            filesystem: self,
            content: self.content(inode)?,
            run: None,
            position: 0,
            size: inode.size(),
        })
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = (self.size - self.position).min(buf.len() as u64);
        if left == 0 {
            return Ok(0);
        }
        if self
            .run
            .as_ref()
            .is_none_or(|run| run.offset + run.len <= self.position)
        {
            self.run = self.content.next().transpose()?;
        }
        let len = match &self.run {
            Some(run) if run.offset <= self.position => {
                let skip = self.position - run.offset;
                let len = left.min(run.len - skip);
                self.filesystem.read_run(run, skip, &mut buf[..len as usize])?;
                len
            }
            next => {
                let hole = next.as_ref().map_or(left, |run| run.offset - self.position);
                let len = left.min(hole);
                buf[..len as usize].fill(0);
                len
            }
        };
        self.position += len;
        Ok(len as usize)
    }
}
