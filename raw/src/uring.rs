//! Reading and writing by `io_uring`.
//!
//! Requests are put into a queue that is shared with the kernel, handed over all at once, and waited for: a call with many
//! runs costs one system call, and the device sees them together. A single request gains nothing by it.
//!
//! Every file has a pool of rings in which it is registered, so that the kernel does not look it up for each request. A
//! thread takes a ring out, has its requests done and puts it back; there are never more rings than threads were reading
//! and writing at once. So no ring is shared, and an idle one has nothing under way.
//!
//! What a ring does not do, or does in part, it does not report: the caller asks for the rest by a system call, which is
//! right in every case (the end of the file, a signal, no room in the kernel) and has the error to tell.
//!
//! Memory that the kernel was told of belongs to it until it says that it is done, so the functions here return only then:
//! [`Flight`] waits even if something goes wrong on the way. A ring is memory shared with the kernel and must not be used in
//! both processes after a `fork`; a child that runs another program is harmless, since rings are closed on `exec`.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::AsRawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use block::{Error, ErrorKind, Result};
use io_uring::squeue::Entry;
use io_uring::types::Fixed;
use io_uring::{IoUring, opcode};

/// Requests that are under way at once, in each ring.
const DEPTH: usize = 64;

/// Bytes in one request at most: what fits the kernel's counters, and whole sectors.
const MAX_LEN: usize = 1 << 30;

/// The file that a ring was made for, among its registered files.
const FILE: Fixed = Fixed(0);

/// How long a look for completions waits for the next where the kernel cannot be waited for.
const PATIENCE: Duration = Duration::from_millis(1);

/// The rings of one file. Every call is given that file.
pub(crate) struct Uring {
    idle: Mutex<Vec<Ring>>,
}

impl Uring {
    /// Makes a ring, to see that there can be one.
    ///
    /// # Errors
    /// `Unsupported` where the kernel has no `io_uring` or does not allow it; `Io`.
    pub(crate) fn new(file: &fs::File) -> Result<Self> {
        let ring = Ring::new(file).map_err(refused)?;
        Ok(Self {
            idle: Mutex::new(vec![ring]),
        })
    }

    /// Reads the start of `buf`. Returns how many bytes; 0 says nothing.
    pub(crate) fn read(&self, file: &fs::File, buf: &mut [u8], offset: u64) -> usize {
        let mut done = [0];
        // SAFETY: the entry names `buf`, which is borrowed mutably until `run` has returned.
        #[allow(unsafe_code)]
        unsafe {
            self.run(file, &[read_entry(buf, offset)], &mut done);
        }
        done[0]
    }

    /// Writes the start of `buf`. Returns how many bytes; 0 says nothing.
    pub(crate) fn write(&self, file: &fs::File, buf: &[u8], offset: u64) -> usize {
        let mut done = [0];
        let len = buf.len().min(MAX_LEN) as u32;
        let entry = opcode::Write::new(FILE, buf.as_ptr(), len).offset(offset).build();
        // SAFETY: the entry names `buf`, of which the kernel only reads, and which is borrowed until `run` has returned.
        #[allow(unsafe_code)]
        unsafe {
            self.run(file, &[entry], &mut done);
        }
        done[0]
    }

