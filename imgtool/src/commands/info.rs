//! `imgtool info`: what an image says about itself.

use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::{Access, BlockDevice, Error, Result, Storage, chain, escape};
use clap::Args;
use encryption::{Luks, disk_size, read_luks};
use qcow2::Encryption;
use raw::partition::{PartitionTable, Selector};
use serde_json::{Value, json};

use super::Outcome;
use crate::arguments::{OpenArgs, SandboxArgs};
use crate::commands::partition::{partition_json, print_partition};
use crate::image_name::ImageName;
use crate::images::{Opening, backing_path};
use crate::opener::is_export;
use crate::output::{self, OutputFormat, human_size};
use crate::qcow2_description::Qcow2Description;
use crate::sandbox::Names;
use crate::stores::image_at;
use crate::{interrupt, luks_description, picture, snapshots};

/// Describe an image
///
/// Only the image itself is opened, unless --backing-chain asks for the images below it too.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool info disk.qcow2
  imgtool info --backing-chain clone.qcow2
  imgtool info disk.qcow2#name:root
  imgtool info --output json disk.qcow2")]
pub(crate) struct InfoArgs {
    /// Format of the image [default: found out]
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Describe every image in the chain, and draw how they lie on each other
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
    #[command(flatten)]
    sandbox: SandboxArgs,
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
            io: self.open.io.into(),
            access,
            direct: false,
        };
        let name = ImageName::parse(&self.file)?;
        if let Some(selector) = &name.partition {
            return self.partition(&name, selector, opening, out);
        }
        let mut tree = Vec::new();
        let images = if self.backing_chain {
            let chain = opening.chain_to_look_at(&self.file, self.format.as_deref())?;
            self.confine();
            if self.output == OutputFormat::Human && chain.layers().len() > 1 {
                tree = picture::tree(&chain, &interrupt::watch()?)?;
            }
            let describe = |layer: &chain::Layer| Description::of(&layer.path, layer.format, &layer.storage);
            chain.layers().iter().map(describe).collect::<Result<Vec<_>>>()?
        } else {
            let file = image_at(&self.file);
            let (storage, format) = opening.file(&file, self.format.as_deref())?;
            self.confine();
            vec![Description::of(&file, format, &storage)?]
        };
        match self.output {
            OutputFormat::Human => {
                for (number, image) in images.iter().enumerate() {
                    if number > 0 {
                        writeln!(out)?;
                    }
                    image.print(out)?;
                }
                if !tree.is_empty() {
                    picture::print_tree(out, &tree)?;
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

impl InfoArgs {
    fn confine(&self) {
        snapshots::know_time_zone();
        self.sandbox.confine(Names::None, self.open.io);
    }

    /// Describes a partition of the disk in an image.
    fn partition(
        &self,
        name: &ImageName,
        selector: &Selector,
        opening: Opening,
        out: &mut dyn Write,
    ) -> Outcome {
        let chain = opening.chain(&name.path, self.format.as_deref())?;
        self.confine();
        let table = PartitionTable::read(&**chain.active(), None).map_err(|error| name.explain(error))?;
        let partition = table.locate(selector).map_err(|error| name.explain(error))?;
        match self.output {
            OutputFormat::Human => print_partition(out, &name.path, partition)?,
            OutputFormat::Json => {
                let path = name.path.to_string_lossy();
                output::json(
                    out,
                    &json!({ "filename": path, "partition": partition_json(partition) }),
                )?;
            }
        }
        Ok(0)
    }
}

/// The protocol of an image that is served.
const NBD: &str = "nbd";

/// What is known about one image.
#[derive(Debug)]
struct Description {
    path: String,
    format: &'static str,
    /// Bytes of the disk.
    size: u64,
    /// Bytes of the file, in whole sectors.
    file_len: u64,
    /// Bytes that the file takes, where that is known.
    allocated: Option<u64>,
    /// What the image lies in, by its name in QEMU.
    protocol: &'static str,
    qcow2: Option<Qcow2Description>,
    /// Of a disk in LUKS's own form.
    luks: Option<Luks>,
}

impl Description {
    fn of(path: &Path, format: &'static str, storage: &Arc<dyn Storage>) -> Result<Self> {
        let file = raw::Image::open(storage.clone(), Access::READ)?;
        let qcow2 = match format {
            "qcow2" => Some(Qcow2Description::read(&**storage)?),
            _ => None,
        };
        let luks = match format {
            "luks" => Some(read_luks(&**storage)?),
            _ => None,
        };
        let size = match (&qcow2, &luks) {
            (Some(image), _) => image.header.size,
            (_, Some(luks)) => disk_size(luks, file.size())?,
            _ => file.size(),
        };
        Ok(Self {
            path: path.to_string_lossy().into_owned(),
            format,
            size,
            file_len: file.size(),
            allocated: storage.allocated()?,
            protocol: protocol(path)?,
            qcow2,
            luks,
        })
    }

    /// The backing file's name as it is looked up from here.
    fn full_backing(&self, name: &str) -> String {
        backing_path(Path::new(&self.path), name)
            .to_string_lossy()
            .into_owned()
    }

    fn json(&self) -> Value {
        let mut image = json!({
            "filename": self.path,
            "format": self.format,
            "virtual-size": self.size,
            "actual-size": self.allocated,
            "dirty-flag": self.clean(),
            "children": [{ "name": "file", "info": self.file_json() }],
        });
        remove_unknown(&mut image);
        if let Some(luks) = &self.luks {
            image["encrypted"] = true.into();
            let facts = luks_description::facts(luks, false);
            image["format-specific"] = json!({ "type": "luks", "data": facts });
        }
        let Some(qcow2) = &self.qcow2 else { return image };
        let header = &qcow2.header;
        image["dirty-flag"] = qcow2.is_dirty().into();
        image["cluster-size"] = header.geometry.cluster_size().into();
        if header.encryption != Encryption::None {
            image["encrypted"] = true.into();
        }
        if let Some(backing) = header.backing() {
            image["full-backing-filename"] = self.full_backing(&backing.name).into();
            image["backing-filename"] = backing.name.into();
            if let Some(format) = backing.format {
                image["backing-filename-format"] = format.into();
            }
        }
        if !qcow2.snapshots.is_empty() {
            image["snapshots"] = qcow2.snapshots.iter().map(snapshots::json).collect();
        }
        image["format-specific"] = json!({ "type": "qcow2", "data": qcow2.facts() });
        image
    }

    /// The `dirty-flag` of what has none, where QEMU tells it.
    fn clean(&self) -> Option<bool> {
        (self.protocol != NBD).then_some(false)
    }

    /// What the image lies in.
    fn file_json(&self) -> Value {
        let mut file = json!({
            "children": [],
            "filename": self.path,
            "format": self.protocol,
            "virtual-size": self.file_len,
            "actual-size": self.allocated,
            "format-specific": if self.protocol == NBD { Value::Null } else { json!({ "type": "file", "data": {} }) },
            "dirty-flag": self.clean(),
        });
        remove_unknown(&mut file);
        file
    }

    fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let path = escape(&self.path);
        let size = |bytes| format!("{} ({bytes} bytes)", human_size(bytes));
        let allocated = self
            .allocated
            .map_or_else(|| "unavailable".to_owned(), human_size);
        writeln!(out, "image: {path}\nfile format: {}", self.format)?;
        writeln!(out, "virtual size: {}\ndisk size: {allocated}", size(self.size))?;
        if let Some(qcow2) = &self.qcow2 {
            self.print_qcow2(out, qcow2)?;
        }
        if let Some(luks) = &self.luks {
            writeln!(out, "encrypted: yes\nFormat specific information:")?;
            print_tree(out, 1, &luks_description::facts(luks, false))?;
        }
        writeln!(out, "Child node '/file':\n    filename: {path}")?;
        writeln!(out, "    protocol type: {}", self.protocol)?;
        writeln!(
            out,
            "    file length: {}\n    disk size: {allocated}",
            size(self.file_len)
        )
    }

    fn print_qcow2(&self, out: &mut dyn Write, qcow2: &Qcow2Description) -> io::Result<()> {
        let header = &qcow2.header;
        if header.encryption != Encryption::None {
            writeln!(out, "encrypted: yes")?;
        }
        writeln!(out, "cluster_size: {}", header.geometry.cluster_size())?;
        if qcow2.is_dirty() {
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
        if !qcow2.snapshots.is_empty() {
            snapshots::print(out, &qcow2.snapshots, snapshots::Width::Characters)?;
        }
        writeln!(out, "Format specific information:")?;
        print_tree(out, 1, &qcow2.facts())
    }
}

/// The name in QEMU of what the image at `path` lies in.
fn protocol(path: &Path) -> Result<&'static str> {
    if is_export(path) {
        return Ok(NBD);
    }
    let metadata = path.metadata();
    let metadata = metadata.map_err(|error| Error::io("look at the file", error).with_path(path))?;
    Ok(if metadata.file_type().is_block_device() {
        "host_device"
    } else {
        "file"
    })
}

/// Leaves out the keys whose values are not known.
fn remove_unknown(object: &mut Value) {
    if let Value::Object(object) = object {
        object.retain(|_, value| !value.is_null());
    }
}

/// A JSON value as an indented list of keys and values.
fn print_tree(out: &mut dyn Write, depth: usize, value: &Value) -> io::Result<()> {
    let entries: Vec<(String, &Value)> = match value {
        Value::Object(object) => object
            .iter()
            .map(|(key, value)| (key.replace('-', " "), value))
            .collect(),
        Value::Array(array) => array
            .iter()
            .enumerate()
            .map(|(i, value)| (format!("[{i}]"), value))
            .collect(),
        _ => Vec::new(),
    };
    for (key, value) in entries {
        write!(out, "{:1$}{key}:", "", 4 * depth)?;
        match value {
            Value::Object(_) | Value::Array(_) => {
                writeln!(out)?;
                print_tree(out, depth + 1, value)?;
            }
            Value::String(text) => writeln!(out, " {}", escape(text))?,
            other => writeln!(out, " {other}")?,
        }
    }
    Ok(())
}
