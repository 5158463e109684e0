//! Disks that stand on others in a store, whatever they are called and whoever made them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use block::Error;
use machines::store::{Collecting, NewTemplate, Store, TemplateFault};

use crate::{Lab, run};

/// Has qemu-img make an overlay, and say what it is based on.
fn overlay(path: &Path, base: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let shown = path.to_str().unwrap();
    run(&[
        "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", shown,
    ]);
}

fn chain(path: &Path) -> String {
    run(&["qemu-img", "info", "--backing-chain", path.to_str().unwrap()])
}

fn refused<T: std::fmt::Debug>(done: block::Result<T>, names: &str) -> Error {
    let error = done.unwrap_err();
    assert!(error.to_string().contains(names), "{error} names no {names}");
    error
}

#[test]
fn a_base_stays_whatever_the_disks_that_stand_on_it_are_called() {
    let lab = Lab::new();
    let template = lab.import(&lab.image("image.qcow2", "template"), "one").unwrap();
    let web = lab.clones(&template, &["web"]).unwrap().remove(0);
    let before = lab.files();
    for name in [
        "instances/web.snap1",
        "instances/vm.img",
        "instances/no name.qcow2",
        "instances/sub/vm.qcow2",
        "templates/vm.qcow2",
        "vm",
        "a/b/c/d/vm.qcow2",
    ] {
        let path = lab.store.directory().join(name);
        overlay(&path, web.image().to_str().unwrap());
        assert!(chain(&path).contains("instances/web.qcow2"));
        refused(lab.store.remove_instance(&web), name);
        refused(lab.store.rename(&web, &"other".parse().unwrap()), name);
        let verified = lab.store.verify(&ops::Control::unwatched()).unwrap();
        assert_eq!(verified.instances, 1);
        let paths: Vec<_> = verified
            .faults
            .iter()
            .map(|fault| fault.path().unwrap())
            .collect();
        assert_eq!(paths, [&path]);
        fs::remove_file(&path).unwrap();
        assert_eq!(lab.files(), before);
    }
    lab.store.remove_instance(&web).unwrap();
}

#[test]
fn a_template_stays_while_any_disk_in_the_store_stands_on_it() {
    let lab = Lab::new();
    let template = lab.bootable();
    let image = template.image();
    for name in ["instances/vm.img", "instances/sub/vm.qcow2", "vm.qcow2"] {
        let path = lab.store.directory().join(name);
        // By way of another, and by a name that is relative to where it lies.
        let middle = path.with_extension("middle");
        overlay(&middle, image.to_str().unwrap());
        overlay(&path, middle.file_name().unwrap().to_str().unwrap());
        assert!(chain(&path).contains(&template.fingerprint.to_string()));
        refused(lab.store.remove_template(&template), name);
        // What is known of the template stays while its image is away.
        let away = lab.path("away");
        fs::rename(&image, &away).unwrap();
        refused(lab.store.remove_template(&template), name);
        let all = Collecting {
            tried: true,
            missing: true,
        };
        assert!(lab.store.collect(all).unwrap().removed.is_empty());
        fs::rename(&away, &image).unwrap();
        // What is broken in between may be based on anything.
        fs::rename(&middle, &away).unwrap();
        refused(lab.store.remove_template(&template), name);
        fs::remove_file(&away).unwrap();
        fs::remove_file(&path).unwrap();
    }
    // What is no disk, and what lies elsewhere, is in nobody's way.
    fs::write(lab.path("store/notes.txt"), "notes").unwrap();
    fs::write(lab.path("store/instances/short"), "QF").unwrap();
    symlink(lab.path("nowhere"), lab.path("store/instances/link")).unwrap();
    lab.store.remove_template(&template).unwrap();
}

#[test]
fn disks_are_found_where_directories_of_the_store_and_disks_are_links() {
    let lab = Lab::new();
    let template = lab.import(&lab.image("image.qcow2", "template"), "one").unwrap();
    let clones = lab.clones(&template, &["web", "mail"]).unwrap();
    let verified = |store: &Store| store.verify(&ops::Control::unwatched()).unwrap();
    // A pool below the store, which the machines' directory leads to, and one disk that is a link into another.
    fs::rename(lab.path("store/instances"), lab.path("store/pool")).unwrap();
    symlink("pool", lab.path("store/instances")).unwrap();
    fs::create_dir(lab.path("store/other")).unwrap();
    fs::rename(clones[1].image(), lab.path("store/other/mail.qcow2")).unwrap();
    symlink("../other/mail.qcow2", clones[1].image()).unwrap();
    let found = verified(&lab.store);
    assert!(found.faults.is_empty() && found.instances == 2, "{found:?}");
    let path = lab.path("store/pool/web.snap");
    overlay(&path, "web.qcow2");
    assert!(chain(&path).contains("web.qcow2"));
    refused(lab.store.remove_instance(&clones[0]), "web.snap");
    fs::remove_file(&path).unwrap();
    overlay(&path, lab.path("store/other/mail.qcow2").to_str().unwrap());
    refused(lab.store.remove_instance(&clones[1]), "web.snap");
    assert_eq!(verified(&lab.store).faults.len(), 1);
    fs::remove_file(&path).unwrap();
    lab.store.remove_instance(&clones[0]).unwrap();
}

