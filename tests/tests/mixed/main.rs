//! All features of an image at once, against a model: subclusters, snapshots, bitmaps, data files, backing files and
//! compressed clusters, while the image is written to, planned on, resized, killed, damaged and repaired by us, and written
//! to by QEMU in between. QEMU's tools are the judges.

mod damage;
mod model;
mod qemu;
mod run;
mod shape;

use run::Run;
use shape::Kind;
use tests::seeded;

fn sequence(kind: Kind, rng: &mut block::test_utils::Rng) {
    let mut run = Run::new(kind, rng);
    for _ in 0..40 {
        run.step(rng);
    }
    run.finish();
}

#[test]
fn subclusters_snapshots_and_bitmaps() {
    seeded(30, |rng| sequence(Kind::with_subclusters(rng), rng));
}

#[test]
fn small_clusters_snapshots_and_bitmaps() {
    seeded(40, |rng| sequence(Kind::plain(rng), rng));
}

#[test]
fn data_files_and_bitmaps() {
    seeded(30, |rng| sequence(Kind::with_data_file(rng), rng));
}
