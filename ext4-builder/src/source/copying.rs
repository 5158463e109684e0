//! Data of files on its way into the filesystem, in threads of its own.
//!
//! Whoever reads a tree hands over jobs: a file with its place, or some bytes with theirs. The queue is short, so that
//! neither open files nor bytes pile up. Where the bytes go is decided before a job is made, so what is made of a tree
//! does not depend on the number of threads or on which of them is first.
//!
//! What the host can have the image share with a file is not copied at all: see [`Storage::copy_from`].
//!
//! The first failure ends everything: jobs after it are dropped, and the next one that is handed over is refused with
//! it.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use block::{Error, HostCopy, Result, Storage};
use rustix::fs::{Advice, fadvise};

use super::Control;
use super::host_file::HostFile;
use super::stat::{Stat, changed};
use crate::Placement;

/// Bytes that are read at once.
pub(super) const BUFFER: usize = 256 << 10;

/// A file longer than this is announced to the kernel as one to be read from end to end.
const LONG: u64 = 1 << 20;

/// Data that is no longer than this is sooner read and written than shared, and would leave the image in many pieces.
const READ_SOONER: u64 = BUFFER as u64;

/// Jobs in the queue for each thread.
const QUEUE: usize = 8;

/// What is to be copied.
#[derive(Debug)]
pub(super) enum Job {
    /// A file of the host.
    File {
        file: OwnedFd,
        /// What it was when it was placed.
        stat: Stat,
        placement: Placement,
        /// Its name, for messages.
        path: PathBuf,
    },
    /// Bytes of a file, from `offset` on.
    Bytes {
        bytes: Vec<u8>,
        placement: Arc<Placement>,
        offset: u64,
    },
}

/// Takes jobs.
#[derive(Debug)]
pub(super) struct Copier<'a> {
    jobs: SyncSender<Job>,
    shared: &'a Shared<'a>,
}

/// What all threads have.
struct Shared<'a> {
    storage: &'a dyn Storage,
    control: &'a Control<'a>,
    failed: OnceLock<Error>,
    /// Jobs that are not done.
    left: Mutex<usize>,
    done: Condvar,
    /// Buffers that can be used again.
    buffers: Mutex<Vec<Vec<u8>>>,
}

impl std::fmt::Debug for Shared<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// Runs `fill` with threads that copy what it asks for, and waits for them.
///
/// # Errors
/// The first one, of `fill` or of the copying.
pub(super) fn run<T>(
    storage: &dyn Storage,
    control: &Control<'_>,
    fill: impl FnOnce(&Copier<'_>) -> Result<T>,
) -> Result<T> {
    let threads = control.threads.get();
    let shared = Shared {
        storage,
        control,
        failed: OnceLock::new(),
        left: Mutex::new(0),
        done: Condvar::new(),
        buffers: Mutex::new(Vec::new()),
    };
    let (send, receive) = sync_channel(threads * QUEUE);
    let receive = Mutex::new(receive);
    let filled = thread::scope(|scope| {
        for _ in 0..threads {
            thread::Builder::new()
                .name("copy".into())
                .spawn_scoped(scope, || shared.work(&receive))
                .map_err(|error| Error::io("start a thread to copy", error))?;
        }
        let copier = Copier {
            jobs: send,
            shared: &shared,
        };
        // Without the copier, the threads end when the queue is empty.
        fill(&copier).inspect_err(|error| shared.fail(error.clone()))
    });
    match shared.failed.into_inner() {
        Some(error) => Err(error),
        None => filled,
    }
}

impl Copier<'_> {
    /// Hands over a job; waits while the queue is full.
    ///
    /// # Errors
    /// What failed before.
    pub(super) fn put(&self, job: Job) -> Result<()> {
        self.check()?;
        *lock(&self.shared.left) += 1;
        self.jobs
            .send(job)
            .map_err(|_| Error::invalid("nobody is there to copy any more"))
    }

    /// What failed, or a request to stop.
    pub(super) fn check(&self) -> Result<()> {
        match self.shared.failed.get() {
            Some(error) => Err(error.clone()),
            None => (self.shared.control.report)(0),
        }
    }

    /// Waits for all jobs so far.
    ///
    /// # Errors
    /// What failed.
    pub(super) fn wait(&self) -> Result<()> {
        let mut left = lock(&self.shared.left);
        while *left > 0 {
            left = self
                .shared
                .done
                .wait(left)
                .unwrap_or_else(PoisonError::into_inner);
        }
        drop(left);
        self.check()
    }

    /// A buffer of so many bytes, whatever they are.
    pub(super) fn buffer(&self, len: usize) -> Vec<u8> {
        self.shared.buffer(len)
    }
}

