//! `imgtool template build` and `recipes`: what people see, and what goes wrong, with nothing half-made.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{Done, Lab, Mount, copy_program, interrupted_by};
use serde_json::Value;

/// A lab with a tree, and the recipe of a template that is made of it.
fn lab() -> Lab {
    let lab = Lab::new();
    fs::create_dir_all(lab.path("tree/etc")).unwrap();
    fs::write(lab.path("tree/etc/os-release"), "ID=tree\nPRETTY_NAME='Tree 1'\n").unwrap();
    fs::write(lab.path("web-1.2.toml"), "[source]\ndirectory = \"tree\"\n").unwrap();
    lab
}

fn build(lab: &Lab, words: &str) -> Done {
    lab.run(&format!("imgtool template build --store store {words}"))
}

/// Nothing is there but what a store has before the first template.
fn assert_nothing_is_made(lab: &Lab) {
    assert_eq!(lab.imgtool("template ls --store store"), "");
    let left = "find store -type f ! -name .lock ! -name aliases.toml; find store/.work -mindepth 1 2>/dev/null || true";
    assert_eq!(lab.run_words(&["sh", "-c", left]).ok(), "");
}

/// A program in `bin` that stands for one of the host's.
fn program(lab: &Lab, name: &str, script: &str) {
    fs::create_dir_all(lab.path("bin")).unwrap();
    let path = lab.path("bin").join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// With `bin` before all other programs, or with nothing else.
fn with_programs(lab: &Lab, words: &str, alone: bool) -> Done {
    let bin = lab.path("bin");
    let rest = if alone { "" } else { ":/usr/bin:/bin" };
    let line = format!(
        "env PATH={}{rest} {} template build --store store {words}",
        bin.display(),
        env!("CARGO_BIN_EXE_imgtool")
    );
    lab.run(&line)
}

#[test]
fn the_tiny_system_is_built_and_shown_and_named_as_its_recipe() {
    let lab = Lab::new();
    let kernel = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest-kernel");
    let recipe = format!(
        "extends = [\"tiny\"]\nnotes = \"noted\"\n[source]\ndirectory = \"{}\"\n\
         [[files]]\npath = \"/bin/busybox\"\nsource = \"/bin/busybox\"\nmode = 0o755\n",
        kernel.display()
    );
    fs::write(lab.path("own-1.2.toml"), recipe).unwrap();
    let shown = build(&lab, "own-1.2.toml --cpus 3").ok();
    for part in [
        "own-1.2",
        "Tiny busybox system",
        "noted",
        "guest-kernel",
        "cpus = 3",
        "memory = \"256M\"",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let json = build(&lab, "own-1.2.toml --alias other --output json").ok();
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["aliases"], serde_json::json!(["other"]));
    assert_eq!(json["machine"]["cpus"], 1);
    assert_eq!(json["user"], "root");
    let image = json["image"].as_str().unwrap();
    let sum = lab.run(&format!("sha256sum {image}")).ok();
    assert_eq!(json["fingerprint"], sum[..64]);
    lab.qemu_img(&format!("check -q {image}"));
    assert!(lab.path(&image.replace("qcow2", "initrd")).exists());
    assert_eq!(build(&lab, "own-1.2.toml --alias quiet -q").ok(), "");
    let list: Value = serde_json::from_str(&lab.imgtool("template ls --store store --output json")).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 3);
}

