//! What QEMU's tools say of an image, and the same of what we say, so that the two can be compared.

use std::fmt;

use block::{Extent, ExtentState};
use qcow2::{CheckReport, Severity};
use serde::Deserialize;
use serde_json::Value;

/// A run as `qemu-img map` lists it.
#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
pub struct MapEntry {
    /// First byte on the disk.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
    /// The layer that decides it.
    pub depth: u32,
    /// Some layer states something about it.
    pub present: bool,
    /// It reads as zeros.
    pub zero: bool,
    /// It must be read.
    pub data: bool,
    /// It is compressed.
    pub compressed: bool,
    /// Where it lies in the layer's file.
    pub offset: Option<u64>,
}

impl MapEntry {
    /// From the output of `qemu-img map --output=json`, with two habits of QEMU's taken out, which say nothing of the
    /// image: of an empty disk it lists one run of no bytes; and where it takes a file for preallocated, it asks the
    /// host which parts of data clusters are holes, and calls them data that is zero.
    pub(crate) fn parse(json: &str) -> Vec<Self> {
        let mut runs: Vec<Self> = Vec::new();
        for mut run in serde_json::from_str::<Vec<Self>>(json).expect("a list of runs") {
            run.zero &= !run.data;
            match runs.last_mut() {
                Some(last) if last.continued_by(&run) => last.length += run.length,
                _ if run.length == 0 => {}
                _ => runs.push(run),
            }
        }
        runs
    }

    fn continued_by(&self, next: &Self) -> bool {
        let moved = Self {
            start: self.start + self.length,
            length: next.length,
            offset: self.offset.map(|offset| offset + self.length),
            ..*self
        };
        moved == *next
    }
}

/// On one line, since they come in lists.
impl fmt::Debug for MapEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |on, word| if on { word } else { "" };
        write!(
            f,
            "{:#x}+{:#x} at depth {}:{}{}{}{}",
            self.start,
            self.length,
            self.depth,
            word(self.present, " present"),
            word(self.zero, " zero"),
            word(self.data, " data"),
            word(self.compressed, " compressed"),
        )?;
        match self.offset {
            Some(offset) => write!(f, " at {offset:#x}"),
            None => Ok(()),
        }
    }
}

impl From<Extent> for MapEntry {
    fn from(extent: Extent) -> Self {
        let zero = extent.state.reads_as_zero();
        Self {
            start: extent.offset,
            length: extent.len,
            depth: extent.depth,
            present: extent.state != ExtentState::Hole,
            zero,
            data: !zero,
            compressed: extent.state == ExtentState::Compressed,
            offset: extent.host,
        }
    }
}

/// The figures of a check, and the exit code that goes with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named as in the reports of both")]
pub struct Figures {
    pub exit_code: i32,
    pub corruptions: u64,
    pub leaks: u64,
    pub check_errors: u64,
    pub total_clusters: u64,
    pub allocated_clusters: u64,
    pub compressed_clusters: u64,
    pub fragmented_clusters: u64,
    pub image_end_offset: u64,
}

impl Figures {
    /// From the output of `qemu-img check --output=json`.
    pub(crate) fn from_qemu(exit_code: i32, json: &str) -> Option<Self> {
        let json = serde_json::from_str::<Value>(json).ok()?;
        // QEMU leaves out what is 0.
        let figure = |key: &str| json[key].as_u64().unwrap_or(0);
        Some(Self {
            exit_code,
            corruptions: figure("corruptions"),
            leaks: figure("leaks"),
            check_errors: figure("check-errors"),
            total_clusters: figure("total-clusters"),
            allocated_clusters: figure("allocated-clusters"),
            compressed_clusters: figure("compressed-clusters"),
            fragmented_clusters: figure("fragmented-clusters"),
            image_end_offset: figure("image-end-offset"),
        })
    }

    /// Nothing at all was found.
    pub fn is_clean(&self) -> bool {
        self.exit_code == 0 && self.corruptions + self.leaks + self.check_errors == 0
    }
}

impl From<&CheckReport> for Figures {
    fn from(report: &CheckReport) -> Self {
        let exit_code = match report.worst() {
            None => 0,
            Some(Severity::Leak) => 3,
            Some(Severity::Corruption) => 2,
            Some(Severity::CheckError) => 1,
        };
        Self {
            exit_code,
            corruptions: report.corruptions,
            leaks: report.leaks,
            check_errors: report.check_errors,
            total_clusters: report.total_clusters,
            allocated_clusters: report.allocated_clusters,
            compressed_clusters: report.compressed_clusters,
            fragmented_clusters: report.fragmented_clusters,
            image_end_offset: report.image_end_offset,
        }
    }
}