impl Shared<'_> {
    fn work(&self, jobs: &Mutex<Receiver<Job>>) {
        loop {
            let Ok(job) = lock(jobs).recv() else {
                return;
            };
            if self.failed.get().is_none()
                && let Err(error) = self.copy(job)
            {
                self.fail(error);
            }
            *lock(&self.left) -= 1;
            self.done.notify_all();
        }
    }

    fn fail(&self, error: Error) {
        // Later ones are what comes of the first.
        let _ = self.failed.set(error);
    }

    fn copy(&self, job: Job) -> Result<()> {
        match job {
            Job::Bytes {
                bytes,
                placement,
                offset,
            } => {
                placement.write(self.storage, &bytes, offset)?;
                (self.control.report)(bytes.len() as u64)?;
                self.put_back(bytes);
                Ok(())
            }
            Job::File {
                file,
                stat,
                placement,
                path,
            } => {
                let mut buffer = self.buffer(BUFFER);
                let copied = self.copy_file(&file, &stat, &placement, &mut buffer);
                self.put_back(buffer);
                copied.map_err(|error| error.with_path(path))
            }
        }
    }

    fn copy_file(&self, file: &OwnedFd, stat: &Stat, placement: &Placement, buffer: &mut [u8]) -> Result<()> {
        if stat.size > LONG {
            // A hint: without it, it is only slower.
            let _ = fadvise(file, 0, None, Advice::Sequential);
        }
        let file = HostFile(file);
        let shares = stat.size > READ_SOONER && self.storage.may_copy_from(&file, HostCopy::Reflink);
        for run in placement.runs() {
            let (mut offset, end) = (run.file_offset, run.file_offset + run.len);
            if shares && run.len > READ_SOONER {
                let shared =
                    self.storage
                        .copy_from(run.storage_offset, &file, offset, run.len, HostCopy::Reflink)?;
                (self.control.report)(shared)?;
                offset += shared;
            }
            while offset < end {
                let want = (end - offset).min(buffer.len() as u64) as usize;
                let len = file.read(&mut buffer[..want], offset)?;
                if len == 0 {
                    return Err(changed("it became shorter"));
                }
                placement.write(self.storage, &buffer[..len], offset)?;
                (self.control.report)(len as u64)?;
                offset += len as u64;
            }
        }
        stat.check(file.0)
    }

    fn buffer(&self, len: usize) -> Vec<u8> {
        let mut buffer = lock(&self.buffers).pop().unwrap_or_default();
        buffer.resize(len, 0);
        buffer
    }

    fn put_back(&self, buffer: Vec<u8>) {
        if buffer.capacity() >= BUFFER {
            lock(&self.buffers).push(buffer);
        }
    }
}

/// All of a file that fits a buffer.
pub(super) fn read_small(file: &OwnedFd, stat: &Stat) -> Result<Vec<u8>> {
    let mut bytes = vec![0; stat.size as usize];
    let mut offset = 0;
    while offset < bytes.len() {
        let len = HostFile(file).read(&mut bytes[offset..], offset as u64)?;
        if len == 0 {
            return Err(changed("it became shorter"));
        }
        offset += len;
    }
    stat.check(file)?;
    Ok(bytes)
}

