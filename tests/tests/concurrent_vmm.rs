//! A consumer from outside: a small VMM that embeds qcow2 images as virtio-blk devices.
//!
//! Each queue is a thread with a channel in place of a virtqueue. The threads share one [`Image`] and call it at will;
//! there is nothing else between them. Guests submit requests of whole sectors, several at a time and in several
//! segments, and know what they must read. Meanwhile QEMU tries to get at the file, and afterwards it is the judge.

use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use block::test_utils::Rng;
use block::{Access, Backing, BlockDevice, ErrorKind, Result, ZeroMode};
use qcow2::{Image, OpenOptions};
use tests::{Fill, Lab, Model, Request as Disk, Shape};

const SECTOR: u64 = 512;
const QUEUES: u64 = 4;
/// Requests of a guest that are under way at a time.
const DEPTH: usize = 8;
const REQUESTS: usize = 600;
/// What the queues take turns in owning, so that clusters have several owners.
const UNIT: u64 = 4096;
const SHARED: u64 = 4 << 20;
/// What each queue owns alone.
const ZONE: u64 = 2 << 20;
const SIZE: u64 = SHARED + QUEUES * ZONE;

/// What a guest can ask for (virtio 1.2, section 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    In,
    Out,
    Flush,
    Discard,
    WriteZeroes { unmap: bool },
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Ok,
    IoErr,
    Unsupp,
}

/// A request on its way through a queue.
struct Descriptor {
    command: Command,
    sector: u64,
    sectors: u64,
    /// What is written, or the room for what is read.
    segments: Vec<Vec<u8>>,
    /// Which of the guest's it is.
    tag: usize,
}

/// What the device gives back.
struct Used {
    tag: usize,
    status: Status,
    segments: Vec<Vec<u8>>,
}

/// A queue's thread: serves until the guest hangs up.
fn serve(disk: &Image, available: &Receiver<Descriptor>, used: &Sender<Used>) {
    for mut descriptor in available {
        let status = match execute(disk, &mut descriptor) {
            Ok(()) => Status::Ok,
            Err(error) if error.kind() == ErrorKind::Unsupported => Status::Unsupp,
            Err(error) => {
                eprintln!("{:?}: {error}", descriptor.command);
                Status::IoErr
            }
        };
        let answer = Used {
            tag: descriptor.tag,
            status,
            segments: descriptor.segments,
        };
        if used.send(answer).is_err() {
            return;
        }
    }
}

fn execute(disk: &Image, descriptor: &mut Descriptor) -> Result<()> {
    let (offset, len) = (descriptor.sector * SECTOR, descriptor.sectors * SECTOR);
    match descriptor.command {
        Command::In => {
            let segments = descriptor.segments.iter_mut();
            let mut segments: Vec<_> = segments.map(|bytes| IoSliceMut::new(bytes)).collect();
            disk.read_vectored_at(&mut segments, offset)
        }
        Command::Out => {
            let segments: Vec<_> = descriptor
                .segments
                .iter()
                .map(|bytes| IoSlice::new(bytes))
                .collect();
            disk.write_vectored_at(&segments, offset)
        }
        Command::Flush => disk.flush(),
        Command::Discard => disk.discard_at(offset, len),
        Command::WriteZeroes { unmap: true } => disk.zero_at(offset, len, ZeroMode::Unmap),
        Command::WriteZeroes { unmap: false } => disk.zero_at(offset, len, ZeroMode::Allocate),
    }
}

/// What a guest waits for.
struct Pending {
    range: std::ops::Range<u64>,
    /// What a read must bring.
    expected: Option<Vec<u8>>,
}

/// One guest CPU with its queue: it owns some of the disk, and never asks for the same bytes twice at a time.
struct Guest<'a> {
    queue: u64,
    rng: Rng,
    model: &'a Model,
    cluster_size: u64,
    pending: Vec<Option<Pending>>,
}

