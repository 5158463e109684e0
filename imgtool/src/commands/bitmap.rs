//! `imgtool bitmap`: dirty bitmaps of qcow2 images, changed and looked at.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use block::chain::Chain;
use block::{Access, Error, ErrorKind, Result, escape};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use qcow2::{Bitmap, BitmapEdit, DirtyBits, Image};
use serde_json::{Value, json};

use super::Outcome;
use crate::arguments::OpenArgs;
use crate::images::{Opening, qcow2_with};
use crate::output::{self, OutputFormat, human_size};
use crate::size;

/// Change or show the dirty bitmaps of a qcow2 image
///
/// A dirty bitmap records which parts of the disk are written to while it is enabled. Several changes of a bitmap in
/// one call are made in their order, and take effect all at once or, should one fail, not at all.
#[derive(Debug, Args)]
#[command(
    override_usage = "imgtool bitmap <--add|--remove|--clear|--enable|--disable|--merge <SOURCE>>... [OPTIONS] <FILE> <BITMAP>
       imgtool bitmap --ranges [OPTIONS] <FILE> <BITMAP>
       imgtool bitmap --list [OPTIONS] <FILE>",
    after_help = "Examples:
  imgtool bitmap --add disk.qcow2 since-monday
  imgtool bitmap --add --disable -g 4k disk.qcow2 all
  imgtool bitmap --merge since-monday --merge since-friday disk.qcow2 all
  imgtool bitmap --merge since-monday -b disk.qcow2 -F qcow2 copy.qcow2 since-monday
  imgtool bitmap --list disk.qcow2
  imgtool bitmap --ranges --output json disk.qcow2 since-monday"
)]
pub(crate) struct BitmapArgs {
    #[command(flatten)]
    actions: Actions,
    /// List the image's bitmaps
    #[arg(long, conflicts_with = "ranges")]
    list: bool,
    /// List what is dirty in the bitmap, in bytes
    #[arg(long)]
    ranges: bool,
    /// With --add: bytes of the disk that a bit stands for, a power of two from 512 to 2G [default: a cluster, but
    /// from 4k to 64k]
    #[arg(short, long, value_name = "SIZE")]
    granularity: Option<String>,
    /// With --merge: the image that has the bitmaps to merge [default: FILE]
    #[arg(short = 'b', long, value_name = "FILE")]
    source_file: Option<PathBuf>,
    /// Format of that image [default: found out]
    #[arg(short = 'F', long, value_name = "FORMAT", requires = "source_file")]
    source_format: Option<String>,
    /// Format of the image [default: found out]
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    output: OutputFormat,
    /// List from an image that somebody else may be writing to
    #[arg(short = 'U', long)]
    force_share: bool,
    #[command(flatten)]
    open: OpenArgs,
    /// The image
    file: PathBuf,
    /// The bitmap
    #[arg(required_unless_present = "list")]
    bitmap: Option<String>,
}

/// What is done to a bitmap, in the order of the command line.
#[derive(Clone, Debug)]
struct Actions(Vec<Action>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    Add,
    Remove,
    Clear,
    Enable,
    Disable,
    Merge(String),
}

impl Actions {
    const NAMES: [(&'static str, Action, &'static str); 5] = [
        (
            "add",
            Action::Add,
            "Add the bitmap, enabled and with nothing dirty in it",
        ),
        (
            "remove",
            Action::Remove,
            "Remove the bitmap, even if it is inconsistent",
        ),
        (
            "clear",
            Action::Clear,
            "Make the bitmap say that nothing is dirty",
        ),
        (
            "enable",
            Action::Enable,
            "Make the bitmap record what is written from now on",
        ),
        ("disable", Action::Disable, "Make the bitmap stay as it is"),
    ];
}

