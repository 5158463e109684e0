//! `imgtool snapshot`: internal snapshots of qcow2 images.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use block::{Access, Error, Result, SnapshotSelector};
use clap::{Args, Subcommand};
use ops::Progress;
use qcow2::{Header, Image, Snapshot, SnapshotProgress, SnapshotTable};
use serde_json::Value;

use super::Outcome;
use super::convert::ConvertArgs;
use crate::arguments::{OpenArgs, WatchArgs};
use crate::images::{Opening, qcow2_with};
use crate::output::{self, OutputFormat};
use crate::stores::refuse_base;
use crate::watch::Watch;
use crate::{interrupt, snapshots};

/// Take, list, go back to, delete, rename and export the snapshots in a qcow2 image
///
/// A snapshot is named by its name or its ID; where that fits two, by snapshot.name=NAME, snapshot.id=ID or both with a
/// comma between. Without a subcommand, the options are those of qemu-img, and -l is what is done if none is given.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    override_usage = "imgtool snapshot <create|apply|delete> [OPTIONS] <FILE> <SNAPSHOT>
       imgtool snapshot list [OPTIONS] <FILE>
       imgtool snapshot rename [OPTIONS] <FILE> <SNAPSHOT> <NAME>
       imgtool snapshot export [OPTIONS] <FILE> <SNAPSHOT> <NEW FILE>
       imgtool snapshot [-l | -c NAME | -a SNAPSHOT | -d SNAPSHOT] [OPTIONS] <FILE>",
    after_help = "Examples:
  imgtool snapshot create disk.qcow2 before-upgrade
  imgtool snapshot list disk.qcow2
  imgtool snapshot apply disk.qcow2 before-upgrade
  imgtool snapshot export -O qcow2 disk.qcow2 before-upgrade old.qcow2
  imgtool snapshot delete disk.qcow2 snapshot.id=1"
)]
pub(crate) struct SnapshotArgs {
    #[command(subcommand)]
    command: Option<SnapshotCommand>,
    #[command(flatten)]
    options: QemuArgs,
}

#[derive(Debug, Subcommand)]
enum SnapshotCommand {
    /// Take a snapshot of the disk as it is
    #[command(after_help = "Examples:\n  imgtool snapshot create disk.qcow2 before-upgrade")]
    Create {
        #[command(flatten)]
        image: ImageArgs,
        /// What it is called
        name: String,
    },
    /// Make the disk what it was when a snapshot was taken, its size included
    ///
    /// What the disk holds now is lost, unless there is a snapshot of it.
    #[command(after_help = "Examples:\n  imgtool snapshot apply disk.qcow2 before-upgrade")]
    Apply {
        #[command(flatten)]
        image: ImageArgs,
        /// Its name or ID
        snapshot: String,
    },
    /// Delete a snapshot, and give back the room that only it takes
    #[command(after_help = "Examples:\n  imgtool snapshot delete disk.qcow2 before-upgrade")]
    Delete {
        #[command(flatten)]
        image: ImageArgs,
        /// Its name or ID
        snapshot: String,
    },
    /// Give a snapshot another name
    #[command(after_help = "Examples:\n  imgtool snapshot rename disk.qcow2 before-upgrade version-1")]
    Rename {
        #[command(flatten)]
        image: ImageArgs,
        /// Its name or ID
        snapshot: String,
        /// Its new name
        name: String,
    },
    /// List the snapshots
    #[command(after_help = "Examples:\n  imgtool snapshot list --output json disk.qcow2")]
    List(ListArgs),
    /// Copy a snapshot into a new image, as `convert -l` does
    #[command(
        mut_arg("files", |files| files
            .help("The image, the name or ID of the snapshot, and the new image")
            .value_names(["FILE", "SNAPSHOT", "NEW FILE"])),
        mut_arg("snapshot", |option| option.hide(true)),
        after_help = "Examples:
  imgtool snapshot export -O qcow2 disk.qcow2 before-upgrade old.qcow2
  imgtool snapshot export -p -c -O qcow2 disk.qcow2 snapshot.id=1 small.qcow2"
    )]
    Export(ConvertArgs),
}

