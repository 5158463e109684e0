//! Layers of trees that are made up, as an archive of `docker save`: the filesystem is what the image specification says
//! that they come to, or there is an error.
//!
//! The specification is taken at its word here: of each layer, first what it removes of those below it, then what it puts
//! there. Where that says nothing, as with names below a symlink, which it may remove before or after they are followed,
//! nothing is compared.
#![no_main]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use arbitrary::{Arbitrary, Unstructured};
use block::{MemStorage, Result};
use ext4_builder::Builder;
use ext4_builder::oci::{Image, Reference};
use ext4_builder::source::{Control, Filter, copy_image};
use ext4_reader::FileKind;
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step {
    Directory(Name),
    File(Name, u8),
    Symlink(Name),
    HardLink(Name, Name),
    Whiteout(Name),
    Opaque(Name),
}

/// One of few, so that they meet again: one to three names, each one of three.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Name(u8);

impl Name {
    fn path(self) -> String {
        let names =
            [self.0 >> 2, self.0 >> 4, self.0 >> 6].map(|bits| ["a", "b", "c"][usize::from(bits % 3)]);
        names[..=usize::from(self.0 % 3)].join("/")
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(layers) = <Vec<Vec<Step>>>::arbitrary(&mut Unstructured::new(bytes)) else {
        return;
    };
    let path = std::env::temp_dir().join(format!("fuzz-layers-{}", std::process::id()));
    std::fs::write(&path, image(&layers)).expect("write");
    let Ok(storage) = make(&path, bytes.len() as u8) else {
        return;
    };
    let Some(model) = Model::of(&layers) else {
        return;
    };
    let filesystem = fuzz::open(storage).expect("what was made can be opened");
    let found = fuzz::tree(&filesystem).expect("what was made can be read");
    model.compare(&found);
});

fn make(path: &Path, how: u8) -> Result<MemStorage> {
    let mut name = OsString::from("docker-archive:");
    name.push(path);
    let reference = Reference::parse(&name)?.expect("the name of an image");
    let image = Image::open(&reference, None).expect("the image is one");
    let storage = MemStorage::new();
    let mut builder = Builder::new(&storage, fuzz::options(how))?;
    copy_image(&mut builder, &image, &Filter::default(), &Control::unwatched())?;
    builder.finish()?;
    Ok(storage)
}

/// An archive as `docker save` makes it.
fn image(layers: &[Vec<Step>]) -> Vec<u8> {
    let layers: Vec<Vec<u8>> = layers.iter().map(|steps| layer(steps)).collect();
    let mut digests = Vec::new();
    let mut names = Vec::new();
    let mut archive = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let digest = Sha256::digest(layer);
        let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        digests.push(format!("\"sha256:{digits}\""));
        names.push(format!("\"{number}.tar\""));
        archive.extend(entry(b'0', &format!("{number}.tar"), "", layer));
    }
    let config = format!(
        r#"{{"architecture": "amd64", "os": "linux", "rootfs": {{"type": "layers", "diff_ids": [{}]}}}}"#,
        digests.join(",")
    );
    let manifest = format!(
        r#"[{{"Config": "config.json", "RepoTags": null, "Layers": [{}]}}]"#,
        names.join(",")
    );
    archive.extend(entry(b'0', "config.json", "", config.as_bytes()));
    archive.extend(entry(b'0', "manifest.json", "", manifest.as_bytes()));
    archive.extend([0; 1024]);
    archive
}

fn layer(steps: &[Step]) -> Vec<u8> {
    let mut layer = Vec::new();
    for step in steps {
        layer.extend(match step {
            Step::Directory(name) => entry(b'5', &name.path(), "", b""),
            Step::File(name, len) => entry(b'0', &name.path(), "", &vec![*len; usize::from(*len)]),
            Step::Symlink(name) => entry(b'2', &name.path(), "nowhere", b""),
            Step::HardLink(name, target) => entry(b'1', &name.path(), &target.path(), b""),
            Step::Whiteout(name) => {
                let path = PathBuf::from(name.path());
                let name = format!(".wh.{}", path.file_name().expect("a name").to_string_lossy());
                entry(b'0', &path.with_file_name(name).to_string_lossy(), "", b"")
            }
            Step::Opaque(name) => entry(b'0', &format!("{}/.wh..wh..opq", name.path()), "", b""),
        });
    }
    layer.extend([0; 1024]);
    layer
}

