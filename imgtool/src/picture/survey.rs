//! What of a disk is where: as the guest sees it, in each layer, and in each file.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::chain::{Chain, Layer};
use block::{Extent, ExtentState, Result, Storage};
use ops::{Cancel, Extents, HostHoles};

use super::strip::Strip;
use super::{Class, SHOWN};

/// The part of a disk that is looked at.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// What offsets are counted from: a partition's start, or that of the disk.
    pub(crate) origin: u64,
    /// Offsets on the whole disk.
    pub(crate) range: Range<u64>,
}

/// All that a picture shows.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(super) name: PathBuf,
    pub(super) part: Part,
    /// The disk, as the guest sees it.
    pub(super) disk: Strip,
    /// The layers, the active one first.
    pub(super) layers: Vec<LayerSurvey>,
    /// Layers of the chain that are not among these.
    pub(super) left_out: usize,
}

/// One layer of the chain.
#[derive(Debug)]
pub(super) struct LayerSurvey {
    pub(super) path: PathBuf,
    pub(super) format: &'static str,
    /// What it holds itself, by guest offset.
    pub(super) own: Strip,
    /// Its file, and the one that holds its data, by offset there.
    pub(super) files: Vec<FileSurvey>,
}

#[derive(Debug)]
pub(super) struct FileSurvey {
    pub(super) path: PathBuf,
    pub(super) strip: Strip,
}

impl Survey {
    /// Looks at a part of the disk in `chain`, which is called `name`.
    pub(crate) fn of(name: &Path, chain: &Chain, part: Part, cancel: &Cancel) -> Result<Self> {
        let holes = HostHoles::of(chain)?;
        let (start, len) = (part.range.start, part.range.end - part.range.start);
        let mut disk = Strip::new(len);
        for extent in Extents::of(&**chain.active(), part.range.clone()) {
            split(&holes, extent?, cancel, |extent, class| {
                disk.add(extent.offset - start, extent.len, class);
            })?;
        }
        let layers = chain.layers().iter().enumerate().take(SHOWN);
        let layers = layers.map(|(depth, layer)| LayerSurvey::of(layer, depth, &part, &holes, cancel));
        Ok(Self {
            name: name.to_owned(),
            disk,
            layers: layers.collect::<Result<_>>()?,
            left_out: chain.layers().len().saturating_sub(SHOWN),
            part,
        })
    }
}

impl LayerSurvey {
    fn of(layer: &Layer, depth: usize, part: &Part, holes: &HostHoles, cancel: &Cancel) -> Result<Self> {
        let start = part.range.start;
        let mut own = Strip::new(part.range.end - start);
        let data_file = layer.data_file.as_ref().unwrap_or(&layer.storage);
        let mut data = taken(data_file, cancel)?;
        walk_own(
            layer,
            depth,
            part.range.clone(),
            holes,
            cancel,
            |extent, class| {
                own.add(extent.offset - start, extent.len, class);
                if let (Some(host), Class::Data(_)) = (extent.host, class) {
                    data.add(host, extent.len, class);
                }
            },
        )?;
        // What is taken and mapped is not something else.
        data.subtract(Class::Other, Class::Data(depth));
        let mut files = vec![FileSurvey {
            path: data_file.path().unwrap_or(&layer.path).to_owned(),
            strip: data,
        }];
        if layer.data_file.is_some() {
            let strip = taken(&layer.storage, cancel)?;
            let path = layer.path.clone();
            files.insert(0, FileSurvey { path, strip });
        }
        Ok(Self {
            path: layer.path.clone(),
            format: layer.format,
            own,
            files,
        })
    }
}

/// Bytes of data that a layer holds itself, compressed ones as long as they are on the disk.
pub(super) fn own_data(layer: &Layer, depth: usize, holes: &HostHoles, cancel: &Cancel) -> Result<u64> {
    let mut bytes = 0;
    walk_own(layer, depth, 0..layer.size(), holes, cancel, |extent, class| {
        if matches!(class, Class::Data(_) | Class::Compressed(_)) {
            bytes += extent.len;
        }
    })?;
    Ok(bytes)
}

/// Tells of all runs of a layer in a range of the disk.
fn walk_own(
    layer: &Layer,
    depth: usize,
    range: Range<u64>,
    holes: &HostHoles,
    cancel: &Cancel,
    mut tell: impl FnMut(&Extent, Class),
) -> Result<()> {
    let end = range.end.min(layer.size());
    let mut at = range.start;
    while at < end {
        let mut extent = layer.device.own_extent_at(at, end - at)?;
        extent.depth = depth as u32;
        at = extent.end();
        split(holes, extent, cancel, &mut tell)?;
    }
    Ok(())
}

/// Tells of the parts of a run that are each of one class.
fn split(
    holes: &HostHoles,
    mut rest: Extent,
    cancel: &Cancel,
    mut tell: impl FnMut(&Extent, Class),
) -> Result<()> {
    loop {
        cancel.check()?;
        let (part, hole) = holes.look(rest)?;
        let layer = part.depth as usize;
        let class = match part.state {
            ExtentState::Data if hole => Class::Zero,
            ExtentState::Data => Class::Data(layer),
            ExtentState::Compressed => Class::Compressed(layer),
            ExtentState::Zero => Class::Zero,
            ExtentState::Hole => Class::Hole,
        };
        tell(&part, class);
        if part.end() == rest.end() {
            return Ok(());
        }
        rest = rest.clip(part.end(), u64::MAX);
    }
}

/// A file, with what the host has room for in it.
fn taken(file: &Arc<dyn Storage>, cancel: &Cancel) -> Result<Strip> {
    let len = file.len()?;
    let mut strip = Strip::new(len);
    let mut at = 0;
    while at < len {
        cancel.check()?;
        let run = file.host_extent(at, len - at)?;
        // Never nothing, whatever the host says.
        let run_len = run.len.clamp(1, len - at);
        let class = if run.data { Class::Other } else { Class::Hole };
        strip.add(at, run_len, class);
        at += run_len;
    }
    Ok(strip)
}
