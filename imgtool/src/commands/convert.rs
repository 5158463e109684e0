//! `imgtool convert`: copy an image into another format, or into the same one anew.

pub(crate) mod bitmaps;
mod streams;

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::chain::Chain;
use block::{
    Access, Backing, BlockDevice, Error, ErrorKind, HostCopy, Result, SnapshotSelector, Storage, escape,
};
use clap::Args;
use ops::{Before, Cancel, Concat, Control, ConvertOptions, Lost, Offload, Salvaged, SparseChain};

use super::Outcome;
use super::commit::rate;
use super::create::no_backing_format;
use crate::arguments::{CacheMode, OpenArgs, SandboxArgs, ThreadArgs, WatchArgs, refused};
use crate::formats::{NewDevice, NewImage};
use crate::image_name::ImageName;
use crate::images::{Opening, backing_path};
use crate::option_list::OptionList;
use crate::sandbox::Names;
use crate::stores::refuse_base;
use crate::target::{Making, is_one_of};
use crate::targets::{Targets, data_path};
use crate::watch::Watch;
use crate::{interrupt, size};
use bitmaps::CopiedBitmaps;

/// Largest -S, in bytes.
const MAX_SPARSE: u64 = 16 << 20;

/// The unit of -S, in bytes.
const SECTOR: u64 = 512;

/// Copy the disk in an image into a new image
///
/// What the image is based on is copied too, unless -B names a backing file for the new one. Zeros take no room in
/// it. The new image is written under another name and gets its own when it is complete; until then, one that it
/// replaces stays as it was. (What a killed run leaves is called .imgtool-PROCESS-N.partial, and removed by the next that
/// makes a file in that directory.) Several images are joined, one after the other. The name - stands for a raw image on
/// standard input, or for standard output, where the new image goes in one piece from the front to the back.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool convert -p -O qcow2 disk.raw disk.qcow2
  imgtool convert -O raw clone.qcow2 flat.raw
  imgtool convert -l before-upgrade -O qcow2 disk.qcow2 old.qcow2
  imgtool convert -c -O qcow2 -o compression_type=zstd disk.raw small.qcow2
  imgtool convert -O qcow2 -B base.qcow2 -F qcow2 clone.qcow2 copy.qcow2
  imgtool convert -n -r 100M -O raw disk.qcow2 /dev/vg0/disk
  imgtool convert --salvage -O qcow2 /dev/failing saved.qcow2
  imgtool convert -O raw disk.qcow2#name:root root.raw
  imgtool convert -n -O qcow2 root.raw disk.qcow2#2
  xz -dc disk.raw.xz | imgtool convert -O qcow2 - disk.qcow2
  imgtool convert -O qcow2 disk.raw - | ssh host 'cat > disk.qcow2'")]
