//! What is promised of a file that a killed command was writing to, and who judges it.

use std::fmt::Write as _;
use std::fs;

use serde_json::Value;

use crate::common::Lab;

/// What becomes of a file or a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Promise {
    /// Its bytes stay as they are.
    Kept,
    /// Its bytes are as they were, or as they become.
    Replaced,
    /// It is as it was, or as it becomes: the disk, the snapshots, the bitmaps, and all that `info` tells of it.
    OldOrNew,
    /// The disk, the snapshots and their names are old or new; how they are kept may be in between.
    SameDisk,
    /// It is sound, and each sector of it is old or new.
    Sectors,
    /// It reads as it did, though it may not be sound before a second run.
    Repairable,
    /// It is an encrypted disk that `old.key` opens, old or new or something between: what it has of the new end reads as that.
    Longer,
    /// It is an encrypted disk that `old.key` opens, old or new.
    Unlocked,
    /// A text, old or new but for the name of the directory that all is in.
    Text,
    /// It may be anything, and read as a whole disk; both programs read the same, or say what is wrong.
    Unsure,
    /// The files in a filesystem are old or new, and e2fsck finds nothing wrong once the journal is replayed.
    Files,
    /// e2fsck finds nothing wrong in it, whatever its files are.
    Filesystem,
    /// As [`Promise::Files`], or nobody takes it for a filesystem.
    FilesOrNone,
    /// What is listed of a partition table is old or new.
    Table,
    /// The disk is as it was, and the old key opens it, or the new one, or both: `old.key` and `new.key`.
    Keys,
    /// What is listed of a store is old or new, and all templates are what they should be.
    Store,
    /// The names of machines and templates are old or new, and each has a disk that is sound.
    Machines,
}

/// What is seen of a file or a directory.
#[derive(PartialEq, Eq)]
pub(crate) enum State {
    Absent,
    /// Neither our programs nor others take it for what it should be.
    Refused(String),
    Bytes(Vec<u8>),
    Image {
        described: String,
        disk: Vec<u8>,
        snapshots: Vec<(String, Vec<u8>)>,
    },
    /// Lines of text.
    Listed(String),
}

impl Promise {
    pub(crate) fn observe(self, lab: &Lab, name: &str) -> State {
        // A partition is named as IMAGE#NUMBER.
        if !lab.path(name.split('#').next().unwrap()).exists() {
            return State::Absent;
        }
        match self {
            Self::Kept | Self::Replaced => State::Bytes(fs::read(lab.path(name)).unwrap()),
            Self::OldOrNew | Self::SameDisk | Self::Sectors | Self::Repairable | Self::Unsure => {
                image(lab, name)
            }
            Self::Longer | Self::Unlocked => State::Bytes(decrypted(lab, name)),
            Self::Text => {
                let text = fs::read_to_string(lab.path(name)).unwrap();
                State::Listed(text.replace(lab.dir().to_str().unwrap(), "."))
            }
            Self::Files | Self::Filesystem | Self::FilesOrNone => files(lab, name),
            Self::Table => table(lab, name),
            Self::Keys => keys(lab, name),
            Self::Store => store(lab, name),
            Self::Machines => machines(lab, name),
        }
    }

    /// Fails unless the file is `now` as promised: between what it was `before` the command and is `after` one that was left alone.
    pub(crate) fn judge(self, lab: &Lab, name: &str, now: &State, [before, after]: [&State; 2], what: &str) {
        if matches!(self, Self::OldOrNew | Self::SameDisk | Self::Sectors) && *now != State::Absent {
            lab.assert_harmless(format(name), name, what);
        }
        let ok = match self {
            Self::Kept => now == before,
            Self::Replaced
            | Self::OldOrNew
            | Self::Unlocked
            | Self::Text
            | Self::Files
            | Self::Table
            | Self::Store
            | Self::Machines => now == before || now == after,
            Self::Longer => match (now, before, after) {
                (State::Bytes(now), State::Bytes(before), State::Bytes(after)) => {
                    now.starts_with(before) && after.starts_with(now)
                }
                _ => false,
            },
            Self::Unsure | Self::Filesystem => true,
            Self::FilesOrNone => now == before || now == after || matches!(now, State::Refused(_)),
            // What opens it is listed.
            Self::Keys => matches!(now, State::Listed(keys) if !keys.is_empty()),
            Self::SameDisk | Self::Repairable => now.same_disk(before) || now.same_disk(after),
            Self::Sectors => now.mixed_of(before, after),
        };
        assert!(ok, "{what}: {}", now.tell(before, after));
    }

