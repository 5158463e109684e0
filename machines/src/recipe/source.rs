//! What a root filesystem is made of: `[source]`.

use std::path::{Path, PathBuf};

use block::{Error, Result, escape};
use ext4_builder::source::Pattern;
use serde::{Deserialize, Deserializer, de};

use super::apt;
use super::debootstrap::Debootstrap;
use super::origins::Origins;
use super::origins::Step::{self, Key, Text};

/// What a root filesystem is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// What `mmdebstrap` makes.
    Mmdebstrap(Box<Mmdebstrap>),
    /// What `debootstrap` makes.
    Debootstrap(Box<Debootstrap>),
    /// What is in Debian packages, as it is.
    Debs(Debs),
    /// An archive.
    Tar(PathBuf),
    /// A directory.
    Directory(PathBuf),
    /// A container image, as in `oci:DIR:TAG`.
    Oci(String),
    /// A disk image, which is copied.
    Image(PathBuf),
}

/// What `mmdebstrap` is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(
    default,
    deny_unknown_fields,
    rename_all = "kebab-case",
    expecting = "a table"
)]
pub struct Mmdebstrap {
    /// The release, such as `bookworm`.
    pub suite: Option<String>,
    /// How much besides the packages: `minbase`, `apt`, `important` and others.
    pub variant: Option<String>,
    /// Packages.
    pub packages: Vec<String>,
    /// Parts of the archive, such as `main`.
    pub components: Vec<String>,
    /// Where the archive is: a URL, or a line as in `sources.list`. Several may be given.
    pub mirror: Vec<String>,
    /// Whose archive it is, to take it from where this host's apt does: `Debian` where nothing is said.
    pub origin: Option<String>,
    /// The architecture, such as `arm64`.
    pub architecture: Option<String>,
    /// Run before anything is unpacked.
    pub setup_hooks: Vec<String>,
    /// Run when the essential packages are unpacked.
    pub extract_hooks: Vec<String>,
    /// Run when the essential packages are configured.
    pub essential_hooks: Vec<String>,
    /// Run when all packages are there.
    pub customize_hooks: Vec<String>,
}

/// Debian packages that are unpacked, with nothing of them run and nothing that they depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(
    default,
    deny_unknown_fields,
    rename_all = "kebab-case",
    expecting = "a table"
)]
pub struct Debs {
    /// Packages, in the release that this host's apt prefers.
    pub packages: Vec<String>,
    /// A package of a kernel, or one that only depends on it.
    pub kernel: Option<String>,
}

/// `[source]` of one file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(try_from = "Keys")]
pub(super) struct SourceTable(Keys);

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(
    default,
    deny_unknown_fields,
    rename_all = "kebab-case",
    expecting = "a table"
)]
struct Keys {
    mmdebstrap: Option<Mmdebstrap>,
    debootstrap: Option<Debootstrap>,
    debs: Option<Debs>,
    tar: Option<PathBuf>,
    directory: Option<PathBuf>,
    oci: Option<String>,
    image: Option<PathBuf>,
    #[serde(deserialize_with = "patterns")]
    exclude: Vec<Pattern>,
}

fn patterns<'d, D: Deserializer<'d>>(from: D) -> Result<Vec<Pattern>, D::Error> {
    let texts: Vec<String> = Vec::deserialize(from)?;
    let patterns = texts.iter().map(|text| Pattern::new(text.as_bytes()));
    patterns.collect::<Result<_>>().map_err(de::Error::custom)
}

impl Keys {
    /// The keys that say what the source is.
    fn named(&self) -> Vec<&'static str> {
        let keys = [
            (self.mmdebstrap.is_some(), "mmdebstrap"),
            (self.debootstrap.is_some(), "debootstrap"),
            (self.debs.is_some(), "debs"),
            (self.tar.is_some(), "tar"),
            (self.directory.is_some(), "directory"),
            (self.oci.is_some(), "oci"),
            (self.image.is_some(), "image"),
        ];
        keys.into_iter()
            .filter(|(is, _)| *is)
            .map(|(_, key)| key)
            .collect()
    }
}

impl TryFrom<Keys> for SourceTable {
    type Error = String;

    fn try_from(keys: Keys) -> Result<Self, String> {
        match keys.named().as_slice() {
            [] | [_] => Ok(Self(keys)),
            several => Err(format!(
                "a recipe has one source, and not {}",
                several.join(" and ")
            )),
        }
    }
}

impl SourceTable {
    pub(super) fn exclude(&self) -> &[Pattern] {
        &self.0.exclude
    }

    /// Has relative paths start at a directory.
    pub(super) fn resolve(&mut self, directory: &Path) {
        let Keys {
            tar,
            directory: tree,
            image,
            oci,
            ..
        } = &mut self.0;
        for path in [tar, tree, image].into_iter().flatten() {
            *path = directory.join(&*path);
        }
        if let Some((kind, path)) = oci.as_deref().and_then(|name| name.split_once(':')) {
            *oci = Some(format!("{kind}:{}", directory.join(path).to_string_lossy()));
        }
    }

    /// What both say, where they say the same kind of source, and otherwise what `later` says, if anything.
    pub(super) fn then(self, later: Self) -> Self {
        let (before, later) = (self.0, later.0);
        if later.named().is_empty() {
            return Self(before);
        }
        Self(Keys {
            mmdebstrap: later.mmdebstrap.map(|own| match before.mmdebstrap {
                Some(before) => before.then(own),
                None => own,
            }),
            debootstrap: later.debootstrap.map(|own| match before.debootstrap {
                Some(before) => before.then(own),
                None => own,
            }),
            debs: later.debs.map(|own| match before.debs {
                Some(before) => before.then(own),
                None => own,
            }),
            ..later
        })
    }

