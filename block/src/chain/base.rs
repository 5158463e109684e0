//! Everything below the active layer, as one device.
//!
//! # Who owns what
//!
//! Going down the layers for every read costs a lookup in each. But the layers under the active one do not change
//! while the chain is open (their locks see to it), so who owns a place never changes either, and can be
//! remembered. The disk is cut into *granules*, the smallest cluster or subcluster of any layer and at least 4 KiB, and a
//! [`SliceCache`] holds one word for each: the layer to read it from, that it reads as zeros, or that it is
//! *mixed*. A slice is filled when it is first needed, by going down the layers once for each run in it. Entries
//! are never changed, so nothing is ever pinned or stale, and two threads that fill one slice at once fill in the
//! same.
//!
//! A read is then cut where the owner changes, and each part goes to its owner, which is open detached: one
//! lookup here and one there, whatever the depth. Parts of a mixed granule (the end of a layer in its middle, a
//! layer with smaller units than its clusters) go down the layers again; that is slower, and rare.
//!
//! The cache is for reads. [`extent_at`](BlockDevice::extent_at) is asked for long runs, which the layers know
//! better, so it goes down the layers and joins what it finds. It looks as far ahead as what it has joined already
//! is long, so that a short run after a long one does not cost a look through a huge hole each time.

use std::sync::Arc;

use crate::slice_cache::SliceCache;
use crate::{BlockDevice, DeviceInfo, Error, ErrorKind, Extent, ExtentState, Overlay, Result, ZeroMode};

/// Entries in a slice of the owner cache. Few, because a slice is filled whole: 4 MiB of disk at 64 KiB clusters.
const SLICE_ENTRIES: usize = 64;

/// Bytes of entries that the owner cache holds at most: the owners of 32 GiB at 64 KiB clusters.
const BUDGET: usize = 4 << 20;

/// The smallest granule in bytes.
const MIN_GRANULE: u64 = 4096;

/// How far [`BlockDevice::extent_at`] looks at first, in bytes.
const LOOK_AHEAD: u64 = 64 << 20;

/// The layers below the active one as a read-only device. See the [module](super) of chains.
///
/// The depth of an extent is the layer's number here, from 0 for the first below the active one. What no layer holds
/// is a hole of the deepest layer that is long enough to hold it.
#[derive(Debug)]
pub struct ChainBase {
    layers: Vec<Lower>,
    owners: SliceCache,
    granule_bits: u32,
}

/// A layer, with its size asked once.
#[derive(Debug)]
struct Lower {
    device: Arc<dyn Overlay>,
    size: u64,
}

/// Who owns a granule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// No layer: it reads as zeros.
    Nobody,
    /// A layer, which says that it is zero.
    Zero(u32),
    /// A layer, which must be read.
    Layer(u32),
    /// Several, each a part of it.
    Mixed,
}

impl ChainBase {
    /// Joins `layers`, the one next to the active layer first. Each must be open by itself, with nothing below it.
    ///
    /// # Panics
    /// If there are none.
    pub fn new(layers: Vec<Arc<dyn Overlay>>) -> Self {
        assert!(!layers.is_empty(), "a base of no layers");
        let units = layers.iter().filter_map(|layer| {
            let info = layer.info();
            info.subcluster_size.or(info.cluster_size)
        });
        let granule = units.min().unwrap_or(MIN_GRANULE).max(MIN_GRANULE);
        let granule_bits = granule.ilog2();
        let layers: Vec<Lower> = layers
            .into_iter()
            .map(|device| Lower {
                size: device.size(),
                device,
            })
            .collect();
        let slices = layers[0].size.div_ceil(SLICE_ENTRIES as u64) >> granule_bits;
        Self {
            layers,
            owners: SliceCache::new(SLICE_ENTRIES, slices + 1, BUDGET),
            granule_bits,
        }
    }

    /// The run at `offset`, `len` bytes at most: found by going down the layers. `offset` must be on the disk.
    fn walk(&self, offset: u64, mut len: u64) -> Result<Extent> {
        let mut depth = 0;
        let mut host = None;
        for (number, layer) in (0..).zip(&self.layers) {
            // A layer that ends here cuts off all below it.
            let Some(rest) = layer.size.checked_sub(offset).filter(|rest| *rest > 0) else {
                break;
            };
            len = len.min(rest);
            depth = number;
            let run = layer.device.own_extent_at(offset, len)?;
            if run.offset != offset || run.len == 0 || run.len > len {
                return Err(broken_layer(layer, &run, offset));
            }
            (len, host) = (run.len, run.host);
            if run.state != ExtentState::Hole {
                return Ok(Extent { depth, ..run });
            }
        }
        Ok(Extent {
            offset,
            len,
            state: ExtentState::Hole,
            depth,
            host,
        })
    }

