//! Standard input and output as images: read and written once, from the front to the back.
//!
//! A file that standard input was redirected from is opened as what it is, with holes, and read by several threads. From
//! a pipe the size is known at the end only, so the new image grows. A qcow2 image on standard output is laid out
//! before its first byte, from what the source says it holds; zeros inside that are sent along.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Seek};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use block::chain::Chain;
use block::{BlockDevice, Error, Result};
use ops::{Before, Cancel, Control, ConvertOptions, Extents, Length, Sequential};
use qcow2::Streamed;

use super::{ConvertArgs, Source, interrupted};
use crate::commands::Outcome;
use crate::formats::NewImage;
use crate::images::FORMATS;
use crate::sandbox::Names;
use crate::target::is_standard_output;
use crate::watch::Watch;
use crate::{interrupt, size};

/// Where the kernel shows standard input as a file.
const STANDARD_INPUT: &str = "/proc/self/fd/0";

/// Bytes that tell what an input is.
const HEAD: usize = 512;

/// Whether a name stands for standard input or output.
pub(super) fn is_stream(path: &Path) -> bool {
    path == Path::new("-")
}

/// Whether a name stands for standard output, by that or by what the kernel calls it.
pub(super) fn is_output(path: &Path) -> bool {
    is_stream(path) || is_standard_output(path)
}

impl ConvertArgs {
    /// Copies where standard input or output is one of the images.
    pub(super) fn stream(
        &self,
        sources: &[PathBuf],
        target: &Path,
        image: NewImage,
        copy: ConvertOptions,
    ) -> Outcome {
        let cancel = interrupt::watch()?;
        let to_stdout = is_output(target);
        if to_stdout {
            self.check_output(&image)?;
        }
        let source = if !sources.iter().any(|source| is_stream(source)) {
            self.source(sources)?
        } else if sources.len() > 1 {
            let message = "standard input cannot be joined with other images";
            return Err(Error::invalid(message).with_path("-").into());
        } else {
            match self.input()? {
                // A raw image, whatever it looks like.
                Input::File => self.source_in(&[STANDARD_INPUT.into()], Some("raw"))?,
                Input::Pipe(mut pipe) if to_stdout => {
                    self.forward(&mut *pipe, image, &copy, &cancel)?;
                    return Ok(0);
                }
                Input::Pipe(mut pipe) => {
                    self.receive(&mut *pipe, target, image, copy, &cancel)?;
                    return Ok(0);
                }
            }
        };
        if to_stdout {
            self.send(&source, image, &copy, &cancel)?;
        } else if self.no_create {
            self.fill(target, &source, copy, &cancel)?;
        } else {
            self.make(target, image, &source, copy, &cancel)?;
        }
        Ok(0)
    }

    /// Refuses what cannot be done to standard output.
    fn check_output(&self, image: &NewImage) -> Result<()> {
        let wrong = match () {
            () if io::stdout().is_terminal() => "standard output is a terminal: send it to a file or a pipe",
            () if self.no_create => "standard output is no image that could be filled: leave out -n",
            () if self.compress => {
                "how much room compressed clusters take is not known in advance: leave out -c"
            }
            () if image.backing.is_some() => "an image on standard output cannot have a backing file",
            () if self.in_place => "standard output is written in place anyway",
            () => return Ok(()),
        };
        Err(Error::invalid(wrong).with_path("-"))
    }

    /// Standard input, which holds a raw image.
    fn input(&self) -> Result<Input> {
        let failed = |error| Error::io("read standard input", error);
        if self.format.as_deref().is_some_and(|format| format != "raw") {
            let message = "standard input can only be read from the front to the back, as a raw image";
            return Err(Error::invalid(message)
                .with_path("-")
                .with_hint("leave out -f, or name the file"));
        }
        let stdin = io::stdin();
        if stdin.is_terminal() {
            let message = "standard input is a terminal: give it a file or a pipe";
            return Err(Error::invalid(message).with_path("-"));
        }
        let mut file = File::from(stdin.as_fd().try_clone_to_owned().map_err(failed)?);
        let kind = file.metadata().map_err(failed)?.file_type();
        let at_start = |file: &mut File| file.stream_position().is_ok_and(|position| position == 0);
        if (kind.is_file() || kind.is_block_device()) && at_start(&mut file) {
            let mut head = Vec::new();
            let mut front = File::open(STANDARD_INPUT).map_err(failed)?.take(HEAD as u64);
            front.read_to_end(&mut head).map_err(failed)?;
            self.check_head(&head)?;
            return Ok(Input::File);
        }
        let mut head = Vec::new();
        file.by_ref()
            .take(HEAD as u64)
            .read_to_end(&mut head)
            .map_err(failed)?;
        self.check_head(&head)?;
        Ok(Input::Pipe(Box::new(io::Cursor::new(head).chain(file))))
    }

