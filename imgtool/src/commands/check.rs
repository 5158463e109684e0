//! `imgtool check`: is an image sound, and can it be made so?

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use block::{Access, Error, ErrorKind, Result, Storage};
use clap::{Args, ValueEnum};
use ops::Progress;
use qcow2::{CheckOptions, CheckReport, Finding, RepairKind, RepairOptions, RepairReport};
use serde_json::{Map, Value, json};

use super::Outcome;
use crate::arguments::{CacheMode, OpenArgs, SandboxArgs, WatchArgs};
use crate::failure::Failure;
use crate::images::Opening;
use crate::interrupt;
use crate::output::{self, OutputFormat, counted};
use crate::sandbox::Names;
use crate::watch::Watch;

const NOT_CHECKED: u8 = 1;
const CORRUPT: u8 = 2;
const LEAKS: u8 = 3;
const NO_CHECK: u8 = 63;

/// What is repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Repair {
    /// Clusters that are counted and not used.
    Leaks,
    /// Everything that can be.
    All,
}

impl From<Repair> for RepairKind {
    fn from(repair: Repair) -> Self {
        match repair {
            Repair::Leaks => Self::Leaks,
            Repair::All => Self::All,
        }
    }
}

/// Check whether the metadata of an image is sound, and repair it with -r
///
/// The exit code is 0 for an image that is sound, or is so after the repair; 1 if it could not be checked, 2 if it is
/// corrupt, 3 if it only has clusters that are never used, and 63 if its format has nothing to check. A backing file is not
/// looked at.
///
/// A repair never writes to guest data, and can be interrupted, or the power cut, without harm: the next one goes on
/// with it. What an unusable L1 entry once named may seem to leak and be the only copy of the guest's data: -r all leaves
/// such clusters, and says so; -r leaks frees them.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool check disk.qcow2
  imgtool check --output json disk.qcow2
  imgtool check -r all --dry-run disk.qcow2
  imgtool check -r all --backup disk.metadata disk.qcow2
  imgtool check --restore disk.metadata disk.qcow2")]
pub(crate) struct CheckArgs {
    /// Format of the image [default: found out]
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    output: OutputFormat,
    /// Repair what is wrong
    #[arg(short, long, value_enum, value_name = "WHAT")]
    repair: Option<Repair>,
    /// Say what a repair would change, and change nothing
    #[arg(short = 'n', long, requires = "repair")]
    dry_run: bool,
    /// Keep the metadata that a repair overwrites in a new file
    #[arg(long, value_name = "FILE", requires = "repair", conflicts_with = "dry_run")]
    backup: Option<PathBuf>,
    /// Put back what a repair overwrote, from its backup, if nobody has written to the image since
    #[arg(long, value_name = "FILE", conflicts_with_all = ["repair", "force_share"])]
    restore: Option<PathBuf>,
    /// How the page cache is used
    #[arg(short = 'T', long = "cache", value_enum, value_name = "MODE")]
    cache: Option<CacheMode>,
    /// Check an image that somebody else may be writing to
    #[arg(short = 'U', long, conflicts_with = "repair")]
    force_share: bool,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    open: OpenArgs,
    #[command(flatten)]
    sandbox: SandboxArgs,
    /// The image
    file: PathBuf,
}

impl CheckArgs {
    pub(crate) fn run(self, out: &mut dyn Write) -> Outcome {
        self.open.check()?;
        let opening = Opening {
            access: Access {
                write: (self.repair.is_some() && !self.dry_run) || self.restore.is_some(),
                force_share: self.force_share,
            },
            direct: self.cache.is_some_and(CacheMode::direct),
            io: self.open.io.into(),
            ..Opening::default()
        };
        let (storage, format) = opening.file(&self.file, self.format.as_deref())?;
        if format != "qcow2" {
            let message = format!("{format} images have nothing that could be checked");
            let error = Error::unsupported(message).with_path(&self.file);
            return Err(Failure::from(error).with_code(NO_CHECK));
        }
        if let Some(backup) = &self.restore {
            return self.put_back(out, &*storage, backup);
        }
        if self.repair.is_none() {
            self.sandbox.confine(Names::None, self.open.io);
        }
        let (report, repaired) = match self.repair {
            Some(what) => {
                let repaired = self.repair(&*storage, what)?;
                self.print_repair(out, &repaired)?;
                (repaired.after.clone(), Some(repaired))
            }
            None => (self.check(&*storage)?, None),
        };
        // A repair has named what it found, and so what is left.
        if repaired.is_none() && (!self.watch.quiet || report.check_errors > 0) {
            self.print_findings(&report, Finding::to_string)?;
        }
        match self.output {
            OutputFormat::Json => output::json(out, &self.json(format, &report, repaired.as_ref()))?,
            OutputFormat::Human if !self.watch.quiet => print(out, &report)?,
            OutputFormat::Human => {}
        }
        Ok(match (report.check_errors, report.corruptions, report.leaks) {
            (0, 0, 0) => 0,
            (0, 0, _) => LEAKS,
            (0, _, _) => CORRUPT,
            _ => NOT_CHECKED,
        })
    }