impl Args for Actions {
    fn augment_args(command: Command) -> Command {
        let flag = |name, help| {
            Arg::new(name)
                .long(name)
                .help(help)
                .action(ArgAction::Append)
                .num_args(0)
                .default_missing_value("")
        };
        let command = Self::NAMES
            .into_iter()
            .fold(command, |command, (name, _, help)| command.arg(flag(name, help)));
        command.arg(
            Arg::new("merge")
                .long("merge")
                .value_name("SOURCE")
                .help("Make dirty in the bitmap what is so in the bitmap SOURCE")
                .action(ArgAction::Append),
        )
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Actions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut actions = Vec::new();
        for (name, action, _) in Self::NAMES {
            let places = matches.indices_of(name).into_iter().flatten();
            actions.extend(places.map(|place| (place, action.clone())));
        }
        let places = matches.indices_of("merge").into_iter().flatten();
        let sources = matches.get_many::<String>("merge").into_iter().flatten();
        actions.extend(
            places
                .zip(sources)
                .map(|(place, source)| (place, Action::Merge(source.clone()))),
        );
        actions.sort_by_key(|(place, _)| *place);
        Ok(Self(actions.into_iter().map(|(_, action)| action).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl BitmapArgs {
    pub(crate) fn run(self, out: &mut dyn Write) -> Outcome {
        self.open.check()?;
        self.check().map_err(|error| error.with_path(&self.file))?;
        if self.list {
            let image = self.open(&self.file, self.format.as_deref(), Access::READ)?;
            list(out, bitmaps_of(&image)?, self.output)?;
            return Ok(0);
        }
        let name = self.bitmap.as_deref().unwrap_or_default();
        if self.ranges {
            let image = self.open(&self.file, self.format.as_deref(), Access::READ)?;
            ranges(out, &bitmaps_of(&image)?.dirty_bits(name)?, self.output)?;
            return Ok(0);
        }
        let sources = self.sources()?;
        let granularity = self.granularity.as_deref();
        let granularity = granularity.map(|text| size::of("-g", text)).transpose()?;
        let image = self.open(&self.file, self.format.as_deref(), Access::WRITE)?;
        bitmaps_of(&image)?.edit_bitmaps(|bitmaps| {
            let mut sources = sources.iter();
            self.actions
                .0
                .iter()
                .try_for_each(|action| action.apply(bitmaps, name, granularity, &mut sources))
        })?;
        image.settle()?;
        Ok(0)
    }

    /// Fails for options that mean nothing together.
    fn check(&self) -> Result<()> {
        let adds = self.actions.0.contains(&Action::Add);
        let merges = self
            .actions
            .0
            .iter()
            .any(|action| matches!(action, Action::Merge(_)));
        let looks = self.list || self.ranges;
        let wrong = match () {
            () if looks && !self.actions.0.is_empty() => "--list and --ranges change nothing",
            () if self.list && self.bitmap.is_some() => "--list lists all bitmaps, and takes no name",
            () if !looks && self.actions.0.is_empty() => {
                "there is nothing to do: give --add, --remove, --clear, --enable, --disable, --merge, --list or --ranges"
            }
            () if self.granularity.is_some() && !adds => "-g is for --add",
            () if self.source_file.is_some() && !merges => "-b is for --merge",
            () if self.force_share && !looks => "-U is for --list and --ranges",
            () => return Ok(()),
        };
        Err(Error::invalid(wrong))
    }

    fn open(&self, path: &Path, format: Option<&str>, access: Access) -> Result<Chain> {
        let access = Access {
            force_share: self.force_share,
            ..access
        };
        let opening = Opening {
            nested: self.open.nested,
            io: self.open.io.into(),
            access,
            direct: false,
        };
        opening.detached(path, format)
    }

    /// What is to be merged from another image, in order. It is closed again: it may be the same.
    fn sources(&self) -> Result<Vec<DirtyBits>> {
        let Some(path) = &self.source_file else {
            return Ok(Vec::new());
        };
        let image = self.open(path, self.source_format.as_deref(), Access::READ)?;
        let image = bitmaps_of(&image)?;
        let sources = self.actions.0.iter().filter_map(|action| match action {
            Action::Merge(source) => Some(image.dirty_bits(source)),
            _ => None,
        });
        sources.collect()
    }
}

impl Action {
    /// Does it. `sources` are the bits that are merged, where they are of another image.
    fn apply<'a>(
        &self,
        bitmaps: &mut BitmapEdit<'_>,
        name: &str,
        granularity: Option<u64>,
        sources: &mut impl Iterator<Item = &'a DirtyBits>,
    ) -> Result<()> {
        match self {
            Self::Add => bitmaps.add(name, granularity, true),
            Self::Remove => bitmaps.remove(name),
            Self::Clear => bitmaps.clear(name),
            Self::Enable => bitmaps.enable(name),
            Self::Disable => bitmaps.disable(name),
            Self::Merge(source) => {
                let own = || bitmaps.dirty_bits(source);
                let bits = sources.next().cloned().map_or_else(own, Ok)?;
                bitmaps.merge(name, &bits)
            }
        }
    }
}

fn bitmaps_of(image: &Chain) -> Result<&Image> {
    qcow2_with(image, "bitmaps")
}

/// The flags as `qemu-img info` names them.
pub(crate) fn flags(bitmap: &Bitmap) -> Vec<&'static str> {
    let flags = [("in-use", bitmap.in_use), ("auto", bitmap.auto)];
    flags
        .into_iter()
        .filter_map(|(name, set)| set.then_some(name))
        .collect()
}

fn list(out: &mut dyn Write, image: &Image, format: OutputFormat) -> Result<(), crate::failure::Failure> {
    let mut rows = Vec::new();
    image.each_bitmap(|bitmap, bits| {
        let dirty = match bits {
            Ok(bits) => Some(bits.ranges().map(|range| range.end - range.start).sum()),
            Err(error) if error.kind() == ErrorKind::Unsupported => None,
            Err(error) => return Err(error),
        };
        rows.push((bitmap.clone(), dirty));
        Ok(())
    })?;
    match format {
        OutputFormat::Json => output::json(out, &rows.iter().map(object).collect())?,
        OutputFormat::Human => {
            let width = rows
                .iter()
                .map(|(bitmap, _)| escape(&bitmap.name).chars().count());
            let width = width.max().unwrap_or(0).max("NAME".len());
            writeln!(
                out,
                "{:<width$}  {:>11}  {:<12}  DIRTY",
                "NAME", "GRANULARITY", "STATE"
            )?;
            for (bitmap, dirty) in &rows {
                let state = match (bitmap.in_use, bitmap.auto) {
                    (true, _) => "inconsistent",
                    (false, true) => "enabled",
                    (false, false) => "disabled",
                };
                let (name, granularity) = (escape(&bitmap.name), human_size(bitmap.granularity()));
                let dirty = dirty.map_or("-".to_owned(), human_size);
                writeln!(out, "{name:<width$}  {granularity:>11}  {state:<12}  {dirty}")?;
            }
        }
    }
    Ok(())
}

/// As in `info`; `count` is how many bytes are dirty, and is missing where that is not known.
fn object((bitmap, dirty): &(Bitmap, Option<u64>)) -> Value {
    let mut object = json!({
        "name": bitmap.name,
        "granularity": bitmap.granularity(),
        "flags": flags(bitmap),
    });
    if let Some(dirty) = dirty {
        object["count"] = (*dirty).into();
    }
    object
}

fn ranges(out: &mut dyn Write, bits: &DirtyBits, format: OutputFormat) -> io::Result<()> {
    match format {
        OutputFormat::Human => {
            writeln!(out, "{:<16}Length", "Offset")?;
            for range in bits.ranges() {
                writeln!(out, "{:<#16x}{:#x}", range.start, range.end - range.start)?;
            }
        }
        OutputFormat::Json => {
            write!(out, "[")?;
            for (number, range) in bits.ranges().enumerate() {
                let between = if number == 0 { "" } else { ",\n" };
                let (start, length) = (range.start, range.end - range.start);
                write!(out, "{between}{{ \"start\": {start}, \"length\": {length}}}")?;
            }
            writeln!(out, "]")?;
        }
    }
    Ok(())
}
