//! How templates and machines are, as far as can be seen at once: headers and times are read, and no contents.

use std::fmt;
use std::fs;
use std::io;

use block::Error;
use raw::lock::Conflict;

use super::instance::is_emulator;
use super::layers::{MissingBase, chain, is_image_of};
use super::template::Stamp;
use super::{Instance, Store, Template};

/// What is wrong with a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TemplateFault {
    /// Its image is not there.
    Missing,
    /// Its image cannot be looked at.
    Unreadable,
    /// Its image has another length than it had, or was read and found to be another.
    Changed,
    /// Its image was written to, be it with what it had before: only reading it tells.
    Touched,
    /// The kernel or the initrd is not there that its machines start with.
    WithoutKernel,
}

impl TemplateFault {
    /// The same in a word or two.
    pub fn words(self) -> &'static str {
        match self {
            Self::Missing => "image missing",
            Self::Unreadable => "image unreadable",
            Self::Changed => "image changed",
            Self::Touched => "image touched",
            Self::WithoutKernel => "kernel missing",
        }
    }
}

/// How a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstanceState {
    /// Who uses its disk.
    pub used: Used,
    /// What would keep it from being started.
    pub fault: Option<InstanceFault>,
}

/// Of a stopped machine what is wrong with it, if anything is.
impl fmt::Display for InstanceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.used, self.fault) {
            (used, None) => f.write_str(used.words()),
            (Used::Not | Used::Unknown, Some(fault)) => f.write_str(fault.words()),
            (used, Some(fault)) => write!(f, "{}, {}", used.words(), fault.words()),
        }
    }
}

/// Who uses the disk of a machine, by its locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Used {
    /// Nobody: it is stopped.
    Not,
    /// A program that runs machines.
    Running,
    /// Another program, or one that is not to be seen.
    Otherwise,
    /// That is not to be seen.
    Unknown,
}

impl Used {
    /// The same in a word or two.
    pub fn words(self) -> &'static str {
        match self {
            Self::Not => "stopped",
            Self::Running => "running",
            Self::Otherwise => "in use",
            Self::Unknown => "unknown",
        }
    }
}

/// What would keep a machine from being started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceFault {
    /// Its disk is not there.
    DiskMissing,
    /// The header of its disk, or of one below, cannot be read.
    Unreadable,
    /// An image is not there that its disk is based on.
    BaseMissing,
    /// Its disk is based on another image than its template's.
    OtherBase,
    /// What is known of its template is not there, or cannot be read.
    TemplateMissing,
    /// Its template is not as it was.
    Base(TemplateFault),
    /// A profile is not there, or cannot be read.
    ProfileMissing,
}

impl InstanceFault {
    /// The same in a word or two.
    pub fn words(self) -> &'static str {
        match self {
            Self::DiskMissing => "disk missing",
            Self::Unreadable => "disk unreadable",
            Self::BaseMissing | Self::Base(TemplateFault::Missing) => "base missing",
            Self::OtherBase => "other base",
            Self::TemplateMissing => "template missing",
            Self::Base(TemplateFault::Unreadable) => "base unreadable",
            Self::Base(TemplateFault::Changed) => "base changed",
            Self::Base(TemplateFault::Touched) => "base touched",
            Self::Base(TemplateFault::WithoutKernel) => "kernel missing",
            Self::ProfileMissing => "profile missing",
        }
    }
}

impl Template {
    /// What is wrong with it, as far as can be seen without reading its image.
    pub fn fault(&self) -> Option<TemplateFault> {
        let image = match fs::metadata(self.image()) {
            Ok(file) => Stamp::of(&file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(TemplateFault::Missing),
            Err(_) => return Some(TemplateFault::Unreadable),
        };
        if image.size != self.document.image_size || self.is_marked() {
            Some(TemplateFault::Changed)
        } else if self.check_is_whole().is_err() {
            Some(TemplateFault::WithoutKernel)
        } else if image.modified != self.document.image_modified {
            Some(TemplateFault::Touched)
        } else {
            None
        }
    }
}

impl Store {
    /// How a machine is, as far as can be seen without reading its disk and its template's.
    pub fn state(&self, instance: &Instance) -> InstanceState {
        let used = match instance.user() {
            Ok(None) => Used::Not,
            Ok(Some(error)) if Conflict::of(&error).is_some_and(is_emulator) => Used::Running,
            Ok(Some(_)) => Used::Otherwise,
            Err(_) => Used::Unknown,
        };
        let fault = self.fault_of_disk(instance);
        InstanceState {
            used,
            fault: fault.or_else(|| self.fault_of_profiles(instance)),
        }
    }

    fn fault_of_disk(&self, instance: &Instance) -> Option<InstanceFault> {
        if matches!(fs::metadata(instance.image()), Err(error) if error.kind() == io::ErrorKind::NotFound) {
            return Some(InstanceFault::DiskMissing);
        }
        let layers = match chain(instance.image()) {
            Ok(layers) => layers,
            Err(error) if is_of_missing_base(&error) => return Some(InstanceFault::BaseMissing),
            Err(_) => return Some(InstanceFault::Unreadable),
        };
        if layers.len() == 1 && instance.document.alone {
            return None;
        }
        let Ok(template) = self.base_of(instance) else {
            return Some(InstanceFault::TemplateMissing);
        };
        let base = layers.last().filter(|_| layers.len() > 1);
        if base.is_some_and(|base| !is_image_of(base, &template)) {
            return Some(InstanceFault::OtherBase);
        }
        let fault = template.fault()?;
        // Its disk needs no image, but what it is started with is the template's.
        let counts = base.is_some() || fault == TemplateFault::WithoutKernel;
        counts.then_some(InstanceFault::Base(fault))
    }

    fn fault_of_profiles(&self, instance: &Instance) -> Option<InstanceFault> {
        let mut profiles = instance.document.profiles.iter();
        let is_missing = profiles.any(|name| self.profile(name).is_err());
        is_missing.then_some(InstanceFault::ProfileMissing)
    }
}

fn is_of_missing_base(error: &Error) -> bool {
    std::error::Error::source(error).is_some_and(<dyn std::error::Error>::is::<MissingBase>)
}