    /// Reads into buffers one after the other. Returns how many bytes; 0 says nothing.
    pub(crate) fn read_vectored(&self, file: &fs::File, bufs: &mut [IoSliceMut<'_>], offset: u64) -> usize {
        let mut done = [0];
        let vector = bufs.as_mut_ptr().cast::<libc::iovec>();
        let entry = opcode::Readv::new(FILE, vector, bufs.len() as u32)
            .offset(offset)
            .build();
        // SAFETY: an `IoSliceMut` is an `iovec`; the slice of them, and the buffers that they borrow mutably, are
        // borrowed until `run` has returned.
        #[allow(unsafe_code)]
        unsafe {
            self.run(file, &[entry], &mut done);
        }
        done[0]
    }

    /// Writes from buffers one after the other. Returns how many bytes; 0 says nothing.
    pub(crate) fn write_vectored(&self, file: &fs::File, bufs: &[IoSlice<'_>], offset: u64) -> usize {
        let mut done = [0];
        let vector = bufs.as_ptr().cast::<libc::iovec>();
        let entry = opcode::Writev::new(FILE, vector, bufs.len() as u32)
            .offset(offset)
            .build();
        // SAFETY: an `IoSlice` is an `iovec`; the slice of them, and the buffers that they borrow, are borrowed until `run`
        // has returned, and the kernel only reads from either.
        #[allow(unsafe_code)]
        unsafe {
            self.run(file, &[entry], &mut done);
        }
        done[0]
    }

    /// Reads the starts of many buffers, each from an offset of its own. Returns how many bytes of each; 0 says
    /// nothing.
    pub(crate) fn read_batch(&self, file: &fs::File, runs: &mut [(u64, &mut [u8])]) -> Vec<usize> {
        let entries: Vec<Entry> = runs
            .iter_mut()
            .map(|(offset, buf)| read_entry(buf, *offset))
            .collect();
        let mut done = vec![0; entries.len()];
        // SAFETY: the entries name the buffers of `runs`, which are borrowed mutably, each by one, until `run` has
        // returned.
        #[allow(unsafe_code)]
        unsafe {
            self.run(file, &entries, &mut done);
        }
        done
    }

    /// Has all of `entries` done. `done` tells of each how many bytes it moved; it must be as long, and all zeros.
    ///
    /// # Safety
    /// Memory that an entry names must be valid, for reads or writes as the entry does them, until this returns.
    #[allow(unsafe_code)]
    unsafe fn run(&self, file: &fs::File, entries: &[Entry], done: &mut [usize]) {
        let idle = self.idle().pop();
        let Ok(mut ring) = idle.map_or_else(|| Ring::new(file), Ok) else {
            return;
        };
        for (entries, done) in entries.chunks(DEPTH).zip(done.chunks_mut(DEPTH)) {
            // SAFETY: as the caller promises.
            let round = unsafe { ring.round(entries, done) };
            if round.is_err() {
                // What this ring has not handed over to the kernel, it never will.
                return;
            }
        }
        self.idle().push(ring);
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Ring>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let idle = self.idle().len();
        formatter.debug_struct("Uring").field("idle", &idle).finish()
    }
}

fn read_entry(buf: &mut [u8], offset: u64) -> Entry {
    let len = buf.len().min(MAX_LEN) as u32;
    opcode::Read::new(FILE, buf.as_mut_ptr(), len)
        .offset(offset)
        .build()
}

fn refused(error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::ENOSYS | libc::EPERM | libc::EACCES) => Error::new(
            ErrorKind::Unsupported,
            "this kernel has no io_uring, or does not allow it to this process",
        )
        .with_hint(
            "reach the file's bytes by system calls (--io sync); see also /proc/sys/kernel/io_uring_disabled",
        ),
        _ => Error::io("set up io_uring", error),
    }
}

/// Queues shared with the kernel, in which one file is registered. Nothing is under way in an idle one.
struct Ring(IoUring);

impl Ring {
    fn new(file: &fs::File) -> io::Result<Self> {
        let ring = IoUring::new(DEPTH as u32)?;
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        Ok(Self(ring))
    }

    /// Has entries done, [`DEPTH`] at most. `done` tells of each how many bytes it moved.
    ///
    /// # Errors
    /// What the kernel says to the call as a whole. The ring is then of no more use.
    ///
    /// # Safety
    /// Memory that an entry names must be valid, for reads or writes as the entry does them, until this returns.
    #[allow(unsafe_code)]
    unsafe fn round(&mut self, entries: &[Entry], done: &mut [usize]) -> io::Result<()> {
        let mut flight = Flight {
            ring: &mut self.0,
            left: 0,
        };
        for (index, entry) in (0..).zip(entries) {
            let entry = entry.clone().user_data(index);
            // SAFETY: the memory is valid until this function returns, as its caller promises, and it returns (or
            // unwinds) through the end of `flight`, which waits until the kernel has done every entry that it took.
            unsafe { flight.ring.submission().push(&entry) }.map_err(io::Error::other)?;
            flight.left += 1;
        }
        while flight.left > 0 {
            match flight.ring.submit_and_wait(flight.left) {
                Ok(_) => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR)) => {}
                // The kernel is short of room for requests or completions: go on with those that there are.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => {
                    thread::yield_now();
                }
                Err(error) => return Err(error),
            }
            flight.land(done);
        }
        Ok(())
    }
}

