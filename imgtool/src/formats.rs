//! New images: what `-o` and its like say they are to be.

mod encryption;

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use ::encryption::LuksOptions;
use block::{
    Access, Backing, BackingReference, BlockDevice, DataFileReference, Error, Keys, Passphrase,
    Preallocation, Result, Storage, chain, escape,
};
use qcow2::{Amendment, CompressionType, CreateOptions, Version};

use crate::images::FORMATS;
use crate::keys;
use crate::option_list::OptionList;
use crate::size;
pub(crate) use encryption::KeyChange;

/// Options of qcow2 images in other tools that are refused by name.
const REFUSED: [&str; 2] = ["nocow", "extent_size_hint"];

const QCOW2_OPTIONS: &str = "\
Options of qcow2 images:
  backing_file=FILE        The image to read from where the new one holds nothing
  backing_fmt=FORMAT       Its format
  cluster_size=SIZE        Unit of allocation, a power of two from 512 to 2M [64k]
  compat=VERSION           0.10 (or v2) or 1.1 (or v3) [1.1]
  compression_type=NAME    How compressed clusters are compressed: zlib or zstd [zlib]
  data_file=FILE           File for the data of the disk, which must be new; a relative name is looked up from the
                           directory of the image
  data_file_raw=on|off     Keep that file readable as a raw image of the disk [off]
  encrypt.format=NAME      How the data is encrypted: luks, or aes as in old images, which protects badly. The passphrase
                           is in the file that --key names
  encrypt.cipher-alg=NAME  aes, serpent or twofish, with the length of the key: aes-128, aes-192, aes-256 ... [aes-256]
  encrypt.cipher-mode=NAME xts or cbc [xts]
  encrypt.hash-alg=NAME    What keys are derived with: sha1, sha224, sha256, sha384, sha512 or ripemd160 [sha256]
  encrypt.iter-time=MS     How long that takes, in milliseconds [2000]
  encrypt.ivgen-alg=NAME   Initialisation vectors: plain, plain64 or essiv [plain64]
  encrypt.ivgen-hash-alg=NAME  Hash of essiv: sha256
  encrypt.key=FILE         File that holds the passphrase, where --key names those of other images
  extended_l2=on|off       Allocate clusters, of 16k and more, in 32 subclusters [off]
  lazy_refcounts=on|off    Postpone refcount updates until the image is closed [off]
  preallocation=MODE       What is laid out in advance: off, metadata, falloc or full [off]
  refcount_bits=N          Width of a refcount: 1, 2, 4, 8, 16, 32 or 64 [16]
  size=SIZE                Size of the disk
";

/// Options of qcow2 images that stay what they are.
const ONLY_NEW: [&str; 10] = [
    "cluster_size",
    "extended_l2",
    "preallocation",
    "encryption",
    "encrypt.format",
    "encrypt.cipher-alg",
    "encrypt.cipher-mode",
    "encrypt.ivgen-alg",
    "encrypt.ivgen-hash-alg",
    "encrypt.hash-alg",
];

const AMEND_OPTIONS: &str = "\
Options of qcow2 images that can be amended:
  backing_file=FILE        The image to read from where this one holds nothing; '' is none. Only its name changes, as
                           with rebase -u
  backing_fmt=FORMAT       Its format
  compat=VERSION           0.10 (or v2) or 1.1 (or v3)
  compression_type=NAME    How compressed clusters are compressed: zlib or zstd. Only while there are none
  data_file=FILE           The name of the data file, which was moved or renamed
  encrypt.new-key=FILE     Let the passphrase in this file open the image too, from now on
  encrypt.old-key=FILE     Let the passphrase in this file open it no more
  encrypt.keyslot=N        The key slot that new-key is to use, 0 to 7, or whose key is removed with state=inactive
  encrypt.state=inactive   Remove the key in a slot
  encrypt.iter-time=MS     How long deriving the new key takes, in milliseconds [2000]
  data_file_raw=off        Keep that file readable as a raw image no longer
  lazy_refcounts=on|off    Postpone refcount updates until the image is closed
  refcount_bits=N          Width of a refcount: 1, 2, 4, 8, 16, 32 or 64
  size=SIZE                Size of the disk, which can only grow
