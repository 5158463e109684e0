//! How often the disk is waited for: whatever an operation needs to be safe, and nothing twice. Times are not measured.

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use block::test_utils::{Change, Recorder, RecordingStorage};
use block::{BlockDevice, MemStorage, Resize, SnapshotSelector, Storage};
use qcow2::{Amendment, GuestOffset, Image, SnapshotProgress, Version};

const CLUSTER: u64 = 4096;
/// So much that one more L1 entry is one cluster of them more.
const SIZE: u64 = 512 * 512 * CLUSTER;

fn go_on(_: SnapshotProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// An image that something changes in turns, opened and closed for each.
struct Watched {
    recorder: Recorder,
    storage: Arc<RecordingStorage>,
}

impl Watched {
    fn new(initial: MemStorage) -> Self {
        let recorder = Recorder::new();
        let storage = recorder.storage(initial);
        Self { recorder, storage }
    }

    /// A disk with data in some of its clusters.
    fn disk() -> Self {
        let watched = Self::new(common::create("cluster_size=4096", SIZE, None));
        watched.syncs_of("write", |image| {
            for at in [0, 5 << 20, SIZE - CLUSTER] {
                image.write_at(&[7; 3000], at).expect("write");
            }
        });
        watched
    }

    /// How many syncs a change takes, closing included. After the last there may be nothing that a cut could take back.
    fn syncs_of(&self, name: &str, change: impl FnOnce(&Image)) -> usize {
        let before = self.recorder.position();
        let image = common::open(self.storage.clone(), None);
        change(&image);
        image.close().expect("close");
        let entries = self.recorder.entries().split_off(before);
        let last_write = entries.iter().rposition(|entry| {
            !matches!(
                entry.change,
                Change::Sync | Change::Discard { .. } | Change::Allocate { .. }
            )
        });
        let syncs: Vec<usize> = (0..entries.len())
            .filter(|at| entries[*at].change == Change::Sync)
            .collect();
        assert!(
            syncs.last().copied() >= last_write,
            "{name} leaves something that is not durable"
        );
        let (code, words) = common::qemu_check(&self.storage.snapshot().to_vec());
        assert_eq!(code, 0, "{name}: {words}");
        syncs.len()
    }
}

#[test]
fn what_changes_nothing_waits_for_no_disk() {
    let watched = Watched::disk();
    assert_eq!(watched.syncs_of("nothing", |_| ()), 0);
    let flushed = |image: &Image| {
        image.flush().expect("flush");
        image.settle().expect("settle");
    };
    assert_eq!(watched.syncs_of("flushes", flushed), 0);
}

#[test]
fn a_closed_image_is_not_made_durable_again() {
    let watched = Watched::disk();
    let in_place = |image: &Image| image.write_at(&[8; 512], 0).expect("write");
    assert_eq!(watched.syncs_of("in place", in_place), 1);
    let allocating = |image: &Image| image.write_at(&[8; 512], 1 << 20).expect("write");
    assert_eq!(watched.syncs_of("allocating", allocating), 2);
}

#[test]
fn what_is_written_after_settling_is_made_durable_too() {
    let watched = Watched::disk();
    let in_between = |image: &Image| {
        for (turn, at) in [0, 2 << 20, 0, 2 << 20].into_iter().enumerate() {
            let before = watched.recorder.position();
            image.write_at(&[turn as u8; 512], at).expect("write");
            image.settle().expect("settle");
            let entries = watched.recorder.entries().split_off(before);
            assert_eq!(
                entries.last().map(|entry| &entry.change),
                Some(&Change::Sync),
                "turn {turn}"
            );
        }
    };
    assert_eq!(watched.syncs_of("settled in between", in_between), 1 + 2 + 1 + 1);
}

#[test]
fn what_another_descriptor_writes_by_a_plan_is_made_durable() {
    let watched = Watched::disk();
    let planned = |image: &Image| {
        for at in [0, 3 << 20] {
            let plan = image.plan_write(GuestOffset(at), CLUSTER).expect("plan");
            for run in plan.runs() {
                watched
                    .storage
                    .write_all_at(&vec![5; run.len as usize], run.host.0)
                    .expect("write");
            }
            plan.commit().expect("commit");
            let before = watched.recorder.position();
            image.flush().expect("flush");
            let flushed = watched.recorder.entries().split_off(before);
            assert!(
                flushed.iter().any(|entry| entry.change == Change::Sync),
                "offset {at}"
            );
        }
    };
    watched.syncs_of("planned", planned);
}

#[test]
fn snapshots_wait_for_each_step_once() {
    let watched = Watched::disk();
    let create = |name: &'static str| {
        move |image: &Image| {
            image
                .create_snapshot(name, UNIX_EPOCH, &mut go_on)
                .expect("create");
        }
    };
    // COPIED; refcounts and tables; header.
    assert_eq!(watched.syncs_of("create", create("one")), 3);
    // No flag is left to clear, but there is a snapshot table to give back.
    assert_eq!(watched.syncs_of("create again", create("two")), 3);
    // Refcounts and the L1 table; header; refcounts of what was the disk.
    let apply = |image: &Image| {
        image
            .apply_snapshot(&SnapshotSelector::name("one"), &mut go_on)
            .expect("apply");
    };
    assert_eq!(watched.syncs_of("apply", apply), 3);
    // The snapshot table; header; refcounts. Others share all tables, and so no flag comes back.
    let delete = |name: &'static str| {
        move |image: &Image| {
            let which = SnapshotSelector::name(name);
            image.delete_snapshot(&which, &mut go_on).expect("delete");
        }
    };
    assert_eq!(watched.syncs_of("delete", delete("one")), 3);
    // No table to write; header; refcounts; flags.
    assert_eq!(watched.syncs_of("delete the last", delete("two")), 3);
}

