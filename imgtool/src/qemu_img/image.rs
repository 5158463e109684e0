//! Images as QEMU opens them: a format over a node, over what the image names below it.
//!
//! # How it works
//!
//! [`Spec`] is what the user wrote: a name, a `json:{}` name or, with `--image-opts`, a list of options. [`find`] opens the node, knows the
//! format (which is probed where nobody says it, in backing files too: that is what QEMU does, and what the native commands never
//! do), and sees to it that it can be opened. [`open`] makes devices of a whole chain.

use std::sync::Arc;

use block::chain::{Chain, Layer};
use block::{Access, Backing, Format, Keys, Overlay, SnapshotSelector, Storage};
use qcow2::{Encryption, Header};

use super::json::{Json, Object};
use super::node::{self, Flags, Node, NodeOptions, name};
use super::qcow2_words::{self, BadL1};
use super::refusal::{Refusal, reason};
use super::secret;

/// Layers in a chain at most.
const MAX_LAYERS: usize = block::chain::MAX_LAYERS;

/// An image as the user names it.
#[derive(Clone, Debug, Default)]
pub(super) struct Spec {
    pub(super) text: String,
    /// The text is a list of options.
    pub(super) image_opts: bool,
    pub(super) format: Option<String>,
}

/// A file whose format is known.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) node: Node,
    /// As shown: the format's name, or the node driver's where there is no format.
    pub(super) format: &'static str,
    pub(super) filename: String,
    /// The header of a qcow2 image that the engine can read.
    pub(super) header: Option<Header>,
    /// What the user wants below it instead.
    below: Below,
    /// The ID of the secret that opens it.
    key_secret: Option<String>,
    data_file: Option<NodeOptions>,
}

/// What is below an image.
#[derive(Debug)]
enum Below {
    /// What the image names.
    AsStored,
    Nothing,
    /// What these options say.
    Stated(NodeOptions),
}

/// An image with all that it is based on.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) chain: Chain,
    /// What is known of each layer, the active one first.
    pub(super) layers: Vec<Found>,
}

impl Image {
    pub(super) fn device(&self) -> &Arc<dyn Overlay> {
        self.chain.active()
    }

    /// The name of the active image.
    pub(super) fn filename(&self) -> &str {
        &self.layers[0].filename
    }
}

impl Spec {
    pub(super) fn new(text: &str, format: Option<&str>, image_opts: bool) -> Self {
        Self {
            text: text.to_owned(),
            image_opts,
            format: format.map(ToOwned::to_owned),
        }
    }

    /// Options, and the name of the file below the format.
    fn options(&self) -> Result<(NodeOptions, Option<String>), Refusal> {
        let mut options = NodeOptions::default();
        let mut file = None;
        if self.image_opts {
            options = NodeOptions::of_list(&self.text);
        } else if let Some(text) = self.text.strip_prefix("json:") {
            options = NodeOptions::of_json(text)?;
        } else {
            file = Some(self.text.clone());
        }
        if let Some(format) = &self.format {
            options.set_default("driver", format);
        }
        Ok((options, file))
    }
}

/// `Could not open 'F': REASON`.
pub(super) fn could_not_open(spec: &Spec) -> impl Fn(Refusal) -> Refusal {
    let text = spec.text.clone();
    move |refusal| refusal.after(format!("Could not open '{text}': "))
}

/// Opens the file of an image and nothing below it.
pub(super) fn find(spec: &Spec, flags: Flags) -> Result<Found, Refusal> {
    find_for(spec, flags, false).map_err(could_not_open(spec))
}

/// The same for a check, which opens what is damaged.
pub(super) fn find_to_check(spec: &Spec, flags: Flags) -> Result<Found, Refusal> {
    let found = find_for(spec, flags, true).map_err(could_not_open(spec))?;
    if !flags.no_backing {
        chain_below(&found, flags).map_err(could_not_open(spec))?;
    }
    Ok(found)
}

/// Opens an image and what it is based on.
pub(super) fn open(spec: &Spec, flags: Flags) -> Result<Image, Refusal> {
    open_spec(spec, flags).map_err(could_not_open(spec))
}

/// The same without `Could not open 'F'` in front of what is wrong.
pub(super) fn open_spec(spec: &Spec, flags: Flags) -> Result<Image, Refusal> {
    open_snapshot(spec, flags, None)
}

/// A snapshot of an image, if one is asked for, and what it is based on.
pub(super) fn open_snapshot(
    spec: &Spec,
    flags: Flags,
    snapshot: Option<&SnapshotSelector>,
) -> Result<Image, Refusal> {
    let top = find_for(spec, flags, false)?;
    let below = if flags.no_backing {
        Vec::new()
    } else {
        chain_below(&top, flags)?
    };
    let detached = flags.no_backing;
    let mut layers = vec![top];
    layers.extend(below);
    devices(layers, flags, detached, snapshot)
}

