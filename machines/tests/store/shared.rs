//! Stores that others may write to, and stores that are full: what lies in the place of a file is not waited for, what a link leads to is not
//! removed, and what makes room needs none.

use std::fs;
use std::os::unix::fs::{lchown, symlink};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use block::{ErrorKind, Result};
use machines::Settings;
use machines::store::Collecting;
use ops::Control;

use super::{Lab, run};

#[test]
fn work_that_is_a_link_leads_to_nothing_that_is_removed() {
    let lab = Lab::new();
    let template = lab.import(&lab.image("image.qcow2", "template"), "one").unwrap();
    let (mine, work) = (lab.path("mine"), lab.path("store/.work"));
    for directory in ["letters", "7-0"] {
        fs::create_dir_all(mine.join(directory)).unwrap();
        fs::write(mine.join(directory).join("kept"), "").unwrap();
    }
    fs::remove_dir_all(&work).unwrap();
    symlink(&mine, &work).unwrap();
    let error = lab.clones(&template, &["web"]).unwrap_err();
    assert!(error.to_string().contains("this is a link"), "{error}");
    lab.store.collect(Collecting::default()).unwrap_err();
    // Nor does one within lead to anything, or what no job has made go.
    fs::remove_file(&work).unwrap();
    fs::create_dir(&work).unwrap();
    symlink(&mine, work.join("8-0")).unwrap();
    fs::create_dir_all(work.join("notes/more")).unwrap();
    fs::create_dir_all(work.join("9-0/more")).unwrap();
    lab.clones(&template, &["web"]).unwrap();
    lab.store.collect(Collecting::default()).unwrap();
    assert!(mine.join("letters/kept").exists() && mine.join("7-0/kept").exists());
    assert!(work.join("notes/more").exists());
    assert!(!work.join("9-0").exists());
}

#[test]
fn parts_that_another_user_has_made_links_are_refused_and_ones_own_are_not() {
    let lab = Lab::new();
    let template = lab.import(&lab.image("image.qcow2", "template"), "one").unwrap();
    let (part, elsewhere) = (lab.path("store/instances"), lab.path("elsewhere"));
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("letter.kernel"), "").unwrap();
    symlink(&elsewhere, &part).unwrap();
    lchown(&part, Some(4711), None).unwrap();
    for refused in [
        lab.clones(&template, &["web"]).map(drop),
        lab.store.collect(Collecting::default()).map(drop),
    ] {
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(error.to_string().contains("another user"), "{error}");
    }
    assert!(elsewhere.join("letter.kernel").exists());
    lchown(&part, Some(0), None).unwrap();
    lab.clones(&template, &["web"]).unwrap();
    assert!(elsewhere.join("web.qcow2").exists());
}

#[test]
fn a_pipe_in_the_place_of_a_file_is_not_waited_for() {
    let lab = Lab::new();
    let template = lab.import(&lab.image("image.qcow2", "template"), "one").unwrap();
    lab.clones(&template, &["web"]).unwrap();
    let places = [
        format!("templates/{}.toml", template.fingerprint),
        "instances/web.toml".to_owned(),
        "profiles/p.toml".to_owned(),
        "keys/k.pub".to_owned(),
        "aliases.toml".to_owned(),
        ".unfinished".to_owned(),
        ".lock".to_owned(),
    ];
    for place in places {
        let path = lab.path("store").join(&place);
        let before = fs::read(&path).ok();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&path);
        run(&["mkfifo", path.to_str().unwrap()]);
        let store = lab.store.clone();
        let (tell, told) = channel();
        thread::spawn(move || {
            let all: [Result<()>; 5] = [
                store.templates().map(drop),
                store.instances().map(drop),
                store
                    .instance("web")
                    .and_then(|web| store.machine(&web, Settings::default(), &Control::unwatched()))
                    .map(drop),
                store.verify(&Control::unwatched()).map(drop),
                store.collect(Collecting::default()).map(drop),
            ];
            let _ = tell.send(all.len());
        });
        assert_eq!(told.recv_timeout(Duration::from_secs(300)), Ok(5), "{place}");
        let _ = fs::remove_file(&path);
        if let Some(before) = before {
            fs::write(&path, before).unwrap();
        }
    }
    assert_eq!(lab.store.instances().unwrap().found.len(), 1);
}

/// A file system of 24 MiB.
struct Mounted(PathBuf);

impl Mounted {
    fn at(path: &Path) -> Self {
        fs::create_dir(path).unwrap();
        run(&[
            "mount",
            "-t",
            "tmpfs",
            "-o",
            "size=24M",
            "tmpfs",
            path.to_str().unwrap(),
        ]);
        Self(path.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run(&["umount", self.0.to_str().unwrap()]);
    }
}

#[test]
fn a_full_store_is_one_that_can_be_made_room_in() {
    let lab = Lab::new();
    let _mounted = Mounted::at(lab.store.directory());
    let template = lab.import(&lab.image("image.qcow2", "template"), "one").unwrap();
    lab.clones(&template, &["a", "b"]).unwrap();
    fs::create_dir_all(lab.path("store/.work/1-0")).unwrap();
    let full = fs::write(lab.path("store/filler"), vec![1; 24 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    lab.store.collect(Collecting::default()).unwrap();
    assert!(!lab.path("store/.work/1-0").exists());
    for name in ["a", "b"] {
        // What the last one has freed is full again.
        let _ = fs::write(lab.path(&format!("store/filler-{name}")), vec![1; 24 << 20]);
        lab.store
            .remove_instance(&lab.store.instance(name).unwrap())
            .unwrap();
    }
    let _ = fs::write(lab.path("store/filler-c"), vec![1; 24 << 20]);
    lab.store.remove_template(&template).unwrap();
    for filler in ["filler", "filler-a", "filler-b", "filler-c"] {
        let _ = fs::remove_file(lab.path("store").join(filler));
    }
    assert_eq!(lab.files(), [".lock", "aliases.toml"]);
    assert_eq!(fs::read_to_string(lab.path("store/aliases.toml")).unwrap(), "");
}
