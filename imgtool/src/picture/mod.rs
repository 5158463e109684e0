//! Pictures of where a disk's data is, for a browser and for a terminal, and of chains.
//!
//! A [survey](Survey) walks the disk once as the guest sees it, once layer by layer and once file by file, and counts what
//! it finds into strips of cells. However large the disk, a strip has [`CELLS`] cells at most, so pictures are small and
//! the memory for one does not depend on the image. What is less than a cell is still counted, and still shows: a cell
//! is drawn as the shares of what is in it, and nothing that is there has no height.

mod bar;
mod strip;
mod survey;
mod svg;
mod tree;

pub(crate) use bar::print_bars;
pub(crate) use survey::{Part, Survey};
pub(crate) use svg::draw;
pub(crate) use tree::{print_tree, tree};

/// Cells of a strip at most.
const CELLS: u64 = 960;

/// Layers with a colour of their own; those below share the last one.
const COLOURS: usize = 6;

/// Layers that are shown by themselves at most.
const SHOWN: usize = 16;

/// What some bytes are, as far as a picture shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// Data of a layer.
    Data(usize),
    /// Data of a layer, compressed.
    Compressed(usize),
    /// Zeros by some layer's statement.
    Zero,
    /// In no layer, or in no place of a file.
    Hole,
    /// Taken in a file by what is not mapped as it is.
    Other,
}

impl Class {
    const COUNT: usize = 2 * COLOURS + 3;

    fn all() -> impl Iterator<Item = Self> {
        let layers = (0..COLOURS).flat_map(|layer| [Self::Data(layer), Self::Compressed(layer)]);
        layers.chain([Self::Zero, Self::Other, Self::Hole])
    }

    fn index(self) -> usize {
        match self {
            Self::Data(layer) => 2 * layer.min(COLOURS - 1),
            Self::Compressed(layer) => 2 * layer.min(COLOURS - 1) + 1,
            Self::Zero => 2 * COLOURS,
            Self::Hole => 2 * COLOURS + 1,
            Self::Other => 2 * COLOURS + 2,
        }
    }
}
