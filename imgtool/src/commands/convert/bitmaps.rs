//! `--bitmaps`: the dirty bitmaps that go with a disk into its copy.

use block::chain::Chain;
use block::{Error, ErrorKind, Result, escape};
use qcow2::{Bitmap, DirtyBits, Image, Version};

use crate::formats::{NewDevice, NewImage};
use crate::images::qcow2_with;

/// The bitmaps of a disk that is copied; none if they are not to be copied.
#[derive(Debug, Default)]
pub(crate) struct CopiedBitmaps(Vec<(Bitmap, DirtyBits)>);

impl CopiedBitmaps {
    /// Those of the chain's active image. Of one that cannot be used `broken` is told, and it is left out unless that fails.
    pub(crate) fn of(chain: &Chain, broken: &mut dyn FnMut(&Bitmap, Error) -> Result<()>) -> Result<Self> {
        let image = qcow2_with(chain, "bitmaps")?;
        let mut copied = Vec::new();
        image.each_bitmap(|bitmap, bits| {
            match bits {
                Ok(bits) => copied.push((bitmap.clone(), bits)),
                Err(error) if error.kind() == ErrorKind::Unsupported => broken(bitmap, error)?,
                Err(error) => return Err(error),
            }
            Ok(())
        })?;
        Ok(Self(copied))
    }

    /// The same for a disk of `size` bytes.
    pub(crate) fn resized(&self, size: u64) -> Result<Self> {
        let resize = |(bitmap, bits): &(Bitmap, DirtyBits)| {
            let bits = bits
                .resized(size)
                .map_err(|error| named(error, &bitmap.name, "cannot be copied"))?;
            Ok((bitmap.clone(), bits))
        };
        self.0.iter().map(resize).collect::<Result<_>>().map(Self)
    }

    /// Adds them to a new image that has been filled.
    pub(crate) fn add_to_new(&self, new: &NewDevice) -> Result<()> {
        match new {
            NewDevice::Qcow2(image) => self.add_to(image),
            NewDevice::Raw(_) | NewDevice::Luks(_) => Ok(()),
        }
    }

    /// Fails if they cannot be added to an image that exists.
    pub(crate) fn check_target(&self, target: &Chain) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let image = qcow2_with(target, "bitmaps")?;
        if image.header().version < Version::V3 {
            return Err(of_version_2());
        }
        match self.known_to(target)? {
            Some(name) => {
                let message = format!("there is a bitmap '{}' already", escape(name));
                Err(Error::invalid(message).with_hint("remove it with `imgtool bitmap --remove`"))
            }
            None => Ok(()),
        }
    }

    /// The first name of them that a bitmap of an image has already.
    pub(crate) fn known_to(&self, target: &Chain) -> Result<Option<&str>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let there = qcow2_with(target, "bitmaps")?.bitmaps()?;
        let mut names = self.0.iter().map(|(bitmap, _)| &*bitmap.name);
        Ok(names.find(|name| there.iter().any(|other| other.name == *name)))
    }

    /// Adds them to an image that exists and has been filled.
    pub(crate) fn add_to_target(&self, target: &Chain) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        self.add_to(qcow2_with(target, "bitmaps")?)
    }

    fn add_to(&self, image: &Image) -> Result<()> {
        image.edit_bitmaps(|bitmaps| {
            self.0.iter().try_for_each(|(bitmap, bits)| {
                bitmaps.add(&bitmap.name, Some(bitmap.granularity()), bitmap.auto)?;
                bitmaps.merge(&bitmap.name, bits)
            })
        })
    }
}

/// Fails if a new image cannot have bitmaps.
pub(crate) fn check_new(image: &NewImage) -> Result<()> {
    match image.qcow2() {
        None => Err(Error::invalid("a raw image cannot have bitmaps (--bitmaps)")),
        Some(options) if options.version < Version::V3 => Err(of_version_2()),
        Some(_) => Ok(()),
    }
}

fn of_version_2() -> Error {
    Error::invalid("an image of version 2 (compat=0.10) cannot have bitmaps (--bitmaps)")
}

fn named(error: Error, name: &str, what: &str) -> Error {
    Error::new(error.kind(), format!("bitmap '{}' {what}", escape(name))).with_source(error)
}
