//! What was made, as it is printed.

use std::io::{self, Write};
use std::path::Path;

use block::escape;
use disk_builder::Kernel;
use serde_json::{Value, json};

use super::super::mkfs::show_uuid;
use super::super::partition::partition_json;
use crate::output::{self, OutputFormat, human_size};

/// What was made.
pub(super) struct Made {
    pub(super) disk: disk_builder::Made,
    pub(super) format: &'static str,
    pub(super) uuid: [u8; 16],
}

impl Made {
    pub(super) fn print(&self, out: &mut dyn Write, target: &Path, format: OutputFormat) -> io::Result<()> {
        match format {
            OutputFormat::Json => output::json(out, &self.json(target)),
            OutputFormat::Human => self.print_text(out, target),
        }
    }

    /// Bytes that are free on the EFI system partition.
    fn esp_free(&self) -> u64 {
        u64::from(self.disk.esp.free_clusters) * u64::from(self.disk.esp.cluster_size)
    }

    fn root_free(&self) -> u64 {
        self.disk.root.free_blocks * u64::from(self.disk.root.block_size)
    }

    /// As it is in `/dev/disk/by-uuid`.
    fn volume_id(&self) -> String {
        let id = self.disk.volume_id;
        format!("{:04X}-{:04X}", id >> 16, id & 0xFFFF)
    }

    fn json(&self, target: &Path) -> Value {
        let mut partitions: Vec<Value> = self.disk.table.partitions().iter().map(partition_json).collect();
        let filesystems = [
            ("vfat", self.volume_id(), self.esp_free()),
            ("ext4", show_uuid(&self.uuid), self.root_free()),
        ];
        for (partition, (kind, uuid, free)) in partitions.iter_mut().zip(filesystems) {
            partition["filesystem"] = json!({ "type": kind, "uuid": uuid, "free": free });
        }
        let kernel = |kernel: &Kernel| {
            json!({
                "version": kernel.version,
                "kernel": kernel.path,
                "initrd": kernel.initrd,
            })
        };
        json!({
            "filename": target.to_string_lossy(),
            "format": self.format,
            "virtual-size": self.disk.size,
            "partitions": partitions,
            "boot-loader": self.disk.boot_loader,
            "title": self.disk.system.title,
            "kernels": self.disk.system.kernels.iter().map(kernel).collect::<Vec<_>>(),
            "command-line": self.disk.command_line,
        })
    }

    fn print_text(&self, out: &mut dyn Write, target: &Path) -> io::Result<()> {
        let target = target.to_string_lossy();
        writeln!(
            out,
            "{}: {}, {}",
            escape(&target),
            self.format,
            human_size(self.disk.size)
        )?;
        let filesystems = [
            ("FAT32", self.volume_id(), self.esp_free()),
            ("ext4", show_uuid(&self.uuid), self.root_free()),
        ];
        for (partition, (kind, uuid, free)) in self.disk.table.partitions().iter().zip(filesystems) {
            writeln!(
                out,
                "  {} {}: {kind}, {}, {} free, UUID {uuid}",
                partition.number,
                partition.name,
                human_size(partition.len()),
                human_size(free),
            )?;
        }
        let versions: Vec<&str> = self
            .disk
            .system
            .kernels
            .iter()
            .map(|kernel| kernel.version.as_str())
            .collect();
        writeln!(
            out,
            "It boots {} (Linux {}) by {}.",
            escape(&self.disk.system.title),
            escape(&versions.join(", ")),
            escape(&self.disk.boot_loader)
        )
    }
}
