//! Bytes that the host moves from file to file by itself, or does not even move.
//!
//! A file system with reflinks (XFS, Btrfs, bcachefs, NFS 4.2 over one of them) lets two files share blocks until one of
//! them is written to: a copy of any length takes a moment and no room. It works on whole blocks of the file system, and
//! on the end of a file that ends the other as well. Where it cannot be done, and the caller allows it, the kernel
//! copies (`copy_file_range`), which saves the way through this process and on network file systems the network.
//!
//! Neither tells beforehand whether it will work, and both may refuse for any reason, so a refusal is never an error:
//! the caller copies as usual, and meets the error that there may be then. Only that files cannot share anything at all
//! can be found out: the kernel says so before it looks at the range, and so it is asked for one that is not there.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use block::{HostCopy, Result, Storage};
use rustix::io::{Errno, retry_on_intr};

use crate::File;
use crate::direct::Direct;

/// Bytes that the kernel copies in one call at most, so that callers are asked now and then whether to go on.
const MAX_COPY: u64 = 64 << 20;

impl File {
    /// See [`Storage::copy_from`].
    pub(crate) fn take_over(
        &self,
        offset: u64,
        source: &dyn Storage,
        source_offset: u64,
        len: u64,
        how: HostCopy,
    ) -> Result<u64> {
        self.check_writable("write")?;
        self.check_range("write", offset, len)?;
        let (Some(from), false) = (source.host_file(), self.is_block_device()) else {
            return Ok(0);
        };
        let _writing = self.direct.as_ref().map(Direct::among_writers);
        let left = source.len()?.saturating_sub(source_offset);
        let whole = len.min(left);
        let shared = self.shareable(offset, source_offset, whole, whole == left);
        if shared > 0 && clone_range(self.as_fd(), offset, from, source_offset, shared).is_ok() {
            return Ok(shared);
        }
        if how == HostCopy::Reflink || whole == 0 {
            return Ok(0);
        }
        let (mut from_offset, mut to_offset) = (source_offset, offset);
        let copy = || {
            let len = whole.min(MAX_COPY) as usize;
            rustix::fs::copy_file_range(from, Some(&mut from_offset), self, Some(&mut to_offset), len)
        };
        match retry_on_intr(copy) {
            Ok(copied) => Ok(copied as u64),
            Err(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::IO)) => Err(self.fail("write", offset, errno)),
            Err(_) => Ok(0),
        }
    }

    /// See [`Storage::may_copy_from`].
    pub(crate) fn may_take_over(&self, source: &dyn Storage, how: HostCopy) -> bool {
        let (Some(from), false) = (source.host_file(), self.is_block_device()) else {
            return false;
        };
        let (Ok(end), Ok(own_end), Ok(file_system)) =
            (source.len(), self.host_len(), rustix::fs::fstatvfs(self))
        else {
            return false;
        };
        let block = file_system.f_bsize.max(1);
        let past = |end: u64| end.next_multiple_of(block);
        let refused = [Errno::OPNOTSUPP, Errno::XDEV, Errno::NOTTY, Errno::NOSYS];
        how == HostCopy::Any
            || !clone_range(self.as_fd(), past(own_end), from, past(end), block)
                .is_err_and(|errno| refused.contains(&errno))
    }

    /// How many of `len` bytes lie on block boundaries in both files, or end both.
    fn shareable(&self, offset: u64, source_offset: u64, len: u64, ends_source: bool) -> u64 {
        let Ok(file_system) = rustix::fs::fstatvfs(self) else {
            return 0;
        };
        let block = file_system.f_bsize.max(1);
        if !offset.is_multiple_of(block) || !source_offset.is_multiple_of(block) {
            return 0;
        }
        let ends_both = ends_source && self.host_len().is_ok_and(|own| offset + len >= own);
        if ends_both { len } else { len - len % block }
    }
}