    /// Whether a file is what it should be after the job was done.
    pub(crate) fn is_finished(self, done: &State, after: &State) -> bool {
        match self {
            Self::Sectors | Self::SameDisk | Self::Repairable => done.same_disk(after),
            _ => done == after,
        }
    }
}

impl State {
    fn same_disk(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Image { disk, snapshots, .. },
                Self::Image {
                    disk: other_disk,
                    snapshots: other_snapshots,
                    ..
                },
            ) => disk == other_disk && snapshots == other_snapshots,
            _ => self == other,
        }
    }

    /// Whether each sector of a disk is that of one of the others, which are zeros after their ends.
    fn mixed_of(&self, before: &Self, after: &Self) -> bool {
        let (Self::Image { disk, .. }, Self::Image { disk: before, .. }, Self::Image { disk: after, .. }) =
            (self, before, after)
        else {
            return false;
        };
        let sector = |disk: &[u8], at: usize| {
            let start = disk.len().min(at);
            let mut sector = disk[start..disk.len().min(at + 512)].to_vec();
            sector.resize(512, 0);
            sector
        };
        let is_one = |at: usize| {
            let now = sector(disk, at);
            now == sector(before, at) || now == sector(after, at)
        };
        [before.len(), after.len()].contains(&disk.len()) && (0..disk.len()).step_by(512).all(is_one)
    }

    /// For a failure: how it differs.
    pub(crate) fn tell(&self, before: &Self, after: &Self) -> String {
        match self {
            Self::Absent => "it is gone".to_owned(),
            Self::Refused(why) => format!("it is refused: {why}"),
            Self::Bytes(_) => "its bytes have changed".to_owned(),
            Self::Listed(text) => {
                let text_of = |state: &Self| match state {
                    Self::Listed(text) => text.clone(),
                    other => other.kind().to_owned(),
                };
                format!("{text}\nneither\n{}\nnor\n{}", text_of(before), text_of(after))
            }
            Self::Image { described, disk, .. } => {
                let of = |state: &Self| match state {
                    Self::Image {
                        described: other,
                        disk: other_disk,
                        ..
                    } => {
                        let at = disk.iter().zip(other_disk).position(|(a, b)| a != b);
                        format!("{other}, whose disk differs at {at:?}")
                    }
                    other => other.kind().to_owned(),
                };
                format!("{described}\nneither\n{}\nnor\n{}", of(before), of(after))
            }
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Refused(_) => "refused",
            Self::Bytes(_) => "bytes",
            Self::Image { .. } => "an image",
            Self::Listed(_) => "a list",
        }
    }
}

/// What its name says that a file is, as QEMU calls it.
fn format(name: &str) -> &str {
    match name.rsplit_once('.').expect("an extension").1 {
        "vhd" => "vpc",
        other => other,
    }
}

