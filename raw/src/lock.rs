//! Image locks, as QEMU and libvirt take and respect them.
//!
//! A lock says what its holder does with the image, and what it does not want others to do. Both are sets of
//! *permissions*; each permission is a bit, and each bit of each set a byte of the file that the holder keeps
//! read-locked: byte 100 + i for "I use permission i", byte 200 + i for "I do not share permission i". Read locks
//! go together, so the bytes are taken first and looked at afterwards: a write lock that would not be granted on
//! 200 + i means that somebody does not share what we use, and one on 100 + i that somebody uses what we do not
//! share. On a conflict everything is released. Two that come at the same instant may thus both be turned away, and
//! never both let in.
//!
//! The locks are of the open file description (OFD): two openings in one process meet them like strangers, and the
//! kernel drops them with the last descriptor, however the process ends. The bytes need not exist, and nothing is ever written to them.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use block::{Error, ErrorKind, Result};

const CONSISTENT_READ: u8 = 0;
const WRITE: u8 = 1;
const RESIZE: u8 = 3;

/// First byte of "I use permission i".
const USED: u64 = 100;
/// First byte of "I do not share permission i".
const UNSHARED: u64 = 200;
/// One past the last byte of either.
const END: u64 = 204;

/// What an image is locked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// Many readers, no writer.
    Read,
    /// One writer, no reader but those that share by force.
    Write,
    /// A reader that does not mind writers.
    ForceShare,
}

impl LockMode {
    /// Permissions that the holder uses.
    fn used(self) -> &'static [u8] {
        match self {
            Self::Read | Self::ForceShare => &[CONSISTENT_READ],
            Self::Write => &[CONSISTENT_READ, WRITE, RESIZE],
        }
    }

    /// Permissions that nobody else may use meanwhile.
    fn unshared(self) -> &'static [u8] {
        match self {
            Self::Read | Self::Write => &[WRITE, RESIZE],
            Self::ForceShare => &[],
        }
    }

    /// The bytes to hold.
    fn held(self) -> impl Iterator<Item = u64> {
        let used = self.used().iter().map(|&i| USED + u64::from(i));
        used.chain(self.unshared().iter().map(|&i| UNSHARED + u64::from(i)))
    }

    /// The bytes that nobody else may hold: first what others may not do, which says more to a user.
    fn free(self) -> impl Iterator<Item = u64> {
        let unshared = self.unshared().iter().map(|&i| USED + u64::from(i));
        unshared.chain(self.used().iter().map(|&i| UNSHARED + u64::from(i)))
    }
}

/// Who is in the way of a lock: the cause of an error of kind [`Locked`](ErrorKind::Locked).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The process, where that is to be seen.
    pub pid: Option<u32>,
    /// The name of its program, as the kernel cuts it: up to 15 bytes, which are whatever the program says.
    pub program: Option<String>,
    /// What it does with the image.
    doing: &'static str,
}

impl Conflict {
    /// Who an error says is in the way; `None` for one of another kind, and where no lock is in the way but a device that is in use.
    pub fn of(error: &Error) -> Option<&Self> {
        std::error::Error::source(error)?.downcast_ref()
    }
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the image is locked: ")?;
        match (self.pid, &self.program) {
            (None, _) => f.write_str("another process")?,
            (Some(pid), _) if pid == std::process::id() => f.write_str("this process")?,
            (Some(pid), None) => write!(f, "a process (process {pid})")?,
            (Some(pid), Some(program)) => write!(f, "{} (process {pid})", block::escape(program))?,
        }
        write!(f, " {}", self.doing)
    }
}

impl std::error::Error for Conflict {}

/// Locks the image that is open at `fd`, or says who is in the way. Nothing is held after a failure.
///
/// # Errors
/// `Locked`, with a [`Conflict`] as its cause; `Io` where the file system has no locks.
pub fn acquire(fd: BorrowedFd<'_>, mode: LockMode) -> Result<()> {
    let result = hold(fd, mode).and_then(|()| look(fd, mode));
    if result.is_err() {
        release(fd);
    }
    result
}

