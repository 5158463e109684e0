//! The qcow2 disk-image format: copy-on-write images with backing chains
