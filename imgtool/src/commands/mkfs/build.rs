//! Copying a source into a filesystem.

use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};

use block::{FileId, Result, escape};
use ext4_builder::Builder;
use ext4_builder::source::{Control, Copying, LeftOut, Source};
use ops::{Cancel, Progress};

use super::source::TreeArgs;
use crate::arguments::{ThreadArgs, WatchArgs};
use crate::watch::Watch;

/// How a source is copied.
#[derive(Clone, Copy)]
pub(in crate::commands) struct Building<'b> {
    pub(in crate::commands) copying: &'b Copying,
    pub(in crate::commands) tree: &'b TreeArgs,
    pub(in crate::commands) threads: &'b ThreadArgs,
    pub(in crate::commands) watch: &'b WatchArgs,
    pub(in crate::commands) cancel: &'b Cancel,
}

impl Building<'_> {
    /// Fills a filesystem with a source. `target` is the file that it is in, which is no part of the source.
    pub(in crate::commands) fn fill(
        &self,
        source: Source,
        builder: &mut Builder<'_>,
        target: Option<FileId>,
    ) -> Result<()> {
        // What is wrong there is found before anything is written.
        let overlays = self.tree.overlays()?;
        let mut copying = self.copying.clone();
        copying.directory.refuse.extend(target);
        let watch = Watch::new(self.watch);
        let (total, copied) = (source.archive_size(), AtomicU64::new(0));
        let read = source.archive_read();
        let report = |bytes| {
            self.cancel.check()?;
            if bytes > 0 {
                let copied = copied.fetch_add(bytes, Ordering::Relaxed) + bytes;
                // Of a compressed archive, nobody knows how much there is in it.
                let done = if total > 0 {
                    read.load(Ordering::Relaxed)
                } else {
                    copied
                };
                watch.report(Progress { done, total });
            }
            Ok(())
        };
        let mut control = Control {
            report: &report,
            ..Control::unwatched()
        };
        if let Some(threads) = self.threads.threads {
            control.threads = NonZeroUsize::new(threads.into()).unwrap_or(control.threads);
        }
        let copied = source
            .copy(builder, &copying, &control)
            .and_then(|left_out| overlays.apply(builder, &control).map(|()| left_out));
        watch.finish();
        tell_left_out(&copied?);
        Ok(())
    }
}

/// Says what is not in the filesystem. With nobody left to read that there is nothing to be done about it.
pub(crate) fn tell_left_out(left_out: &LeftOut) {
    if left_out.count() == 0 {
        return;
    }
    let names: Vec<_> = left_out.names().map(String::from_utf8_lossy).collect();
    let _ = writeln!(
        io::stderr(),
        "imgtool: warning: extended attributes that ext4 cannot have are left out: {}, such as {}",
        left_out.count(),
        escape(&names.join(", ")),
    );
}
