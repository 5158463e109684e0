//! Power cuts with dirty bitmaps: whatever is lost, torn or reordered, a bitmap that claims to be consistent is one
//! that was saved, and covers every change of the disk that can be seen.

mod common;

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use block::test_utils::{Recorder, Rng, seeds};
use block::{Access, BlockDevice, MemStorage, Resize, ZeroMode};
use qcow2::{Image, OpenOptions};

const SIZE: u64 = 256 << 10;
/// What a bit of either bitmap stands for.
const UNIT: u64 = 512;

/// What the bitmaps hold when they are saved, by name; from when on, in entries of the log.
struct Saved {
    from: usize,
    size: u64,
    bitmaps: Vec<(String, Vec<Range<u64>>)>,
}

fn saved(recorder: &Recorder, image: &Image) -> Saved {
    let bitmaps = image.bitmaps().expect("the bitmaps").into_iter();
    let bits = |name: &str| image.dirty_bits(name).expect("its bits").ranges().collect();
    Saved {
        from: recorder.position(),
        size: image.size(),
        bitmaps: bitmaps
            .map(|bitmap| (bitmap.name.clone(), bits(&bitmap.name)))
            .collect(),
    }
}

fn open(storage: Arc<dyn block::Storage>) -> Image {
    let options = OpenOptions {
        access: Access::WRITE,
        ..OpenOptions::default()
    };
    Image::open(storage, options).expect("the image opens")
}

fn change(image: &Image, rng: &mut Rng, step: u8) {
    let units = image.size() / UNIT;
    let start = rng.below(units);
    let len = (1 + rng.below(20)).min(units - start) * UNIT;
    let at = start * UNIT;
    match rng.below(8) {
        0 => image.zero_at(at, len, ZeroMode::Unmap),
        1 => image.discard_at(at, len),
        2 => image.flush(),
        _ => image.write_at(&vec![step | 1; len as usize], at),
    }
    .expect("a change of the disk");
}

/// What is done when nobody is writing; `names` counts the bitmaps that were made.
fn manage(image: &Image, rng: &mut Rng, names: &mut u32) {
    match rng.below(6) {
        0 => image.edit_bitmaps(|bitmaps| {
            *names += 1;
            bitmaps.add(&format!("bitmap {names}"), Some(UNIT << rng.below(3)), rng.coin())
        }),
        1 => image.edit_bitmaps(|bitmaps| {
            let other = bitmaps
                .list()
                .map(|bitmap| bitmap.name.clone())
                .find(|name| name != "all");
            other.map_or(Ok(()), |name| bitmaps.remove(&name))
        }),
        2 => image.edit_bitmaps(|bitmaps| {
            let all = bitmaps.dirty_bits("all")?;
            let others: Vec<_> = bitmaps.list().map(|bitmap| bitmap.name.clone()).collect();
            others.iter().try_for_each(|name| bitmaps.merge(name, &all))
        }),
        3 => image.resize(
            (1 + rng.below(2 * SIZE / UNIT)) * UNIT,
            Resize {
                shrink: true,
                ..Resize::default()
            },
        ),
        _ => Ok(()),
    }
    .expect("a change of the bitmaps");
}

fn torture(options: &str, seed: u64) {
    let initial = common::create(options, SIZE, None);
    // It is there from the start, so all that is not zero must be dirty in it.
    let shared = Arc::new(initial);
    let image = open(shared.clone());
    image
        .edit_bitmaps(|bitmaps| bitmaps.add("all", Some(UNIT), true))
        .expect("a bitmap");
    image.close().expect("close");

    let recorder = Recorder::new();
    let storage = recorder.storage(MemStorage::clone(&shared));
    let mut rng = Rng::new(seed);
    let mut names = 0;
    let mut history = Vec::new();
    for step in 0..6u8 {
        let image = open(storage.clone());
        history.push(saved(&recorder, &image));
        for _ in 0..rng.below(5) {
            change(&image, &mut rng, step);
        }
        // What an edit begins with, and what closing does, is to save what is tracked now.
        history.push(saved(&recorder, &image));
        manage(&image, &mut rng, &mut names);
        history.push(saved(&recorder, &image));
        for _ in 0..rng.below(3) {
            change(&image, &mut rng, step);
        }
        history.push(saved(&recorder, &image));
        image.close().expect("close");
    }
    history.push(saved(&recorder, &open(storage.clone())));

    let states = recorder.crash_states();
    for point in states.points() {
        for cut in seeds(6) {
            let what = format!("{options} seed {seed} point {point} cut {cut}");
            let disk = states.at(point, cut).remove(0);
            judge(&disk, &what, cut == 0 && point % 32 == 0);
            verify(disk, &history, point, &what);
        }
    }
}

