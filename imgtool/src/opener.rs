//! What images lie in: files of this host, and exports of NBD servers.

use std::path::Path;
use std::sync::Arc;

use block::gate::Permit;
use block::{Access, FileOpener, Result, Storage};
use nbd::{Address, Export};
use raw::HostOpener;

use crate::stores::refuse_template;

/// Opens what an argument names, and the files that images name: those are never exports. A template is never opened for
/// writing: machines are based on what it holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opener(pub(crate) HostOpener);

impl FileOpener for Opener {
    fn open(&self, path: &Path, access: Access) -> Result<Arc<dyn Storage>> {
        if let Some(address) = export(path) {
            let export = Export::open(&address?, access)?;
            // In a sandbox there is no other time.
            export.connect_ahead();
            return Ok(Arc::new(export));
        }
        if access.write {
            refuse_template(path)?;
        }
        self.0.open(path, access)
    }

    fn open_nested(&self, permit: &Permit, access: Access) -> Result<Arc<dyn Storage>> {
        if access.write {
            refuse_template(&permit.path)?;
        }
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
