//! A sandbox for what reads images: once its files are open, the process gives up everything else.
//!
//! # How it works
//!
//! A command opens what it was told to and what that names, as far as it may, and then calls [`confine`]. From there on two
//! mechanisms of the kernel hold, for this thread and all that are started later:
//!
//! - *Landlock*: no file can be opened by name, made, removed or renamed, but for [what the command still has to do](Names) in
//!   the directory of its target and below; no TCP connection can be made or waited for, and no process outside be
//!   signalled or reached by an abstract socket. Kernels up to now hold only the thread that asks, so threads that wait
//!   for signals ask for themselves ([`interrupt::in_watchers`]).
//! - *seccomp*: of the system calls those are left that work on what is open, on memory, threads and time. No program can
//!   be run, no process be traced or read, no socket be made but a pair of connected ones. Other calls fail with `ENOSYS`, as on a kernel that
//!   lacks them. This holds for threads that were started before, too.
//!
//! Neither asks for privileges, and none is given up where the kernel lacks one: the command works as it would without,
//! and says so to a person at a terminal. What is parsed before are headers, as they say what else is to be opened.

use std::collections::BTreeMap;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use crate::interrupt;

/// What a command still does by the names of files.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Names<'p> {
    /// Nothing.
    None,
    /// Files that are open get their names, or are removed, in these directories.
    Finish(&'p [&'p Path]),
    /// Files are made and written to in this directory.
    Write(&'p Path),
}

/// What holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// Files, connections and signals.
    pub(crate) landlock: bool,
    /// System calls.
    pub(crate) seccomp: bool,
}

/// Gives up everything but what is open, and `names`. `uring`: files are reached by `io_uring`.
pub(crate) fn confine(names: Names<'_>, uring: bool) -> Held {
    let landlock = restrict(names);
    let seccomp =
        filter(names, uring).is_some_and(|filter| seccompiler::apply_filter_all_threads(&filter).is_ok());
    Held {
        landlock: matches!(
            landlock,
            Ok(RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced)
        ),
        seccomp,
    }
}

impl Held {
    /// What the kernel does not have, for people.
    pub(crate) fn lack(self) -> Option<&'static str> {
        match (self.landlock, self.seccomp) {
            (true, true) => None,
            (false, false) => {
                Some("this kernel allows no sandbox (Landlock, seccomp): images are read without one")
            }
            (false, true) => {
                Some("this kernel has no Landlock (Linux 5.13): only seccomp holds back whoever reads images")
            }
            (true, false) => {
                Some("this kernel has no seccomp: only Landlock holds back whoever reads images")
            }
        }
    }
}

/// What may be done in the directories of [`Names`].
fn rights(names: Names<'_>) -> BitFlags<AccessFs> {
    // A directory is opened to be synced.
    let finish = AccessFs::ReadDir | AccessFs::RemoveFile | AccessFs::MakeReg;
    match names {
        Names::None => BitFlags::empty(),
        Names::Finish(_) => finish,
        Names::Write(_) => finish | AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate,
    }
}

fn restrict(names: Names<'_>) -> Result<RulesetStatus, RulesetError> {
    let abi = ABI::V7;
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?;
    let one;
    let directories = match names {
        Names::None => &[],
        Names::Finish(directories) => directories,
        Names::Write(directory) => {
            one = [directory];
            &one[..]
        }
    };
    for directory in directories {
        // One that cannot be opened cannot be written to either.
        if let Ok(directory) = PathFd::new(directory) {
            rules = rules.add_rule(PathBeneath::new(directory, rights(names)))?;
        }
    }
    let for_watchers = rules.try_clone().ok();
    let status = rules.restrict_self()?.ruleset;
    let Some(for_watchers) = for_watchers else {
        return Ok(RulesetStatus::NotEnforced);
    };
    // A thread that is not held could be made to do what the others may not.
    let held = interrupt::in_watchers(move || {
        for_watchers
            .try_clone()
            .is_ok_and(|rules| rules.restrict_self().is_ok())
    });
    Ok(if held { status } else { RulesetStatus::NotEnforced })
}

/// The system calls that are left. `None` on a kind of processor that has no filter here.
fn filter(names: Names<'_>, uring: bool) -> Option<BpfProgram> {
    let architecture = std::env::consts::ARCH.try_into().ok()?;
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut allow = |calls: &[libc::c_long]| rules.extend(calls.iter().map(|call| (*call, Vec::new())));
    allow(OPEN_FILES);
    allow(MEMORY_AND_THREADS);
    allow(FACTS);
    allow(OF_THIS_ARCHITECTURE);
    if !matches!(names, Names::None) {
        allow(BY_NAME);
    }
    if uring {
        allow(URING);
    }
    rules.extend(conditional()?);
    let denied = SeccompAction::Errno(libc::ENOSYS as u32);
    let filter = SeccompFilter::new(rules, denied, SeccompAction::Allow, architecture).ok()?;
    filter.try_into().ok()
}