";

const LUKS_OPTIONS: &str = "\
Options of luks images:
  cipher-alg=NAME          aes, serpent or twofish, with the length of the key: aes-128, aes-192, aes-256 ... [aes-256]
  cipher-mode=NAME         xts or cbc [xts]
  hash-alg=NAME            What keys are derived with: sha1, sha224, sha256, sha384, sha512 or ripemd160 [sha256]
  iter-time=MS             How long that takes, in milliseconds [2000]
  ivgen-alg=NAME           Initialisation vectors: plain, plain64 or essiv [plain64]
  ivgen-hash-alg=NAME      Hash of essiv: sha256
  key=FILE                 File that holds the passphrase, where --key names those of other images
  preallocation=MODE       What is laid out in advance: off, falloc or full [off]. Without full a new disk reads as noise
                           until it is written to
  size=SIZE                Size of the disk
";

/// Options of disks in LUKS's own form that stay what they are.
const ONLY_NEW_LUKS: [&str; 6] = [
    "cipher-alg",
    "cipher-mode",
    "ivgen-alg",
    "ivgen-hash-alg",
    "hash-alg",
    "preallocation",
];

pub(crate) const LUKS_AMEND_OPTIONS: &str = "\
Options of luks images that can be amended:
  new-key=FILE             Let the passphrase in this file open the disk too, from now on
  old-key=FILE             Let the passphrase in this file open it no more
  keyslot=N                The key slot that new-key is to use, 0 to 7, or whose key is removed with state=inactive
  state=inactive           Remove the key in a slot
  iter-time=MS             How long deriving the new key takes, in milliseconds [2000]
";

const RAW_OPTIONS: &str = "\
Options of raw images:
  preallocation=MODE       What is laid out in advance: off, falloc or full [off]
  size=SIZE                Size of the disk
";

/// What a new image is to be; its size may have to be found out.
#[derive(Clone, Debug)]
pub(crate) struct NewImage {
    /// Of the disk, in bytes, as it was stated; the disk has whole sectors.
    pub(crate) size: Option<u64>,
    pub(crate) backing: Option<BackingReference>,
    preallocation: Option<Preallocation>,
    format: NewFormat,
}

#[derive(Clone, Debug)]
enum NewFormat {
    Raw,
    /// A disk in LUKS's own form. The passphrase is empty where none was given: measuring takes none.
    Luks(LuksOptions, Passphrase),
    Qcow2 {
        /// Everything but size, backing and preallocation, which are above.
        options: CreateOptions,
        /// The version as it was written.
        compat: Option<String>,
        /// Whether the data file is raw, as it was written.
        data_file_raw: Option<bool>,
    },
}

impl NewImage {
    /// A raw image.
    pub(crate) fn raw(size: u64, preallocation: Preallocation) -> Self {
        Self {
            size: Some(size),
            backing: None,
            preallocation: Some(preallocation),
            format: NewFormat::Raw,
        }
    }

    /// A qcow2 image with these options.
    pub(crate) fn of_qcow2(options: CreateOptions) -> Self {
        Self {
            size: Some(options.size),
            backing: options.backing.clone(),
            preallocation: Some(options.preallocation),
            format: NewFormat::Qcow2 {
                options,
                compat: None,
                data_file_raw: None,
            },
        }
    }

    /// A disk in LUKS's own form that this passphrase opens.
    pub(crate) fn luks(
        size: u64,
        options: LuksOptions,
        passphrase: Passphrase,
        preallocation: Preallocation,
    ) -> Self {
        Self {
            size: Some(size),
            backing: None,
            preallocation: Some(preallocation),
            format: NewFormat::Luks(options, passphrase),
        }
    }

