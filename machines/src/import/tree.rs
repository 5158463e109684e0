//! Root trees: a disk is built of them as a recipe would have it.

use std::path::{Path, PathBuf};

use block::{Error, Result, escape};
use ext4_builder::oci::{Image, Reference, Storing};
use ops::Control;

use super::notes::{self, BootFiles};
use crate::Architecture;
use crate::export::LABEL;
use crate::recipe::{BuildOptions, DiskOptions, Recipe, Source};
use crate::store::{NewTemplate, Store, Template};

impl Store {
    /// Of a tar archive.
    pub(super) fn import_tar(
        &self,
        file: &Path,
        noted: BootFiles,
        new: NewTemplate,
        control: &Control<'_>,
    ) -> Result<Template> {
        self.import_tree(file, Source::Tar(file.to_owned()), noted, new, control)
    }

    /// Of a container image.
    pub(super) fn import_oci(
        &self,
        file: &Path,
        mut new: NewTemplate,
        control: &Control<'_>,
    ) -> Result<Template> {
        let reference = reference(file)?;
        let image = Image::open(&reference, None)?;
        let mut noted = BootFiles::default();
        if let Some(text) = image.config().labels.get(LABEL) {
            let notes = notes::parse_notes(text.as_bytes());
            let named = |error: Error| {
                let message = format!("the label {LABEL}: {error}");
                Error::invalid(message).with_path(&reference.path)
            };
            noted = new.take_notes(notes.map_err(named)?);
        }
        let platform = image.platform();
        let architecture = match &*platform.architecture {
            "amd64" => Architecture::X86_64,
            "arm64" => Architecture::Aarch64,
            other => {
                let message = format!("the image is for processors of the kind \"{}\"", escape(other));
                return Err(Error::unsupported(message)
                    .with_path(&reference.path)
                    .with_hint("machines have processors of the kinds amd64 and arm64"));
            }
        };
        new.machine.architecture = Some(architecture);
        let mut name = match reference.storing {
            Storing::Layout => "oci:".to_owned(),
            Storing::LayoutArchive => "oci-archive:".to_owned(),
            Storing::DockerArchive => "docker-archive:".to_owned(),
        };
        let Some(path) = reference.path.to_str() else {
            return Err(Error::invalid("the name is not UTF-8").with_path(&reference.path));
        };
        name.push_str(path);
        if let Some(tag) = &reference.tag {
            name.push(':');
            name.push_str(tag);
        }
        self.import_tree(&reference.path, Source::Oci(name), noted, new, control)
    }

    fn import_tree(
        &self,
        file: &Path,
        source: Source,
        noted: BootFiles,
        mut new: NewTemplate,
        control: &Control<'_>,
    ) -> Result<Template> {
        notes::boot_files(file, noted, &mut new)?;
        let disk = DiskOptions {
            compress: Some(new.compress),
            ..DiskOptions::default()
        };
        let recipe = Recipe::of_source(file, source, disk, std::mem::take(&mut new.machine));
        self.build_as(&recipe, &BuildOptions::default(), new, control)
    }
}

/// What is named: as `oci:DIR:TAG`, or the directory or archive alone.
fn reference(file: &Path) -> Result<Reference> {
    if file.symlink_metadata().is_err()
        && let Some(reference) = Reference::parse(file.as_os_str())?
    {
        return Ok(reference);
    }
    let storing = if file.is_dir() {
        Storing::Layout
    } else {
        Storing::LayoutArchive
    };
    Ok(Reference {
        storing,
        path: PathBuf::from(file),
        tag: None,
    })
}
