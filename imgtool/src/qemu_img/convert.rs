//! `qemu-img convert`.
//!
//! The sources are joined to one disk, the target is made or opened, and the engine copies. Like every new image, the target takes the
//! place of an older file when it is whole. What QEMU counts as progress is data: [`Pieces`] knows how much of it lies in front of what
//! has been dealt with.

use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::{Arc, Mutex, PoisonError};

use block::{Backing, BlockDevice, HostCopy, SnapshotSelector};
use ops::{Before, Concat, Control, ConvertOptions, Offload, Salvaged, SparseChain};

use super::console::Console;
use super::create::could_not_create;
use super::format_options::FormatOptions;
use super::getopt::Options;
use super::image::{self, Image, Spec};
use super::node::Flags;
use super::noted::Noted;
use super::progress::Progress;
use super::refusal::{Refusal, reason};
use super::secret::Secrets;
use super::stated::Stated;
use super::{Outcome, cache_mode, create, new_image, number, option_list, pages};
use crate::commands::convert::bitmaps::CopiedBitmaps;
use crate::formats::NewImage;
use crate::sandbox::{self, Names};
use crate::target::Making;
use crate::targets::Targets;

/// Bytes that QEMU copies between two reports of progress.
const PIECE: u64 = 2 << 20;

#[derive(Debug, Default)]
struct Wanted {
    format: Option<String>,
    out_format: Option<String>,
    backing: Option<String>,
    backing_format: Option<String>,
    options: Option<String>,
    snapshot: Option<SnapshotSelector>,
    sparse: Option<u64>,
    rate: Option<NonZeroU64>,
    threads: Option<NonZeroUsize>,
    offload: bool,
    compress: bool,
    no_create: bool,
    out_of_order: bool,
    image_opts: bool,
    target_image_opts: bool,
    salvage: bool,
    target_is_zero: bool,
    bitmaps: bool,
    skip_broken: bool,
    show: bool,
    quiet: bool,
    cache: Option<String>,
    source_cache: Option<String>,
    force_share: bool,
    secrets: Secrets,
}

pub(super) fn run(console: &Console, arguments: &[String]) -> Outcome {
    let mut wanted = Wanted::default();
    let mut options = Options::new(&pages::CONVERT, arguments);
    while let Some((name, value)) = options.next()? {
        if name == "h" {
            return super::show(console, &pages::CONVERT);
        }
        wanted.take(console, name, value)?;
    }
    let files = options.operands();
    wanted.check()?;
    let target = files.last().filter(|_| files.len() > 1);
    if option_list::asks_for_help(wanted.options.as_deref()) {
        console.print(new_image::help(wanted.out_format(), target.map(|name| &**name))?)?;
        return Ok(0);
    }
    let Some((target, sources)) = files.split_last().filter(|(_, sources)| !sources.is_empty()) else {
        return Err(Refusal::new("Must specify image file name"));
    };
    let progress = Progress::new(console, wanted.show && !wanted.quiet, 1.0);
    let result = wanted.convert(console, sources, target, &progress);
    if result.is_ok() {
        progress.end_at(100.0);
    }
    progress.end();
    result.map(|()| 0)
}

impl Wanted {
    fn take(&mut self, console: &Console, name: &str, value: String) -> Result<(), Refusal> {
        match name {
            "f" => self.format = Some(value),
            "O" => self.out_format = Some(value),
            "B" => self.backing = Some(value),
            "F" => self.backing_format = Some(value),
            "C" => self.offload = true,
            "c" => self.compress = true,
            "o" => option_list::accumulate(&mut self.options, &value)?,
            "l" => {
                self.snapshot = Some(super::snapshot_param(&value)?);
            }
            "S" => self.sparse = Some(sparse(&value)?),
            "p" => self.show = true,
            "q" => self.quiet = true,
            "t" => self.cache = Some(value),
            "T" => self.source_cache = Some(value),
            "n" => self.no_create = true,
            "m" => self.threads = Some(threads(&value)?),
            "W" => self.out_of_order = true,
            "U" => self.force_share = true,
            "r" => self.rate = super::rate(&value)?,
            "image-opts" | "source-image-opts" => self.image_opts = true,
            "target-image-opts" => self.target_image_opts = true,
            "salvage" => self.salvage = true,
            "target-is-zero" => self.target_is_zero = true,
            "bitmaps" => self.bitmaps = true,
            "skip-broken-bitmaps" => self.skip_broken = true,
            _ => self.secrets.add(console, &value)?,
        }
        Ok(())
    }