/// The image that options say, and what it is based on.
pub(super) fn open_options(options: NodeOptions, flags: Flags) -> Result<Image, Refusal> {
    let top = find_options(options, None, flags, false)?;
    let mut layers = vec![top];
    let below = chain_below(&layers[0], flags)?;
    layers.extend(below);
    devices(layers, flags, false, None)
}

/// An image and the next of those that it is based on, so many in all; what the last does not hold reads as zeros.
pub(super) fn open_part(spec: &Spec, flags: Flags, number: usize) -> Result<Image, Refusal> {
    let part = || {
        let mut layers = vec![find_for(spec, flags, false)?];
        let below = layers_below(&layers[0], flags, number - 1)?;
        layers.extend(below);
        devices(layers, flags, false, None)
    };
    part().map_err(could_not_open(spec))
}

/// What a part of a chain is based on.
pub(super) fn open_below(part: &Image, flags: Flags) -> Result<Image, Refusal> {
    let last = part.layers.last().and_then(Found::backing);
    let (options, file) = last.unwrap_or_else(|| Err(Refusal::new("Image does not have a backing file")))?;
    let mut layers = vec![find_options(options, file.as_deref(), flags, false)?];
    let below = chain_below(&layers[0], flags)?;
    layers.extend(below);
    devices(layers, flags, false, None)
}

/// Whether there is a format or a node driver that is called so.
pub(super) fn is_driver(name: &str) -> bool {
    matches!(name, "raw" | "qcow2") || node::is_node_driver(name)
}

fn find_for(spec: &Spec, flags: Flags, check: bool) -> Result<Found, Refusal> {
    let (options, file) = spec.options()?;
    find_options(options, file.as_deref(), flags, check)
}

fn find_options(
    mut options: NodeOptions,
    file: Option<&str>,
    flags: Flags,
    check: bool,
) -> Result<Found, Refusal> {
    let driver = options.get("driver");
    if file.is_none() && driver.as_deref().is_some_and(node::is_node_driver) {
        return Ok(Found::bare(node::open(None, options, flags)?));
    }
    if let Some(driver) = driver
        .as_deref()
        .filter(|driver| !matches!(*driver, "raw" | "qcow2" | ""))
    {
        if !node::is_node_driver(driver) {
            return Err(Refusal::new(format!("Unknown driver '{driver}'")));
        }
        return Ok(Found::bare(node::open(file, options, flags)?));
    }
    options.take("driver");
    let mut file_options = options.take_node("file");
    if let Some(reference) = options.take("file") {
        return Err(Refusal::new(format!(
            "Cannot find device='' nor node-name='{reference}'"
        )));
    }
    if file.is_none() && file_options.is_empty() {
        let text = match (&driver, options.take("filename")) {
            (None, Some(name)) => return find_options(options, Some(&name), flags, check),
            (None, None) => "Must specify either driver or file",
            (Some(_), _) => "A block device must be specified for \"file\"",
        };
        return Err(Refusal::new(text));
    }
    if file_options.get("driver").is_none() && file_options.get("filename").is_some() {
        file_options.set_default("driver", "file");
    }
    let direct = options.take("cache.direct").is_some_and(|direct| direct == "on");
    let flags = Flags {
        direct: flags.direct || direct,
        ..flags
    };
    let node = node::open(file, file_options, flags)?;
    let format = match driver.as_deref() {
        Some("qcow2") => "qcow2",
        Some(_) => "raw",
        None => probe(&*node.storage)?,
    };
    node::ignore(&mut options, &[]);
    let below = match (options.take("backing"), options.take_node("backing")) {
        (Some(_), _) => Below::Nothing,
        (None, stated) if !stated.is_empty() => Below::Stated(stated),
        _ => Below::AsStored,
    };
    let data = options.take_node("data-file");
    for engine_only in [
        "lazy-refcounts",
        "l2-cache-size",
        "cache-size",
        "refcount-cache-size",
        "cache-clean-interval",
        "overlap-check",
        "l2-cache-entry-size",
    ] {
        options.take(engine_only);
    }
    let mut encrypt = options.take_node("encrypt");
    let key_secret = encrypt.take("key-secret");
    let encrypt_format = encrypt.take("format");
    if let Some(left) = options.first() {
        return Err(Refusal::new(format!(
            "Block format '{format}' does not support the option '{left}'"
        )));
    }
    let mut header = None;
    if format == "qcow2" {
        qcow2_words::refuse(&*node.storage, flags.write, check)?;
        header = Header::read(&*node.storage).ok();
        let stored = header.as_ref().map(|header| header.encryption);
        check_method(stored, encrypt_format.as_deref())?;
    }
    // A name that leaves out how to read the image would not say everything.
    let filename = if let Some(exact) = node.exact().filter(|_| key_secret.is_none()) {
        exact.to_owned()
    } else {
        let mut shown = Object::default();
        shown.insert("driver", format);
        shown.insert_some("encrypt.key-secret", key_secret.clone());
        shown.insert("file", node.to_json());
        format!("json:{}", Json::from(shown).compact())
    };
    Ok(Found {
        node,
        format,
        filename,
        header,
        below,
        key_secret,
        data_file: Some(data).filter(|data| !data.is_empty()),
    })
}

