use super::*;
use crate::testing::{PAGE, Step, Toy};
use crate::{Cancel, Progress};
use block::{ErrorKind, MemStorage};

const CLUSTER: u64 = 4 * PAGE;

fn options(threads: usize) -> ConvertOptions {
    ConvertOptions {
        threads: NonZeroUsize::new(threads).unwrap(),
        ..ConvertOptions::new()
    }
}

fn run(source: &Toy, target: &Toy, options: &ConvertOptions) {
    convert(source, target, options, &Control::unwatched()).unwrap();
}

/// A disk of a few chunks that ends inside a page.
fn source() -> Toy {
    Toy::new(5 * CHUNK + 3 * PAGE + 512).filled(7)
}

#[test]
fn copies_everything_and_no_zeros() {
    let source = source();
    for (threads, chunk) in [
        (1, CHUNK),
        (2, CHUNK),
        (5, CHUNK),
        (2, DIRECT_CHUNK),
        (3, 5 * PAGE),
    ] {
        let options = ConvertOptions {
            chunk,
            ..options(threads)
        };
        for target in [
            Toy::new(source.size()),
            Toy::new(source.size() + PAGE).clustered(CLUSTER),
        ] {
            run(&source, &target, &options);
            let copied = target.contents();
            assert_eq!(copied[..source.size() as usize], source.contents());
            let unordered = Toy::new(source.size());
            let any_order = ConvertOptions {
                in_order: false,
                ..options.clone()
            };
            run(&source, &unordered, &any_order);
            assert_eq!(unordered.contents(), source.contents());
            let pages = source
                .contents()
                .chunks(PAGE as usize)
                .filter(|page| !is_zero(page))
                .count();
            assert_eq!(target.data_pages(), pages);
        }
    }
}

#[test]
fn a_clustered_target_is_written_in_guest_order() {
    let source = source();
    let mut logs = Vec::new();
    for threads in [1, 6] {
        let target = Toy::new(source.size()).clustered(CLUSTER);
        run(&source, &target, &options(threads));
        logs.push(target.log());
    }
    assert_eq!(logs[0], logs[1]);
    let offset = |step: &Step| match *step {
        Step::Write(offset, _)
        | Step::Zero(offset, _)
        | Step::Compressed(offset)
        | Step::Host(offset, ..) => offset,
    };
    assert!(logs[0].iter().map(offset).is_sorted());
}

