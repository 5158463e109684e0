//! `imgtool template import`: make a template of an image.

use std::io::Write;
use std::path::{Path, PathBuf};

use block::{Access, Result};
use clap::Args;
use machines::import::Importing;
use machines::personalise::has_system;
use machines::store::{Fingerprint, NewTemplate, Provenance, Template, read_kernel};
use machines::{Root, seal};
use ops::Control;

use super::FormArg;
use super::seal::told;
use crate::arguments::{Nested, OpenArgs, WatchArgs};
use crate::commands::Outcome;
use crate::images::Opening;
use crate::interrupt;
use crate::output::{OutputFormat, note};
use crate::stores::{MachineArgs, image_at, tell_broken_keys};
use crate::watch::Watch;

/// Make a template of an image
///
/// FILE is a disk image; a tar archive of a root filesystem, or a container image (an image layout, its archive, or oci:DIR:TAG), of
/// which a disk is built as recipes build it, with a fifth of it free; or an image of a virtual machine for Incus or LXD. It stays as it is.
/// A disk in qcow2 format that stands alone is copied byte by byte, so that its SHA-256 is the fingerprint; any other is copied into one
/// that does. An image that is based on another, or has its data in another file, is refused unless --nested says which files may be copied
/// into the template.
///
/// What `imgtool template export` has written beside FILE or into it is taken along, but nothing that would reach into this host; options win. What system is on the disk is found out else, and so is how it boots: where the disk has an EFI system
/// partition, by UEFI; where it has none and there is a kernel in it, the kernel is copied beside the disk, for launchers to load. A disk that
/// is built has an EFI system partition only if it is to boot so (--boot uefi). What template lint finds is told, on standard error.
///
/// Where the store has public keys of minisign (keys/NAME.pub), only what one of them has signed is imported: FILE, and FILE.toml if there is one.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool template import disk.qcow2 --alias debian-12
  imgtool template import root.img --alias tiny --memory 256M --kernel vmlinuz --initrd initrd.img
  imgtool template import debian-12-nocloud-amd64.qcow2 --alias cloud --user debian --notes 'from Debian'
  imgtool template import rootfs.tar.zst --alias web --boot uefi
  imgtool template import oci:layout:web --alias web
  minisign -Sm disk.qcow2 && imgtool template import disk.qcow2 --alias signed
  imgtool template import incus.tar.xz disk.qcow2 --alias theirs")]
pub(super) struct ImportArgs {
    /// What it is to be called
    #[arg(short, long)]
    alias: Option<String>,
    /// Take the alias away from another template that has it
    #[arg(long = "move", requires = "alias")]
    moved: bool,
    /// What the file is [default: found out]
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    format: Option<FormArg>,
    /// The signature of FILE, where the store has keys [default: FILE.minisig]
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,
    /// Compress what is copied, with zstd
    #[arg(short = 'c', long)]
    compress: bool,
    /// The operating system [default: what the disk says]
    #[arg(long, value_name = "TEXT")]
    os: Option<String>,
    /// Who people log in as
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Whatever there is to say
    #[arg(long, value_name = "TEXT")]
    notes: Option<String>,
    /// The kernel that launchers load [default: the newest on the disk, where it does not boot by UEFI]
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// What goes with that kernel
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    #[command(flatten)]
    machine: MachineArgs,
    /// How to print what was made
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    output: OutputFormat,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    open: OpenArgs,
    /// The image
    file: PathBuf,
    /// The disk of an Incus image, where FILE has only its metadata
    disk: Option<PathBuf>,
}

impl ImportArgs {
    pub(super) fn run(self, out: &mut dyn Write) -> Outcome {
        self.open.check()?;
        let template = self.import()?;
        // Who is not told would take the options for what holds.
        self.tell_kept(&template);
        if !self.watch.quiet {
            tell_findings(&template);
            super::show::print(out, &template, self.output)?;
        }
        Ok(0)
    }

