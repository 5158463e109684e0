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
use encryption::LuksFormat;
use qcow2::{Encryption, Header};

use super::image_options::{Below, DataOptions, OPEN_BACKING, check_method};
use super::json::{Json, Object};
use super::node::common::NodeName;
use super::node::{self, Flags, Node, NodeOptions, name, no_node};
use super::part::Part;
use super::qcow2_words::{self, BadL1};
use super::refusal::{Refusal, reason};
use super::secret;
use crate::stores::refuse_base;

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
    /// Nobody said which format it is in.
    pub(super) probed: bool,
    /// The header of a qcow2 image that the engine can read.
    pub(super) header: Option<Header>,
    /// Of a raw image that is in a part of the file.
    pub(super) part: Option<Part>,
    /// What the user wants below it instead.
    below: Below,
    /// The ID of the secret that opens it.
    key_secret: Option<String>,
    data_file: Option<DataOptions>,
    /// Its options ask for no locks, of what is below it either.
    force_share: bool,
    /// All options that it was opened with.
    pub(super) shown: Object,
    /// Which is taken as long as it is open.
    _name: Option<NodeName>,
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
            options = NodeOptions::of_image_opts(&self.text);
        } else if let Some(text) = self.text.strip_prefix("json:") {
            options = NodeOptions::of_json(text)?;
        } else {
            file = Some(self.text.clone());
        }
        // Whatever a json: name says.
        if let Some(format) = &self.format {
            options.set("driver", format);
        }
        Ok((options, file))
    }
}

impl Found {
    /// Fails if a disk in a store of machines is based on the file: what that reads is about to change.
    pub(super) fn refuse_base(&self) -> Result<(), Refusal> {
        let refused = self.node.file().path().map_or(Ok(()), refuse_base);
        refused
            .map_err(|error| Refusal::new(format!("Could not open '{}': {}", self.filename, error.message())))
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
    // A check does not look into it, and finds nothing wrong where all of the data is gone.
    found.open_data(flags).map_err(could_not_open(spec))?;
    if !flags.no_backing {
        chain_below(&found, flags).map_err(could_not_open(spec))?;
    }
    Ok(found)
}

/// Opens what a file that was [found](find) is based on.
pub(super) fn go_on(spec: &Spec, found: Found, flags: Flags) -> Result<Image, Refusal> {
    with_below(found, flags, None).map_err(could_not_open(spec))
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
    with_below(find_for(spec, flags, false)?, flags, snapshot)
}

fn with_below(top: Found, flags: Flags, snapshot: Option<&SnapshotSelector>) -> Result<Image, Refusal> {
    let below = if flags.no_backing {
        Vec::new()
    } else {
        chain_below(&top, flags)?
    };
    let mut layers = vec![top];
    layers.extend(below);
    devices(layers, flags, flags.no_backing, snapshot)
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
    with_below(find_options(options, file.as_deref(), flags, false)?, flags, None)
}

/// Whether there is a format or a node driver that is called so.
pub(super) fn is_driver(name: &str) -> bool {
    is_format(name) || node::is_node_driver(name)
}

fn is_format(name: &str) -> bool {
    matches!(name, "raw" | "qcow2" | "luks")
}

fn find_for(spec: &Spec, flags: Flags, check: bool) -> Result<Found, Refusal> {
    if flags.write && flags.force_share {
        return Err(Refusal::new(
            "force-share=on can only be used with read-only images",
        ));
    }
    let (options, file) = spec.options()?;
    find_options(options, file.as_deref(), flags, check)
}

fn find_options(
    mut options: NodeOptions,
    file: Option<&str>,
    flags: Flags,
    check: bool,
) -> Result<Found, Refusal> {
    // What is no text says nothing, and neither does a reference that is none.
    let driver = options.take_text("driver");
    match driver.as_deref() {
        Some(driver) if node::is_node_driver(driver) => {
            options.set("driver", driver);
            return Ok(Found::bare(node::open(file, options, flags)?));
        }
        Some(driver) if !is_format(driver) => {
            return Err(Refusal::new(format!("Unknown driver '{driver}'")));
        }
        _ => {}
    }
    let reference = options.take_text("file");
    let file_options = options.take_node("file");
    if let Some(reference) = reference {
        return Err(no_node(&reference));
    }
    if file.is_none() && file_options.is_empty() {
        let text = match &driver {
            None => "Must specify either driver or file",
            Some(_) => "A block device must be specified for \"file\"",
        };
        return Err(Refusal::new(text));
    }
    let flags = node::common::take(&mut options, flags)?;
    let name = options.take("node-name");
    let node = node::open(file, file_options, flags)?;
    let name = name.map(NodeName::claim).transpose()?;
    let format = match driver.as_deref() {
        Some("qcow2") => "qcow2",
        Some("luks") => "luks",
        Some(_) => "raw",
        None => probe(&*node.storage)?,
    };
    let below = Below::take(&mut options, format, flags)?;
    let (mut part, mut data, mut header, mut key_secret) = (None, None, None, None);
    match format {
        "raw" => part = Part::of(&mut options, &*node.storage)?,
        "luks" => {
            key_secret = options.take("key-secret");
            encryption::read_luks(&*node.storage).map_err(|error| no_luks(&error))?;
        }
        _ => {
            qcow2_words::refuse(&*node.storage, flags.write, check)?;
            header = Header::read(&*node.storage).ok();
            data = DataOptions::take(&mut options);
            node::tuning::take(&mut options, header.as_ref())?;
            let mut encrypt = options.take_node("encrypt");
            key_secret = encrypt.take("key-secret");
            check_method(header.as_ref(), &mut encrypt)?;
        }
    }
    if let Some(left) = options.first() {
        return Err(Refusal::new(format!(
            "Block format '{format}' does not support the option '{left}'"
        )));
    }
    let mut shown = Object::default();
    shown.insert("driver", format);
    if let Some(part) = &part {
        part.show(&mut shown);
    }
    shown.insert_some(key_option(format), key_secret.clone());
    shown.insert("file", node.to_json());
    // A name that leaves out how to read the image would not say everything.
    let filename = match node.exact().filter(|_| key_secret.is_none() && part.is_none()) {
        Some(exact) => exact.to_owned(),
        None => format!("json:{}", Json::from(shown.clone()).compact()),
    };
    Ok(Found {
        node,
        format,
        filename,
        probed: driver.is_none(),
        header,
        part,
        below,
        key_secret,
        data_file: data,
        force_share: flags.force_share,
        shown,
        _name: name,
    })
}

/// What names the secret of an image in this format.
fn key_option(format: &str) -> &'static str {
    match format {
        "luks" => "key-secret",
        _ => "encrypt.key-secret",
    }
}

