//! Making instances: copy-on-write clones of a template.
//!
//! All clones of one run start as the same few bytes, an empty overlay, which is made once, in memory, with a root filesystem as large as
//! they are to have it. Each is then made the machine that it is to be, in memory too and over a template that is open once for all of them, and written to its file when it is
//! done: nothing is read twice, and nothing waits for the disk but once, at the end.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use block::chain::{Chain, ChainOptions};
use block::gate::Deny;
use block::{
    Access, Backing, BackingReference, BlockDevice, Error, ErrorKind, MemStorage, Result, Storage, is_zero,
};
use ops::{Control, ConvertOptions};
use qcow2::{CreateOptions, OpenOptions};
use raw::HostOpener;
use uuid::Uuid;

use super::document::{self, text_of};
use super::import::now;
use super::instance::BESIDE;
use super::scratch::Scratch;
use super::unfinished::Unfinished;
use super::{Alias, Instance, InstanceDocument, InstanceName, Mac, Store, Template, publish};
use crate::personalise::grow;
use crate::{Seed, Settings};

/// Machines at most whose files are synced one by one.
const FEW: usize = 8;

/// Bytes moved at once from memory to a file.
const CHUNK: u64 = 1 << 20;

/// Bytes that are written or left out.
const PAGE: usize = 4 << 10;

/// Machines in the making.
#[derive(Clone, Debug, Default)]
pub struct NewInstances {
    /// What they are to be called.
    pub names: Vec<InstanceName>,
    /// Bytes of each disk, where it is to be longer than the template's.
    pub size: Option<u64>,
    /// Profiles that they have, later ones winning.
    pub profiles: Vec<Alias>,
    /// Settings of their own.
    pub machine: Settings,
    /// The Ethernet address, for a single one.
    pub mac: Option<Mac>,
    /// Each has all of the disk, and needs the template no more.
    pub full: bool,
    /// What cloud-init in the guest is to make of it, if it is.
    pub seed: Option<Seed>,
    /// The root filesystem becomes as long as the disk, before each is made what it is to be.
    pub grow: bool,
}

/// Makes the disk of a new machine its own.
pub type Personalise<'p> = dyn Fn(&Instance, &Arc<dyn BlockDevice>) -> Result<()> + Sync + 'p;

impl Store {
    /// Makes machines of a template, all or none. Each has a UUID of its own, and what `personalise` does to its disk.
    ///
    /// # Errors
    /// `InvalidInput` for settings that make no machine, a name that is taken, a profile, kernel or initrd that is not there, or a disk shorter than the template's;
    /// `Corrupt` for a template that has changed; what `personalise` returns; `NoSpace`, `Io`.
    pub fn clone_template(
        &self,
        template: &Template,
        new: &NewInstances,
        personalise: &Personalise<'_>,
        control: &Control<'_>,
    ) -> Result<Vec<Instance>> {
        let instances = self.planned(template, new)?;
        template.check_is_whole()?;
        template.check(control)?;
        self.check_trusted(template, control)?;
        let job = Job {
            scratch: self.scratch()?,
            base: open_template(template)?,
            size: size_of(template, new)?,
            template,
            full: new.full,
            grow: new.grow,
            seed: new.seed.as_ref(),
            personalise,
            control,
        };
        let start = job.start()?;
        job.make_all(&instances, &start)?;
        self.publish_all(&job.scratch, template, &instances)?;
        Ok(instances)
    }

