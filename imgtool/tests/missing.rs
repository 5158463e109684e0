//! Machines that lack something they need, and what of a machine's settings says only with others what it means.

use std::fs;
use std::path::PathBuf;

use crate::common::Lab;
use crate::stores::{json, lab};

/// The only file of templates with this extension.
fn template_file(lab: &Lab, extension: &str) -> PathBuf {
    let files = fs::read_dir(lab.path("store/templates")).unwrap();
    let mut paths = files.map(|file| file.unwrap().path());
    paths
        .find(|path| path.extension().is_some_and(|own| own == extension))
        .unwrap()
}

fn profile(lab: &Lab, name: &str, text: &str) {
    fs::create_dir_all(lab.path("store/profiles")).unwrap();
    fs::write(lab.path(&format!("store/profiles/{name}.toml")), text).unwrap();
}

#[test]
fn a_machine_whose_base_is_gone_is_shown_with_what_is_known_and_what_is_missing() {
    let lab = lab();
    lab.imgtool("clone -q --store store web --from tiny --cpus 3 --size 32M");
    let whole = lab.imgtool("show --store store web");
    assert!(
        whole.contains("template:    tiny\nstate:       stopped\n"),
        "{whole}"
    );
    let image = template_file(&lab, "qcow2");
    fs::rename(&image, lab.path("away")).unwrap();
    let shown = lab.run("imgtool show --store store web");
    shown.fails(
        1,
        &[
            &format!("{} is missing, which ", image.display()),
            "instances/web.qcow2 is based on",
            "hint: bring it back from a copy",
        ],
    );
    for line in [
        "machine:     web",
        "template:    tiny (its image is missing)",
        "state:       stopped",
        "size:        32 MiB",
        "settings:",
        "    cpus = 3",
    ] {
        assert!(
            shown.stdout().lines().any(|shown| shown == line),
            "{line}: {}",
            shown.stdout()
        );
    }
    let shown = lab.run("imgtool show --store store --output json web");
    assert_eq!(shown.code(), 1);
    let shown = json(&shown.stdout());
    assert_eq!(
        (&shown["name"], &shown["expanded"]["cpus"]),
        (&"web".into(), &3.into())
    );
    assert_eq!(shown["missing"].as_array().unwrap().len(), 1, "{shown}");
    lab.run("imgtool run --store store web --print")
        .fails(1, &["is missing, which "]);

    let state = |line: &str| {
        let listed = json(
            &lab.run(&format!("imgtool {line} --store store --output json"))
                .stdout(),
        );
        (listed[0]["state"].clone(), listed[0]["fault"].clone())
    };
    assert_eq!(state("ls"), ("stopped".into(), "base-missing".into()));
    assert!(lab.imgtool("ls --store store").contains("tiny      base missing"));
    // The template is listed, with what to do.
    let listed = lab.run("imgtool template ls --store store");
    assert!(listed.stdout().contains("image missing"), "{}", listed.stdout());
    listed.fails(
        1,
        &[
            "the image of template tiny is missing",
            "imgtool template rm tiny",
        ],
    );
    assert_eq!(state("template ls").1, "image-missing");
    let verified = lab.run("imgtool template verify --store store");
    assert_eq!(verified.code(), 1);
    let told = verified
        .stderr()
        .matches("the image of template tiny is missing")
        .count();
    assert_eq!(told, 1, "{}", verified.stderr());

    let description = template_file(&lab, "toml");
    fs::rename(&description, lab.path("away.toml")).unwrap();
    assert_eq!(state("ls").1, "base-missing");
    let shown = lab.run("imgtool show --store store web");
    assert_eq!(shown.code(), 1);
    let short = &image.file_name().unwrap().to_str().unwrap()[..12];
    let line = format!("template:    {short} (missing)\n");
    assert!(shown.stdout().contains(&line), "{}", shown.stdout());
    fs::rename(lab.path("away"), image).unwrap();
    fs::rename(lab.path("away.toml"), description).unwrap();
    assert_eq!(lab.imgtool("show --store store web"), whole);
    assert_eq!(
        json(&lab.imgtool("show --store store --output json web"))["missing"],
        json("[]")
    );
}

