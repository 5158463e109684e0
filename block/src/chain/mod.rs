//! A chain of images: an active one over those that it is based on.
//!
//! # How a chain is opened
//!
//! From the top down, every file is opened and asked what it refers to; from the bottom up, the layers are then
//! made into devices. Only the first file was named by the user: the gate is asked about every other one, its
//! format must be stated by the image above (a guest could have written what a probe finds), and it is opened
//! read-only. Before anything is made into a device, the chain is known to end: a file that is in it already, told
//! by device and inode whatever its name, is an error that says which reference closes the loop, and so is a chain
//! of more than [`MAX_LAYERS`].
//!
//! # How it is read
//!
//! The active layer is opened over one device: everything below it. If that is one image, it is that image. If it
//! is more, each is opened by itself, detached, and a [`ChainBase`] joins them, which remembers who owns what: a
//! read costs one lookup there and one in the layer that owns the data, however many lie in between.
//!
//! What lies past the end of a layer on the way down reads as zeros, whatever deeper and longer layers hold there.

mod base;
mod open;
#[cfg(test)]
pub(crate) mod toy;

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use base::ChainBase;
pub use open::{format_named, probe, refuse_foreign};

use crate::gate::OpenGate;
use crate::{
    Access, Backing, BlockDevice, FileOpener, Format, KeyRing, Overlay, Result, SnapshotSelector, Storage,
};

/// Layers in a chain at most, the active one included.
pub const MAX_LAYERS: usize = 200;

/// What is opened below the first image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Below<'a> {
    /// What the image names, and what that names, down to the last.
    #[default]
    AsStored,
    /// Nothing, not even an external data file: the image alone, for looking at what it says of itself. What it
    /// does not hold reads as zeros.
    Nothing,
    /// So many images, each named by the one above, with the files that hold their data; what the last one does not
    /// hold reads as zeros. None for changing what an image keeps beside the disk, some for working on a part of a chain
    /// whose rest is opened otherwise.
    Layers(usize),
    /// This file instead of the one the image names; what that file names follows. The user named it, so the
    /// gate is not asked about it.
    Stated {
        /// The file.
        path: &'a Path,
        /// Its format.
        format: &'a str,
    },
}

/// How a chain is to be opened; the default reads what is stored, and finds out the first file's format itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct ChainOptions<'a> {
    /// The format of the first file. `None` looks at its first bytes, and takes it for raw if no format knows them.
    pub format: Option<&'a str>,
    /// What the first file is opened for. All others are opened for reading.
    pub access: Access,
    /// What is opened below it.
    pub below: Below<'a>,
    /// An internal snapshot of the first file, to be read instead of its disk.
    pub snapshot: Option<&'a SnapshotSelector>,
    /// Who has the passphrases of the images that are encrypted. Without anybody an encrypted image is refused, but with
    /// [`Below::Nothing`], where it may be looked at.
    pub keys: Option<&'a dyn KeyRing>,
    /// Encrypted images that nobody has a passphrase of are opened all the same: what they hold can't be read.
    pub locked: bool,
}

/// One image of a [`Chain`].
#[derive(Clone, Debug)]
pub struct Layer {
    /// The file: as the user named it, or as the gate resolved the name in the image above.
    pub path: PathBuf,
    /// The format's name.
    pub format: &'static str,
    /// The file, open.
    pub storage: Arc<dyn Storage>,
    /// The file that holds the layer's data, if that is another one.
    pub data_file: Option<Arc<dyn Storage>>,
    /// The layer as a device: over everything below it if it is the active one, by itself if not (what it does not
    /// hold reads as zeros, and its own extents are what to ask for).
    pub device: Arc<dyn Overlay>,
}

impl Layer {
    /// Length of the layer's disk in bytes.
    pub fn size(&self) -> u64 {
        self.device.size()
    }
}

/// An image with everything that it is based on. See the [module](self).
///
/// It is used through its active layer, which it dereferences to: `chain.read_at(...)`.
#[derive(Clone, Debug)]
pub struct Chain {
    /// The active one first. Never empty.
    layers: Vec<Layer>,
}

