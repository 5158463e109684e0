//! The gates that are ready made.

use std::path::{Path, PathBuf};

use super::{OpenGate, OpenRequest, Permit, resolve};
use crate::{Error, ErrorKind, Result, escape};

/// Opens nothing: the gate for images that are to stand alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Deny;

impl OpenGate for Deny {
    fn admit(&self, request: &OpenRequest<'_>) -> Result<Permit> {
        Err(denied(request, "and nothing that images name is to be opened"))
    }
}

/// Opens regular files in one directory and below, whatever way a name or a link takes to get there.
#[derive(Clone, Debug)]
pub struct Within {
    /// Canonical.
    dir: PathBuf,
}

impl Within {
    /// The gate for `dir`, which must exist.
    ///
    /// # Errors
    /// `Io` if it cannot be looked up, `InvalidInput` if it is no directory.
    pub fn new(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = canonical(dir.as_ref())?;
        if !dir.is_dir() {
            return Err(Error::invalid("not a directory").with_path(dir));
        }
        Ok(Self { dir })
    }

    /// The directory, with no links in its path.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl OpenGate for Within {
    fn admit(&self, request: &OpenRequest<'_>) -> Result<Permit> {
        let path = canonical_of(request)?;
        if !path.starts_with(&self.dir) {
            let why = format!("which lies outside of {}", escape(&self.dir.to_string_lossy()));
            return Err(denied(request, &why));
        }
        Ok(Permit {
            path,
            within: Some(self.dir.clone()),
            block_device: false,
        })
    }
}

/// Opens what is on a list, under whatever name an image knows it. A block device on the list may be opened too.
#[derive(Clone, Debug, Default)]
pub struct Explicit {
    /// Canonical.
    paths: Vec<PathBuf>,
}

impl Explicit {
    /// The gate for `paths`, which must exist.
    ///
    /// # Errors
    /// `Io` if one cannot be looked up.
    pub fn new<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> Result<Self> {
        let paths = paths.into_iter().map(|path| canonical(path.as_ref()));
        Ok(Self {
            paths: paths.collect::<Result<_>>()?,
        })
    }
}

impl OpenGate for Explicit {
    fn admit(&self, request: &OpenRequest<'_>) -> Result<Permit> {
        let path = canonical_of(request)?;
        if !self.paths.contains(&path) {
            return Err(denied(request, "which is not on the list of files to open"));
        }
        Ok(Permit {
            within: path.parent().map(Path::to_owned),
            path,
            block_device: true,
        })
    }
}

/// Opens any file that an image names by a plain path: for images whose makers are trusted with every file that
/// the process can read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Permissive {
    block_devices: bool,
}

impl Permissive {
    /// Block devices may be opened too, not just regular files.
    #[must_use]
    pub fn with_block_devices(mut self) -> Self {
        self.block_devices = true;
        self
    }
}

impl OpenGate for Permissive {
    fn admit(&self, request: &OpenRequest<'_>) -> Result<Permit> {
        Ok(Permit {
            path: resolve(request)?,
            within: None,
            block_device: self.block_devices,
        })
    }
}

fn denied(request: &OpenRequest<'_>, why: &str) -> Error {
    let message = format!(
        "names the {} \"{}\", {why}",
        request.purpose,
        escape(request.name)
    );
    Error::new(ErrorKind::Denied, message)
        .with_path(request.from)
        .with_hint("allow it by name or by directory if the maker of the image is trusted with that file")
}

fn canonical(path: &Path) -> Result<PathBuf> {
    path.canonicalize()
        .map_err(|error| Error::io("look up", error).with_path(path))
}

/// Where a name leads, with every `..` and link followed.
fn canonical_of(request: &OpenRequest<'_>) -> Result<PathBuf> {
    let path = resolve(request)?;
    path.canonicalize().map_err(|error| {
        let what = format!("look up the {} \"{}\"", request.purpose, escape(request.name));
        Error::io(what, error).with_path(request.from)
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::super::Purpose;
    use super::*;

    /// Images in `in`, secrets beside it (once in a directory whose name starts the same), and links between them.
    fn files() -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for sub in ["in/sub", "out", "in2"] {
            fs::create_dir_all(root.join(sub)).unwrap();
        }
        for file in ["in/base", "out/secret", "in2/secret"] {
            fs::write(root.join(file), file).unwrap();
        }
        symlink("../out/secret", root.join("in/link-out")).unwrap();
        symlink("../out", root.join("in/dir-out")).unwrap();
        symlink("../base", root.join("in/sub/link-in")).unwrap();
        symlink("in", root.join("alias")).unwrap();
        dir
    }

    fn ask(gate: &dyn OpenGate, from: &Path, name: &str) -> Result<Permit> {
        gate.admit(&OpenRequest {
            from,
            name,
            purpose: Purpose::Backing,
        })
    }

    #[test]
    fn deny_names_the_image_and_what_it_asked_for() {
        let error = ask(&Deny, Path::new("img"), "ba\nse").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(
            error
                .to_string()
                .starts_with("img: names the backing file \"ba\\nse\"")
        );
    }

    #[test]
    fn within_lets_every_way_in_and_none_out() {
        let files = files();
        let root = files.path().canonicalize().unwrap();
        // Reached through a link itself.
        let gate = Within::new(root.join("alias")).unwrap();
        let image = root.join("in/sub/overlay");
        let base = root.join("in/base");
        for name in ["../base", "link-in", "../../alias/base", base.to_str().unwrap()] {
            let permit = ask(&gate, &image, name).unwrap();
            assert_eq!(
                (&permit.path, permit.within.as_ref()),
                (&base, Some(&root.join("in")))
            );
            assert!(!permit.block_device);
        }
        let secret = root.join("out/secret");
        for name in [
            "../../out/secret",
            "../link-out",
            "../dir-out/secret",
            "../../in2/secret",
            "/etc/passwd",
            secret.to_str().unwrap(),
        ] {
            let error = ask(&gate, &image, name).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Denied, "{name}");
            assert!(error.message().contains(name));
        }
        assert_eq!(
            ask(&gate, &image, "../none").unwrap_err().io_kind(),
            Some(std::io::ErrorKind::NotFound)
        );
        assert_eq!(
            ask(&gate, &image, "nbd:x").unwrap_err().kind(),
            ErrorKind::Unsupported
        );
    }

    #[test]
    fn within_takes_a_directory_only() {
        let files = files();
        assert!(Within::new(files.path().join("none")).is_err());
        let error = Within::new(files.path().join("in/base")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn explicit_knows_a_file_by_any_name() {
        let files = files();
        let root = files.path().canonicalize().unwrap();
        let gate = Explicit::new([root.join("in/sub/link-in")]).unwrap();
        let permit = ask(&gate, &root.join("in/sub/overlay"), "../base").unwrap();
        assert_eq!(permit.path, root.join("in/base"));
        assert_eq!(permit.within, Some(root.join("in")));
        let error = ask(&gate, &root.join("in/x"), "link-out").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(Explicit::new([root.join("none")]).is_err());
    }

    #[test]
    fn permissive_opens_block_devices_only_when_told() {
        let image = Path::new("/images/overlay");
        let permit = ask(&Permissive::default(), image, "/dev/sda").unwrap();
        assert!(!permit.block_device);
        let permit = ask(&Permissive::default().with_block_devices(), image, "/dev/sda").unwrap();
        assert!(permit.block_device);
        assert!(ask(&Permissive::default(), image, "json:{}").is_err());
    }
}
