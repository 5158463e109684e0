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
use super::origins::Step::{Key, Named, Text};
use super::origins::{Origin, Origins};
use super::services::Services;
use super::shipped::{Shipped, meant, named, shipped};
use super::source::{Source, SourceTable};
use super::users::User;
use crate::Settings;
use crate::store::{InstanceName, parse, position};

/// Bytes of a recipe at most.
const MAX_LEN: u64 = 1 << 20;

/// Recipes that extend one another at most.
const MAX_DEPTH: usize = 16;

/// Recipes that one is laid over at most, each as often as it is named: a few that name the next ones many times come to millions.
const MAX_COUNT: usize = 256;

/// What one file says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(
    default,
    deny_unknown_fields,
    rename_all = "kebab-case",
    expecting = "a table"
)]
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
    origin: Origin,
    /// Where its relative paths start; none for a shipped one.
    directory: PathBuf,
}

/// All files so far.
#[derive(Default)]
struct Merged {
    document: Document,
    exclude: Vec<Pattern>,
    files: Vec<(PathBuf, Manifest)>,
    origins: Origins,
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
            origin: Origin {
                name: PathBuf::from(one.name),
                text: one.text.to_owned(),
            },
            directory: PathBuf::new(),
        }
    }
}

/// The text of a file.
fn text_of(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        let before = String::from_utf8_lossy(&error.as_bytes()[..offset]);
        let (line, column) = position(&before, offset);
        let byte = error.as_bytes()[offset];
        let message =
            format!("line {line}, column {column}: the byte {byte:#04x} at offset {offset} is no UTF-8");
        Error::invalid(message).with_hint("save the recipe as UTF-8")
    })
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
    let text = fs::read(&path)
        .map_err(|error| Error::io("read the recipe", error))
        .and_then(text_of)
        .map_err(|error| error.with_path(&path))?;
    let directory = std::path::absolute(&path)
        .ok()
        .and_then(|path| path.parent().map(ToOwned::to_owned))
        .unwrap_or_default();
    Ok(Found {
        origin: Origin { name: path, text },
        directory,
    })
}

impl Merged {
    /// Adds what a recipe says, behind what those say that it extends.
    fn add(&mut self, found: Found) -> Result<()> {
        let Found { origin, directory } = found;
        let name = &origin.name;
        let document: Document = parse(&origin.text).map_err(|error| error.with_path(name))?;
        self.count += 1;
        if self.count > MAX_COUNT {
            let message = format!("it is one of more than {MAX_COUNT} recipes that are laid over each other");
            return Err(Error::invalid(message).with_path(name));
        }
        self.way.push(identity(name));
        for other in &document.extends {
            let from = Some(&*directory).filter(|directory| *directory != Path::new(""));
            let told = |error: &Error| origin.tell(error, &[Key("extends")]);
            let other = find(Path::new(other), from).map_err(|error| told(&extended(&error)))?;
            if let Some(names) = self.leads_back(&other) {
                let message = format!(
                    "recipes extend each other, or one another more than {MAX_DEPTH} levels deep: {}",
                    escape(&names)
                );
                return Err(told(&Error::invalid(message)));
            }
            self.add(other)?;
        }
        self.way.pop();
        self.exclude.extend_from_slice(document.source.exclude());
        let files = Manifest::in_document(&origin.text, "files", &directory);
        let files = files.map_err(|error| error.with_path(name))?;
        if !files.is_empty() {
            self.files.push((name.clone(), files));
        }
        let before = std::mem::take(&mut self.document);
        self.document = before.then(document.at(&directory, &origin)?);
        self.origins.push(origin);
        Ok(())
    }

    /// The recipes that are being read, and one that may not be read then: it is one of them, or one too many.
    fn leads_back(&self, other: &Found) -> Option<String> {
        let other = identity(&other.origin.name);
        if !self.way.contains(&other) && self.way.len() < MAX_DEPTH {
            return None;
        }
        let way = self.way.iter().chain([&other]);
        let names: Vec<_> = way.map(|path| path.to_string_lossy()).collect();
        Some(names.join(", "))
    }

    fn finish(self, name: &Path) -> Result<Recipe> {
        let Self {
            document, origins, ..
        } = self;
        let disk = document.disk.validate();
        disk.map_err(|error| origins.tell(error, &[Key("disk")]))?;
        let kind = document.source.kind();
        let way: Vec<_> = ["source"].into_iter().chain(kind).map(Key).collect();
        let source: Source = document
            .source
            .chosen()
            .map_err(|error| origins.tell(error, &way))?;
        source.check(&origins)?;
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
            fingerprint: origins.fingerprint(),
            origins,
        })
    }
}

impl Document {
    /// The same with its relative paths from a directory.
    fn at(mut self, directory: &Path, origin: &Origin) -> Result<Self> {
        self.source.resolve(directory);
        for user in &mut self.users {
            for file in std::mem::take(&mut user.ssh_key_files) {
                let added = user.add_keys_of(&directory.join(&file));
                let (name, file) = (user.name.as_str(), file.to_string_lossy());
                let way = [Key("users"), Named(name), Key("ssh-key-files"), Text(&file)];
                added.map_err(|error| origin.tell(&error, &way))?;
            }
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

/// What a recipe is known by, however it is named.
fn identity(name: &Path) -> PathBuf {
    name.canonicalize().unwrap_or_else(|_| name.to_owned())
}

/// The error, told of what a recipe extends.
fn extended(error: &Error) -> Error {
    let told = Error::new(error.kind(), format!("what it extends: {error}"));
    match error.hint() {
        Some(hint) => told.with_hint(hint.to_owned()),
        None => told,
    }
}
