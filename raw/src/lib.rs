//! Host storage, image locks and the raw disk-image format
