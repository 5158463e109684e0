//! Arguments that several commands have.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use block::{Error, Result};
use clap::{Args, ValueEnum};
use raw::Io;

use crate::keys;
use crate::output;
use crate::sandbox::{self, Names};
use crate::stores::StoreArgs;

/// Longest text in bytes that is in a file which an argument names.
const LONGEST_TEXT: u64 = 1 << 20;

/// The text in a file, or what a pipe or a terminal has to say. `what` it is has an article, as `a credential`.
pub(crate) fn text_of(path: &Path, what: &str) -> Result<String> {
    raw::read_text(path, what, LONGEST_TEXT)
}

/// What images may open by naming it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Nested {
    /// Nothing.
    Deny,
    /// Files beside the image or in directories below it.
    Beside,
    /// Any file or block device.
    Any,
}

/// How image files are opened.
#[derive(Clone, Debug, Args)]
pub(crate) struct OpenArgs {
    /// What images may open by naming it [default: backing files anywhere, data files beside the image]
    #[arg(long, value_enum, value_name = "WHERE")]
    pub(crate) nested: Option<Nested>,
    /// How the bytes of image files are reached
    #[arg(long, value_enum, default_value = "auto", value_name = "HOW")]
    pub(crate) io: IoMode,
    /// File that holds the passphrase of encrypted images, every byte of it; once for each that is needed
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    #[command(flatten)]
    refused: RefusedArgs,
}

impl OpenArgs {
    /// Fails for arguments that are known and not supported, reads the passphrases, and has names be those of machines in the store
    /// that is named. To be called before any image is looked for.
    pub(crate) fn check(&self) -> Result<()> {
        self.refused.check()?;
        self.store.choose();
        keys::read(&self.key)
    }
}

/// How the bytes of image files are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum IoMode {
    /// As is fastest.
    Auto,
    /// By system calls.
    Sync,
    /// By `io_uring`: many runs in one call. Pays past the page cache (-T none).
    Uring,
    /// From memory that the files are mapped into. Nobody else may cut them meanwhile, or imgtool is killed. Files that
    /// are written to, or read with -U, are reached by system calls.
    Mmap,
}

impl From<IoMode> for Io {
    fn from(mode: IoMode) -> Self {
        match mode {
            IoMode::Auto => Self::Auto,
            IoMode::Sync => Self::Sync,
            IoMode::Uring => Self::Uring,
            IoMode::Mmap => Self::Mmap,
        }
    }
}

/// What a command gives up once its files are open.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct SandboxArgs {
    /// Read images without the sandbox that keeps hostile ones from other files and programs
    #[arg(long)]
    no_sandbox: bool,
}

impl SandboxArgs {
    /// Gives up everything but what is open, and what is still done by name. To be called before threads are started, and
    /// before more is parsed than it takes to open.
    pub(crate) fn confine(self, names: Names<'_>, io: IoMode) {
        if !self.no_sandbox {
            let held = sandbox::confine(names, io == IoMode::Uring);
            if let Some(lack) = held.lack().filter(|_| io::stderr().is_terminal()) {
                output::note(lack);
            }
        }
    }
}

/// Arguments of other tools that are refused by name.
#[derive(Clone, Debug, Args)]
struct RefusedArgs {
    #[arg(long, hide = true)]
    image_opts: bool,
    #[arg(long, hide = true, value_name = "OBJECT")]
    object: Option<String>,
}

impl RefusedArgs {
    fn check(&self) -> Result<()> {
        if self.image_opts {
            let hint = "name the file, and its format with -f";
            return Err(refused("--image-opts").with_hint(hint));
        }
        if self.object.is_some() {
            return Err(refused("--object")
                .with_hint("the passphrase of an encrypted image is given with --key FILE"));
        }
        Ok(())
    }
}

/// The error for an option that is known and not supported.
pub(crate) fn refused(option: &str) -> Error {
    Error::unsupported(format!("the option {option} is not supported"))
}

/// How the host's page cache is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CacheMode {
    /// Past the page cache.
    #[value(alias = "off")]
    None,
    /// Through the page cache, and on disk at the end.
    Writeback,
    /// The same: nothing is waited for before the end.
    Writethrough,
    /// Past the page cache.
    Directsync,
    /// Through the page cache, and on disk when the host gets to it.
    Unsafe,
}

impl CacheMode {
    /// Past the page cache.
    pub(crate) fn direct(self) -> bool {
        matches!(self, Self::None | Self::Directsync)
    }
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressMode {
    /// A bar on a terminal; with -p and no terminal, percentages on standard output.
    #[default]
    Auto,
    /// One JSON object a line on standard error.
    Json,
    /// Nothing.
    None,
}

/// How a job that takes a while is watched.
#[derive(Clone, Debug, Args)]
pub(crate) struct WatchArgs {
    /// Show progress, on a terminal or not
    #[arg(short = 'p')]
    pub(crate) show: bool,
    /// How progress is shown
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    pub(crate) progress: ProgressMode,
    /// Print errors and nothing else
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Threads that do the work.
#[derive(Clone, Debug, Args)]
pub(crate) struct ThreadArgs {
    /// Threads that do the work [default: one per processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) threads: Option<u16>,
}
