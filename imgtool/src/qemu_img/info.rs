//! `qemu-img info`.

use std::collections::BTreeSet;

use block::escape;
use encryption::Luks;
use qcow2::{Encryption, Snapshot};

use super::console::Console;
use super::getopt::Options;
use super::image::{self, Found, Spec};
use super::json::{Json, Object, c_text};
use super::node::{Flags, Node};
use super::refusal::{Refusal, reason};
use super::secret::Secrets;
use super::{Outcome, output_format, pages};
use crate::luks_description;
use crate::output::human_size as human;
use crate::qcow2_description::Qcow2Description;
use crate::sandbox::{self, Names};
use crate::snapshots::{self, Width};

pub(super) fn run(console: &Console, arguments: &[String]) -> Outcome {
    let (mut format, mut json, mut chain, mut image_opts) = (None, false, false, false);
    let mut flags = Flags {
        no_backing: true,
        ..Flags::default()
    };
    let mut secrets = Secrets::default();
    let mut options = Options::new(&pages::INFO, arguments);
    while let Some((name, value)) = options.next()? {
        match name {
            "h" => return super::show(console, &pages::INFO),
            "f" => format = Some(value),
            "output" => json = output_format(&value)?,
            "b" => chain = true,
            "image-opts" => image_opts = true,
            "U" => flags.force_share = true,
            _ => secrets.add(console, &value)?,
        }
    }
    let spec = super::one_image(&options.operands(), format.as_deref(), image_opts)?;
    let found = if chain {
        collect(spec, flags)?
    } else {
        vec![image::find(&spec, flags)?]
    };
    snapshots::know_time_zone();
    sandbox::confine(Names::None, false);
    let images = found.iter().map(Description::of);
    let images = images.collect::<Result<Vec<_>, _>>()?;
    let text = match (json, chain) {
        (false, _) => images
            .iter()
            .map(|image| image.human(""))
            .collect::<Vec<_>>()
            .join("\n"),
        (true, true) => Json::List(images.iter().map(|image| image.json().into()).collect()).pretty(),
        (true, false) => images
            .iter()
            .map(|image| Json::from(image.json()).pretty())
            .collect(),
    };
    console.print(text)?;
    Ok(0)
}

/// Each image of a chain, opened by itself.
fn collect(mut spec: Spec, flags: Flags) -> Result<Vec<Found>, Refusal> {
    let mut seen = BTreeSet::new();
    let mut images = Vec::new();
    loop {
        if !seen.insert(spec.text.clone()) {
            let text = format!("Backing file '{}' creates an infinite loop.", spec.text);
            return Err(Refusal::new(text));
        }
        let found = image::find(&spec, flags)?;
        let next = found.backing_name().map(|name| (found.full_backing(&name), name));
        let format = found.backing_format();
        images.push(found);
        match next {
            None => return Ok(images),
            Some((full, name)) => spec = Spec::new(&full.unwrap_or(name), format.as_deref(), false),
        }
    }
}

/// What is known about an image.
#[derive(Debug)]
struct Description<'a> {
    found: &'a Found,
    size: u64,
    qcow2: Option<Qcow2Description>,
    /// Of a disk in LUKS's own form.
    luks: Option<Luks>,
    children: Vec<Named<'a>>,
}

/// What something lies in, and what it calls that.
type Named<'a> = (&'static str, Child<'a>);

#[derive(Debug)]
enum Child<'a> {
    Image(Box<Description<'a>>),
    Node(&'a Node, Vec<Named<'a>>),
}

impl<'a> Description<'a> {
    /// Of an image as it was found.
    fn of(found: &'a Found) -> Result<Self, Refusal> {
        let qcow2 = match found.format {
            "qcow2" => Some(Qcow2Description::read(&*found.node.storage).map_err(|error| {
                image::engine_words(&error).after(format!("Could not open '{}': ", found.filename))
            })?),
            _ => None,
        };
        let luks = match found.format {
            "luks" => Some(
                encryption::read_luks(&*found.node.storage).map_err(|error| image::engine_words(&error))?,
            ),
            _ => None,
        };
        let size = match (&qcow2, &luks, &found.part) {
            (Some(qcow2), ..) => qcow2.header.size,
            (_, Some(luks), _) => length(&found.node)?.saturating_sub(luks.payload_offset()),
            (.., Some(part)) => part.size,
            _ => length(&found.node)?,
        };
        let children = if found.is_bare() {
            children_of(&found.node)?
        } else {
            vec![("file", Child::of(&found.node)?)]
        };
        Ok(Self {
            found,
            size,
            qcow2,
            luks,
            children,
        })
    }