#[test]
fn an_alias_that_another_template_has_is_only_taken_when_that_is_said() {
    let lab = lab();
    build(&lab, "web-1.2.toml").ok();
    // It is found before anything is built.
    program(&lab, "mmdebstrap", "touch ran; exit 1");
    fs::write(
        lab.path("slow.toml"),
        "[source.mmdebstrap]\nsuite = \"x\"\nmirror = [\"y\"]\n",
    )
    .unwrap();
    let done = with_programs(&lab, "slow.toml --alias web-1.2", false);
    done.fails(1, &["web-1.2", "--move"]);
    assert!(!lab.path("ran").exists());
    let list = || lab.imgtool("template ls --store store");
    assert_eq!(list().lines().count(), 2, "{}", list());
    build(&lab, "web-1.2.toml --alias web-1.2 --move").ok();
    assert_eq!(list().matches("web-1.2").count(), 1, "{}", list());
    assert_eq!(list().lines().count(), 3, "{}", list());
    // The same disk is the same template.
    let uuid = "[disk]\nuuid = \"6a1e5bd0-0000-4000-8000-0123456789ab\"\n";
    fs::write(
        lab.path("same.toml"),
        format!("[source]\ndirectory = \"tree\"\n{uuid}"),
    )
    .unwrap();
    for _ in 0..2 {
        let line = "env SOURCE_DATE_EPOCH=1700000000 IMGTOOL template build -q --store store same.toml";
        lab.run(&line.replace("IMGTOOL", env!("CARGO_BIN_EXE_imgtool")))
            .ok();
    }
    assert_eq!(list().lines().count(), 4, "{}", list());
}

#[test]
fn what_is_wrong_in_a_recipe_is_one_line_with_its_position() {
    let lab = lab();
    for (text, words) in [
        ("colour = 1\n", "line 1, column 1: unknown field `colour`"),
        ("a = ", "line 1, column 5: "),
        (
            "[source]\n\nfolder = \"a\"\n",
            "line 3, column 1: unknown field `folder`",
        ),
        ("[disk]\nsize = \"1X\"\n", "line 2, column 8: "),
        ("[machine]\nmemory = \"256M\"\nram = 2\n", "line 3, column 1: "),
        ("[machine.credentials]\n\"a b\" = \"\"\n", "line 2, column 1: "),
        ("[[users]]\nname = \"A b\"\n", "line 2, column 8: "),
        (
            "[[files]]\npath = \"/a\"\nmode = 0o77777\n",
            "line 3, column 8: \"mode\" is not",
        ),
        (
            "[[files]]\npath = \"/a\"\n  colour = 1\n",
            "line 3, column 3: an entry without a type has no key",
        ),
        ("[source.debootstrap]\nhooks = []\n", "line 2, column 1: "),
        (
            "[source.debootstrap]\npackages = []\n",
            "line 1, column 1: [source.debootstrap] has no suite",
        ),
        ("extends = [\"none.toml\"]\n", "what it extends"),
        ("", "line 1, column 1: the recipe has no source"),
        ("[source]\ntar = \"none.tar\"\n", "wrong.toml: line 2, column 7: "),
        ("[source]\ntar = \"none.tar\"\n", "/none.tar: "),
    ] {
        fs::write(lab.path("wrong.toml"), text).unwrap();
        build(&lab, "wrong.toml").fails(1, &["wrong.toml: ", words]);
    }
    fs::write(lab.path("wrong.toml"), b"os = \"a\"\nnotes = \"\xc3\xa4\xe4\"\n").unwrap();
    build(&lab, "wrong.toml").fails(
        1,
        &["wrong.toml: line 2, column 11: the byte 0xe4 at offset 20 is no UTF-8"],
    );
    // As is what is only found while it is built.
    let files = "[[files]]\npath = \"/none\"\nmode = 0\n";
    fs::write(
        lab.path("wrong.toml"),
        format!("[source]\ndirectory = \"tree\"\n{files}"),
    )
    .unwrap();
    build(&lab, "wrong.toml").fails(
        1,
        &["wrong.toml: line 4, column 8: there is nothing at \"/none\""],
    );
    build(&lab, "tree").fails(1, &["tree: a recipe is a file"]);
    assert_nothing_is_made(&lab);
}

