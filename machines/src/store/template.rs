//! Templates: disks that do not change, and what is known of them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use block::{Error, ErrorKind, Result, escape};
use jiff::Timestamp;
use ops::Control;
use serde::{Deserialize, Serialize};

use super::aliases::Aliases;
use super::document::{self, parse, text_of};
use super::name::nearest;
use super::{Alias, Fingerprint, Listing, Store, stems};
use crate::Settings;

/// Digits of a fingerprint that are enough to name a template by, at least.
const MIN_PREFIX: usize = 4;
/// Those that are shown where a fingerprint is shown in short.
const SHORT: usize = 12;

/// The files of a template beside its image.
pub(super) const BESIDE: [&str; 5] = ["toml", "toml.minisig", "kernel", "initrd", "qcow2.minisig"];

/// What is known of a template, as its document has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TemplateDocument {
    /// The operating system, as it calls itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// When it was made, as in RFC 3339.
    pub created: Timestamp,
    /// The image that all this is said of, by its SHA-256; not there where it is said of another file that was made of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub describes: Option<Fingerprint>,
    /// Bytes of the disk.
    pub disk_size: u64,
    /// Bytes of the image.
    pub image_size: u64,
    /// When the image was last written to, in nanoseconds since 1970: an image of this time and size is not read to see
    /// whether it has changed.
    pub image_modified: i64,
    /// Who people log in as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Whatever there is to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notes: Option<String>,
    /// The template that it was made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Fingerprint>,
    /// The kernel beside the disk, by its SHA-256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Fingerprint>,
    /// The initrd beside the disk, by its SHA-256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<Fingerprint>,
    /// Size and time of the kernel, which is read to see whether it has changed where they are not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_file: Option<Stamp>,
    /// Those of the initrd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_file: Option<Stamp>,
    /// How machines of it are, unless they say otherwise.
    #[serde(default)]
    pub machine: Settings,
    /// How it came about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<Provenance>,
}

impl TemplateDocument {
    /// As it stands in a file.
    ///
    /// # Errors
    /// `InvalidInput` for what TOML does not have: numbers from 2^63 on.
    pub fn to_toml(&self) -> Result<String> {
        text_of(self)
    }

    /// Fails unless it says itself that it is that of the file with a SHA-256: a signature of it says nothing of that.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub(crate) fn check_is_of(&self, file: Fingerprint) -> Result<()> {
        match self.describes {
            Some(image) if image == file => Ok(()),
            Some(image) => Err(Error::invalid(format!(
                "it is signed, and describes another image: its SHA-256 is {image}, and that of this one {file}"
            ))
            .with_hint("fetch both again from whom you trust")),
            None => Err(Error::invalid("it is signed, and does not say which file it describes").with_hint(
                format!("if that is this one, add a line at its start and sign it again: describes = \"{file}\""),
            )),
        }
    }
}

/// Size and time of a file: one of the same is not read to see whether it has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Stamp {
    /// Bytes.
    pub size: u64,
    /// When it was last written to, in nanoseconds since 1970.
    pub modified: i64,
}

impl Stamp {
    pub(super) fn of(file: &fs::Metadata) -> Self {
        Self {
            size: file.len(),
            modified: modified(file),
        }
    }
}

/// How a template came about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Provenance {
    /// What was imported or built.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The SHA-256 of the recipe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipe: Option<Fingerprint>,
    /// Packages that were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<String>,
}

/// A template of a store.
#[derive(Clone, Debug)]
pub struct Template {
    /// The SHA-256 of its image.
    pub fingerprint: Fingerprint,
    /// What else it is called: the alias that it was asked for by first, and the others in their order.
    pub aliases: Vec<Alias>,
    /// What is known of it.
    pub document: TemplateDocument,
    /// The SHA-256 of that as it stands in its file.
    pub(super) digest: Fingerprint,
    pub(super) directory: PathBuf,
}

impl Template {
    /// Its image.
    pub fn image(&self) -> PathBuf {
        Store::file(&self.directory, self.fingerprint, "qcow2")
    }

    /// The kernel for machines whose launcher loads one.
    pub fn kernel(&self) -> Option<PathBuf> {
        let path = Store::file(&self.directory, self.fingerprint, "kernel");
        self.document.kernel.map(|_| path)
    }

    /// What goes with the kernel.
    pub fn initrd(&self) -> Option<PathBuf> {
        let path = Store::file(&self.directory, self.fingerprint, "initrd");
        self.document.initrd.map(|_| path)
    }

    /// What is known of it, as a file.
    pub(super) fn description(&self) -> PathBuf {
        Store::file(&self.directory, self.fingerprint, "toml")
    }