/// Why a file is no disk in LUKS's own form.
fn no_luks(error: &block::Error) -> Refusal {
    match error.kind() {
        block::ErrorKind::InvalidInput => Refusal::new("Volume is not in LUKS format"),
        _ => engine_words(error),
    }
}

/// Bytes by which a format is told.
const PROBED: u64 = 512;

/// The format of a file by its first bytes. What is in another that QEMU knows is refused, and never taken for a raw disk.
fn probe(storage: &dyn Storage) -> Result<&'static str, Refusal> {
    let could_not = |error: block::Error| {
        Refusal::new(format!(
            "Could not read image for determining its format: {}",
            reason(&error)
        ))
    };
    let len = storage.len().map_err(could_not)?.min(PROBED);
    let mut head = vec![0; len as usize];
    storage.read_exact_at(&mut head, 0).map_err(could_not)?;
    if Header::probe(&head) {
        return Ok("qcow2");
    }
    if LuksFormat.probe(&head) {
        return Ok("luks");
    }
    match block::foreign_format(&head) {
        Some(name) => Err(Refusal::new(format!("Unknown driver '{name}'"))),
        None => Ok("raw"),
    }
}

impl Found {
    /// A node that is used as it is.
    fn bare(node: Node) -> Self {
        Self {
            format: node.driver,
            filename: node.filename(),
            shown: node.to_json(),
            probed: false,
            node,
            header: None,
            part: None,
            below: Below::Nothing,
            key_secret: None,
            data_file: None,
            force_share: false,
            _name: None,
        }
    }