#[test]
fn names_that_are_near_are_told_of_recipes_that_are_unknown() {
    let lab = lab();
    build(&lab, "debian12").fails(1, &["debian12", "hint: there is debian-12"]);
    build(&lab, "ubuntu").fails(1, &["hint: there is ubuntu-24.04"]);
    build(&lab, "./mine.toml").fails(
        1,
        &[
            "./mine.toml",
            "hint: name a file, or one of those that there are: ",
        ],
    );
    fs::write(lab.path("wrong.toml"), "extends = [\"tinny\"]\n").unwrap();
    build(&lab, "wrong.toml").fails(
        1,
        &[
            "wrong.toml: line 1, column 11: what it extends",
            "hint: there is tiny",
        ],
    );
    let show = lab.run("imgtool template recipes --show tinny");
    show.fails(
        1,
        &[
            "no recipe \"tinny\" comes with the program",
            "hint: there is tiny",
        ],
    );
    lab.run("imgtool template recipes --show zzzzzzzzzzz")
        .fails(1, &["imgtool template recipes lists"]);
}

#[test]
fn recipes_that_come_with_the_program_are_listed_and_shown_as_files_that_build() {
    let lab = lab();
    let list = lab.imgtool("template recipes");
    let json: Value = serde_json::from_str(&lab.imgtool("template recipes --output json")).unwrap();
    let recipes = json.as_array().unwrap();
    assert_eq!(recipes.len(), list.lines().count());
    for recipe in recipes {
        let (name, about) = (
            recipe["name"].as_str().unwrap(),
            recipe["description"].as_str().unwrap(),
        );
        let line = list
            .lines()
            .find(|line| line.split(' ').next() == Some(name))
            .unwrap();
        assert!(line.ends_with(about), "{line}");
        let shown = lab.imgtool(&format!("template recipes --show {name}"));
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../machines/recipes/{name}.toml"));
        assert_eq!(shown, fs::read_to_string(file).unwrap());
    }
}

#[test]
fn programs_that_are_missing_are_told_with_what_to_install() {
    let lab = lab();
    fs::create_dir(lab.path("bin")).unwrap();
    for (source, missing, package) in [
        (
            "mmdebstrap]\nsuite = \"x\"\nmirror = [\"y\"]",
            "mmdebstrap",
            "mmdebstrap",
        ),
        ("debootstrap]\nsuite = \"x\"", "debootstrap", "debootstrap"),
        ("debs]\npackages = [\"x\"]", "apt-get", "apt"),
    ] {
        fs::write(lab.path("wanting.toml"), format!("[source.{source}\n")).unwrap();
        with_programs(&lab, "wanting.toml", true).fails(
            1,
            &[
                &format!("{missing} is not installed"),
                &format!("hint: install it: apt install {package}"),
            ],
        );
        assert_nothing_is_made(&lab);
    }
}

#[test]
fn debootstrap_is_given_what_the_recipe_says_and_told_of_when_it_fails() {
    let lab = lab();
    let text = "[source]\nexclude = [\"/debootstrap\"]\n[source.debootstrap]\nsuite = \"bookworm\"\nvariant = \"minbase\"\n\
                packages = [\"a\", \"b\"]\nmirror = \"http://mirror\"\n";
    fs::write(lab.path("old.toml"), text).unwrap();
    // It makes the directory that it is told, the last but one of its words.
    let script = "echo \"$@\" >LAB/told; for last; do into=$before before=$last; done\n\
                  mkdir -p $into/etc $into/debootstrap; echo made >$into/etc/made";
    program(
        &lab,
        "debootstrap",
        &script.replace("LAB", lab.dir().to_str().unwrap()),
    );
    let shown = with_programs(&lab, "old.toml --alias old --output json", false).ok();
    let told = fs::read_to_string(lab.path("told")).unwrap();
    assert!(
        told.starts_with("--include=a,b --variant=minbase bookworm /"),
        "{told}"
    );
    assert!(told.ends_with(" http://mirror\n"), "{told}");
    let json: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(json["provenance"]["source"], "debootstrap bookworm");
    let image = json["image"].as_str().unwrap();
    assert_eq!(lab.imgtool(&format!("fs cat {image} /etc/made")), "made\n");
    assert_eq!(lab.run(&format!("imgtool fs ls {image} /debootstrap")).code(), 1);
    with_programs(&lab, "old.toml --mirror http://one --alias one", false).ok();
    assert!(
        fs::read_to_string(lab.path("told"))
            .unwrap()
            .ends_with(" http://one\n")
    );

    lab.imgtool("template rm --store store old");
    lab.imgtool("template rm --store store one");
    with_programs(&lab, "old.toml --mirror http://one --mirror http://two", false)
        .fails(1, &["one mirror, and 2 are given"]);
    program(&lab, "debootstrap", "echo 'E: No such script'; exit 1");
    with_programs(&lab, "old.toml", false).fails(1, &["debootstrap failed", "E: No such script"]);
    assert_nothing_is_made(&lab);
    lab.run("chmod -R a+rwX .").ok();
    let line = "setpriv --reuid 65534 --clear-groups env PATH=LAB/bin:/usr/bin:/bin IMGTOOL template build --store store old.toml";
    let line = line.replace("LAB", lab.dir().to_str().unwrap());
    copy_program(&lab.path("bin/imgtool"));
    let line = line.replace("IMGTOOL", lab.path("bin/imgtool").to_str().unwrap());
    lab.run(&line)
        .fails(1, &["debootstrap has to be run by root", "hint: sudo"]);
}