/// Gives up the locks of the image that is open at `fd`.
///
/// Closing the last descriptor does it as well, but a child that another thread is just forking has copies of all
/// of them until it runs its program, and would keep the image locked for that long.
pub fn release(fd: BorrowedFd<'_>) {
    // The kernel refuses to unlock only what is no open file.
    let _ = ofd(fd, libc::F_OFD_SETLK, libc::F_UNLCK, USED, END - USED);
}

fn hold(fd: BorrowedFd<'_>, mode: LockMode) -> Result<()> {
    for byte in mode.held() {
        match ofd(fd, libc::F_OFD_SETLK, libc::F_RDLCK, byte, 1) {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
                return Err(locked(fd, byte, None));
            }
            Err(error) => return Err(no_locks(error)),
        }
    }
    Ok(())
}

/// Says who would be in the way of locking the image that is open at `fd`, and locks nothing.
///
/// # Errors
/// As [`acquire`].
pub fn look(fd: BorrowedFd<'_>, mode: LockMode) -> Result<()> {
    for byte in mode.free() {
        let found = ofd(fd, libc::F_OFD_GETLK, libc::F_WRLCK, byte, 1).map_err(no_locks)?;
        if found.l_type != libc::F_UNLCK as libc::c_short {
            // A lock of the classic kind has an owner; one of a file description has none (-1).
            let pid = u32::try_from(found.l_pid).ok().filter(|&pid| pid > 0);
            return Err(locked(fd, byte, pid));
        }
    }
    Ok(())
}

fn no_locks(error: io::Error) -> Error {
    Error::io("lock the image", error).with_hint("open it without locks if nobody else uses it")
}

/// The error for a byte that somebody else holds.
fn locked(fd: BorrowedFd<'_>, byte: u64, pid: Option<u32>) -> Error {
    let doing = match byte {
        101 => "is writing to it",
        103 => "may resize it",
        200 => "does not let others read it",
        201 | 203 => "has it open and does not let others write to it",
        _ => "holds a lock on it",
    };
    let pid = pid.or_else(|| holder(fd, byte));
    let conflict = Conflict {
        pid,
        program: pid.and_then(program),
        doing,
    };
    Error::told_by(ErrorKind::Locked, conflict).with_hint("wait for it or stop it")
}

