//! What images lie in: files of this host, and exports of NBD servers.

use std::path::Path;
use std::sync::Arc;

use block::gate::Permit;
use block::{Access, FileOpener, Result, Storage};
use nbd::{Address, Export};
use raw::HostOpener;

/// Opens what an argument names, and the files that images name: those are never exports.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opener(pub(crate) HostOpener);

impl FileOpener for Opener {
    fn open(&self, path: &Path, access: Access) -> Result<Arc<dyn Storage>> {
        match export(path) {
            Some(address) => {
                let export = Export::open(&address?, access)?;
                // In a sandbox there is no other time.
                export.connect_ahead();
                Ok(Arc::new(export))
            }
            None => self.0.open(path, access),
        }
    }

    fn open_nested(&self, permit: &Permit, access: Access) -> Result<Arc<dyn Storage>> {
        self.0.open_nested(permit, access)
    }
}

/// Whether the name is that of an export and not of a file.
pub(crate) fn is_export(path: &Path) -> bool {
    path.to_str().is_some_and(Address::names_one)
}

/// The export that is named, if it is one.
pub(crate) fn export(path: &Path) -> Option<Result<Address>> {
    is_export(path).then(|| Address::parse(path.to_str().expect("it was looked at as text")))
}