impl Chain {
    /// Opens the image at `path` for `access`, with what it is based on. Without a `format` it finds out that of
    /// this file, and of no other.
    ///
    /// # Errors
    /// - `InvalidInput` for a backing file whose format is not stated; the hint says how to state it.
    /// - `Unsupported` for a format that is not among `formats`, or more than [`MAX_LAYERS`].
    /// - `Corrupt` for a chain that loops.
    /// - What the gate, the opener and the formats return; a file that cannot be opened is named with the image that
    ///   names it.
    pub fn open(
        opener: &dyn FileOpener,
        formats: &[&dyn Format],
        gate: &dyn OpenGate,
        path: &Path,
        format: Option<&str>,
        access: Access,
    ) -> Result<Self> {
        let options = ChainOptions {
            format,
            access,
            ..ChainOptions::default()
        };
        Self::open_with(opener, formats, gate, path, &options)
    }

    /// Opens the image at `path` as `options` say.
    ///
    /// # Errors
    /// As [`open`](Self::open); `ReadOnly` for a snapshot that is to be written to; `Key` for an encrypted image that
    /// nobody has a passphrase of.
    pub fn open_with(
        opener: &dyn FileOpener,
        formats: &[&dyn Format],
        gate: &dyn OpenGate,
        path: &Path,
        options: &ChainOptions<'_>,
    ) -> Result<Self> {
        let opening = open::Opening {
            opener,
            formats,
            gate,
            keys: options.keys,
            locked: options.locked,
        };
        Ok(Self {
            layers: opening.open(path, options)?,
        })
    }

    /// A chain of layers that the caller has opened, the active one first, each as [`Layer::device`] says.
    ///
    /// # Panics
    /// If there is none.
    pub fn of(layers: Vec<Layer>) -> Self {
        assert!(!layers.is_empty(), "a chain has a layer");
        Self { layers }
    }

    /// What the active layer is to be opened over, given the layers below it, the upper ones first, each opened by itself.
    pub fn base(below: &[Layer]) -> Backing {
        open::joined(below.iter())
    }

    /// The layer that is written to, over all others.
    pub fn active(&self) -> &Arc<dyn Overlay> {
        &self.layers[0].device
    }

    /// The whole chain as a device, for those who keep one.
    pub fn device(&self) -> Arc<dyn BlockDevice> {
        self.active().clone()
    }

    /// The layers, the active one first.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }
}

impl Deref for Chain {
    type Target = dyn Overlay;

    fn deref(&self) -> &Self::Target {
        &**self.active()
    }
}

#[cfg(test)]
mod tests {
    use super::toy::{MemFiles, RawFormat, Toy, ToyFormat, byte_at};
    use super::*;
    use crate::gate::{Deny, Permissive};
    use crate::{ErrorKind, ExtentState};

    const FORMATS: &[&dyn Format] = &[&ToyFormat, &RawFormat];

    fn open(files: &MemFiles, path: &str, options: &ChainOptions<'_>) -> Result<Chain> {
        Chain::open_with(files, FORMATS, &Permissive::default(), Path::new(path), options)
    }

    fn stored(files: &MemFiles, path: &str) -> Result<Chain> {
        open(files, path, &ChainOptions::default())
    }

    fn refused(files: &MemFiles, path: &str) -> (ErrorKind, String, String) {
        let error = stored(files, path).unwrap_err();
        let hint = error.hint().unwrap_or_default().to_owned();
        (error.kind(), error.to_string(), hint)
    }

    fn paths(chain: &Chain) -> Vec<&str> {
        chain
            .layers()
            .iter()
            .map(|layer| layer.path.to_str().unwrap())
            .collect()
    }

    /// top over mid (shorter) over base.
    fn three() -> MemFiles {
        MemFiles::default()
            .with(
                "d/top",
                &Toy::new(5 << 12).cluster(0, 10).backing("sub/mid", Some("toy")),
            )
            .with(
                "d/sub/mid",
                &Toy::new(3 << 12).cluster(1, 20).backing("../base", Some("toy")),
            )
            .with(
                "d/sub/../base",
                &Toy::new(5 << 12)
                    .cluster(0, 30)
                    .cluster(1, 31)
                    .cluster(2, 32)
                    .cluster(3, 33),
            )
    }

