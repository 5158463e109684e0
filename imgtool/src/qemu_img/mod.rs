//! `qemu-img`: the program that scripts and fingers know, over the same library as the native commands.
//!
//! # How it works
//!
//! [`run`] is called instead of the native command line when the program is called by a name that starts with `qemu-img` (see
//! `imgtool install-links`), or as `imgtool qemu-img`. Commands are one file each and thin: they read their options ([`getopt`]), open what
//! the user names ([`image`], [`node`]), call the library, and print. Texts, exit codes and the order of things are those of QEMU 10.0.2
//! as its own tests expect them.
//!
//! What differs from QEMU, and where this is laxer than the native commands, is in docs/qemu-img.md.

#![allow(
    clippy::format_push_string,
    reason = "texts are short, and are read best where they are put together"
)]

mod amend;
mod bench;
mod bitmap;
mod check;
mod commit;
mod compare;
mod console;
mod convert;
mod create;
mod dd;
mod encrypted;
mod format_options;
mod getopt;
mod image;
mod image_options;
mod info;
mod json;
mod key_slots;
mod keyed;
mod map;
mod measure;
mod new_image;
mod node;
mod noted;
mod number;
mod object;
mod object_text;
mod option_list;
mod pages;
mod part;
mod progress;
mod qcow2_words;
mod rebase;
mod refusal;
mod resize;
mod secret;
mod snapshot;
mod stated;
mod throttle;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use block::SnapshotSelector;
use console::Console;
use getopt::Page;
use refusal::Refusal;

use crate::interrupt;

/// What a command gives: an exit code.
type Outcome = Result<u8, Refusal>;

/// A command: what there is to know of it, and the function that it is.
type Command = (&'static Page, fn(&Console, &[String]) -> Outcome);

const COMMANDS: &[Command] = &[
    (&pages::AMEND, amend::run),
    (&pages::BENCH, bench::run),
    (&pages::BITMAP, bitmap::run),
    (&pages::CHECK, check::run),
    (&pages::COMMIT, commit::run),
    (&pages::COMPARE, compare::run),
    (&pages::CONVERT, convert::run),
    (&pages::CREATE, create::run),
    (&pages::DD, dd::run),
    (&pages::INFO, info::run),
    (&pages::MAP, map::run),
    (&pages::MEASURE, measure::run),
    (&pages::REBASE, rebase::run),
    (&pages::RESIZE, resize::run),
    (&pages::SNAPSHOT, snapshot::run),
];

/// The name that the program is called by, if that makes it `qemu-img`.
pub(crate) fn is_called(program: &OsString) -> bool {
    let name = Path::new(program).file_name().unwrap_or_default();
    name.as_encoded_bytes().starts_with(b"qemu-img")
}

/// Runs `qemu-img` with the arguments of a process, the program's name first.
pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
    let program = arguments.first().map(Path::new).and_then(Path::file_name);
    let console = Console::new(program.unwrap_or_default().to_string_lossy().into_owned());
    let text: Option<Vec<String>> = arguments
        .iter()
        .skip(1)
        .map(|text| text.to_str().map(ToOwned::to_owned))
        .collect();
    let outcome = match text {
        Some(text) => dispatch(&console, &text),
        None => Err(Refusal::new(
            "an argument is not UTF-8, and such names are not supported",
        )),
    };
    let outcome = outcome.and_then(|code| {
        console.flush()?;
        Ok(code)
    });
    outcome.map_or_else(
        |refusal| {
            if console.was_interrupted() {
                return interrupt::exit_code().into();
            }
            console.refuse(&refusal);
            refusal.code().into()
        },
        ExitCode::from,
    )
}

fn dispatch(console: &Console, arguments: &[String]) -> Outcome {
    let mut rest = arguments;
    while let Some((option, after)) = rest.split_first().filter(|(first, _)| first.starts_with('-')) {
        rest = after;
        match &**option {
            "-h" | "--help" => return help(console),
            "-V" | "--version" => {
                console.print(version())?;
                return Ok(0);
            }
            // Tracing is for QEMU's developers; there is nothing to trace here.
            "-T" | "--trace" => match rest.split_first() {
                Some((_, after)) => rest = after,
                None => return Err(Refusal::usage(format!("missing argument for option '{option}'"))),
            },
            trace if trace.starts_with("--trace=") || trace.starts_with("-T") => {}
            other => return Err(Refusal::usage(format!("unrecognized option '{other}'"))),
        }
    }
    let Some((name, arguments)) = rest.split_first() else {
        return Err(Refusal::usage("Not enough arguments"));
    };
    match COMMANDS.iter().find(|command| command.0.name == name) {
        Some((_, run)) => run(console, arguments),
        None => Err(Refusal::usage(format!("Command not found: {name}"))),
    }
}

/// What the program is and what commands it has.
fn help(console: &Console) -> Outcome {
    let commands = COMMANDS
        .iter()
        .map(|(page, _)| format!("  {} - {}\n", page.name, page.about));
    console.print(format!(
        "{}\
         QEMU disk image utility, as imgtool has it.  Usage:\n\n  \
         qemu-img [standard options] COMMAND [--help | command options]\n\n\
         Standard options:\n  \
         -h, --help\n     show this help and end\n  \
         -V, --version\n     say which version this is\n  \
         -T, --trace TRACE\n     taken for the sake of scripts: there is nothing to trace\n\n\
         Commands, of which `qemu-img COMMAND --help` says more:\n\n{}\n\
         Exports of NBD servers are opened too (nbd:, nbd+unix:).\n\n\
         Supported formats: blkdebug file host_device luks null-aio null-co qcow2 quorum raw\n",
        version(),
        commands.collect::<String>(),
    ))?;
    Ok(0)
}