    /// Of a part of a chain that is open.
    fn of_layers(layers: &'a [Found]) -> Result<Option<Self>, Refusal> {
        let [top, below @ ..] = layers else {
            return Ok(None);
        };
        let mut description = Self::of(top)?;
        let backing = Self::of_layers(below)?.map(|backing| ("backing", Child::Image(Box::new(backing))));
        description.children.splice(..0, backing);
        Ok(Some(description))
    }

    /// Of this image, or of the one whose disk it shows.
    fn cluster_size(&self) -> Option<u64> {
        match &self.qcow2 {
            Some(qcow2) => Some(qcow2.header.geometry.cluster_size()),
            None if self.luks.is_some() => None,
            None => cluster_size_below(&self.found.node),
        }
    }

    fn json(&self) -> Object {
        let mut object = Object::default();
        object.insert_some("cluster-size", self.cluster_size());
        if let Some(qcow2) = &self.qcow2 {
            let header = &qcow2.header;
            if header.encryption != Encryption::None {
                object.insert("encrypted", true);
            }
            if let Some(name) = self.found.backing_name() {
                object.insert_some("full-backing-filename", self.found.full_backing(&name));
                object.insert("backing-filename", name);
                object.insert_some("backing-filename-format", self.found.backing_format());
            }
            if !qcow2.snapshots.is_empty() {
                let snapshots = qcow2
                    .snapshots
                    .iter()
                    .map(|snapshot| snapshot_json(snapshot).into());
                object.insert("snapshots", Json::List(snapshots.collect()));
            }
            object.insert("format-specific", specific("qcow2", qcow2.facts()));
        }
        if let Some(luks) = &self.luks {
            object.insert("encrypted", true);
            let facts = luks_description::facts(luks, false);
            object.insert("format-specific", specific("luks", facts));
        }
        object.insert("filename", &*self.found.filename);
        object.insert("format", self.found.format);
        object.insert("virtual-size", self.size);
        object.insert_some("actual-size", self.found.node.allocated());
        let dirty = self.qcow2.as_ref().map(Qcow2Description::is_dirty);
        object.insert_some("dirty-flag", dirty.or(self.found.node.dirty_flag()));
        if self.found.is_bare() && self.found.format == "file" {
            object.insert("format-specific", specific("file", Object::default()));
        }
        object.insert("children", children_json(&self.children));
        object
    }

    /// In lines; `path` leads here from the image that was asked for.
    fn human(&self, path: &str) -> String {
        let mut text = format!(
            "image: {}\nfile format: {}\nvirtual size: {} ({} bytes)\ndisk size: {}\n",
            escape(&self.found.filename),
            self.found.format,
            human(self.size),
            self.size,
            disk_size(&self.found.node)
        );
        let encrypted = self.qcow2.as_ref().map(|qcow2| qcow2.header.encryption);
        if self.luks.is_some() || encrypted.is_some_and(|method| method != Encryption::None) {
            text += "encrypted: yes\n";
        }
        if let Some(bytes) = self.cluster_size() {
            text += &format!("cluster_size: {bytes}\n");
        }
        if let Some(qcow2) = &self.qcow2 {
            self.human_qcow2(&mut text, qcow2);
        }
        if let Some(luks) = &self.luks {
            text += "Format specific information:\n";
            human_tree(&mut text, 1, &luks_description::facts(luks, false).into());
        }
        text + &human_children(&self.children, path)
    }

    fn human_qcow2(&self, text: &mut String, qcow2: &Qcow2Description) {
        if qcow2.is_dirty() {
            *text += "cleanly shut down: no\n";
        }
        if let Some(name) = self.found.backing_name() {
            *text += &format!("backing file: {}", escape(&name));
            match self.found.full_backing(&name) {
                None => *text += " (cannot determine actual path)",
                Some(full) if full != name => *text += &format!(" (actual path: {})", escape(&full)),
                Some(_) => {}
            }
            text.push('\n');
            if let Some(format) = self.found.backing_format() {
                *text += &format!("backing file format: {}\n", escape(&format));
            }
        }
        if !qcow2.snapshots.is_empty() {
            let mut table = Vec::new();
            // Writing to memory does not fail.
            let _ = snapshots::print(&mut table, &qcow2.snapshots, Width::Bytes);
            *text += &String::from_utf8_lossy(&table);
        }
        *text += "Format specific information:\n";
        human_tree(text, 1, &qcow2.facts().into());
    }
}

impl<'a> Child<'a> {
    fn of(node: &'a Node) -> Result<Self, Refusal> {
        let image = match node.own_disk() {
            Some(image) => Description::of_layers(&image.layers)?,
            None => None,
        };
        Ok(match image {
            Some(image) => Self::Image(Box::new(image)),
            None => Self::Node(node, children_of(node)?),
        })
    }