    /// Who owns a granule: as remembered, or by filling its slice.
    fn owner(&self, granule: u64) -> Result<Owner> {
        let (slice, index) = (granule / SLICE_ENTRIES as u64, granule as usize % SLICE_ENTRIES);
        let entry = match self.owners.get(slice, index) {
            Some(entry) => entry,
            None => self.fill(slice)?[index],
        };
        Ok(Owner::decode(entry))
    }

    /// Finds the owners of a slice's granules. The parts past the end of the disk are nobody's.
    fn fill(&self, slice: u64) -> Result<[u64; SLICE_ENTRIES]> {
        let ticket = self.owners.ticket(slice);
        let start = (slice * SLICE_ENTRIES as u64) << self.granule_bits;
        let len = (SLICE_ENTRIES as u64) << self.granule_bits;
        let end = start.saturating_add(len).min(self.size());
        let mut owners = [None; SLICE_ENTRIES];
        let mut at = start;
        while at < end {
            let run = self.walk(at, end - at)?;
            let owner = Owner::of(&run);
            let first = (at - start) >> self.granule_bits;
            let last = (run.end() - 1 - start) >> self.granule_bits;
            for slot in &mut owners[first as usize..=last as usize] {
                *slot = Some(slot.map_or(owner, |other: Owner| other.and(owner)));
            }
            at = run.end();
        }
        let entries = owners.map(|owner| owner.unwrap_or(Owner::Nobody).encode());
        self.owners.insert(slice, &entries, ticket);
        Ok(entries)
    }

    /// The owner of the place at `offset`, and how many bytes from there on, `len` (not 0) at most, are its too.
    fn owned_run(&self, offset: u64, len: u64) -> Result<(Owner, u64)> {
        let (first, last) = (
            offset >> self.granule_bits,
            (offset + len - 1) >> self.granule_bits,
        );
        let owner = self.owner(first)?;
        for granule in first + 1..=last {
            if self.owner(granule)? != owner {
                return Ok((owner, (granule << self.granule_bits) - offset));
            }
        }
        Ok((owner, len))
    }

    /// Reads by going down the layers.
    fn read_mixed(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        while !buf.is_empty() {
            let run = self.walk(offset, buf.len() as u64)?;
            let (now, later) = buf.split_at_mut(run.len as usize);
            if run.state.reads_as_zero() {
                now.fill(0);
            } else {
                self.layers[run.depth as usize].device.read_at(now, offset)?;
            }
            offset += run.len;
            buf = later;
        }
        Ok(())
    }

    fn check(&self, op: &str, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size() => Ok(()),
            _ => Err(Error::out_of_bounds(op, offset, len, self.size())),
        }
    }
}

impl Owner {
    /// Who owns what `run` covers.
    fn of(run: &Extent) -> Self {
        match run.state {
            ExtentState::Hole => Self::Nobody,
            ExtentState::Zero => Self::Zero(run.depth),
            ExtentState::Data | ExtentState::Compressed => Self::Layer(run.depth),
        }
    }

    /// Who owns a granule of which one part is `self`'s and another `other`'s.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (same, also) if same == also => same,
            (Self::Zero(a), Self::Layer(b)) | (Self::Layer(a), Self::Zero(b)) if a == b => Self::Layer(a),
            (Self::Nobody | Self::Zero(_), Self::Nobody | Self::Zero(_)) => Self::Nobody,
            _ => Self::Mixed,
        }
    }

    fn encode(self) -> u64 {
        match self {
            Self::Nobody | Self::Zero(_) => 0,
            Self::Mixed => 1,
            Self::Layer(layer) => u64::from(layer) + 2,
        }
    }

    fn decode(entry: u64) -> Self {
        match entry {
            0 => Self::Nobody,
            1 => Self::Mixed,
            layer => Self::Layer((layer - 2) as u32),
        }
    }
}

impl BlockDevice for ChainBase {
    /// As the first layer, but read-only, and aligned as the pickiest one would have it.
    fn info(&self) -> DeviceInfo {
        let mut info = self.layers[0].device.info();
        info.read_only = true;
        info.fast_zero = false;
        for layer in &self.layers {
            info.alignment = info.alignment.max(layer.device.info().alignment);
        }
        info
    }