/// One `fcntl` on `len` bytes from `start`; for `F_OFD_GETLK`, the lock in the way.
fn ofd(fd: BorrowedFd<'_>, command: i32, kind: i32, start: u64, len: u64) -> io::Result<libc::flock> {
    let mut lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start.cast_signed(),
        l_len: len.cast_signed(),
        l_pid: 0,
    };
    loop {
        // SAFETY: both commands take a pointer to one `flock`, which the kernel reads and may write during the
        // call; `lock` is that, initialised, and borrowed by nobody else. `fd` is open for as long as it is borrowed.
        #[allow(unsafe_code)]
        let result = unsafe { libc::fcntl(fd.as_raw_fd(), command, &raw mut lock) };
        if result != -1 {
            return Ok(lock);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// The process that holds a lock on `byte` of the file, as `/proc/*/fdinfo` tells: the file's inode number and the
/// range of each lock. No file is touched that might not answer. `None` where that is not to be seen.
fn holder(fd: BorrowedFd<'_>, byte: u64) -> Option<u32> {
    let inode = rustix::fs::fstat(fd).ok()?.st_ino;
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.into_iter().find(|pid| {
        // Its own locks at this byte, taken a moment ago, are not in its way; those of other openings are.
        let own = (*pid == std::process::id()).then(|| fd.as_raw_fd().to_string());
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else {
            return false;
        };
        let others = descriptors
            .flatten()
            .filter(|entry| entry.file_name().to_str() != own.as_deref());
        let mut texts = others.filter_map(|entry| fs::read_to_string(entry.path()).ok());
        texts.any(|text| text.lines().any(|line| covers(line, inode, byte)))
    })
}

/// Whether a line of `fdinfo` is a record lock on that inode and byte:
/// `lock: 1: OFDLCK ADVISORY READ -1 fe:00:1234 201 201`.
fn covers(line: &str, inode: u64, byte: u64) -> bool {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let ["lock:", _, "OFDLCK" | "POSIX", _, _, _, file, first, last] = fields[..] else {
        return false;
    };
    let of_file = file.rsplit(':').next().and_then(|text| text.parse().ok()) == Some(inode);
    let from = first.parse().is_ok_and(|first: u64| first <= byte);
    let to = last == "EOF" || last.parse().is_ok_and(|last: u64| byte <= last);
    of_file && from && to
}

/// The name of a process's program, if that is to be seen.
fn program(pid: u32) -> Option<String> {
    let comm = fs::read(format!("/proc/{pid}/comm")).ok()?;
    let comm = String::from_utf8_lossy(&comm);
    let comm = comm.strip_suffix('\n').unwrap_or(&comm);
    (!comm.is_empty()).then(|| comm.to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use block::Storage;

    use super::*;
    use crate::testing::{Background, eventually, run, text, try_run};
    use crate::{File, OpenOptions};

    fn image() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.raw");
        fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
        (directory, path)
    }

    /// QEMU's raw driver lets others write to what it only reads; a format with tables does not.
    fn qcow2_image() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.qcow2");
        run("qemu-img", &["create", "-q", "-f", "qcow2", text(&path), "1M"]);
        (directory, path)
    }

    fn write(path: &PathBuf) -> Result<File> {
        OpenOptions::new().write(true).open(path)
    }

    fn force_share(path: &PathBuf) -> Result<File> {
        OpenOptions::new().force_share(true).open(path)
    }

    /// Another process that has the image open, waited for until it holds its locks.
    fn qemu_io(
        path: &PathBuf,
        options: &[&str],
        refused: fn(&PathBuf) -> Result<File>,
    ) -> (Background, Error) {
        let sleep = ["-c", "sleep 60000", text(path)];
        let process = Background::start("qemu-io", &[options, &sleep].concat());
        let error = eventually(|| refused(path).err());
        assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
        assert_eq!(error.path(), Some(&**path));
        assert!(
            error
                .message()
                .contains(&format!("qemu-io (process {})", process.id())),
            "{error}"
        );
        assert!(error.hint().is_some());
        let conflict = Conflict::of(&error).unwrap();
        assert_eq!(
            (conflict.pid, conflict.program.as_deref()),
            (Some(process.id()), Some("qemu-io"))
        );
        (process, error)
    }

    #[test]
    fn while_qemu_writes_there_is_only_reading_by_force() {
        let (_directory, path) = image();
        let (_process, error) = qemu_io(&path, &["-f", "raw"], |path| File::open(path));
        assert!(error.message().ends_with("is writing to it"), "{error}");
        assert_eq!(write(&path).unwrap_err().kind(), ErrorKind::Locked);
        force_share(&path).unwrap();
    }

    #[test]
    fn while_qemu_reads_there_is_no_writing() {
        let (_directory, path) = qcow2_image();
        let (_process, error) = qemu_io(&path, &["-r", "-f", "qcow2"], write);
        assert!(
            error.message().ends_with("does not let others write to it"),
            "{error}"
        );
        File::open(&path).unwrap();
        force_share(&path).unwrap();
    }

    #[test]
    fn while_we_write_qemu_neither_writes_nor_reads_but_by_force() {
        let (_directory, path) = qcow2_image();
        let file = write(&path).unwrap();
        let (success, message) = try_run("qemu-img", &["resize", text(&path), "2M"]);
        assert!(
            !success && message.contains("Failed to get \"write\" lock"),
            "{message}"
        );
        let (success, message) = try_run("qemu-img", &["info", text(&path)]);
        assert!(
            !success && message.contains("Failed to get shared \"write\" lock"),
            "{message}"
        );
        run("qemu-img", &["info", "-U", text(&path)]);
        drop(file);
        run("qemu-img", &["resize", text(&path), "2M"]);
    }

    #[test]
    fn while_we_read_qemu_reads_and_does_not_write() {
        let (_directory, path) = qcow2_image();
        let _file = File::open(&path).unwrap();
        run("qemu-img", &["info", text(&path)]);
        let (success, message) = try_run("qemu-io", &["-c", "write 0 512", text(&path)]);
        assert!(
            !success && message.contains("Failed to get \"write\" lock"),
            "{message}"
        );
    }

    #[test]
    fn while_we_read_by_force_qemu_writes() {
        let (_directory, path) = image();
        let file = force_share(&path).unwrap();
        run("qemu-io", &["-f", "raw", "-c", "write -P 7 0 512", text(&path)]);
        let mut head = [0; 512];
        file.read_exact_at(&mut head, 0).unwrap();
        assert_eq!(head, [7; 512]);
    }

    #[test]
    fn the_bytes_held_are_those_that_qemu_holds() {
        let bytes = |mode: LockMode| mode.held().collect::<Vec<_>>();
        assert_eq!(bytes(LockMode::Read), [100, 201, 203]);
        assert_eq!(bytes(LockMode::Write), [100, 101, 103, 201, 203]);
        assert_eq!(bytes(LockMode::ForceShare), [100]);
    }

    #[test]
    fn two_openings_in_one_process_meet_and_a_refused_one_leaves_nothing() {
        let (_directory, path) = image();
        let reader = File::open(&path).unwrap();
        let error = write(&path).unwrap_err();
        assert!(error.message().contains("this process"), "{error}");
        assert_eq!(
            Conflict::of(&error).and_then(|conflict| conflict.pid),
            Some(std::process::id())
        );
        drop(reader);
        let writer = write(&path).unwrap();
        assert_eq!(File::open(&path).unwrap_err().kind(), ErrorKind::Locked);
        drop(writer);
        File::open(&path).unwrap();
    }

    #[test]
    fn whoever_only_looks_is_told_of_others_and_in_nobodys_way() {
        let (_directory, path) = qcow2_image();
        let file = fs::File::open(&path).unwrap();
        let fd = std::os::fd::AsFd::as_fd(&file);
        look(fd, LockMode::Write).unwrap();
        let writer = write(&path).unwrap();
        assert_eq!(look(fd, LockMode::Write).unwrap_err().kind(), ErrorKind::Locked);
        drop(writer);
        look(fd, LockMode::Write).unwrap();
        // QEMU wants all locks for itself, and gets them.
        run("qemu-io", &["-f", "qcow2", "-c", "write -q 0 64k", text(&path)]);
    }

    #[test]
    fn a_foreign_write_lock_is_in_the_way_too() {
        let (_directory, path) = image();
        let other = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let other = std::os::fd::AsFd::as_fd(&other);
        ofd(other, libc::F_OFD_SETLK, libc::F_WRLCK, 0, 0).unwrap();
        assert_eq!(File::open(&path).unwrap_err().kind(), ErrorKind::Locked);
    }

    #[test]
    fn a_copy_of_the_descriptor_does_not_keep_the_image_locked() {
        let (_directory, path) = image();
        let writer = write(&path).unwrap();
        let _copy = std::os::fd::AsFd::as_fd(&writer).try_clone_to_owned().unwrap();
        drop(writer);
        write(&path).unwrap();
    }

    #[test]
    fn lines_of_fdinfo() {
        let line = "lock:\t1: OFDLCK  ADVISORY  READ -1 fe:00:1234 201 203";
        assert!(covers(line, 1234, 201) && covers(line, 1234, 203));
        assert!(!covers(line, 1234, 200) && !covers(line, 1235, 201));
        assert!(covers(
            "lock:\t1: POSIX  ADVISORY  WRITE 77 fe:00:1234 0 EOF",
            1234,
            100
        ));
        assert!(!covers(
            "lock:\t1: FLOCK  ADVISORY  WRITE 77 fe:00:1234 0 EOF",
            1234,
            100
        ));
        assert!(!covers("pos:\t0", 0, 0));
    }
}
