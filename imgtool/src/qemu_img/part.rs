//! A raw image in a part of a file: what `offset` and `size` say.

use block::Storage;

use super::format_options::parse_size;
use super::json::{Json, Object};
use super::node::NodeOptions;
use super::refusal::{Refusal, reason};

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Part {
    /// Its first byte in the file.
    pub(super) start: u64,
    /// Its bytes, where it does not end with the file.
    pub(super) len: Option<u64>,
    /// Bytes of the disk.
    pub(super) size: u64,
    written: [(&'static str, Option<Json>); 2],
}

impl Part {
    /// The part that options ask for, if they do, judged in QEMU's words.
    pub(super) fn of(options: &mut NodeOptions, storage: &dyn Storage) -> Result<Option<Self>, Refusal> {
        let mut take = |key| {
            let (text, written) = options.take_json(key).unzip();
            let bytes = text.map(|text: String| parse_size(key, &text)).transpose()?;
            Ok::<_, Refusal>((bytes, (key, written)))
        };
        let ((offset, offset_written), (len, size_written)) = (take("offset")?, take("size")?);
        if offset.is_none() && len.is_none() {
            return Ok(None);
        }
        let file = storage.len().map_err(|error| Refusal::new(reason(&error)))?;
        let start = offset.unwrap_or_default();
        if start > file {
            return Err(Refusal::new(format!(
                "Offset ({start}) cannot be greater than size of the containing file ({file})"
            )));
        }
        if let Some(len) = len.filter(|len| *len > file - start) {
            // The two blanks are QEMU's.
            return Err(Refusal::new(format!(
                "The sum of offset ({start}) and size ({len}) has to be smaller or equal to the  actual size of the \
                 containing file ({file})"
            )));
        }
        if len.is_some_and(|len| !len.is_multiple_of(512)) {
            return Err(Refusal::new("Specified size is not multiple of 512"));
        }
        Ok(Some(Self {
            start,
            len,
            size: len.unwrap_or(block::size::whole_sectors(file - start)),
            written: [offset_written, size_written],
        }))
    }

    /// Adds the options as they were written.
    pub(super) fn show(&self, object: &mut Object) {
        for (key, value) in &self.written {
            object.insert_some(key, value.clone());
        }
    }
}
