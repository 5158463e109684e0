//! Disks that are elsewhere for a while: what is known of them stays.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use machines::store::{Collected, Collecting};

use crate::Lab;

#[test]
fn a_base_that_is_away_for_a_while_loses_nothing_to_a_collection() {
    let lab = Lab::new();
    let template = lab.import(&lab.image("image.qcow2", "template"), "one").unwrap();
    let clone = lab.clones(&template, &["web"]).unwrap().remove(0);
    let before = lab.files();
    for broken in [false, true] {
        let kept = fs::read(clone.image().with_extension("toml")).unwrap();
        if broken {
            fs::write(clone.image().with_extension("toml"), "no TOML").unwrap();
        }
        fs::rename(template.image(), lab.path("away")).unwrap();
        assert_eq!(
            lab.store.collect(Collecting::default()).unwrap(),
            Collected::default()
        );
        fs::rename(lab.path("away"), template.image()).unwrap();
        fs::write(clone.image().with_extension("toml"), kept).unwrap();
    }
    assert_eq!(lab.files(), before);
    assert_eq!(
        lab.store.template("one").unwrap().fingerprint,
        template.fingerprint
    );
}

#[test]
fn what_is_known_of_disks_that_are_away_is_left_and_told_until_it_is_to_go() {
    let lab = Lab::new();
    let image = lab.image("image.qcow2", "template");
    let template = lab.import(&image, "one").unwrap();
    let clone = lab.clones(&template, &["web"]).unwrap().remove(0);
    let before = lab.files();
    for (disk, away) in [(clone.image(), "web"), (template.image(), "one")] {
        fs::rename(disk, lab.path(away)).unwrap();
    }
    let without_disks = lab.files();
    let collected = lab.store.collect(Collecting::default()).unwrap();
    assert_eq!(collected.removed, [] as [PathBuf; 0]);
    let known = [template.image(), clone.image()].map(|disk| disk.with_extension("toml"));
    assert_eq!(collected.left, known);
    assert_eq!(lab.files(), without_disks);
    // The alias alone is enough, and so is the note.
    fs::remove_dir_all(lab.path("store/trusted")).unwrap();
    assert_eq!(lab.store.collect(Collecting::default()).unwrap(), collected);
    for (disk, away) in [(clone.image(), "web"), (template.image(), "one")] {
        fs::rename(lab.path(away), disk).unwrap();
    }
    let noted = |name: &String| !name.contains("trusted");
    assert!(lab.files().iter().eq(before.iter().filter(|name| noted(name))));
    assert_eq!(
        lab.store.template("one").unwrap().fingerprint,
        template.fingerprint
    );

    fs::remove_file(clone.image()).unwrap();
    fs::remove_file(template.image()).unwrap();
    let all = Collecting {
        tried: false,
        missing: true,
    };
    let collected = lab.store.collect(all).unwrap();
    assert_eq!(collected.removed, known);
    assert_eq!(collected.left, [] as [PathBuf; 0]);
    assert!(lab.store.template("one").is_err());
}

#[test]
fn a_machine_whose_disk_is_away_keeps_its_name_and_its_template() {
    let lab = Lab::new();
    let template = lab.import(&lab.image("image.qcow2", "template"), "one").unwrap();
    let clones = lab.clones(&template, &["web", "other", "mail"]).unwrap();
    let (web, other) = (&clones[0], &clones[1]);
    let toml = web.image().with_extension("toml");
    let known = fs::read(&toml).unwrap();
    lab.store.remove_instance(&clones[2]).unwrap();
    let refused = |done: block::Result<()>, hint: &str| {
        let error = done.unwrap_err();
        assert!(error.to_string().contains("is away"), "{error}");
        assert!(error.hint().unwrap().contains(hint), "{error}");
        assert_eq!(fs::read(&toml).unwrap(), known);
    };
    // A link that leads nowhere, as into a pool that is not mounted, and no file at all.
    let away = lab.path("pool/web.qcow2");
    fs::create_dir(lab.path("pool")).unwrap();
    fs::rename(web.image(), &away).unwrap();
    for is_linked in [true, false] {
        if is_linked {
            symlink(lab.path("elsewhere/web.qcow2"), web.image()).unwrap();
        }
        refused(lab.clones(&template, &["new", "web"]).map(drop), "another name");
        refused(lab.store.rename(other, &web.name).map(drop), "another name");
        refused(lab.store.instance("web").map(drop), "rm --force web");
        assert!(lab.store.is_taken(&web.name) && !lab.store.is_taken(&"new".parse().unwrap()));
        let error = lab.store.remove_template(&template).unwrap_err().to_string();
        assert!(error.contains("other") && error.contains("web"), "{error}");
        if is_linked {
            fs::remove_file(web.image()).unwrap();
        }
    }
    lab.store.remove_instance(other).unwrap();
    let error = lab.store.remove_template(&template).unwrap_err();
    assert!(
        error.to_string().contains("web (whose disk is away) is based on"),
        "{error}"
    );
    // Nothing but the machine that is away knows of it.
    lab.store.untag(&"one".parse().unwrap()).unwrap();
    fs::remove_dir_all(lab.path("store/trusted")).unwrap();
    fs::rename(template.image(), lab.path("template")).unwrap();
    let collected = lab.store.collect(Collecting::default()).unwrap();
    assert_eq!(collected.removed, [] as [PathBuf; 0]);
    assert_eq!(
        collected.left,
        [template.image().with_extension("toml"), toml.clone()]
    );
    fs::rename(lab.path("template"), template.image()).unwrap();
    fs::rename(&away, web.image()).unwrap();
    assert_eq!(lab.store.instance("web").unwrap().document, web.document);

    // Given up, its name is free again.
    fs::remove_file(web.image()).unwrap();
    lab.store.remove_disk(&web.name).unwrap();
    assert!(!toml.exists());
    lab.clones(&template, &["web"]).unwrap();
}

#[test]
fn what_is_known_of_a_machine_is_left_though_it_cannot_be_read_or_is_not_all_there() {
    let lab = Lab::new();
    let template = lab.import(&lab.image("image.qcow2", "template"), "one").unwrap();
    let clone = lab.clones(&template, &["web"]).unwrap().remove(0);
    let (toml, vars) = (
        clone.image().with_extension("toml"),
        clone.image().with_extension("vars"),
    );
    fs::write(&vars, "variables").unwrap();
    fs::rename(clone.image(), lab.path("away")).unwrap();
    for text in ["no TOML", ""] {
        fs::write(&toml, text).unwrap();
        let collected = lab.store.collect(Collecting::default()).unwrap();
        assert_eq!(collected.removed, [] as [PathBuf; 0], "{text}");
        assert_eq!(collected.left, [toml.clone(), vars.clone()], "{text}");
    }
    fs::remove_file(&toml).unwrap();
    let collected = lab.store.collect(Collecting::default()).unwrap();
    assert_eq!(collected.removed, [] as [PathBuf; 0]);
    assert_eq!(collected.left, std::slice::from_ref(&vars));
    assert_eq!(fs::read(&vars).unwrap(), b"variables");

    fs::write(&toml, "no TOML").unwrap();
    let all = Collecting {
        tried: false,
        missing: true,
    };
    let collected = lab.store.collect(all).unwrap();
    assert_eq!(collected.removed, [toml.clone(), vars.clone()]);
    assert!(!toml.exists() && !vars.exists());
}
