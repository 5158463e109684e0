//! The volume's label ("FAT Directory Structure", `ATTR_VOLUME_ID`): a short name without a dot, in which spaces may be.

use block::{Error, Result};

use crate::short_name;

/// Bytes of a label.
const LABEL_SIZE: usize = 11;

/// A label, filled up with spaces.
pub(crate) type Label = [u8; LABEL_SIZE];

/// The label that a text is; none if it is empty.
///
/// # Errors
/// `InvalidInput` for one that cannot be.
pub(crate) fn parse(text: &str) -> Result<Option<Label>> {
    let allowed = |byte: u8| byte == b' ' || short_name::is_allowed(byte) && !byte.is_ascii_lowercase();
    if text.is_empty() {
        return Ok(None);
    }
    if text.len() > LABEL_SIZE || !text.bytes().all(allowed) || text.starts_with(' ') {
        let message = format!("{text:?} cannot be the label of a FAT filesystem");
        let hint = "choose at most 11 letters in upper case, digits, spaces, or any of $%'-_@~`!(){}^#&";
        return Err(Error::invalid(message).with_hint(hint));
    }
    let mut label = [b' '; LABEL_SIZE];
    label[..text.len()].copy_from_slice(text.as_bytes());
    Ok(Some(label))
}
