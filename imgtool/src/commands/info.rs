//! `imgtool info`: what an image says about itself.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::{Access, BlockDevice, Error, Result, Storage, chain, escape};
use clap::Args;
use qcow2::{CompatibleFeatures, Encryption, Header, IncompatibleFeatures, Version};
use serde_json::{Map, Value, json};

use super::Outcome;
use crate::arguments::OpenArgs;
use crate::images::{Opening, backing_path};
use crate::output::{self, OutputFormat, human_size};

/// Describe an image
///
/// Only the image itself is opened, unless --backing-chain asks for the images below it too.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool info disk.qcow2
  imgtool info --backing-chain clone.qcow2
  imgtool info --output json disk.qcow2")]
pub(crate) struct InfoArgs {
    /// Format of the image [default: found out]
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Describe every image in the chain
    #[arg(long)]
    backing_chain: bool,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    output: OutputFormat,
    /// Describe an image that somebody else may be writing to
    #[arg(short = 'U', long)]
    force_share: bool,
    #[command(flatten)]
    open: OpenArgs,
    /// The image
    file: PathBuf,
}

impl InfoArgs {
    pub(crate) fn run(self, out: &mut dyn Write) -> Outcome {
        self.open.check()?;
        let access = Access {
            write: false,
            force_share: self.force_share,
        };
        let opening = Opening {
            nested: self.open.nested,
            access,
            direct: false,
        };
        let images = if self.backing_chain {
            let chain = opening.chain(&self.file, self.format.as_deref())?;
            let describe = |layer: &chain::Layer| Description::of(&layer.path, layer.format, &layer.storage);
            chain.layers().iter().map(describe).collect::<Result<Vec<_>>>()?
        } else {
            let (storage, format) = opening.file(&self.file, self.format.as_deref())?;
            vec![Description::of(&self.file, format, &storage)?]
        };
        match self.output {
            OutputFormat::Human => {
                for (number, image) in images.iter().enumerate() {
                    if number > 0 {
                        writeln!(out)?;
                    }
                    image.print(out)?;
                }
            }
            OutputFormat::Json if self.backing_chain => {
                output::json(out, &images.iter().map(Description::json).collect())?;
            }
            OutputFormat::Json => {
                for image in &images {
                    output::json(out, &image.json())?;
                }
            }
        }
        Ok(0)
    }
}

/// What is known about one image.
#[derive(Debug)]
struct Description {
    path: String,
    format: &'static str,
    /// Bytes of the disk.
    size: u64,
    /// Bytes of the file, in whole sectors.
    file_len: u64,
    /// Bytes that the file takes.
    allocated: Option<u64>,
    block_device: bool,
    qcow2: Option<Header>,
}

impl Description {
    fn of(path: &Path, format: &'static str, storage: &Arc<dyn Storage>) -> Result<Self> {
        let file = raw::Image::open(storage.clone(), Access::READ)?;
        let header = match format {
            "qcow2" => Some(Header::read(&**storage)?),
            _ => None,
        };
        let metadata = path
            .metadata()
            .map_err(|error| Error::io("look at the file", error).with_path(path))?;
        Ok(Self {
            path: path.to_string_lossy().into_owned(),
            format,
            size: header.as_ref().map_or(file.size(), |header| header.size),
            file_len: file.size(),
            allocated: storage.allocated()?,
            block_device: std::os::unix::fs::FileTypeExt::is_block_device(&metadata.file_type()),
            qcow2: header,
        })
    }

