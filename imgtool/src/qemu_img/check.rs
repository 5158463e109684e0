//! `qemu-img check`.
//!
//! What a check and a repair find is printed in the order in which QEMU comes across it: entries of tables, refcounts, flags; and after
//! the refcounts what a repair did about them.

use std::ops::ControlFlow;

use qcow2::{
    CheckOptions, CheckReport, Finding, RepairChange, RepairKind, RepairOptions, RepairReport, Severity,
    TableKind,
};

use super::console::Console;
use super::getopt::Options;
use super::image::{self, Found};
use super::json::{Json, Object};
use super::node::Flags;
use super::qcow2_words::{self, BadL1, SnapshotWords};
use super::refusal::{Refusal, reason};
use super::secret::Secrets;
use super::{Outcome, cache_mode, output_format, pages};
use crate::sandbox::{self, Names};

const NOT_CHECKED: u8 = 1;
const CORRUPT: u8 = 2;
const LEAKS: u8 = 3;
const NO_CHECK: u8 = 63;

/// Findings that are kept: all that anybody will read.
const MAX_FINDINGS: usize = 1 << 20;

/// What is asked for.
#[derive(Debug, Default)]
struct Wanted {
    repair: Option<RepairKind>,
    json: bool,
    quiet: bool,
}

pub(super) fn run(console: &Console, arguments: &[String]) -> Outcome {
    let (mut format, mut image_opts, mut flags) = (None, false, Flags::default());
    let mut wanted = Wanted::default();
    let mut secrets = Secrets::default();
    let mut options = Options::new(&pages::CHECK, arguments);
    while let Some((name, value)) = options.next()? {
        match name {
            "h" => return super::show(console, &pages::CHECK),
            "f" => format = Some(value),
            "r" => wanted.repair = Some(repair_kind(&value)?),
            "T" => flags.direct = cache_mode("source", &value)?.direct,
            "output" => wanted.json = output_format(&value)?,
            "image-opts" => image_opts = true,
            "q" => wanted.quiet = true,
            "U" => flags.force_share = true,
            _ => secrets.add(console, &value)?,
        }
    }
    let spec = super::one_image(&options.operands(), format.as_deref(), image_opts)?;
    flags.write = wanted.repair.is_some();
    let found = image::find_to_check(&spec, flags)?;
    if flags.write {
        super::warn_of_probing(console, &found);
    }
    if found.format == "luks" {
        // QEMU opens it first, with its key.
        image::open(&spec, flags)?;
    }
    if found.format != "qcow2" {
        return Err(Refusal::new("This image format does not support checks").with_code(NO_CHECK));
    }
    if wanted.repair.is_none() {
        sandbox::confine(Names::None, false);
    }
    wanted.run(console, &found)
}

fn repair_kind(value: &str) -> Result<RepairKind, Refusal> {
    match value {
        "leaks" => Ok(RepairKind::Leaks),
        "all" => Ok(RepairKind::All),
        _ => Err(Refusal::usage("-r option expects 'leaks' or 'all' as argument")),
    }
}

impl Wanted {
    fn run(&self, console: &Console, found: &Found) -> Outcome {
        let failed = |error: block::Error| {
            Refusal::new(format!("Check failed: {}", reason(&error))).with_code(NOT_CHECKED)
        };
        let storage = &*found.node.storage;
        let lines = Lines::of(found);
        let mut fixed = (0, 0);
        let check = || {
            let options = CheckOptions {
                max_findings: MAX_FINDINGS,
            };
            qcow2::check(storage, &options, &mut |_| ControlFlow::Continue(())).map_err(failed)
        };
        if self.repair == Some(RepairKind::Leaks) {
            lines.refuse_without_refcounts(console, &check()?.findings)?;
        }
        let report = match self.repair {
            None => {
                let report = check()?;
                lines.print_findings(console, &report.findings);
                report
            }
            Some(what) => {
                let options = RepairOptions {
                    what,
                    max_findings: MAX_FINDINGS,
                    rebuild_uncounted: true,
                    clear_unknown: true,
                    ..RepairOptions::default()
                };
                let repaired =
                    qcow2::repair(storage, &options, &mut |_| ControlFlow::Continue(())).map_err(failed)?;
                fixed = lines.print_repair(console, &repaired);
                if fixed != (0, 0) && !self.json && !self.quiet {
                    console.print(format!(
                        "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    \
                         {} corruptions\n\nDouble checking the fixed image now...\n",
                        fixed.0, fixed.1
                    ))?;
                    lines.print_findings(console, &repaired.after.findings);
                }
                repaired.after
            }
        };
        if self.json {
            console.print(Json::from(json(found, &report, fixed)).pretty())?;
        } else if !self.quiet {
            console.print(summary(&report))?;
        }
        if report.check_errors > 0 {
            console.error("Check failed");
        }
        Ok(match (report.check_errors, report.corruptions, report.leaks) {
            (0, 0, 0) => 0,
            (0, 0, _) => LEAKS,
            (0, _, _) => CORRUPT,
            _ => NOT_CHECKED,
        })
    }
}