#[test]
fn packages_and_suites_that_a_program_does_not_find_are_told_of_where_the_recipe_has_them() {
    let lab = lab();
    let own = "extends = [\"base.toml\"]\n[source.KIND]\npackages = [\"a\",\n  \"b\"]\n";
    for (kind, said, words) in [
        (
            "mmdebstrap",
            "E: Unable to locate package b",
            "own.toml: line 4, column 3: mmdebstrap failed",
        ),
        (
            "mmdebstrap",
            "E: Unable to locate package c",
            "base.toml: line 3, column 13: mmdebstrap failed",
        ),
        (
            "mmdebstrap",
            "E: The repository 'http://m x Release' does not have a Release file.",
            "base.toml: line 2, column 9: mmdebstrap failed",
        ),
        (
            "mmdebstrap",
            "E: Unable to locate package of-another",
            "own.toml: line 2, column 1: mmdebstrap failed",
        ),
        (
            "debootstrap",
            "E: Couldn't find these debs: a",
            "own.toml: line 3, column 13: debootstrap failed",
        ),
    ] {
        let base = format!("[source.{kind}]\nsuite = \"x\"\npackages = [\"c\"]\nMIRROR\n");
        let mirror = if kind == "mmdebstrap" {
            "mirror = [\"m\"]"
        } else {
            "mirror = \"m\""
        };
        fs::write(lab.path("base.toml"), base.replace("MIRROR", mirror)).unwrap();
        fs::write(lab.path("own.toml"), own.replace("KIND", kind)).unwrap();
        program(
            &lab,
            kind,
            &format!("echo \"{said}\" >&2; echo \"E: $0 failed\" >&2; exit 100"),
        );
        with_programs(&lab, "own.toml", false).fails(1, &[words, said]);
    }
    assert_nothing_is_made(&lab);
}

