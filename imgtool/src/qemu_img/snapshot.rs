//! `qemu-img snapshot`.

use std::ops::ControlFlow;
use std::time::SystemTime;

use block::SnapshotSelector;
use qcow2::{ClusterIndex, Damage, Header, Image as Qcow2, SnapshotPart, SnapshotProgress, SnapshotTable};

use super::console::Console;
use super::getopt::Options;
use super::image::{self, Found, Image, Spec};
use super::node::Flags;
use super::qcow2_words;
use super::refusal::{EAGAIN, EFBIG, EINVAL, ENOTSUP, Refusal, host_text, reason};
use super::secret::Secrets;
use super::{Outcome, pages, qcow2_of};
use crate::snapshots::{self, Width};

/// Bytes of a new snapshot's name that are kept.
const MAX_NAME: usize = 255;

/// Entries of the longest refcount table that QEMU makes.
const MAX_REFCOUNT_BLOCKS: u64 = 1 << 20;

/// What is to be done, with the name or ID of a snapshot.
#[derive(Debug)]
enum Action {
    List,
    Create(String),
    Apply(String),
    Delete(String),
}

pub(super) fn run(console: &Console, arguments: &[String]) -> Outcome {
    let (mut action, mut format, mut image_opts, mut force_share) = (None, None, false, false);
    let mut secrets = Secrets::default();
    let mut options = Options::new(&pages::SNAPSHOT, arguments);
    while let Some((name, value)) = options.next()? {
        let asked = match name {
            "h" => return super::show(console, &pages::SNAPSHOT),
            "l" => Action::List,
            "c" => Action::Create(value),
            "a" => Action::Apply(value),
            "d" => Action::Delete(value),
            other => {
                match other {
                    "q" => {}
                    "f" => format = Some(value),
                    "U" => force_share = true,
                    "image-opts" => image_opts = true,
                    _ => secrets.add(console, &value)?,
                }
                continue;
            }
        };
        if action.replace(asked).is_some() {
            return Err(Refusal::usage("Cannot mix '-l', '-a', '-c', '-d'"));
        }
    }
    let spec = super::one_image(&options.operands(), format.as_deref(), image_opts)?;
    let action = action.unwrap_or(Action::List);
    let flags = Flags {
        write: !matches!(action, Action::List),
        force_share,
        ..Flags::default()
    };
    match action {
        Action::List => list(console, &image::open(&spec, flags)?)?,
        Action::Create(name) => create(
            &open(console, &spec, flags, |found| refuse_one_too_many(found, &name))?,
            &name,
        )?,
        Action::Apply(name) => {
            let sound = |found: &Found| match found.bad_snapshot() {
                None => Ok(()),
                Some(wrong) => {
                    console.error(wrong.text());
                    let why = format!("Failed to load snapshot: {}", wrong.reason());
                    Err(Refusal::new(format!("Could not apply snapshot '{name}': {why}")))
                }
            };
            let image = open(console, &spec, flags, sound)?;
            image.layers[0].refuse_base()?;
            apply(&image, &name)?;
        }
        Action::Delete(name) => {
            let sound = |found: &Found| match found.bad_snapshot() {
                None => Ok(()),
                Some(wrong) => {
                    let why = wrong.text();
                    Err(Refusal::new(format!("Could not delete snapshot '{name}': {why}")))
                }
            };
            delete(console, &open(console, &spec, flags, sound)?, &name)?;
        }
    }
    Ok(0)
}

/// Opens an image that is to be changed, unless a look at its file alone says that it cannot be.
fn open(
    console: &Console,
    spec: &Spec,
    flags: Flags,
    judge: impl FnOnce(&Found) -> Result<(), Refusal>,
) -> Result<Image, Refusal> {
    let found = image::find(spec, flags)?;
    judge(&found)?;
    super::go_on_to_write(console, spec, found, flags)
}

fn list(console: &Console, image: &Image) -> Result<(), Refusal> {
    let found = &image.layers[0];
    let Some(header) = &found.header else {
        return Ok(());
    };
    let storage = &*found.node.storage;
    let table = SnapshotTable::read(storage, header).map_err(|error| image::engine_words(&error))?;
    if !table.snapshots.is_empty() {
        let mut text = Vec::new();
        snapshots::print(&mut text, &table.snapshots, Width::Bytes)?;
        console.print(String::from_utf8_lossy(&text))?;
    }
    Ok(())
}

/// A table that is full need not be read for that.
fn refuse_one_too_many(found: &Found, name: &str) -> Result<(), Refusal> {
    match qcow2_words::snapshot_count(&*found.node.storage) {
        Some(count) if found.format == "qcow2" && count >= 65_536 => Err(Refusal::new(format!(
            "Could not create snapshot '{name}': {}",
            strerror(EFBIG)
        ))),
        _ => Ok(()),
    }
}