/// Which part of a check comes across a finding.
fn is_refcount(finding: &Finding) -> bool {
    matches!(
        finding,
        Finding::Leak { .. } | Finding::RefcountTooLow { .. } | Finding::RefcountUnreadable { .. }
    )
}

fn is_structure(finding: &Finding) -> bool {
    !is_refcount(finding) && !is_flag(finding)
}

fn is_flag(finding: &Finding) -> bool {
    matches!(
        finding,
        Finding::CopiedL2Table { .. } | Finding::CopiedData { .. } | Finding::CopiedCompressed { .. }
    )
}

/// Whether refcounts cannot be relied on while this is so.
fn needs_new_refcounts(finding: &Finding) -> bool {
    matches!(
        finding,
        Finding::RefcountTooLow { refcount: 0, .. }
            | Finding::RefcountBlockShared { .. }
            | Finding::Unaligned {
                table: TableKind::Refcount,
                ..
            }
            | Finding::ReservedBits {
                table: TableKind::Refcount,
                ..
            }
    )
}

/// Makes lines of findings about an image.
struct Lines {
    cluster_bits: u32,
    snapshots: Vec<SnapshotWords>,
}

impl Lines {
    fn of(found: &Found) -> Self {
        let header = found.header.as_ref();
        Self {
            cluster_bits: header.map_or(16, |header| header.geometry.cluster_bits),
            snapshots: header.map_or_else(Vec::new, |header| {
                qcow2_words::snapshots(header, &*found.node.storage)
            }),
        }
    }

    fn print_findings(&self, console: &Console, findings: &[Finding]) {
        let mut text = String::new();
        for part in [is_structure, is_refcount, is_flag] {
            for finding in findings.iter().filter(|finding| part(finding)) {
                text += &self.line(finding, false);
            }
        }
        console.note(&text);
    }

    /// Refuses to mend leaks where it takes new refcounts to know what is one.
    fn refuse_without_refcounts(&self, console: &Console, findings: &[Finding]) -> Result<(), Refusal> {
        if !findings.iter().any(needs_new_refcounts) {
            return Ok(());
        }
        let mut text = String::new();
        for part in [is_structure, is_refcount] {
            for finding in findings.iter().filter(|finding| part(finding)) {
                text += &self.line(finding, false);
            }
        }
        console.note(&(text + "ERROR need to rebuild refcount structures\n"));
        Err(Refusal::new("Check failed: Input/output error").with_code(NOT_CHECKED))
    }

    /// Prints what was found and done; gives how many leaks and corruptions are no more.
    fn print_repair(&self, console: &Console, repaired: &RepairReport) -> (u64, u64) {
        let mut text = String::new();
        let (before, after) = (&repaired.before.findings, &repaired.after.findings);
        let is_mended = |finding: &&Finding| !after.contains(finding);
        let (mut leaks, mut corruptions) = (0, 0);
        for finding in before.iter().filter(|finding| is_structure(finding)) {
            let mended = is_mended(&finding);
            corruptions += u64::from(mended);
            text += &self.line(finding, mended);
        }
        let refcounts = || before.iter().filter(|finding| is_refcount(finding));
        refcounts().for_each(|finding| text += &self.line(finding, false));
        let rebuilt = repaired
            .changes
            .iter()
            .any(|change| matches!(change, RepairChange::Rebuilt { .. }));
        if rebuilt {
            text += "Rebuilding refcount structure\n";
            repaired
                .retired
                .iter()
                .for_each(|finding| text += &self.line(finding, true));
        }
        for finding in refcounts().filter(is_mended) {
            match finding.severity() {
                Severity::Leak => leaks += 1,
                _ => corruptions += 1,
            }
            if !rebuilt {
                text += &self.line(finding, true);
            }
        }
        for finding in &repaired.mended_flags {
            corruptions += 1;
            text += &self.line(finding, true);
        }
        after
            .iter()
            .filter(|finding| is_flag(finding))
            .for_each(|finding| text += &self.line(finding, false));
        console.note(&text);
        (leaks, corruptions)
    }