    /// Refuses to take an image in another format for a raw one, unless the user says so.
    fn check_head(&self, head: &[u8]) -> Result<()> {
        if self.format.is_some() {
            return Ok(());
        }
        block::chain::refuse_foreign(head).map_err(|error| error.with_path("-"))?;
        let sought = FORMATS.into_iter().find(|format| format.probe(head));
        if let Some(format) = sought {
            let name = format.name();
            let message = format!("standard input holds a {name} image, which has to be sought in");
            return Err(Error::invalid(message)
                .with_path("-")
                .with_hint("name the file, or give -f raw to copy the image file itself"));
        }
        Ok(())
    }

    /// Copies an image to standard output.
    fn send(
        &self,
        source: &Source,
        mut image: NewImage,
        copy: &ConvertOptions,
        cancel: &Cancel,
    ) -> Result<()> {
        let size = source.device.size();
        image.size.get_or_insert(size);
        if image.disk_size() < size {
            let smaller = image.disk_size();
            let message = format!("the new image is to have {smaller} bytes, fewer than the disk's {size}");
            return Err(Error::invalid(message).with_path("-"));
        }
        self.sandbox.confine(Names::None, self.open.io);
        let data = || match copy.sparse {
            0 => Ok(whole(size)),
            _ => data_ranges(&*source.device),
        };
        to_output(&image, data, |target| self.copy(source, target, copy, cancel))
    }

    /// Copies a pipe to standard output.
    fn forward(
        &self,
        pipe: &mut (dyn Read + Send),
        mut image: NewImage,
        copy: &ConvertOptions,
        cancel: &Cancel,
    ) -> Result<()> {
        let length = match image.size {
            Some(_) => Length::Fixed,
            None if image.format() == "raw" => Length::Follows,
            None => {
                let message = "the size of the disk comes first in a qcow2 image, and a pipe does not say it";
                let error = Error::invalid(message).with_path("-");
                return Err(error.with_hint("give it with -o size=SIZE"));
            }
        };
        let size = size::whole_sectors(*image.size.get_or_insert(0));
        let data = || Ok(whole(size));
        to_output(&image, data, |target| {
            self.take_in(pipe, target, length, copy, cancel)
        })
    }

    /// Copies a pipe into a file.
    fn receive(
        &self,
        pipe: &mut (dyn Read + Send),
        path: &Path,
        image: NewImage,
        copy: ConvertOptions,
        cancel: &Cancel,
    ) -> Result<()> {
        if self.no_create {
            return self.fill_with(path, copy, |_, target, copy| {
                self.take_in(pipe, target, Length::Fixed, copy, cancel)
            });
        }
        let length = match image.size {
            Some(_) => Length::Fixed,
            None => Length::Follows,
        };
        let before = |backing: &Chain| Before::Device(backing.device());
        self.make_with(path, image, copy, cancel, before, |target, copy| {
            self.take_in(pipe, target.device(), length, copy, cancel)
        })
    }

    /// Copies a pipe onto a device.
    fn take_in(
        &self,
        pipe: &mut (dyn Read + Send),
        target: &dyn BlockDevice,
        length: Length,
        copy: &ConvertOptions,
        cancel: &Cancel,
    ) -> Result<()> {
        let watch = Watch::new(&self.watch);
        let report = |progress| watch.report(progress);
        let control = Control::new(cancel.clone(), &report);
        let received = ops::receive(pipe, target, length, copy, &control);
        watch.finish();
        received.map(|_| ())
    }
}

/// Standard input.
enum Input {
    /// A file or device, at its start.
    File,
    /// What can be read only once.
    Pipe(Box<dyn Read + Send>),
}

/// All of a disk.
fn whole(size: u64) -> Vec<Range<u64>> {
    Vec::from_iter((size > 0).then_some(0..size))
}

/// Where a disk holds something that may be other than zeros.
fn data_ranges(device: &dyn BlockDevice) -> Result<Vec<Range<u64>>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for extent in Extents::new(device) {
        let extent = extent?;
        match ranges.last_mut() {
            _ if extent.state.reads_as_zero() => {}
            Some(last) if last.end == extent.offset => last.end = extent.end(),
            _ => ranges.push(extent.offset..extent.end()),
        }
    }
    Ok(ranges)
}

/// Has `fill` write the disk to standard output, in an image that holds `data`.
fn to_output(
    image: &NewImage,
    data: impl FnOnce() -> Result<Vec<Range<u64>>>,
    fill: impl FnOnce(&dyn BlockDevice) -> Result<()>,
) -> Result<()> {
    image.check().map_err(|error| error.with_path("-"))?;
    let failed = |error| Error::io("open standard output", error);
    let output = File::from(io::stdout().as_fd().try_clone_to_owned().map_err(failed)?);
    let target = match image.qcow2() {
        None => Sequential::whole(output, image.disk_size()),
        Some(options) => {
            let layout = Streamed::new(&options, data()?)?;
            layout.write_head(&output)?;
            Sequential::new(output, options.size, layout.ranges())
        }
    };
    let sent = fill(&target).and_then(|()| target.finish().map(|_| ()));
    sent.map_err(|error| {
        interrupted(
            error.with_path("-"),
            Path::new("-"),
            "what was sent is incomplete",
        )
    })
}
