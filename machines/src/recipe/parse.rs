//! Reading recipes, and laying those that extend others over them.
//!
//! Each file is checked alone, so that an error has its line and column; then they are merged, key by key: what a later one
//! says wins, and what it lists is added.

use std::fs;
use std::path::{Path, PathBuf};

use block::{Error, Result, escape};
use ext4_builder::source::{Manifest, Pattern};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::Recipe;
use super::disk::DiskOptions;
use super::initrd::Initrd;
use super::services::Services;
use super::shipped::{Shipped, meant, named, shipped};
use super::source::{Source, SourceTable};
use super::users::User;
use crate::Settings;
use crate::store::{Fingerprint, InstanceName, parse};

/// Bytes of a recipe at most.
const MAX_LEN: u64 = 1 << 20;

/// Recipes that extend one another at most.
const MAX_DEPTH: usize = 16;

/// Recipes that one is laid over at most, each as often as it is named: a few that name the next ones many times come to millions.
const MAX_COUNT: usize = 256;

/// What one file says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Document {
    description: Option<String>,
    /// Files, or names of shipped recipes; the later ones win.
    extends: Vec<String>,
    os: Option<String>,
    user: Option<String>,
    notes: Option<String>,
    hostname: Option<InstanceName>,
    source: SourceTable,
    /// A manifest has these; it reads them itself.
    files: Option<IgnoredAny>,
    users: Vec<User>,
    services: Services,
    initrd: Option<Initrd>,
    disk: DiskOptions,
    machine: Settings,
}

/// A recipe that was found.
struct Found {
    name: PathBuf,
    text: String,
    /// Where its relative paths start; none for a shipped one.
    directory: PathBuf,
}

/// All files so far.
#[derive(Default)]
struct Merged {
    document: Document,
    exclude: Vec<Pattern>,
    files: Vec<(PathBuf, Manifest)>,
    /// All texts, one after the other.
    texts: Vec<u8>,
    /// Those that are being read, the outermost first.
    way: Vec<PathBuf>,
    /// Those that were read.
    count: usize,
}

pub(super) fn load(name: &Path) -> Result<Recipe> {
    let mut merged = Merged::default();
    merged.add(find(name, None)?)?;
    merged.finish(name)
}

pub(super) fn load_shipped(one: Shipped) -> Result<Recipe> {
    let mut merged = Merged::default();
    merged.add(Found::of(one))?;
    merged.finish(Path::new(one.name))
}

impl Found {
    fn of(one: Shipped) -> Self {
        Self {
            name: PathBuf::from(one.name),
            text: one.text.to_owned(),
            directory: PathBuf::new(),
        }
    }
}

/// The recipe of a name that another, `from` a directory, or a user gives.
fn find(name: &Path, from: Option<&Path>) -> Result<Found> {
    let path = from.map_or(name.to_owned(), |directory| directory.join(name));
    let file = match fs::metadata(&path) {
        Ok(found) => found,
        Err(error) => {
            let text = name.to_str().unwrap_or_default();
            if let Some(shipped) = named(text) {
                return Ok(Found::of(shipped));
            }
            let error = Error::io("open the recipe", error).with_path(path);
            let all = || {
                let names: Vec<_> = shipped().iter().map(|one| one.name).collect();
                format!(
                    "name a file, or one of those that there are: {}",
                    names.join(", ")
                )
            };
            return Err(error.with_hint(meant(text).unwrap_or_else(all)));
        }
    };
    if !file.is_file() || file.len() > MAX_LEN {
        let message = format!("a recipe is a file of at most {MAX_LEN} bytes");
        return Err(Error::invalid(message).with_path(path));
    }
    let text =
        fs::read_to_string(&path).map_err(|error| Error::io("read the recipe", error).with_path(&path))?;
    let directory = std::path::absolute(&path)
        .ok()
        .and_then(|path| path.parent().map(ToOwned::to_owned))
        .unwrap_or_default();
    Ok(Found {
        name: path,
        text,
        directory,
    })
}

impl Merged {
    /// Adds what a recipe says, behind what those say that it extends.
    fn add(&mut self, found: Found) -> Result<()> {
        let Found {
            name,
            text,
            directory,
        } = found;
        let document: Document = parse(&text).map_err(|error| error.with_path(&name))?;
        let identity = name.canonicalize().unwrap_or_else(|_| name.clone());
        if self.way.contains(&identity) || self.way.len() == MAX_DEPTH {
            let names: Vec<_> = self.way.iter().map(|path| path.to_string_lossy()).collect();
            let message = format!(
                "recipes extend each other: {}, {}",
                names.join(", "),
                identity.display()
            );
            return Err(Error::invalid(escape(&message).into_owned()).with_path(name));
        }
        self.count += 1;
        if self.count > MAX_COUNT {
            let message = format!("it is one of more than {MAX_COUNT} recipes that are laid over each other");
            return Err(Error::invalid(message).with_path(name));
        }
        self.way.push(identity);
        for other in &document.extends {
            let from = Some(&*directory).filter(|directory| *directory != Path::new(""));
            let other = find(Path::new(other), from).map_err(|error| extended_by(&error, &name))?;
            self.add(other)?;
        }
        self.way.pop();
        for pattern in document.source.exclude() {
            let pattern = Pattern::new(pattern.as_bytes()).map_err(|error| error.with_path(&name))?;
            self.exclude.push(pattern);
        }
        let files =
            Manifest::in_document(&text, "files", &directory).map_err(|error| error.with_path(&name))?;
        if !files.is_empty() {
            self.files.push((name, files));
        }
        self.texts.extend(text.as_bytes());
        self.texts.push(0);
        let before = std::mem::take(&mut self.document);
        self.document = before.then(document.at(&directory)?);
        Ok(())
    }

    fn finish(self, name: &Path) -> Result<Recipe> {
        let document = self.document;
        let source: Source = document.source.chosen().map_err(|error| error.with_path(name))?;
        Ok(Recipe {
            name: name.to_owned(),
            description: document.description,
            os: document.os,
            user: document.user,
            notes: document.notes,
            hostname: document.hostname,
            source,
            exclude: self.exclude,
            files: self.files,
            users: document.users,
            services: document.services,
            initrd: document.initrd,
            disk: document.disk,
            machine: document.machine,
            fingerprint: Fingerprint::of_bytes(&self.texts),
        })
    }
}

impl Document {
    /// The same with its relative paths from a directory.
    fn at(mut self, directory: &Path) -> Result<Self> {
        self.source.resolve(directory);
        for user in &mut self.users {
            user.read_keys(directory)?;
        }
        Ok(self)
    }

    /// What this says, and `later` where it says something.
    fn then(self, later: Self) -> Self {
        Self {
            description: later.description.or(self.description),
            extends: Vec::new(),
            os: later.os.or(self.os),
            user: later.user.or(self.user),
            notes: later.notes.or(self.notes),
            hostname: later.hostname.or(self.hostname),
            source: self.source.then(later.source),
            files: None,
            users: User::merged(self.users, later.users),
            services: self.services.then(later.services),
            initrd: match (self.initrd, later.initrd) {
                (Some(before), Some(later)) => Some(before.then(later)),
                (before, later) => later.or(before),
            },
            disk: self.disk.then(later.disk),
            machine: self.machine.then(later.machine),
        }
    }
}

/// The error, told of the recipe that names what is not there.
fn extended_by(error: &Error, name: &Path) -> Error {
    let told = Error::new(error.kind(), format!("what it extends: {error}")).with_path(name);
    match error.hint() {
        Some(hint) => told.with_hint(hint.to_owned()),
        None => told,
    }
}