    /// There is no format, only a node.
    pub(super) fn is_bare(&self) -> bool {
        self.node.own_disk().is_none() && self.format == self.node.driver
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

    /// What is below it is what it names.
    fn names_below(&self) -> bool {
        matches!(self.below, Below::AsStored)
    }

    /// The image below, as a name and a format.
    pub(super) fn backing(&self) -> Option<Result<(NodeOptions, Option<String>), Refusal>> {
        let mut stated = NodeOptions::default();
        if let Below::Stated(options) = &self.below {
            stated = options.clone();
            if stated.names_file() || self.backing_name().is_none() {
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
        let header = self.header.as_ref();
        let encrypted =
            self.format == "luks" || header.is_some_and(|header| header.encryption != Encryption::None);
        match &self.key_secret {
            _ if !encrypted => Ok(Keys::None),
            Some(id) => Ok(Keys::Passphrases(vec![secret::passphrase(id)?])),
            // QEMU wants the key of a disk that is to be changed, whatever there is to change.
            None if flags.locked || flags.no_backing && !flags.write => Ok(Keys::Locked),
            None => Err(Refusal::new(format!(
                "Parameter '{}' is required for cipher",
                key_option(self.format)
            ))),
        }
    }

    /// What is wrong with a snapshot, if that is why the image cannot be used.
    pub(super) fn bad_snapshot(&self) -> Option<BadL1> {
        let snapshots = qcow2_words::snapshots(self.header.as_ref()?, &*self.node.storage);
        snapshots.into_iter().find_map(|snapshot| snapshot.wrong)
    }

    /// The snapshot that is meant: what stands for an ID or a name is an ID first, and of those of one name it is the first.
    fn one_snapshot(&self, which: &SnapshotSelector) -> Result<SnapshotSelector, Refusal> {
        let Some(header) = &self.header else {
            return Ok(which.clone());
        };
        let all = qcow2_words::snapshots(header, &*self.node.storage);
        let by_id = |text: &String| all.iter().find(|snapshot| snapshot.id == *text);
        let found = match which {
            SnapshotSelector::Either(text) => by_id(text),
            SnapshotSelector::Exactly { .. } => None,
        };
        let found = found.or_else(|| all.iter().find(|one| which.matches(&one.id, &one.name)));
        let found = found.ok_or_else(|| Refusal::new("Can't find snapshot"))?;
        Ok(SnapshotSelector::id(&*found.id))
    }

    fn open_data(&self, flags: Flags) -> Result<Option<Node>, Refusal> {
        let flags = Flags {
            force_share: flags.force_share || (self.force_share && !flags.write),
            ..flags
        };
        let stored = self.header.as_ref().and_then(Header::data_file);
        if let Some(DataOptions::Reference(name)) = &self.data_file {
            return Err(no_node(name));
        }
        let Some(stored) = stored else {
            return match &self.data_file {
                None => Ok(None),
                Some(_) => Err(Refusal::new(
                    "'data-file' can only be set for images with an external data file",
                )),
            };
        };
        if let Some(DataOptions::Stated(options)) = &self.data_file {
            return node::open(None, options.clone(), flags).map(Some);
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
        force_share: flags.force_share || top.force_share,
        ..flags
    };
    let mut chain: Vec<Found> = Vec::new();
    while chain.len() < number {
        let above = chain.last().unwrap_or(top);
        let Some(next) = above.backing() else {
            return Ok(chain);
        };
        // QEMU says it once for every layer.
        let prefixes = OPEN_BACKING.repeat(chain.len() + 1);
        let found = next.and_then(|(options, file)| find_options(options, file.as_deref(), flags, false));
        let found = found.map_err(|refusal| refusal.after(&prefixes))?;
        let id = found.node.file().file_id();
        // Options end somewhere; what files name leads back to the same file for ever.
        let looped = id.is_some()
            && std::iter::once(top)
                .chain(&chain)
                .any(|layer| layer.node.file().file_id() == id && layer.names_below() && found.names_below());
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
        let backing = if depth == 0 && !layers.is_empty() {
            Chain::base(&layers)
        } else if image.backing_name().is_some() || detached {
            Backing::Detached
        } else {
            Backing::None
        };
        let write = flags.write && depth == 0;
        let layer = image.layer(backing, Flags { write, ..flags }, snapshot.filter(|_| depth == 0));
        let layer = layer.map_err(|refusal| refusal.after(OPEN_BACKING.repeat(depth)))?;
        layers.insert(0, layer);
    }
    Ok(Image {
        chain: Chain::of(layers),
        layers: found,
    })
}

impl Found {
    /// The device that it is, or that a snapshot in it is.
    fn layer(
        &self,
        backing: Backing,
        flags: Flags,
        snapshot: Option<&SnapshotSelector>,
    ) -> Result<Layer, Refusal> {
        let data = self.open_data(flags)?;
        let access = Access {
            write: flags.write,
            force_share: flags.force_share,
        };
        let format: &dyn Format = match self.format {
            "qcow2" => &qcow2::Qcow2,
            "luks" => &LuksFormat,
            _ => &raw::Raw,
        };
        let data = data.map(|node| node.storage);
        // A format without metadata has nothing but guest data.
        let (storage, way) = match (&self.node.data, self.header.is_some()) {
            (Some(data), false) => (data.clone(), None),
            (way, _) => (
                self.node.storage.clone(),
                way.clone().filter(|way| way.file_id().is_some()),
            ),
        };
        let keys = self.keys(flags)?;
        let device = match snapshot {
            Some(snapshot) => self
                .one_snapshot(snapshot)
                .and_then(|snapshot| {
                    format
                        .open_snapshot(storage, &snapshot, backing, keys)
                        .map_err(|error| match self.bad_snapshot() {
                            Some(wrong) => Refusal::new(wrong.text()),
                            None => engine_words(&error),
                        })
                })
                .map_err(|refusal| refusal.after("Failed to load snapshot: "))?,
            None => match &self.part {
                Some(part) => raw::Image::open_part(storage, access, part.start, part.len)
                    .map(|image| -> Arc<dyn Overlay> { Arc::new(image) }),
                None => format.open(storage, data.clone().or(way), access, backing, keys),
            }
            .map_err(|error| engine_words(&error))?,
        };
        Ok(Layer {
            path: self.filename.clone().into(),
            format: self.format,
            storage: self.node.storage.clone(),
            data_file: data,
            device,
        })
    }
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

/// Whether a file is one of those that an image lies in.
pub(super) fn is_same_file(image: &Image, path: &str) -> bool {
    let files = image.layers.iter().map(|layer| layer.node.file());
    crate::target::is_one_of(path.as_ref(), files)
}
