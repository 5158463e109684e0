//! Files in the form that launchers want, judged by others' tools.

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use common::{machine, make_chain, run};
use machines::launch::{Launcher, prepare};
use machines::{Accel, Boot};
use ops::Control;

#[test]
fn firecracker_gets_a_raw_disk_and_an_elf_kernel() {
    let directory = tempfile::tempdir().unwrap();
    let chain = make_chain(directory.path());
    let machine = machine(directory.path(), "", &chain);
    let needs = Launcher::Firecracker.needs(&machine);
    assert!(needs.raw_disks && needs.elf_kernel);
    let prepared = prepare(&machine, needs, directory.path(), &Control::unwatched()).unwrap();
    assert!(Launcher::Firecracker.describe(&prepared, Accel::Kvm).is_ok());
    let layer = &prepared.disks[0].chain[0];
    assert_eq!(
        (layer.path.file_name().unwrap(), &*layer.format),
        ("web-1-disk0.raw".as_ref(), "raw")
    );
    run(
        directory.path(),
        "qemu-img compare -f qcow2 -F raw top web-1-disk0.raw",
    );

    let elf = run(directory.path(), "readelf -Wlhn web-1-vmlinux");
    assert!(
        elf.contains("Advanced Micro Devices X86-64") && elf.contains("EXEC"),
        "{elf}"
    );
    assert!(elf.contains("LOAD"), "{elf}");

    let files = directory.path().join("files");
    fs::create_dir(&files).unwrap();
    let ready =
        |machine, files| Launcher::Firecracker.ready(machine, Accel::Kvm, files, &Control::unwatched());
    let text = ready(&machine, Some(&files)).unwrap().text;
    assert!(
        text.contains("files/web-1-vmlinux") && text.contains("files/web-1-disk0.raw"),
        "{text}"
    );
    assert!(
        ready(&machine, None)
            .unwrap_err()
            .hint()
            .unwrap()
            .contains("--files")
    );
    let mut odd = machine.clone();
    odd.cpus = 3;
    odd.name = "web-2".into();
    assert!(ready(&odd, Some(&files)).is_err());
    assert_eq!(
        fs::read_dir(&files).unwrap().count(),
        2,
        "nothing was copied for an error"
    );

    let names = fs::read_dir(directory.path()).unwrap();
    let names: Vec<_> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names.len(), 7, "nothing is left over: {names:?}");
}

#[test]
fn files_that_were_made_before_are_replaced_until_somebody_writes_to_them() {
    let directory = tempfile::tempdir().unwrap();
    let chain = make_chain(directory.path());
    let machine = machine(directory.path(), "", &chain);
    let needs = Launcher::Firecracker.needs(&machine);
    let again = || prepare(&machine, needs, directory.path(), &Control::unwatched());
    let [disk, kernel] = ["web-1-disk0.raw", "web-1-vmlinux"].map(|name| directory.path().join(name));
    let inode = || fs::metadata(&disk).unwrap().ino();
    let prepared = again().unwrap();
    let first = inode();
    let write = |format: &str, image: &str| {
        let mut command = Command::new("qemu-io");
        command.args(["-f", format, "-c", "write -q -P 7 0 64k", image]);
        let status = command.current_dir(directory.path()).status();
        assert!(status.unwrap().success(), "{image}");
    };
    write("qcow2", "top");
    assert_eq!(again().unwrap(), prepared);
    assert_ne!(inode(), first);
    run(
        directory.path(),
        "qemu-img compare -f qcow2 -F raw top web-1-disk0.raw",
    );

    let refused = |path: &std::path::Path, says: &str| {
        let (before, kept) = (inode(), fs::read(path).unwrap());
        let error = again().unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(error.path(), Some(path));
        assert_eq!((inode(), fs::read(path).unwrap()), (before, kept));
    };
    // Whoever has it open may be about to write to it.
    let user = raw::OpenOptions::new().write(true).open(&disk).unwrap();
    refused(&disk, "locked");
    drop(user);
    write("raw", "web-1-disk0.raw");
    refused(&disk, "has been written to since");
    fs::remove_file(&disk).unwrap();
    again().unwrap();
    // One of the same name that somebody else has made.
    fs::remove_file(&kernel).unwrap();
    fs::write(&kernel, "mine").unwrap();
    refused(&kernel, "was not made by imgtool launch");
    let names = fs::read_dir(directory.path()).unwrap().flatten();
    let mut names = names.filter_map(|entry| entry.file_name().into_string().ok());
    assert!(!names.any(|name| name.starts_with(".imgtool-")));
}

#[test]
fn a_kernel_that_is_longer_than_any_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let chain = make_chain(directory.path());
    let mut machine = machine(directory.path(), "", &chain);
    let needs = Launcher::Firecracker.needs(&machine);
    let kernel = directory.path().join("long");
    fs::File::create(&kernel)
        .and_then(|file| file.set_len((1 << 30) + 1))
        .unwrap();
    let Boot::Direct { kernel: of, .. } = &mut machine.boot else {
        panic!("it boots without firmware");
    };
    of.clone_from(&kernel);
    let error = prepare(&machine, needs, directory.path(), &Control::unwatched()).unwrap_err();
    assert_eq!(error.path(), Some(&*kernel));
    assert!(
        error
            .to_string()
            .contains("has at most 1073741824 bytes, and this has more"),
        "{error}"
    );
}

#[test]
fn nothing_is_copied_for_launchers_that_take_it_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let chain = make_chain(directory.path());
    let machine = machine(directory.path(), "", &chain);
    for launcher in [Launcher::Qemu, Launcher::Libvirt, Launcher::CloudHypervisor] {
        let needs = launcher.needs(&machine);
        let prepared = prepare(&machine, needs, directory.path(), &Control::unwatched()).unwrap();
        assert_eq!(prepared, machine, "{launcher}");
    }
}
