//! QEMU as another process that has an image open.

use std::fs;
use std::process::Child;
use std::time::{Duration, Instant};

use super::Lab;

/// QEMU with an image open for writing; it ends with the value.
pub(crate) struct Guest(Child);

impl Lab {
    /// Has QEMU open a qcow2 image, and waits until it has all its locks. Nobody else may open the image meanwhile: QEMU would give
    /// up.
    pub(crate) fn guest(&self, image: &str) -> Guest {
        let mut command = self.command("qemu-io");
        command.args(["-f", "qcow2", "-c", "sleep 600000", image]);
        let mut guest = Guest(command.spawn().unwrap());
        let start = Instant::now();
        while !guest.holds_locks() {
            assert!(guest.0.try_wait().unwrap().is_none(), "qemu-io opens {image}");
            assert!(start.elapsed() < Duration::from_secs(60), "qemu-io locks {image}");
            std::thread::sleep(Duration::from_millis(5));
        }
        guest
    }
}

impl Guest {
    /// Whether it has locked that it writes (byte 101), and the last of what others may not (byte 203): QEMU's order.
    fn holds_locks(&self) -> bool {
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
        ["101", "203"].iter().all(|end| ends.iter().any(|has| has == end))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}
