//! What this host's apt is asked: where it takes packages from, and for packages themselves.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use block::{Error, ErrorKind, Result, escape};
use ops::Control;

use super::command::{Complaints, output};
use super::source::Debs;

/// Whose archive it is where a recipe does not say.
pub(super) const ORIGIN: &str = "Debian";

/// The archive that this host's apt has of an origin, if there is an apt, and it has one.
pub(super) fn mirror(origin: &str, control: &Control<'_>) -> Option<String> {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(SITE)", "Created-By: Packages"]);
    command
        .arg(format!("Origin: {origin}"))
        .arg(format!("Label: {origin}"));
    let sites = output(command, "apt", control).ok()?;
    let mut sites = sites.lines().map(str::trim);
    sites.find(|site| site.contains("://")).map(ToOwned::to_owned)
}

impl Debs {
    /// Fetches the packages into a directory, and gives their files.
    ///
    /// # Errors
    /// `InvalidInput` for packages that apt does not know; `Interrupted`; `Io`.
    pub(super) fn fetch(&self, directory: &Path, control: &Control<'_>) -> Result<Vec<PathBuf>> {
        fs::create_dir(directory)
            .map_err(|error| Error::io("make a directory", error).with_path(directory))?;
        let mut packages = self.packages.clone();
        if let Some(kernel) = &self.kernel {
            packages.push(with_kernel(kernel, control)?);
        }
        let mut command = Command::new("apt-get");
        // Whoever is root has no need to become another user, who could not write here.
        command.args(["download", "-qq", "-o", "APT::Sandbox::User=root", "--"]);
        command.args(&packages).current_dir(directory);
        output(command, "apt", control).map_err(|error| match error.hint() {
            Some(_) => error,
            None if error.kind() == ErrorKind::Interrupted => error,
            None => error.with_hint("where apt has no lists of packages yet, apt-get update fetches them"),
        })?;
        let failed = |error| Error::io("read the directory", error).with_path(directory);
        let mut files = Vec::new();
        for entry in fs::read_dir(directory).map_err(failed)? {
            files.push(entry.map_err(failed)?.path());
        }
        files.sort_unstable();
        Ok(files)
    }
}

/// The package of the kernel itself, where another depends on the one of this release.
fn with_kernel(package: &str, control: &Control<'_>) -> Result<String> {
    let mut command = Command::new("apt-cache");
    command.args(["depends", "--important", "--", package]);
    let text = match output(command, "apt", control) {
        // It does not say of what it finds nothing; who fetches it does.
        Err(error) if !Complaints::of(&error).is_empty() => String::new(),
        result => result?,
    };
    let depends = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "));
    let mut kernels = depends.filter(|name| name.starts_with("linux-image-"));
    Ok(kernels.next().unwrap_or(package).to_owned())
}

/// Names as packages have them (deb-control(5)), maybe with `=VERSION` or `/RELEASE` behind.
pub(super) fn check(package: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "+-.:=/~_".contains(c);
    if package.starts_with(|c: char| c.is_ascii_alphanumeric()) && package.chars().all(plain) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "\"{}\" is no name of a package",
        escape(package)
    )))
}