/// The options of `qemu-img snapshot`.
#[derive(Debug, Args)]
struct QemuArgs {
    /// List the snapshots
    #[arg(short, long, conflicts_with_all = ["create", "apply", "delete"])]
    list: bool,
    /// Take a snapshot
    #[arg(short, long, value_name = "NAME", conflicts_with_all = ["apply", "delete"])]
    create: Option<String>,
    /// Go back to a snapshot
    #[arg(short, long, value_name = "SNAPSHOT", conflicts_with = "delete")]
    apply: Option<String>,
    /// Delete a snapshot
    #[arg(short, long, value_name = "SNAPSHOT")]
    delete: Option<String>,
    /// How to print the list; as JSON also after a change
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    output: OutputFormat,
    /// List the snapshots of an image that somebody else may be writing to
    #[arg(short = 'U', long)]
    force_share: bool,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    open: OpenArgs,
    /// Format of the image [default: found out]
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// The image
    #[arg(required = true)]
    file: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ListArgs {
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    output: OutputFormat,
    /// List the snapshots of an image that somebody else may be writing to
    #[arg(short = 'U', long)]
    force_share: bool,
    #[command(flatten)]
    open: OpenArgs,
    /// Format of the image [default: found out]
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// The image
    file: PathBuf,
}

/// An image that is changed.
#[derive(Debug, Args)]
struct ImageArgs {
    /// As JSON: print the list of the snapshots that there are afterwards
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    output: OutputFormat,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    open: OpenArgs,
    /// Format of the image [default: found out]
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// The image
    file: PathBuf,
}

/// What is done to the snapshots of an image.
#[derive(Debug)]
enum Change {
    Create(String),
    Apply(String),
    Delete(String),
    Rename(String, String),
}

impl SnapshotArgs {
    pub(crate) fn run(self) -> Outcome {
        match self.command {
            None => self.options.run(),
            Some(SnapshotCommand::Create { image, name }) => image.change(&Change::Create(name)),
            Some(SnapshotCommand::Apply { image, snapshot }) => image.change(&Change::Apply(snapshot)),
            Some(SnapshotCommand::Delete { image, snapshot }) => image.change(&Change::Delete(snapshot)),
            Some(SnapshotCommand::Rename {
                image,
                snapshot,
                name,
            }) => image.change(&Change::Rename(snapshot, name)),
            Some(SnapshotCommand::List(list)) => list.run(),
            Some(SnapshotCommand::Export(convert)) => export(convert),
        }
    }
}

impl QemuArgs {
    fn run(self) -> Outcome {
        let file = self.file.unwrap_or_default();
        let change = match (self.create, self.apply, self.delete) {
            (Some(name), ..) => Change::Create(name),
            (_, Some(snapshot), _) => Change::Apply(snapshot),
            (.., Some(snapshot)) => Change::Delete(snapshot),
            _ => {
                let list = ListArgs {
                    output: self.output,
                    force_share: self.force_share,
                    open: self.open,
                    format: self.format,
                    file,
                };
                return list.run();
            }
        };
        if self.force_share {
            let error =
                Error::invalid("-U is for looking, and an image that is changed must be nobody else's");
            return Err(error.with_path(&file).into());
        }
        let image = ImageArgs {
            output: self.output,
            watch: self.watch,
            open: self.open,
            format: self.format,
            file,
        };
        image.change(&change)
    }
}

impl ListArgs {
    fn run(&self) -> Outcome {
        self.open.check()?;
        let opening = Opening {
            nested: self.open.nested,
            io: self.open.io.into(),
            access: Access {
                write: false,
                force_share: self.force_share,
            },
            direct: false,
        };
        let (storage, format) = opening.file(&self.file, self.format.as_deref())?;
        if format != "qcow2" {
            return Err(no_snapshots(format, &self.file).into());
        }
        let header = Header::read(&*storage)?;
        let found = SnapshotTable::read(&*storage, &header)?.snapshots;
        let mut out = io::BufWriter::new(io::stdout().lock());
        match self.output {
            OutputFormat::Json => print_json(&mut out, &found)?,
            OutputFormat::Human if found.is_empty() => {}
            OutputFormat::Human => snapshots::print(&mut out, &found, snapshots::Width::Characters)?,
        }
        out.flush()?;
        Ok(0)
    }
}

fn print_json(out: &mut dyn Write, snapshots: &[Snapshot]) -> io::Result<()> {
    output::json(out, &snapshots.iter().map(json).collect())
}

/// What `info` says of a snapshot, and how long its disk is.
fn json(snapshot: &Snapshot) -> Value {
    let mut object = snapshots::json(snapshot);
    object["virtual-size"] = snapshot.size.into();
    object
}

fn no_snapshots(format: &str, path: &Path) -> Error {
    Error::unsupported(format!("a {format} image has no internal snapshots")).with_path(path)
}

impl ImageArgs {
    fn change(&self, change: &Change) -> Outcome {
        self.open.check()?;
        let opening = Opening {
            nested: self.open.nested,
            io: self.open.io.into(),
            access: Access::WRITE,
            direct: false,
        };
        let selector =
            |text: &String| SnapshotSelector::parse(text).map_err(|error| error.with_path(&self.file));
        let which = match change {
            Change::Create(_) => None,
            Change::Apply(snapshot) | Change::Delete(snapshot) | Change::Rename(snapshot, _) => {
                Some(selector(snapshot)?)
            }
        };
        let chain = opening.detached(&self.file, self.format.as_deref())?;
        let image = qcow2_with(&chain, "internal snapshots")?;
        if matches!(change, Change::Apply(_)) {
            refuse_base(&chain.layers()[0].path)?;
        }
        self.watched(image, |watch| match (change, &which) {
            (Change::Create(name), _) => image.create_snapshot(name, SystemTime::now(), watch).map(|_| ()),
            (Change::Apply(_), Some(which)) => image.apply_snapshot(which, watch),
            (Change::Delete(_), Some(which)) => image.delete_snapshot(which, watch).map(|_| ()),
            (Change::Rename(_, name), Some(which)) => image.rename_snapshot(which, name),
            (_, None) => Ok(()),
        })?;
        chain.settle()?;
        if self.output == OutputFormat::Json {
            print_json(&mut io::stdout().lock(), &image.snapshots()?)?;
        }
        Ok(0)
    }