    fn repair(&self, storage: &dyn Storage, what: Repair) -> Result<RepairReport> {
        let backup = self.backup.as_deref().map(new_file).transpose()?;
        let options = RepairOptions {
            what: what.into(),
            dry_run: self.dry_run,
            backup: backup.as_ref().map(|file| file as &dyn Storage),
            ..RepairOptions::default()
        };
        self.watched(storage, |report| {
            qcow2::repair(storage, &options, &mut |progress| report(progress.fraction()))
        })
    }

    fn put_back(&self, out: &mut dyn Write, storage: &dyn Storage, backup: &Path) -> Outcome {
        let file = raw::File::open(backup)?;
        let report = qcow2::restore(storage, &file)?;
        if self.output == OutputFormat::Json {
            let value = json!({
                "filename": self.file.to_string_lossy(),
                "restored-bytes": report.bytes,
                "backup-cut-off": report.cut_off,
            });
            output::json(out, &value)?;
        } else if !self.watch.quiet {
            writeln!(
                out,
                "{} bytes of metadata are as they were before the repair.",
                report.bytes
            )?;
            if report.cut_off {
                writeln!(
                    out,
                    "The backup ends with a step of the repair that had not begun to write."
                )?;
            }
        }
        Ok(0)
    }

    /// What was found and what became of it on standard error, the summary on standard output.
    fn print_repair(&self, out: &mut dyn Write, repaired: &RepairReport) -> io::Result<()> {
        if self.watch.quiet {
            return Ok(());
        }
        let mended: Vec<&Finding> = repaired.repaired().collect();
        self.print_findings(&repaired.before, |finding| {
            if mended.contains(&finding) {
                self.as_repaired(finding)
            } else {
                finding.to_string()
            }
        })?;
        let mut err = io::stderr().lock();
        for change in &repaired.changes {
            writeln!(err, "{}{change}", if self.dry_run { "(dry run) " } else { "" })?;
        }
        // What the repair brought to light, such as flags that were right as long as the refcounts were wrong.
        for finding in &repaired.after.findings {
            if !repaired.before.findings.contains(finding) {
                writeln!(err, "{finding}")?;
            }
        }
        print_left(&mut err, repaired)?;
        if self.output == OutputFormat::Human && repaired.has_changes() {
            let (start, end) = if self.dry_run {
                ("would be repaired", "Nothing was changed. After a repair:")
            } else {
                (
                    "were found and repaired",
                    "Double checking the fixed image now...",
                )
            };
            writeln!(
                out,
                "The following inconsistencies {start}:\n\n    {} leaked clusters\n    {} corruptions\n\n{end}",
                repaired.leaks_fixed, repaired.corruptions_fixed
            )?;
        }
        Ok(())
    }

    /// A finding that is none any more.
    fn as_repaired(&self, finding: &Finding) -> String {
        let text = finding.to_string();
        let rest = text.split_once(' ').map_or(&*text, |(_, rest)| rest);
        let verb = if self.dry_run { "Would repair" } else { "Repairing" };
        format!("{verb} {rest}")
    }

    fn check(&self, storage: &dyn Storage) -> Result<CheckReport> {
        self.watched(storage, |report| {
            qcow2::check(storage, &CheckOptions::default(), &mut |progress| {
                report(progress.fraction())
            })
        })
    }