impl Guest<'_> {
    fn run(mut self, available: &Sender<Descriptor>, used: &Receiver<Used>) {
        for _ in 0..REQUESTS {
            let free = self.pending.iter().position(Option::is_none);
            let tag = free.unwrap_or_else(|| self.complete(used));
            let descriptor = self.next(tag);
            available.send(descriptor).expect("the queue lives");
        }
        while self.pending.iter().any(Option::is_some) {
            self.complete(used);
        }
    }

    /// Waits for one request to be done, and looks at what it brought.
    fn complete(&mut self, used: &Receiver<Used>) -> usize {
        let answer = used.recv().expect("the queue lives");
        assert_eq!(answer.status, Status::Ok);
        let pending = self.pending[answer.tag].take().expect("what was asked for");
        if let Some(expected) = pending.expected {
            assert!(
                answer.segments.concat() == expected,
                "queue {} reads something else at {:x?}",
                self.queue,
                pending.range
            );
        }
        answer.tag
    }

    fn next(&mut self, tag: usize) -> Descriptor {
        let (offset, len) = self.range();
        let mut command = match self.rng.below(16) {
            0 => Command::Flush,
            1 | 2 => Command::Discard,
            3 => Command::WriteZeroes { unmap: true },
            4 => Command::WriteZeroes { unmap: false },
            5..9 => Command::In,
            _ => Command::Out,
        };
        if len == 0 {
            command = Command::Flush;
        }
        let byte = self.rng.below(255) as u8 + 1;
        let mut expected = None;
        let mut data = vec![0; if command == Command::In { len as usize } else { 0 }];
        match command {
            Command::In => {
                let mut bytes = vec![0; len as usize];
                self.model
                    .bytes()
                    .read_exact_at(&mut bytes, offset)
                    .expect("memory");
                expected = Some(bytes);
            }
            Command::Out => {
                data = Fill::Byte(byte).bytes(len);
                self.model.write(&data, offset);
            }
            Command::Flush => {}
            Command::Discard => self.model.discard(offset, len, self.cluster_size),
            Command::WriteZeroes { .. } => self.model.zero(offset, len),
        }
        self.pending[tag] = Some(Pending {
            range: offset..offset + len,
            expected,
        });
        let segment = (1 + self.rng.below(32)) * SECTOR;
        Descriptor {
            command,
            sector: offset / SECTOR,
            sectors: len / SECTOR,
            segments: data.chunks(segment as usize).map(<[u8]>::to_vec).collect(),
            tag,
        }
    }

    /// A range that is this guest's and that nothing of its own is busy with; an empty one if that is hard to find.
    fn range(&mut self) -> (u64, u64) {
        for _ in 0..20 {
            let (start, limit) = if self.rng.coin() {
                let units = SHARED / UNIT / QUEUES;
                ((self.rng.below(units) * QUEUES + self.queue) * UNIT, UNIT)
            } else {
                (SHARED + self.queue * ZONE, ZONE)
            };
            let offset = start + self.rng.below(limit / SECTOR) * SECTOR;
            let most = (start + limit - offset).min(300 << 10);
            let len = (1 + self.rng.below(most / SECTOR)) * SECTOR;
            let busy = self.pending.iter().flatten();
            let mut busy = busy.map(|pending| &pending.range);
            if !busy.any(|range| range.start < offset + len && offset < range.end) {
                return (offset, len);
            }
        }
        (0, 0)
    }
}

/// The guests at work, each with its queue; `meanwhile` runs beside them.
fn boot(disk: &Arc<Image>, model: &Model, seed: u64, meanwhile: impl FnOnce()) {
    thread::scope(|scope| {
        for queue in 0..QUEUES {
            let (submit, available) = channel();
            let (done, used) = channel();
            let shared = Arc::clone(disk);
            scope.spawn(move || serve(&shared, &available, &done));
            let guest = Guest {
                queue,
                rng: Rng::new(seed * QUEUES + queue),
                model,
                cluster_size: disk.geometry().cluster_size(),
                pending: (0..DEPTH).map(|_| None).collect(),
            };
            scope.spawn(move || guest.run(&submit, &used));
        }
        meanwhile();
    });
}

fn refused_by_lock(lab: &Lab) {
    for (program, args) in [
        ("qemu-io", &["-f", "qcow2", "-c", "write 0 4k", "disk"][..]),
        ("qemu-io", &["-f", "qcow2", "-r", "-c", "read 0 4k", "disk"]),
        ("qemu-img", &["check", "-f", "qcow2", "disk"]),
        ("qemu-img", &["info", "-f", "qcow2", "disk"]),
    ] {
        let outcome = lab.run(program, args);
        assert!(
            outcome.code != 0 && outcome.stderr.contains("lock"),
            "{program} {args:?}: {outcome:?}"
        );
    }
    lab.qemu_img(&["info", "-f", "qcow2", "-U", "disk"]);
    let error = lab.try_open("disk", "qcow2", Access::READ).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
}

fn embed(shape: Shape, direct: bool, seed: u64) {
    let lab = Lab::new();
    let model = Model::new(SIZE);
    lab.create("base", shape, SIZE, None);
    let chain = lab.open("base", "qcow2", Access::WRITE);
    for offset in (0..SIZE).step_by(1 << 20) {
        let request = Disk::Write {
            offset,
            len: 512 << 10,
            fill: Fill::Noise,
        };
        request.apply(&**chain.active()).expect("write");
        request.model(&model, shape, false);
    }
    chain.flush().expect("flush");
    drop(chain);
    lab.create("disk", shape, SIZE, Some(("base", "qcow2")));

    let open = |name: &str, access: Access, backing| {
        let file = raw::OpenOptions::new().write(access.write).direct(direct);
        let options = OpenOptions {
            access,
            backing,
            // Little enough that slices are evicted and written back under way.
            l2_cache: 16 << 10,
            ..OpenOptions::default()
        };
        let file = file.open(lab.path(name)).expect("the file opens");
        Image::open(Arc::new(file), options).expect("the image opens")
    };
    let base = open("base", Access::READ, Backing::None);
    let disk = Arc::new(open("disk", Access::WRITE, Backing::Device(Arc::new(base))));
    boot(&disk, &model, seed, || refused_by_lock(&lab));
    let disk = Arc::into_inner(disk).expect("the queues have ended");
    disk.close().expect("close");

    lab.assert_clean("disk");
    lab.assert_holds("disk", "qcow2", &model, &mut Rng::new(seed));
}

const USUAL: Shape = Shape {
    cluster_bits: 16,
    refcount_order: 4,
    v2: false,
    zstd: false,
    extended_l2: false,
    lazy: false,
};

#[test]
fn through_the_page_cache() {
    embed(USUAL, false, 1);
}

#[test]
fn past_the_page_cache() {
    embed(USUAL, true, 2);
}

#[test]
fn with_small_clusters() {
    let shape = Shape {
        cluster_bits: 12,
        refcount_order: 1,
        ..USUAL
    };
    embed(shape, false, 3);
}