#[test]
fn a_template_that_was_found_changed_is_not_used_until_it_is_right_again() {
    let lab = Lab::new();
    let template = lab.import(&lab.image("image.qcow2", "template"), "one").unwrap();
    let web = lab.clones(&template, &["web"]).unwrap().remove(0);
    let (image, unwatched) = (template.image(), ops::Control::unwatched());
    let kept = lab.path("kept");
    run(&["cp", "-a", image.to_str().unwrap(), kept.to_str().unwrap()]);
    // Another content of the same length and time.
    let mut bytes = fs::read(&image).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::remove_file(&image).unwrap();
    fs::write(&image, bytes).unwrap();
    let reference = kept.to_str().unwrap();
    run(&["touch", "-r", reference, image.to_str().unwrap()]);
    assert_eq!(template.fault(), None);
    lab.store.layers(&web, &unwatched).unwrap();
    let publish = || lab.store.publish(&web, NewTemplate::default(), None, &unwatched);
    // It copies the image, and so it reads it.
    let changed = "the file has changed: its SHA-256 is";
    refused(publish(), changed);
    fs::remove_file(lab.path(&format!("store/trusted/{}.changed", template.fingerprint))).unwrap();
    let verified = lab.store.verify(&unwatched).unwrap();
    assert!(verified.faults[0].to_string().contains(changed), "{verified:?}");
    refused(lab.clones(&template, &["mail"]), changed);
    refused(lab.store.layers(&web, &unwatched), changed);
    refused(template.check(&unwatched), changed);
    refused(publish(), changed);
    assert_eq!(template.fault(), Some(TemplateFault::Changed));
    fs::remove_file(&image).unwrap();
    run(&["cp", "-a", reference, image.to_str().unwrap()]);
    lab.clones(&template, &["mail"]).unwrap();
    assert_eq!(template.fault(), None);
    assert!(lab.store.verify(&unwatched).unwrap().faults.is_empty());
}

#[test]
fn a_directory_where_a_disk_would_be_is_removed_if_nothing_is_in_it() {
    let lab = Lab::new();
    let template = lab.import(&lab.image("image.qcow2", "template"), "one").unwrap();
    let web = lab.clones(&template, &["web"]).unwrap().remove(0);
    let before = lab.files();
    let (directory, name) = (lab.path("store/instances/dd.qcow2"), "dd".parse().unwrap());
    fs::create_dir(&directory).unwrap();
    let hint = || {
        let listed = lab.store.instances().unwrap();
        assert_eq!(listed.found.len(), 1);
        let [error] = listed.broken.as_slice() else {
            panic!("{listed:?}")
        };
        error.hint().unwrap().to_owned()
    };
    assert!(hint().contains("imgtool rm --force dd"), "{}", hint());
    // Somebody's own things stay.
    fs::write(directory.join("file"), "somebody's").unwrap();
    assert!(hint().contains("by hand"), "{}", hint());
    let error = refused(lab.store.remove_disk(&name), "a directory");
    assert!(error.hint().unwrap().contains("by hand"), "{error}");
    assert!(directory.join("file").exists());
    fs::remove_file(directory.join("file")).unwrap();
    lab.store.remove_disk(&name).unwrap();
    assert!(!directory.exists());
    assert_eq!(lab.files(), before);
    lab.store.remove_instance(&web).unwrap();
}

#[test]
fn the_content_of_a_base_is_kept_by_whatever_name_and_in_whichever_store() {
    let lab = Lab::new();
    let template = lab.import(&lab.image("image.qcow2", "template"), "one").unwrap();
    let web = lab.clones(&template, &["web"]).unwrap().remove(0);
    let (link, hard) = (lab.path("link.qcow2"), lab.path("hard.qcow2"));
    symlink(web.image(), &link).unwrap();
    fs::hard_link(web.image(), &hard).unwrap();
    let (image, own) = (web.image(), Some(&lab.store));
    for path in [&image, &link, &hard] {
        Store::refuse_base(path, own).unwrap();
    }
    let path = lab.path("store/sub/web.snap");
    overlay(&path, "../instances/web.qcow2");
    assert!(chain(&path).contains("instances/web.qcow2"));
    for path in [&image, &link, &hard] {
        refused(Store::refuse_base(path, own), "sub/web.snap is based on it");
    }
    // Where it lies says which store it is in; a hard link says nothing.
    refused(Store::refuse_base(&image, None), "sub/web.snap");
    refused(
        Store::refuse_base(&link, Some(&Store::at(lab.path("other")))),
        "sub/web.snap",
    );
    Store::refuse_base(&path, own).unwrap();
    Store::refuse_base(&lab.path("image.qcow2"), own).unwrap();
    Store::refuse_base(&lab.path("store/new.qcow2"), own).unwrap();
    assert_eq!(Store::overlays(&image, own).unwrap(), std::slice::from_ref(&path));
    fs::remove_file(&path).unwrap();
    Store::refuse_base(&image, own).unwrap();
}