    fn out_format(&self) -> &str {
        self.out_format.as_deref().unwrap_or("raw")
    }

    /// Fails for options that exclude each other.
    fn check(&self) -> Result<(), Refusal> {
        let wrong = match () {
            () if self.skip_broken && !self.bitmaps => "Use of --skip-broken-bitmaps requires --bitmaps",
            () if self.target_image_opts && !self.no_create => "--target-image-opts requires use of -n flag",
            () if self.no_create && self.options.is_some() => "-o has no effect when skipping image creation",
            () if self.target_is_zero && !self.no_create => "--target-is-zero requires use of -n flag",
            () if self.offload && self.compress => "Cannot enable copy offloading when -c is used",
            () if self.offload && self.sparse.is_some() => "Cannot enable copy offloading when -S is used",
            () if self.offload && self.salvage => "Cannot use copy offloading in salvaging mode",
            () => return Ok(()),
        };
        Err(Refusal::new(wrong))
    }

    fn convert(
        &self,
        console: &Console,
        sources: &[String],
        target: &str,
        progress: &Progress<'_>,
    ) -> Result<(), Refusal> {
        if !self.no_create {
            new_image::can_be_made(self.out_format())?;
        }
        let source = self.open_sources(sources)?;
        let pieces = Pieces::of(&*source.plain, self.salvage)?;
        self.warn(console, &pieces.unknown, &[]);
        let report = |at: ops::Progress| pieces.report(at.done, progress);
        let cancel = console.stop_orderly()?;
        let control = Control::new(cancel.clone(), &report);
        let job = Job {
            source: &source,
            pieces: &pieces,
            control: &control,
        };
        let copied = if self.no_create {
            self.fill(console, &job, target)
        } else {
            self.make(console, &job, target, &cancel)
        };
        copied?;
        if let Some(salvaged) = &source.salvaged {
            let lost: Vec<(u64, u64)> = salvaged
                .lost()
                .runs
                .iter()
                .map(|(start, end)| (*start, *end))
                .collect();
            self.warn(console, &pieces.unknown, &lost);
        }
        Ok(())
    }

    fn open_sources(&self, names: &[String]) -> Result<Source, Refusal> {
        let flags = Flags {
            force_share: self.force_share,
            direct: self.source_cache()?,
            ..Flags::default()
        };
        if self.snapshot.is_some() && names.len() > 1 {
            return Err(Refusal::new("No support for concatenating multiple snapshot"));
        }
        let open = |name: &String| {
            let spec = super::spec(name, self.format.as_deref(), self.image_opts)?;
            let opened = image::open_snapshot(&spec, flags, self.snapshot.as_ref());
            opened.map_err(|refusal| match &self.snapshot {
                Some(_) if refusal.text().starts_with("Failed to load snapshot") => refusal,
                _ => image::could_not_open(&spec)(refusal),
            })
        };
        let images = names.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let failed = |error: block::Error| {
            Refusal::new(format!("error while reading block status: {}", reason(&error)))
        };
        let devices = images
            .iter()
            .map(|image| SparseChain::device(&image.chain).map_err(failed));
        let devices = devices.collect::<Result<Vec<_>, _>>()?;
        let device: Arc<dyn BlockDevice> = match devices.as_slice() {
            [only] => only.clone(),
            _ => Arc::new(Concat::new(devices).map_err(failed)?),
        };
        let salvaged = self.salvage.then(|| Arc::new(Salvaged::new(device.clone())));
        Ok(Source {
            device: match &salvaged {
                Some(salvaged) => salvaged.clone(),
                None => device.clone(),
            },
            plain: device,
            salvaged,
            images,
        })
    }