/// The kernel lets go of a registered file some time after its ring is closed; asked expressly, at once.
impl Drop for Ring {
    fn drop(&mut self) {
        let _ = self.0.submitter().unregister_files();
    }
}

/// Requests under way in a ring. Ends when the kernel has done all that it took, however it ends.
struct Flight<'a> {
    ring: &'a mut IoUring,
    /// Requests put into the ring and not done yet.
    left: usize,
}

impl Flight<'_> {
    /// Takes in what is done.
    fn land(&mut self, done: &mut [usize]) {
        for completion in self.ring.completion() {
            self.left = self.left.saturating_sub(1);
            if let Some(done) = done.get_mut(completion.user_data() as usize) {
                *done = usize::try_from(completion.result()).unwrap_or(0);
            }
        }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        // What is still in the submission queue the kernel does not know of.
        while self.left > self.ring.submission().len() {
            self.land(&mut []);
            thread::sleep(PATIENCE);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::testing::{Mount, run, text};
    use crate::{Io, OpenOptions};
    use block::Storage;

    fn file(len: usize) -> (fs::File, Vec<u8>) {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..len as u64).map(|i| (i / 3) as u8).collect();
        file.write_all(&bytes).unwrap();
        (file, bytes)
    }

    #[test]
    fn more_requests_than_the_queue_holds_are_done_in_rounds() {
        let (file, bytes) = file(100_000);
        let uring = Uring::new(&file).unwrap();
        let mut bufs = vec![[0xee_u8; 100]; 5 * DEPTH / 2];
        let mut runs: Vec<(u64, &mut [u8])> = (0..)
            .step_by(700)
            .zip(bufs.iter_mut().map(|buf| &mut buf[..]))
            .collect();
        let done = uring.read_batch(&file, &mut runs);
        for (index, (done, buf)) in done.iter().zip(&bufs).enumerate() {
            let start = (index * 700).min(bytes.len());
            let there = (bytes.len() - start).min(100);
            assert_eq!(*done, there, "{index}");
            assert_eq!(buf[..there], bytes[start..][..there]);
        }
        assert_eq!(uring.idle().len(), 1);
    }

    #[test]
    fn what_fails_says_nothing_and_spoils_nothing() {
        let (file, bytes) = file(5000);
        let readable = fs::File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        let uring = Uring::new(&readable).unwrap();
        assert_eq!(uring.write(&readable, &[1; 100], 0), 0);
        let mut buf = [0; 100];
        assert_eq!(uring.read(&readable, &mut buf, 4950), 50);
        assert_eq!(uring.read(&readable, &mut buf, 5000), 0);
        assert_eq!(uring.read(&readable, &mut buf, 300), 100);
        assert_eq!(buf[..], bytes[300..400]);
        // Of several requests, the one that fails leaves the others alone.
        let (mut head, mut tail) = ([0; 10], [0; 10]);
        let mut runs: [(u64, &mut [u8]); 3] =
            [(0, &mut head), (i64::MAX as u64, &mut buf), (4990, &mut tail)];
        assert_eq!(uring.read_batch(&readable, &mut runs), [10, 0, 10]);
        assert_eq!((&head[..], &tail[..]), (&bytes[..10], &bytes[4990..]));
    }

    #[test]
    fn threads_have_rings_of_their_own_and_give_them_back() {
        let (file, _) = file(0);
        file.set_len(8 << 20).unwrap();
        let uring = Uring::new(&file).unwrap();
        thread::scope(|scope| {
            for thread in 0..8_u8 {
                let (file, uring) = (&file, &uring);
                scope.spawn(move || {
                    for i in 0..200_u64 {
                        let at = (i * 8 + u64::from(thread)) * 4096;
                        assert_eq!(uring.write(file, &[thread + 1; 4096], at), 4096);
                        let (mut a, mut b) = ([0; 4096], [0; 2048]);
                        let mut runs: [(u64, &mut [u8]); 2] = [(at, &mut a), (at + 2048, &mut b)];
                        assert_eq!(uring.read_batch(file, &mut runs), [4096, 2048]);
                        assert!(a.iter().chain(&b).all(|&byte| byte == thread + 1));
                    }
                });
            }
        });
        assert!((1..=8).contains(&uring.idle().len()));
    }

    #[test]
    fn a_ring_that_is_given_up_waits_for_what_the_kernel_took() {
        let (reader, writer) = io::pipe().unwrap();
        let (reader, mut writer) = (fs::File::from(std::os::fd::OwnedFd::from(reader)), writer);
        let mut ring = Ring::new(&reader).unwrap();
        let mut buf = [0; 4];
        let late = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            writer.write_all(b"late").unwrap();
        });
        let flight = Flight {
            ring: &mut ring.0,
            left: 1,
        };
        let entry = read_entry(&mut buf, 0);
        // SAFETY: `buf` lives longer than `flight`, whose end waits for the kernel.
        #[allow(unsafe_code)]
        unsafe { flight.ring.submission().push(&entry) }.unwrap();
        flight.ring.submit().unwrap();
        drop(flight);
        assert_eq!(&buf, b"late");
        late.join().unwrap();

        // What the kernel was never told of is not waited for.
        let flight = Flight {
            ring: &mut ring.0,
            left: 1,
        };
        // SAFETY: as above.
        #[allow(unsafe_code)]
        unsafe { flight.ring.submission().push(&entry) }.unwrap();
        drop(flight);
    }

    #[test]
    fn a_file_system_can_be_unmounted_once_its_file_is_closed() {
        let mount = Mount::tmpfs(1 << 20);
        let path = mount.path().join("disk");
        let options = OpenOptions::new().write(true).create_new(true).io(Io::Uring);
        for _ in 0..10 {
            let file = options.open(&path).unwrap();
            file.write_all_at(&[1; 5000], 0).unwrap();
            drop(file);
            fs::remove_file(&path).unwrap();
        }
        // Without -l, which would not wait.
        run("umount", &[text(mount.path())]);
        run("mount", &["-t", "tmpfs", "imgtool-test", text(mount.path())]);
    }

    #[test]
    fn a_kernel_without_says_so() {
        for errno in [libc::ENOSYS, libc::EPERM] {
            let error = refused(io::Error::from_raw_os_error(errno));
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.hint().unwrap().contains("--io sync"));
        }
        assert_eq!(
            refused(io::Error::from_raw_os_error(libc::EMFILE)).kind(),
            ErrorKind::Io
        );
    }

    #[test]
    fn a_batch_is_as_good_as_single_reads() {
        let (file, bytes) = file(10_000);
        file.write_all_at(b"x", 0).unwrap();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        for (io, direct) in [
            (Io::Uring, false),
            (Io::Uring, true),
            (Io::Sync, false),
            (Io::Mmap, false),
        ] {
            let storage = OpenOptions::new()
                .io(io)
                .direct(direct)
                .lock(false)
                .open(&path)
                .unwrap();
            let (mut a, mut b, mut c) = ([0xee; 4096], [0xee; 3], [0xee; 5000]);
            let mut runs: [(u64, &mut [u8]); 4] =
                [(4096, &mut a), (7, &mut b), (1 << 40, &mut []), (8000, &mut c)];
            storage.read_batch(&mut runs).unwrap();
            assert_eq!((&a[..], &b[..]), (&bytes[4096..8192], &bytes[7..10]), "{io:?}");
            assert_eq!(c[..2000], bytes[8000..]);
            assert_eq!(c[2000..], [0; 3000]);
            let mut past: [(u64, &mut [u8]); 2] = [(0, &mut a), (u64::MAX, &mut b)];
            assert!(storage.read_batch(&mut past).is_err());
        }
    }
}
