//! Recipes: how a template is built, in TOML.
//!
//! # What is in one
//!
//! A recipe says what tree the root filesystem is made of, what is laid over that, and what disk and what machines it makes.
//! `docs/recipes.md` has all keys. It can extend others: then what they say comes first.
//!
//! # How it is built
//!
//! The tree goes straight into the filesystem that is made of it: what a program such as `mmdebstrap` writes comes through a
//! pipe. Files are laid over it, and an initrd is made of what is there, while the filesystem is built; users and services,
//! which are edits of files that the tree has, follow when it is whole. Nothing is mounted, nothing of the tree is run here,
//! and root is not needed. All happens in a directory of its own in the store, which is removed whatever happens.

mod apt;
mod blame;
mod build;
mod command;
mod cpio;
mod debootstrap;
mod disk;
mod initrd;
mod origins;
mod parse;
mod services;
mod shipped;
mod source;
mod users;

use std::path::{Path, PathBuf};

use block::Result;
use ext4_builder::source::Manifest;
use ext4_builder::source::Pattern;

use crate::Settings;
use crate::store::{Fingerprint, InstanceName};

pub use build::BuildOptions;
pub use debootstrap::Debootstrap;
pub use disk::DiskOptions;
pub use initrd::Initrd;
use origins::Origins;
pub use services::{Services, UnitName};
pub use shipped::{Shipped, shipped, shipped_named};
pub use source::{Debs, Mmdebstrap, Source};
pub use users::User;

/// What a template is built by.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// What it was loaded by: a path, or the name of a shipped one.
    pub name: PathBuf,
    /// What it makes, in a line.
    pub description: Option<String>,
    /// The operating system, where the tree does not say.
    pub os: Option<String>,
    /// Who people log in as.
    pub user: Option<String>,
    /// Whatever there is to say.
    pub notes: Option<String>,
    /// What the system calls itself, until a clone is called otherwise.
    pub hostname: Option<InstanceName>,
    /// What the root filesystem is made of.
    pub source: Source,
    /// What is left out of it.
    pub exclude: Vec<Pattern>,
    /// What is laid over it, by the file that says so.
    pub files: Vec<(PathBuf, Manifest)>,
    /// Users, by name.
    pub users: Vec<User>,
    /// Services that start, or do not.
    pub services: Services,
    /// The initrd that is made, if one is.
    pub initrd: Option<Initrd>,
    /// What disk it is.
    pub disk: DiskOptions,
    /// What machines are like.
    pub machine: Settings,
    /// Of the recipe with all that it extends.
    pub fingerprint: Fingerprint,
    origins: Origins,
}

impl Recipe {
    /// The recipe in a file, or where there is no such file, the shipped one of this name, with all that it extends.
    ///
    /// # Errors
    /// `InvalidInput` with file, line and column of what is wrong; for recipes that extend each other; and for a source
    /// that is missing. `Io`.
    pub fn load(name: &Path) -> Result<Self> {
        parse::load(name)
    }

    /// A recipe that comes with the program.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_shipped(one: &Shipped) -> Result<Self> {
        parse::load_shipped(*one)
    }

    /// One that says no more than what is made of which source.
    pub(crate) fn of_source(name: &Path, source: Source, disk: DiskOptions, machine: Settings) -> Self {
        Self {
            name: name.to_owned(),
            description: None,
            os: None,
            user: None,
            notes: None,
            hostname: None,
            source,
            exclude: Vec::new(),
            files: Vec::new(),
            users: Vec::new(),
            services: Services::default(),
            initrd: None,
            disk,
            machine,
            fingerprint: Fingerprint::of_bytes(b""),
            origins: Origins::default(),
        }
    }

    /// Packages that are asked for.
    pub fn packages(&self) -> Vec<String> {
        self.source.packages()
    }
}