fn create(image: &Image, name: &str) -> Result<(), Refusal> {
    let could_not = |why: &str| Refusal::new(format!("Could not create snapshot '{name}': {why}"));
    let qcow2 = qcow2_of(image).ok_or_else(|| could_not("Operation not supported"))?;
    refuse_data_file(image).map_err(|why| could_not(&why))?;
    let made = qcow2.create_snapshot_of(
        SnapshotPart::Everything,
        kept(name),
        SystemTime::now(),
        &mut go_on,
    );
    made.map(|_| ())
        .and_then(|()| image.chain.settle())
        .map_err(|error| {
            use block::ErrorKind;
            could_not(&match error.kind() {
                // A refcount that is full already is no error of the host.
                ErrorKind::Unsupported => strerror(EINVAL),
                // QEMU counts what an entry names: where nothing can be, or where nothing has been counted yet.
                _ => match Damage::of(&error) {
                    Some(Damage::ReservedBits) => strerror(EFBIG),
                    Some(Damage::CountedTooLow { cluster }) if !is_countable(image, cluster) => {
                        strerror(EFBIG)
                    }
                    Some(Damage::CountedTooLow { .. }) => strerror(EAGAIN),
                    _ => reason(&error),
                },
            })
        })
}

/// A name as far as there is room for it, in whole characters.
fn kept(name: &str) -> &str {
    let fits = |end: &usize| name.is_char_boundary(*end);
    let end = (0..=name.len().min(MAX_NAME)).rev().find(fits);
    &name[..end.unwrap_or_default()]
}

/// Data that is not counted is in no snapshot.
fn refuse_data_file(image: &Image) -> Result<(), String> {
    let header = image.layers[0].header.as_ref();
    match header.and_then(Header::data_file) {
        Some(_) => Err(strerror(ENOTSUP)),
        None => Ok(()),
    }
}

/// Whether a cluster is where a refcount table can reach.
fn is_countable(image: &Image, cluster: ClusterIndex) -> bool {
    let header = image.layers[0].header.as_ref();
    header.is_none_or(|header| {
        let geometry = &header.geometry;
        cluster.0 >> (geometry.cluster_bits + 3 - geometry.refcount_order) < MAX_REFCOUNT_BLOCKS
    })
}

fn apply(image: &Image, name: &str) -> Result<(), Refusal> {
    let could_not = |why: &str| Refusal::new(format!("Could not apply snapshot '{name}': {why}"));
    let qcow2 = qcow2_of(image).ok_or_else(|| could_not("Block driver does not support snapshots"))?;
    // The engine marks all as changed. Who wrote a script for stock knows that nothing is lost here.
    if !qcow2
        .bitmaps()
        .map_err(|error| could_not(&reason(&error)))?
        .is_empty()
    {
        return Err(could_not("Device has active dirty bitmaps"));
    }
    refuse_data_file(image).map_err(|why| could_not(&format!("Failed to load snapshot: {why}")))?;
    let Some(which) = selector(qcow2, name).map_err(|refusal| could_not(refusal.text()))? else {
        return Err(could_not("Failed to load snapshot: No such file or directory"));
    };
    qcow2
        .apply_snapshot_of(SnapshotPart::Everything, &which, &mut go_on)
        .and_then(|()| image.chain.settle())
        .map_err(|error| could_not(&format!("Failed to load snapshot: {}", reason(&error))))
}

fn delete(console: &Console, image: &Image, name: &str) -> Result<(), Refusal> {
    let could_not = |why: &str| Refusal::new(format!("Could not delete snapshot '{name}': {why}"));
    let not_found = || could_not("snapshot not found");
    let qcow2 = qcow2_of(image).ok_or_else(not_found)?;
    let all = qcow2.snapshots().map_err(|error| could_not(&reason(&error)))?;
    // By its name alone, as QEMU does: what is called "1" is not what has the ID 1.
    let found = all.iter().find(|snapshot| snapshot.name == name);
    let which = found.map(|snapshot| SnapshotSelector::id(&*snapshot.id));
    let which = which.ok_or_else(not_found)?;
    qcow2
        .delete_snapshot(&which, &mut go_on)
        .and_then(|_| image.chain.settle())
        .map_err(|error| {
            let why = reason(&error);
            console.note(&format!("qcow2_free_clusters failed: {why}\n"));
            could_not(&format!("Failed to free the cluster and L1 table: {why}"))
        })
}

/// The snapshot that has this ID, or else the first one of this name.
fn selector(image: &Qcow2, text: &str) -> Result<Option<SnapshotSelector>, Refusal> {
    let all = image.snapshots().map_err(|error| Refusal::new(reason(&error)))?;
    let by_id = all.iter().find(|snapshot| snapshot.id == text);
    let found = by_id.or_else(|| all.iter().find(|snapshot| snapshot.name == text));
    Ok(found.map(|snapshot| SnapshotSelector::id(&*snapshot.id)))
}

fn strerror(number: i32) -> String {
    host_text(&std::io::Error::from_raw_os_error(number))
}

fn go_on(_: SnapshotProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}