fn judge(disk: &MemStorage, what: &str, with_qemu: bool) {
    let report = qcow2::check(disk, &qcow2::CheckOptions::default(), &mut |_| {
        ControlFlow::Continue(())
    });
    let report = report.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(
        report.corruptions == 0 && report.check_errors == 0,
        "{what}: {report:?}"
    );
    if with_qemu {
        let (code, words) = common::qemu_check(&disk.to_vec());
        assert!(code == 0 || code == 3, "{what}: {words}");
    }
}

fn verify(disk: MemStorage, history: &[Saved], point: usize, what: &str) {
    let image = Image::open(Arc::new(disk), OpenOptions::default());
    let image = image.unwrap_or_else(|error| panic!("{what}: {error}"));
    let now = history
        .iter()
        .rposition(|saved| saved.from <= point)
        .expect("the first is 0");
    // The last that was written down before the cut, or what was on its way then.
    let possible = &history[now.saturating_sub(3)..(now + 3).min(history.len())];
    for bitmap in image.bitmaps().unwrap_or_else(|error| panic!("{what}: {error}")) {
        if bitmap.in_use {
            continue;
        }
        let bits = image
            .dirty_bits(&bitmap.name)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        let ranges: Vec<_> = bits.ranges().collect();
        let known = possible.iter().any(|saved| {
            let same = |(name, bits): &(String, Vec<_>)| *name == bitmap.name && *bits == ranges;
            saved.size == image.size() && saved.bitmaps.iter().any(same)
        });
        assert!(known, "{what}: {} was never {ranges:?}", bitmap.name);
        if bitmap.name == "all" {
            covers_what_is_not_zero(&image, &ranges, what);
        }
    }
}

fn covers_what_is_not_zero(image: &Image, dirty: &[Range<u64>], what: &str) {
    let mut bytes = vec![0; image.size() as usize];
    image
        .read_at(&mut bytes, 0)
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    for range in dirty {
        bytes[range.start as usize..range.end as usize].fill(0);
    }
    let missed = bytes.iter().position(|byte| *byte != 0);
    assert_eq!(missed, None, "{what}: changed, and not dirty");
}

#[test]
fn small_clusters() {
    seeds(8).for_each(|seed| torture("cluster_size=512", seed));
}

#[test]
fn larger_clusters() {
    seeds(8).for_each(|seed| torture("cluster_size=4096,refcount_bits=1", seed));
}

/// The first bitmap brings the extension into the header, across the end of a sector; the last takes it out again.
#[test]
fn the_first_and_the_last() {
    for options in ["cluster_size=512", "cluster_size=64k"] {
        let recorder = Recorder::new();
        let image = open(recorder.storage(common::create(options, SIZE, None)));
        image
            .edit_bitmaps(|bitmaps| bitmaps.add("x", None, true))
            .expect("a bitmap");
        let added = recorder.position();
        image
            .edit_bitmaps(|bitmaps| bitmaps.remove("x"))
            .expect("no bitmap");
        let removed = recorder.position();
        image.close().expect("close");
        let states = recorder.crash_states();
        for point in states.points() {
            for cut in seeds(40) {
                let what = format!("{options} point {point} cut {cut}");
                let disk = states.at(point, cut).remove(0);
                judge(&disk, &what, cut == 0);
                let image = Image::open(Arc::new(disk), OpenOptions::default());
                let image = image.unwrap_or_else(|error| panic!("{what}: {error}"));
                let count = image
                    .bitmaps()
                    .unwrap_or_else(|error| panic!("{what}: {error}"))
                    .len();
                let promised = (point == added).then_some(1).or((point >= removed).then_some(0));
                assert!(
                    promised.is_none_or(|promised| promised == count),
                    "{what}: {count}"
                );
            }
        }
    }
}