/// Calls that are left for some arguments only.
fn conditional() -> Option<BTreeMap<i64, Vec<SeccompRule>>> {
    use SeccompCmpOp::{Eq, MaskedEq, Ne};
    let when = |argument, operator, value| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value).ok()
    };
    let only = |conditions| Some(vec![SeccompRule::new(conditions).ok()?]);
    let not_executable = |argument| only(vec![when(argument, MaskedEq(libc::PROT_EXEC as u64), 0)?]);
    let me = u64::from(std::process::id());
    Some(BTreeMap::from([
        (
            libc::SYS_ioctl,
            IOCTLS
                .iter()
                .map(|command| SeccompRule::new(vec![when(1, Eq, *command)?]).ok())
                .collect::<Option<_>>()?,
        ),
        (libc::SYS_mmap, not_executable(2)?),
        (libc::SYS_mprotect, not_executable(2)?),
        (
            libc::SYS_prctl,
            only(vec![when(0, Eq, libc::PR_SET_NAME as u64)?])?,
        ),
        // Limits are asked for, and not set.
        (libc::SYS_prlimit64, {
            let nothing = SeccompCondition::new(2, SeccompCmpArgLen::Qword, Eq, 0).ok()?;
            only(vec![nothing])?
        }),
        // Threads, and no processes. `clone3`, whose flags lie in memory, is not there, and libraries do without.
        (libc::SYS_clone, {
            let thread = libc::CLONE_THREAD as u64;
            only(vec![when(0, MaskedEq(thread), thread)?])?
        }),
        // Nobody is asked to send signals.
        (
            libc::SYS_fcntl,
            only(vec![
                when(1, Ne, libc::F_SETOWN as u64)?,
                when(1, Ne, F_SETSIG)?,
                when(1, Ne, F_SETOWN_EX)?,
            ])?,
        ),
        // A stream that is connected, and stays so: others send to any address.
        (
            libc::SYS_socketpair,
            only(vec![
                when(0, Eq, libc::AF_UNIX as u64)?,
                when(1, MaskedEq(SOCKET_TYPE), libc::SOCK_STREAM as u64)?,
            ])?,
        ),
        (libc::SYS_sendto, {
            let nowhere_else = SeccompCondition::new(4, SeccompCmpArgLen::Qword, Eq, 0).ok()?;
            only(vec![nowhere_else])?
        }),
        (libc::SYS_tgkill, only(vec![when(0, Eq, me)?])?),
    ]))
}

/// What is asked of a terminal to know it as one (`TCGETS`, `TCGETS2`) and how wide it is (`TIOCGWINSZ`), of a socket not to wait
/// (`FIONBIO`), and of a file to share its bytes with another (`FICLONERANGE`): the same numbers on all processors that have a filter.
/// What is left out types into a terminal, changes what a file is, or is a driver's.
const IOCTLS: [u64; 5] = [0x5401, 0x802c_542a, 0x5413, 0x5421, 0x4020_940d];
const F_SETSIG: u64 = 10;
const F_SETOWN_EX: u64 = 15;
/// The bits of a socket's type that are no flags.
const SOCKET_TYPE: u64 = 0xf;

/// What is done to files that are open.
const OPEN_FILES: &[libc::c_long] = &[
    libc::SYS_close,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getsockopt,
    libc::SYS_lseek,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pselect6,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readahead,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_sendfile,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_splice,
    libc::SYS_sync_file_range,
    libc::SYS_write,
    libc::SYS_writev,
];

/// What a program does to itself.
const MEMORY_AND_THREADS: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mremap,
    libc::SYS_msync,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_pipe2,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_sigaltstack,
];

/// What tells something, of files by their names too.
const FACTS: &[libc::c_long] = &[
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getcwd,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_newfstatat,
    libc::SYS_readlinkat,
    libc::SYS_sched_getaffinity,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

/// What Landlock keeps to the directories of [`Names`].
const BY_NAME: &[libc::c_long] = &[
    libc::SYS_fchmod,
    libc::SYS_openat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_unlinkat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
];

const URING: &[libc::c_long] = &[
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
];

/// Older forms, which newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const OF_THIS_ARCHITECTURE: &[libc::c_long] = &[
    libc::SYS_access,
    libc::SYS_dup2,
    libc::SYS_epoll_wait,
    libc::SYS_lstat,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_select,
    libc::SYS_stat,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const OF_THIS_ARCHITECTURE: &[libc::c_long] = &[];