    /// The instances, after all that can be refused was.
    fn planned(&self, template: &Template, new: &NewInstances) -> Result<Vec<Instance>> {
        let mut settings = template.document.machine.clone();
        for profile in &new.profiles {
            settings = settings.then(self.profile(profile)?);
        }
        settings.then(new.machine.clone()).check()?;
        if new.mac.is_some() && new.names.len() > 1 {
            return Err(Error::invalid(
                "several machines cannot share an address of a network card",
            ));
        }
        if let Some(mac) = new.mac {
            self.refuse_mac(mac)?;
        }
        let instance = |name: &InstanceName| Instance {
            name: name.clone(),
            document: InstanceDocument {
                uuid: Uuid::new_v4(),
                template: template.fingerprint,
                alias: template.asked.clone(),
                created: now(),
                mac: new.mac,
                alone: new.full,
                profiles: new.profiles.clone(),
                machine: if new.full {
                    template.document.machine.clone().then(new.machine.clone())
                } else {
                    new.machine.clone()
                },
            },
            directory: self.instances_directory(),
        };
        let instances: Vec<Instance> = new.names.iter().map(instance).collect();
        let mut seen = BTreeSet::new();
        if let Some(twice) = new.names.iter().find(|name| !seen.insert(*name)) {
            return Err(Error::invalid(format!("the name \"{twice}\" is given twice")));
        }
        new.names.iter().try_for_each(|name| self.refuse_taken(name))?;
        Ok(instances)
    }

    /// Fails for the address of another machine's network card: two of them on one network get each other's packets.
    fn refuse_mac(&self, mac: Mac) -> Result<()> {
        let others = self.instances_with_disks()?.found;
        match others.iter().find(|other| other.mac() == mac) {
            Some(other) => {
                let message = format!("{mac} is the address of machine {}", other.name);
                Err(Error::invalid(message).with_hint("leave out --mac: each machine has one of its own"))
            }
            None => Ok(()),
        }
    }

    /// Puts all of them into the store.
    fn publish_all(&self, scratch: &Scratch, template: &Template, instances: &[Instance]) -> Result<()> {
        let directory = self.instances_directory();
        let failed = |error| Error::io("make a directory", error).with_path(&directory);
        let held = self.hold()?;
        fs::create_dir_all(&directory).map_err(failed)?;
        // It may have been removed while nobody stood on it.
        if !template.image().exists() || !template.description().exists() {
            let message = format!(
                "template {} was removed while machines were made of it",
                template.name()
            );
            return Err(
                Error::invalid(message).with_hint("none was made; import or build the template again")
            );
        }
        self.load_template(template.fingerprint)?;
        instances
            .iter()
            .try_for_each(|instance| self.refuse_taken(&instance.name))?;
        if let Some(mac) = instances.first().and_then(|instance| instance.document.mac) {
            self.refuse_mac(mac)?;
        }
        let names = Unfinished::machines(instances.iter().map(|instance| &instance.name));
        self.finish(&held, names, || self.name_files(scratch, instances))?;
        document::sync(&directory)
    }

    /// Gives all files their names, the disks last: all or none.
    fn name_files(&self, scratch: &Scratch, instances: &[Instance]) -> Result<()> {
        let directory = self.instances_directory();
        for instance in instances {
            for beside in BESIDE {
                let to = Self::file(&directory, &instance.name, beside);
                let from = scratch.path(&format!("{}.{beside}", instance.name));
                // Nobody's: there is no disk of that name.
                document::remove(&to)?;
                if beside == "toml" || from.exists() {
                    publish(&from, &to)?;
                }
            }
        }
        document::sync(&directory)?;
        for (done, instance) in instances.iter().enumerate() {
            let from = scratch.path(&format!("{}.qcow2", instance.name));
            if let Err(error) = publish(&from, &instance.image()) {
                // All or none: these were nobody's yet.
                for instance in &instances[..done] {
                    document::remove(&instance.image())?;
                }
                return Err(error);
            }
        }
        Ok(())
    }
}

/// One run.
struct Job<'j> {
    scratch: Scratch,
    /// The template's disk.
    base: Chain,
    size: u64,
    template: &'j Template,
    full: bool,
    grow: bool,
    seed: Option<&'j Seed>,
    personalise: &'j Personalise<'j>,
    control: &'j Control<'j>,
}

