//! An image for an output that cannot be sought in, such as a pipe.
//!
//! Where everything goes is known before the first byte is written: what the disk holds is stated as ranges, every
//! cluster of them is mapped, and the tables in front say so. The data follows in guest order, in whole clusters.

use std::collections::HashMap;
use std::io::{self, BufWriter, Write};
use std::ops::Range;

use block::{Error, Preallocation, Result};
use byteorder::{BE, WriteBytesExt};

use super::CreateOptions;
use super::layout::{ENTRY, Layout, Mapped, Run};
use crate::address::ClusterIndex;
use crate::entry::{L1Entry, L2Entry};
use crate::refcount;

/// A new image, as a head to be written first and the ranges of the disk that have to follow it.
///
/// ```
/// use qcow2::{CreateOptions, Streamed};
///
/// let options = CreateOptions { size: 1 << 20, ..CreateOptions::default() };
/// let image = Streamed::new(&options, [70_000..80_000])?;
/// let mut output = Vec::new();
/// image.write_head(&mut output)?;
/// assert_eq!(image.ranges(), [65536..131072]);
/// for range in image.ranges() {
///     output.extend(vec![0x55; (range.end - range.start) as usize]);
/// }
/// # Ok::<(), block::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Streamed {
    layout: Layout,
    header: Vec<u8>,
    /// Guest clusters that are mapped, in order and apart from each other.
    clusters: Vec<Range<u64>>,
}