    /// What `options` say about an image in `format`. `backing` and its format come from arguments of their own;
    /// options may name them too.
    pub(crate) fn parse(
        format: &str,
        mut options: OptionList,
        backing: Option<String>,
        backing_format: Option<String>,
    ) -> Result<Self> {
        let name = chain::format_named(&FORMATS, format)?.name();
        let size = options
            .take("size")
            .map(|text| size::parse_disk(&text))
            .transpose()?;
        let preallocation = options
            .take("preallocation")
            .map(|text| preallocation(&text))
            .transpose()?;
        if matches!(name, "raw" | "luks") {
            if backing.is_some() || options.take("backing_file").is_some() {
                return Err(
                    Error::invalid(format!("a {name} image cannot have a backing file"))
                        .with_hint("use -f qcow2, or -O qcow2 to convert"),
                );
            }
            let format = match name {
                "luks" => {
                    let (luks, passphrase) = encryption::parse_luks(&mut options)?;
                    NewFormat::Luks(luks, passphrase)
                }
                _ => NewFormat::Raw,
            };
            options.finish(name, &["nocow", "extent_size_hint"])?;
            return Ok(Self {
                size,
                backing: None,
                preallocation,
                format,
            });
        }
        let backing = backing
            .or(options.take("backing_file"))
            .filter(|name| !name.is_empty());
        let backing_format = backing_format.or(options.take("backing_fmt"));
        let compat = options.take("compat");
        let data_file_raw = options.take_switch("data_file_raw")?;
        let mut options = qcow2_options(options, compat.as_deref())?;
        match &mut options.data_file {
            Some(file) => file.raw = data_file_raw == Some(true),
            None if data_file_raw == Some(true) => {
                return Err(
                    Error::invalid("data_file_raw says what a data file is, and there is none")
                        .with_hint("name one with data_file=FILE"),
                );
            }
            None => {}
        }
        Ok(Self {
            size,
            backing: backing.map(|name| BackingReference {
                name,
                format: backing_format,
            }),
            preallocation,
            format: NewFormat::Qcow2 {
                options,
                compat,
                data_file_raw,
            },
        })
    }

    /// The help for `-o help`.
    pub(crate) fn print_options(format: &str, out: &mut dyn Write) -> Result<io::Result<()>> {
        let text = match chain::format_named(&FORMATS, format)?.name() {
            "raw" => RAW_OPTIONS,
            "luks" => LUKS_OPTIONS,
            _ => QCOW2_OPTIONS,
        };
        Ok(out.write_all(text.as_bytes()))
    }