pub(crate) struct ConvertArgs {
    /// Format of the images to copy [default: found out]
    #[arg(short, long = "source-format", value_name = "FORMAT")]
    format: Option<String>,
    /// Format of the new image
    #[arg(short = 'O', long, default_value = "raw", value_name = "FORMAT")]
    target_format: String,
    /// Copy an internal snapshot instead of the disk: its ID or name, or snapshot.id=ID,snapshot.name=NAME
    #[arg(short = 'l', long, value_name = "SNAPSHOT")]
    pub(super) snapshot: Option<String>,
    /// Options of that format, as key=value,key=value; `help` lists them
    #[arg(short, long = "target-options", value_name = "OPTIONS")]
    options: Vec<String>,
    /// Compress the new image
    #[arg(short, long)]
    compress: bool,
    /// How much to compress, from 1 for fast; zlib has 12 levels, zstd 22
    #[arg(long, value_name = "LEVEL", requires = "compress", value_parser = clap::value_parser!(i32).range(1..=22))]
    level: Option<i32>,
    /// Backing file of the new image, whose contents it need not hold; a relative name is looked up from the
    /// directory of the new image
    #[arg(short = 'B', long, value_name = "FILE")]
    backing: Option<String>,
    /// Format of that file
    #[arg(short = 'F', long, value_name = "FORMAT")]
    backing_format: Option<String>,
    /// Shortest run of zeros that is left out, in bytes; 0 leaves out nothing. If it is given, all data is read, and none
    /// of it shared with the image that it comes from [default: 4k]
    #[arg(short = 'S', long, value_name = "SIZE")]
    sparse_size: Option<String>,
    /// Write into an image or device that exists and keep its format, size and options
    #[arg(short = 'n', long)]
    no_create: bool,
    /// With -n: the target reads as zeros already
    #[arg(long, requires = "no_create")]
    target_is_zero: bool,
    /// Write the new image under its own name at once, instead of moving it there when it is complete; what a killed run
    /// leaves there may read as a whole disk
    #[arg(long)]
    in_place: bool,
    /// How the page cache is used for the new image; with all but unsafe it is on disk, safe from a power cut, at the
    /// end, and with unsafe only if it replaces another
    #[arg(
        short = 't',
        long = "target-cache",
        value_enum,
        default_value = "unsafe",
        value_name = "MODE"
    )]
    cache: CacheMode,
    /// How the page cache is used for the images to copy
    #[arg(
        short = 'T',
        long = "source-cache",
        value_enum,
        default_value = "writeback",
        value_name = "MODE"
    )]
    source_cache: CacheMode,
    /// Threads that do the work, for scripts written for other tools
    #[arg(short = 'm', long = "parallel", value_name = "N", conflicts_with = "threads",
        value_parser = clap::value_parser!(u16).range(1..=16))]
    parallel: Option<u16>,
    /// Write out of order, where that is faster
    #[arg(short = 'W', long = "oob")]
    out_of_order: bool,
    /// Leave copying to the host where it can do it, without a look for zeros. Without this, only what the file system can
    /// share between both images is left to it
    #[arg(short = 'C', long = "copy-range-offloading")]
    copy_offloading: bool,
    /// Write so many bytes a second at most
    #[arg(short, long, value_name = "RATE")]
    rate_limit: Option<String>,
    /// Go on where the images to copy cannot be read: what is lost is zeros in the copy, and a list of it is printed at the
    /// end. Nothing is shared with them then
    #[arg(long)]
    salvage: bool,
    /// Copy the dirty bitmaps of the image too: names, granularity, whether they are enabled, and what is dirty. Not with
    /// -l: they are of the disk as it is now
    #[arg(long)]
    bitmaps: bool,
    /// With --bitmaps: leave out those that are inconsistent, with a warning
    #[arg(long, requires = "bitmaps")]
    skip_broken_bitmaps: bool,
    /// Read images that somebody else may be writing to
    #[arg(short = 'U', long)]
    force_share: bool,
    #[command(flatten)]
    threads: ThreadArgs,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    open: OpenArgs,
    #[command(flatten)]
    sandbox: SandboxArgs,
    #[command(flatten)]
    refused: Refused,
    /// The images to copy, and the new image last
    #[arg(required_unless_present = "options", value_name = "FILE")]
    pub(super) files: Vec<PathBuf>,
}

/// Options of other tools that are refused by name.
#[derive(Debug, Args)]
struct Refused {
    #[arg(long, hide = true)]
    target_image_opts: bool,
}

impl Refused {
    fn check(&self) -> Result<()> {
        if self.target_image_opts {
            return Err(refused("--target-image-opts"));
        }
        Ok(())
    }
}

/// What is copied.
struct Source {
    chains: Vec<Chain>,
    /// It is not the whole disk of one chain.
    is_part: bool,
    device: Arc<dyn BlockDevice>,
    /// The same device, if it is to be read whatever happens.
    salvaged: Option<Arc<Salvaged>>,
    /// Those that are copied too.
    bitmaps: CopiedBitmaps,
}

impl Source {
    /// Every file of every chain.
    fn files(&self) -> impl Iterator<Item = &Arc<dyn Storage>> {
        let layers = self.chains.iter().flat_map(Chain::layers);
        layers.flat_map(|layer| std::iter::once(&layer.storage).chain(&layer.data_file))
    }
}