impl Streamed {
    /// Lays out an image that holds `data`, ranges of the disk in bytes, in order. Where it is preallocated it holds the
    /// whole disk.
    ///
    /// # Errors
    /// `InvalidInput` as [`CreateOptions::validate`], and for ranges that are not in order or not on the disk;
    /// `Unsupported` for an encrypted image.
    pub fn new(options: &CreateOptions, data: impl IntoIterator<Item = Range<u64>>) -> Result<Self> {
        options.validate()?;
        if options.data_file.is_some() {
            let message = "an image with a data file is two files, and cannot be written in one pass";
            return Err(Error::invalid(message));
        }
        if options.encryption.is_some() {
            let message =
                "an encrypted image is encrypted while it is written, and cannot be written in one pass";
            return Err(Error::unsupported(message).with_hint("write it to a file"));
        }
        let geometry = options.geometry();
        let mut clusters: Vec<Range<u64>> = Vec::new();
        let mut add = |range: Range<u64>| match clusters.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => clusters.push(range),
        };
        let mut end = 0;
        for range in data {
            if range.start < end || range.end < range.start || range.end > options.size {
                let (start, size) = (range.start, options.size);
                let message = format!(
                    "bytes {start} to {} of a disk of {size}: ranges must be in order",
                    range.end
                );
                return Err(Error::invalid(message));
            }
            end = range.end;
            if !range.is_empty() {
                add(range.start >> geometry.cluster_bits..geometry.clusters(range.end));
            }
        }
        if options.preallocation != Preallocation::Off {
            let whole = 0..geometry.clusters(options.size);
            clusters = Vec::from_iter((!whole.is_empty()).then_some(whole));
        }
        let mapped = Mapped {
            l2_tables: tables(&clusters, geometry.l2_bits()).count() as u64,
            clusters: clusters.iter().map(|range| range.end - range.start).sum(),
        };
        let (layout, header) = options.plan_mapping(mapped)?;
        Ok(Self {
            layout,
            header,
            clusters,
        })
    }

    /// The ranges of the disk, in bytes, whose contents follow the head, one after the other: whole clusters, the last
    /// of which may reach past the end of the disk.
    pub fn ranges(&self) -> Vec<Range<u64>> {
        let bits = self.layout.geometry.cluster_bits;
        let bytes = |range: &Range<u64>| range.start << bits..range.end << bits;
        self.clusters.iter().map(bytes).collect()
    }

    /// Length of the image file in bytes.
    pub fn file_len(&self) -> u64 {
        self.layout.host(self.layout.end()).0
    }

    /// Writes everything in front of the data.
    ///
    /// # Errors
    /// `Io`, `NoSpace`.
    pub fn write_head(&self, output: impl Write) -> Result<()> {
        let mut output = BufWriter::with_capacity(1 << 20, output);
        let written = self
            .write_fixed(&mut output)
            .and_then(|()| self.write_l2(&mut output))
            .and_then(|()| output.flush());
        written.map_err(|error| Error::io("write the output", error))
    }

    /// The header, refcounts and the L1 table, cluster by cluster.
    fn write_fixed(&self, output: &mut impl Write) -> io::Result<()> {
        let layout = &self.layout;
        let blocks = (0..).zip(&layout.refcount_blocks);
        let blocks: HashMap<ClusterIndex, u64> = blocks.map(|(number, place)| (*place, number)).collect();
        let table = layout.refcount_blocks.iter().map(|block| layout.host(*block).0);
        let mut table = table.chain(std::iter::repeat(0));
        let mut l1 = self.l1_entries();
        let entries = layout.geometry.cluster_size() / ENTRY;
        let inside = |run: Run, cluster| run.start <= cluster && cluster < run.end();
        for cluster in (0..layout.l2.start.0).map(ClusterIndex) {
            if cluster.0 == 0 {
                output.write_all(&self.header)?;
                let rest = layout.geometry.cluster_size() as usize - self.header.len();
                output.write_all(&vec![0; rest])?;
            } else if let Some(number) = blocks.get(&cluster) {
                output.write_all(&self.refcount_block(*number))?;
            } else {
                let table: &mut dyn Iterator<Item = u64> = if inside(layout.refcount_table, cluster) {
                    &mut table
                } else {
                    &mut l1
                };
                for _ in 0..entries {
                    output.write_u64::<BE>(table.next().unwrap_or(0))?;
                }
            }
        }
        Ok(())
    }

    /// Every cluster of the file is in use, once.
    fn refcount_block(&self, number: u64) -> Vec<u8> {
        let geometry = self.layout.geometry;
        let per_block = 1u64 << geometry.refcount_block_bits();
        let used = self
            .layout
            .end()
            .0
            .saturating_sub(number * per_block)
            .min(per_block);
        let mut block = vec![0; geometry.cluster_size() as usize];
        for index in 0..used {
            refcount::write(&mut block, geometry.refcount_order, index as usize, 1);
        }
        block
    }

    fn l1_entries(&self) -> impl Iterator<Item = u64> {
        let layout = &self.layout;
        let mut mapped = tables(&self.clusters, layout.geometry.l2_bits()).peekable();
        let mut next = layout.l2.start;
        (0..layout.l1_entries).map(move |index| {
            if mapped.next_if_eq(&index).is_none() {
                return 0;
            }
            let host = layout.host(next);
            next += 1;
            L1Entry::Table { host, copied: true }.encode()
        })
    }

    /// The L2 tables of all guest ranges that have data.
    fn write_l2(&self, output: &mut impl Write) -> io::Result<()> {
        let geometry = self.layout.geometry;
        let bits = geometry.l2_bits();
        let mut next = self.layout.data.start;
        let mut ranges = self.clusters.iter().cloned().peekable();
        for table in tables(&self.clusters, bits) {
            for cluster in table << bits..(table + 1) << bits {
                while ranges.next_if(|range| range.end <= cluster).is_some() {}
                let entry = if ranges.peek().is_some_and(|range| range.start <= cluster) {
                    let host = self.layout.host(next);
                    next += 1;
                    L2Entry::allocated(host, geometry)
                } else {
                    L2Entry::UNALLOCATED
                };
                for word in entry.stored(geometry) {
                    output.write_u64::<BE>(word)?;
                }
            }
        }
        Ok(())
    }
}