    pub(crate) fn format(&self) -> &'static str {
        match self.format {
            NewFormat::Raw => "raw",
            NewFormat::Luks(..) => "luks",
            NewFormat::Qcow2 { .. } => "qcow2",
        }
    }

    pub(crate) fn compression(&self) -> Option<CompressionType> {
        match &self.format {
            NewFormat::Raw | NewFormat::Luks(..) => None,
            NewFormat::Qcow2 { options, .. } => Some(options.compression),
        }
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        self.passphrase().is_some()
    }

    /// Whether it reads as zeros when it was made, on a device of the host or in a file.
    pub(crate) fn is_zero(&self, on_device: bool) -> bool {
        match self.format {
            NewFormat::Raw => !on_device,
            NewFormat::Luks(..) => self.preallocation == Some(Preallocation::Full),
            NewFormat::Qcow2 { .. } => true,
        }
    }

    /// What opens it, if it is encrypted.
    fn passphrase(&self) -> Option<&Passphrase> {
        match &self.format {
            NewFormat::Raw => None,
            NewFormat::Luks(_, passphrase) => Some(passphrase),
            NewFormat::Qcow2 { options, .. } => {
                let encryption = options.encryption.as_ref();
                encryption.map(|encryption| &encryption.passphrase)
            }
        }
    }

    pub(crate) fn is_preallocated(&self) -> bool {
        self.preallocation() != Preallocation::Off
    }

    /// What is laid out in advance.
    pub(crate) fn preallocation(&self) -> Preallocation {
        self.preallocation.unwrap_or_default()
    }

    /// Fails for what there cannot be, before anything is made.
    pub(crate) fn check(&self) -> Result<()> {
        self.check_key()?;
        match self.qcow2() {
            Some(options) => options.validate(),
            None if self.preallocation == Some(Preallocation::Metadata) => {
                let message = format!("a {} image has no metadata to preallocate", self.format());
                Err(Error::invalid(message).with_hint("use preallocation=falloc or full"))
            }
            None => Ok(()),
        }
    }

    /// Fails for an encrypted image that nobody could open.
    fn check_key(&self) -> Result<()> {
        match self.passphrase() {
            Some(passphrase) if passphrase.as_bytes().is_empty() => keys::of_new_image().map(|_| ()),
            _ => Ok(()),
        }
    }

    /// Bytes of the disk.
    pub(crate) fn disk_size(&self) -> u64 {
        size::whole_sectors(self.size.unwrap_or(0))
    }

    /// The whole options of a qcow2 image.
    pub(crate) fn qcow2(&self) -> Option<CreateOptions> {
        match &self.format {
            NewFormat::Raw | NewFormat::Luks(..) => None,
            NewFormat::Qcow2 { options, .. } => Some(CreateOptions {
                size: self.disk_size(),
                backing: self.backing.clone(),
                preallocation: self.preallocation.unwrap_or_default(),
                ..options.clone()
            }),
        }
    }

    /// The name of the file that is to hold the data.
    pub(crate) fn data_file(&self) -> Option<String> {
        match &self.format {
            NewFormat::Raw | NewFormat::Luks(..) => None,
            NewFormat::Qcow2 { options, .. } => options.data_file.as_ref()?.name.clone(),
        }
    }

    /// Whether that file reads as the disk does.
    pub(crate) fn has_raw_data(&self) -> bool {
        match &self.format {
            NewFormat::Raw | NewFormat::Luks(..) => false,
            NewFormat::Qcow2 { options, .. } => options.data_file.as_ref().is_some_and(|file| file.raw),
        }
    }

    /// Makes the data file, before the image that names it.
    pub(crate) fn create_data(&self, storage: &dyn Storage) -> Result<()> {
        let preallocation = match self.preallocation {
            None | Some(Preallocation::Metadata) => Preallocation::Off,
            Some(mode) => mode,
        };
        raw::create(storage, self.disk_size(), preallocation)
    }

    /// Makes the image.
    pub(crate) fn create(&self, storage: &dyn Storage) -> Result<()> {
        self.check_key()?;
        let (size, preallocation) = (self.disk_size(), self.preallocation.unwrap_or_default());
        match (&self.format, self.qcow2()) {
            (NewFormat::Luks(options, passphrase), _) => {
                ::encryption::create(storage, size, options, passphrase, preallocation)
            }
            (_, Some(options)) => qcow2::create(storage, &options),
            (_, None) => raw::create(storage, size, preallocation),
        }
    }

    /// Bytes of the file of an image that all is written to, if that follows from the size of the disk alone.
    pub(crate) fn file_size(&self) -> Option<u64> {
        match &self.format {
            NewFormat::Raw => Some(self.disk_size()),
            NewFormat::Luks(options, _) => self.disk_size().checked_add(options.area_len()),
            NewFormat::Qcow2 { .. } => None,
        }
    }

    /// Opens the image that was made, to fill it.
    pub(crate) fn open(
        &self,
        storage: Arc<dyn Storage>,
        data_file: Option<Arc<dyn Storage>>,
        backing: Backing,
        level: Option<i32>,
    ) -> Result<NewDevice> {
        Ok(match &self.format {
            NewFormat::Raw => NewDevice::Raw(Arc::new(raw::Image::open(storage, Access::WRITE)?)),
            NewFormat::Luks(..) => {
                let image = ::encryption::Image::open(storage, Access::WRITE, &self.keys())?;
                NewDevice::Luks(Arc::new(image))
            }
            NewFormat::Qcow2 { .. } => {
                let options = qcow2::OpenOptions {
                    keys: self.keys(),
                    access: Access::WRITE,
                    backing,
                    data_file,
                    compression_level: level,
                    ..qcow2::OpenOptions::default()
                };
                NewDevice::Qcow2(Arc::new(qcow2::Image::open(storage, options)?))
            }
        })
    }

    fn keys(&self) -> Keys {
        let passphrase = self.passphrase().cloned();
        passphrase.map_or(Keys::None, |passphrase| Keys::Passphrases(vec![passphrase]))
    }

    /// `Formatting 'a', fmt=raw size=512`, as `qemu-img create` says it.
    pub(crate) fn describe(&self, path: &Path) -> String {
        let mut text = format!(
            "Formatting '{}', fmt={}",
            escape(&path.to_string_lossy()),
            self.format()
        );
        let mut add = |key: &str, value: &str| {
            // Writing to a string does not fail.
            let _ = write!(text, " {key}={}", escape(value));
        };
        let switch = |on| if on { "on" } else { "off" };
        let qcow2 = self.qcow2();
        if let Some(options) = &qcow2 {
            if let Some(encryption) = &options.encryption {
                encryption::describe(encryption, &mut add);
            }
            add("cluster_size", &(1u64 << options.cluster_bits).to_string());
            add("extended_l2", switch(options.extended_l2));
        }
        if let Some(mode) = self.preallocation.filter(|_| qcow2.is_some()) {
            add("preallocation", preallocation_name(mode));
        }
        if let Some(options) = &qcow2 {
            add("compression_type", options.compression.name());
        }
        add("size", &self.size.unwrap_or(0).to_string());
        if let NewFormat::Qcow2 {
            options,
            compat,
            data_file_raw,
        } = &self.format
        {
            if let Some(compat) = compat {
                add("compat", compat);
            }
            if let Some(backing) = &self.backing {
                add("backing_file", &backing.name);
                if let Some(format) = &backing.format {
                    add("backing_fmt", format);
                }
            }
            if let Some(name) = self.data_file() {
                add("data_file", &name);
            }
            if let Some(raw) = data_file_raw {
                add("data_file_raw", switch(*raw));
            }
            add("lazy_refcounts", switch(options.lazy_refcounts));
            add("refcount_bits", &(1 << options.refcount_order).to_string());
            return text;
        }
        if let NewFormat::Luks(options, _) = &self.format {
            encryption::describe_luks(options, "", &mut add);
        }
        if let Some(mode) = self.preallocation {
            add("preallocation", preallocation_name(mode));
        }
        text
    }
}