    /// A line about a finding, with its end.
    fn line(&self, finding: &Finding, repaired: bool) -> String {
        let verb = if repaired { "Repairing" } else { "ERROR" };
        let text = match *finding {
            Finding::Leak {
                cluster,
                refcount,
                references,
            } => {
                let verb = if repaired { "Repairing" } else { "Leaked" };
                format!(
                    "{verb} cluster {} refcount={refcount} reference={references}",
                    cluster.0
                )
            }
            Finding::RefcountTooLow {
                cluster,
                refcount,
                references,
            } => {
                format!(
                    "{verb} cluster {} refcount={refcount} reference={references}",
                    cluster.0
                )
            }
            Finding::RefcountOverflow { cluster, .. } => {
                format!(
                    "ERROR: overflow cluster offset={:#x}",
                    cluster.0 << self.cluster_bits
                )
            }
            Finding::BeyondEnd { start, len } => format!(
                "ERROR: counting reference for region exceeding the end of the file by one cluster or more: offset {:#x} size {len:#x}",
                start.0
            ),
            Finding::CopiedL2Table {
                l1_index,
                entry,
                refcount,
                ..
            } => {
                format!(
                    "{verb} OFLAG_COPIED L2 cluster: l1_index={l1_index} l1_entry={entry:x} refcount={refcount}"
                )
            }
            Finding::CopiedData { entry, refcount, .. } => {
                format!("{verb} OFLAG_COPIED data cluster: l2_entry={entry:x} refcount={refcount}")
            }
            Finding::Unaligned {
                table: TableKind::Refcount,
                at,
                ..
            } => {
                format!(
                    "ERROR refcount block {} is not cluster aligned; refcount table entry corrupted",
                    at.0 / 8 % 8192
                )
            }
            Finding::Unaligned {
                table: TableKind::L2,
                entry,
                ..
            } => format!(
                "ERROR offset={:x}: Data cluster is not properly aligned; L2 entry corrupted.",
                entry & OFFSET
            ),
            Finding::Unaligned {
                table: TableKind::L1,
                entry,
                ..
            } => format!(
                "ERROR l2_offset={:x}: Table is not cluster aligned; L1 entry corrupted",
                entry & OFFSET
            ),
            Finding::UnalignedPreallocated { entry, .. } => format!(
                "{verb} offset={:x}: Preallocated cluster is not properly aligned; L2 entry corrupted.",
                entry & OFFSET
            ),
            Finding::RefcountBlockOutside { index, .. } => {
                format!("{verb} refcount block {index} is outside image")
            }
            Finding::RefcountBlockShared { index, references } => {
                format!("ERROR refcount block {index} refcount={references}")
            }
            Finding::SnapshotTable {
                index,
                problem,
                l1_offset,
                l1_entries,
            } => {
                let snapshot = usize::try_from(index)
                    .ok()
                    .and_then(|index| self.snapshots.get(index));
                let SnapshotWords { id, name, wrong } = snapshot.cloned().unwrap_or_default();
                match wrong {
                    Some(BadL1::Offset) => format!(
                        "ERROR snapshot {id} ({name}) l1_offset={:#x}: L1 table is not cluster aligned; snapshot table entry corrupted",
                        l1_offset.0
                    ),
                    Some(BadL1::TooLarge) => format!(
                        "ERROR snapshot {id} ({name}) l1_size={l1_entries:#x}: L1 table is too large; snapshot table entry corrupted"
                    ),
                    None if problem.starts_with("it lacks") => {
                        format!("{verb} snapshot table entry {index} is incomplete")
                    }
                    None => finding.to_string(),
                }
            }
            ref other => other.to_string(),
        };
        text + "\n"
    }
}

/// The offset in an entry.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

fn summary(report: &CheckReport) -> String {
    let mut text = String::new();
    let CheckReport {
        corruptions,
        leaks,
        check_errors,
        ..
    } = *report;
    if report.is_clean() {
        text += "No errors were found on the image.\n";
    }
    if corruptions > 0 {
        text += &format!(
            "\n{corruptions} errors were found on the image.\n\
             Data may be corrupted, or further writes to the image may corrupt it.\n"
        );
    }
    if leaks > 0 {
        text += &format!(
            "\n{leaks} leaked clusters were found on the image.\n\
             This means waste of disk space, but no harm to data.\n"
        );
    }
    if check_errors > 0 {
        text += &format!("\n{check_errors} internal errors have occurred during the check.\n");
    }
    let (total, allocated) = (report.total_clusters, report.allocated_clusters);
    if total > 0 && allocated > 0 {
        let percent = |part: u64, whole: u64| part as f64 * 100.0 / whole as f64;
        text += &format!(
            "{allocated}/{total} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters\n",
            percent(allocated, total),
            percent(report.fragmented_clusters, allocated),
            percent(report.compressed_clusters, allocated)
        );
    }
    if report.image_end_offset > 0 {
        text += &format!("Image end offset: {}\n", report.image_end_offset);
    }
    text
}

fn json(found: &Found, report: &CheckReport, (leaks_fixed, corruptions_fixed): (u64, u64)) -> Object {
    let mut object = Object::default();
    object.insert("filename", &*found.filename);
    object.insert("format", found.format);
    object.insert("check-errors", report.check_errors);
    for (key, value) in [
        ("image-end-offset", report.image_end_offset),
        ("corruptions", report.corruptions),
        ("leaks", report.leaks),
        ("corruptions-fixed", corruptions_fixed),
        ("leaks-fixed", leaks_fixed),
        ("total-clusters", report.total_clusters),
        ("allocated-clusters", report.allocated_clusters),
        ("fragmented-clusters", report.fragmented_clusters),
        ("compressed-clusters", report.compressed_clusters),
    ] {
        object.insert_some(key, Some(value).filter(|value| *value > 0));
    }
    object
}