    fn size(&self) -> u64 {
        self.layers[0].size
    }

    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        self.check("read", offset, buf.len() as u64)?;
        while !buf.is_empty() {
            let (owner, len) = self.owned_run(offset, buf.len() as u64)?;
            let (now, later) = buf.split_at_mut(len as usize);
            match owner {
                Owner::Nobody | Owner::Zero(_) => now.fill(0),
                Owner::Layer(layer) => self.layers[layer as usize].device.read_at(now, offset)?,
                Owner::Mixed => self.read_mixed(now, offset)?,
            }
            offset += len;
            buf = later;
        }
        Ok(())
    }

    fn write_at(&self, _: &[u8], _: u64) -> Result<()> {
        Err(Error::read_only("write"))
    }

    fn zero_at(&self, _: u64, _: u64, _: ZeroMode) -> Result<()> {
        Err(Error::read_only("write zeros"))
    }

    fn discard_at(&self, _: u64, _: u64) -> Result<()> {
        Err(Error::read_only("discard"))
    }

    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        if len == 0 || offset >= self.size() {
            return Err(Error::out_of_bounds("extent", offset, len, self.size()));
        }
        let end = self.size().min(offset.saturating_add(len));
        let mut run = self.walk(offset, LOOK_AHEAD.min(end - offset))?;
        while run.end() < end {
            let next = self.walk(run.end(), run.len.max(LOOK_AHEAD).min(end - run.end()))?;
            if !run.continued_by(&next) {
                break;
            }
            run.len += next.len;
        }
        Ok(run)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

