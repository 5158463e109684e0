//! The file that is looked at: reads that never reach past its end.

use std::collections::BTreeMap;
use std::sync::Arc;

use block::{Result, Storage};

/// Bytes that are looked through at once.
const PIECE: u64 = 1 << 20;

/// A file, and its length when it was opened.
#[derive(Debug)]
pub(crate) struct File {
    storage: Arc<dyn Storage>,
    len: u64,
}

impl File {
    pub(crate) fn new(storage: Arc<dyn Storage>) -> Result<Self> {
        let len = storage.len()?;
        Ok(Self { storage, len })
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// The `N` bytes at `offset`, if the file has them.
    pub(crate) fn bytes<const N: usize>(&self, offset: u64) -> Result<Option<[u8; N]>> {
        let mut bytes = [0; N];
        if offset.checked_add(N as u64).is_none_or(|end| end > self.len) {
            return Ok(None);
        }
        self.storage.read_exact_at(&mut bytes, offset)?;
        Ok(Some(bytes))
    }

    /// As many of the `len` bytes at `offset` as the file has.
    pub(crate) fn some(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let len = self.len.saturating_sub(offset).min(len as u64);
        let mut bytes = vec![0; len as usize];
        self.storage.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Hands the bytes of `start..end` to `each` in pieces of whole multiples of 512, until it says `false`.
    pub(crate) fn pieces(
        &self,
        start: u64,
        end: u64,
        mut each: impl FnMut(u64, &[u8]) -> bool,
    ) -> Result<()> {
        let end = end.min(self.len);
        let mut buffer = Vec::new();
        let mut at = start;
        while at < end {
            let run = self.storage.host_extent(at, end - at)?;
            let len = run.len.clamp(1, end - at);
            if run.data {
                let len = len.min(PIECE);
                buffer.resize(len as usize, 0);
                self.storage.read_exact_at(&mut buffer, at)?;
                if !each(at, &buffer) {
                    return Ok(());
                }
                at += len;
            } else {
                at += len;
            }
        }
        Ok(())
    }

    /// The first byte from `start` on that is not zero.
    pub(crate) fn data_from(&self, start: u64) -> Result<Option<u64>> {
        let mut found = None;
        self.pieces(start, self.len, |at, piece| {
            found = piece
                .iter()
                .position(|byte| *byte != 0)
                .map(|place| at + place as u64);
            found.is_none()
        })?;
        Ok(found)
    }
}

/// Places in a file that may be taken once. Runs of them are kept, and not each one: a run may be as long as the file, which may be
/// all hole, and what names it has a few bytes.
#[derive(Debug)]
pub(crate) struct Places {
    /// Ends of the runs that are taken, by their starts. Between two of them there is a place that is not.
    taken: BTreeMap<u64, u64>,
    unit: u64,
    len: u64,
}

impl Places {
    /// None is taken. `unit` is what places are multiples of.
    pub(crate) fn new(file: &File, unit: u64) -> Self {
        Self::within(file.len(), unit)
    }

    /// As [`Places::new`], of anything that has `len` bytes, or of `len` things if `unit` is 1.
    pub(crate) fn within(len: u64, unit: u64) -> Self {
        Self {
            taken: BTreeMap::new(),
            unit,
            len,
        }
    }

    /// Takes the place at `offset`. `false` if it is not in the file, between two places, or taken.
    pub(crate) fn take(&mut self, offset: u64) -> bool {
        self.take_all(offset, 1)
    }

    /// Takes the places from `start` on that `len` bytes touch. `false` if one of them is not in the file or taken, or `start` lies
    /// between two; then none is taken.
    pub(crate) fn take_all(&mut self, start: u64, len: u64) -> bool {
        let (first, units) = (start / self.unit, len.div_ceil(self.unit));
        let end = first.saturating_add(units);
        if !start.is_multiple_of(self.unit) || end > self.len.div_ceil(self.unit) {
            return false;
        }
        if units == 0 {
            return true;
        }
        // The last run that starts before the end is the only one that can reach into these places.
        let before = self.taken.range_mut(..end).next_back();
        let from = match before {
            Some((_, taken)) if *taken > first => return false,
            Some((from, taken)) if *taken == first => {
                *taken = end;
                *from
            }
            _ => {
                self.taken.insert(first, end);
                first
            }
        };
        // Neighbours become one run.
        if let Some(behind) = self.taken.remove(&end) {
            self.taken.insert(from, behind);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use block::MemStorage;

    use super::*;

    #[test]
    fn places_are_taken_once_and_only_in_the_file() {
        let file = File::new(Arc::new(MemStorage::from(vec![0_u8; 100 * 512 + 1]))).unwrap();
        let mut places = Places::new(&file, 512);
        assert!(places.take(0) && !places.take(0) && !places.take(100));
        assert!(places.take_all(30 * 512, 40 * 512));
        for at in [29, 30, 63, 64, 69] {
            assert!(!places.take_all(at * 512, 1024), "{at}");
        }
        assert!(places.take(70 * 512) && places.take_all(80 * 512, 1));
        // The last one is in the file as far as it goes.
        assert!(!places.take_all(99 * 512, 3 * 512) && places.take_all(99 * 512, 1024));
        assert!(!places.take(101 * 512) && !places.take_all(0, u64::MAX));
        assert!(!places.take(u64::MAX - 511));
    }

    #[test]
    fn runs_of_places_that_touch_are_kept_as_one() {
        let mut places = Places::within(u64::MAX, 512);
        assert!(places.take_all(0, 1 << 60) && places.taken.len() == 1);
        let place = |number: u64| (1 << 60) + number * 512;
        // Every other one first, and then those between them.
        for number in (1..1000).step_by(2) {
            assert!(places.take(place(number)) && !places.take(place(number)));
        }
        assert_eq!(places.taken.len(), 501);
        assert!(!places.take_all(place(0), 1024) && !places.take_all(place(998), 1024));
        for number in (0..1000).step_by(2) {
            assert!(places.take(place(number)) && !places.take(place(number)));
        }
        assert_eq!(places.taken.len(), 1);
        assert!(places.take_all(place(1000), 0) && !places.take_all(place(999), 1 << 20));
        assert!(places.take_all(place(1000), 1 << 20) && places.taken.len() == 1);
    }
}
