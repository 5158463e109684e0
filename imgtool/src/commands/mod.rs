//! The commands, one file each.

mod amend;
mod bitmap;
mod check;
mod clone;
mod commit;
mod compare;
mod completions;
mod config;
pub(crate) mod convert;
mod create;
mod dd;
mod diff;
mod doctor;
mod fs;
mod info;
mod inspect;
mod install_links;
mod instances;
mod launch;
mod man;
mod map;
pub(crate) mod measure;
mod mkdisk;
mod mkfs;
mod partition;
mod personal;
pub(crate) mod rebase;
pub(crate) mod resize;
mod run;
mod snapshot;
mod stream;
mod template;

use std::io::{self, BufWriter, Write};

use clap::{Parser, Subcommand};

use crate::failure::Failure;

pub(crate) use bitmap::flags as bitmap_flags;

/// What a command gives: an exit code.
pub(crate) type Outcome = Result<u8, Failure>;

/// Create, fill, inspect, check, convert, compare and resize disk images
#[derive(Debug, Parser)]
#[command(
    name = "imgtool",
    version,
    infer_long_args = true,
    max_term_width = 100,
    subcommand_required = true,
    after_help = "Examples:
  imgtool create -f qcow2 disk.qcow2 20G
  imgtool create -f qcow2 -b base.qcow2 -F qcow2 clone.qcow2
  imgtool convert -p -c -O qcow2 disk.raw disk.qcow2
  imgtool info disk.qcow2
  imgtool inspect --safe upload.img
  imgtool mkfs rootfs.tar.zst root.img
  imgtool mkdisk --size 20G -O qcow2 rootfs.tar.zst disk.qcow2
  imgtool convert -O raw disk.qcow2#name:root root.raw
  imgtool fs ls -l disk.qcow2#name:root /etc
  imgtool template import disk.qcow2 --alias debian-12
  imgtool clone web --from debian-12 --count 3

A partition of the disk in an image is named as IMAGE#NUMBER, IMAGE#name:LABEL or IMAGE#uuid:GUID where compare, \
convert, dd, fs, info, map and measure take an image; convert -n and mkfs write into one. A file that has such a name is \
meant itself. An image that an NBD server exports is named nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH.

Every command's own help (`imgtool convert --help`) has more."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Create(create::CreateArgs),
    Info(info::InfoArgs),
    Inspect(inspect::InspectArgs),
    Check(check::CheckArgs),
    Map(map::MapArgs),
    Convert(convert::ConvertArgs),
    Compare(compare::CompareArgs),
    Dd(dd::DdArgs),
    Fs(fs::FsArgs),
    Measure(measure::MeasureArgs),
    Mkfs(Box<mkfs::MkfsArgs>),
    Mkdisk(Box<mkdisk::MkdiskArgs>),
    Resize(resize::ResizeArgs),
    Amend(amend::AmendArgs),
    Snapshot(Box<snapshot::SnapshotArgs>),
    Bitmap(bitmap::BitmapArgs),
    Partition(partition::PartitionArgs),
    Commit(commit::CommitArgs),
    Rebase(rebase::RebaseArgs),
    Stream(stream::StreamArgs),
    Template(template::TemplateArgs),
    Clone(Box<clone::CloneArgs>),
    Ls(instances::ListArgs),
    Show(instances::ShowArgs),
    Config(config::ConfigArgs),
    Run(Box<run::RunArgs>),
    Launch(Box<launch::LaunchArgs>),
    Doctor(doctor::DoctorArgs),
    Diff(diff::DiffArgs),
    Rename(instances::RenameArgs),
    Rm(instances::RemoveArgs),
    InstallLinks(install_links::InstallLinksArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
}

impl Cli {
    pub(crate) fn run(self) -> Outcome {
        let mut out = BufWriter::new(io::stdout().lock());
        let outcome = match self.command {
            Command::Create(arguments) => arguments.run(&mut out),
            Command::Info(arguments) => arguments.run(&mut out),
            Command::Inspect(arguments) => arguments.run(&mut out),
            Command::Check(arguments) => arguments.run(&mut out),
            Command::Map(arguments) => arguments.run(&mut out),
            Command::Convert(arguments) => {
                // Its workers show progress on standard output.
                drop(out);
                return arguments.run();
            }
            Command::Compare(arguments) => {
                drop(out);
                return arguments.run();
            }
            Command::Dd(arguments) => {
                drop(out);
                return arguments.run();
            }
            Command::Amend(arguments) => {
                drop(out);
                return arguments.run();
            }
            Command::Commit(arguments) => {
                drop(out);
                return arguments.run();
            }
            Command::Rebase(arguments) => {
                drop(out);
                return arguments.run();
            }
            Command::Stream(arguments) => {
                drop(out);
                return arguments.run();
            }
            Command::Fs(arguments) => arguments.run(&mut out),
            Command::Measure(arguments) => arguments.run(&mut out),
            Command::Mkfs(arguments) => arguments.run(&mut out),
            Command::Mkdisk(arguments) => arguments.run(&mut out),
            Command::Resize(arguments) => arguments.run(&mut out),
            Command::Bitmap(arguments) => arguments.run(&mut out),
            Command::Partition(arguments) => arguments.run(&mut out),
            Command::Snapshot(arguments) => {
                // An export shows progress on standard output.
                drop(out);
                return arguments.run();
            }
            Command::Template(arguments) => arguments.run(&mut out),
            Command::Clone(arguments) => arguments.run(&mut out),
            Command::Ls(arguments) => arguments.run(&mut out),
            Command::Show(arguments) => arguments.run(&mut out),
            Command::Config(arguments) => arguments.run(&mut out),
            Command::Diff(arguments) => arguments.run(&mut out),
            Command::Rename(arguments) => arguments.run(),
            Command::Rm(arguments) => arguments.run(),
            Command::Run(arguments) => {
                // The machine writes there.
                drop(out);
                return arguments.run();
            }
            Command::Launch(arguments) => {
                drop(out);
                return arguments.run();
            }
            Command::Doctor(arguments) => arguments.run(&mut out),
            Command::InstallLinks(arguments) => arguments.run(&mut out),
            Command::Completions(arguments) => arguments.run(&mut out),
            Command::Man(arguments) => arguments.run(),
        };
        out.flush()?;
        outcome
    }
}