    /// The protocol's name in QEMU.
    fn protocol(&self) -> &'static str {
        if self.block_device { "host_device" } else { "file" }
    }

    /// The backing file's name as it is looked up from here.
    fn full_backing(&self, name: &str) -> String {
        backing_path(Path::new(&self.path), name)
            .to_string_lossy()
            .into_owned()
    }

    fn json(&self) -> Value {
        let mut file = Map::new();
        file.insert("children".to_owned(), json!([]));
        file.insert("virtual-size".to_owned(), self.file_len.into());
        file.insert("filename".to_owned(), self.path.as_str().into());
        file.insert("format".to_owned(), self.protocol().into());
        let mut image = Map::new();
        image.insert("filename".to_owned(), self.path.as_str().into());
        image.insert("format".to_owned(), self.format.into());
        image.insert("virtual-size".to_owned(), self.size.into());
        for object in [&mut file, &mut image] {
            if let Some(allocated) = self.allocated {
                object.insert("actual-size".to_owned(), allocated.into());
            }
        }
        if !self.block_device {
            file.insert(
                "format-specific".to_owned(),
                json!({ "type": "file", "data": {} }),
            );
        }
        file.insert("dirty-flag".to_owned(), false.into());
        let mut dirty = false;
        if let Some(header) = &self.qcow2 {
            dirty = header.incompatible.contains(IncompatibleFeatures::DIRTY);
            image.insert("cluster-size".to_owned(), header.geometry.cluster_size().into());
            if header.encryption != Encryption::None {
                image.insert("encrypted".to_owned(), true.into());
            }
            if let Some(backing) = header.backing() {
                let full = self.full_backing(&backing.name);
                image.insert("backing-filename".to_owned(), backing.name.into());
                image.insert("full-backing-filename".to_owned(), full.into());
                if let Some(format) = backing.format {
                    image.insert("backing-filename-format".to_owned(), format.into());
                }
            }
            let data: Map<_, _> = facts(header)
                .into_iter()
                .map(|(_, key, value)| (key.to_owned(), value))
                .collect();
            image.insert(
                "format-specific".to_owned(),
                json!({ "type": "qcow2", "data": data }),
            );
        }
        image.insert("dirty-flag".to_owned(), dirty.into());
        image.insert("children".to_owned(), json!([{ "name": "file", "info": file }]));
        Value::Object(image)
    }

    fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let path = escape(&self.path);
        let size = |bytes| format!("{} ({bytes} bytes)", human_size(bytes));
        writeln!(
            out,
            "image: {path}\nfile format: {}\nvirtual size: {}",
            self.format,
            size(self.size)
        )?;
        let allocated = self
            .allocated
            .map_or_else(|| "unavailable".to_owned(), human_size);
        writeln!(out, "disk size: {allocated}")?;
        if let Some(header) = &self.qcow2 {
            self.print_header(out, header)?;
        }
        writeln!(
            out,
            "Child node '/file':\n    filename: {path}\n    protocol type: {}",
            self.protocol()
        )?;
        writeln!(
            out,
            "    file length: {}\n    disk size: {allocated}",
            size(self.file_len)
        )
    }

    fn print_header(&self, out: &mut dyn Write, header: &Header) -> io::Result<()> {
        if header.encryption != Encryption::None {
            writeln!(out, "encrypted: yes")?;
        }
        writeln!(out, "cluster_size: {}", header.geometry.cluster_size())?;
        if header.incompatible.contains(IncompatibleFeatures::DIRTY) {
            writeln!(out, "cleanly shut down: no")?;
        }
        if let Some(backing) = header.backing() {
            let full = self.full_backing(&backing.name);
            write!(out, "backing file: {}", escape(&backing.name))?;
            if full != backing.name {
                write!(out, " (actual path: {})", escape(&full))?;
            }
            writeln!(out)?;
            if let Some(format) = backing.format {
                writeln!(out, "backing file format: {}", escape(&format))?;
            }
        }
        if header.snapshot_count > 0 {
            writeln!(out, "internal snapshots: {}", header.snapshot_count)?;
        }
        writeln!(out, "Format specific information:")?;
        for (label, _, value) in facts(header) {
            match value {
                Value::String(text) => writeln!(out, "    {label}: {}", escape(&text))?,
                Value::Object(object) => {
                    writeln!(out, "    {label}:")?;
                    for (key, value) in object {
                        writeln!(
                            out,
                            "        {key}: {}",
                            escape(value.as_str().unwrap_or_default())
                        )?;
                    }
                }
                other => writeln!(out, "    {label}: {other}")?,
            }
        }
        Ok(())
    }
}

/// What only qcow2 images have: label, key and value.
fn facts(header: &Header) -> Vec<(&'static str, &'static str, Value)> {
    let v3 = header.version >= Version::V3;
    let mut facts = vec![
        ("compat", "compat", if v3 { "1.1" } else { "0.10" }.into()),
        (
            "compression type",
            "compression-type",
            header.compression.name().into(),
        ),
    ];
    if v3 {
        let lazy = header.compatible.contains(CompatibleFeatures::LAZY_REFCOUNTS);
        facts.push(("lazy refcounts", "lazy-refcounts", lazy.into()));
    }
    facts.push((
        "refcount bits",
        "refcount-bits",
        (1 << header.geometry.refcount_order).into(),
    ));
    if v3 {
        let corrupt = header.incompatible.contains(IncompatibleFeatures::CORRUPT);
        facts.push(("corrupt", "corrupt", corrupt.into()));
        facts.push(("extended l2", "extended-l2", header.geometry.extended_l2.into()));
    }
    if let Some(data_file) = header.data_file() {
        if let Some(name) = data_file.name {
            facts.push(("data file", "data-file", name.into()));
        }
        facts.push(("data file raw", "data-file-raw", data_file.raw.into()));
    }
    match header.encryption {
        Encryption::None => {}
        Encryption::Aes => facts.push(("encrypt", "encrypt", json!({ "format": "aes" }))),
        Encryption::Luks => facts.push(("encrypt", "encrypt", json!({ "format": "luks" }))),
    }
    facts
}