    /// Runs a change, shows how far it has come, and stops it as long as that leaves no trace.
    fn watched(
        &self,
        image: &Image,
        change: impl FnOnce(&mut dyn FnMut(SnapshotProgress) -> ControlFlow<()>) -> Result<()>,
    ) -> Result<()> {
        let cancel = interrupt::watch()?;
        let watch = Watch::new(&self.watch);
        let table = image.geometry().cluster_size();
        let result = change(&mut |progress| {
            watch.report(Progress {
                done: progress.done * table,
                total: progress.total * table,
            });
            if cancel.is_cancelled() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        watch.finish();
        result
    }
}

/// `convert -l`, with the snapshot as the second of three names.
fn export(mut convert: ConvertArgs) -> Outcome {
    let [_, snapshot, _] = convert.files.as_slice() else {
        let error = Error::invalid("an image, a snapshot in it and a new image have to be named");
        let hint = "imgtool snapshot export -O qcow2 disk.qcow2 before-upgrade old.qcow2";
        return Err(error.with_hint(hint).into());
    };
    let Some(name) = snapshot.to_str() else {
        let error = Error::invalid("the name of the snapshot is not UTF-8");
        return Err(error.with_path(&convert.files[0]).into());
    };
    convert.snapshot = Some(name.to_owned());
    convert.files.remove(1);
    convert.run()
}
