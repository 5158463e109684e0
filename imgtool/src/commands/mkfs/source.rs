//! What the filesystem is made of.

use std::path::{Path, PathBuf};

use block::{Error, Result, escape};
use clap::Args;
use ext4_builder::oci::Platform;
use ext4_builder::source::{
    Control, Copying, Directory, FileContexts, Filter, IdMap, Manifest, Pattern, Source,
};
use ext4_builder::{Builder, tar};

use crate::images::directory_of;

/// Bytes in a manifest, a list of contexts, or one of users or groups at most.
const LONGEST_LIST: u64 = 64 << 20;

/// What becomes of the source on the way.
#[derive(Clone, Debug, Args)]
pub(in crate::commands) struct TreeArgs {
    /// Leave out what has this name, or with a slash in it, this path from the root: * ? [a-z] and ** are understood
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Leave out what is in directories that something is mounted on
    #[arg(short = 'x', long)]
    one_file_system: bool,
    /// Whom everything belongs to, as numbers
    #[arg(long, value_name = "UID[:GID]", conflicts_with_all = ["uid_map", "gid_map"])]
    owner: Option<String>,
    /// Make COUNT users from FROM on those from TO on; others stay
    #[arg(long, value_name = "FROM:TO[:COUNT]")]
    uid_map: Vec<String>,
    /// Make COUNT groups from FROM on those from TO on; others stay
    #[arg(long, value_name = "FROM:TO[:COUNT]")]
    gid_map: Vec<String>,
    /// Take the numbers of users and groups that access control lists of an archive name from passwd and group in this
    /// directory [default: from those in the archive's etc]
    #[arg(long, value_name = "DIR")]
    names: Option<PathBuf>,
    /// Take an archive that does not mark its end: one that was cut off between two files looks the same
    #[arg(long)]
    allow_missing_end: bool,
    /// Lay what a manifest says over the source: files, directories, links, devices, owners, modes and attributes, in
    /// TOML
    #[arg(long, value_name = "FILE")]
    manifest: Vec<PathBuf>,
    /// Label everything by the patterns in the `file_contexts` of a policy of `SELinux`
    #[arg(long, value_name = "FILE")]
    file_contexts: Option<PathBuf>,
}

/// What is laid over the source.
#[derive(Debug, Default)]
pub(super) struct Overlays {
    manifests: Vec<(PathBuf, Manifest)>,
    file_contexts: Option<(PathBuf, FileContexts)>,
}

impl Overlays {
    pub(super) fn apply(&self, builder: &mut Builder<'_>, control: &Control<'_>) -> Result<()> {
        for (path, manifest) in &self.manifests {
            manifest
                .apply(builder, &machines::filesystem_in, control)
                .map_err(|error| error.with_path(path))?;
        }
        if let Some((path, contexts)) = &self.file_contexts {
            contexts.apply(builder).map_err(|error| error.with_path(path))?;
        }
        Ok(())
    }
}

impl TreeArgs {
    /// Reads what is to be laid over the source.
    pub(super) fn overlays(&self) -> Result<Overlays> {
        let mut overlays = Overlays::default();
        for path in &self.manifest {
            let manifest = Manifest::parse(
                &raw::read_text(path, "a manifest", LONGEST_LIST)?,
                directory_of(path),
            );
            let manifest = manifest.map_err(|error| error.with_path(path))?;
            overlays.manifests.push((path.clone(), manifest));
        }
        if let Some(path) = &self.file_contexts {
            let text = raw::read_text(path, "a list of contexts", LONGEST_LIST)?;
            let contexts = FileContexts::parse(&text).map_err(|error| error.with_path(path))?;
            overlays.file_contexts = Some((path.clone(), contexts));
        }
        Ok(overlays)
    }

    /// Whether anything is added to the source.
    pub(in crate::commands) fn adds(&self) -> bool {
        !self.manifest.is_empty()
    }