fn version() -> String {
    format!(
        "qemu-img version 10.0.2 (imgtool {})\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// What `--help` of a command prints.
fn show(console: &Console, page: &Page) -> Outcome {
    console.print(page.help())?;
    Ok(0)
}

/// The image that is the only operand.
fn one_image(operands: &[String], format: Option<&str>, image_opts: bool) -> Result<image::Spec, Refusal> {
    let [file] = operands else {
        return Err(Refusal::usage("Expecting one image file name"));
    };
    spec(file, format, image_opts)
}

/// An image by its name or, with `--image-opts`, its options.
fn spec(text: &str, format: Option<&str>, image_opts: bool) -> Result<image::Spec, Refusal> {
    if image_opts && format.is_some() {
        return Err(Refusal::new("--image-opts and --format are mutually exclusive"));
    }
    if image_opts {
        option_list::warn_of_short_forms(text, true);
        node::NodeOptions::check_id(text)?;
    }
    Ok(image::Spec::new(text, format, image_opts))
}

/// The snapshot that `-l` asks for.
fn snapshot_param(text: &str) -> Result<SnapshotSelector, Refusal> {
    if text.is_empty() {
        return Ok(SnapshotSelector::Either(String::new()));
    }
    let mut stated = text.to_owned();
    if text.starts_with("snapshot.") {
        option_list::warn_of_short_forms(text, false);
        let pairs = option_list::pairs(text).into_iter();
        let pairs = pairs.map(|(key, value)| format!("{key}={}", value.replace(',', ",,")));
        stated = pairs.collect::<Vec<_>>().join(",");
    }
    SnapshotSelector::parse(&stated).map_err(|_| {
        let wrong = format!("Failed in parsing snapshot param '{text}'");
        let mut keys = option_list::pairs(text).into_iter().map(|pair| pair.0);
        match keys.find(|key| key != "snapshot.id" && key != "snapshot.name") {
            Some(key) if text.starts_with("snapshot.") => {
                Refusal::new(format!("Invalid parameter '{key}'")).with_more(wrong)
            }
            _ => Refusal::new(wrong),
        }
    })
}

/// Whether `--output` asks for JSON.
fn output_format(value: &str) -> Result<bool, Refusal> {
    match value {
        "json" => Ok(true),
        "human" => Ok(false),
        _ => Err(Refusal::usage(
            "--output must be used with human or json as argument.",
        )),
    }
}

/// What `-t` and `-T` say.
#[derive(Clone, Copy, Debug, Default)]
struct CacheMode {
    /// Past the host's page cache.
    direct: bool,
}

/// A cache mode by its name, for the `source` or nothing else.
fn cache_mode(which: &str, name: &str) -> Result<CacheMode, Refusal> {
    let direct = match name {
        "none" | "off" | "directsync" => true,
        "writeback" | "writethrough" | "unsafe" => false,
        _ => return Err(Refusal::new(format!("Invalid {which} cache option: {name}"))),
    };
    Ok(CacheMode { direct })
}

/// A cache mode by its name, for what is written to.
fn target_cache(name: &str) -> Result<CacheMode, Refusal> {
    cache_mode("", name).map_err(|_| Refusal::new(format!("Invalid cache option: {name}")))
}

/// Opens an image that is to be changed.
fn open_to_write(console: &Console, spec: &image::Spec, flags: node::Flags) -> Result<image::Image, Refusal> {
    let found = image::find(spec, flags)?;
    go_on_to_write(console, spec, found, flags)
}

/// Opens what an image that is to be changed is based on.
fn go_on_to_write(
    console: &Console,
    spec: &image::Spec,
    found: image::Found,
    flags: node::Flags,
) -> Result<image::Image, Refusal> {
    let image = image::go_on(spec, found, flags)?;
    warn_of_probing(console, &image.layers[0]);
    Ok(image)
}

/// Says that a raw image is taken for one because nobody said what it is.
fn warn_of_probing(console: &Console, found: &image::Found) {
    if found.probed && found.format == "raw" {
        let file = &found.filename;
        console.note(&format!(
            "WARNING: Image format was not specified for '{file}' and probing guessed raw.\n         \
             Automatically detecting the format is dangerous for raw images, write operations on block 0 will be \
             restricted.\n         \
             Specify the 'raw' format explicitly to remove the restrictions.\n"
        ));
    }
}

/// The active image of a chain, if that is in qcow2.
fn qcow2_of(image: &image::Image) -> Option<&qcow2::Image> {
    let device: &dyn std::any::Any = &**image.device();
    device.downcast_ref()
}

/// The same for a disk in LUKS's own form.
fn luks_of(image: &image::Image) -> Option<&encryption::Image> {
    let device: &dyn std::any::Any = &**image.device();
    device.downcast_ref()
}

/// Bytes a second, at most; 0 is no limit.
fn rate(text: &str) -> Result<Option<std::num::NonZeroU64>, Refusal> {
    let rate = number::disk_size("rate limit", text)?;
    Ok(std::num::NonZeroU64::new(rate))
}