/// A layer whose extents are not what they must be: a defect of the format, which must not end in a wrong read.
fn broken_layer(layer: &Lower, run: &Extent, offset: u64) -> Error {
    let message = format!(
        "the extent asked for was not given, but one of {} bytes at {:#x}",
        run.len, run.offset
    );
    Error::new(ErrorKind::Corrupt, message)
        .with_path_of(layer.device.path())
        .with_offset(offset)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::toy::{ToyImage, byte_at};
    use super::*;

    /// A layer in clusters of `1 << bits` bytes; a cluster is a hole (0), zero (1), or data (2 and up).
    #[derive(Clone, Debug)]
    struct Plan {
        bits: u32,
        size: u64,
        clusters: Vec<u8>,
    }

    const MAX_SIZE: u64 = 80 << 10;

    fn plan() -> impl Strategy<Value = Plan> {
        let clusters =
            proptest::collection::vec(prop_oneof![4 => Just(0u8), 1 => Just(1), 2 => 2..=9u8], 161);
        (9..=14u32, 0..=MAX_SIZE / 512, 0..512u64, clusters).prop_map(|(bits, sectors, odd, clusters)| Plan {
            bits,
            size: sectors * 512 + odd / 400,
            clusters,
        })
    }

    fn chain() -> impl Strategy<Value = Vec<Plan>> {
        // A long layer first half of the time, so that the others show through.
        (proptest::collection::vec(plan(), 1..6), any::<bool>()).prop_map(|(mut chain, long)| {
            chain[0].size = if long { MAX_SIZE + 1 } else { chain[0].size.max(1) };
            chain
        })
    }

    fn layers(chain: &[Plan]) -> Vec<Arc<ToyImage>> {
        chain
            .iter()
            .map(|plan| {
                Arc::new(ToyImage::new(
                    plan.size,
                    plan.bits,
                    plan.clusters.iter().copied().enumerate(),
                ))
            })
            .collect()
    }

    fn base(layers: &[Arc<ToyImage>]) -> ChainBase {
        let layers = layers.iter().map(|layer| layer.clone() as Arc<dyn Overlay>);
        ChainBase::new(layers.collect())
    }

    /// What the chain's byte at `offset` is, who decides it, and how.
    fn expected(chain: &[Plan], offset: u64) -> (u8, u32, ExtentState) {
        let mut depth = 0;
        for (number, plan) in (0..).zip(chain).take_while(|(_, plan)| offset < plan.size) {
            depth = number;
            match plan.clusters[(offset >> plan.bits) as usize] {
                0 => {}
                1 => return (0, depth, ExtentState::Zero),
                fill => return (byte_at(fill, offset), depth, ExtentState::Data),
            }
        }
        (0, depth, ExtentState::Hole)
    }

    proptest! {
        #[test]
        fn reads_as_a_model_of_bytes_does(chain in chain(), reads in proptest::collection::vec((0..MAX_SIZE, 0..MAX_SIZE), 8)) {
            let base = base(&layers(&chain));
            let size = base.size();
            let model: Vec<u8> = (0..size).map(|offset| expected(&chain, offset).0).collect();
            for (offset, len) in reads.into_iter().chain([(0, size)]) {
                let offset = offset.min(size);
                let len = len.min(size - offset);
                let mut buf = vec![0xee; len as usize];
                base.read_at(&mut buf, offset).unwrap();
                prop_assert!(buf == model[offset as usize..(offset + len) as usize], "{} at {}", len, offset);
            }
        }

        #[test]
        fn extents_say_who_decides_and_end_where_that_changes(chain in chain()) {
            let base = base(&layers(&chain));
            let mut at = 0;
            let mut before = None;
            while at < base.size() {
                let run = base.extent_at(at, u64::MAX).unwrap();
                prop_assert!(run.offset == at && run.len > 0 && run.end() <= base.size());
                for offset in (at..run.end()).step_by(512).chain([run.end() - 1]) {
                    let (_, depth, state) = expected(&chain, offset);
                    prop_assert_eq!((run.depth, run.state), (depth, state), "at {}", offset);
                }
                prop_assert!(!before.is_some_and(|before: Extent| before.continued_by(&run)));
                at = run.end();
                before = Some(run);
            }
        }
    }

    #[test]
    fn a_second_read_costs_one_lookup_below_whatever_the_depth() {
        let mut chain = vec![Vec::new(); 49];
        chain.push(vec![(3, 7)]);
        let layers: Vec<_> = chain
            .into_iter()
            .map(|clusters| Arc::new(ToyImage::new(1 << 20, 16, clusters)))
            .collect();
        let base = base(&layers);
        let mut buf = [0; 4096];
        base.read_at(&mut buf, 3 << 16).unwrap();
        let lookups = || layers.iter().map(|layer| layer.lookups()).sum::<u64>();
        let before = lookups();
        base.read_at(&mut buf, (3 << 16) + 8192).unwrap();
        assert_eq!(buf[5], byte_at(7, (3 << 16) + 8192 + 5));
        assert_eq!(lookups() - before, 0);
        assert_eq!(layers.iter().map(|layer| layer.reads()).sum::<u64>(), 2);
    }

    #[test]
    fn reads_go_on_across_slices_of_the_cache() {
        let around = |fills: [u8; 4]| (62..66).zip(fills);
        let layers = [
            ToyImage::new(1 << 20, 12, around([0, 2, 0, 0])),
            ToyImage::new(1 << 20, 12, around([3, 3, 3, 1])),
        ];
        let base = base(&layers.map(Arc::new));
        let start = 62 << 12;
        let mut buf = vec![0xee; 4 << 12];
        base.read_at(&mut buf, start).unwrap();
        for (at, byte) in (start..).zip(buf) {
            let fill = [3, 2, 3, 1][((at - start) >> 12) as usize];
            assert_eq!(byte, if fill == 1 { 0 } else { byte_at(fill, at) }, "at {at}");
        }
    }

    #[test]
    fn a_huge_hole_is_one_extent_found_in_few_steps() {
        let size = 64 << 40;
        let layers: Vec<_> = [vec![], vec![], vec![((size >> 16) as usize - 1, 5)]]
            .into_iter()
            .map(|clusters| Arc::new(ToyImage::new(size, 16, clusters)))
            .collect();
        let base = base(&layers);
        let run = base.extent_at(0, size).unwrap();
        assert_eq!(
            (run.len, run.state, run.depth),
            (size - (1 << 16), ExtentState::Hole, 2)
        );
        assert!(layers[0].lookups() < 40);
        let run = base.extent_at(run.end(), u64::MAX).unwrap();
        assert_eq!((run.len, run.state), (1 << 16, ExtentState::Data));
        // And the cache of a disk that large holds what it may, not what it could.
        let mut byte = [0];
        base.read_at(&mut byte, size - 1).unwrap();
        assert_eq!(byte[0], byte_at(5, size - 1));
    }

    #[test]
    fn requests_past_the_end_and_writes_are_refused() {
        let base = base(&[
            Arc::new(ToyImage::new(4096, 12, [])),
            Arc::new(ToyImage::new(8192, 12, [])),
        ]);
        assert_eq!(base.size(), 4096);
        for error in [
            base.read_at(&mut [0; 2], 4095).unwrap_err(),
            base.read_at(&mut [0; 2], u64::MAX).unwrap_err(),
            base.extent_at(4096, 1).unwrap_err(),
            base.extent_at(0, 0).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::OutOfBounds);
        }
        base.read_at(&mut [], 4096).unwrap();
        assert_eq!(base.write_at(&[1], 0).unwrap_err().kind(), ErrorKind::ReadOnly);
        assert!(base.info().read_only);
    }

    #[test]
    fn many_threads_read_the_same() {
        let chain: Vec<Plan> = (0..4u8)
            .map(|layer| Plan {
                bits: 12,
                size: MAX_SIZE,
                clusters: (0..160u8)
                    .map(|cluster| if cluster % 5 == layer { cluster } else { 0 })
                    .collect(),
            })
            .collect();
        let base = base(&layers(&chain));
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (base, chain) = (&base, &chain);
                scope.spawn(move || {
                    for step in 0..200u64 {
                        let offset = (step * 3001 + thread * 17_000) % (MAX_SIZE - 700);
                        let mut buf = [0xee; 700];
                        base.read_at(&mut buf, offset).unwrap();
                        for (at, byte) in (offset..).zip(buf) {
                            assert_eq!(byte, expected(chain, at).0);
                        }
                    }
                });
            }
        });
    }
}