#[test]
fn a_profile_that_is_gone_can_be_taken_away_from_a_machine() {
    let lab = lab();
    profile(&lab, "small", "cpus = 2\n");
    profile(&lab, "fast", "memory = \"2G\"\n");
    lab.imgtool("clone -q --store store web --from tiny --profile small");
    lab.imgtool("clone -q --store store db --from tiny --profile fast --profile small");
    fs::remove_file(lab.path("store/profiles/small.toml")).unwrap();
    for command in [
        "show",
        "config show --expanded",
        "run --print",
        "launch --format libvirt",
    ] {
        lab.run(&format!("imgtool {command} --store store web")).fails(
            1,
            &[
                "there is no profile \"small\"",
                "imgtool config set web --profile ''",
            ],
        );
    }
    let shown = lab.run("imgtool show --store store db");
    shown.fails(1, &["imgtool config set db --profile fast\n"]);
    for line in ["profiles:    fast, small\n", "    memory = \"2G\"\n"] {
        assert!(shown.stdout().contains(line), "{}", shown.stdout());
    }
    let expanded = lab.run("imgtool config show --store store --expanded db");
    assert!(
        expanded.stdout().starts_with("memory = \"2G\"\n\n[boot]\n"),
        "{}",
        expanded.stdout()
    );

    lab.run("imgtool config set --store store web")
        .fails(1, &["there is nothing to set", "hint: such as --memory 2G"]);
    // Other settings change as before; no profile comes that is not there.
    lab.imgtool("config set --store store web --cpus 4");
    lab.run("imgtool config set --store store web --profile none")
        .fails(1, &["there is no profile \"none\""]);
    lab.imgtool("config set --store store db --profile fast");
    lab.imgtool("show --store store db");
    lab.run_words(&[
        env!("CARGO_BIN_EXE_imgtool"),
        "config",
        "set",
        "--store",
        "store",
        "web",
        "--profile",
        "",
    ])
    .ok();
    let shown = lab.imgtool("show --store store web");
    assert!(
        shown.contains("cpus:        4") && !shown.contains("profiles:"),
        "{shown}"
    );

    // One that cannot be read is named, with what to do without it.
    fs::write(lab.path("store/profiles/fast.toml"), "memory = 1\n").unwrap();
    lab.run("imgtool show --store store db").fails(
        1,
        &[
            "fast.toml: line 1, column 10: ",
            "imgtool config set db --profile ''",
        ],
    );
}

#[test]
fn a_template_can_leave_the_name_of_its_bridge_to_profiles_and_machines() {
    let lab = lab();
    let recipe = "[source]\ndirectory = \"root\"\n[machine.network]\nkind = \"bridge\"\n";
    fs::write(lab.path("bridged.toml"), recipe).unwrap();
    lab.imgtool("template build -q --store store bridged.toml");
    lab.run("imgtool clone --store store web --from bridged").fails(
        1,
        &["to be a bridge, and nothing says which one", "--net bridge=br0"],
    );
    assert_eq!(lab.imgtool("ls --store store"), "");
    profile(&lab, "net", "[network]\nbridge = \"br7\"\n");
    lab.imgtool("clone -q --store store web --from bridged --profile net");
    lab.imgtool("clone -q --store store db --from bridged --net bridge=br8");
    for (machine, bridge) in [("web", "br7"), ("db", "br8")] {
        lab.imgtool(&format!(
            "launch --store store {machine} --format libvirt -o {machine}.xml"
        ));
        lab.run(&format!("virt-xml-validate {machine}.xml domain")).ok();
        let xml = fs::read_to_string(lab.path(&format!("{machine}.xml"))).unwrap();
        assert!(xml.contains(&format!("bridge=\"{bridge}\"")), "{xml}");
    }
    // What nothing names any more is found by who starts the machine.
    profile(&lab, "net", "cpus = 1\n");
    lab.run("imgtool run --store store web --print")
        .fails(1, &["web.toml", "nothing says which one"]);
    profile(&lab, "net", "[network]\n  bridge = \"a b\"\n");
    lab.run("imgtool run --store store web --print").fails(
        1,
        &["net.toml: line 2, column 12: \"a b\" cannot be the name of a bridge"],
    );
}

#[test]
fn the_first_digits_of_a_fingerprint_are_four_at_least() {
    let lab = lab();
    let sum = lab.run("sha256sum root.qcow2").ok();
    lab.imgtool(&format!("template show --store store {}", &sum[..4]));
    for len in 1..4 {
        lab.run(&format!("imgtool template show --store store {}", &sum[..len]))
            .fails(1, &["as a fingerprint it is too short", "give at least 4 digits"]);
    }
    lab.run("imgtool template show --store store tin")
        .fails(1, &["there is no template \"tin\"\n", "hint: there is tiny\n"]);
}

#[test]
fn a_guest_that_a_clone_cannot_be_made_of_is_named_with_the_machine() {
    let lab = lab();
    for (name, text) in [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        ("etc/group", "root:x:0:\n"),
        ("home", "no directory\n"),
    ] {
        fs::write(lab.path("root").join(name), text).unwrap();
    }
    lab.imgtool("mkfs -q --size 16M -O qcow2 root homeless.qcow2");
    lab.imgtool("template import -q --store store homeless.qcow2 --alias homeless");
    lab.run("ssh-keygen -q -t ed25519 -f id -N x").ok();
    let line = "imgtool clone --store store web --from homeless --ssh-key id.pub --user ada";
    lab.run(line).fails(
        1,
        &["machine web of template homeless: /home: it is there, and no directory"],
    );
    assert_eq!(lab.imgtool("ls --store store"), "");
}

#[test]
fn one_template_is_not_several() {
    let lab = lab();
    let verify = || lab.imgtool("template verify --store store");
    assert_eq!(verify(), "1 template and 0 machines are as they should be\n");
    lab.imgtool("clone -q --store store web --from tiny");
    assert_eq!(verify(), "1 template and 1 machine are as they should be\n");
    assert_eq!(
        lab.imgtool("template verify --store store tiny"),
        "template tiny is as it should be\n"
    );
}
