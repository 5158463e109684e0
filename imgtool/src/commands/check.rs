//! `imgtool check`: is an image sound?

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;

use block::{Access, Error, Result};
use clap::Args;
use ops::Progress;
use qcow2::{CheckOptions, CheckReport};
use serde_json::{Map, Value};

use super::Outcome;
use crate::arguments::{CacheMode, OpenArgs, WatchArgs, refused};
use crate::failure::Failure;
use crate::images::Opening;
use crate::interrupt;
use crate::output::{self, OutputFormat};
use crate::watch::Watch;

const NOT_CHECKED: u8 = 1;
const CORRUPT: u8 = 2;
const LEAKS: u8 = 3;
const NO_CHECK: u8 = 63;

/// Check whether the metadata of an image is sound; nothing is changed
///
/// The exit code is 0 for a sound image, 1 if it could not be checked, 2 if it is corrupt, 3 if it only has clusters
/// that are never used, and 63 if its format has nothing to check. A backing file is not looked at.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool check disk.qcow2
  imgtool check --output json disk.qcow2")]
pub(crate) struct CheckArgs {
    /// Format of the image [default: found out]
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    output: OutputFormat,
    #[arg(short, long, hide = true, value_name = "WHAT")]
    repair: Option<String>,
    /// How the page cache is used
    #[arg(short = 'T', long = "cache", value_enum, value_name = "MODE")]
    cache: Option<CacheMode>,
    /// Check an image that somebody else may be writing to
    #[arg(short = 'U', long)]
    force_share: bool,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    open: OpenArgs,
    /// The image
    file: PathBuf,
}

impl CheckArgs {
    pub(crate) fn run(self, out: &mut dyn Write) -> Outcome {
        self.open.check()?;
        if self.repair.is_some() {
            let error = refused("-r (repair)").with_path(&self.file);
            return Err(error.with_hint("without it, the check says what is wrong").into());
        }
        let opening = Opening {
            access: Access {
                write: false,
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
        let report = self.check(&*storage)?;
        if !self.watch.quiet || report.check_errors > 0 {
            self.print_findings(&report)?;
        }
        match self.output {
            OutputFormat::Json => output::json(out, &self.json(format, &report))?,
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

    fn check(&self, storage: &dyn block::Storage) -> Result<CheckReport> {
        let cancel = interrupt::watch()?;
        let watch = Watch::new(&self.watch);
        // Bytes of the file stand for what a check counts, so that the bar shows something people know.
        let total = storage.len()?;
        let result = qcow2::check(storage, &CheckOptions::default(), &mut |progress| {
            let done = (progress.fraction().clamp(0.0, 1.0) * total as f64) as u64;
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

    /// Each on a line of standard error.
    fn print_findings(&self, report: &CheckReport) -> io::Result<()> {
        let mut err = io::stderr().lock();
        for finding in &report.findings {
            writeln!(err, "{finding}")?;
        }
        let counted = report.corruptions + report.leaks + report.check_errors;
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

    fn json(&self, format: &str, report: &CheckReport) -> Value {
        let mut object = Map::new();
        object.insert("filename".to_owned(), self.file.to_string_lossy().into());
        object.insert("format".to_owned(), format.into());
        object.insert("check-errors".to_owned(), report.check_errors.into());
        for (key, value) in [
            ("image-end-offset", report.image_end_offset),
            ("corruptions", report.corruptions),
            ("leaks", report.leaks),
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