impl ConvertArgs {
    pub(crate) fn run(mut self) -> Outcome {
        if self.files.last().is_some_and(|target| streams::is_output(target)) {
            // Standard output is taken.
            self.watch.show = false;
        }
        self.open.check()?;
        self.refused.check()?;
        let options = OptionList::parse(&self.options)?;
        if options.help {
            NewImage::print_options(&self.target_format, &mut std::io::stdout())??;
            return Ok(0);
        }
        let Some((target, sources)) = self.files.split_last().filter(|(_, sources)| !sources.is_empty())
        else {
            let hint = "imgtool convert -O qcow2 disk.raw disk.qcow2";
            return Err(
                Error::invalid("an image to copy and a new image have to be named")
                    .with_hint(hint)
                    .into(),
            );
        };
        let backing = self.backing.clone();
        let image = NewImage::parse(&self.target_format, options, backing, self.backing_format.clone())
            .map_err(|error| error.with_path(target))?;
        self.check(&image, sources)
            .map_err(|error| error.with_path(target))?;
        let mut copy = self.copy_options()?;
        let name = ImageName::parse(target)?;
        if !self.no_create {
            name.must_be_new()?;
        }
        if streams::is_output(target) || sources.iter().any(|source| streams::is_stream(source)) {
            return self.stream(sources, target, image, copy);
        }
        let mut source = self.source(sources)?;
        self.read_bitmaps(&mut source)?;
        let data_file = image.data_file().map(|name| data_path(target, &name, false));
        let targets = [Some(name.path.clone()), data_file.transpose()?];
        if targets
            .iter()
            .flatten()
            .any(|target| is_one_of(target, source.files()))
        {
            let error = Error::invalid("the target is an image that is read from").with_path(target);
            return Err(error
                .with_hint("give the new image another name, and move it afterwards")
                .into());
        }
        copy.offload = self.offload(&source);
        let cancel = interrupt::watch()?;
        if self.no_create {
            self.fill(target, &source, copy, &cancel)?;
        } else {
            self.make(target, image, &source, copy, &cancel)?;
        }
        Ok(0)
    }

    /// Fails for options that exclude each other.
    fn check(&self, image: &NewImage, sources: &[PathBuf]) -> Result<()> {
        let wrong = match () {
            () if self.no_create && !self.options.is_empty() => {
                "-o says what to make, and -n that nothing is to be made"
            }
            () if self.no_create && image.backing.is_some() => {
                "-B says what to base a new image on, and -n that none is to be made"
            }
            () if self.no_create && self.level.is_some() => {
                "--level is for new images, and -n says that none is to be made"
            }
            () if self.copy_offloading && self.compress => {
                "-C leaves copying to the host, and it cannot compress (-c)"
            }
            () if self.copy_offloading && self.sparse_size.is_some() => {
                "-C leaves copying to the host, and it does not look for zeros (-S)"
            }
            () if self.copy_offloading && self.rate_limit.is_some() => {
                "-C leaves copying to the host, and it keeps to no rate (-r)"
            }
            () if self.copy_offloading && self.salvage => {
                "-C leaves copying to the host, and it does not go on where it cannot read (--salvage)"
            }
            () if self.salvage && sources.iter().any(|source| streams::is_stream(source)) => {
                "--salvage is for images, and standard input cannot be read again"
            }
            () if self.no_create && self.in_place => "-n writes in place anyway",
            () if self.bitmaps && self.files.iter().any(|file| streams::is_output(file)) => {
                "bitmaps cannot be copied from standard input or to standard output (--bitmaps)"
            }
            () if self.bitmaps && self.snapshot.is_some() => {
                "bitmaps say what has changed on the disk up to now, not in a snapshot (--bitmaps and -l)"
            }
            () if self.compress && image.format() == "raw" => "a raw image cannot be compressed",
            () if image.format() == "luks" && self.files.iter().any(|file| streams::is_output(file)) => {
                "a luks image cannot be written to standard output"
            }
            () if self.compress && image.is_preallocated() => {
                "an image that is compressed cannot be preallocated"
            }
            () if self.compress && image.is_encrypted() => "an encrypted image cannot be compressed",
            () if self.compress && image.data_file().is_some() => {
                "an image with a data file cannot be compressed"
            }
            () if self.snapshot.is_some() && sources.len() > 1 => {
                "-l is for one image, and there are several to copy"
            }
            () if self.snapshot.is_some() && sources.iter().any(|source| streams::is_stream(source)) => {
                "-l is for images, and standard input has no snapshots"
            }
            () if image.backing.is_some() && sources.len() > 1 => {
                "images that are joined cannot be based on one"
            }
            () if self.level.is_some_and(|level| {
                image
                    .compression()
                    .is_some_and(|kind| !kind.levels().contains(&level))
            }) =>
            {
                "zlib has no such level: there are 1 to 12"
            }
            () if self.bitmaps && !self.no_create => return bitmaps::check_new(image),
            () => return Ok(()),
        };
        Err(Error::invalid(wrong))
    }