    /// The bitmaps that are to be copied.
    fn bitmaps_of(&self, console: &Console, source: &Source) -> Result<CopiedBitmaps, Refusal> {
        if !self.bitmaps {
            return Ok(CopiedBitmaps::default());
        }
        let [image] = source.images.as_slice() else {
            return Err(Refusal::new("Copying bitmaps only possible with single source"));
        };
        if !can_have_bitmaps(image.layers[0].header.as_ref()) {
            return Err(Refusal::new("Source lacks bitmap support"));
        }
        let mut broken = None;
        let copied = CopiedBitmaps::of(&image.chain, &mut |bitmap, error| {
            let name = &bitmap.name;
            if self.skip_broken {
                if !self.quiet {
                    console.error(&format!("warning: Skipping inconsistent bitmap '{name}'"));
                }
                return Ok(());
            }
            broken = Some(
                Refusal::new(format!("Cannot copy inconsistent bitmap '{name}'"))
                    .with_hint("Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it"),
            );
            Err(error)
        });
        copied.map_err(|error| broken.unwrap_or_else(|| Refusal::new(error.message().to_owned())))
    }

    fn copy_options(&self, source: &Source) -> Result<ConvertOptions, Refusal> {
        let mut copy = ConvertOptions::new();
        copy.sparse = self.sparse.unwrap_or(copy.sparse);
        copy.threads = self.threads.unwrap_or(copy.threads);
        if self.source_cache()? || self.target_cache()? {
            copy.chunk = ops::DIRECT_CHUNK;
        }
        copy.compress = self.compress;
        copy.in_order = !self.out_of_order;
        copy.rate = self.rate;
        let how = match (self.offload, self.no_create) {
            (true, _) => Some(HostCopy::Any),
            (false, false) => Some(HostCopy::Reflink),
            (false, true) => None,
        };
        if let ([image], Some(how)) = (source.images.as_slice(), how)
            && self.sparse.is_none()
            && !self.salvage
            && image.layers.iter().all(|layer| layer.node.child.is_none())
        {
            copy.offload = Some(Offload::new(&image.chain, how));
        }
        Ok(copy)
    }

    /// Copies into a new image.
    fn make(
        &self,
        console: &Console,
        job: &Job<'_>,
        target: &str,
        cancel: &ops::Cancel,
    ) -> Result<(), Refusal> {
        let source = job.source;
        let format = self.out_format();
        let mut options = new_image::options_of(format, true)?;
        let path = create::target_path(target)?;
        options.parse(self.options.as_deref().unwrap_or_default())?;
        self.add_backing(&mut options, source)?;
        // Whatever -o says.
        options.set("size", &source.device.size().to_string())?;
        self.check_compression(&options)?;
        let bitmaps = self.bitmaps_of(console, source)?;
        let converting =
            |refusal: Refusal| refusal.after(format!("{target}: error while converting {format}: "));
        let new = new_image::image(format, &options, &self.secrets).map_err(converting)?;
        if image_is_read(source, &path) {
            return Err(converting(create::in_use(&path)));
        }
        if create::takes_nothing(&path, &new) {
            return Ok(());
        }
        let making = Making {
            direct: self.target_cache()?,
            ..create::making()
        };
        let targets = create::begin(&path, format, &new, making).map_err(converting)?;
        let has_bitmaps = new
            .qcow2()
            .is_some_and(|options| options.version >= qcow2::Version::V3);
        if self.bitmaps && !has_bitmaps {
            return Err(no_bitmaps(format));
        }
        create::lay_out(&path, format, &new, &targets).map_err(converting)?;
        let backing = self.open_backing(&options, &path, target)?;
        let mut copy = self.copy_options(source)?;
        copy.offload = copy.offload.filter(|_| !new.is_preallocated());
        let below = match &backing {
            None => Backing::None,
            Some(image) => {
                copy.before = before(source, image);
                Backing::Device(image.chain.device())
            }
        };
        if !targets.are_zero(&new) {
            copy.before = Before::Unknown;
        }
        fill_new(job, &bitmaps, &new, &targets, below, &copy)?;
        let finished = targets.finish(cancel);
        finished.map_err(|error| converting(could_not_create(&path, format, &error)))
    }

