//! Trees in the layers of container images.
//!
//! Layers are applied from the lowest up, each as it is read. What a layer removes is what those below it have made, and
//! never what it brings along itself, in whatever order the two come. So it is noted what is of the current layer: other
//! names than those of directories one by one, and directories with everything that they are in.

use std::collections::HashSet;

use block::{Error, Result};

use super::archive::{Unpacking, named};
use super::copying::{self, Copier};
use super::filter::Filter;
use super::left_out::LeftOut;
use super::{Control, paths};
use crate::oci::{Change, Image, PLINK};
use crate::{Builder, Node};

/// Copies what the layers of an image come to into the root of a filesystem. They are read as streams, and verified as
/// they are read: what was made must not be kept after an error.
///
/// # Errors
/// Those of [`oci`](crate::oci) and [`tar`](crate::tar); `InvalidInput` for links to what is not there and for what ext4
/// cannot hold; `Io`, `NoSpace`; what [`Control::report`] returns.
pub fn copy_image(
    builder: &mut Builder<'_>,
    image: &Image,
    filter: &Filter,
    control: &Control<'_>,
) -> Result<LeftOut> {
    copying::run(builder.storage(), control, |copier| {
        let mut changes = image.changes();
        let mut merging = Merging {
            unpacking: Unpacking::new(builder, copier, filter),
            copier,
            directories: HashSet::new(),
            names: HashSet::new(),
        };
        let mut layer = 0;
        while let Some(change) = changes.next_change()? {
            copier.check()?;
            let in_layer = |error: Error| image.explain(layer, error);
            match change {
                Change::Layer(next) => {
                    merging.end_layer()?;
                    layer = next;
                }
                Change::Remove(path) => merging.remove(&path).map_err(in_layer)?,
                Change::Clear(path) => merging.clear(&path).map_err(in_layer)?,
                Change::Put(entry) if filter.excludes_any_of(&entry.path) => {}
                Change::Put(entry) => {
                    let added = merging
                        .unpacking
                        .add(&entry, &mut |buffer| changes.read_data(buffer));
                    let added = added.and_then(|()| merging.note(&entry.path));
                    added.map_err(|error| in_layer(named(error, &entry.path)))?;
                }
            }
        }
        merging.end_layer()?;
        merging
            .unpacking
            .finish()
            .map_err(|error| error.with_path(&image.reference().path))
    })
}

struct Merging<'m, 's> {
    unpacking: Unpacking<'m, 's>,
    copier: &'m Copier<'m>,
    /// Directories that have something of the current layer in them, or are of it themselves.
    directories: HashSet<Node>,
    /// Other names of the current layer, with the directories that they are in.
    names: HashSet<(Node, Vec<u8>)>,
}

impl Merging<'_, '_> {
    /// What is at a path is of the current layer.
    fn note(&mut self, path: &[u8]) -> Result<()> {
        let builder = self.unpacking.builder();
        let root = builder.root();
        let Some((way, name)) = paths::split(path) else {
            return Ok(());
        };
        let parent = paths::directory(builder, way)?;
        let mut directory = parent;
        match builder.lookup(parent, name) {
            Some(node) if builder.is_directory(node) => directory = node,
            _ => drop(self.names.insert((parent, name.to_vec()))),
        }
        while directory != root && self.directories.insert(directory) {
            directory = self.unpacking.builder().parent(directory);
        }
        Ok(())
    }

    /// Removes what lower layers have by a path.
    fn remove(&mut self, path: &[u8]) -> Result<()> {
        let Some((way, name)) = paths::split(path) else {
            return Ok(());
        };
        let builder = self.unpacking.builder();
        let Some(parent) = paths::existing(builder, way)? else {
            return Ok(());
        };
        match builder.lookup(parent, name) {
            Some(node) if self.directories.contains(&node) => self.prune(node),
            Some(_) if self.names.contains(&(parent, name.to_vec())) => {}
            _ => drop(builder.remove(parent, name)),
        }
        Ok(())
    }

    /// Removes what lower layers have in a directory.
    fn clear(&mut self, path: &[u8]) -> Result<()> {
        let found = paths::existing(self.unpacking.builder(), path)?;
        if let Some(directory) = found {
            self.prune(directory);
        }
        Ok(())
    }

    fn prune(&mut self, directory: Node) {
        let builder = self.unpacking.builder();
        let mut left = vec![directory];
        while let Some(directory) = left.pop() {
            let entries: Vec<(Vec<u8>, Node)> = builder
                .entries(directory)
                .map(|(name, node)| (name.to_vec(), node))
                .collect();
            for (name, node) in entries {
                if self.directories.contains(&node) {
                    left.push(node);
                    continue;
                }
                let key = (directory, name);
                if !self.names.contains(&key) {
                    builder.remove(directory, &key.1);
                }
            }
        }
    }

    /// What is there now is what the next layer builds upon.
    fn end_layer(&mut self) -> Result<()> {
        self.directories.clear();
        self.names.clear();
        let builder = self.unpacking.builder();
        builder.remove(builder.root(), PLINK);
        // Room of what was replaced can be used once nobody writes there any more.
        self.copier.wait()?;
        builder.settle();
        Ok(())
    }
}