/// Fails where options say that an image is encrypted in another way than it is.
fn check_method(stored: Option<Encryption>, said: Option<&str>) -> Result<(), Refusal> {
    let name = match stored {
        Some(Encryption::Aes) => "aes",
        Some(Encryption::Luks) => "luks",
        _ => return Ok(()),
    };
    match said.filter(|said| *said != name) {
        Some(said) => Err(Refusal::new(format!(
            "Header reported '{name}' encryption format but options specify '{said}'"
        ))),
        None => Ok(()),
    }
}

/// The format of a file by its first bytes.
fn probe(storage: &dyn Storage) -> Result<&'static str, Refusal> {
    let mut head = [0; 4];
    storage.read_exact_at(&mut head, 0).map_err(|error| {
        Refusal::new(format!(
            "Could not read image for determining its format: {}",
            reason(&error)
        ))
    })?;
    Ok(if Header::probe(&head) { "qcow2" } else { "raw" })
}

impl Found {
    /// A node that is used as it is.
    fn bare(node: Node) -> Self {
        Self {
            format: node.driver,
            filename: node.filename(),
            node,
            header: None,
            below: Below::Nothing,
            key_secret: None,
            data_file: None,
        }
    }

    /// The name of the backing file as the image has it.
    pub(super) fn backing_name(&self) -> Option<String> {
        Some(self.header.as_ref()?.backing()?.name)
    }

    /// Its format, as the image has it.
    pub(super) fn backing_format(&self) -> Option<String> {
        self.header.as_ref()?.backing()?.format
    }

    /// The file that this name means.
    pub(super) fn full_backing(&self, name: &str) -> Option<String> {
        if name.starts_with("json:") {
            return Some(name.to_owned());
        }
        name::combine(self.node.directory.as_deref(), name)
    }

    /// The image below, as a name and a format.
    pub(super) fn backing(&self) -> Option<Result<(NodeOptions, Option<String>), Refusal>> {
        let mut stated = NodeOptions::default();
        if let Below::Stated(options) = &self.below {
            stated = options.clone();
            if stated.names_file() {
                return Some(Ok((stated, None)));
            }
        }
        let name = self
            .backing_name()
            .filter(|_| !matches!(self.below, Below::Nothing))?;
        let Some(full) = self.full_backing(&name) else {
            let text = format!(
                "Cannot generate a base directory with the exact filename for '{}'",
                self.filename
            );
            return Some(Err(Refusal::new(text)));
        };
        let spec = Spec {
            text: full,
            image_opts: false,
            format: self.backing_format().filter(|format| !format.is_empty()),
        };
        // What is stated beside the file's name comes first.
        Some(spec.options().map(|(options, file)| {
            stated.add(options);
            (stated, file)
        }))
    }

    /// What an encrypted image is opened with. One that is only looked at needs nothing.
    fn keys(&self, flags: Flags) -> Result<Keys, Refusal> {
        let encrypted = self
            .header
            .as_ref()
            .is_some_and(|header| header.encryption != Encryption::None);
        match &self.key_secret {
            _ if !encrypted => Ok(Keys::None),
            Some(id) => Ok(Keys::Passphrases(vec![secret::passphrase(id)?])),
            None if flags.no_backing || flags.locked => Ok(Keys::Locked),
            None => Err(Refusal::new(
                "Parameter 'encrypt.key-secret' is required for cipher",
            )),
        }
    }

    /// What is wrong with a snapshot, if that is why the image cannot be used.
    pub(super) fn bad_snapshot(&self) -> Option<BadL1> {
        let snapshots = qcow2_words::snapshots(self.header.as_ref()?, &*self.node.storage);
        snapshots.into_iter().find_map(|snapshot| snapshot.wrong)
    }

    fn open_data(&self, flags: Flags) -> Result<Option<Node>, Refusal> {
        let stored = self.header.as_ref().and_then(Header::data_file);
        let Some(stored) = stored else {
            return match &self.data_file {
                None => Ok(None),
                Some(_) => Err(Refusal::new(
                    "'data-file' can only be set for images with an external data file",
                )),
            };
        };
        if let Some(options) = &self.data_file {
            let mut options = options.clone();
            options.set_default("driver", "file");
            return node::open(None, options, flags).map(Some);
        }
        let name = stored.name.and_then(|name| self.full_backing(&name));
        let Some(name) = name else {
            return Err(Refusal::new("'data-file' is required for this image"));
        };
        node::open(Some(&name), NodeOptions::default(), flags).map(Some)
    }
}