    /// Who vouches for the image, if that is known.
    pub fn signature(&self) -> Option<PathBuf> {
        let path = Store::file(&self.directory, self.fingerprint, "qcow2.minisig");
        path.exists().then_some(path)
    }

    /// The same, called by one of its aliases.
    pub(super) fn called(mut self, alias: &Alias) -> Self {
        if let Some(at) = self.aliases.iter().position(|own| own == alias) {
            self.aliases[..=at].rotate_right(1);
        }
        self
    }

    /// The alias that it was asked for by or else the first one, or the start of its fingerprint.
    pub fn name(&self) -> String {
        match self.aliases.first() {
            Some(alias) => alias.to_string(),
            None => self.fingerprint.short(),
        }
    }

    /// Fails if the image is not what it was, or its kernel or initrd: each is read only where its time or size say that it may
    /// have changed. A kernel or an initrd that is not there is for who loads one to miss.
    ///
    /// # Errors
    /// `Corrupt` for another content; `Io` for no image.
    pub fn check(&self, control: &Control<'_>) -> Result<()> {
        let document = &self.document;
        let was = Stamp {
            size: document.image_size,
            modified: document.image_modified,
        };
        let image = self.image();
        if !is_as_it_was(&image, Some(was))? {
            is_that_of(&image, self.fingerprint, control)?;
        }
        self.check_boot_files(control)
    }

    /// [`check`](Self::check) without the image.
    pub(super) fn check_boot_files(&self, control: &Control<'_>) -> Result<()> {
        let document = &self.document;
        let files = [
            (self.kernel(), document.kernel, document.kernel_file),
            (self.initrd(), document.initrd, document.initrd_file),
        ];
        for (path, wanted, was) in files {
            let (Some(path), Some(wanted)) = (path, wanted) else {
                continue;
            };
            if path.exists() && !is_as_it_was(&path, was)? {
                is_that_of(&path, wanted, control)?;
            }
        }
        Ok(())
    }

    /// Fails if the image is not what it was, or its kernel or initrd, reading all of them.
    ///
    /// # Errors
    /// `Corrupt` for other contents; `Io`.
    pub fn verify(&self, control: &Control<'_>) -> Result<()> {
        let files = [
            (Some(self.image()), Some(self.fingerprint)),
            (self.kernel(), self.document.kernel),
            (self.initrd(), self.document.initrd),
        ];
        for (path, wanted) in files {
            if let (Some(path), Some(wanted)) = (path, wanted) {
                is_that_of(&path, wanted, control)?;
            }
        }
        Ok(())
    }
}

/// Whether a file has the size and time that it had, if these are known.
fn is_as_it_was(path: &Path, was: Option<Stamp>) -> Result<bool> {
    let file = fs::metadata(path).map_err(|error| Error::io("look at", error).with_path(path))?;
    Ok(was == Some(Stamp::of(&file)))
}

/// Fails for a file that has another SHA-256, reading it.
fn is_that_of(path: &Path, wanted: Fingerprint, control: &Control<'_>) -> Result<()> {
    let found = Fingerprint::of_file(path, control)?;
    if found == wanted {
        return Ok(());
    }
    let message = format!("the file has changed: its SHA-256 is {found} and was {wanted}");
    Err(Error::new(ErrorKind::Corrupt, message)
        .with_path(path)
        .with_hint("nothing based on it is reliable; bring back the file from a copy"))
}

impl Store {
    /// All templates.
    ///
    /// # Errors
    /// `Io`.
    pub fn templates(&self) -> Result<Listing<Template>> {
        let mut listing = Listing {
            found: Vec::new(),
            broken: self.aliases().err().into_iter().collect(),
        };
        for stem in stems(&self.templates_directory(), "qcow2")? {
            let Ok(fingerprint) = stem.parse() else {
                continue;
            };
            match self.load_template(fingerprint) {
                Ok(template) => listing.found.push(template),
                Err(error) => listing.broken.push(error),
            }
        }
        listing
            .found
            .sort_by_key(|template| (template.name(), template.fingerprint));
        Ok(listing)
    }

