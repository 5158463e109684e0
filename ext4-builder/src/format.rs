//! Single structures of the format, for who changes a filesystem in place: the same encoders that make a new one.

pub use crate::acl::permissions as acl_permissions;
pub use crate::checksum::Checksum;
pub use crate::directory::{Entry, fill, put_entry, room};
pub use crate::extent::{Extent, MAX_LEN, tree, tree_blocks};
pub use crate::group_descriptor::{Seal, seal};
pub use crate::hash::{HashVersion, NameHash};
pub use crate::htree::{Directory, Plan as DirectoryPlan};
pub use crate::inline_data::{InlineData, directory as inline_directory};
pub use crate::inode::{
    FLAG_EA_INODE, FLAG_EXTENTS, FLAG_INDEX, FLAG_INLINE_DATA, FileType, MAP_SIZE, MAX_LINKS, device,
    fast_symlink, symlink_block,
};
pub use crate::orphan_file::{TAIL_SIZE as ORPHAN_TAIL_SIZE, block as orphan_block};
pub use crate::resize_inode::Reserved;
pub use crate::xattr::{
    MAX_REFERENCES, Plan as XattrPlan, Xattr, XattrBlock, fits_inode, split_name, value_hash,
};