/// A header of ustar and its data.
fn entry(type_flag: u8, name: &str, link: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 512];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    bytes[100..107].copy_from_slice(b"0000755");
    bytes[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
    bytes[156] = type_flag;
    bytes[157..157 + link.len()].copy_from_slice(link.as_bytes());
    bytes[257..265].copy_from_slice(b"ustar\x0000");
    bytes[148..156].fill(b' ');
    let sum: u32 = bytes.iter().map(|&byte| u32::from(byte)).sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// What layers come to: names of things, which are the same where they are links of each other.
#[derive(Clone, Debug, Default)]
struct Model {
    names: BTreeMap<String, usize>,
    things: Vec<(FileKind, Vec<u8>)>,
}

impl Model {
    /// None where the specification does not say.
    fn of(layers: &[Vec<Step>]) -> Option<Self> {
        let mut model = Self::default();
        for steps in layers {
            let below = model.names.clone();
            for step in steps {
                match step {
                    Step::Whiteout(name) => model.remove(&name.path(), true),
                    Step::Opaque(name) => model.remove(&name.path(), false),
                    _ => {}
                }
            }
            for step in steps {
                model.put(step, &below)?;
            }
        }
        Some(model)
    }

    fn remove(&mut self, path: &str, itself: bool) {
        let below = format!("{path}/");
        self.names
            .retain(|name, _| !name.starts_with(&below) && (!itself || name != path));
    }

    fn kind(&self, path: &str) -> Option<FileKind> {
        self.names.get(path).map(|thing| self.things[*thing].0)
    }

    fn put(&mut self, step: &Step, below: &BTreeMap<String, usize>) -> Option<()> {
        let (name, kind, contents) = match step {
            Step::Directory(name) => (name, FileKind::Directory, Vec::new()),
            Step::File(name, len) => (name, FileKind::Regular, vec![*len; usize::from(*len)]),
            Step::Symlink(name) => (name, FileKind::Symlink, b"nowhere".to_vec()),
            Step::HardLink(name, target) => {
                let target = target.path();
                let thing = *self.names.get(&target).or(below.get(&target))?;
                let path = name.path();
                self.make_directories(&path, below)?;
                self.remove(&path, true);
                self.names.insert(path, thing);
                return Some(());
            }
            Step::Whiteout(_) | Step::Opaque(_) => return Some(()),
        };
        let path = name.path();
        self.make_directories(&path, below)?;
        if kind == FileKind::Directory && self.kind(&path) == Some(kind) {
            return Some(());
        }
        self.remove(&path, true);
        self.add(path, kind, contents);
        Some(())
    }

    fn add(&mut self, path: String, kind: FileKind, contents: Vec<u8>) {
        self.names.insert(path, self.things.len());
        self.things.push((kind, contents));
    }

    /// Makes what a path is in. None where that is something else already, or is a symlink in the layers below.
    fn make_directories(&mut self, path: &str, below: &BTreeMap<String, usize>) -> Option<()> {
        for (end, _) in path.match_indices('/') {
            let was = below.get(&path[..end]).map(|thing| self.things[*thing].0);
            if was == Some(FileKind::Symlink) {
                return None;
            }
            match self.kind(&path[..end]) {
                None => self.add(path[..end].to_owned(), FileKind::Directory, Vec::new()),
                Some(FileKind::Directory) => {}
                Some(_) => return None,
            }
        }
        Some(())
    }

    fn compare(&self, found: &BTreeMap<Vec<u8>, fuzz::Found>) {
        let names: Vec<&[u8]> = self.names.keys().map(String::as_bytes).collect();
        let found_names: Vec<&[u8]> = found.keys().map(Vec::as_slice).collect();
        assert_eq!(names, found_names);
        let mut inodes = BTreeMap::new();
        for (thing, found) in self.names.values().zip(found.values()) {
            let (kind, contents) = &self.things[*thing];
            assert_eq!((kind, contents), (&found.kind, &found.contents));
            assert_eq!(*inodes.entry(thing).or_insert(found.inode), found.inode, "links");
        }
        let distinct: std::collections::BTreeSet<u32> = inodes.values().map(|inode| inode.0).collect();
        assert_eq!(distinct.len(), inodes.len(), "what is no link");
    }
}