    /// Does what reports how far it has come, from 0 to 1, and shows it; an interrupt ends it.
    fn watched<T>(
        &self,
        storage: &dyn Storage,
        job: impl FnOnce(&dyn Fn(f64) -> ControlFlow<()>) -> Result<T>,
    ) -> Result<T> {
        let cancel = interrupt::watch()?;
        let watch = Watch::new(&self.watch);
        // Bytes of the file stand for what a check counts, so that the bar shows something people know.
        let total = storage.len()?;
        let result = job(&|fraction| {
            let done = (fraction.clamp(0.0, 1.0) * total as f64) as u64;
            watch.report(Progress { done, total });
            if cancel.is_cancelled() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        watch.finish();
        result
    }

    /// Each on a line of standard error, in the words that `text` has for it.
    fn print_findings(&self, report: &CheckReport, text: impl Fn(&Finding) -> String) -> io::Result<()> {
        let mut err = io::stderr().lock();
        for finding in &report.findings {
            writeln!(err, "{}", text(finding))?;
        }
        let counted = report
            .corruptions
            .saturating_add(report.leaks)
            .saturating_add(report.check_errors);
        let unlisted = counted.saturating_sub(report.findings.len() as u64);
        if unlisted > 0 && !report.findings.is_empty() {
            writeln!(
                err,
                "... and {unlisted} more in {}",
                block::escape(&self.file.to_string_lossy())
            )?;
        }
        Ok(())
    }

    fn json(&self, format: &str, report: &CheckReport, repaired: Option<&RepairReport>) -> Value {
        let mut object = Map::new();
        object.insert("filename".to_owned(), self.file.to_string_lossy().into());
        object.insert("format".to_owned(), format.into());
        object.insert("check-errors".to_owned(), report.check_errors.into());
        for (key, value) in [
            ("image-end-offset", report.image_end_offset),
            ("corruptions", report.corruptions),
            ("leaks", report.leaks),
            (
                "corruptions-fixed",
                repaired.map_or(0, |repaired| repaired.corruptions_fixed),
            ),
            ("leaks-fixed", repaired.map_or(0, |repaired| repaired.leaks_fixed)),
            ("lost-tables", repaired.map_or(0, |repaired| repaired.lost_tables)),
            (
                "reaches-past-end",
                repaired.map_or(0, |repaired| repaired.reaches_past_end.into()),
            ),
            (
                "cut-l1-tables",
                repaired.map_or(0, |repaired| repaired.l1_is_cut.into()),
            ),
            (
                "spared-tables",
                repaired.map_or(0, |repaired| repaired.spared_tables),
            ),
            ("total-clusters", report.total_clusters),
            ("allocated-clusters", report.allocated_clusters),
            ("fragmented-clusters", report.fragmented_clusters),
            ("compressed-clusters", report.compressed_clusters),
        ] {
            if value != 0 {
                object.insert(key.to_owned(), value.into());
            }
        }
        Value::Object(object)
    }
}

/// What a repair has left on purpose, and why.
fn print_left(err: &mut dyn Write, repaired: &RepairReport) -> io::Result<()> {
    if repaired.spared_tables > 0 {
        writeln!(
            err,
            "Not written to, since they may be the guest's data: {} whose clusters something else references too",
            counted(repaired.spared_tables, "table", "tables")
        )?;
    }
    if repaired.reaches_past_end {
        writeln!(
            err,
            "Not repaired, since nobody could tell any more what is lost: the file was cut, and its tables name clusters past its \
             end. Fetch the rest of the file if there is another copy; `imgtool convert --salvage` copies what is left. Where the \
             file is made as long as it was (truncate -s), the rest reads as zeros, and is sound for the next repair"
        )?;
    }
    let leaks = repaired.after.leaks;
    let why = match repaired.lost_tables {
        _ if repaired.l1_is_cut => "the active L1 table is not all there".to_owned(),
        0 => return Ok(()),
        places => {
            format!(
                "what tables say is lost or wrong in {places} places. `imgtool check -r leaks` frees them"
            )
        }
    };
    if leaks > 0 {
        writeln!(
            err,
            "Not freed, since they may be the only copy of the guest's data: {leaks} leaked clusters; {why}"
        )?;
    }
    Ok(())
}

/// A file that did not exist.
fn new_file(path: &Path) -> Result<raw::File> {
    raw::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(|error| match error.kind() {
            ErrorKind::Io => error.with_hint("the backup goes to a new file"),
            _ => error,
        })
}

fn print(out: &mut dyn Write, report: &CheckReport) -> io::Result<()> {
    if report.is_clean() {
        writeln!(out, "No errors were found on the image.")?;
    }
    if report.corruptions > 0 {
        writeln!(
            out,
            "\n{} errors were found on the image.\n\
             Data may be corrupted, or further writes to the image may corrupt it.",
            report.corruptions
        )?;
    }
    if report.leaks > 0 {
        writeln!(
            out,
            "\n{} leaked clusters were found on the image.\n\
             This means waste of disk space, but no harm to data.",
            report.leaks
        )?;
    }
    if report.check_errors > 0 {
        writeln!(
            out,
            "\n{} internal errors have occurred during the check.",
            report.check_errors
        )?;
    }
    let (total, allocated) = (report.total_clusters, report.allocated_clusters);
    if total != 0 && allocated != 0 {
        let percent = |part: u64, whole: u64| part as f64 * 100.0 / whole as f64;
        writeln!(
            out,
            "{allocated}/{total} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters",
            percent(allocated, total),
            percent(report.fragmented_clusters, allocated),
            percent(report.compressed_clusters, allocated),
        )?;
    }
    if report.image_end_offset > 0 {
        writeln!(out, "Image end offset: {}", report.image_end_offset)?;
    }
    Ok(())
}