impl Job<'_> {
    /// What all of them start as.
    fn start(&self) -> Result<Arc<MemStorage>> {
        let storage = Arc::new(self.empty()?);
        if self.grow && !self.full {
            let grown = self.change(storage.clone(), |disk| grow(disk, true));
            grown
                .map_err(|error| told_of(&format!("machines of template {}", self.template.name()), error))?;
        }
        Ok(storage)
    }

    /// An overlay that nothing is in, or an image that stands alone.
    fn empty(&self) -> Result<MemStorage> {
        let storage = MemStorage::new();
        let backing = BackingReference {
            name: format!("../templates/{}.qcow2", self.template.fingerprint),
            format: Some("qcow2".to_owned()),
        };
        let options = CreateOptions {
            size: self.size,
            backing: (!self.full).then_some(backing),
            ..CreateOptions::default()
        };
        qcow2::create(&storage, &options)?;
        Ok(storage)
    }

    /// Makes all files, on all processors.
    fn make_all(&self, instances: &[Instance], start: &MemStorage) -> Result<()> {
        let next = AtomicUsize::new(0);
        let work = || -> Result<()> {
            while let Some(instance) = instances.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.control.check()?;
                self.make(instance, start).inspect_err(|_| {
                    // The others need not go on.
                    next.store(instances.len(), Ordering::Relaxed);
                })?;
            }
            Ok(())
        };
        let threads = thread::available_parallelism()
            .map_or(1, usize::from)
            .min(instances.len());
        thread::scope(|scope| {
            // Where no more threads can be started, those that there are do all of it.
            let another = |_| thread::Builder::new().spawn_scoped(scope, work).ok();
            let others: Vec<_> = (1..threads).map_while(another).collect();
            let mut result = work();
            for other in others {
                let joined = other
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                result = result.and(joined);
            }
            result
        })?;
        self.sync(instances)
    }

    fn make(&self, instance: &Instance, start: &MemStorage) -> Result<()> {
        self.make_files(instance, start).map_err(|error| {
            let of = format!("machine {} of template {}", instance.name, self.template.name());
            told_of(&of, error)
        })
    }

    fn make_files(&self, instance: &Instance, start: &MemStorage) -> Result<()> {
        let path = self.scratch.path(&format!("{}.qcow2", instance.name));
        let file: Arc<dyn Storage> = Arc::new(create_private(&path)?);
        if self.full {
            // Too much for memory.
            copy(start, &*file)?;
            self.change(file.clone(), |disk| {
                let options = ConvertOptions::new();
                ops::convert(&*self.base.device(), &**disk, &options, self.control)?;
                if self.grow {
                    grow(disk, true)?;
                }
                (self.personalise)(instance, disk)
            })?;
            self.copy_beside(instance)?;
        } else {
            let storage = Arc::new(MemStorage::clone(start));
            self.change(storage.clone(), |disk| (self.personalise)(instance, disk))?;
            copy(&storage, &*file)?;
        }
        if let Some(seed) = self.seed {
            let path = self.scratch.path(&format!("{}.seed", instance.name));
            let memory = MemStorage::new();
            seed.write(instance, &memory)?;
            copy(&memory, &create_private(&path)?)?;
        }
        let text = text_of(&instance.document)?;
        document::create_unsynced(
            &self.scratch.path(&format!("{}.toml", instance.name)),
            text.as_bytes(),
            instance.document.mode(),
        )
        .map(drop)
    }

    /// Gives an instance that stands alone what a launcher loads.
    fn copy_beside(&self, instance: &Instance) -> Result<()> {
        let files = [
            ("kernel", self.template.kernel()),
            ("initrd", self.template.initrd()),
        ];
        for (extension, from) in files {
            let Some(from) = from else { continue };
            let to = self.scratch.path(&format!("{}.{extension}", instance.name));
            fs::copy(&from, &to).map_err(|error| Error::io("copy", error).with_path(&from))?;
        }
        Ok(())
    }

    fn open(&self, storage: Arc<dyn Storage>) -> Result<qcow2::Image> {
        let options = OpenOptions {
            access: Access::WRITE,
            backing: if self.full {
                Backing::None
            } else {
                Backing::Device(self.base.device())
            },
            ..OpenOptions::default()
        };
        qcow2::Image::open(storage, options)
    }

    /// Changes the disk in an image.
    fn change(
        &self,
        storage: Arc<dyn Storage>,
        change: impl FnOnce(&Arc<dyn BlockDevice>) -> Result<()>,
    ) -> Result<()> {
        let image = Arc::new(self.open(storage)?);
        let disk: Arc<dyn BlockDevice> = image.clone();
        change(&disk)?;
        drop(disk);
        match Arc::into_inner(image) {
            Some(image) => image.close(),
            None => unreachable!("whoever changes a disk does not keep it"),
        }
    }

    /// Has all files on the disk: a few by themselves, and many with all else that waits on that file system.
    fn sync(&self, instances: &[Instance]) -> Result<()> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error| Error::io("sync", error).with_path(path)
        };
        if instances.len() > FEW {
            let directory = self.scratch.path("");
            let open = fs::File::open(&directory).map_err(failed(&directory))?;
            return rustix::fs::syncfs(open).map_err(|error| failed(&directory)(error.into()));
        }
        for instance in instances {
            for extension in ["qcow2", "toml", "seed", "kernel", "initrd"] {
                let path = self.scratch.path(&format!("{}.{extension}", instance.name));
                match fs::File::open(&path) {
                    Ok(file) => file.sync_all().map_err(failed(&path))?,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(failed(&path)(error)),
                }
            }
        }
        Ok(())
    }
}