    fn copy_options(&self) -> Result<ConvertOptions> {
        let mut options = ConvertOptions::new();
        if let Some(text) = &self.sparse_size {
            options.sparse = size::of("-S", text)?;
            if options.sparse > MAX_SPARSE || !options.sparse.is_multiple_of(SECTOR) {
                let message = format!("-S {text}: it must be a multiple of {SECTOR} and at most 16M");
                return Err(Error::invalid(message));
            }
        }
        if let Some(threads) = self
            .threads
            .threads
            .or(self.parallel)
            .and_then(|n| NonZeroUsize::new(n.into()))
        {
            options.threads = threads;
        }
        options.compress = self.compress;
        options.rate = self.rate_limit.as_deref().map(rate).transpose()?;
        options.in_order = !self.out_of_order;
        if self.source_cache.direct() || self.cache.direct() {
            options.chunk = ops::DIRECT_CHUNK;
        }
        Ok(options)
    }

    fn opening(&self) -> Opening {
        Opening {
            nested: self.open.nested,
            io: self.open.io.into(),
            access: Access {
                write: false,
                force_share: self.force_share,
            },
            direct: self.source_cache.direct(),
        }
    }

    fn source(&self, paths: &[PathBuf]) -> Result<Source> {
        self.source_in(paths, self.format.as_deref())
    }

    fn source_in(&self, paths: &[PathBuf], format: Option<&str>) -> Result<Source> {
        let names = paths
            .iter()
            .map(|path| ImageName::parse(path))
            .collect::<Result<Vec<_>>>()?;
        let snapshot = self
            .snapshot
            .as_deref()
            .map(SnapshotSelector::parse)
            .transpose()?;
        let open = |name: &ImageName| match &snapshot {
            Some(snapshot) => self.opening().snapshot(&name.path, format, snapshot),
            None => self.opening().chain(&name.path, format),
        };
        let chains = names.iter().map(open).collect::<Result<Vec<_>>>()?;
        let mut devices = Vec::new();
        for (name, chain) in names.iter().zip(&chains) {
            devices.push(name.on(SparseChain::device(chain)?)?);
        }
        let device = match devices.as_slice() {
            [only] => only.clone(),
            _ => Arc::new(Concat::new(devices)?),
        };
        let salvaged = self.salvage.then(|| Arc::new(Salvaged::new(Arc::clone(&device))));
        let is_part = chains.len() > 1 || names.iter().any(|name| name.partition.is_some());
        Ok(Source {
            chains,
            is_part,
            device: salvaged
                .as_ref()
                .map_or(device, |salvaged| Arc::clone(salvaged) as _),
            salvaged,
            bitmaps: CopiedBitmaps::default(),
        })
    }

    /// Reads the bitmaps that are to be copied with the disk.
    fn read_bitmaps(&self, source: &mut Source) -> Result<()> {
        if !self.bitmaps {
            return Ok(());
        }
        let [chain] = source.chains.as_slice() else {
            return Err(Error::invalid(
                "bitmaps can be copied from one image only (--bitmaps)",
            ));
        };
        if source.is_part {
            let message = "bitmaps are of a whole disk, and cannot be copied with a partition (--bitmaps)";
            return Err(Error::invalid(message));
        }
        source.bitmaps = CopiedBitmaps::of(chain, &mut |_, error| {
            if self.skip_broken_bitmaps {
                // With nobody left to read it there is nothing to be done about that.
                let _ = writeln!(std::io::stderr(), "imgtool: warning: {error}: it is not copied");
                return Ok(());
            }
            let hint = "leave it out with --skip-broken-bitmaps, or remove it with `imgtool bitmap --remove`";
            Err(error.with_hint(hint))
        })?;
        Ok(())
    }

