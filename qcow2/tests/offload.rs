//! Writes that are left to the host, which copies all, some or nothing of what it is asked for, or fails.

use std::fmt;
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use block::test_utils::Rng;
use block::{
    Access, Backing, BlockDevice, Error, HostCopy, HostExtent, MemStorage, OffloadedWrite, Preallocation,
    Result, Storage, ZeroMode,
};
use qcow2::{CreateOptions, Image, OpenOptions, Version};

/// A file on a host that copies as it likes, in blocks of 4 KiB.
struct Moody {
    file: MemStorage,
    rng: Mutex<Rng>,
}

impl fmt::Debug for Moody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file.fmt(f)
    }
}

impl Storage for Moody {
    fn copy_from(&self, offset: u64, source: &dyn Storage, from: u64, len: u64, _: HostCopy) -> Result<u64> {
        let mut rng = self.rng.lock().unwrap();
        let aligned = offset.is_multiple_of(4096) && from.is_multiple_of(4096);
        let copied = match rng.below(8) {
            0 => return Err(Error::io("write", ErrorKind::StorageFull.into())),
            1 => 0,
            2 | 3 => rng.below(len + 1),
            _ => len,
        };
        let copied = if aligned { copied - copied % 4096 } else { 0 };
        let mut bytes = vec![0; copied as usize];
        source.read_exact_at(&mut bytes, from)?;
        self.file.write_all_at(&bytes, offset)?;
        Ok(copied)
    }

    fn may_copy_from(&self, _: &dyn Storage, _: HostCopy) -> bool {
        true
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(buf, offset)
    }

    fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.file.zero(offset, len, mode)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.file.discard(offset, len)
    }

    fn host_extent(&self, offset: u64, len: u64) -> Result<HostExtent> {
        self.file.host_extent(offset, len)
    }

    fn sync_data(&self) -> Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> Result<u64> {
        self.file.len()
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.file.set_len(len)
    }

    fn path(&self) -> Option<&Path> {
        Some(Path::new("moody"))
    }
}

fn random_options(size: u64, rng: &mut Rng) -> CreateOptions {
    let extended_l2 = rng.below(4) == 0;
    CreateOptions {
        size,
        version: Version::V3,
        cluster_bits: if extended_l2 { 14 } else { 9 + rng.below(8) as u32 },
        extended_l2,
        preallocation: [Preallocation::Off, Preallocation::Metadata][rng.below(2) as usize],
        ..CreateOptions::default()
    }
}

fn contents(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0; image.size() as usize];
    image.read_at(&mut bytes, 0).unwrap();
    bytes
}

fn what_is_said_to_be_there_is_there(seed: u64) {
    let mut rng = Rng::new(seed);
    let size = (64 + rng.below(512)) * 512;
    let noise: Vec<u8> = (0..size + 8192).map(|_| rng.next_u64() as u8).collect();
    let source = MemStorage::from(noise.clone());
    let host = Arc::new(Moody {
        file: MemStorage::new(),
        rng: Mutex::new(Rng::new(seed ^ 0x5eed)),
    });
    qcow2::create(&*host, &random_options(size, &mut rng)).unwrap();
    let options = OpenOptions {
        access: Access::WRITE,
        backing: Backing::None,
        ..OpenOptions::default()
    };
    let image = Image::open(host.clone(), options).unwrap();
    let mut disk = vec![0; size as usize];
    let mut kept = None;
    for step in 0..40 {
        let what = format!("seed {seed}, step {step}");
        let unit = [512, 4096][rng.below(2) as usize];
        let offset = rng.below(size / unit) * unit;
        let len = (1 + rng.below(size - offset)).min(1 + rng.below(1 << 17));
        match rng.below(8) {
            0 => image.flush().unwrap(),
            1 => {
                image.discard_at(offset, len).unwrap();
                disk = contents(&image);
            }
            2 if kept.is_none() => {
                let go_on = &mut |_| ControlFlow::Continue(());
                image
                    .create_snapshot("kept", SystemTime::UNIX_EPOCH, go_on)
                    .unwrap();
                kept = Some(disk.clone());
            }
            _ => {
                let from = rng.below(8192 / unit) * unit + offset;
                let copied = image.copy_from(offset, &source, from, len, HostCopy::Any);
                let range = |copied: u64| offset as usize..(offset + copied) as usize;
                let new = |copied: u64| &noise[from as usize..(from + copied) as usize];
                if let Ok(copied) = copied {
                    assert!(copied <= len, "{what}");
                    disk[range(copied)].copy_from_slice(new(copied));
                } else {
                    // Each byte is the old or the new one.
                    let now = contents(&image);
                    let both = disk[range(len)].iter().zip(new(len));
                    for (now, (old, new)) in now[range(len)].iter().zip(both) {
                        assert!(now == old || now == new, "{what}");
                    }
                    disk[range(len)].copy_from_slice(&now[range(len)]);
                }
            }
        }
        assert!(contents(&image) == disk, "{what}");
    }
    image.close().unwrap();
    let report = qcow2::check(&*host, &qcow2::CheckOptions::default(), &mut |_| {
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!((report.corruptions, report.leaks), (0, 0), "seed {seed}");
    if let Some(kept) = kept {
        let selector = block::SnapshotSelector::name("kept");
        let snapshot = Image::open_snapshot(host, &selector, OpenOptions::default()).unwrap();
        assert!(contents(&snapshot) == kept, "seed {seed}");
    }
}

#[test]
fn what_the_host_copies_is_there_and_what_it_refuses_is_not() {
    (0..400).for_each(what_is_said_to_be_there_is_there);
}
