//! `imgtool partition`: the partition table of a disk.

mod new;
mod show;

use std::io::{Read, Write};
use std::path::PathBuf;

use block::chain::Chain;
use block::{Access, Error, Result};
use clap::{Args, Subcommand, ValueEnum};
use raw::partition::{self, CopyKind, Finding, Guid, Layout, PartitionTable, SectorSize, Severity};
use serde_json::json;

use super::Outcome;
use crate::arguments::OpenArgs;
use crate::images::Opening;
use crate::output::{self, OutputFormat, counted, human_size};

pub(crate) use show::{partition_json, print_partition};

/// Exit code for a table with errors.
const DAMAGED: u8 = 2;

/// Exit code for a table with warnings and no errors.
const WARNINGS: u8 = 3;

/// List, make, verify, repair and grow partition tables
///
/// Tables are read and written on the disk in an image, whatever its format. GPT is supported in full; partitions of an
/// MBR are listed and can be used.
#[derive(Debug, Args)]
#[command(
    subcommand_required = true,
    after_help = "Examples:
  imgtool partition list disk.qcow2
  imgtool partition create disk.raw size=512M,type=efi,name=ESP type=root-x86-64,name=root
  imgtool partition verify disk.raw

A partition is named as IMAGE#NUMBER, IMAGE#name:LABEL or IMAGE#uuid:GUID wherever compare, convert, dd, fs, info, \
map and measure take an image."
)]
pub(crate) struct PartitionArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(ListArgs),
    Create(CreateArgs),
    Verify(VerifyArgs),
    Repair(RepairArgs),
    Grow(GrowArgs),
}

impl PartitionArgs {
    pub(crate) fn run(self, out: &mut dyn Write) -> Outcome {
        match self.command {
            Command::List(arguments) => arguments.run(out),
            Command::Create(arguments) => arguments.run(out),
            Command::Verify(arguments) => arguments.run(out),
            Command::Repair(arguments) => arguments.run(out),
            Command::Grow(arguments) => arguments.run(out),
        }
    }
}

/// The disk that a table is on.
#[derive(Debug, Args)]
struct DiskArgs {
    /// Format of the image [default: found out]
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Bytes in a sector: 512 or 4096 [default: found out, or 512 for a new table]
    #[arg(long, value_name = "BYTES")]
    sector_size: Option<u64>,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    output: OutputFormat,
    #[command(flatten)]
    open: OpenArgs,
    /// The image
    file: PathBuf,
}

impl DiskArgs {
    fn open(&self, access: Access) -> Result<Chain> {
        self.open.check()?;
        let opening = Opening {
            nested: self.open.nested,
            io: self.open.io.into(),
            access,
            direct: false,
        };
        opening.chain_to_change(&self.file, self.format.as_deref())
    }

    fn sector(&self) -> Result<Option<SectorSize>> {
        self.sector_size.map(SectorSize::of).transpose()
    }

    /// The same error, with the image's name.
    fn named(&self, error: Error) -> Error {
        error.with_path(&self.file)
    }

    fn read(&self, force_share: bool) -> Result<PartitionTable> {
        let chain = self.open(Access {
            write: false,
            force_share,
        })?;
        PartitionTable::read(&**chain.active(), self.sector()?).map_err(|error| self.named(error))
    }
}

/// List the partitions of a disk
///
/// If the primary table is damaged, the backup is listed. What is wrong is counted on standard error; `verify` names it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool partition list disk.qcow2
  imgtool partition list --output json disk.raw")]
struct ListArgs {
    /// Read an image that somebody else may be writing to
    #[arg(short = 'U', long)]
    force_share: bool,
    #[command(flatten)]
    disk: DiskArgs,
}

impl ListArgs {
    fn run(self, out: &mut dyn Write) -> Outcome {
        let table = self.disk.read(self.force_share)?;
        match self.disk.output {
            OutputFormat::Human => show::print_table(out, &table)?,
            OutputFormat::Json => output::json(out, &show::table_json(&self.disk.file, &table))?,
        }
        let faults = table.findings().len();
        if faults > 0 {
            let file = block::escape(&self.disk.file.to_string_lossy()).into_owned();
            let faults = counted(faults as u64, "fault", "faults");
            let mut err = std::io::stderr();
            writeln!(
                err,
                "The table has {faults}: imgtool partition verify {file} says more."
            )?;
        }
        Ok(0)
    }
}

