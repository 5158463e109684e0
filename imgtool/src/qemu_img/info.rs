//! `qemu-img info`.

use std::collections::BTreeSet;

use qcow2::{Encryption, Snapshot};

use super::console::Console;
use super::getopt::Options;
use super::image::{self, Found, Spec};
use super::json::{Json, Object};
use super::node::{Flags, Node};
use super::refusal::{Refusal, reason};
use super::secret::Secrets;
use super::{Outcome, output_format, pages};
use crate::output::human_size as human;
use crate::qcow2_description::Qcow2Description;
use crate::sandbox::{self, Names};
use crate::snapshots;

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
            _ => secrets.add(&value)?,
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
    let images = found.into_iter().map(Description::of);
    let images = images.collect::<Result<Vec<_>, _>>()?;
    let text = match (json, chain) {
        (false, _) => images
            .iter()
            .map(Description::human)
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
struct Description {
    found: Found,
    size: u64,
    qcow2: Option<Qcow2Description>,
}

impl Description {
    fn of(found: Found) -> Result<Self, Refusal> {
        let qcow2 = match found.format {
            "qcow2" => Some(Qcow2Description::read(&*found.node.storage).map_err(|error| {
                image::engine_words(&error).after(format!("Could not open '{}': ", found.filename))
            })?),
            _ => None,
        };
        let size = match &qcow2 {
            Some(qcow2) => qcow2.header.size,
            None => length(&found.node)?,
        };
        Ok(Self { found, size, qcow2 })
    }

    fn json(&self) -> Object {
        let mut object = Object::default();
        if let Some(qcow2) = &self.qcow2 {
            let header = &qcow2.header;
            object.insert("cluster-size", header.geometry.cluster_size());
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
        object.insert("filename", &*self.found.filename);
        object.insert("format", self.found.format);
        object.insert("virtual-size", self.size);
        object.insert_some("actual-size", self.found.node.allocated());
        let dirty = self.qcow2.as_ref().map(Qcow2Description::is_dirty);
        object.insert_some("dirty-flag", dirty.or(self.found.node.dirty_flag()));
        let children = if self.is_bare() {
            children_json(&self.found.node)
        } else {
            Json::List(vec![child_json("file", &self.found.node).into()])
        };
        if self.is_bare() && self.found.format == "file" {
            object.insert("format-specific", specific("file", Object::default()));
        }
        object.insert("children", children);
        object
    }

    /// There is no format, only a node.
    fn is_bare(&self) -> bool {
        self.found.format == self.found.node.driver
    }

    fn human(&self) -> String {
        let mut text = format!(
            "image: {}\nfile format: {}\nvirtual size: {} ({} bytes)\ndisk size: {}\n",
            self.found.filename,
            self.found.format,
            human(self.size),
            self.size,
            disk_size(&self.found.node)
        );
        if let Some(qcow2) = &self.qcow2 {
            self.human_qcow2(&mut text, qcow2);
        }
        if self.is_bare() {
            if let Some((name, child)) = &self.found.node.child {
                human_child(&mut text, child, &format!("/{name}"), 0);
            }
        } else {
            human_child(&mut text, &self.found.node, "/file", 0);
        }
        text
    }

    fn human_qcow2(&self, text: &mut String, qcow2: &Qcow2Description) {
        if qcow2.header.encryption != Encryption::None {
            *text += "encrypted: yes\n";
        }
        *text += &format!("cluster_size: {}\n", qcow2.header.geometry.cluster_size());
        if qcow2.is_dirty() {
            *text += "cleanly shut down: no\n";
        }
        if let Some(name) = self.found.backing_name() {
            *text += &format!("backing file: {name}");
            match self.found.full_backing(&name) {
                None => *text += " (cannot determine actual path)",
                Some(full) if full != name => *text += &format!(" (actual path: {full})"),
                Some(_) => {}
            }
            text.push('\n');
            if let Some(format) = self.found.backing_format() {
                *text += &format!("backing file format: {format}\n");
            }
        }
        if !qcow2.snapshots.is_empty() {
            let mut table = Vec::new();
            // Writing to memory does not fail.
            let _ = snapshots::print(&mut table, &qcow2.snapshots);
            *text += &String::from_utf8_lossy(&table);
        }
        *text += "Format specific information:\n";
        human_tree(text, 1, &qcow2.facts().into());
    }
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

fn child_json(name: &str, node: &Node) -> Object {
    let mut info = Object::default();
    info.insert("filename", node.filename());
    info.insert("format", node.driver);
    info.insert("virtual-size", length(node).unwrap_or_default());
    info.insert_some("actual-size", node.allocated());
    info.insert_some("dirty-flag", node.dirty_flag());
    if matches!(node.driver, "file" | "host_device") {
        info.insert("format-specific", specific("file", Object::default()));
    }
    info.insert("children", children_json(node));
    let mut child = Object::default();
    child.insert("name", name);
    child.insert("info", info);
    child
}

fn children_json(node: &Node) -> Json {
    let children = node
        .child
        .iter()
        .map(|(name, child)| child_json(name, child).into());
    Json::List(children.collect())
}

fn human_child(text: &mut String, node: &Node, path: &str, depth: usize) {
    let indent = " ".repeat(4 * depth);
    let size = length(node).unwrap_or_default();
    let (name, kind, length) = match node.child {
        None => ("filename", "protocol type", "file length"),
        Some(_) => ("image", "file format", "virtual size"),
    };
    *text += &format!(
        "{indent}Child node '{path}':\n\
         {indent}    {name}: {}\n\
         {indent}    {kind}: {}\n\
         {indent}    {length}: {} ({size} bytes)\n\
         {indent}    disk size: {}\n",
        node.filename(),
        node.driver,
        human(size),
        disk_size(node)
    );
    if let Some((name, child)) = &node.child {
        human_child(text, child, &format!("{path}/{name}"), depth + 1);
    }
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
            Json::Text(value) => *text += &format!(" {value}\n"),
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
