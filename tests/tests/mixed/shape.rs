//! What an image of these tests is like.

use block::DataFileReference;
use block::test_utils::Rng;
use qcow2::CreateOptions;
use tests::Shape;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) shape: Shape,
    /// Length of the disk at first, in bytes.
    pub(crate) size: u64,
    /// Length of the backing file, in bytes.
    pub(crate) backing: Option<u64>,
    /// An external data file, and whether it is a raw one.
    pub(crate) data_file: Option<bool>,
}

impl Kind {
    pub(crate) fn with_subclusters(rng: &mut Rng) -> Self {
        Self::new(true, None, rng)
    }

    pub(crate) fn plain(rng: &mut Rng) -> Self {
        Self::new(false, None, rng)
    }

    /// With and without subclusters.
    pub(crate) fn with_data_file(rng: &mut Rng) -> Self {
        Self::new(rng.coin(), Some(rng.coin()), rng)
    }

    fn new(extended_l2: bool, data_file: Option<bool>, rng: &mut Rng) -> Self {
        let v2 = !extended_l2 && data_file.is_none() && rng.below(4) == 0;
        let cluster_bits = if extended_l2 {
            14 + rng.below(3) as u32
        } else {
            9 + rng.below(5) as u32
        };
        let mut kind = Self {
            shape: Shape {
                cluster_bits,
                refcount_order: if v2 { 4 } else { rng.below(7) as u32 },
                v2,
                zstd: !v2 && data_file.is_none() && rng.coin(),
                extended_l2,
                lazy: !v2 && rng.below(3) == 0,
            },
            size: 0,
            backing: None,
            data_file,
        };
        kind.size = kind.random_size(rng);
        // A raw data file is the whole disk, and nothing can lie below it.
        if data_file != Some(true) && rng.coin() {
            kind.backing = Some(kind.random_size(rng));
        }
        kind
    }

    /// Whole sectors; several L2 tables where those are small.
    pub(crate) fn random_size(&self, rng: &mut Rng) -> u64 {
        let clusters = match self.shape.cluster_bits {
            ..12 => 150,
            12..15 => 30,
            _ => 12,
        };
        512 * (1 + rng.below((clusters << self.shape.cluster_bits) / 512))
    }

    pub(crate) fn create_options(&self) -> CreateOptions {
        let mut options = self
            .shape
            .create_options(self.size, self.backing.map(|_| ("base.raw", "raw")));
        options.data_file = self.data_file.map(|raw| DataFileReference {
            name: Some("data.raw".to_owned()),
            raw,
        });
        options
    }
}