    #[test]
    fn reads_through_all_layers_up_to_the_end_of_the_shortest() {
        let files = three();
        let chain = stored(&files, "d/top").unwrap();
        assert_eq!(paths(&chain), ["d/top", "d/sub/mid", "d/sub/../base"]);
        assert_eq!(
            chain.layers().iter().map(Layer::size).collect::<Vec<_>>(),
            [5 << 12, 3 << 12, 5 << 12]
        );
        let mut byte = [0];
        for (cluster, fill) in [(0, Some(10)), (1, Some(20)), (2, Some(32)), (3, None), (4, None)] {
            let offset = (cluster << 12) + 77;
            chain.read_at(&mut byte, offset).unwrap();
            assert_eq!(
                byte[0],
                fill.map_or(0, |fill| byte_at(fill, offset)),
                "cluster {cluster}"
            );
        }
    }

    #[test]
    fn only_the_first_is_opened_for_writing() {
        let files = three();
        let force_share = true;
        let write = Access {
            write: true,
            force_share,
        };
        let read = Access {
            write: false,
            force_share,
        };
        let options = ChainOptions {
            access: write,
            ..ChainOptions::default()
        };
        open(&files, "d/top", &options).unwrap();
        let accesses: Vec<_> = files.opened().into_iter().map(|(_, access)| access).collect();
        assert_eq!(accesses, [write, read, read]);
    }

    #[test]
    fn layers_below_stand_alone() {
        let files = three();
        let chain = stored(&files, "d/top").unwrap();
        let mid = &chain.layers()[1].device;
        assert!(mid.backing().is_none() && mid.backing_reference().is_some());
        assert_eq!(mid.own_extent_at(0, 1).unwrap().state, ExtentState::Hole);
        // Two lower layers are joined, one is taken as it is.
        assert_eq!(chain.active().backing().unwrap().size(), 3 << 12);
        let chain = stored(&files, "d/sub/mid").unwrap();
        assert_eq!(chain.active().backing().unwrap().size(), 5 << 12);
    }

    #[test]
    fn alone_opens_nothing_else() {
        let files = three();
        let below = Below::Nothing;
        let chain = open(
            &files,
            "d/top",
            &ChainOptions {
                below,
                ..ChainOptions::default()
            },
        )
        .unwrap();
        assert_eq!((paths(&chain), files.opened().len()), (vec!["d/top"], 1));
        let files = MemFiles::default().with("img", &Toy::new(1).data_file("gone"));
        open(
            &files,
            "img",
            &ChainOptions {
                below,
                ..ChainOptions::default()
            },
        )
        .unwrap();
    }

    #[test]
    fn another_backing_file_can_be_stated_whatever_the_gate() {
        let files = three().with("other", &Toy::new(1 << 12).cluster(0, 40));
        let below = Below::Stated {
            path: Path::new("other"),
            format: "toy",
        };
        let options = ChainOptions {
            below,
            ..ChainOptions::default()
        };
        let chain = Chain::open_with(&files, FORMATS, &Deny, Path::new("d/top"), &options).unwrap();
        assert_eq!(paths(&chain), ["d/top", "other"]);
        let below = Below::Stated {
            path: Path::new("d/top"),
            format: "toy",
        };
        let error = open(
            &files,
            "d/top",
            &ChainOptions {
                below,
                ..ChainOptions::default()
            },
        )
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn the_gate_is_asked() {
        let access = Access::READ;
        let error = Chain::open(&three(), FORMATS, &Deny, Path::new("d/top"), None, access).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied);
        let files = MemFiles::default()
            .with("img", &Toy::new(1).data_file("disk"))
            .with_bytes("disk", &[]);
        assert_eq!(
            Chain::open(&files, FORMATS, &Deny, Path::new("img"), None, access)
                .unwrap_err()
                .kind(),
            ErrorKind::Denied
        );
        assert!(stored(&files, "img").unwrap().layers()[0].data_file.is_some());
    }