/// A new image, open to be filled.
#[derive(Debug)]
pub(crate) enum NewDevice {
    Raw(Arc<raw::Image>),
    Luks(Arc<::encryption::Image>),
    Qcow2(Arc<qcow2::Image>),
}

impl NewDevice {
    pub(crate) fn device(&self) -> &dyn BlockDevice {
        match self {
            Self::Raw(image) => &**image,
            Self::Luks(image) => &**image,
            Self::Qcow2(image) => &**image,
        }
    }

    /// The same, to be shared until it is [closed](Self::close).
    pub(crate) fn shared(&self) -> Arc<dyn BlockDevice> {
        match self {
            Self::Raw(image) => image.clone(),
            Self::Luks(image) => image.clone(),
            Self::Qcow2(image) => image.clone(),
        }
    }

    /// Writes back what waits.
    pub(crate) fn close(self) -> Result<()> {
        match self {
            Self::Raw(image) => image.flush(),
            Self::Luks(image) => image.flush(),
            Self::Qcow2(image) => match Arc::into_inner(image) {
                Some(image) => image.close(),
                None => unreachable!("an image is closed by the last who has it"),
            },
        }
    }
}

fn qcow2_options(mut options: OptionList, compat: Option<&str>) -> Result<CreateOptions> {
    let mut create = CreateOptions::default();
    if let Some(text) = compat {
        create.version = version(text)?;
    }
    if let Some(text) = options.take("cluster_size") {
        let bytes = size::of("cluster_size", &text)?;
        if !bytes.is_power_of_two() {
            return Err(no_such("cluster_size", &text, "powers of two from 512 to 2M"));
        }
        create.cluster_bits = bytes.ilog2();
    }
    if let Some(text) = options.take("refcount_bits") {
        create.refcount_order = refcount_order(&text)?;
    }
    if let Some(text) = options.take("compression_type") {
        create.compression = compression(&text)?;
    }
    create.data_file = options.take("data_file").map(|name| DataFileReference {
        name: Some(name),
        raw: false,
    });
    create.lazy_refcounts = options.take_switch("lazy_refcounts")?.unwrap_or(false);
    create.extended_l2 = options.take_switch("extended_l2")?.unwrap_or(false);
    create.encryption = encryption::parse(&mut options)?;
    options.finish("qcow2", &REFUSED)?;
    Ok(create)
}