    /// Copies into an image that exists.
    fn fill(&self, console: &Console, job: &Job<'_>, target: &str) -> Result<(), Refusal> {
        let source = job.source;
        let bitmaps = self.bitmaps_of(console, source)?;
        let flags = Flags {
            write: true,
            direct: self.target_cache()?,
            ..Flags::default()
        };
        let spec = if self.target_image_opts {
            super::spec(target, self.out_format.as_deref(), true)?
        } else {
            Spec::new(target, Some(self.out_format()), false)
        };
        let opened = image::open(&spec, flags)?;
        opened.layers[0].refuse_base()?;
        let header = opened.layers[0].header.as_ref();
        if self.bitmaps && !can_have_bitmaps(header) {
            return Err(no_bitmaps(opened.layers[0].format));
        }
        let has_backing = opened.layers.len() > 1;
        if self.target_is_zero && has_backing {
            let text = "Cannot use --target-is-zero when the destination image has a backing file";
            return Err(Refusal::new(text));
        }
        self.check_compression_of(&**opened.device())?;
        if opened.device().size() < source.device.size() {
            return Err(Refusal::new("output file is smaller than input file"));
        }
        let mut copy = self.copy_options(source)?;
        copy.before = if self.target_is_zero {
            Before::Zeros
        } else {
            Before::Unknown
        };
        let words = |error: block::Error| Refusal::new(error.message().to_owned());
        let bitmaps = bitmaps.resized(opened.device().size()).map_err(words)?;
        if let Some(name) = bitmaps.known_to(&opened.chain).map_err(words)? {
            let text = format!("Failed to create bitmap {name}: Bitmap already exists: {name}");
            return Err(Refusal::new(text));
        }
        sandbox::confine(Names::None, false);
        let target = opened.device().clone();
        let stated = header.is_some_and(|header| header.version >= qcow2::Version::V3);
        if stated && !self.target_is_zero {
            job.copy(&Stated(target), &copy)?;
        } else {
            job.copy(&*target, &copy)?;
        }
        bitmaps.add_to_target(&opened.chain).map_err(words)?;
        opened.device().settle().map_err(|error| not_closed(&error))
    }

    /// Whether sources are read past the page cache.
    fn source_cache(&self) -> Result<bool, Refusal> {
        let mode = self
            .source_cache
            .as_deref()
            .map(|name| cache_mode("source", name));
        Ok(mode.transpose()?.is_some_and(|mode| mode.direct))
    }

    /// The same for the target.
    fn target_cache(&self) -> Result<bool, Refusal> {
        match &self.cache {
            None => Ok(false),
            Some(name) => match cache_mode("source", name) {
                Ok(mode) => Ok(mode.direct),
                Err(_) => Err(Refusal::new(format!("Invalid cache option: {name}"))),
            },
        }
    }

    fn add_backing(&self, options: &mut FormatOptions, source: &Source) -> Result<(), Refusal> {
        for (key, value, what) in [
            ("backing_file", &self.backing, "Backing file"),
            ("backing_fmt", &self.backing_format, "Backing format"),
        ] {
            let Some(value) = value else { continue };
            if !options.has(key) {
                let format = self.out_format();
                return Err(Refusal::new(format!(
                    "{what} not supported for file format '{format}'"
                )));
            }
            options.set(key, value)?;
        }
        if options.get("backing_file").is_none() {
            return Ok(());
        }
        if source.images.len() > 1 {
            return Err(Refusal::new(
                "Having a backing file for the target makes no sense when concatenating multiple input images",
            ));
        }
        if options.get("backing_fmt").is_none() {
            return Err(Refusal::new(
                "Use of backing file requires explicit backing format",
            ));
        }
        Ok(())
    }

    fn check_compression(&self, options: &FormatOptions) -> Result<(), Refusal> {
        let wrong = match () {
            () if !self.compress => return Ok(()),
            () if self.out_format() != "qcow2" => "Compression not supported for this file format",
            () if options.is_on("encryption") || options.get("encrypt.format").is_some() => {
                "Compression and encryption not supported at the same time"
            }
            () if options.get("preallocation").is_some_and(|mode| mode != "off") => {
                "Compression and preallocation not supported at the same time"
            }
            () => return Ok(()),
        };
        Err(Refusal::new(wrong))
    }