    /// The template of an alias, or of a fingerprint, of which the first digits are enough.
    ///
    /// # Errors
    /// `InvalidInput` where there is none, with names that may have been meant, or where there are several.
    pub fn template(&self, name: &str) -> Result<Template> {
        let (aliases, broken) = match self.aliases() {
            Ok(aliases) => (aliases, None),
            Err(error) => (Aliases::new(), Some(error)),
        };
        // What may be an alias that cannot be read is not taken for another template's fingerprint.
        let least = if broken.is_some() { SHORT } else { MIN_PREFIX };
        if let Ok(alias) = name.parse::<Alias>()
            && let Some(fingerprint) = aliases.get(&alias)
        {
            return Ok(self.load_template(*fingerprint)?.called(&alias));
        }
        let stems = stems(&self.templates_directory(), "qcow2")?;
        let begins = |stem: &&String| name.len() >= least && stem.starts_with(name);
        let found: Vec<&String> = stems.iter().filter(begins).collect();
        match found.as_slice() {
            [one] => self.load_template(one.parse()?),
            [] => {
                if let Some(error) = broken {
                    return Err(error);
                }
                let error = Error::invalid(format!("there is no template \"{}\"", escape(name)));
                let near = nearest(name, aliases.keys().map(Alias::as_str));
                Err(error.with_hint(match near.as_slice() {
                    [] => "imgtool template ls lists those that there are".to_owned(),
                    near => format!("there is {}", near.join(", ")),
                }))
            }
            _ => Err(Error::invalid(format!(
                "{} templates have fingerprints that start with {name}",
                found.len()
            ))
            .with_hint("give more of its digits")),
        }
    }

    pub(super) fn load_template(&self, fingerprint: Fingerprint) -> Result<Template> {
        let directory = self.templates_directory();
        let path = Self::file(&directory, fingerprint, "toml");
        let Some(text) = document::read(&path)? else {
            return Err(Error::invalid("a template without its description")
                .with_path(path)
                .with_hint("bring it back from a copy, or import the image once more"));
        };
        let document = parse(&text).map_err(|error| error.with_path(&path))?;
        let aliases = self.readable_aliases();
        let own = aliases.iter().filter(|(_, other)| **other == fingerprint);
        Ok(Template {
            fingerprint,
            aliases: own.map(|(alias, _)| alias.clone()).collect(),
            document,
            digest: Fingerprint::of_bytes(text.as_bytes()),
            directory,
        })
    }

    /// Gives a template another name.
    ///
    /// # Errors
    /// `InvalidInput` for a name that another template has, unless it is to be `moved`.
    pub fn tag(&self, template: &Template, alias: &Alias, moved: bool) -> Result<()> {
        let held = self.hold()?;
        self.load_template(template.fingerprint)?;
        if !moved {
            self.check_alias(alias, Some(template.fingerprint))?;
        }
        self.add_alias(&held, alias, template.fingerprint)
    }

    /// Takes a name away from the template that has it.
    ///
    /// # Errors
    /// `InvalidInput` for a name that none has.
    pub fn untag(&self, alias: &Alias) -> Result<()> {
        let held = self.hold()?;
        let mut aliases = self.aliases()?;
        if aliases.remove(alias).is_none() {
            return Err(Error::invalid(format!("\"{alias}\" is the name of no template")));
        }
        self.write_aliases(&held, &aliases)
    }

    /// Removes a template with its aliases.
    ///
    /// # Errors
    /// `InvalidInput` while instances stand on it, which are named.
    pub fn remove_template(&self, template: &Template) -> Result<()> {
        let held = self.hold()?;
        let users = self.instances_on(template.fingerprint)?;
        if !users.is_empty() {
            let message = format!(
                "template {} is what {} based on",
                template.name(),
                several(&users)
            );
            return Err(Error::invalid(message)
                .with_hint("remove those first; clones made with --full need no template"));
        }
        let directory = self.templates_directory();
        document::remove(&Self::file(&directory, template.fingerprint, "qcow2"))?;
        document::sync(&directory)?;
        for name in BESIDE {
            document::remove(&Self::file(&directory, template.fingerprint, name))?;
        }
        document::remove(&self.trusted_path(template.fingerprint))?;
        // Those that cannot be read are left to who mends them.
        let mut aliases = self.readable_aliases();
        let before = aliases.len();
        aliases.retain(|_, other| *other != template.fingerprint);
        if aliases.len() == before {
            return Ok(());
        }
        self.write_aliases(&held, &aliases)
    }
}

/// `a is`, `a and b are`, `a, b, c and 4 more are`.
fn several(names: &[String]) -> String {
    match names {
        [one] => format!("{one} is"),
        [a, b, c, _, rest @ ..] => format!("{a}, {b}, {c} and {} more are", rest.len() + 1),
        [first @ .., last] => format!("{} and {last} are", first.join(", ")),
        [] => unreachable!("there is something to name"),
    }
}

/// When a file was last written to, in nanoseconds since 1970.
pub(super) fn modified(file: &fs::Metadata) -> i64 {
    file.mtime()
        .saturating_mul(1_000_000_000)
        .saturating_add(file.mtime_nsec())
}
