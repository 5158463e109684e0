//! Queue threads that move a guest's data themselves, as those of a VMM do.
//!
//! Each has a descriptor of the file and the image in common. For a read it asks [`qcow2::Image::map`] where the bytes
//! are, for a write [`qcow2::Image::plan_write`] where they go, and does its own `pread` and `pwrite`; the image never
//! sees the data.
//!
//! ```text
//! cargo run --release --example queue_threads -- disk.qcow2 4
//! ```
//!
//! writes numbers all over the disk of `disk.qcow2`, from 4 threads, and reads them back.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use block::{Access, Backing, BlockDevice, Error, Result, Storage};
use qcow2::{GuestOffset, Image, Place};

/// Bytes of a request.
pub(crate) const REQUEST: u64 = 5000;

/// What a guest does through one of its queues.
struct Queue<'a> {
    image: &'a Image,
    /// A descriptor of the file that [`Image::data_storage`] is, opened by us.
    file: File,
}

impl Queue<'_> {
    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            // While `mapped` is there, what it names is given to nobody else.
            let mapped = self.image.map(GuestOffset(at), (buf.len() - done) as u64)?;
            let run = &mut buf[done..done + mapped.len as usize];
            match mapped.place {
                Place::Host(host) => self.pread(run, host.0)?,
                Place::Zeros => run.fill(0),
                Place::Backing | Place::Compressed | Place::Encrypted => self.image.read_at(run, at)?,
            }
            done += mapped.len as usize;
        }
        Ok(())
    }

    fn write(&self, data: &[u8], offset: u64) -> Result<()> {
        let plan = self.image.plan_write(GuestOffset(offset), data.len() as u64)?;
        for run in plan.runs() {
            let start = (run.guest.0 - offset) as usize;
            let part = &data[start..start + run.len as usize];
            // Should this fail, the plan is dropped and the disk is as it was.
            self.file
                .write_all_at(part, run.host.0)
                .map_err(|error| Error::io("write", error))?;
        }
        plan.commit()
    }

    /// Past the end of the file there are zeros.
    fn pread(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        while !buf.is_empty() {
            match self.file.read_at(buf, offset) {
                Ok(0) => {
                    buf.fill(0);
                    return Ok(());
                }
                Ok(read) => {
                    buf = &mut buf[read..];
                    offset += read as u64;
                }
                Err(error) => return Err(Error::io("read", error)),
            }
        }
        Ok(())
    }
}

/// What request `number` writes.
pub(crate) fn contents(number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < REQUEST as usize {
        bytes.extend_from_slice(&(number * 1_000_003 + bytes.len() as u64).to_le_bytes());
    }
    bytes
}

/// Writes every request that fits the disk of the image at `path` and reads it back, from `threads` threads. How many
/// they were.
pub(crate) fn run(path: &Path, threads: u64) -> Result<u64> {
    let storage: Arc<dyn Storage> = Arc::new(raw::OpenOptions::new().write(true).open(path)?);
    let options = qcow2::OpenOptions {
        access: Access::WRITE,
        backing: Backing::Detached,
        ..qcow2::OpenOptions::default()
    };
    let image = Image::open(storage, options)?;
    let requests = image.size() / REQUEST;
    std::thread::scope(|scope| {
        let queue = |queue| {
            let image = &image;
            scope.spawn(move || serve(image, path, (queue..requests).step_by(threads as usize)))
        };
        let queues: Vec<_> = (0..threads).map(queue).collect();
        queues.into_iter().try_for_each(|queue| {
            queue
                .join()
                .unwrap_or_else(|_| Err(Error::invalid("a queue has panicked")))
        })
    })?;
    image.close()?;
    Ok(requests)
}

fn serve(image: &Image, path: &Path, requests: impl Iterator<Item = u64> + Clone) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.map_err(|error| Error::io("open", error).with_path(path))?;
    let queue = Queue { image, file };
    for number in requests.clone() {
        queue.write(&contents(number), number * REQUEST)?;
        if number % 100 == 0 {
            image.flush()?;
        }
    }
    for number in requests {
        let mut seen = vec![0; REQUEST as usize];
        queue.read(&mut seen, number * REQUEST)?;
        assert!(seen == contents(number), "request {number} is lost");
    }
    Ok(())
}

#[allow(dead_code, reason = "the tests take the rest as a module")]
fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(path), Some(threads)) = (
        arguments.next(),
        arguments.next().and_then(|threads| threads.parse().ok()),
    ) else {
        return Err(Error::invalid("usage: queue_threads IMAGE THREADS"));
    };
    let requests = run(path.as_ref(), threads)?;
    println!("{requests} requests of {REQUEST} bytes, written and read back by {threads} threads");
    Ok(())
}
