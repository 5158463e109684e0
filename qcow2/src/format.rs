//! qcow2 as one of the formats that a chain is made of.

use std::sync::Arc;

use block::{Access, Backing, Format, Keys, Overlay, References, Result, SnapshotSelector, Storage};

use crate::header::{Encryption, Header};
use crate::image::{Image, OpenOptions};

/// The format, for [`Chain::open`](block::chain::Chain::open).
#[derive(Clone, Copy, Debug, Default)]
pub struct Qcow2;

impl Format for Qcow2 {
    fn name(&self) -> &'static str {
        "qcow2"
    }

    fn probe(&self, head: &[u8]) -> bool {
        Header::probe(head)
    }

    fn references(&self, storage: &dyn Storage) -> Result<References> {
        let header = Header::read(storage)?;
        Ok(References {
            backing: header.backing(),
            data_file: header.data_file(),
            encrypted: header.encryption != Encryption::None,
        })
    }

    fn open(
        &self,
        storage: Arc<dyn Storage>,
        data_file: Option<Arc<dyn Storage>>,
        access: Access,
        backing: Backing,
        keys: Keys,
    ) -> Result<Arc<dyn Overlay>> {
        Ok(Arc::new(Image::open(
            storage,
            OpenOptions {
                access,
                backing,
                data_file,
                keys,
                ..OpenOptions::default()
            },
        )?))
    }

    fn open_snapshot(
        &self,
        storage: Arc<dyn Storage>,
        snapshot: &SnapshotSelector,
        backing: Backing,
        keys: Keys,
    ) -> Result<Arc<dyn Overlay>> {
        let options = OpenOptions {
            backing,
            keys,
            ..OpenOptions::default()
        };
        Ok(Arc::new(Image::open_snapshot(storage, snapshot, options)?))
    }
}
