//! Several disks as one.

use std::sync::Arc;

use block::{BlockDevice, DeviceInfo, Error, Extent, Result, ZeroMode};

/// Several disks, one after the other, to read from.
#[derive(Debug)]
pub struct Concat {
    /// Each with the offset that it starts at.
    parts: Vec<(u64, Arc<dyn BlockDevice>)>,
    size: u64,
}

impl Concat {
    /// Joins `parts` in order.
    ///
    /// # Errors
    /// `InvalidInput` if they are more than 2^63 bytes together.
    pub fn new(parts: Vec<Arc<dyn BlockDevice>>) -> Result<Self> {
        let mut size = 0u64;
        let mut placed = Vec::with_capacity(parts.len());
        for part in parts {
            let start = size;
            size = size
                .checked_add(part.size())
                .filter(|size| i64::try_from(*size).is_ok())
                .ok_or_else(|| Error::invalid("the disks are more than 2^63 bytes together"))?;
            if part.size() > 0 {
                placed.push((start, part));
            }
        }
        Ok(Self { parts: placed, size })
    }

    /// The part that holds `offset`, and where it starts. `offset` lies on the disk.
    fn part(&self, offset: u64) -> (u64, &Arc<dyn BlockDevice>) {
        let index = self.parts.partition_point(|(start, _)| *start <= offset) - 1;
        let (start, part) = &self.parts[index];
        (*start, part)
    }
}

impl BlockDevice for Concat {
    fn info(&self) -> DeviceInfo {
        let mut info = DeviceInfo::new("concat");
        info.read_only = true;
        info.alignment = self
            .parts
            .iter()
            .map(|(_, part)| part.info().alignment)
            .max()
            .unwrap_or(1);
        info
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let len = buf.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > self.size) {
            return Err(Error::out_of_bounds("read", offset, len, self.size));
        }
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let (start, part) = self.part(at);
            let here = (start + part.size() - at).min((buf.len() - done) as u64) as usize;
            part.read_at(&mut buf[done..done + here], at - start)?;
            done += here;
        }
        Ok(())
    }

    fn write_at(&self, _buf: &[u8], _offset: u64) -> Result<()> {
        Err(Error::read_only("write"))
    }

    fn zero_at(&self, _offset: u64, _len: u64, _mode: ZeroMode) -> Result<()> {
        Err(Error::read_only("write"))
    }

    fn discard_at(&self, _offset: u64, _len: u64) -> Result<()> {
        Err(Error::read_only("discard"))
    }

    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        if offset >= self.size || len == 0 {
            return Err(Error::out_of_bounds("query", offset, len, self.size));
        }
        let (start, part) = self.part(offset);
        let mut extent = part.extent_at(offset - start, len.min(start + part.size() - offset))?;
        extent.offset = offset;
        Ok(extent)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Extents;
    use crate::testing::{PAGE, Toy};

    #[test]
    fn reads_across_the_joints() {
        let parts = [3 * PAGE, 0, 512, 2 * PAGE].map(|size| Arc::new(Toy::new(size).filled(size + 1)));
        let whole: Vec<u8> = parts.iter().flat_map(|part| part.contents()).collect();
        let concat = Concat::new(parts.map(|part| part as _).to_vec()).unwrap();
        assert_eq!(concat.size(), whole.len() as u64);
        for (offset, len) in [
            (0, whole.len()),
            (3 * 4096 - 1, 514),
            (3 * 4096, 512),
            (whole.len(), 0),
        ] {
            let mut buf = vec![0xaa; len];
            concat.read_at(&mut buf, offset as u64).unwrap();
            assert_eq!(buf, whole[offset..offset + len]);
        }
        assert!(concat.read_at(&mut [0], concat.size()).is_err());
        let walked: u64 = Extents::new(&concat).map(|run| run.unwrap().len).sum();
        assert_eq!(walked, concat.size());
    }
}