    /// Copies into a new image.
    fn make(
        &self,
        path: &Path,
        mut image: NewImage,
        source: &Source,
        copy: ConvertOptions,
        cancel: &Cancel,
    ) -> Result<()> {
        let source_size = source.device.size();
        image.size.get_or_insert(source_size);
        let size = image.disk_size();
        if size < source_size {
            let message =
                format!("the new image is to have {size} bytes, fewer than the disk's {source_size}");
            return Err(Error::invalid(message).with_path(path));
        }
        let bitmaps = source
            .bitmaps
            .resized(size)
            .map_err(|error| error.with_path(path))?;
        let before = |backing: &Chain| before(source, backing);
        self.make_with(path, image, copy, cancel, before, |target, copy| {
            self.copy(source, target.device(), copy, cancel)?;
            bitmaps.add_to_new(target)
        })
    }

    /// Makes a new image and has `fill` copy into it. `before` says what it reads as over a backing.
    fn make_with(
        &self,
        path: &Path,
        mut image: NewImage,
        mut copy: ConvertOptions,
        cancel: &Cancel,
        before: impl FnOnce(&Chain) -> Before,
        fill: impl FnOnce(&NewDevice, &ConvertOptions) -> Result<()>,
    ) -> Result<()> {
        image.check().map_err(|error| error.with_path(path))?;
        let backing = self.backing_chain(path, &image)?;
        if let Some(backing) = &backing {
            // What a disk grows by reads as zeros, and not as the backing.
            image.size.get_or_insert(backing.size());
            if is_one_of(path, backing.layers().iter().map(|layer| &layer.storage)) {
                return Err(
                    Error::invalid("the new image would replace one that it is based on").with_path(path),
                );
            }
            copy.before = before(backing);
        }
        let making = Making {
            in_place: self.in_place,
            direct: self.cache.direct(),
            io: self.open.io.into(),
            durable: self.cache != CacheMode::Unsafe,
            private: false,
            ..Making::default()
        };
        let targets = Targets::new(path, &image, making)?;
        let target = targets.image();
        if !targets.are_zero(&image) {
            copy.before = Before::Unknown;
        }
        if target.is_device() && image.format() == "raw" {
            copy.in_order = false;
        }
        // Room that was to be reserved for the image is not to be shared with another.
        copy.offload = copy.offload.take().filter(|_| !image.is_preallocated());
        let left = target.if_dropped();
        let copied = (|| {
            targets.create(&image)?;
            let below = backing.map_or(Backing::None, |chain| Backing::Device(chain.device()));
            let new = targets.open(&image, below, self.level)?;
            self.sandbox
                .confine(Names::Finish(&targets.directories()), self.open.io);
            fill(&new, &copy)?;
            new.close()?;
            targets.finish(cancel)
        })();
        copied.map_err(|error| interrupted(error, path, left))
    }

    /// Copies into an image that exists.
    fn fill(&self, path: &Path, source: &Source, copy: ConvertOptions, cancel: &Cancel) -> Result<()> {
        self.fill_with(path, copy, |chain, target, copy| {
            let bitmaps = source.bitmaps.resized(chain.size())?;
            bitmaps.check_target(chain)?;
            self.copy(source, target, copy, cancel)?;
            bitmaps.add_to_target(chain)
        })
    }

