//! Templates: disks that do not change, and what is known of them.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use block::{Error, ErrorKind, Result, escape};
use jiff::Timestamp;
use ops::Control;
use serde::{Deserialize, Serialize};

use super::aliases::Aliases;
use super::document::{self, parse, text_of};
use super::name::nearest;
use super::unfinished::Unfinished;
use super::{Alias, Fingerprint, Listing, Store, is_others, stems};
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

    /// What of it leaves the store: all but the credentials, which are for the machines here.
    pub(crate) fn without_credentials(&self) -> Self {
        let mut document = self.clone();
        document.machine.credentials.clear();
        document
    }

    /// Who may read the file: with credentials in it, its owner.
    pub(super) fn mode(&self) -> u32 {
        self.machine.mode()
    }

    /// Fails where it says that it is that of a file with another SHA-256.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(crate) fn check_describes(&self, file: Fingerprint) -> Result<()> {
        let Some(wanted) = self.describes.filter(|wanted| *wanted != file) else {
            return Ok(());
        };
        let message = format!("it describes a file with the SHA-256 {wanted}, and this one's is {file}");
        Err(Error::new(ErrorKind::Corrupt, message).with_hint(
            "fetch or export both again; where the file was changed on purpose, take that line out",
        ))
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
    /// The alias that it was asked for by, if it was.
    pub(super) asked: Option<Alias>,
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
            self.asked = Some(alias.clone());
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
    /// `InvalidInput` for no image; `Corrupt` for another content; `Io`.
    pub fn check(&self, control: &Control<'_>) -> Result<()> {
        let document = &self.document;
        let was = Stamp {
            size: document.image_size,
            modified: document.image_modified,
        };
        let image = self.image();
        self.check_is_there()?;
        if self.is_marked() {
            return self.verify_contents(control);
        }
        if !is_as_it_was(&image, Some(was))? {
            is_that_of(&image, self.fingerprint, control)?;
        }
        self.check_boot_files(control)
    }

    /// Fails where its image is not there, or is a link that leads nowhere.
    fn check_is_there(&self) -> Result<()> {
        let image = self.image();
        match fs::metadata(&image) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let message = format!("the image of template {} is missing", self.name());
                let hint = "bring it back from a copy, or import the same image once more; if it is gone for good, give up the template: imgtool template rm";
                Err(Error::invalid(message)
                    .with_path(image)
                    .with_hint(format!("{hint} {}", self.name())))
            }
            _ => Ok(()),
        }
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
            if path.exists() && (self.is_marked() || !is_as_it_was(&path, was)?) {
                is_that_of(&path, wanted, control)?;
            }
        }
        Ok(())
    }

    /// Fails where the kernel or the initrd is not there that machines of it are started with.
    pub(super) fn check_is_whole(&self) -> Result<()> {
        for (what, path) in [("kernel", self.kernel()), ("initrd", self.initrd())] {
            let Some(path) = path.filter(|path| !path.exists()) else {
                continue;
            };
            let message = format!("the {what} of template {} is missing", self.name());
            return Err(Error::invalid(message)
                .with_path(path)
                .with_hint("bring it back from a copy, or import or build the template once more"));
        }
        Ok(())
    }

    /// Fails if the image is not what it was, or its kernel or initrd, reading all of them.
    ///
    /// # Errors
    /// `InvalidInput` for a kernel or an initrd that is not there; `Corrupt` for other contents; `Io`.
    pub fn verify(&self, control: &Control<'_>) -> Result<()> {
        self.check_is_there()?;
        self.check_is_whole()?;
        self.verify_contents(control)
    }

    /// [`verify`](Self::verify), of what is there of a kernel and an initrd. What is found is kept for [`check`](Self::check).
    pub(crate) fn verify_contents(&self, control: &Control<'_>) -> Result<()> {
        let read = self.read_contents(control);
        // Who may not write there leaves it to others.
        match &read {
            Ok(()) if self.is_marked() => drop(fs::remove_file(self.mark())),
            Err(error) if error.kind() == ErrorKind::Corrupt => drop(self.make_mark()),
            _ => {}
        }
        read
    }

    /// There while the files were last found to be others than they were.
    fn mark(&self) -> PathBuf {
        Store::file(
            &self.directory.with_file_name("trusted"),
            self.fingerprint,
            "changed",
        )
    }

    /// Whether its files were last found to be others than they were, whatever their size and times.
    pub(super) fn is_marked(&self) -> bool {
        self.mark().exists()
    }

    fn make_mark(&self) -> io::Result<()> {
        fs::create_dir_all(self.directory.with_file_name("trusted"))?;
        fs::write(self.mark(), "")
    }

    fn read_contents(&self, control: &Control<'_>) -> Result<()> {
        is_that_of(&self.image(), self.fingerprint, control)?;
        let files = [
            (self.kernel(), self.document.kernel),
            (self.initrd(), self.document.initrd),
        ];
        for (path, wanted) in files {
            if let (Some(path), Some(wanted)) = (path.filter(|path| path.exists()), wanted) {
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
        let mut listing = Listing::new();
        listing.broken.extend(self.aliases().err());
        for stem in self.template_stems()? {
            let Ok(fingerprint) = stem.parse() else {
                continue;
            };
            match self.load_template(fingerprint) {
                Ok(template) => match template.check_is_there() {
                    Ok(()) => listing.found.push(template),
                    Err(error) => listing.away.push((template, error)),
                },
                // It has been removed meanwhile.
                Err(_) if !self.has_template(&stem) => {}
                error => listing.add(error),
            }
        }
        listing
            .found
            .sort_by_key(|template| (template.name(), template.fingerprint));
        Ok(listing)
    }

    /// The fingerprints of templates that are there, or whose images are away.
    fn template_stems(&self) -> Result<Vec<String>> {
        let directory = self.templates_directory();
        let mut all = stems(&directory, "qcow2")?;
        all.extend(stems(&directory, "toml")?);
        all.sort_unstable();
        all.dedup();
        // Read after the names, so that a template that is just coming is one that is not finished, or is there.
        let unfinished = self.unfinished().templates;
        all.retain(|stem| {
            unfinished
                .iter()
                .all(|fingerprint| fingerprint.to_string() != *stem)
        });
        Ok(all)
    }

    /// Whether there is an image or a description.
    fn has_template(&self, stem: &str) -> bool {
        let directory = self.templates_directory();
        let is_there = |extension| Self::file(&directory, stem, extension).symlink_metadata().is_ok();
        is_there("qcow2") || is_there("toml")
    }

    /// The template of an alias, or of a fingerprint, of which the first four digits are enough, or more where several start with them.
    ///
    /// # Errors
    /// `InvalidInput` where there is none, with names that may have been meant, or where there are several.
    pub fn template(&self, name: &str) -> Result<Template> {
        let (fingerprint, alias) = self.find_template(name)?;
        let template = self.load_template(fingerprint)?;
        Ok(match &alias {
            Some(alias) => template.called(alias),
            None => template,
        })
    }

    /// The fingerprint of the template of a name, as [`template`](Self::template) has it, whatever its description is: it may be one
    /// that cannot be read.
    ///
    /// # Errors
    /// As [`template`](Self::template), but for what is wrong with the description.
    pub fn template_fingerprint(&self, name: &str) -> Result<Fingerprint> {
        Ok(self.find_template(name)?.0)
    }

    /// The template of a name, and the name if it is an alias.
    fn find_template(&self, name: &str) -> Result<(Fingerprint, Option<Alias>)> {
        let (aliases, broken) = match self.aliases() {
            Ok(aliases) => (aliases, None),
            Err(error) => (Aliases::new(), Some(error)),
        };
        // What may be an alias that cannot be read is not taken for another template's fingerprint.
        let least = if broken.is_some() { SHORT } else { MIN_PREFIX };
        if let Ok(alias) = name.parse::<Alias>()
            && let Some(fingerprint) = aliases.get(&alias)
        {
            return Ok((*fingerprint, Some(alias)));
        }
        let stems = self.template_stems()?;
        let begin = stems.iter().filter(|stem| stem.starts_with(name));
        let (found, too_short): (Vec<_>, Vec<_>) = begin.partition(|_| name.len() >= least);
        match found.as_slice() {
            [one] => Ok((one.parse()?, None)),
            [] => Err(broken.unwrap_or_else(|| {
                let near = nearest(name, aliases.keys().map(Alias::as_str));
                no_template(name, &near, !name.is_empty() && !too_short.is_empty())
            })),
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
        let remove = format!("imgtool template rm --force {}", fingerprint.short());
        let unreadable = |error: Error| {
            let hint = if is_others(&error) {
                "the template is another user's, who alone may read this".to_owned()
            } else {
                format!("mend it, or remove the template with its image: {remove}")
            };
            error.with_path(&path).with_hint(hint)
        };
        let Some(text) = document::read(&path).map_err(unreadable)? else {
            if Self::file(&directory, fingerprint, "qcow2").exists() {
                return Err(Error::invalid("a template without its description")
                    .with_path(path)
                    .with_hint(format!(
                        "bring it back from a copy, or import the image once more; or remove that: {remove}"
                    )));
            }
            let message = format!("the template {} is missing", fingerprint.short());
            return Err(Error::invalid(message).with_path(path).with_hint(
                "bring both it and its image back from a copy, or import the same image once more",
            ));
        };
        let document = parse(&text).map_err(unreadable)?;
        let aliases = self.readable_aliases();
        let own = aliases.iter().filter(|(_, other)| **other == fingerprint);
        Ok(Template {
            fingerprint,
            aliases: own.map(|(alias, _)| alias.clone()).collect(),
            asked: None,
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
        let mut aliases = self.aliases_to_change(&held)?;
        if aliases.remove(alias).is_none() {
            return Err(Error::invalid(format!("\"{alias}\" is the name of no template")));
        }
        self.write_aliases(&held, &aliases)
    }

    /// Removes a template with its aliases.
    ///
    /// # Errors
    /// `InvalidInput` while disks below the store are based on it, which are named.
    pub fn remove_template(&self, template: &Template) -> Result<()> {
        self.remove_image(template.fingerprint, &template.name())
    }

    /// Removes the template of a fingerprint, whatever its description is: it may be one that cannot be read.
    ///
    /// # Errors
    /// As [`remove_template`](Self::remove_template).
    pub fn remove_unread(&self, fingerprint: Fingerprint) -> Result<()> {
        self.remove_image(fingerprint, &fingerprint.short())
    }

    fn remove_image(&self, fingerprint: Fingerprint, name: &str) -> Result<()> {
        let held = self.hold()?;
        let users = self.disks_on(fingerprint)?;
        if !users.is_empty() {
            let message = format!("template {name} is what {} based on", several(&users));
            return Err(Error::invalid(message)
                .with_hint("remove those first, or make them stand alone: imgtool stream; clones made with --full need no template"));
        }
        let image = Self::file(&self.templates_directory(), fingerprint, "qcow2");
        self.finish_removal(&held, Unfinished::template(fingerprint), || {
            document::remove(&image)
        })
    }
}

/// The error for a name of no template, which may be the start of a fingerprint, and too short for one.
fn no_template(name: &str, near: &[&str], is_start: bool) -> Error {
    let mut message = format!("there is no template \"{}\"", escape(name));
    let mut hints = Vec::new();
    if is_start {
        message.push_str(": as a fingerprint it is too short");
        hints.push(format!("give at least {MIN_PREFIX} digits of a fingerprint"));
    }
    if !near.is_empty() {
        hints.push(format!("there is {}", near.join(", ")));
    }
    if hints.is_empty() {
        hints.push("imgtool template ls lists those that there are".to_owned());
    }
    Error::invalid(message).with_hint(hints.join("; "))
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