    fn json(&self) -> Object {
        let (node, children) = match self {
            Self::Image(image) => return image.json(),
            Self::Node(node, children) => (node, children),
        };
        let mut info = Object::default();
        info.insert("filename", node.filename());
        info.insert("format", node.driver);
        info.insert("virtual-size", length(node).unwrap_or_default());
        info.insert_some("actual-size", node.allocated());
        info.insert_some("dirty-flag", node.dirty_flag());
        info.insert_some("cluster-size", cluster_size_below(node));
        if matches!(node.driver, "file" | "host_device") {
            info.insert("format-specific", specific("file", Object::default()));
        }
        info.insert("children", children_json(children));
        info
    }

    fn human(&self, path: &str) -> String {
        let (node, children) = match self {
            Self::Image(image) => return image.human(path),
            Self::Node(node, children) => (node, children),
        };
        let size = length(node).unwrap_or_default();
        let (name, kind, length) = match node.child {
            None => ("filename", "protocol type", "file length"),
            Some(_) => ("image", "file format", "virtual size"),
        };
        let mut text = format!(
            "{name}: {}\n{kind}: {}\n{length}: {} ({size} bytes)\ndisk size: {}\n",
            escape(&node.filename()),
            node.driver,
            human(size),
            disk_size(node)
        );
        if let Some(bytes) = cluster_size_below(node) {
            text += &format!("cluster_size: {bytes}\n");
        }
        text + &human_children(children, path)
    }
}

/// What a node lies in.
fn children_of(node: &Node) -> Result<Vec<Named<'_>>, Refusal> {
    let children = node.child.iter();
    children
        .map(|(name, child)| Ok((*name, Child::of(child)?)))
        .collect()
}

/// The size of the clusters of the image whose disk a node shows.
fn cluster_size_below(node: &Node) -> Option<u64> {
    let header = node.disk()?.layers[0].header.as_ref()?;
    Some(header.geometry.cluster_size())
}

fn length(node: &Node) -> Result<u64, Refusal> {
    let len = node.storage.len().map_err(|error| Refusal::new(reason(&error)))?;
    Ok(block::size::whole_sectors(len))
}

fn disk_size(node: &Node) -> String {
    node.allocated().map_or_else(|| "unavailable".to_owned(), human)
}

fn specific(kind: &str, data: impl Into<Json>) -> Object {
    let mut object = Object::default();
    object.insert("data", data);
    object.insert("type", kind);
    object
}

fn children_json(children: &[Named<'_>]) -> Json {
    let children = children.iter().map(|(name, child)| {
        let mut object = Object::default();
        object.insert("name", *name);
        object.insert("info", child.json());
        object.into()
    });
    Json::List(children.collect())
}

fn human_children(children: &[Named<'_>], path: &str) -> String {
    let mut text = String::new();
    for (name, child) in children {
        let path = format!("{path}/{name}");
        text += &format!("Child node '{path}':\n");
        for line in child.human(&path).lines() {
            text += &format!("    {line}\n");
        }
    }
    text
}

/// A value as an indented list of keys and values.
fn human_tree(text: &mut String, depth: usize, value: &Json) {
    let entries: Vec<(String, &Json)> = match value {
        Json::Object(object) => object
            .members()
            .map(|(key, value)| (key.replace('-', " "), value))
            .collect(),
        Json::List(values) => values
            .iter()
            .enumerate()
            .map(|(i, value)| (format!("[{i}]"), value))
            .collect(),
        _ => Vec::new(),
    };
    for (key, value) in entries {
        *text += &format!("{:1$}{key}:", "", 4 * depth);
        match value {
            Json::Object(_) | Json::List(_) => {
                text.push('\n');
                human_tree(text, depth + 1, value);
            }
            Json::Text(value) => *text += &format!(" {}\n", escape(c_text(value))),
            Json::Number(value) => *text += &format!(" {value}\n"),
            Json::Bool(value) => *text += &format!(" {value}\n"),
        }
    }
}

fn snapshot_json(snapshot: &Snapshot) -> Object {
    const SECOND: u64 = 1_000_000_000;
    let mut object = Object::default();
    object.insert("id", &*snapshot.id);
    object.insert("name", &*snapshot.name);
    object.insert("vm-state-size", snapshot.vm_state_size);
    object.insert("date-sec", snapshot.date_seconds);
    object.insert("date-nsec", snapshot.date_nanoseconds);
    object.insert("vm-clock-sec", snapshot.vm_clock_nanoseconds / SECOND);
    object.insert("vm-clock-nsec", snapshot.vm_clock_nanoseconds % SECOND);
    object.insert_some("icount", snapshot.icount);
    object
}