/// `FICLONERANGE`: `len` bytes, more than 0.
fn clone_range(
    to: BorrowedFd<'_>,
    offset: u64,
    from: BorrowedFd<'_>,
    source_offset: u64,
    len: u64,
) -> rustix::io::Result<()> {
    let range = libc::file_clone_range {
        src_fd: from.as_raw_fd().into(),
        src_offset: source_offset,
        src_length: len,
        dest_offset: offset,
    };
    retry_on_intr(|| {
        // SAFETY: the kernel reads one `file_clone_range` from this address, where there is one until the call has
        // returned, and writes to no memory of ours. Both descriptors are borrowed, so they are open.
        #[allow(unsafe_code)]
        let done = unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONERANGE, &raw const range) };
        if done == 0 {
            Ok(())
        } else {
            let error = std::io::Error::last_os_error();
            Err(Errno::from_io_error(&error).unwrap_or(Errno::IO))
        }
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::OpenOptions;
    use crate::testing::{Mount, run, text};
    use HostCopy::{Any, Reflink};

    const MIB: u64 = 1 << 20;

    fn create(directory: &Path, name: &str) -> File {
        let options = OpenOptions::new().write(true).create_new(true);
        options.open(directory.join(name)).unwrap()
    }

    /// Bytes that differ from place to place.
    fn pattern(len: usize) -> Vec<u8> {
        (0..len as u64)
            .map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8)
            .collect()
    }

    /// Bytes at the start of the file, and how many of all its extents the file system calls shared.
    fn shared(file: &File) -> usize {
        file.sync_data().unwrap();
        run("filefrag", &["-v", text(&file.path)])
            .matches("shared")
            .count()
    }

    fn used(mount: &Mount) -> u64 {
        run("sync", &["-f", text(mount.path())]);
        let found = rustix::fs::statvfs(mount.path()).unwrap();
        (found.f_blocks - found.f_bfree) * found.f_frsize
    }

    #[test]
    fn file_systems_with_reflinks_share_what_is_taken_over() {
        for kind in ["xfs", "btrfs"] {
            let mount = Mount::with(kind, 512 * MIB);
            let source = create(mount.path(), "source");
            let bytes = pattern(20 * MIB as usize);
            source.write_all_at(&bytes, MIB).unwrap();
            source.sync_data().unwrap();
            let before = used(&mount);

            let target = create(mount.path(), "target");
            target.set_len(30 * MIB).unwrap();
            let copied = target
                .copy_from(3 * MIB, &source, MIB, 20 * MIB, Reflink)
                .unwrap();
            assert_eq!(copied, 20 * MIB, "{kind}");
            assert!(shared(&target) > 0, "{kind}");
            let taken = used(&mount).saturating_sub(before);
            assert!(taken < 2 * MIB, "{kind}: {taken} bytes more are in use");

            let mut found = vec![0; bytes.len()];
            target.read_exact_at(&mut found, 3 * MIB).unwrap();
            assert!(found == bytes);
            let hole = target.host_extent(0, 30 * MIB).unwrap();
            assert_eq!((hole.len, hole.data), (3 * MIB, false), "{kind}");
            // What is written to one of them afterwards is not seen in the other.
            target.write_all_at(&[7; 5000], 5 * MIB).unwrap();
            source.read_exact_at(&mut found, MIB).unwrap();
            assert!(found == bytes);
        }
    }

    #[test]
    fn what_can_never_be_shared_is_known_before() {
        let mounts = [
            (Mount::with("xfs", 512 * MIB), true),
            (Mount::with("btrfs", 512 * MIB), true),
            (Mount::ext4(16 * MIB), false),
            (Mount::tmpfs(MIB), false),
        ];
        let memory = block::MemStorage::from(vec![1; 4096]);
        for (number, (mount, shares)) in mounts.iter().enumerate() {
            let [source, target] = ["source", "target"].map(|name| create(mount.path(), name));
            for len in [0, 100, 8192] {
                source.write_all_at(&pattern(len), 0).unwrap();
                assert_eq!(target.may_copy_from(&source, Reflink), *shares, "{number}, {len}");
                assert!(target.may_copy_from(&source, Any));
                assert_eq!(target.len().unwrap(), 0);
            }
            assert!(!target.may_copy_from(&memory, Any));
            let elsewhere = create(mounts[(number + 1) % 4].0.path(), "elsewhere");
            assert!(!elsewhere.may_copy_from(&source, Reflink), "{number}");
            let empty = target.host_extent(0, MIB).unwrap();
            assert_eq!((empty.data, target.allocated().unwrap()), (false, Some(0)));
        }
    }

    #[test]
    fn a_range_is_shared_as_far_as_whole_blocks_go() {
        let mount = Mount::with("xfs", 512 * MIB);
        let source = create(mount.path(), "source");
        source.write_all_at(&pattern(100_000), 0).unwrap();
        let target = create(mount.path(), "target");
        let take = |offset, from, len| target.copy_from(offset, &source, from, len, Reflink).unwrap();
        // 100,000 bytes are 24 blocks and some; they end the file, so all of them can be shared.
        assert_eq!(take(0, 0, 100_000), 100_000);
        assert_eq!(take(0, 0, MIB), 100_000);
        assert_eq!(target.len().unwrap(), 100_000);
        // Not where the target goes on after them.
        target.set_len(MIB).unwrap();
        assert_eq!(take(0, 0, 100_000), 98_304);
        assert_eq!(take(8192, 4096, 5000), 4096);
        assert_eq!(take(8192, 4096, 4000), 0);
        assert_eq!(take(8000, 4096, 8192), 0);
        assert_eq!(take(8192, 4000, 8192), 0);
        assert_eq!(take(0, 100_000, MIB), 0);
        assert_eq!(take(0, 0, 0), 0);
        // The kernel copies what cannot be shared.
        let copied = target.copy_from(8000, &source, 4000, 10_000, Any).unwrap();
        assert_eq!(copied, 10_000);
        let mut found = vec![0; 10_000];
        target.read_exact_at(&mut found, 8000).unwrap();
        assert!(found == pattern(100_000)[4000..14_000]);
    }

    #[test]
    fn direct_storage_takes_over_too() {
        let mount = Mount::with("xfs", 512 * MIB);
        let options = OpenOptions::new().write(true).create_new(true).direct(true);
        let [source, target] =
            ["source", "target"].map(|name| options.open(mount.path().join(name)).unwrap());
        let bytes = pattern(MIB as usize);
        source.write_all_at(&bytes, 0).unwrap();
        assert_eq!(target.copy_from(0, &source, 0, MIB, Reflink).unwrap(), MIB);
        let mut found = vec![0; bytes.len()];
        target.read_exact_at(&mut found, 0).unwrap();
        assert!(found == bytes && shared(&target) > 0);
    }

    #[test]
    fn where_nothing_can_be_shared_nothing_happens() {
        let (ext4, xfs) = (Mount::ext4(16 * MIB), Mount::with("xfs", 512 * MIB));
        let source = create(ext4.path(), "source");
        source.write_all_at(&pattern(MIB as usize), 0).unwrap();
        let memory = block::MemStorage::from(vec![1; 4096]);
        for mount in [&ext4, &xfs] {
            let target = create(mount.path(), "target");
            assert_eq!(target.copy_from(0, &source, 0, MIB, Reflink).unwrap(), 0);
            assert_eq!(target.copy_from(0, &memory, 0, 4096, Any).unwrap(), 0);
            assert_eq!(target.len().unwrap(), 0);
        }
        let target = create(ext4.path(), "copy");
        assert_eq!(target.copy_from(5, &source, 7, 1000, Any).unwrap(), 1000);
        let mut found = vec![0; 1000];
        target.read_exact_at(&mut found, 5).unwrap();
        assert!(found == pattern(MIB as usize)[7..1007]);
    }

    #[test]
    fn a_full_disk_is_said_to_be_full_by_the_host_too() {
        let mount = Mount::tmpfs(3 * MIB);
        let source = create(mount.path(), "source");
        source.write_all_at(&vec![1; 2 * MIB as usize], 0).unwrap();
        let target = create(mount.path(), "target");
        // One call may stop short where room runs out; the next one says why.
        let mut done = 0;
        let error = loop {
            match target.copy_from(done, &source, done, 2 * MIB - done, Any) {
                Ok(copied) => done += copied,
                Err(error) => break error,
            }
            assert!(done > 0 && done < 2 * MIB, "{done}");
        };
        assert_eq!(error.kind(), block::ErrorKind::NoSpace, "{error}");
    }

    #[test]
    fn what_is_open_for_reading_takes_nothing_over() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("a"), "a").unwrap();
        let file = File::open(directory.path().join("a")).unwrap();
        let error = file.copy_from(0, &file, 0, 1, Any).unwrap_err();
        assert_eq!(error.kind(), block::ErrorKind::ReadOnly);
    }
}