    fn filter(&self) -> Result<Filter> {
        let mut filter = Filter {
            uids: id_map("--uid-map", &self.uid_map)?,
            gids: id_map("--gid-map", &self.gid_map)?,
            ..Filter::default()
        };
        for text in &self.exclude {
            filter.exclude.push(Pattern::new(text.as_bytes())?);
        }
        if let Some(text) = &self.owner {
            let ids: Option<Vec<u32>> = text.split(':').map(|id| id.parse().ok()).collect();
            match ids.as_deref() {
                Some([owner]) => filter.owner = Some(*owner),
                Some([owner, group]) => (filter.owner, filter.group) = (Some(*owner), Some(*group)),
                _ => {
                    let message = format!("--owner {}: this is no owner", escape(text));
                    return Err(Error::invalid(message).with_hint("give numbers, such as 0:0"));
                }
            }
            // A kernel takes the last number for no id, and lets nobody change such files.
            if filter.owner == Some(u32::MAX) || filter.group == Some(u32::MAX) {
                let message = format!("--owner {}: the last id is 4294967294", escape(text));
                return Err(Error::invalid(message));
            }
        }
        Ok(filter)
    }

    /// What becomes of a source.
    pub(in crate::commands) fn copying(&self) -> Result<Copying> {
        Ok(Copying {
            filter: self.filter()?,
            directory: Directory {
                one_file_system: self.one_file_system,
                ..Directory::default()
            },
            archive: tar::Options {
                names: self
                    .names
                    .as_deref()
                    .map(names_in)
                    .transpose()?
                    .unwrap_or_default(),
                end_mark_optional: self.allow_missing_end,
                ..tar::Options::default()
            },
        })
    }
}

fn id_map(option: &str, ranges: &[String]) -> Result<IdMap> {
    let mut map = IdMap::default();
    for text in ranges {
        let ids: Option<Vec<u32>> = text.split(':').map(|id| id.parse().ok()).collect();
        let (from, to, count) = match ids.as_deref() {
            Some(&[from, to]) => (from, to, 1),
            Some(&[from, to, count]) => (from, to, count),
            _ => {
                let message = format!("{option} {}: this is no range of ids", escape(text));
                return Err(Error::invalid(message).with_hint("give numbers, such as 100000:0:65536"));
            }
        };
        map.add(from, to, count).map_err(|error| {
            let named = Error::invalid(format!("{option} {}: {}", escape(text), error.message()));
            match error.hint() {
                Some(hint) => named.with_hint(hint.to_owned()),
                None => named,
            }
        })?;
    }
    Ok(map)
}

/// What users and groups are called by the files in a directory such as /etc.
fn names_in(directory: &Path) -> Result<tar::Names> {
    let read = |name| raw::read_whole(&directory.join(name), "a list of users or groups", LONGEST_LIST);
    Ok(tar::Names::new(&read("passwd")?, &read("group")?))
}

/// Opens what a filesystem is made of; of a container image for several platforms, the one for `platform`.
pub(in crate::commands) fn open_source(name: &Path, platform: Option<&str>) -> Result<Source> {
    let platform = platform.map(str::parse::<Platform>).transpose()?;
    Source::open(name, platform.as_ref())
}

/// Refuses a target that is the source, or standard output: what is written does not come in order.
pub(in crate::commands) fn refuse_as_target(source: &Source, target: &Path) -> Result<()> {
    let (wrong, hint) = if target == Path::new("-") {
        (
            "a filesystem cannot be written to standard output",
            "name a file, and copy that; a file of this name is ./-",
        )
    } else if source.is_in(target) {
        (
            "the target is the archive that is read",
            "give the new image another name",
        )
    } else {
        return Ok(());
    };
    Err(Error::invalid(wrong).with_path(target).with_hint(hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_ids_are_numbers() {
        let map = id_map("--uid-map", &["1000:0".into(), "100000:1:65535".into()]).unwrap();
        assert_eq!([1000, 100_001, 5].map(|id| map.map(id)), [0, 2, 5]);
        for wrong in ["", "1", "a:b", "1:2:3:4", "1:2:0", "-1:2"] {
            let error = id_map("--uid-map", &[wrong.into()]).unwrap_err();
            assert!(!error.message().is_empty(), "{wrong}");
        }
    }
}