/// Make a new GPT
///
/// Each partition is described by key=value,key=value, with a comma in a value doubled; `help` lists the keys and the
/// types. Partitions lie in the order in which they are given, and start at multiples of 1 MiB. One without a size takes
/// the room that is left.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool partition create disk.raw size=512M,type=efi,name=ESP type=root-x86-64,name=root
  imgtool partition create disk.qcow2 number=14,size=1M,type=bios-boot number=1,type=linux
  imgtool partition create --seed 1 disk.raw type=linux
  imgtool partition create disk.raw help")]
struct CreateArgs {
    /// Write over a partition table, or anything else, that is on the disk: what it holds is lost
    #[arg(long)]
    force: bool,
    /// A number that all GUIDs follow from that are not given, so that the same command makes the same table [default:
    /// drawn]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// GUID of the disk [default: drawn]
    #[arg(long, value_name = "GUID")]
    guid: Option<String>,
    /// Print errors and nothing else
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    disk: DiskArgs,
    /// The partitions: size=SIZE,type=TYPE,name=NAME and others
    #[arg(value_name = "PARTITION")]
    partitions: Vec<String>,
}

impl CreateArgs {
    fn run(self, out: &mut dyn Write) -> Outcome {
        if self.partitions.iter().any(|text| text == "help") {
            new::print_help(out)?;
            return Ok(0);
        }
        let mut layout = Layout::new(self.seed()?)
            .sector(self.disk.sector()?.unwrap_or_default())
            .overwrite(self.force);
        if let Some(guid) = &self.guid {
            layout = layout.disk_guid(guid.parse::<Guid>()?);
        }
        for text in &self.partitions {
            layout = layout.with(new::parse(text)?);
        }
        let chain = self.disk.open(Access::WRITE)?;
        let table = partition::create(&**chain.active(), &layout).map_err(|error| self.disk.named(error))?;
        match self.disk.output {
            OutputFormat::Human if self.quiet => {}
            OutputFormat::Human => show::print_table(out, &table)?,
            OutputFormat::Json => output::json(out, &show::table_json(&self.disk.file, &table))?,
        }
        Ok(0)
    }

    fn seed(&self) -> Result<[u8; 16]> {
        let mut seed = [0; 16];
        match self.seed {
            Some(number) => seed[..8].copy_from_slice(&number.to_le_bytes()),
            None => std::fs::File::open("/dev/urandom")
                .and_then(|mut random| random.read_exact(&mut seed))
                .map_err(|error| Error::io("draw GUIDs", error).with_path("/dev/urandom"))?,
        }
        Ok(seed)
    }
}

/// Check whether a partition table is sound; nothing is changed
///
/// The exit code is 0 for a sound table, 1 if there is none or both copies of it are damaged, 2 if it has errors, and 3
/// if it only has what others may stumble over.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool partition verify disk.qcow2
  imgtool partition verify --output json disk.raw")]
struct VerifyArgs {
    /// Read an image that somebody else may be writing to
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Print errors and nothing else
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    disk: DiskArgs,
}

impl VerifyArgs {
    fn run(self, out: &mut dyn Write) -> Outcome {
        let table = self.disk.read(self.force_share)?;
        let findings = table.findings();
        let errors = findings
            .iter()
            .filter(|finding| finding.severity() == Severity::Error)
            .count();
        let warnings = findings.len() - errors;
        match self.disk.output {
            OutputFormat::Human => {
                for finding in findings {
                    let severity = show::severity(finding);
                    if !self.quiet || finding.severity() == Severity::Error {
                        writeln!(std::io::stderr(), "{severity}: {finding}")?;
                    }
                }
                if !self.quiet && findings.is_empty() {
                    writeln!(out, "No errors were found in the partition table.")?;
                } else if !self.quiet {
                    writeln!(
                        out,
                        "{} and {}: the table was read from the {}.",
                        counted(errors as u64, "error", "errors"),
                        counted(warnings as u64, "warning", "warnings"),
                        show::origin(&table)
                    )?;
                }
            }
            OutputFormat::Json => {
                let report = json!({
                    "filename": self.disk.file.to_string_lossy(),
                    "table": table.format(),
                    "errors": errors,
                    "warnings": warnings,
                    "findings": show::findings_json(&table),
                });
                output::json(out, &report)?;
            }
        }
        Ok(match (errors, warnings) {
            (0, 0) => 0,
            (0, _) => WARNINGS,
            _ => DAMAGED,
        })
    }
}

/// A copy of a GPT.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum From {
    /// The table at the start of the disk.
    Primary,
    /// The table at its end.
    Backup,
}

