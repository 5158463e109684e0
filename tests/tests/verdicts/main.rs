//! What `inspector` calls safe is one disk to QEMU too, whether it is told the format or guesses it.
//!
//! Images that QEMU's tools make are changed at random where it matters: fields, bits, signatures, tables, texts and lengths,
//! with checksums made right again for most. Whatever is then called safe, QEMU has to open as the format of the verdict, find the
//! same size and the same bytes as a reader here, and open no file but that one on the way, which `strace` watches. All follows
//! from seeds: `TORTURE=50` tries 50 times as many.

mod checksums;
mod hostile;
mod mutation;
mod qemu;
mod readers;
mod seeds;
mod signatures;
mod streams;

use std::sync::Arc;

use block::MemStorage;
use block::test_utils::{Rng, seeds as numbers};
use inspector::{Limits, Report, inspect};
use tests::Lab;

use mutation::mutate;
use qemu::Qemu;
use seeds::Image;

/// Changed images of each that QEMU makes, in a run that somebody waits for.
const CHANGED: u64 = 24;
/// Bytes of the largest disk: QEMU has to read all of each.
const MAX_DISK: u64 = 32 << 20;

fn judge(bytes: &[u8]) -> Report {
    let storage = Arc::new(MemStorage::from(bytes.to_vec()));
    let limits = Limits {
        max_disk: MAX_DISK,
        ..Limits::default()
    };
    inspect(storage, &limits).unwrap()
}

/// Judges each image as it is, which must be safe, and many changed ones. Both verdicts must occur.
fn no_verdict_is_wrong(make: impl FnOnce(&Lab) -> Vec<Image>) {
    let lab = Lab::new();
    let images = make(&lab);
    let mut qemu = Qemu::new(&lab);
    for image in &images {
        let report = judge(&image.bytes);
        assert!(report.is_safe(), "{}: {report:?}", image.name);
        qemu.learn(&image.bytes, &report);
    }
    let (mut safe, mut refused) = (0, 0);
    let mut wrong = Vec::new();
    for image in &images {
        for number in numbers(CHANGED) {
            let mut rng = Rng::new(number);
            let (bytes, what) = mutate(image, &images, &mut rng);
            let report = judge(&bytes);
            if !report.is_safe() {
                refused += 1;
                continue;
            }
            safe += 1;
            if let Err(why) = qemu.agrees(&bytes, &report) {
                let kept = std::env::temp_dir().join(format!("verdict-{}-{number}", image.name));
                std::fs::write(&kept, &bytes).unwrap();
                wrong.push(format!(
                    "{} with seed {number} ({what}) is called safe, and {why}; kept as {}",
                    image.name,
                    kept.display()
                ));
            }
        }
    }
    println!("{safe} were called safe, and {refused} unsafe");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(safe > 0 && refused > 0, "{safe} safe, {refused} unsafe");
}

#[test]
fn safe_qcow2_images_are_to_qemu_what_they_are_here() {
    no_verdict_is_wrong(seeds::qcow2);
}

#[test]
fn safe_raw_disks_and_discs_are_to_qemu_what_they_are_here() {
    no_verdict_is_wrong(seeds::raw);
}

#[test]
fn safe_images_of_older_formats_are_to_qemu_what_they_are_here() {
    no_verdict_is_wrong(seeds::older);
}

#[test]
fn safe_vmdk_images_are_to_qemu_what_they_are_here() {
    no_verdict_is_wrong(seeds::vmdk);
}

#[test]
fn safe_vhd_images_are_to_qemu_what_they_are_here() {
    no_verdict_is_wrong(seeds::vhd);
}

#[test]
fn safe_vhdx_images_are_to_qemu_what_they_are_here() {
    no_verdict_is_wrong(seeds::vhdx);
}