/// The L2 tables that map any of `clusters`, in order. A table maps `1 << bits` clusters.
fn tables(clusters: &[Range<u64>], bits: u32) -> impl Iterator<Item = u64> {
    let mut done = 0;
    clusters.iter().flat_map(move |range| {
        let first = (range.start >> bits).max(done);
        let end = ((range.end - 1) >> bits) + 1;
        done = done.max(end);
        first..end
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use block::test_utils::Rng;

    use super::*;
    use crate::header::Version;

    fn qemu_img(directory: &Path, args: &[&str]) {
        let output = Command::new("qemu-img")
            .args(args)
            .current_dir(directory)
            .output()
            .expect("qemu-img must be installed");
        assert!(output.status.success(), "{args:?}: {output:?}");
    }

    /// Writes the image that holds `data` and what it is to read as, and has qemu-img compare them.
    fn assert_holds(directory: &Path, options: &CreateOptions, data: &[Range<u64>]) {
        let image = Streamed::new(options, data.iter().cloned()).unwrap();
        let mut expected = vec![0; options.size as usize];
        for range in data {
            for at in range.clone() {
                expected[at as usize] = (at % 251) as u8 + 1;
            }
        }
        let mut output = Vec::new();
        image.write_head(&mut output).unwrap();
        for range in image.ranges() {
            let start = range.start as usize;
            let inside = &expected[start..expected.len().min(range.end as usize)];
            output.extend(inside);
            output.resize(
                output.len() + (range.end - range.start) as usize - inside.len(),
                0,
            );
        }
        assert_eq!(output.len() as u64, image.file_len(), "{options:?}");
        std::fs::write(directory.join("image"), output).unwrap();
        std::fs::write(directory.join("expected"), expected).unwrap();
        qemu_img(directory, &["check", "-q", "image"]);
        qemu_img(
            directory,
            &["compare", "-q", "-f", "qcow2", "-F", "raw", "image", "expected"],
        );
    }

    #[test]
    fn qemu_finds_it_sound_and_reads_every_byte() {
        let directory = tempfile::tempdir().unwrap();
        let mut rng = Rng::new(1);
        for (version, cluster_bits, refcount_order, extended_l2, clusters) in [
            (Version::V3, 9, 6, false, 500),
            (Version::V3, 9, 0, false, 500),
            (Version::V2, 12, 4, false, 1100),
            (Version::V3, 14, 4, true, 1100),
            (Version::V3, 16, 4, false, 40),
            (Version::V3, 16, 4, true, 40),
            (Version::V3, 21, 4, false, 4),
        ] {
            let options = CreateOptions {
                size: (clusters << cluster_bits) + 512,
                version,
                cluster_bits,
                refcount_order,
                extended_l2,
                ..CreateOptions::default()
            };
            assert_holds(directory.path(), &options, &[]);
            assert_holds(
                directory.path(),
                &options,
                std::slice::from_ref(&(0..options.size)),
            );
            let mut cuts: Vec<u64> = (0..8).map(|_| rng.below(options.size)).collect();
            cuts.sort_unstable();
            let ranges: Vec<_> = cuts.chunks(2).map(|pair| pair[0]..pair[1]).collect();
            assert_holds(directory.path(), &options, &ranges);
        }
    }

    #[test]
    fn preallocated_it_holds_the_whole_disk() {
        let options = CreateOptions {
            size: 10 << 16,
            preallocation: Preallocation::Full,
            ..CreateOptions::default()
        };
        let image = Streamed::new(&options, []).unwrap();
        assert_eq!(image.ranges(), std::slice::from_ref(&(0..10 << 16)));
        assert!(
            Streamed::new(&CreateOptions { size: 0, ..options }, [])
                .unwrap()
                .ranges()
                .is_empty()
        );
    }

    #[test]
    fn ranges_must_be_in_order_and_on_the_disk() {
        let options = CreateOptions {
            size: 1 << 20,
            ..CreateOptions::default()
        };
        for ranges in [[5..6, 0..1], [0..1, 5..(1 << 20) + 1], [5..9, 8..10]] {
            Streamed::new(&options, ranges).unwrap_err();
        }
    }
}