#[test]
fn a_new_size_waits_for_each_step_once() {
    let watched = Watched::disk();
    let resize = |size: u64| {
        move |image: &Image| {
            let how = Resize {
                shrink: true,
                ..Resize::default()
            };
            image.resize(size, how).expect("resize");
        }
    };
    // The new L1 table; header; the old table's refcount; header.
    assert_eq!(
        watched.syncs_of("grow with another L1 table", resize(SIZE + CLUSTER)),
        4
    );
    // The header alone.
    assert_eq!(watched.syncs_of("grow", resize(SIZE + 2 * CLUSTER)), 1);
    // The header; entries; tables; refcounts; the room of refcount blocks that count nothing any more.
    assert_eq!(watched.syncs_of("shrink", resize(1 << 20)), 5);
}

#[test]
fn bitmaps_wait_for_each_step_once() {
    let watched = Watched::disk();
    let edit = |name: &'static str, add: bool| {
        move |image: &Image| {
            let change = |bitmaps: &mut qcow2::BitmapEdit<'_>| {
                if add {
                    bitmaps.add(name, None, true)
                } else {
                    bitmaps.remove(name)
                }
            };
            image.edit_bitmaps(change).expect("edit");
        }
    };
    // The directory; header.
    assert_eq!(watched.syncs_of("add", edit("a", true)), 2);
    // The same, and the refcount of the directory before.
    assert_eq!(watched.syncs_of("add another", edit("b", true)), 3);
    assert_eq!(watched.syncs_of("remove", edit("a", false)), 3);
    // The header; refcounts.
    assert_eq!(watched.syncs_of("remove the last", edit("b", false)), 2);
}

#[test]
fn an_amendment_that_only_changes_the_header_waits_once() {
    let watched = Watched::disk();
    let to = |version: Version| {
        move |image: &Image| {
            let amendment = Amendment {
                version: Some(version),
                ..Amendment::default()
            };
            let changed = image.amend(&amendment, &mut |_| ControlFlow::Continue(()));
            assert!(changed.expect("amend"));
        }
    };
    assert_eq!(watched.syncs_of("to version 2", to(Version::V2)), 1);
    assert_eq!(watched.syncs_of("to version 3", to(Version::V3)), 1);
}