/// What mmdebstrap leaves in Debian 12 besides the system.
#[test]
fn a_template_that_a_program_made_has_nothing_to_be_sealed() {
    let lab = lab();
    let script = "mkdir -p built/etc built/var/cache/apt/archives built/var/lib/apt/lists/partial built/var/log built/root
        cd built; printf 'ID=made\\n' >etc/os-release; echo builder >etc/hostname; : >etc/machine-id
        printf '127.0.0.1 localhost\\n' >etc/hosts
        printf 'root:x:0:0:root:/root:/bin/sh\\n' | tee etc/passwd >etc/passwd-; printf 'root:x:0:\\n' | tee etc/group >etc/group-
        printf 'root:*:19700:0:99999:7:::\\n' | tee etc/shadow >etc/shadow-; printf 'root:*::\\n' | tee etc/gshadow >etc/gshadow-
        : >var/cache/apt/archives/lock; : >var/lib/apt/lists/lock; ln -s ../../usr/share/doc/systemd/README.logs var/log/README
        tar -c .";
    program(&lab, "mmdebstrap", script);
    fs::write(
        lab.path("made.toml"),
        "[source.mmdebstrap]\nsuite = \"x\"\nmirror = [\"y\"]\n",
    )
    .unwrap();
    with_programs(&lab, "-q made.toml", false).ok();
    let lint = lab.run("imgtool template lint --store store made");
    assert_eq!((lint.stdout(), lint.code()), (String::new(), 0));
    // What stays is what the system needs; a name that the recipe has is its own.
    let list = lab.imgtool("template show --store store made --path");
    let listed = lab.imgtool(&format!("fs tree {}", list.trim()));
    for (name, is_there) in [
        ("lock", true),
        ("README", true),
        ("shadow-", false),
        ("hostname", false),
    ] {
        assert_eq!(listed.contains(name), is_there, "{name}: {listed}");
    }
    let named = fs::read_to_string(lab.path("made.toml")).unwrap();
    fs::write(lab.path("named.toml"), format!("hostname = \"own\"\n{named}")).unwrap();
    with_programs(&lab, "-q named.toml", false).ok();
    let lint = lab.run("imgtool template lint --store store named");
    assert!(lint.stdout().starts_with("/etc/hostname: "), "{}", lint.stdout());
    assert_eq!(lint.stdout().lines().count(), 1, "{}", lint.stdout());
}

/// A build whose source has written the start of an archive and goes on for ever.
fn endless(lab: &Lab) -> Child {
    let script = "echo $$ >LAB/pid.new; tar -C LAB/tree -c etc | head -c 1024; mv LAB/pid.new LAB/pid; exec sleep 1000";
    program(
        lab,
        "mmdebstrap",
        &script.replace("LAB", lab.dir().to_str().unwrap()),
    );
    fs::write(
        lab.path("endless.toml"),
        "[source.mmdebstrap]\nsuite = \"x\"\nmirror = [\"y\"]\n",
    )
    .unwrap();
    let _ = fs::remove_file(lab.path("pid"));
    let mut command = lab.command("imgtool");
    command
        .args("template build --store store endless.toml".split(' '))
        .env("PATH", format!("{}:/usr/bin:/bin", lab.path("bin").display()))
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let start = Instant::now();
    while !lab.path("pid").exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "it does not start");
        assert!(child.try_wait().unwrap().is_none(), "it is over already");
        thread::sleep(Duration::from_millis(10));
    }
    child
}

/// Whether the program that was started has ended.
fn has_ended(lab: &Lab) -> bool {
    let pid = fs::read_to_string(lab.path("pid")).unwrap();
    let state = fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
    state.map_or(true, |state| state.contains(") Z "))
}

#[test]
fn a_build_that_is_interrupted_or_killed_leaves_no_template() {
    let lab = lab();
    for signal in ["INT", "TERM"] {
        let child = endless(&lab);
        lab.run(&format!("kill -{signal} {}", child.id())).ok();
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(interrupted_by(signal)), "{stderr}");
        assert!(has_ended(&lab), "its program runs on");
        assert_nothing_is_made(&lab);
    }
    let mut child = endless(&lab);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(lab.imgtool("template ls --store store"), "");
    let start = Instant::now();
    while !has_ended(&lab) {
        assert!(start.elapsed() < Duration::from_secs(60), "its program runs on");
        thread::sleep(Duration::from_millis(10));
    }
    // The next one removes what is left.
    build(&lab, "web-1.2.toml -q").ok();
    lab.imgtool("template rm --store store web-1.2");
    assert_nothing_is_made(&lab);
}

#[test]
fn a_store_that_is_full_has_no_template_afterwards() {
    let lab = lab();
    lab.raw("tree/large", 32 << 20, 1);
    let _small = Mount::tmpfs(&lab, "store", "6M");
    build(&lab, "web-1.2.toml").fails(1, &["No space left"]);
    assert_nothing_is_made(&lab);
    fs::remove_file(lab.path("tree/large")).unwrap();
    fs::write(
        lab.path("small.toml"),
        "[source]\ndirectory = \"tree\"\n[disk]\njournal = \"none\"\n",
    )
    .unwrap();
    build(&lab, "small.toml -q").ok();
}