fn version(text: &str) -> Result<Version> {
    match text {
        "1.1" | "v3" => Ok(Version::V3),
        "0.10" | "v2" => Ok(Version::V2),
        other => Err(no_such("compat", other, "0.10 (or v2) and 1.1 (or v3)")),
    }
}

/// log2 of a width of refcounts.
fn refcount_order(text: &str) -> Result<u32> {
    let bits = text.parse::<u32>().ok().filter(|bits| bits.is_power_of_two());
    let order = bits.map(u32::ilog2).filter(|order| *order <= 6);
    order.ok_or_else(|| no_such("refcount_bits", text, "1, 2, 4, 8, 16, 32 and 64"))
}

fn compression(text: &str) -> Result<CompressionType> {
    match text {
        "zlib" => Ok(CompressionType::Zlib),
        "zstd" => Ok(CompressionType::Zstd),
        other => Err(no_such("compression_type", other, "zlib and zstd")),
    }
}

/// What `amend -o` says of a qcow2 image.
#[derive(Clone, Debug)]
pub(crate) struct Amended {
    /// Everything but the backing file.
    pub(crate) amendment: Amendment,
    pub(crate) backing: Option<String>,
    pub(crate) backing_format: Option<String>,
    pub(crate) keys: KeyChange,
}

impl Amended {
    pub(crate) const HELP: &str = AMEND_OPTIONS;

    pub(crate) fn parse(mut options: OptionList) -> Result<Self> {
        let backing = options.take("backing_file");
        let backing_format = options.take("backing_fmt");
        let keys = KeyChange::parse(&mut options, "encrypt.")?;
        let amendment = Amendment {
            version: options.take("compat").map(|text| version(&text)).transpose()?,
            refcount_order: options
                .take("refcount_bits")
                .map(|text| refcount_order(&text))
                .transpose()?,
            compression: options
                .take("compression_type")
                .map(|text| compression(&text))
                .transpose()?,
            size: options
                .take("size")
                .map(|text| size::parse_disk(&text).map(size::whole_sectors))
                .transpose()?,
            lazy_refcounts: options.take_switch("lazy_refcounts")?,
            data_file: options.take("data_file"),
            data_file_raw: options.take_switch("data_file_raw")?,
            backing: None,
        };
        if let Some(key) = options.untaken().filter(|key| ONLY_NEW.contains(key)) {
            let message = format!("the option {key} can be chosen for new images only");
            let hint = format!("copy it into one: imgtool convert -O qcow2 -o {key}=...");
            return Err(Error::unsupported(message).with_hint(hint));
        }
        options.finish("qcow2", &REFUSED)?;
        Ok(Self {
            amendment,
            backing,
            backing_format,
            keys,
        })
    }
}

/// What `amend -o` says of a disk in LUKS's own form.
pub(crate) fn amended_luks(mut options: OptionList) -> Result<KeyChange> {
    let keys = KeyChange::parse(&mut options, "")?;
    if let Some(key) = options.untaken().filter(|key| ONLY_NEW_LUKS.contains(key)) {
        let message = format!("the option {key} can be chosen for new images only");
        let hint = format!("copy it into one: imgtool convert -O luks -o {key}=...");
        return Err(Error::unsupported(message).with_hint(hint));
    }
    options.finish("luks", &[])?;
    Ok(keys)
}

/// What `--preallocation` and the option of that name mean.
pub(crate) fn preallocation(text: &str) -> Result<Preallocation> {
    Ok(match text {
        "off" => Preallocation::Off,
        "metadata" => Preallocation::Metadata,
        "falloc" => Preallocation::Falloc,
        "full" => Preallocation::Full,
        other => return Err(no_such("preallocation", other, "off, metadata, falloc and full")),
    })
}

fn preallocation_name(mode: Preallocation) -> &'static str {
    match mode {
        Preallocation::Off => "off",
        Preallocation::Metadata => "metadata",
        Preallocation::Falloc => "falloc",
        Preallocation::Full => "full",
    }
}

fn no_such(option: &str, value: &str, there_are: &str) -> Error {
    Error::invalid(format!("{option} cannot be \"{}\"", escape(value)))
        .with_hint(format!("there are {there_are}"))
}
