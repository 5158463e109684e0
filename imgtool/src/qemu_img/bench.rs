//! `qemu-img bench`.

use std::num::{NonZeroU32, NonZeroU64};

use ops::BenchOptions;

use super::console::Console;
use super::getopt::Options;
use super::image;
use super::node::Flags;
use super::refusal::{Refusal, reason};
use super::{Outcome, number, pages};

/// The largest number that QEMU takes for most of the options.
const MAX: u64 = i32::MAX as u64;

#[derive(Debug)]
struct Wanted {
    format: Option<String>,
    image_opts: bool,
    flags: Flags,
    /// Asynchronous requests of the kernel's older kind.
    native: bool,
    requests: BenchOptions,
    step: u64,
    interval: u64,
    write: bool,
    pattern: u8,
}

impl Wanted {
    fn new() -> Self {
        Self {
            format: None,
            image_opts: false,
            flags: Flags::default(),
            native: false,
            requests: BenchOptions {
                parallel: NonZeroU32::new(64).unwrap_or(NonZeroU32::MIN),
                ..BenchOptions::new(75_000, 4096)
            },
            step: 0,
            interval: 0,
            write: false,
            pattern: 0,
        }
    }

    fn take(&mut self, name: &str, value: String) -> Result<(), Refusal> {
        let requests = &mut self.requests;
        match name {
            "c" => requests.count = number::argument("request count", &value, 1, MAX)?,
            "d" => {
                let depth = number::argument("queue depth", &value, 1, MAX)? as u32;
                requests.parallel = NonZeroU32::new(depth).unwrap_or(NonZeroU32::MIN);
            }
            "f" => self.format = Some(value),
            "n" => self.aio("native")?,
            "i" => self.aio(&value)?,
            "o" => requests.offset = number::disk_size("offset", &value)?,
            "s" => requests.len = number::argument("buffer size", &value, 1, MAX)? as usize,
            "S" => self.step = number::argument("step size", &value, 0, MAX)?,
            "t" => self.cache(&value)?,
            "w" => self.write = true,
            "U" => self.flags.force_share = true,
            "flush-interval" => self.interval = number::argument("flush interval", &value, 0, MAX)?,
            "pattern" => self.pattern = number::argument("pattern byte", &value, 0, 255)? as u8,
            "no-drain" => requests.drain = false,
            "image-opts" => self.image_opts = true,
            // It says no less, as QEMU does.
            _ => {}
        }
        Ok(())
    }

    fn aio(&mut self, name: &str) -> Result<(), Refusal> {
        if !matches!(name, "threads" | "native" | "io_uring") {
            return Err(Refusal::new(format!("Invalid aio option: {name}")));
        }
        self.native = name == "native";
        self.flags.uring = name == "io_uring";
        Ok(())
    }

    fn cache(&mut self, name: &str) -> Result<(), Refusal> {
        let mode = super::target_cache(name).map_err(|_| Refusal::new("Invalid cache mode"))?;
        self.flags.direct = mode.direct;
        self.requests.durable = matches!(name, "writethrough" | "directsync");
        Ok(())
    }

    /// The requests that all options make together.
    fn requests(&self) -> Result<BenchOptions, Refusal> {
        let requests = self.requests;
        if self.interval > 0 && !self.write {
            return Err(Refusal::new("--flush-interval is only available in write tests"));
        }
        if self.interval > 0 && self.interval < u64::from(requests.parallel.get()) {
            return Err(Refusal::new("Flush interval can't be smaller than depth"));
        }
        Ok(BenchOptions {
            step: if self.step == 0 {
                requests.len as u64
            } else {
                self.step
            },
            write: self.write.then_some(self.pattern),
            durable: requests.durable && self.write,
            flush_interval: NonZeroU64::new(self.interval),
            ..requests
        })
    }
}

pub(super) fn run(console: &Console, arguments: &[String]) -> Outcome {
    let mut wanted = Wanted::new();
    let mut options = Options::new(&pages::BENCH, arguments);
    while let Some((name, value)) = options.next()? {
        match name {
            "h" => return super::show(console, &pages::BENCH),
            name => wanted.take(name, value)?,
        }
    }
    let operands = options.operands();
    if operands.len() != 1 {
        return Err(Refusal::usage("Expecting one image file name"));
    }
    let requests = wanted.requests()?;
    let spec = super::one_image(&operands, wanted.format.as_deref(), wanted.image_opts)?;
    if wanted.native && !wanted.flags.direct {
        let why = "aio=native was specified, but it requires cache.direct=on, which was not specified.";
        return Err(image::could_not_open(&spec)(Refusal::new(why)));
    }
    let flags = Flags {
        write: wanted.write,
        ..wanted.flags
    };
    let image = image::open(&spec, flags)?;
    if wanted.write {
        image.layers[0].refuse_base()?;
        super::warn_of_probing(console, &image.layers[0]);
    }
    console.print(announcement(&requests))?;
    console.flush()?;
    if requests.parallel.get() > ops::MAX_PARALLEL && requests.count > u64::from(ops::MAX_PARALLEL) {
        console.error(&format!(
            "warning: no more than {} requests are sent in parallel",
            ops::MAX_PARALLEL
        ));
    }
    let failed = |error: block::Error| Refusal::new(format!("Failed request: {}", reason(&error)));
    let time = ops::bench(&**image.device(), &requests).map_err(failed)?;
    console.print(format!("Run completed in {:.3} seconds.\n", time.as_secs_f64()))?;
    image
        .chain
        .settle()
        .map_err(|error| Refusal::new(format!("Failed to write what was kept back: {}", reason(&error))))?;
    Ok(0)
}

fn announcement(requests: &BenchOptions) -> String {
    let mut text = format!(
        "Sending {} {} requests, {} bytes each, {} in parallel (starting at offset {}, step size {})\n",
        requests.count,
        if requests.write.is_some() { "write" } else { "read" },
        requests.len,
        requests.parallel,
        requests.offset,
        requests.step,
    );
    if let Some(interval) = requests.flush_interval {
        text += &format!("Sending flush every {interval} requests\n");
    }
    text
}