    #[test]
    fn only_the_first_file_is_probed() {
        let files = MemFiles::default()
            .with("top", &Toy::new(1 << 12).backing("base", None))
            .with("empty", &Toy::new(1 << 12).backing("base", Some("")))
            .with("base", &Toy::new(1 << 12))
            .with_bytes("noise", &[7; 5000])
            .with_bytes("tiny", b"to");
        for top in ["top", "empty"] {
            let (kind, message, hint) = refused(&files, top);
            assert_eq!(kind, ErrorKind::InvalidInput, "{message}");
            assert!(
                message.starts_with(&format!("{top}: ")) && message.contains("\"base\""),
                "{message}"
            );
            assert!(
                hint.contains(&format!("imgtool rebase -u -F FORMAT -b base {top}")),
                "{hint}"
            );
        }
        assert_eq!(stored(&files, "base").unwrap().layers()[0].format, "toy");
        for raw in ["noise", "tiny"] {
            assert_eq!(stored(&files, raw).unwrap().layers()[0].format, "raw");
        }
        let raw = ChainOptions {
            format: Some("raw"),
            ..ChainOptions::default()
        };
        assert_eq!(open(&files, "base", &raw).unwrap().layers()[0].format, "raw");
    }

    #[test]
    fn an_unknown_format_is_refused_with_those_that_are_known() {
        let files = MemFiles::default().with("top", &Toy::new(1).backing("base", Some("vm\u{1b}dk")));
        let (kind, message, hint) = refused(&files, "top");
        assert_eq!(
            (kind, hint.as_str()),
            (ErrorKind::Unsupported, "known formats: toy, raw")
        );
        assert!(
            message.starts_with("top: ") && message.contains("vm\\u{1b}dk"),
            "{message}"
        );
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named_with_who_names_it() {
        let files = MemFiles::default().with("top", &Toy::new(1).backing("gone", Some("raw")));
        let (kind, message, hint) = refused(&files, "top");
        assert_eq!((kind, hint.as_str()), (ErrorKind::Io, "check the name"));
        assert!(
            message.starts_with("top: cannot open the backing file \"gone\": gone: open"),
            "{message}"
        );
    }

    #[test]
    fn a_loop_is_found_by_file_and_not_by_name() {
        let files = MemFiles::default()
            .with("self", &Toy::new(1).backing("self", Some("toy")))
            .with("a", &Toy::new(1).backing("b", Some("toy")))
            .with("b", &Toy::new(1).backing("alias", Some("toy")))
            .with_link("alias", "a")
            .with("data", &Toy::new(1).data_file("data"));
        let (kind, message, _) = refused(&files, "self");
        assert_eq!(kind, ErrorKind::Corrupt);
        assert!(message.starts_with("self: the chain loops: self"), "{message}");
        let (_, message, _) = refused(&files, "a");
        assert!(
            message.starts_with("b: the chain loops: alias is the file a again"),
            "{message}"
        );
        let (_, message, _) = refused(&files, "data");
        assert!(message.contains("the chain loops"), "{message}");
    }

    #[test]
    fn a_chain_may_be_200_deep_and_no_deeper() {
        let mut files = MemFiles::default();
        for layer in 0..MAX_LAYERS {
            let toy = Toy::new(1 << 12).backing(&(layer + 1).to_string(), Some("toy"));
            files = files.with(&layer.to_string(), &toy);
        }
        let files = files.with("200", &Toy::new(1 << 12).cluster(0, 9));
        let chain = stored(&files, "1").unwrap();
        let mut byte = [0];
        chain.read_at(&mut byte, 5).unwrap();
        assert_eq!((chain.layers().len(), byte[0]), (200, byte_at(9, 5)));
        let (kind, message, _) = refused(&files, "0");
        assert_eq!(kind, ErrorKind::Unsupported);
        assert!(message.contains("more than 200"), "{message}");
    }
}
