//! `imgtool inspect`: is a file one disk image, and a harmless one?

use std::io::{self, Write};
use std::path::PathBuf;

use block::{Access, Error, Result, escape, size};
use clap::Args;
use inspector::{Check, Format, Limits, Problem, Report};
use serde_json::{Map, Value, json};

use super::Outcome;
use crate::arguments::{IoMode, SandboxArgs};
use crate::images::Opening;
use crate::output::{self, OutputFormat, human_size};
use crate::sandbox::Names;

const SAFE: u8 = 0;
const UNSAFE: u8 = 2;

/// Tell what a file of a stranger is, and with --safe whether it is harmless
///
/// Only the file itself is opened, whatever it names. It is safe if it is in one format, whoever looks; if it names no
/// other file; if it uses no feature that is not known here; if its disk and tables are no larger than they may be; if the
/// tables lie in the file and apart, with nothing mapped twice; and if there is nothing behind what they count. VMDK, VHD and VHDX
/// images say things in several places: all have to say the same. docs/security.md says what is looked at in each format.
///
/// The exit code is 0 for an image that is safe, 2 for one that is not, and 1 if it could not be read. Without --safe
/// it is 0 for anything that could be read.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool inspect upload.img
  imgtool inspect --safe upload.img
  imgtool inspect --safe -f qcow2 --max-size 100G upload.img
  imgtool inspect --safe --output json upload.img")]
pub(crate) struct InspectArgs {
    /// Judge it, and say so by the exit code
    #[arg(long)]
    safe: bool,
    /// Format that it must be in: raw, qcow2, qed, vmdk, vhd, vhdx, vdi, iso or luks
    #[arg(short, long, value_name = "FORMAT", requires = "safe")]
    format: Option<String>,
    /// The largest disk that is safe [default: 64T]
    #[arg(long, value_name = "SIZE", requires = "safe")]
    max_size: Option<String>,
    /// Bytes of data on the disk, at most, that a byte of the file may stand for [default: 2000]
    #[arg(long, value_name = "N", requires = "safe")]
    max_ratio: Option<u64>,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    output: OutputFormat,
    /// How the bytes of the file are reached
    #[arg(long, value_enum, default_value = "auto", value_name = "HOW")]
    io: IoMode,
    #[command(flatten)]
    sandbox: SandboxArgs,
    /// Inspect a file that somebody else may be writing to
    #[arg(short = 'U', long)]
    force_share: bool,
    /// The file
    file: PathBuf,
}

impl InspectArgs {
    pub(crate) fn run(self, out: &mut dyn Write) -> Outcome {
        let limits = self.limits()?;
        let opening = Opening {
            io: self.io.into(),
            access: Access {
                write: false,
                force_share: self.force_share,
            },
            ..Opening::default()
        };
        // A raw image is what any file can be opened as, without a look at what is in it.
        let (storage, _) = opening.file(&self.file, Some("raw"))?;
        self.sandbox.confine(Names::None, self.io);
        let report = inspector::inspect(storage, &limits).map_err(|error| error.with_path(&self.file))?;
        match self.output {
            OutputFormat::Human => self.print(out, &report)?,
            OutputFormat::Json => output::json(out, &self.json(&report))?,
        }
        Ok(if report.is_safe() || !self.safe {
            SAFE
        } else {
            UNSAFE
        })
    }

    fn limits(&self) -> Result<Limits> {
        let mut limits = Limits::default();
        if let Some(name) = &self.format {
            let format = Format::named(name).filter(|format| !format.is_partition_table());
            limits.format = Some(format.ok_or_else(|| {
                Error::invalid(format!("no format is called \"{}\"", escape(name)))
                    .with_hint("there are raw, qcow2, qed, vmdk, vhd, vhdx, vdi, iso and luks")
            })?);
        }
        if let Some(text) = &self.max_size {
            limits.max_disk = size::of("--max-size", text)?;
        }
        limits.max_ratio = self.max_ratio.unwrap_or(limits.max_ratio);
        Ok(limits)
    }

    fn verdict(report: &Report) -> &'static str {
        if report.is_safe() { "safe" } else { "unsafe" }
    }

    fn print(&self, out: &mut dyn Write, report: &Report) -> io::Result<()> {
        let size = |bytes| format!("{} ({bytes} bytes)", human_size(bytes));
        writeln!(out, "image: {}", escape(&self.file.to_string_lossy()))?;
        writeln!(out, "file format: {}", report.format.map_or("none", Format::name))?;
        if let Some(bytes) = report.disk_size {
            writeln!(out, "virtual size: {}", size(bytes))?;
        }
        writeln!(out, "file length: {}", size(report.file_len))?;
        if !report.features.is_empty() {
            writeln!(out, "features: {}", report.features.join(", "))?;
        }
        if self.safe {
            writeln!(out, "verdict: {}", Self::verdict(report))?;
        }
        for Problem { check, text } in &report.problems {
            writeln!(out, "    {}: {}", check.name(), escape(text))?;
        }
        Ok(())
    }

    fn json(&self, report: &Report) -> Value {
        let signature =
            |one: &inspector::Signature| json!({ "format": one.format.name(), "offset": one.offset });
        let problems = |check: Check| -> Value {
            let these = report.problems.iter().filter(|problem| problem.check == check);
            these.map(|problem| problem.text.as_str()).collect()
        };
        let checks: Map<String, Value> = Check::ALL
            .into_iter()
            .map(|check| (check.name().to_owned(), problems(check)))
            .collect();
        let mut value = json!({
            "filename": self.file.to_string_lossy(),
            "format": report.format.map(Format::name),
            "signatures": report.signatures.iter().map(signature).collect::<Value>(),
            "virtual-size": report.disk_size,
            "file-length": report.file_len,
            "features": report.features,
            "problems": checks,
        });
        if self.safe {
            value["verdict"] = Self::verdict(report).into();
        }
        value
    }
}