/// An error that what is on a disk is the reason for, told of whose it is.
fn told_of(whose: &str, error: Error) -> Error {
    if !matches!(
        error.kind(),
        ErrorKind::InvalidInput | ErrorKind::Unsupported | ErrorKind::Corrupt
    ) {
        return error;
    }
    let told = Error::new(error.kind(), format!("{whose}: {error}"));
    match error.hint() {
        Some(hint) => told.with_hint(hint.to_owned()),
        None => told,
    }
}

/// A new file that nobody else may read: it is going to have private keys.
pub(crate) fn create_private(path: &Path) -> Result<raw::File> {
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| Error::io("create", error).with_path(path))?;
    raw::OpenOptions::new().write(true).lock(false).open(path)
}

/// Copies what memory holds into a new file, where zeros are left out: of a cluster that is in use, most is often none.
fn copy(from: &MemStorage, to: &dyn Storage) -> Result<()> {
    let len = from.len()?;
    to.set_len(len)?;
    let (mut offset, mut buffer) = (0, Vec::new());
    while offset < len {
        let run = from.host_extent(offset, (len - offset).min(CHUNK))?;
        if run.data {
            buffer.resize(run.len as usize, 0);
            from.read_exact_at(&mut buffer, offset)?;
            let pages: Vec<(bool, &[u8])> = buffer.chunks(PAGE).map(|page| (is_zero(page), page)).collect();
            let mut at = 0;
            // Pages that go together are written together.
            for part in pages.chunk_by(|one, next| one.0 == next.0) {
                let len: usize = part.iter().map(|(_, page)| page.len()).sum();
                if !part[0].0 {
                    to.write_all_at(&buffer[at..at + len], offset + at as u64)?;
                }
                at += len;
            }
        }
        offset += run.len;
    }
    Ok(())
}

fn open_template(template: &Template) -> Result<Chain> {
    let options = ChainOptions {
        format: Some("qcow2"),
        ..ChainOptions::default()
    };
    Chain::open_with(
        &HostOpener::new(),
        &[&qcow2::Qcow2],
        &Deny,
        &template.image(),
        &options,
    )
}

fn size_of(template: &Template, new: &NewInstances) -> Result<u64> {
    let least = template.document.disk_size;
    match new.size.map(block::size::whole_sectors) {
        Some(size) if size < least => Err(Error::invalid(format!(
            "a disk of {size} bytes is shorter than that of template {}, which has {least}",
            template.name()
        ))
        .with_hint("disks of clones can be longer, and not shorter")),
        size => Ok(size.unwrap_or(least)),
    }
}
