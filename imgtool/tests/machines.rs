//! Machines by their names: of files beside, while they run only once, and for other users.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::stores::json;
use crate::templates::imported;
use serde_json::Value;

#[test]
fn commands_for_images_take_a_store_and_a_file_of_the_same_name_is_not_mistaken_for_a_machine() {
    let lab = imported();
    lab.imgtool("clone -q web --store store --from tiny");
    lab.imgtool("snapshot create --store store web first");
    assert!(lab.imgtool("snapshot list --store store web").contains("first"));
    lab.imgtool("resize -q --store store web 64M");
    assert!(lab.imgtool("info --store store web").contains("64 MiB"));
    assert!(
        lab.imgtool("fs cat --store store web /etc/os-release")
            .contains("Tiny 1")
    );
    lab.imgtool("convert -q --store store -O raw web copy.raw");
    lab.qemu_img("compare -q -f raw copy.raw store/instances/web.qcow2");
    lab.imgtool("diff --store store web");
    lab.run("imgtool info --store other web").fails(1, &["web"]);

    // A directory is no image.
    fs::create_dir(lab.path("web")).unwrap();
    assert!(lab.imgtool("info --store store web").contains("64 MiB"));
    fs::remove_dir(lab.path("web")).unwrap();
    lab.imgtool("create -q -f qcow2 web 1M");
    let disks = ["web", "store/instances/web.qcow2"].map(|name| lab.path(name));
    let contents = || disks.each_ref().map(|path| fs::read(path).unwrap());
    let before = contents();
    for line in [
        "snapshot create web x",
        "resize web 2M",
        "fs mkdir web /x",
        "template seal web",
    ] {
        let (command, rest) = line.split_once(" web").unwrap();
        lab.run(&format!("imgtool {command} --store store web{rest}"))
            .fails(
                1,
                &[
                    "\"web\" is a file here and a machine of the store",
                    "hint: ./web is the file; the machine's disk is store/instances/web.qcow2",
                ],
            );
    }
    assert_eq!(contents(), before);
    let read = lab.run("imgtool info --store store web");
    assert!(
        read.stderr().contains("\"web\" is the file here"),
        "{}",
        read.stderr()
    );
    assert_eq!(read.stderr().lines().count(), 1);
    assert!(read.ok().contains("1 MiB"));
    // Either can be named.
    assert_eq!(lab.run("imgtool info --store store ./web").stderr(), "");
    lab.imgtool("resize -q --store store ./web 2M");
    lab.imgtool("resize -q --store store store/instances/web.qcow2 65M");
    for (name, size) in [("./web", "2 MiB"), ("store/instances/web.qcow2", "65 MiB")] {
        assert!(lab.imgtool(&format!("info --store store {name}")).contains(size));
    }
}

#[test]
fn an_ephemeral_machine_that_run_has_made_is_gone_at_the_end() {
    let lab = imported();
    fs::create_dir(lab.path("bin")).unwrap();
    let run = |qemu: &str, words: &str| {
        let program = lab.path("bin/qemu-system-x86_64");
        fs::write(&program, format!("#!/bin/sh\n{qemu}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("PATH={}:/usr/bin:/bin", lab.path("bin").display());
        let mut all = vec![
            "env",
            &path,
            env!("CARGO_BIN_EXE_imgtool"),
            "run",
            "-q",
            "--store",
            "store",
        ];
        all.extend(["--accel", "tcg", "--net", "none"]);
        all.extend(words.split(' '));
        lab.run_words(&all)
    };
    let files = || lab.run("find store/instances -name *try*").ok();
    // While it runs the machine is there, and nobody else gets its name.
    let look = format!(
        "{} clone --store store try --from tiny",
        env!("CARGO_BIN_EXE_imgtool")
    );
    let done = run(&format!("{look} 2>said; exit 0"), "--from tiny try --ephemeral");
    assert_eq!(done.code(), 0, "{}", done.stderr());
    let said = fs::read_to_string(lab.path("said")).unwrap();
    assert!(said.contains("there is a machine \"try\" already"), "{said}");
    assert_eq!(files(), "");
    // Whatever has become of it.
    run("exit 1", "--from tiny try --ephemeral").fails(1, &["QEMU failed"]);
    run("kill -SEGV $$", "--from tiny try --ephemeral").fails(1, &["QEMU failed"]);
    assert_eq!(files(), "");

    run("exit 0", "--from tiny try").ok();
    assert!(lab.imgtool("ls --store store").contains("try"));
    let kept = files();
    // One that was there before is nobody's to remove, and is not made anew.
    run("exit 0", "--from tiny try --ephemeral").fails(1, &["there is a machine \"try\" already"]);
    run("exit 0", "try --ephemeral").ok();
    assert_eq!(files(), kept);
}

#[test]
fn what_root_s_libvirt_cannot_reach_is_told_with_what_to_do() {
    let lab = imported();
    lab.imgtool("clone -q web --store store --from tiny");
    let launch = || {
        lab.run(
            "env -u LIBVIRT_DEFAULT_URI IMGTOOL launch --store store --format libvirt --accel tcg web"
                .replace("IMGTOOL", env!("CARGO_BIN_EXE_imgtool"))
                .as_str(),
        )
    };
    let told = launch();
    assert!(told.stdout().contains("<domain"), "{}", told.stdout());
    let stderr = told.stderr();
    let hint = stderr.split_once(": setfacl").expect(&stderr).1;
    assert!(stderr.contains("who may not enter"), "{stderr}");
    let checks = |line: &str| -> Value {
        let checks = json(&lab.imgtool(&format!("doctor --output json --store {line}")));
        let mut checks = checks.as_array().unwrap().iter();
        checks.find(|check| check["name"] == "libvirt").unwrap().clone()
    };
    assert_eq!(checks("store")["ok"], false);
    assert!(
        checks("new")["hint"]
            .as_str()
            .unwrap()
            .starts_with("install -d -m 700")
    );
    // What is told is what helps.
    lab.run_words(&["sh", "-ec", &format!("setfacl{hint}")]).ok();
    assert_eq!(launch().stderr(), "");
    assert_eq!(checks("store")["ok"], true, "{}", checks("store"));
    assert_eq!(lab.run("stat -c %a store").ok().trim(), "710");
}