/// All images below one, with the files that they lie in.
fn chain_below(top: &Found, flags: Flags) -> Result<Vec<Found>, Refusal> {
    layers_below(top, flags, usize::MAX)
}

/// The first images below one, so many at most.
fn layers_below(top: &Found, flags: Flags, number: usize) -> Result<Vec<Found>, Refusal> {
    let flags = Flags {
        write: false,
        ..flags
    };
    let mut chain: Vec<Found> = Vec::new();
    while chain.len() < number {
        let above = chain.last().unwrap_or(top);
        let Some(next) = above.backing() else {
            return Ok(chain);
        };
        // QEMU says it once for every layer.
        let prefixes = "Could not open backing file: ".repeat(chain.len() + 1);
        let found = next.and_then(|(options, file)| find_options(options, file.as_deref(), flags, false));
        let found = found.map_err(|refusal| refusal.after(&prefixes))?;
        let id = found.node.file().file_id();
        let looped = id.is_some()
            && std::iter::once(top)
                .chain(&chain)
                .any(|layer| layer.node.file().file_id() == id);
        if looped || chain.len() == MAX_LAYERS {
            let text = format!("Backing file '{}' creates an infinite loop.", found.filename);
            return Err(Refusal::new(text));
        }
        chain.push(found);
    }
    Ok(chain)
}

/// Makes devices of files, from the last one up.
fn devices(
    found: Vec<Found>,
    flags: Flags,
    detached: bool,
    snapshot: Option<&SnapshotSelector>,
) -> Result<Image, Refusal> {
    let mut layers: Vec<Layer> = Vec::new();
    for (depth, image) in found.iter().enumerate().rev() {
        let write = flags.write && depth == 0;
        let data = image.open_data(Flags { write, ..flags })?;
        let named = image.backing_name().is_some();
        let backing = if depth == 0 && !layers.is_empty() {
            Chain::base(&layers)
        } else if named || detached {
            Backing::Detached
        } else {
            Backing::None
        };
        let access = Access {
            write,
            force_share: flags.force_share,
        };
        let format: &dyn Format = match image.format {
            "qcow2" => &qcow2::Qcow2,
            _ => &raw::Raw,
        };
        let data = data.map(|node| node.storage);
        // A format without metadata has nothing but guest data.
        let (storage, way) = match (&image.node.data, image.header.is_some()) {
            (Some(data), false) => (data.clone(), None),
            (way, _) => (
                image.node.storage.clone(),
                way.clone().filter(|way| way.file_id().is_some()),
            ),
        };
        let keys = image.keys(flags)?;
        let device = match snapshot.filter(|_| depth == 0) {
            Some(snapshot) => format
                .open_snapshot(storage, snapshot, backing, keys)
                .map_err(|error| match image.bad_snapshot() {
                    Some(wrong) => Refusal::new(wrong.text()),
                    None => no_snapshot(&error),
                })
                .map_err(|refusal| refusal.after("Failed to load snapshot: "))?,
            None => format
                .open(storage, data.clone().or(way), access, backing, keys)
                .map_err(|error| engine_words(&error))?,
        };
        layers.insert(
            0,
            Layer {
                path: image.filename.clone().into(),
                format: image.format,
                storage: image.node.storage.clone(),
                data_file: data,
                device,
            },
        );
    }
    Ok(Image {
        chain: Chain::of(layers),
        layers: found,
    })
}

/// What the engine says, where QEMU has no words for it.
pub(super) fn engine_words(error: &block::Error) -> Refusal {
    use block::ErrorKind;
    match error.kind() {
        ErrorKind::Key => Refusal::new("Invalid password, cannot unlock any keyslot"),
        ErrorKind::Io | ErrorKind::NoSpace => Refusal::new(reason(error)),
        _ => Refusal::new(error.message().to_owned()),
    }
}

/// Why a snapshot is not opened.
fn no_snapshot(error: &block::Error) -> Refusal {
    match error.kind() {
        block::ErrorKind::InvalidInput if error.message().starts_with("there is no snapshot") => {
            Refusal::new("Can't find snapshot")
        }
        _ => engine_words(error),
    }
}

/// Whether a file is one of those that an image lies in.
pub(super) fn is_same_file(image: &Image, path: &str) -> bool {
    let files = image.layers.iter().map(|layer| layer.node.file());
    crate::target::is_one_of(path.as_ref(), files)
}