/// An image, as both programs read it.
fn image(lab: &Lab, name: &str) -> State {
    let format = format(name);
    let info = lab.run(&format!("imgtool info -f {format} --output json {name}"));
    let read = |options: &str| {
        let line = format!("convert -f {format} -O raw {options} {name}");
        let [ours, theirs] = [("imgtool", ".ours"), ("qemu-img", ".theirs")].map(|(program, seen)| {
            let done = lab.run(&format!("{program} {line} {seen}"));
            let bytes = (done.code() == 0).then(|| fs::read(lab.path(seen)).unwrap());
            let _ = fs::remove_file(lab.path(seen));
            bytes.ok_or_else(|| done.stderr())
        });
        match (ours, theirs) {
            (Ok(ours), Ok(theirs)) => {
                assert!(ours == theirs, "{name}: QEMU reads something else");
                Ok(ours)
            }
            (Err(ours), Err(_)) => Err(ours),
            (Ok(_), Err(theirs)) => panic!("{name}: QEMU does not open it: {theirs}"),
            (Err(ours), Ok(_)) => panic!("{name}: QEMU opens it, and this does not: {ours}"),
        }
    };
    let disk = match read("") {
        Ok(disk) => disk,
        Err(why) => return State::Refused(why),
    };
    let mut described: Value = serde_json::from_str(&info.ok()).unwrap();
    // What depends on how often a file was written to, and when.
    let described = described.as_object_mut().unwrap();
    for key in ["actual-size", "children"] {
        described.remove(key);
    }
    let mut snapshots = Vec::new();
    for snapshot in described
        .remove("snapshots")
        .iter()
        .flat_map(|list| list.as_array().unwrap())
    {
        let name = snapshot["name"].as_str().unwrap();
        let id = snapshot["id"].as_str().unwrap();
        snapshots.push((name.to_owned(), read(&format!("-l snapshot.id={id}")).unwrap()));
    }
    let mut described = Value::Object(described.clone()).to_string();
    if format == "qcow2" {
        let bitmaps = lab.imgtool(&format!("bitmap --list --output json {name}"));
        let bitmaps: Value = serde_json::from_str(&bitmaps).unwrap();
        for bitmap in bitmaps.as_array().unwrap() {
            let bitmap = bitmap["name"].as_str().unwrap();
            let ranges = lab.run(&format!("imgtool bitmap --ranges --output json {name} {bitmap}"));
            write!(described, "\n{bitmap}: {}", ranges.stdout()).unwrap();
        }
    }
    State::Image {
        described,
        disk,
        snapshots,
    }
}

/// The tree in a filesystem, as our reader finds it and as it is for everybody else once the journal is replayed.
fn files(lab: &Lab, name: &str) -> State {
    let ours = lab.run(&format!("imgtool fs tree {name}"));
    lab.imgtool(&format!("convert -O raw {name} .filesystem"));
    let script = "export PATH=$PATH:/usr/sbin:/sbin LC_ALL=C; rm -rf .seen; mkdir .seen
        e2fsck -y -E journal_only .filesystem >/dev/null 2>&1 || [ $? = 1 ] || { echo no filesystem >&2; exit 9; }
        e2fsck -fn .filesystem >.fsck 2>&1 || { cat .fsck >&2; exit 1; }
        debugfs -R 'rdump / .seen' .filesystem 2>/dev/null
        cd .seen; find . ! -path ./lost+found -printf '%P %y %m %U %G %l\\n' | sort; find . -type f -exec sha256sum {} + | sort -k2
        dumpe2fs -h ../.filesystem 2>/dev/null | grep '^Block count:'";
    let seen = lab.run_words(&["sh", "-c", script]);
    lab.run("rm -rf .filesystem .seen .fsck").ok();
    match (ours.code(), seen.code()) {
        (0, 0) => State::Listed(format!("{}{}", ours.stdout(), seen.stdout())),
        (1, 9) => State::Refused(ours.stderr()),
        _ => panic!("{name}: {}{}{}", ours.stderr(), seen.stdout(), seen.stderr()),
    }
}

/// A partition table by our list; GPT fdisk must find the same partitions, if not in both of its copies.
fn table(lab: &Lab, name: &str) -> State {
    let ours = lab.run(&format!("imgtool partition list --output json {name}"));
    if ours.code() != 0 {
        return State::Refused(ours.stderr());
    }
    let table: Value = serde_json::from_str(&ours.stdout()).unwrap();
    let partitions = table["partitions"].as_array().unwrap();
    let script = "export PATH=$PATH:/usr/sbin:/sbin; sgdisk -p $0 2>/dev/null | sed -n '/^Number/,$p' | tail -n +2 | wc -l";
    let theirs = lab.run_words(&["sh", "-c", script, name]).ok();
    assert_eq!(partitions.len().to_string(), theirs.trim(), "{name}: {table}");
    State::Listed(serde_json::to_string(partitions).unwrap())
}