    fn import(&self) -> Result<Template> {
        let new = NewTemplate {
            alias: self.alias.as_deref().map(str::parse).transpose()?,
            move_alias: self.moved,
            os: self.os.clone(),
            user: self.user.clone(),
            notes: self.notes.clone(),
            machine: self.machine.template_settings()?,
            provenance: Some(Provenance {
                source: Some(base_name(&self.file)),
                ..Provenance::default()
            }),
            kernel: self.kernel.as_deref().map(read_kernel).transpose()?,
            initrd: self.initrd.as_deref().map(read_kernel).transpose()?,
            compress: self.compress,
            ..NewTemplate::default()
        };
        let opening = Opening {
            // What a stranger's image names would be in the template, and in all machines of it.
            nested: self.open.nested.or(Some(Nested::Deny)),
            io: self.open.io.into(),
            access: Access::READ,
            direct: false,
        };
        let stated = self.format.and_then(|format| match format {
            FormArg::Qcow2 => Some("qcow2"),
            FormArg::Raw => Some("raw"),
            _ => None,
        });
        let open = |path: &Path, _| opening.chain(path, stated);
        let importing = Importing {
            file: image_at(&self.file).into_owned(),
            disk: self.disk.clone(),
            form: self.format.map(Into::into),
            signature: self.signature.clone(),
            open: &open,
        };
        let store = self.open.store.open()?;
        tell_broken_keys(&store);
        let watch = Watch::new(&self.watch);
        let report = |progress| watch.report(progress);
        let made = store.take_in(&importing, new, &Control::new(interrupt::watch()?, &report));
        watch.finish();
        made
    }

    /// Says what was asked for and is not so, where the image is one of a template that there was.
    fn tell_kept(&self, template: &Template) {
        let document = &template.document;
        let differs = |wanted: &Option<String>, is: &Option<String>| wanted.is_some() && wanted != is;
        let is_other = |file: &Option<PathBuf>, is: Option<Fingerprint>| {
            let wanted = file
                .as_ref()
                .and_then(|file| Fingerprint::of_file(file, &Control::unwatched()).ok());
            wanted.is_some() && wanted != is
        };
        let kept: Vec<&str> = [
            ("system", differs(&self.os, &document.os)),
            ("user", differs(&self.user, &document.user)),
            ("notes", differs(&self.notes, &document.notes)),
            ("kernel", is_other(&self.kernel, document.kernel)),
            ("initrd", is_other(&self.initrd, document.initrd)),
            (
                "settings of machines",
                self.machine
                    .settings()
                    .is_ok_and(|settings| document.machine.clone().then(settings) != document.machine),
            ),
        ]
        .into_iter()
        .filter_map(|(what, differs)| differs.then_some(what))
        .collect();
        if !kept.is_empty() {
            let path = template.image().with_extension("toml");
            note(&format!(
                "the image is that of template {} already, whose {} are kept: they are in {}",
                template.name(),
                kept.join(", "),
                path.display()
            ));
        }
    }
}

/// Says what on its disk should not be in a template, or that there is no system on it.
fn tell_findings(template: &Template) {
    let look = || -> Result<()> {
        let disk = Opening::default()
            .alone(&template.image(), Some("qcow2"))?
            .device();
        let Some(root) = Root::find(&disk)? else {
            note(&format!(
                "the disk has no root filesystem of ext4, so machines of it get no names and keys of their own, and what is private \
                 was not looked for: {}",
                seal::instead_of_root(&disk)?
            ));
            return Ok(());
        };
        if !has_system(&disk)? {
            note("the disk has a filesystem of ext4 and no system in it: there is no /etc");
        }
        seal::lint(&root, &[])?
            .iter()
            .for_each(|finding| note(&told(finding)));
        Ok(())
    };
    if let Err(error) = look() {
        note(&format!(
            "what is private on the disk was not looked for: {error}"
        ));
    }
}

fn base_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned()
}
