//! A raw data file that is no longer one.
//!
//! Of a raw data file, what no entry maps is read from the file, which is the disk; of any other it reads as zeros. So
//! before the header stops to call it raw, entries say of all of the disk that it is there. Nothing is written to the data
//! file.

use block::{BlockDevice, Result};

use crate::address::{GuestOffset, HostOffset};
use crate::entry::{L2Entry, Subclusters};
use crate::image::{Image, Writer};

impl Image {
    /// Maps what no entry says anything about. Nobody else is writing.
    pub(super) fn map_all_of_data_file(&self, writer: &Writer) -> Result<()> {
        let (end, size) = (GuestOffset(self.size()), self.geometry.cluster_size());
        let mut guest = GuestOffset(0);
        while guest < end {
            self.write_back_if_full(writer)?;
            let next = end.min(self.slice_end(guest));
            let count = (next - guest).div_ceil(size);
            let _pin = writer.epoch.pin();
            let first = guest.0 >> self.geometry.cluster_bits;
            let _range = writer.ranges.lock(first..first + count);
            let old = (0..count).map(|i| self.lookup_to_replace(writer, guest + i * size));
            let old = old.collect::<Result<Vec<_>>>()?;
            let new: Vec<L2Entry> = (0..)
                .zip(&old)
                .map(|(i, old)| self.mapped_in_data_file(*old, guest + i * size))
                .collect();
            if new != old {
                self.ensure_table(writer, guest)?;
                self.set_entries(writer, guest, new.into_iter())?;
            }
            guest = next;
        }
        self.write_back()
    }

    /// The entry with everything allocated that was not known to read as zeros.
    fn mapped_in_data_file(&self, old: L2Entry, guest: GuestOffset) -> L2Entry {
        let all = self.geometry.all_subclusters();
        match old {
            L2Entry::Standard { subclusters, .. } if subclusters.allocated | subclusters.zero != all => {
                L2Entry::Standard {
                    host: Some((HostOffset(guest.0), true)),
                    subclusters: Subclusters {
                        allocated: all & !subclusters.zero,
                        zero: subclusters.zero,
                    },
                }
            }
            old => old,
        }
    }
}