/// A disk in LUKS's own form, as both programs read it.
fn decrypted(lab: &Lab, name: &str) -> Vec<u8> {
    lab.imgtool(&format!("convert -f luks --key old.key -O raw {name} .ours"));
    let options = format!("driver=luks,key-secret=s,file.filename={name}");
    lab.qemu_img(&format!(
        "convert --object secret,id=s,file=old.key --image-opts -O raw {options} .theirs"
    ));
    let [ours, theirs] = [".ours", ".theirs"].map(|seen| fs::read(lab.path(seen)).unwrap());
    assert!(ours == theirs, "{name}: QEMU reads something else");
    lab.run("rm -f .ours .theirs").ok();
    ours
}

/// Which keys open an image that both programs then read as zeros.
fn keys(lab: &Lab, name: &str) -> State {
    let mut opened = String::new();
    for key in ["old.key", "new.key"] {
        let ours = lab.run(&format!("imgtool convert --key {key} -O raw {name} .ours"));
        let options = format!("driver=qcow2,encrypt.key-secret=s,file.filename={name}");
        let theirs = lab.run(&format!(
            "qemu-img convert --object secret,id=s,file={key} --image-opts -O raw {options} .theirs"
        ));
        assert_eq!(
            ours.code(),
            theirs.code(),
            "{name}, {key}: {}{}",
            ours.stderr(),
            theirs.stderr()
        );
        if ours.code() == 0 {
            let [ours, theirs] = [".ours", ".theirs"].map(|seen| fs::read(lab.path(seen)).unwrap());
            assert!(
                ours == theirs && ours.iter().all(|byte| *byte == 0),
                "{name}, {key}"
            );
            opened.push_str(key);
        }
    }
    lab.run("rm -f .ours .theirs").ok();
    State::Listed(opened)
}

/// All that is known of machines and templates, but for the room they take.
fn store(lab: &Lab, name: &str) -> State {
    let list = |what: &str| -> Vec<Value> {
        let text = lab.imgtool(&format!("{what} --output json --store {name}"));
        serde_json::from_str(&text).unwrap()
    };
    let mut listed = String::new();
    for mut found in [list("ls"), list("template ls")].concat() {
        let imported = found["provenance"]["source"].as_str();
        let is_made =
            found["provenance"].is_object() && imported.is_none_or(|from| !from.starts_with("root."));
        let facts = found.as_object_mut().unwrap();
        facts.remove("actual-size");
        // What is built or published again has other times in it, and thereby another fingerprint.
        if is_made {
            facts.retain(|key, _| {
                ["aliases", "os", "disk-size", "parent", "machine", "provenance"].contains(&key.as_str())
            });
        }
        writeln!(listed, "{found}").unwrap();
    }
    let verified = lab.run(&format!("imgtool template verify -q --store {name}"));
    assert_eq!(verified.stderr(), "", "{name}");
    State::Listed(listed)
}

/// The machines and templates of a store, of which each machine is another one every time it is made.
fn machines(lab: &Lab, name: &str) -> State {
    let list = |what: &str| -> Vec<Value> {
        let text = lab.imgtool(&format!("{what} --output json --store {name}"));
        serde_json::from_str(&text).unwrap()
    };
    let mut listed = String::new();
    for machine in list("ls") {
        let machine = machine["name"].as_str().unwrap();
        lab.imgtool(&format!("show --store {name} {machine}"));
        lab.assert_harmless("qcow2", &format!("{name}/instances/{machine}.qcow2"), machine);
        writeln!(listed, "machine {machine}").unwrap();
    }
    for template in list("template ls") {
        writeln!(
            listed,
            "template {} {}",
            template["fingerprint"], template["aliases"]
        )
        .unwrap();
    }
    let verified = lab.run(&format!("imgtool template verify -q --store {name}"));
    assert_eq!(verified.stderr(), "", "{name}");
    State::Listed(listed)
}