    /// Has `fill` copy into an image that exists.
    fn fill_with(
        &self,
        path: &Path,
        mut copy: ConvertOptions,
        fill: impl FnOnce(&Chain, &dyn BlockDevice, &ConvertOptions) -> Result<()>,
    ) -> Result<()> {
        let opening = Opening {
            access: Access::WRITE,
            direct: self.cache.direct(),
            ..self.opening()
        };
        let name = ImageName::parse(path)?;
        let target = opening.chain(&name.path, Some(&self.target_format))?;
        refuse_base(&target.layers()[0].path)?;
        let disk = name.on(target.device())?;
        copy.before = if self.target_is_zero {
            Before::Zeros
        } else {
            Before::Unknown
        };
        if self.target_is_zero && target.layers().len() > 1 {
            let message = "it has a backing file, and does not read as zeros because it is new";
            return Err(Error::invalid(message)
                .with_path(path)
                .with_hint("leave out --target-is-zero"));
        }
        self.sandbox.confine(Names::None, self.open.io);
        let copied = fill(&target, &*disk, &copy).and_then(|()| target.settle());
        copied.map_err(|error| interrupted(error.with_path(path), path, "its contents are incomplete"))
    }

    /// What is left to the host: to share what it can with a new image, and more only if that was asked for.
    fn offload(&self, source: &Source) -> Option<Offload> {
        let how = match (self.copy_offloading, self.no_create) {
            (true, _) => HostCopy::Any,
            (false, false) => HostCopy::Reflink,
            (false, true) => return None,
        };
        match source.chains.as_slice() {
            [chain] if self.sparse_size.is_none() && !self.salvage && !source.is_part => {
                Some(Offload::new(chain, how))
            }
            _ => None,
        }
    }

    fn copy(
        &self,
        source: &Source,
        target: &dyn BlockDevice,
        copy: &ConvertOptions,
        cancel: &Cancel,
    ) -> Result<()> {
        let watch = Watch::new(&self.watch);
        let report = |progress| watch.report(progress);
        let control = Control::new(cancel.clone(), &report);
        let result = ops::convert(&*source.device, target, copy, &control);
        watch.finish();
        if let (Ok(()), Some(salvaged), false) = (&result, &source.salvaged, self.watch.quiet) {
            tell_lost(&source.chains[0].layers()[0].path, &salvaged.lost());
        }
        result
    }

    /// What the new image is to be based on.
    fn backing_chain(&self, path: &Path, image: &NewImage) -> Result<Option<Chain>> {
        let Some(backing) = &image.backing else {
            return Ok(None);
        };
        let file = backing_path(path, &backing.name);
        let Some(format) = &backing.format else {
            return Err(no_backing_format(self.opening(), path, &file, &backing.name));
        };
        self.opening().chain(&file, Some(format)).map(Some)
    }
}

/// What a new image over `backing` reads as: a part of the source's own chain if it is one, or else whatever a look
/// at its contents says.
fn before(source: &Source, backing: &Chain) -> Before {
    let id = backing.layers()[0].storage.file_id();
    if let [chain] = source.chains.as_slice()
        && !source.is_part
    {
        for (depth, layer) in (0..).zip(chain.layers()) {
            if depth > 0 && id.is_some() && layer.storage.file_id() == id {
                return Before::Layers {
                    depth,
                    size: backing.size(),
                };
            }
        }
    }
    Before::Device(backing.device())
}

/// Lists what could not be read. With nobody left to read that there is nothing to be done about it.
fn tell_lost(path: &Path, lost: &Lost) {
    let path = path.to_string_lossy();
    let warn = |text: String| {
        let _ = writeln!(std::io::stderr(), "imgtool: warning: {}: {text}", escape(&path));
    };
    for (start, end) in &lost.runs {
        let len = end - start;
        warn(format!(
            "{len} bytes at offset {start} cannot be read, and are zeros in the copy"
        ));
    }
    if let Some(error) = &lost.error {
        let places = match (lost.runs.len(), lost.incomplete) {
            (_, true) => format!("in more than {} places", lost.runs.len()),
            (1, _) => "in one place".to_owned(),
            (places, _) => format!("in {places} places"),
        };
        let error = error.to_string();
        warn(format!(
            "{} bytes {places} are lost; the first error: {}",
            lost.bytes,
            escape(&error)
        ));
    }
}

/// Says what an interrupt has left behind.
pub(super) fn interrupted(error: Error, path: &Path, left: &str) -> Error {
    match error.kind() {
        ErrorKind::Interrupted => {
            Error::new(ErrorKind::Interrupted, format!("interrupted; {left}")).with_path(path)
        }
        _ => error,
    }
}
