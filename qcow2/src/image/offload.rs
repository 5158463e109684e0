//! Leaving a write to the host: clusters are planned, the host puts the data there, and the plan is committed.
//!
//! A plan is written whole or dropped. Where the host refuses its first bytes nothing has happened; what it refuses later
//! (the end of a file inside a block of the file system, a run that lies on no block) is read and written.

use block::{Error, HostCopy, OffloadedWrite, Result, Storage};

use super::Image;
use crate::address::{GuestOffset, HostOffset};

/// Bytes that are planned at once at most, so that callers are asked now and then whether to go on.
const LONGEST: u64 = 64 << 20;

/// Bytes that are read and written at once.
const PIECE: u64 = 256 << 10;

impl OffloadedWrite for Image {
    fn may_copy_from(&self, source: &dyn Storage, how: HostCopy) -> bool {
        self.data.may_copy_from(source, how)
    }

    fn copy_from(
        &self,
        offset: u64,
        source: &dyn Storage,
        source_offset: u64,
        len: u64,
        how: HostCopy,
    ) -> Result<u64> {
        let len = len.min(LONGEST);
        if len == 0 || source_offset.checked_add(len).is_none() {
            return Ok(0);
        }
        self.copy_planned(GuestOffset(offset), source, source_offset, len, how)
            .map_err(|error: Error| error.with_path_of(self.storage.path()))
    }
}

impl Image {
    fn copy_planned(
        &self,
        guest: GuestOffset,
        source: &dyn Storage,
        source_offset: u64,
        len: u64,
        how: HostCopy,
    ) -> Result<u64> {
        let plan = self.plan_write(guest, len)?;
        for run in plan.runs() {
            let from = source_offset + (run.guest - guest);
            let mut done = 0;
            while done < run.len {
                let left = run.len - done;
                let to = (run.host + done).0;
                let copied = self.data.copy_from(to, source, from + done, left, how)?;
                if copied == 0 {
                    break;
                }
                done += copied.min(left);
            }
            if done == 0 && run.guest == guest {
                return Ok(0);
            }
            self.copy_by_hand(run.host + done, source, from + done, run.len - done)?;
        }
        plan.commit()?;
        Ok(len)
    }

    /// Puts `len` bytes of `source` from `from` on to `host`.
    fn copy_by_hand(
        &self,
        mut host: HostOffset,
        source: &dyn Storage,
        mut from: u64,
        len: u64,
    ) -> Result<()> {
        let mut buf = vec![0; len.min(PIECE) as usize];
        let end = from + len;
        while from < end {
            let piece = &mut buf[..(end - from).min(PIECE) as usize];
            source.read_exact_at(piece, from)?;
            self.data.write_all_at(piece, host.0)?;
            from += piece.len() as u64;
            host += piece.len() as u64;
        }
        Ok(())
    }
}