    fn check_compression_of(&self, device: &dyn BlockDevice) -> Result<(), Refusal> {
        if self.compress && device.info().format != "qcow2" {
            return Err(Refusal::new("Compression not supported for this file format"));
        }
        Ok(())
    }

    /// What the new image is to be based on.
    fn open_backing(
        &self,
        options: &FormatOptions,
        path: &str,
        target: &str,
    ) -> Result<Option<Image>, Refusal> {
        let Some(name) = options.get("backing_file") else {
            return Ok(None);
        };
        let full = create::backing_of(path, name);
        let flags = Flags {
            force_share: self.force_share,
            ..Flags::default()
        };
        let opened = image::open_spec(&Spec::new(&full, options.get("backing_fmt"), false), flags);
        let prefix = format!("Could not open '{target}': Could not open backing file: ");
        opened.map(Some).map_err(|refusal| refusal.after(prefix))
    }

    /// Says what could not be read, in the order of the disk: that nothing is known of places, and sectors that are lost.
    fn warn(&self, console: &Console, unknown: &[(u64, String)], lost: &[(u64, u64)]) {
        if self.quiet {
            return;
        }
        let mut lines: Vec<(u64, String)> = unknown
            .iter()
            .map(|(offset, why)| {
                (
                    *offset,
                    format!("error while reading block status at offset {offset}: {why}"),
                )
            })
            .collect();
        for (start, end) in lost {
            for offset in (*start..*end).step_by(512) {
                lines.push((
                    offset,
                    format!("error while reading offset {offset}: Input/output error"),
                ));
            }
        }
        lines.sort_by_key(|line| line.0);
        for (_, line) in lines {
            console.error(&format!("warning: {line}"));
        }
    }
}

/// What is copied.
struct Source {
    images: Vec<Image>,
    plain: Arc<dyn BlockDevice>,
    /// What is read: the same or, if it is to be read whatever happens, the next.
    device: Arc<dyn BlockDevice>,
    /// The same device, if it is to be read whatever happens.
    salvaged: Option<Arc<Salvaged>>,
}

/// What is copied, and who is told how far it is.
struct Job<'a> {
    source: &'a Source,
    pieces: &'a Pieces,
    control: &'a Control<'a>,
}

impl Job<'_> {
    fn copy(&self, target: &dyn BlockDevice, options: &ConvertOptions) -> Result<(), Refusal> {
        let (read, written) = (Noted::new(&*self.source.device), Noted::new(target));
        ops::convert(&read, &written, options, self.control).map_err(|error| {
            let (what, offset) = match read.failed_at() {
                Some(offset) => ("reading", offset),
                None => (
                    "writing",
                    written.failed_at().or(error.offset()).unwrap_or_default(),
                ),
            };
            let offset = self.pieces.start_of(offset);
            Refusal::new(format!("error while {what} at byte {offset}: {}", reason(&error)))
        })
    }
}

/// Whether an image can have dirty bitmaps.
fn can_have_bitmaps(header: Option<&qcow2::Header>) -> bool {
    header.is_some_and(|header| header.version >= qcow2::Version::V3)
}

fn no_bitmaps(format: &str) -> Refusal {
    Refusal::new(format!("Format driver '{format}' does not support bitmaps"))
}

/// Copies into an image that was just made.
fn fill_new(
    job: &Job<'_>,
    bitmaps: &CopiedBitmaps,
    new: &NewImage,
    targets: &Targets,
    below: Backing,
    copy: &ConvertOptions,
) -> Result<(), Refusal> {
    let device = targets
        .open(new, below, None)
        .map_err(|error| image::engine_words(&error))?;
    if device.device().size() < job.source.device.size() {
        return Err(Refusal::new("output file is smaller than input file"));
    }
    sandbox::confine(Names::Finish(&targets.directories()), false);
    job.copy(device.device(), copy)?;
    let bitmaps = bitmaps.resized(device.device().size());
    let added = bitmaps.and_then(|bitmaps| bitmaps.add_to_new(&device));
    added.map_err(|error| Refusal::new(error.message().to_owned()))?;
    device.close().map_err(|error| not_closed(&error))
}

