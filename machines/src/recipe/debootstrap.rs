//! `[source.debootstrap]`: for hosts that have it and no mmdebstrap.
//!
//! It makes a directory, as root, and mounts /proc and /sys in there meanwhile. So it runs with mounts of its own (unshare(1)),
//! which go with its last process, however that ends: whoever removes the directory does not reach into anything of the host.

use std::path::Path;
use std::process::Command;

use block::{Error, Result};
use ops::Control;
use rustix::process::geteuid;
use serde::Deserialize;

use super::apt;
use super::command::{not_installed, output_of};
use super::source::joined;
use crate::accel::find_program;

const NAME: &str = "debootstrap";

/// It writes what it complains of where others write what they make.
const TO_STDERR: &str = "exec \"$0\" \"$@\" >&2";

/// What `debootstrap` is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(
    default,
    deny_unknown_fields,
    rename_all = "kebab-case",
    expecting = "a table"
)]
pub struct Debootstrap {
    /// The release, such as `bookworm`.
    pub suite: Option<String>,
    /// How much besides the packages: `minbase` or `buildd`; with nothing, what Debian calls standard.
    pub variant: Option<String>,
    /// Packages.
    pub packages: Vec<String>,
    /// Parts of the archive, such as `main`.
    pub components: Vec<String>,
    /// The URL of the archive.
    pub mirror: Option<String>,
    /// Whose archive it is, to take it from where this host's apt does: `Debian` where nothing is said.
    pub origin: Option<String>,
    /// The architecture, such as `arm64`, which this host has to be able to run.
    pub architecture: Option<String>,
}

impl Debootstrap {
    pub(super) fn then(self, later: Self) -> Self {
        Self {
            suite: later.suite.or(self.suite),
            variant: later.variant.or(self.variant),
            packages: joined(self.packages, later.packages),
            components: joined(self.components, later.components),
            mirror: later.mirror.or(self.mirror),
            origin: later.origin.or(self.origin),
            architecture: later.architecture.or(self.architecture),
        }
    }

    /// Makes the system in a new directory. `mirrors` win over the recipe's.
    ///
    /// # Errors
    /// `InvalidInput` where it is not installed, run by another than root, or fails, with the last of what it said; `Interrupted`.
    pub(super) fn make(&self, target: &Path, mirrors: &[String], control: &Control<'_>) -> Result<()> {
        find_program(NAME).ok_or_else(|| not_installed(NAME, NAME))?;
        if !geteuid().is_root() {
            let error = Error::invalid("debootstrap has to be run by root");
            return Err(error
                .with_hint("sudo imgtool template build ..., or [source.mmdebstrap], which needs no root"));
        }
        let mirror = match mirrors {
            [] => self
                .mirror
                .clone()
                .or_else(|| apt::mirror(self.origin.as_deref().unwrap_or(apt::ORIGIN), control)),
            [one] => Some(one.clone()),
            several => {
                let message = format!("debootstrap takes one mirror, and {} are given", several.len());
                return Err(Error::invalid(message).with_hint("[source.mmdebstrap] takes several"));
            }
        };
        let target = std::path::absolute(target)
            .map_err(|error| Error::io("find the directory", error).with_path(target))?;
        let command = self.command(&target, mirror.as_deref());
        output_of(command, NAME, "util-linux", control).map(drop)
    }

    fn command(&self, target: &Path, mirror: Option<&str>) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--", "sh", "-c", TO_STDERR]);
        command.arg(NAME);
        let mut list = |option: &str, words: &[String]| {
            if !words.is_empty() {
                command.arg(format!("--{option}={}", words.join(",")));
            }
        };
        list("include", &self.packages);
        list("components", &self.components);
        list("variant", self.variant.as_slice());
        list("arch", self.architecture.as_slice());
        command.arg(self.suite.as_deref().unwrap_or_default()).arg(target);
        command.args(mirror);
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_all_that_the_recipe_says() {
        let debian = Debootstrap {
            suite: Some("bookworm".into()),
            variant: Some("minbase".into()),
            packages: vec!["a".into(), "b".into()],
            components: vec!["main".into(), "contrib".into()],
            architecture: Some("arm64".into()),
            ..Debootstrap::default()
        };
        let words = |mirror| {
            let command = debian.command(Path::new("/a b"), mirror);
            let words = command.get_args().skip(7);
            words
                .map(|word| word.to_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        let told = [
            "debootstrap",
            "--include=a,b",
            "--components=main,contrib",
            "--variant=minbase",
            "--arch=arm64",
            "bookworm",
            "/a b",
        ];
        assert_eq!(words(None), told);
        assert_eq!(words(Some("http://x"))[7..], ["http://x"]);
    }
}
