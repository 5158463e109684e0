//! QEMU as another process that has an image open.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use super::Lab;

/// QEMU with an image open for writing; it ends with the value.
pub(crate) struct Guest(Child);

impl Lab {
    /// Has QEMU open a qcow2 image: see [`Guest::new`].
    pub(crate) fn guest(&self, image: &str) -> Guest {
        Guest::new(self.dir(), "qcow2", image)
    }
}

impl Guest {
    /// Has QEMU open an image, and waits until it has all its locks. Nobody else may open the image meanwhile: QEMU would give up.
    pub(crate) fn new(directory: &Path, format: &str, image: &str) -> Self {
        // The last locks in QEMU's order: that it writes, and the last of what others may not, of which a raw image has none.
        let last: &[&str] = if format == "raw" {
            &["101"]
        } else {
            &["101", "203"]
        };
        let mut command = Command::new("qemu-io");
        command.args(["-f", format, "-c", "sleep 600000", image]);
        let mut guest = Self(command.current_dir(directory).spawn().unwrap());
        let start = Instant::now();
        while !guest.holds_locks(last) {
            assert!(guest.0.try_wait().unwrap().is_none(), "qemu-io opens {image}");
            assert!(start.elapsed() < Duration::from_secs(60), "qemu-io locks {image}");
            std::thread::sleep(Duration::from_millis(5));
        }
        guest
    }

    /// Whether it has locked up to each of these bytes.
    fn holds_locks(&self, last: &[&str]) -> bool {
        // Descriptors come and go while it starts.
        let Ok(descriptors) = fs::read_dir(format!("/proc/{}/fdinfo", self.0.id())) else {
            return false;
        };
        let texts = descriptors.filter_map(|descriptor| fs::read_to_string(descriptor.ok()?.path()).ok());
        let ends: Vec<String> = texts
            .flat_map(|text| {
                let locks = text.lines().filter(|line| line.starts_with("lock:"));
                let ends = locks.filter_map(|lock| lock.split_whitespace().last().map(ToOwned::to_owned));
                ends.collect::<Vec<_>>()
            })
            .collect();
        last.iter().all(|end| ends.iter().any(|has| has == end))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}
