//! The files of a new image: its own, and the one that holds its data where `data_file` asks for that.
//!
//! Both are made as [`TargetFile`]s. The data file gets its name first, so that no image names one that is not whole.
//! It is never one that holds anything, unless [`Making::replace_data`] allows it: an existing disk would be lost to whoever meant to wrap it.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::gate::{self, OpenRequest, Purpose};
use block::{Backing, Error, Result, Storage, escape};
use ops::Cancel;

use crate::formats::{NewDevice, NewImage};
use crate::images::directory_of;
use crate::target::{Making, TargetFile};

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Targets {
    image: TargetFile,
    data: Option<(PathBuf, TargetFile)>,
}

impl Targets {
    /// Makes ready to write `image` to `path`, and its data beside it or wherever it is to be.
    pub(crate) fn new(path: &Path, image: &NewImage, making: Making) -> Result<Self> {
        let data = match image.data_file() {
            None => None,
            Some(name) => {
                let file = data_path(path, &name, making.replace_data)?;
                Some((file.clone(), TargetFile::new(&file, making)?))
            }
        };
        Ok(Self {
            image: TargetFile::new(path, making)?,
            data,
        })
    }

    /// The image's own file.
    pub(crate) fn image(&self) -> &TargetFile {
        &self.image
    }

    /// Whether the new disk reads as zeros before anything is written to it. Where guest data lies on a device as it is, that shows what
    /// it held before.
    pub(crate) fn are_zero(&self, image: &NewImage) -> bool {
        match &self.data {
            Some((_, data)) => !(data.is_device() && image.has_raw_data()),
            None => image.is_zero(self.image.is_device()),
        }
    }

    /// Fails where a data file would show what it held before through a filesystem that leaves out what it does not need.
    pub(crate) fn refuse_old_data(&self, image: &NewImage) -> Result<()> {
        match &self.data {
            Some((path, _)) if !self.are_zero(image) => {
                let message = "the data file is a device, whose old contents would be in the new disk";
                let error = Error::invalid(message).with_path(path);
                Err(error.with_hint("leave out data_file_raw, or make the filesystem on the device itself"))
            }
            _ => Ok(()),
        }
    }

    /// Where the files are to get their names.
    pub(crate) fn directories(&self) -> Vec<&Path> {
        let files = std::iter::once(&self.image).chain(self.data.iter().map(|(_, file)| file));
        files.map(TargetFile::directory).collect()
    }

    /// Makes the image.
    pub(crate) fn create(&self, image: &NewImage) -> Result<()> {
        if let Some(data) = self.data_storage() {
            image.create_data(&*data)?;
        }
        image.create(&*self.image.storage())
    }

    /// Opens the image that was made, to fill it.
    pub(crate) fn open(&self, image: &NewImage, backing: Backing, level: Option<i32>) -> Result<NewDevice> {
        image.open(self.image.storage(), self.data_storage(), backing, level)
    }

    /// Gives the files, now whole and closed, their names.
    pub(crate) fn finish(self, cancel: &Cancel) -> Result<()> {
        let Some((path, data)) = self.data else {
            return self.image.finish(cancel);
        };
        let new = !path.exists();
        data.finish(cancel)?;
        // From here on there is one step left, and no use in stopping before it.
        self.image.finish(&Cancel::new()).inspect_err(|_| {
            if new {
                let _ = fs::remove_file(&path);
            }
        })
    }

    fn data_storage(&self) -> Option<Arc<dyn Storage>> {
        self.data.as_ref().map(|(_, data)| data.storage())
    }
}

/// The file that the image at `path` means by a data file called `name`, if it may be made.
pub(crate) fn data_path(path: &Path, name: &str, replace: bool) -> Result<PathBuf> {
    let file = gate::resolve(&OpenRequest {
        from: path,
        name,
        purpose: Purpose::DataFile,
    })?;
    let place = |path: &Path| {
        let directory = fs::canonicalize(directory_of(path)).ok();
        (directory, path.file_name().map(ToOwned::to_owned))
    };
    if place(&file) == place(path) {
        let message = format!("the image cannot be its own data file (\"{}\")", escape(name));
        return Err(Error::invalid(message).with_path(path));
    }
    // As qemu-img, which takes it from the working directory: another file of that name is not what was meant to be emptied.
    let replace = replace && place(&file) == place(Path::new(name));
    match fs::metadata(&file) {
        Ok(found) if !replace && found.len() > 0 && !found.file_type().is_block_device() => {
            let message = "the data file exists, and making the image would erase what it holds";
            Err(Error::invalid(message)
                .with_path(&file)
                .with_hint("give it another name, or remove it first if it is not needed"))
        }
        _ => Ok(file),
    }
}