/// What a new image over `backing` reads as: a part of the source's own chain if it is one, or else whatever a look at its
/// contents says.
fn before(source: &Source, backing: &Image) -> Before {
    let id = backing.layers[0].node.file().file_id();
    if let [image] = source.images.as_slice() {
        for (depth, layer) in (0..).zip(&image.layers) {
            if depth > 0 && id.is_some() && layer.node.file().file_id() == id {
                return Before::Layers {
                    depth,
                    size: backing.device().size(),
                };
            }
        }
    }
    Before::Device(backing.chain.device())
}

fn image_is_read(source: &Source, path: &str) -> bool {
    source.images.iter().any(|image| image::is_same_file(image, path))
}

/// Why what was written did not all get to where it was to be.
fn not_closed(error: &block::Error) -> Refusal {
    Refusal::new(format!("error while writing at byte 0: {}", reason(error)))
}

fn sparse(text: &str) -> Result<u64, Refusal> {
    const MAX: u64 = 4_294_966_784;
    match number::size(text) {
        Ok(size) if size.is_multiple_of(512) && size <= MAX => Ok(size),
        _ => Err(Refusal::new(format!(
            "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to {MAX}. Select 0 to \
             disable sparse detection (fully allocates output)."
        ))),
    }
}

fn threads(text: &str) -> Result<NonZeroUsize, Refusal> {
    let number = text.parse().ok().filter(|number| (1..=16).contains(number));
    number.and_then(NonZeroUsize::new).ok_or_else(|| {
        Refusal::new("Invalid number of coroutines. Allowed number of coroutines is between 1 and 16")
    })
}

/// The data of a disk, as QEMU counts it: ends of what it copies at once, with how much data lies in front of them.
#[derive(Debug)]
struct Pieces {
    ends: Vec<(u64, u64)>,
    total: u64,
    told: Mutex<usize>,
    /// Where it is not known what there is, and why.
    unknown: Vec<(u64, String)>,
}

impl Pieces {
    fn of(device: &dyn BlockDevice, salvage: bool) -> Result<Self, Refusal> {
        let mut pieces = Self {
            ends: Vec::new(),
            total: 0,
            told: Mutex::new(0),
            unknown: Vec::new(),
        };
        let mut offset = 0;
        while offset < device.size() {
            let (len, data) = pieces.status(device, offset, salvage)?;
            let end = offset + len;
            while offset < end {
                let next = end.min(offset + PIECE);
                if data {
                    pieces.total += next - offset;
                    pieces.ends.push((next, pieces.total));
                }
                offset = next;
            }
        }
        Ok(pieces)
    }

    /// The length of a run, and whether it is data. What nothing is known of is, a sector at a time, if it is to be read whatever
    /// happens.
    fn status(
        &mut self,
        device: &dyn BlockDevice,
        offset: u64,
        salvage: bool,
    ) -> Result<(u64, bool), Refusal> {
        const SECTOR: u64 = 512;
        let mut len = device.size() - offset;
        loop {
            match device.extent_at(offset, len) {
                Ok(extent) => return Ok((extent.len, !extent.state.reads_as_zero())),
                Err(_) if salvage && len > SECTOR => len = len.div_ceil(4).next_multiple_of(SECTOR),
                Err(error) if salvage => {
                    self.unknown.push((offset, reason(&error)));
                    return Ok((len, true));
                }
                Err(error) => {
                    let text = format!("error while reading block status: {}", reason(&error));
                    return Err(Refusal::new(text));
                }
            }
        }
    }

    /// The first byte of the piece of data that `offset` lies in.
    fn start_of(&self, offset: u64) -> u64 {
        let index = self.ends.partition_point(|(end, _)| *end <= offset);
        let before = index.checked_sub(1).map_or(0, |index| self.ends[index].1);
        match self.ends.get(index) {
            Some((end, total)) => (end - (total - before)).min(offset),
            None => offset,
        }
    }

    /// Everything in front of `done` is dealt with.
    fn report(&self, done: u64, progress: &Progress<'_>) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((_, data)) = self.ends.get(*told).filter(|(end, _)| *end <= done) {
            progress.bytes(*data, self.total);
            *told += 1;
        }
    }
}
