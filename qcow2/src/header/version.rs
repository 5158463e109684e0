//! From one version of the header to the other.

use super::{Header, Version};
use crate::compression::CompressionType;
use crate::feature::{AutoclearFeatures, CompatibleFeatures, FeatureNames, IncompatibleFeatures};

/// Padding behind `compression_type`, with which a new header is 112 bytes long.
const PADDING: usize = 7;
/// Largest log2 of the cluster size at which the header has no room to spare for a feature name table.
const MAX_BITS_WITHOUT_NAMES: u32 = 12;

/// What a new header of version 3 has from byte 105 on.
pub(crate) fn new_later_fields() -> Vec<u8> {
    vec![0; PADDING]
}

/// The feature name table that a new header of version 3 has, if there is room.
pub(crate) fn new_feature_names(cluster_bits: u32) -> Option<FeatureNames> {
    (cluster_bits > MAX_BITS_WITHOUT_NAMES).then(FeatureNames::known)
}

impl Header {
    /// Makes it one of version 3, with no feature in use.
    pub(crate) fn upgrade(&mut self) {
        self.version = Version::V3;
        self.later_fields = new_later_fields();
        self.extensions.feature_names = new_feature_names(self.geometry.cluster_bits);
    }

    /// Makes it one of version 2, which has no feature bits, no names for any, and no bitmaps. Incompatible features
    /// must not be in use.
    pub(crate) fn downgrade(&mut self) {
        self.version = Version::V2;
        self.later_fields.clear();
        self.compatible = CompatibleFeatures::empty();
        self.autoclear = AutoclearFeatures::empty();
        self.extensions.feature_names = None;
        self.extensions.bitmaps = None;
    }

    /// Says how compressed clusters are compressed. There must be none that are not.
    pub(crate) fn set_compression(&mut self, compression: CompressionType) {
        self.compression = compression;
        let stated = compression != CompressionType::default();
        self.incompatible
            .set(IncompatibleFeatures::COMPRESSION_TYPE, stated);
        if stated && self.later_fields.is_empty() {
            self.later_fields = new_later_fields();
        }
    }
}