    /// Which of the kinds it is, if it is one.
    pub(super) fn kind(&self) -> Option<&'static str> {
        self.0.named().first().copied()
    }

    /// The source.
    pub(super) fn chosen(self) -> Result<Source> {
        let keys = self.0;
        let found = [
            keys.mmdebstrap.map(Box::new).map(Source::Mmdebstrap),
            keys.debootstrap.map(Box::new).map(Source::Debootstrap),
            keys.debs.map(Source::Debs),
            keys.tar.map(Source::Tar),
            keys.directory.map(Source::Directory),
            keys.oci.map(Source::Oci),
            keys.image.map(Source::Image),
        ];
        let source = found.into_iter().flatten().next();
        let source = source.ok_or_else(|| {
            Error::invalid("the recipe has no source").with_hint(
                "say what the system is made of: [source] with tar, directory, oci or image, [source.mmdebstrap], [source.debootstrap] or [source.debs]",
            )
        })?;
        let (kind, suite) = match &source {
            Source::Mmdebstrap(debian) => ("mmdebstrap", &debian.suite),
            Source::Debootstrap(debian) => ("debootstrap", &debian.suite),
            _ => return Ok(source),
        };
        if suite.is_none() {
            return Err(Error::invalid(format!("[source.{kind}] has no suite"))
                .with_hint("such as suite = \"bookworm\""));
        }
        Ok(source)
    }
}

impl Source {
    /// Fails for what no release and no package is called, whatever else is said.
    pub(super) fn check(&self, origins: &Origins) -> Result<()> {
        let way = [Key("source"), Key(self.key())];
        let tell = |error, rest: &[Step<'_>]| origins.tell(error, &[&way, rest].concat());
        let suite = match self {
            Self::Mmdebstrap(debian) => &debian.suite,
            Self::Debootstrap(debian) => &debian.suite,
            Self::Debs(Debs { packages, kernel }) => {
                for package in packages {
                    apt::check(package).map_err(|error| tell(error, &[Key("packages"), Text(package)]))?;
                }
                let kernel = kernel.as_deref().map_or(Ok(()), apt::check);
                return kernel.map_err(|error| tell(error, &[Key("kernel")]));
            }
            _ => return Ok(()),
        };
        let suite = suite.as_deref().map_or(Ok(()), check_suite);
        suite.map_err(|error| tell(error, &[Key("suite")]))
    }

    /// The key of `[source]` that says it.
    pub(super) fn key(&self) -> &'static str {
        match self {
            Self::Mmdebstrap(_) => "mmdebstrap",
            Self::Debootstrap(_) => "debootstrap",
            Self::Debs(_) => "debs",
            Self::Tar(_) => "tar",
            Self::Directory(_) => "directory",
            Self::Oci(_) => "oci",
            Self::Image(_) => "image",
        }
    }

    /// Packages that are asked for.
    pub(super) fn packages(&self) -> Vec<String> {
        match self {
            Self::Mmdebstrap(debian) => debian.packages.clone(),
            Self::Debootstrap(debian) => debian.packages.clone(),
            Self::Debs(Debs { packages, kernel }) => packages.iter().chain(kernel).cloned().collect(),
            _ => Vec::new(),
        }
    }

    /// What it is, in a few words.
    pub(super) fn describe(&self) -> String {
        let base_name = |path: &Path| {
            path.file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned()
        };
        match self {
            Self::Mmdebstrap(debian) => format!("mmdebstrap {}", debian.suite.as_deref().unwrap_or_default()),
            Self::Debootstrap(debian) => {
                format!("debootstrap {}", debian.suite.as_deref().unwrap_or_default())
            }
            Self::Debs(_) => "debs".to_owned(),
            Self::Tar(path) | Self::Directory(path) | Self::Image(path) => base_name(path),
            Self::Oci(name) => base_name(Path::new(name)),
        }
    }
}

/// Names as releases have them: a program must not take one for an option, a path or two words.
fn check_suite(suite: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~+".contains(c);
    if suite.starts_with(|c: char| c.is_ascii_alphanumeric()) && suite.chars().all(plain) {
        return Ok(());
    }
    let error = Error::invalid(format!("\"{}\" is no name of a release", escape(suite)));
    Err(error.with_hint(
        "a suite is one word of letters, digits and - . _ ~ +, such as \"bookworm\" or \"bookworm-updates\"",
    ))
}

impl Mmdebstrap {
    fn then(self, later: Self) -> Self {
        Self {
            suite: later.suite.or(self.suite),
            variant: later.variant.or(self.variant),
            packages: joined(self.packages, later.packages),
            components: joined(self.components, later.components),
            // Another mirror is one in the place of the first.
            mirror: if later.mirror.is_empty() {
                self.mirror
            } else {
                later.mirror
            },
            origin: later.origin.or(self.origin),
            architecture: later.architecture.or(self.architecture),
            setup_hooks: joined(self.setup_hooks, later.setup_hooks),
            extract_hooks: joined(self.extract_hooks, later.extract_hooks),
            essential_hooks: joined(self.essential_hooks, later.essential_hooks),
            customize_hooks: joined(self.customize_hooks, later.customize_hooks),
        }
    }
}

impl Debs {
    fn then(self, later: Self) -> Self {
        Self {
            packages: joined(self.packages, later.packages),
            kernel: later.kernel.or(self.kernel),
        }
    }
}

/// What two lists have, once each.
pub(super) fn joined<T: PartialEq>(mut before: Vec<T>, later: Vec<T>) -> Vec<T> {
    for one in later {
        if !before.contains(&one) {
            before.push(one);
        }
    }
    before
}
