//! What QEMU does to the image, and what it sees in it.

use std::process::Command;
use std::time::Duration;

use block::test_utils::Rng;

use crate::model::Taken;
use crate::run::Run;

impl Run {
    /// QEMU's share of the work: requests to the disk, a snapshot more or one less, a bitmap merged or cleared.
    pub(crate) fn qemu_changes(&mut self, rng: &mut Rng) {
        let cluster = self.kind.shape.cluster_size() as usize;
        let size = self.model.disk.len();
        let mut commands = Vec::new();
        for _ in 0..rng.below(4) {
            let start = rng.below(size as u64) as usize;
            let range = start..size.min(start + 1 + rng.below(3 * cluster as u64) as usize);
            let (at, len) = (range.start, range.len());
            match rng.below(4) {
                0 => {
                    commands.push(format!("write -z {at} {len}"));
                    self.model.zero(&range);
                }
                1 => {
                    commands.push(format!("write -z -u {at} {len}"));
                    self.model.zero(&range);
                }
                _ => {
                    let byte = rng.below(256) as u8;
                    commands.push(format!("write -P {byte} {at} {len}"));
                    self.model.write(&vec![byte; len], &range);
                }
            }
        }
        let mut args = vec!["-f", "qcow2", "-d", "unmap"];
        args.extend(commands.iter().flat_map(|command| ["-c", command]));
        args.push("image");
        let outcome = self.lab.run("qemu-io", &args);
        assert!(
            outcome.code == 0 && !outcome.stdout.contains("failed"),
            "{args:?}: {outcome:?}"
        );
        self.done.push(commands.join(", "));
        match rng.below(4) {
            0 if self.kind.data_file.is_none() && self.kind.shape.refcount_order >= 4 => {
                self.qemu_takes_a_snapshot(rng.next_u64());
            }
            1 if !self.model.snapshots.is_empty() => {
                let gone = rng.below(self.model.snapshots.len() as u64) as usize;
                let gone = self.model.snapshots.remove(gone).name;
                self.lab.qemu_img(&["snapshot", "-d", &gone, "image"]);
                self.done.push(format!("QEMU deletes {gone}"));
            }
            2 => self.qemu_edits_a_bitmap(rng),
            _ => {}
        }
    }

    fn qemu_takes_a_snapshot(&mut self, number: u64) {
        let name = format!("QEMU's {number:x}");
        self.lab.qemu_img(&["snapshot", "-c", &name, "image"]);
        let disk = self.model.disk.clone();
        self.done.push(format!("QEMU takes {name}"));
        self.model.snapshots.push(Taken { name, disk });
    }

    fn qemu_edits_a_bitmap(&mut self, rng: &mut Rng) {
        let sound = |&number: &usize| self.model.bitmaps[number].bits.is_some();
        let sound: Vec<usize> = (0..self.model.bitmaps.len()).filter(sound).collect();
        if sound.is_empty() {
            return;
        }
        let [number, source] = [0; 2].map(|_| sound[rng.below(sound.len() as u64) as usize]);
        let name = self.model.bitmaps[number].name.clone();
        if rng.coin() && number != source {
            let from = self.model.bitmaps[source].name.clone();
            self.lab.qemu_img(&["bitmap", "--merge", &from, "image", &name]);
            self.model.merge(number, source);
        } else {
            let switch = ["--enable", "--disable"][rng.below(2) as usize];
            self.lab.qemu_img(&["bitmap", switch, "image", &name]);
            self.model.bitmaps[number].enabled = switch == "--enable";
        }
    }

    /// The disk, each snapshot, each bitmap and the map.
    pub(crate) fn judge_by_qemu(&self) {
        self.store();
        self.assert_same(&self.qemu_reads(&[]), &self.model.disk, "QEMU's disk");
        for taken in &self.model.snapshots {
            let which = format!("snapshot.name={}", taken.name);
            let seen = self.qemu_reads(&["-l", &which]);
            // It takes the image's length for the snapshot's.
            let common = seen.len().min(taken.disk.len());
            self.assert_same(&seen[..common], &taken.disk[..common], &which);
        }
        for track in self.model.bitmaps.iter().filter(|track| track.bits.is_some()) {
            let expected = track.ranges(self.model.disk.len() as u64);
            let expected: Vec<_> = expected.iter().map(|range| [range.start, range.end]).collect();
            assert_eq!(self.qemu_dirty(&track.name), expected, "QEMU's {}", track.name);
        }
        if self.kind.data_file.is_none() {
            self.lab.assert_same_map("image", "qcow2");
        }
    }

    fn qemu_reads(&self, selection: &[&str]) -> Vec<u8> {
        let file = self.lab.qemu_reads("image", "qcow2", selection);
        let mut bytes = vec![0; file.len().expect("a length") as usize];
        file.read_exact_at(&mut bytes, 0).expect("the output");
        bytes
    }

    /// What QEMU says is dirty: as an NBD server of the bitmap, to its own client.
    fn qemu_dirty(&self, bitmap: &str) -> Vec<[u64; 2]> {
        let socket = self.lab.path("socket");
        let mut server = Command::new("qemu-nbd")
            .args(["-r", "-f", "qcow2", "-B", bitmap, "-k"])
            .arg(&socket)
            .arg("image")
            .current_dir(self.lab.path(""))
            .spawn()
            .expect("qemu-nbd is needed (Debian: qemu-utils)");
        // The socket has a name before anybody listens there (SO_ACCEPTCON).
        let listens = |line: &str| {
            line.contains(" 00010000 ") && line.ends_with(socket.to_str().expect("a plain name"))
        };
        for _ in 0..500 {
            let sockets = std::fs::read_to_string("/proc/net/unix").expect("the kernel's list");
            if sockets.lines().any(listens) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let options = format!(
            "driver=nbd,server.type=unix,server.path={},x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}",
            socket.display()
        );
        let json = self
            .lab
            .qemu_img(&["map", "--output=json", "--image-opts", &options]);
        server.wait().expect("qemu-nbd ends with its client");
        let extents: Vec<serde_json::Value> = serde_json::from_str(&json).expect("JSON");
        let number = |value: &serde_json::Value| value.as_u64().expect("a number");
        let dirty = extents.iter().filter(|extent| extent["data"] == false);
        dirty
            .map(|extent| {
                let start = number(&extent["start"]);
                [start, start + number(&extent["length"])]
            })
            .collect()
    }
}