/// What a panic of another thread left in there is whole: nothing is ever half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::num::NonZeroUsize;
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    use block::{HostExtent, MemStorage, ZeroMode};

    use super::*;
    use crate::{Builder, Metadata, Options, Size};

    const LEN: u64 = 3 * READ_SOONER + 777;

    /// Takes over what it is asked to, but for the last 1000 bytes of it; meanwhile, `during` happens to the file.
    struct Sharing<'d> {
        storage: MemStorage,
        taken: Mutex<u64>,
        during: &'d (dyn Fn() + Sync),
    }

    impl std::fmt::Debug for Sharing<'_> {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("Sharing").finish_non_exhaustive()
        }
    }

    impl Storage for Sharing<'_> {
        fn copy_from(
            &self,
            offset: u64,
            source: &dyn Storage,
            from: u64,
            len: u64,
            how: HostCopy,
        ) -> Result<u64> {
            assert!(how == HostCopy::Reflink && source.host_file().is_some());
            let mut bytes = vec![0; len as usize - 1000];
            source.read_exact_at(&mut bytes, from)?;
            self.storage.write_all_at(&bytes, offset)?;
            (self.during)();
            *lock(&self.taken) += bytes.len() as u64;
            Ok(bytes.len() as u64)
        }
        fn may_copy_from(&self, _: &dyn Storage, _: HostCopy) -> bool {
            true
        }
        fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
            self.storage.read_exact_at(buf, offset)
        }
        fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
            self.storage.write_all_at(buf, offset)
        }
        fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
            self.storage.zero(offset, len, mode)
        }
        fn discard(&self, offset: u64, len: u64) -> Result<()> {
            self.storage.discard(offset, len)
        }
        fn host_extent(&self, offset: u64, len: u64) -> Result<HostExtent> {
            self.storage.host_extent(offset, len)
        }
        fn sync_data(&self) -> Result<()> {
            self.storage.sync_data()
        }
        fn len(&self) -> Result<u64> {
            self.storage.len()
        }
        fn set_len(&self, len: u64) -> Result<()> {
            self.storage.set_len(len)
        }
    }

    /// Copies one file into a filesystem. Returns what is there of it.
    fn copy(storage: &Sharing<'_>, path: &Path) -> Result<Vec<u8>> {
        let options = Options::new(Size::Shrink, [7; 16]);
        let mut builder = Builder::new(storage, options)?;
        let file = OwnedFd::from(File::open(path).unwrap());
        let stat = Stat::of(&file, c"").unwrap();
        let metadata = Metadata::at(builder.time());
        let root = builder.root();
        let (_, placement) = builder.file(
            root,
            b"file",
            &metadata,
            stat.size,
            std::slice::from_ref(&(0..stat.size)),
        )?;
        let run = placement.runs()[0];
        let control = Control {
            threads: NonZeroUsize::MIN,
            report: &|_| Ok(()),
        };
        run_one(
            storage,
            &control,
            Job::File {
                file,
                stat,
                placement,
                path: path.to_owned(),
            },
        )?;
        let mut bytes = vec![0; run.len as usize];
        storage.read_exact_at(&mut bytes, run.storage_offset)?;
        Ok(bytes)
    }

    fn run_one(storage: &dyn Storage, control: &Control<'_>, job: Job) -> Result<()> {
        run(storage, control, |copier| copier.put(job))
    }

    #[test]
    fn what_is_not_shared_is_read_and_a_file_that_changes_meanwhile_is_found_out() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let bytes: Vec<u8> = (0..LEN).map(|at| (at / 251 + at) as u8).collect();
        fs::write(&path, &bytes).unwrap();
        let sharing = |during| Sharing {
            storage: MemStorage::new(),
            taken: Mutex::new(0),
            during,
        };
        let storage = sharing(&|| ());
        assert!(copy(&storage, &path).unwrap() == bytes);
        assert_eq!(*lock(&storage.taken), LEN - 1000);

        let write = || {
            let file = File::options().write(true).open(&path).unwrap();
            file.write_all_at(b"other", 5).unwrap();
            // The clock of the file system may not have moved since the file was made.
            let then = std::time::SystemTime::UNIX_EPOCH;
            file.set_modified(then).unwrap();
        };
        let set_len = |len| {
            let file = File::options().write(true).open(&path).unwrap();
            file.set_len(len).unwrap();
        };
        let (longer, shorter) = (|| set_len(LEN + 1), || set_len(LEN - 10));
        let during: [(&(dyn Fn() + Sync), &str); 3] = [
            (&write, "was written to"),
            (&longer, "became longer"),
            (&shorter, "became shorter"),
        ];
        for (during, how) in during {
            fs::write(&path, &bytes).unwrap();
            let error = copy(&sharing(during), &path).unwrap_err();
            assert!(error.to_string().contains(how), "{error}");
        }
    }
}
