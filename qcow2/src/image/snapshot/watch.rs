//! How far an operation has come, and whether it may go on.

use std::ops::ControlFlow;

use block::{Error, ErrorKind, Result};

/// How far an operation on snapshots has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotProgress {
    /// L2 tables gone through; each several times.
    pub done: u64,
    /// L2 tables to go through in all.
    pub total: u64,
}

/// Who is told, and asked.
pub(in crate::image) struct Steps<'a> {
    progress: SnapshotProgress,
    watch: &'a mut dyn FnMut(SnapshotProgress) -> ControlFlow<()>,
    /// Something has been changed: to go on is what does least harm.
    begun: bool,
}

impl<'a> Steps<'a> {
    pub(in crate::image) fn new(
        total: usize,
        watch: &'a mut dyn FnMut(SnapshotProgress) -> ControlFlow<()>,
    ) -> Self {
        let progress = SnapshotProgress {
            done: 0,
            total: total as u64,
        };
        Self {
            progress,
            watch,
            begun: false,
        }
    }

    /// From here on, there is no stopping.
    pub(super) fn begin(&mut self) {
        self.begun = true;
    }

    /// So many more tables are done.
    pub(super) fn done(&mut self, tables: u64) -> Result<()> {
        self.progress.done += tables;
        match (self.watch)(self.progress) {
            ControlFlow::Break(()) if !self.begun => Err(Error::new(
                ErrorKind::Interrupted,
                "interrupted; nothing has been changed",
            )),
            _ => Ok(()),
        }
    }
}