/// Restore a damaged copy of a GPT from the other, and the MBR that protects it
///
/// What partitions are where is not changed. A power cut leaves the copy that is whole as it was. The exit code is 2 if
/// errors are left that both copies agree on, such as partitions that overlap.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool partition repair disk.qcow2
  imgtool partition repair --from backup disk.raw")]
struct RepairArgs {
    /// The copy to restore from [default: the one that is whole]
    #[arg(long, value_enum, value_name = "COPY")]
    from: Option<From>,
    /// Print errors and nothing else
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    disk: DiskArgs,
}

impl RepairArgs {
    fn run(self, out: &mut dyn Write) -> Outcome {
        let chain = self.disk.open(Access::WRITE)?;
        let from = self.from.map(|from| match from {
            From::Primary => CopyKind::Primary,
            From::Backup => CopyKind::Backup,
        });
        let (disk, sector) = (&**chain.active(), self.disk.sector()?);
        let (done, table) = partition::repair(disk, sector, from)
            .and_then(|done| Ok((done, PartitionTable::read(disk, sector)?)))
            .map_err(|error| self.disk.named(error))?;
        // Partitions that overlap, for one.
        let errors = |finding: &&Finding| finding.severity() == Severity::Error;
        let left: Vec<_> = table.findings().iter().filter(errors).collect();
        match self.disk.output {
            OutputFormat::Json => {
                let report = json!({
                    "filename": self.disk.file.to_string_lossy(),
                    "restored": done.restored.map(|copy| copy.to_string()),
                    "backup-moved": done.moved,
                    "mbr-restored": done.mbr,
                    "findings": show::findings_json(&table),
                });
                output::json(out, &report)?;
            }
            OutputFormat::Human if self.quiet => {}
            OutputFormat::Human => {
                if done.is_nothing() && left.is_empty() {
                    writeln!(out, "There is nothing to repair.")?;
                }
                if let Some(copy) = done.restored {
                    let place = if done.moved {
                        ", at the end of the disk"
                    } else {
                        ""
                    };
                    writeln!(out, "The {copy} table was restored{place}.")?;
                }
                if done.mbr {
                    writeln!(out, "The protective MBR was restored.")?;
                }
                if !left.is_empty() {
                    writeln!(
                        out,
                        "{} left, which no other copy can mend.",
                        counted(left.len() as u64, "error is", "errors are")
                    )?;
                }
            }
        }
        if self.disk.output == OutputFormat::Human {
            for finding in &left {
                writeln!(std::io::stderr(), "error: {finding}")?;
            }
        }
        Ok(if left.is_empty() { 0 } else { DAMAGED })
    }
}

/// Make a GPT fit a disk whose size has changed
///
/// The backup table moves to the end of the disk, so that all of it can be used. What is in a partition that grows does
/// not grow with it: imgtool fs grow grows an ext4 filesystem, and for others that is up to the guest.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool resize disk.qcow2 +10G
  imgtool partition grow --last disk.qcow2")]
struct GrowArgs {
    /// The partition that lies last on the disk grows to its end too
    #[arg(long)]
    last: bool,
    /// Print errors and nothing else
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    disk: DiskArgs,
}

impl GrowArgs {
    fn run(self, out: &mut dyn Write) -> Outcome {
        let chain = self.disk.open(Access::WRITE)?;
        let grown = partition::grow(&**chain.active(), self.disk.sector()?, self.last)
            .map_err(|error| self.disk.named(error))?;
        match self.disk.output {
            OutputFormat::Json => {
                let report = json!({
                    "filename": self.disk.file.to_string_lossy(),
                    "backup-moved": grown.backup.is_some(),
                    "partition": grown.partition.as_ref().map(|(old, new)| json!({
                        "number": new.number,
                        "old-size": old.len(),
                        "size": new.len(),
                    })),
                });
                output::json(out, &report)?;
            }
            OutputFormat::Human if self.quiet => {}
            OutputFormat::Human => {
                match grown.backup {
                    Some((old, new)) => writeln!(
                        out,
                        "The backup table was moved from sector {old} to sector {new}."
                    )?,
                    None => writeln!(out, "The table fits the disk.")?,
                }
                if let Some((old, new)) = grown.partition {
                    let [old_size, size] = [old.len(), new.len()].map(human_size);
                    writeln!(
                        out,
                        "Partition {} has grown from {old_size} to {size}.",
                        new.number
                    )?;
                }
            }
        }
        Ok(0)
    }
}
