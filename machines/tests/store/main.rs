//! Templates and clones in a store, with qemu-img as the judge of their images, and other processes beside.

mod away;
mod bases;
mod shared;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use block::chain::Chain;
use block::gate::Permissive;
use block::{Access, BlockDevice, ErrorKind};
use machines::store::{
    Alias, Collecting, Instance, InstanceName, NewInstances, NewTemplate, Store, Template,
};
use machines::{Boot, Settings};
use ops::Control;
use raw::HostOpener;
use tempfile::TempDir;

const SIZE: u64 = 64 << 20;

struct Lab {
    directory: TempDir,
    store: Store,
}

impl Lab {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::at(directory.path().join("store"));
        Self { directory, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A disk that holds `text` at 1 MiB.
    fn image(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        let shown = path.to_str().unwrap();
        run(&["qemu-img", "create", "-q", "-f", "qcow2", shown, "64M"]);
        fs::write(self.path("text"), text).unwrap();
        let source = self.path("text");
        let write = format!("write -q -s {} 1M 64k", source.to_str().unwrap());
        run(&["qemu-io", "-f", "qcow2", "-c", &write, shown]);
        path
    }

    fn import(&self, path: &Path, alias: &str) -> block::Result<Template> {
        let new = NewTemplate {
            alias: Some(alias.parse().unwrap()),
            ..NewTemplate::default()
        };
        self.store.import(&open(path), &new, &Control::unwatched())
    }

    /// A template with a kernel and an initrd.
    fn bootable(&self) -> Template {
        let new = NewTemplate {
            kernel: Some(b"a kernel".to_vec()),
            initrd: Some(b"an initrd".to_vec()),
            ..NewTemplate::default()
        };
        let disk = open(&self.image("image.qcow2", "template"));
        self.store.import(&disk, &new, &Control::unwatched()).unwrap()
    }

    fn clones(&self, template: &Template, names: &[&str]) -> block::Result<Vec<Instance>> {
        let new = NewInstances {
            names: names.iter().map(|name| name.parse().unwrap()).collect(),
            ..NewInstances::default()
        };
        self.clone_as(template, &new)
    }

    fn clone_as(&self, template: &Template, new: &NewInstances) -> block::Result<Vec<Instance>> {
        let asis = |_: &Instance, _: &Arc<dyn BlockDevice>| Ok(());
        self.store
            .clone_template(template, new, &asis, &Control::unwatched())
    }

    /// Names of all files of the store, without those of directories and locks.
    fn files(&self) -> Vec<String> {
        let found = run(&[
            "find",
            self.store.directory().to_str().unwrap(),
            "-type",
            "f",
            "-printf",
            "%P\n",
        ]);
        let mut files: Vec<String> = found.lines().map(ToOwned::to_owned).collect();
        files.sort();
        files
    }
}

fn run(words: &[&str]) -> String {
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(
        output.status.success(),
        "{words:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn open(path: &Path) -> Chain {
    let formats: [&dyn block::Format; 2] = [&qcow2::Qcow2, &raw::Raw];
    Chain::open(
        &HostOpener::new(),
        &formats,
        &Permissive::default(),
        path,
        None,
        Access::READ,
    )
    .unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn sha256(path: &Path) -> String {
    run(&["sha256sum", path.to_str().unwrap()])[..64].to_owned()
}

#[test]
fn an_image_that_stands_alone_is_a_template_byte_by_byte() {
    let lab = Lab::new();
    let image = lab.image("image.qcow2", "template");
    let template = lab.import(&image, "one").unwrap();
    assert_eq!(template.fingerprint.to_string(), sha256(&image));
    assert_eq!(sha256(&template.image()), sha256(&image));
    assert_eq!(mode(&template.image()), 0o444);
    assert_eq!(template.document.disk_size, SIZE);
    let short = template.fingerprint.short();
    for name in ["one", &template.fingerprint.to_string(), &short, &short[..4]] {
        assert_eq!(
            lab.store.template(name).unwrap().fingerprint,
            template.fingerprint
        );
    }
    assert_eq!(
        lab.files(),
        [
            ".lock".to_owned(),
            "aliases.toml".to_owned(),
            format!("templates/{}.qcow2", template.fingerprint),
            format!("templates/{}.toml", template.fingerprint),
            format!("trusted/{}.toml", template.fingerprint),
        ]
    );
}

#[test]
fn what_does_not_stand_alone_is_copied_into_an_image_that_does() {
    let lab = Lab::new();
    let base = lab.image("base.qcow2", "below");
    let overlay = lab.path("overlay.qcow2");
    let (base, shown) = (base.to_str().unwrap(), overlay.to_str().unwrap());
    run(&[
        "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", shown,
    ]);
    run(&["qemu-img", "snapshot", "-c", "secret", base]);
    for (source, alias) in [(shown, "overlay"), (base, "snapshots")] {
        let template = lab.import(Path::new(source), alias).unwrap();
        let image = template.image();
        let image = image.to_str().unwrap();
        run(&["qemu-img", "compare", "-s", image, source]);
        run(&["qemu-img", "check", "-q", image]);
        let info = run(&["qemu-img", "info", image]);
        assert!(!info.contains("backing") && !info.contains("Snapshot"), "{info}");
    }
}

#[test]
fn clones_are_overlays_that_name_their_template_and_have_names_and_addresses_of_their_own() {
    let lab = Lab::new();
    let template = lab.import(&lab.image("image.qcow2", "template"), "one").unwrap();
    let before = sha256(&template.image());
    let clones = lab.clones(&template, &["web-1", "web-2", "web-3"]).unwrap();
    let mut addresses: Vec<_> = clones.iter().map(|clone| clone.mac().to_string()).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 3);
    for clone in &clones {
        let image = clone.image();
        assert_eq!(mode(&image), 0o600);
        let image = image.to_str().unwrap();
        let info = run(&["qemu-img", "info", "--output", "json", image]);
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["backing-filename-format"], "qcow2");
        let backing = info["full-backing-filename"].as_str().unwrap();
        assert_eq!(
            fs::canonicalize(backing).unwrap(),
            fs::canonicalize(template.image()).unwrap()
        );
        run(&["qemu-img", "check", "-q", image]);
        run(&["qemu-img", "compare", image, template.image().to_str().unwrap()]);
        run(&["qemu-io", "-c", "write -q -P 7 1M 64k", image]);
        // The second and fourth digits of an address that was not given out by anybody.
        assert_eq!(clone.mac().0[0] & 3, 2);
        let found = lab.store.instance(clone.name.as_str()).unwrap();
        assert_eq!((found.mac(), &found.document), (clone.mac(), &clone.document));
    }
    assert_eq!(sha256(&template.image()), before);
    assert_eq!(lab.store.instances().unwrap().found.len(), 3);
}

#[test]
fn a_moved_store_is_whole() {
    let mut lab = Lab::new();
    let template = lab.import(&lab.image("image.qcow2", "template"), "one").unwrap();
    lab.clones(&template, &["web"]).unwrap();
    fs::rename(lab.path("store"), lab.path("moved")).unwrap();
    lab.store = Store::at(lab.path("moved"));
    let verified = lab.store.verify(&Control::unwatched()).unwrap();
    assert_eq!(
        (verified.templates, verified.instances, verified.faults.len()),
        (1, 1, 0)
    );
    let image = lab.store.instance("web").unwrap().image();
    run(&["qemu-io", "-r", "-c", "read -q 1M 64k", image.to_str().unwrap()]);
}

#[test]
fn a_full_clone_stands_alone_and_a_longer_one_is_longer() {
    let lab = Lab::new();
    let new = NewTemplate {
        kernel: Some(b"a kernel".to_vec()),
        ..NewTemplate::default()
    };
    let image = lab.image("image.qcow2", "template");
    let template = lab
        .store
        .import(&open(&image), &new, &Control::unwatched())
        .unwrap();
    for (name, full) in [("full", true), ("overlay", false)] {
        let new = NewInstances {
            names: vec![name.parse().unwrap()],
            size: Some(1 << 30),
            full,
            ..NewInstances::default()
        };
        let clone = lab.clone_as(&template, &new).unwrap().remove(0);
        let info = run(&["qemu-img", "info", clone.image().to_str().unwrap()]);
        assert!(info.contains("1 GiB"), "{info}");
        assert_eq!(info.contains("backing file:"), !full, "{info}");
        run(&[
            "qemu-img",
            "compare",
            clone.image().to_str().unwrap(),
            template.image().to_str().unwrap(),
        ]);
    }
    let new = NewInstances {
        names: vec!["short".parse().unwrap()],
        size: Some(SIZE - 512),
        ..NewInstances::default()
    };
    let error = lab.clone_as(&template, &new).unwrap_err();
    assert!(error.to_string().contains("shorter"), "{error}");
    let full = lab.store.instance("full").unwrap();
    let told = |full: &Instance| {
        lab.store
            .machine(full, Settings::default(), &Control::unwatched())
            .unwrap()
    };
    let before = told(&full);
    lab.store
        .remove_instance(&lab.store.instance("overlay").unwrap())
        .unwrap();
    // Nothing stands on it any more.
    lab.store.remove_template(&template).unwrap();
    assert!(full.image().exists());
    assert_eq!(told(&full), before);
    let published = lab
        .store
        .publish(&full, NewTemplate::default(), None, &Control::unwatched())
        .unwrap();
    assert_eq!(
        fs::read(published.template.kernel().unwrap()).unwrap(),
        b"a kernel"
    );
    let Boot::Direct { kernel, .. } = before.boot else {
        panic!("it has a kernel")
    };
    assert_eq!(fs::read(kernel).unwrap(), b"a kernel");
}

#[test]
fn a_base_cannot_be_removed_while_a_disk_stands_on_it() {
    let lab = Lab::new();
    let template = lab.import(&lab.image("image.qcow2", "template"), "one").unwrap();
    lab.clones(&template, &["a", "b", "c", "d"]).unwrap();
    let refused = |named: &str| {
        let error = lab.store.remove_template(&template).unwrap_err();
        assert!(error.to_string().contains(named), "{error}");
        assert!(template.image().exists());
    };
    refused("a, b, c and 1 more are based on");
    for name in ["a", "b", "c"] {
        lab.store
            .remove_instance(&lab.store.instance(name).unwrap())
            .unwrap();
    }
    refused("d is based on");
    // What is known of it may be lost: its disk is enough.
    fs::remove_file(lab.path("store/instances/d.toml")).unwrap();
    refused("d is based on");
    fs::remove_file(lab.path("store/instances/d.qcow2")).unwrap();
    lab.store.remove_template(&template).unwrap();
    assert_eq!(lab.files(), [".lock", "aliases.toml"]);
    assert!(lab.store.template("one").is_err());
}

#[test]
fn a_changed_template_is_found_before_it_is_cloned_or_run() {
    let lab = Lab::new();
    let template = lab.import(&lab.image("image.qcow2", "template"), "one").unwrap();
    let kept = lab.path("kept");
    fs::copy(template.image(), &kept).unwrap();
    let clone = lab.clones(&template, &["before"]).unwrap().remove(0);
    let image = template.image();
    fs::set_permissions(&image, fs::Permissions::from_mode(0o644)).unwrap();
    run(&["qemu-io", "-c", "write -q -P 9 1M 64k", image.to_str().unwrap()]);
    let error = lab.clones(&template, &["after"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    let error = lab.store.layers(&clone, &Control::unwatched()).unwrap_err();
    assert!(error.to_string().contains("has changed"), "{error}");
    let verified = lab.store.verify(&Control::unwatched()).unwrap();
    assert_eq!(
        (verified.templates, verified.faults.len()),
        (0, 2),
        "{verified:?}"
    );
    // The same content at another time is as good.
    fs::copy(&kept, &image).unwrap();
    lab.clones(&template, &["again"]).unwrap();
    fs::remove_file(&image).unwrap();
    let error = lab.store.layers(&clone, &Control::unwatched()).unwrap_err();
    assert!(error.to_string().contains("is missing"), "{error}");
}

#[test]
fn what_many_machines_miss_is_told_once() {
    let lab = Lab::new();
    let template = lab.import(&lab.image("image.qcow2", "template"), "one").unwrap();
    lab.clones(&template, &["web", "db"]).unwrap();
    let description = template.image().with_extension("toml");
    fs::write(&description, "no TOML").unwrap();
    let faults = lab.store.verify(&Control::unwatched()).unwrap().faults;
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert_eq!(faults[0].path(), Some(&*description));
}

#[test]
fn a_changed_kernel_or_initrd_is_found_before_its_template_is_cloned_or_run() {
    let lab = Lab::new();
    let template = lab.bootable();
    let clone = lab.clones(&template, &["before"]).unwrap().remove(0);
    // What was made before size and time were noted is read.
    let mut older = template.clone();
    (older.document.kernel_file, older.document.initrd_file) = (None, None);
    older.check(&Control::unwatched()).unwrap();
    for path in [template.kernel().unwrap(), template.initrd().unwrap()] {
        let kept = fs::read(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(&path, [kept.as_slice(), b"x"].concat()).unwrap();
        let error = lab.clones(&template, &["after"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        let error = lab.store.layers(&clone, &Control::unwatched()).unwrap_err();
        assert!(error.to_string().contains("has changed"), "{error}");
        older.check(&Control::unwatched()).unwrap_err();
        // The same content at another time is as good.
        fs::write(&path, kept).unwrap();
        template.check(&Control::unwatched()).unwrap();
    }
}

#[test]
fn a_template_without_its_kernel_or_initrd_is_not_cloned_until_it_is_back() {
    let lab = Lab::new();
    let template = lab.bootable();
    for (what, path) in [
        ("kernel", template.kernel().unwrap()),
        ("initrd", template.initrd().unwrap()),
    ] {
        fs::rename(&path, lab.path("away")).unwrap();
        let before = lab.files();
        for full in [false, true] {
            let new = NewInstances {
                names: vec!["one".parse().unwrap()],
                full,
                ..NewInstances::default()
            };
            let error = lab.clone_as(&template, &new).unwrap_err();
            assert!(
                error.to_string().contains(&format!("the {what} of template")),
                "{error}"
            );
            assert_eq!(error.path(), Some(&*path));
            assert!(error.hint().is_some_and(|hint| hint.contains("once more")));
            assert_eq!(lab.files(), before);
        }
        let error = template.verify(&Control::unwatched()).unwrap_err();
        assert!(error.to_string().contains("is missing"), "{error}");
        // As the hint says.
        assert_eq!(lab.bootable().fingerprint, template.fingerprint);
        template.verify(&Control::unwatched()).unwrap();
    }
    lab.clones(&template, &["one"]).unwrap();
}

#[test]
fn names_are_given_once_and_all_clones_or_none_are_made() {
    let lab = Lab::new();
    let template = lab.import(&lab.image("image.qcow2", "template"), "one").unwrap();
    lab.clones(&template, &["b"]).unwrap();
    let before = lab.files();
    for names in [&["a", "b", "c"][..], &["x", "y", "x"]] {
        lab.clones(&template, names).unwrap_err();
        assert_eq!(lab.files(), before);
    }
    let broken = |instance: &Instance, _: &Arc<dyn BlockDevice>| {
        if instance.name.as_str() == "n-3" {
            return Err(block::Error::invalid("not this one"));
        }
        Ok(())
    };
    let new = NewInstances {
        names: (0..8).map(|n| format!("n-{n}").parse().unwrap()).collect(),
        ..NewInstances::default()
    };
    let error = lab
        .store
        .clone_template(&template, &new, &broken, &Control::unwatched())
        .unwrap_err();
    assert!(error.to_string().contains("not this one"));
    assert_eq!(lab.files(), before);
    let other = lab.import(&lab.image("other.qcow2", "other"), "two").unwrap();
    let taken: Alias = "one".parse().unwrap();
    assert!(lab.store.tag(&other, &taken, false).is_err());
    lab.store.tag(&other, &taken, true).unwrap();
    assert_eq!(lab.store.template("one").unwrap().fingerprint, other.fingerprint);
    let error = lab.store.template("ones").unwrap_err();
    assert!(error.hint().unwrap().contains("one"), "{error}");
    let error = lab.store.instance("one").unwrap_err();
    assert!(error.hint().unwrap().contains("imgtool clone"), "{error}");
}

#[test]
fn a_running_machine_is_neither_removed_nor_renamed() {
    let lab = Lab::new();
    let template = lab.import(&lab.image("image.qcow2", "template"), "one").unwrap();
    let clone = lab.clones(&template, &["web"]).unwrap().remove(0);
    let name: InstanceName = "other".parse().unwrap();
    {
        let _running = raw::OpenOptions::new().write(true).open(clone.image()).unwrap();
        assert_eq!(
            lab.store.remove_instance(&clone).unwrap_err().kind(),
            ErrorKind::Locked
        );
        assert_eq!(
            lab.store.rename(&clone, &name).unwrap_err().kind(),
            ErrorKind::Locked
        );
    }
    let renamed = lab.store.rename(&clone, &name).unwrap();
    assert_eq!(lab.store.instance("other").unwrap().document, renamed.document);
    assert!(lab.store.instance("web").is_err());
    assert!(!lab.files().iter().any(|file| file.contains("web")));
    let assert_stale = || {
        let stale = lab.store.rename(&clone, &"third".parse().unwrap()).unwrap_err();
        let stale = stale.to_string();
        assert!(
            stale.contains("machine web has been renamed or removed"),
            "{stale}"
        );
    };
    assert_stale();
    lab.clones(&template, &["web"]).unwrap();
    assert!(lab.store.rename(&renamed, &clone.name).is_err());
    // Another one of the name is not the one that was meant.
    assert_stale();
    assert!(lab.store.instance("web").is_ok());
}

#[test]
fn settings_come_from_template_profiles_and_instance_in_that_order() {
    let lab = Lab::new();
    let template: Settings =
        machines::store::parse("cpus = 1\nmemory = \"256M\"\n[boot]\nappend = \"quiet\"").unwrap();
    let new = NewTemplate {
        machine: template,
        kernel: Some(b"a kernel".to_vec()),
        ..NewTemplate::default()
    };
    let image = lab.image("image.qcow2", "template");
    let template = lab
        .store
        .import(&open(&image), &new, &Control::unwatched())
        .unwrap();
    let profiles = lab.path("store/profiles");
    fs::create_dir(&profiles).unwrap();
    fs::write(profiles.join("small.toml"), "cpus = 2\nmemory = \"512M\"\n").unwrap();
    fs::write(profiles.join("large.toml"), "cpus = 8\n").unwrap();
    let mut new = NewInstances {
        names: vec!["web".parse().unwrap()],
        profiles: vec!["large".parse().unwrap(), "small".parse().unwrap()],
        machine: machines::store::parse("memory = \"1G\"").unwrap(),
        ..NewInstances::default()
    };
    let web = lab.clone_as(&template, &new).unwrap().remove(0);
    let machine = lab
        .store
        .machine(&web, Settings::default(), &Control::unwatched())
        .unwrap();
    assert_eq!((machine.cpus, machine.memory), (2, 1 << 30));
    assert_eq!(machine.disks[0].chain.len(), 2);
    assert_eq!(
        machine.boot,
        Boot::Direct {
            kernel: template.kernel().unwrap(),
            initrd: None,
            command_line: "quiet".to_owned(),
        }
    );
    new.names = vec!["other".parse().unwrap()];
    new.profiles = vec!["smal".parse().unwrap()];
    let error = lab.clone_as(&template, &new).unwrap_err();
    assert!(error.hint().unwrap().contains("small"), "{error}");
    fs::write(profiles.join("small.toml"), "cpus = 2\nmemory = 3.5\n").unwrap();
    let error = lab
        .store
        .machine(&web, Settings::default(), &Control::unwatched())
        .unwrap_err();
    assert!(error.to_string().contains("line 2"), "{error}");
    fs::write(profiles.join("small.toml"), "").unwrap();
    fs::remove_file(template.kernel().unwrap()).unwrap();
    let error = lab
        .store
        .machine(&web, Settings::default(), &Control::unwatched())
        .unwrap_err();
    assert!(error.to_string().contains("there is no kernel"), "{error}");
}

#[test]
fn what_killed_processes_leave_is_no_machine_and_goes() {
    let lab = Lab::new();
    let template = lab.import(&lab.image("image.qcow2", "template"), "one").unwrap();
    lab.clones(&template, &["web"]).unwrap();
    let whole = lab.files();
    // Named before its disk was, and never finished.
    fs::copy(
        lab.path("store/instances/web.toml"),
        lab.path("store/instances/half.toml"),
    )
    .unwrap();
    fs::write(lab.path("store/.unfinished"), "machines = [\"half\"]\n").unwrap();
    let zeros = "0".repeat(64);
    fs::write(lab.path(&format!("store/templates/{zeros}.kernel")), "").unwrap();
    fs::create_dir_all(lab.path("store/.work/1-0")).unwrap();
    fs::write(lab.path("store/.work/1-0/half.qcow2"), "").unwrap();
    assert_eq!(lab.store.instances().unwrap().found.len(), 1);
    assert_eq!(lab.store.templates().unwrap().found.len(), 1);
    lab.clones(&template, &["half"]).unwrap();
    lab.store
        .remove_instance(&lab.store.instance("half").unwrap())
        .unwrap();
    fs::write(lab.path("store/instances/half.seed"), "").unwrap();
    fs::create_dir_all(lab.path("store/.work/1-0")).unwrap();
    let only_tried = Collecting {
        tried: true,
        missing: false,
    };
    let tried = lab.store.collect(only_tried).unwrap();
    assert_eq!((tried.removed.len(), tried.left.len()), (3, 0), "{tried:?}");
    assert_eq!(lab.store.collect(Collecting::default()).unwrap(), tried);
    assert_eq!(lab.files(), whole);
    assert_eq!(fs::read_dir(lab.path("store/.work")).unwrap().count(), 0);
}

#[test]
fn an_alias_that_is_written_down_with_a_template_is_its_name_once_the_image_is_there() {
    let lab = Lab::new();
    let template = lab.import(&lab.image("image.qcow2", "template"), "one").unwrap();
    let unfinished = lab.path("store/.unfinished");
    let (is, never) = (template.fingerprint.to_string(), "0".repeat(64));
    fs::write(
        &unfinished,
        format!("templates = [\"{is}\", \"{never}\"]\n[aliases]\ntwo = \"{is}\"\nthree = \"{never}\"\n"),
    )
    .unwrap();
    let listed = lab.store.templates().unwrap().found.remove(0);
    let aliases: Vec<&str> = listed.aliases.iter().map(Alias::as_str).collect();
    assert_eq!(aliases, ["one", "two"]);
    lab.store.template("three").unwrap_err();
    // What comes later holds.
    let other = lab.import(&lab.image("other.qcow2", "another"), "four").unwrap();
    assert!(!unfinished.exists());
    lab.store.tag(&other, &"two".parse().unwrap(), true).unwrap();
    assert_eq!(lab.store.template("two").unwrap().fingerprint, other.fingerprint);
    lab.store.template("three").unwrap_err();
}

#[test]
fn clones_that_come_while_their_template_goes_keep_it_or_fail() {
    let lab = Lab::new();
    let image = lab.image("image.qcow2", "template");
    for round in 0..8 {
        let template = lab.import(&image, "one").unwrap();
        let (cloned, removed) = std::thread::scope(|scope| {
            let names = ["a", "b"].map(|name| format!("{name}-{round}"));
            let (lab, template) = (&lab, &template);
            let clone = |name: String| scope.spawn(move || lab.clones(template, &[&name]).is_ok());
            let clones = names.map(clone);
            let removed = scope.spawn(move || lab.store.remove_template(template).is_ok());
            (clones.map(|clone| clone.join().unwrap()), removed.join().unwrap())
        });
        assert!(
            !removed || cloned == [false; 2],
            "a base is lost in round {round}"
        );
        assert_ne!(removed, template.image().exists());
        for instance in lab.store.instances().unwrap().found {
            run(&["qemu-img", "check", "-q", instance.image().to_str().unwrap()]);
            lab.store.remove_instance(&instance).unwrap();
        }
    }
}

#[test]
fn a_template_that_goes_while_machines_are_made_of_it_is_what_is_told() {
    let lab = Lab::new();
    let template = lab.import(&lab.image("image.qcow2", "template"), "one").unwrap();
    let remove = |_: &Instance, _: &Arc<dyn BlockDevice>| lab.store.remove_template(&template);
    let new = NewInstances {
        names: vec!["web".parse().unwrap()],
        ..NewInstances::default()
    };
    let made = lab
        .store
        .clone_template(&template, &new, &remove, &Control::unwatched());
    let error = made.unwrap_err().to_string();
    assert_eq!(error, "template one was removed while machines were made of it");
    assert!(lab.store.instances().unwrap().found.is_empty());
}

#[test]
fn a_disk_that_another_is_based_on_stays() {
    let lab = Lab::new();
    let template = lab.import(&lab.image("image.qcow2", "template"), "one").unwrap();
    let clone = lab.clones(&template, &["web"]).unwrap().remove(0);
    let child = lab.path("store/instances/child.qcow2");
    let (base, child) = (clone.image(), child.to_str().unwrap().to_owned());
    run(&[
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        base.to_str().unwrap(),
        "-F",
        "qcow2",
        &child,
    ]);
    for error in [
        lab.store.remove_instance(&clone).unwrap_err(),
        lab.store.rename(&clone, &"other".parse().unwrap()).unwrap_err(),
    ] {
        assert!(error.to_string().contains("child is based on"), "{error}");
    }
    fs::remove_file(child).unwrap();
    lab.store.remove_instance(&clone).unwrap();
}

#[test]
fn what_a_template_lacks_is_given_to_it_by_another_import() {
    let lab = Lab::new();
    let raw = lab.path("raw");
    fs::write(&raw, vec![7; 4 << 20]).unwrap();
    let new = NewTemplate {
        kernel: Some(b"a kernel".to_vec()),
        compress: true,
        ..NewTemplate::default()
    };
    let template = lab
        .store
        .import(&open(&raw), &new, &Control::unwatched())
        .unwrap();
    // One that was exported is the same again.
    let exported = lab.path("exported.qcow2");
    fs::copy(template.image(), &exported).unwrap();
    for name in ["toml", "kernel"] {
        fs::remove_file(template.image().with_extension(name)).unwrap();
    }
    let again = lab
        .store
        .import(&open(&exported), &new, &Control::unwatched())
        .unwrap();
    assert_eq!(again.fingerprint, template.fingerprint);
    again.verify(&Control::unwatched()).unwrap();
    assert_eq!(mode(lab.store.directory()), 0o700);
}

#[test]
fn jobs_do_not_take_each_others_work_for_rubbish() {
    let lab = Lab::new();
    let template = lab.import(&lab.image("image.qcow2", "template"), "one").unwrap();
    std::thread::scope(|scope| {
        for worker in 0..6 {
            let (lab, template) = (&lab, &template);
            scope.spawn(move || {
                for round in 0..20 {
                    lab.clones(template, &[&format!("m-{worker}-{round}")]).unwrap();
                    lab.store.collect(Collecting::default()).unwrap();
                }
            });
        }
    });
    assert_eq!(lab.store.instances().unwrap().found.len(), 120);
}