#[test]
fn compresses_whole_clusters() {
    let source = Toy::new(2 * CHUNK + CLUSTER + 512);
    source.write_at(&vec![3; CLUSTER as usize], 0).unwrap();
    // Half a cluster beside a hole, and the half cluster at the end of the disk.
    source
        .write_at(&vec![5; 2 * PAGE as usize], CHUNK + CLUSTER + PAGE)
        .unwrap();
    source.write_at(&[6; 512], 2 * CHUNK + CLUSTER).unwrap();
    for threads in [1, 3] {
        let target = Toy::new(source.size()).clustered(CLUSTER);
        let options = ConvertOptions {
            compress: true,
            ..options(threads)
        };
        run(&source, &target, &options);
        assert_eq!(target.contents(), source.contents());
        assert_eq!(
            target.log(),
            [
                Step::Compressed(0),
                Step::Write(CHUNK + CLUSTER, CLUSTER),
                Step::Write(2 * CHUNK + CLUSTER, 512)
            ]
        );
    }
    let error = convert(
        &source,
        &Toy::new(source.size()),
        &ConvertOptions {
            compress: true,
            ..options(1)
        },
        &Control::unwatched(),
    );
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn a_used_target_gets_its_zeros() {
    let source = source();
    let target = Toy::new(source.size() + PAGE);
    target.write_at(&vec![0xee; target.size() as usize], 0).unwrap();
    run(
        &source,
        &target,
        &ConvertOptions {
            before: Before::Unknown,
            ..options(3)
        },
    );
    let copied = target.contents();
    assert_eq!(copied[..source.size() as usize], source.contents());
    assert!(copied[source.size() as usize..].iter().all(|byte| *byte == 0xee));
}

#[test]
fn sparse_0_writes_holes_and_a_longer_run_keeps_short_zeros() {
    let source = source();
    let target = Toy::new(source.size());
    run(
        &source,
        &target,
        &ConvertOptions {
            sparse: 0,
            ..options(2)
        },
    );
    assert_eq!(target.data_pages() as u64, source.size().div_ceil(PAGE));
    assert_eq!(target.contents(), source.contents());

    let source = Toy::new(64 * PAGE);
    source.write_at(&vec![1; 64 * PAGE as usize], 0).unwrap();
    source.write_at(&vec![0; PAGE as usize], PAGE).unwrap();
    source.write_at(&vec![0; 4 * PAGE as usize], 8 * PAGE).unwrap();
    let target = Toy::new(source.size());
    run(
        &source,
        &target,
        &ConvertOptions {
            sparse: 4 * PAGE,
            ..options(1)
        },
    );
    assert_eq!(
        target.log(),
        [Step::Write(0, 8 * PAGE), Step::Write(12 * PAGE, 52 * PAGE)]
    );
}

#[test]
fn what_lies_in_the_shared_layers_is_left_out() {
    // Layer 1 decides the first 4 clusters, layer 0 the rest; the target's backing ends after 12.
    let source = Toy::new(16 * CLUSTER);
    source.write_at(&vec![1; 8 * CLUSTER as usize], 0).unwrap();
    source
        .zero_at(10 * CLUSTER, 6 * CLUSTER, ZeroMode::Unmap)
        .unwrap();
    let source = source.layered(0, 16, 1, 1);
    let target = Toy::new(source.size()).clustered(CLUSTER);
    let before = Before::Layers {
        depth: 1,
        size: 12 * CLUSTER,
    };
    run(&source, &target, &ConvertOptions { before, ..options(2) });
    assert_eq!(
        target.log(),
        [
            Step::Write(4 * CLUSTER, 4 * CLUSTER),
            Step::Zero(10 * CLUSTER, 2 * CLUSTER)
        ]
    );
}

#[test]
fn what_the_backing_holds_already_is_left_out() {
    let source = Toy::new(12 * CLUSTER);
    source.write_at(&vec![1; 6 * CLUSTER as usize], 0).unwrap();
    let backing = Toy::new(8 * CLUSTER + 512);
    backing.write_at(&vec![1; 2 * CLUSTER as usize], 0).unwrap();
    backing.write_at(&[9], 5 * CLUSTER).unwrap();
    backing.write_at(&[9], 8 * CLUSTER).unwrap();
    let target = Toy::new(source.size()).clustered(CLUSTER);
    // The backing's own contents stand for reading through to it.
    target.write_at(&backing.contents(), 0).unwrap();
    let before = Before::Device(Arc::new(backing));
    run(&source, &target, &ConvertOptions { before, ..options(2) });
    assert_eq!(target.contents(), source.contents());
    assert_eq!(target.log()[1], Step::Write(2 * CLUSTER, 4 * CLUSTER));
}

/// A copy of `source` that is left to a host; what was done.
fn by_host(source: &Toy, threads: usize, host: fn(usize, u64) -> u64) -> Vec<Step> {
    let target = Toy::new(source.size()).clustered(CLUSTER).offloaded(host);
    let file = MemStorage::from(source.contents());
    let options = ConvertOptions {
        offload: Some(Offload::of(Arc::new(file))),
        ..options(threads)
    };
    run(source, &target, &options);
    assert_eq!(target.contents(), source.contents());
    target.log()
}

#[test]
fn what_the_host_takes_over_is_not_written() {
    let source = source();
    for threads in [1, 4] {
        let whole = by_host(&source, threads, |_, len| len);
        assert!(whole.iter().all(|step| matches!(step, Step::Host(..))));
        // It is asked again for what it has left.
        let halves = by_host(&source, threads, |_, len| len.div_ceil(2));
        assert!(halves.iter().all(|step| matches!(step, Step::Host(..))));
        assert!(halves.len() > whole.len());
    }
}

#[test]
fn what_the_host_refuses_is_written_in_its_place() {
    let source = source();
    for threads in [1, 4] {
        let done = by_host(
            &source,
            threads,
            |number, len| if number % 2 == 0 { len } else { 0 },
        );
        let mut refused = 0;
        for pair in done.windows(2) {
            if let Step::Host(offset, len, 0) = pair[0] {
                // Zeros that nobody has looked for so far are found now.
                let held = &source.contents()[offset as usize..(offset + len) as usize];
                if held.chunks(PAGE as usize).all(|page| !is_zero(page)) {
                    assert_eq!(pair[1], Step::Write(offset, len));
                    refused += 1;
                }
            }
        }
        assert!(refused > 10, "{refused}");
    }
}

#[test]
fn a_host_that_always_refuses_is_not_asked_for_ever() {
    let done = by_host(&source(), 1, |_, _| 0);
    let asked = |step: &&Step| matches!(step, Step::Host(..));
    assert_eq!(done.iter().filter(asked).count(), 8);
}

#[test]
fn what_has_to_be_read_is_not_left_to_the_host() {
    let source = source();
    let file: Arc<MemStorage> = Arc::new(MemStorage::from(source.contents()));
    let reading = [
        ConvertOptions {
            compress: true,
            ..options(2)
        },
        ConvertOptions {
            whole_clusters: true,
            ..options(2)
        },
        ConvertOptions {
            before: Before::Device(Arc::new(Toy::new(PAGE))),
            ..options(2)
        },
    ];
    for options in reading {
        let options = ConvertOptions {
            offload: Some(Offload::of(file.clone())),
            ..options
        };
        let target = Toy::new(source.size()).clustered(CLUSTER).offloaded(|_, len| len);
        run(&source, &target, &options);
        assert_eq!(target.contents(), source.contents());
        assert!(!target.log().iter().any(|step| matches!(step, Step::Host(..))));
    }
}

#[test]
fn the_first_failure_ends_it() {
    for threads in [1, 4] {
        let size = 40 * CHUNK;
        let full = |toy: Toy| {
            toy.write_at(&vec![1; size as usize], 0).unwrap();
            toy
        };
        let target = || Toy::new(size).clustered(CLUSTER);
        let cases = [
            (
                full(Toy::new(size)).failing_extents_from(3 * CHUNK),
                target(),
                ErrorKind::Corrupt,
            ),
            (
                full(Toy::new(size)).failing_reads_from(3 * CHUNK),
                target(),
                ErrorKind::Io,
            ),
            (
                full(Toy::new(size)),
                target().failing_writes_from(3 * CHUNK),
                ErrorKind::NoSpace,
            ),
            (
                full(Toy::new(size)),
                Toy::new(size).failing_writes_from(3 * CHUNK),
                ErrorKind::NoSpace,
            ),
            (full(Toy::new(size)), Toy::new(size - 1), ErrorKind::InvalidInput),
        ];
        for (source, target, kind) in cases {
            let error = convert(&source, &target, &options(threads), &Control::unwatched()).unwrap_err();
            assert_eq!(error.kind(), kind);
            assert!(target.log().len() <= 4 + threads);
        }
    }
}

#[test]
fn stops_on_request() {
    let source = Toy::new(64 * CHUNK);
    source.write_at(&vec![1; 64 * CHUNK as usize], 0).unwrap();
    let target = Toy::new(source.size()).clustered(CLUSTER);
    let cancel = Cancel::new();
    let after_three = |progress: Progress| {
        if progress.done >= 3 * CHUNK {
            cancel.cancel();
        }
    };
    let control = Control::new(cancel.clone(), &after_three);
    let error = convert(&source, &target, &options(3), &control).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    assert_eq!(target.log().len(), 3);
}

#[test]
fn progress_reaches_the_end() {
    let seen = Mutex::new(Vec::new());
    let report = |progress: Progress| seen.lock().unwrap().push(progress.done);
    let source = source();
    let target = Toy::new(source.size()).clustered(CLUSTER);
    convert(
        &source,
        &target,
        &options(4),
        &Control::new(Cancel::new(), &report),
    )
    .unwrap();
    let seen = seen.into_inner().unwrap();
    assert!(seen.is_sorted());
    assert_eq!(seen.last(), Some(&source.size()));
}
