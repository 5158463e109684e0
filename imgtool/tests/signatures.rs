//! Stores that trust keys, with minisign as who signs and who checks.

use std::fs;

use crate::common::{Done, Lab};

fn shell(lab: &Lab, script: &str) -> String {
    let done = lab.command("bash").args(["-ec", script]).output().unwrap();
    assert!(done.status.success(), "{script}: {done:?}");
    String::from_utf8(done.stdout).unwrap()
}

/// A lab with keys `ours` and `theirs`, and an image in qcow2 and raw format.
fn lab() -> Lab {
    let lab = Lab::new();
    shell(
        &lab,
        "for key in ours theirs; do minisign -G -W -p $key.pub -s $key.sec >/dev/null; done; mkdir -p root/etc store/keys; echo ID=tiny >root/etc/os-release",
    );
    lab.imgtool("mkfs -q --size 32M root disk.img");
    // Not what the store would make of the other.
    lab.qemu_img("convert -O qcow2 -o cluster_size=32k disk.img disk.qcow2");
    lab
}

fn trust(lab: &Lab, key: &str) {
    fs::copy(
        lab.path(&format!("{key}.pub")),
        lab.path(&format!("store/keys/{key}.pub")),
    )
    .unwrap();
}

fn sign(lab: &Lab, key: &str, file: &str) {
    lab.run_words(&["minisign", "-S", "-s", &format!("{key}.sec"), "-m", file])
        .ok();
}

fn import(lab: &Lab, what: &str) -> Done {
    lab.run(&format!("imgtool template import --store store {what}"))
}

fn clone(lab: &Lab, template: &str, name: &str) -> Done {
    lab.run(&format!("imgtool clone --store store --from {template} {name}"))
}

/// Fails with these words, whatever else is said.
fn refuses(done: &Done, says: &[&str]) {
    let said = done.stderr();
    assert_eq!(done.code(), 1, "{said}");
    assert!(says.iter().all(|what| said.contains(what)), "{said}");
}

fn stored(lab: &Lab) -> String {
    shell(lab, "find store -type f ! -name .lock ! -name '*.pub' | sort")
}

fn image(lab: &Lab, template: &str) -> String {
    lab.imgtool(&format!("template show --store store --path {template}"))
        .trim_end()
        .to_owned()
}

#[test]
fn only_what_a_trusted_key_has_signed_is_imported_and_cloned() {
    let lab = lab();
    import(&lab, "disk.img --alias early").ok();
    trust(&lab, "ours");
    let before = stored(&lab);
    import(&lab, "disk.qcow2 --alias signed").fails(1, &["disk.qcow2", "no signature", "minisign -Sm"]);
    clone(&lab, "early", "web").fails(1, &["no signature", &image(&lab, "early")]);
    assert_eq!(stored(&lab), before);
    sign(&lab, "ours", "disk.qcow2");
    import(&lab, "disk.qcow2 --alias signed").ok();
    let signed = image(&lab, "signed");
    lab.run_words(&["minisign", "-V", "-p", "ours.pub", "-m", &signed])
        .ok();
    let shown = lab.imgtool("template show --store store signed");
    assert!(shown.contains(&format!("{signed}.minisig")), "{shown}");
    clone(&lab, "signed", "web-1").ok();
    clone(&lab, "signed", "web-2").ok();
    // What was made here is signed where it is.
    let early = image(&lab, "early");
    lab.run("imgtool template verify --store store")
        .fails(1, &["no signature", &early]);
    sign(&lab, "ours", &early);
    clone(&lab, "early", "web-3").ok();
    let verified = lab.imgtool("template verify --store store");
    assert!(verified.starts_with("2 templates and 3 machines"), "{verified}");
    // What leaves the store does so with its signature.
    lab.imgtool("template export --store store signed -o out.qcow2");
    lab.run("minisign -V -p ours.pub -m out.qcow2").ok();
    sign(&lab, "ours", "out.qcow2.toml");
    lab.imgtool("rm --store store web-1 web-2 web-3");
    lab.imgtool("template rm --store store signed");
    lab.imgtool("template rm --store store early");
    assert_eq!(stored(&lab).trim(), "store/aliases.toml");
    import(&lab, "out.qcow2 --alias again").ok();
    clone(&lab, "again", "web").ok();
}

#[test]
fn a_signature_says_what_is_wrong_with_it_and_nothing_is_imported() {
    let lab = lab();
    trust(&lab, "ours");
    let before = stored(&lab);
    let refused = |what: &str, says: &[&str]| {
        import(&lab, what).fails(1, says);
        assert_eq!(stored(&lab), before, "{what}");
    };
    sign(&lab, "theirs", "disk.qcow2");
    refused("disk.qcow2", &["disk.qcow2.minisig", "not trusted", "store/keys"]);
    sign(&lab, "ours", "disk.qcow2");
    refused("disk.qcow2 --signature none.minisig", &["no signature"]);
    refused("disk.qcow2 --signature disk.img", &["disk.img"]);
    shell(&lab, "echo none >bad.minisig");
    refused(
        "disk.qcow2 --signature bad.minisig",
        &["bad.minisig", "no signature of minisign"],
    );
    // The comment is signed, too.
    shell(
        &lab,
        "sed 's/timestamp:/timestamp:1/' disk.qcow2.minisig >comment.minisig",
    );
    refused("disk.qcow2 --signature comment.minisig", &["has changed"]);
    shell(
        &lab,
        "cp disk.qcow2 changed.qcow2; printf x | dd of=changed.qcow2 bs=1 seek=400000 conv=notrunc status=none",
    );
    refused(
        "changed.qcow2 --signature disk.qcow2.minisig",
        &["changed.qcow2", "has changed"],
    );
    lab.run_words(&[
        "minisign",
        "-S",
        "-l",
        "-s",
        "ours.sec",
        "-m",
        "disk.qcow2",
        "-x",
        "old.minisig",
    ])
    .ok();
    refused(
        "disk.qcow2 --signature old.minisig",
        &["old.minisig", "old kind", "minisign -SHm"],
    );
    // What is beside the image is taken along, and so is to be signed.
    shell(&lab, "echo 'os = 1' >disk.qcow2.toml");
    refused("disk.qcow2", &["disk.qcow2.toml", "no signature"]);
    shell(&lab, "rm disk.qcow2.toml");
    // What an image is based on is in other files.
    lab.qemu_img("create -q -f qcow2 -b disk.qcow2 -F qcow2 overlay.qcow2");
    sign(&lab, "ours", "overlay.qcow2");
    refused("overlay.qcow2 --nested any", &["other files", "imgtool convert"]);
    fs::create_dir(lab.path("layout")).unwrap();
    shell(&lab, "echo '{}' >layout/oci-layout");
    refused("layout", &["only a file can be signed"]);
    // Metadata of one image would go with the disk of another.
    shell(
        &lab,
        "echo 'architecture: x86_64' >metadata.yaml; tar -cf incus.tar metadata.yaml",
    );
    sign(&lab, "ours", "incus.tar");
    refused("incus.tar disk.qcow2", &["belong together", "one archive"]);
    fs::remove_file(lab.path("store/keys/ours.pub")).unwrap();
    refused(
        "disk.qcow2 --signature disk.qcow2.minisig",
        &["no key", "NAME.pub"],
    );
}

#[test]
fn a_template_that_was_trusted_once_is_looked_at_again_when_anything_changes() {
    let lab = lab();
    trust(&lab, "ours");
    sign(&lab, "ours", "disk.qcow2");
    import(&lab, "disk.qcow2 --alias signed").ok();
    clone(&lab, "signed", "one").ok();
    let signed = image(&lab, "signed");
    let signature = format!("{signed}.minisig");
    let kept = fs::read(lab.path(&signature)).unwrap();
    // Another key.
    trust(&lab, "theirs");
    fs::remove_file(lab.path("store/keys/ours.pub")).unwrap();
    clone(&lab, "signed", "two").fails(1, &["not trusted"]);
    // The first again, and another's signature.
    trust(&lab, "ours");
    fs::remove_file(lab.path("store/keys/theirs.pub")).unwrap();
    sign(&lab, "theirs", &signed);
    clone(&lab, "signed", "two").fails(1, &["not trusted"]);
    fs::remove_file(lab.path(&signature)).unwrap();
    clone(&lab, "signed", "two").fails(1, &["no signature"]);
    fs::write(lab.path(&signature), kept).unwrap();
    clone(&lab, "signed", "two").ok();
    // A raw image is signed as it is, and what was made of it once more.
    sign(&lab, "ours", "disk.img");
    import(&lab, "disk.img --alias raw").ok();
    clone(&lab, "raw", "three").fails(1, &["no signature"]);
    sign(&lab, "ours", &image(&lab, "raw"));
    clone(&lab, "raw", "three").ok();
    // Other bytes.
    shell(
        &lab,
        &format!("chmod u+w {signed}; printf x | dd of={signed} bs=1 seek=400000 conv=notrunc status=none"),
    );
    clone(&lab, "signed", "four").fails(1, &["has changed"]);
}

#[test]
fn what_a_signed_template_boots_with_is_what_it_was_when_it_was_found_right() {
    let lab = lab();
    trust(&lab, "ours");
    sign(&lab, "ours", "disk.qcow2");
    shell(&lab, "echo kernel >kernel; echo initrd >initrd");
    import(
        &lab,
        "disk.qcow2 --alias signed --kernel kernel --initrd initrd --append quiet",
    )
    .ok();
    clone(&lab, "signed", "one").ok();
    let signed = image(&lab, "signed");
    let stem = signed.strip_suffix(".qcow2").unwrap();
    let run = || lab.run("imgtool run --store store --print one");
    let refused = |says: &[&str]| {
        clone(&lab, "signed", "two").fails(1, says);
        run().fails(1, says);
        // Its fault, and that of the machine on it.
        let verified = lab.run("imgtool template verify --store store");
        assert_eq!(verified.code(), 1);
        assert!(verified.stderr().contains(says[0]), "{}", verified.stderr());
        assert!(verified.stderr().contains("machine one"), "{}", verified.stderr());
    };
    run().ok();
    // Another command line, until whoever has the key says that it is right.
    shell(
        &lab,
        &format!("cp {stem}.toml toml; sed -i s/quiet/evil/ {stem}.toml"),
    );
    refused(&[&format!("{stem}.toml"), "has changed", "minisign -Sm"]);
    sign(&lab, "theirs", &format!("{stem}.toml"));
    clone(&lab, "signed", "two").fails(1, &["not trusted"]);
    sign(&lab, "ours", &format!("{stem}.toml"));
    clone(&lab, "signed", "three").ok();
    assert!(run().ok().contains("evil"));
    lab.imgtool("template verify --store store");
    shell(&lab, &format!("cp toml {stem}.toml; rm {stem}.toml.minisig"));
    clone(&lab, "signed", "two").fails(1, &["has changed"]);
    sign(&lab, "ours", &format!("{stem}.toml"));
    clone(&lab, "signed", "four").ok();
    lab.imgtool("template tag --store store signed other");
    clone(&lab, "other", "five").ok();
    for file in ["kernel", "initrd"] {
        shell(&lab, &format!("chmod u+w {stem}.{file}; echo x >>{stem}.{file}"));
        clone(&lab, "signed", "six").fails(1, &[&format!("{stem}.{file}"), "has changed"]);
        run().fails(1, &[&format!("{stem}.{file}"), "has changed"]);
        shell(&lab, &format!("echo {file} >{stem}.{file}"));
        clone(&lab, "signed", &format!("again-{file}")).ok();
    }
}

#[test]
fn what_is_signed_of_one_image_is_not_taken_for_another() {
    let lab = lab();
    import(&lab, "disk.qcow2 --alias one").ok();
    lab.imgtool("template export --store store one -o one.qcow2");
    lab.qemu_img("convert -O qcow2 disk.img two.qcow2");
    shell(&lab, "cp one.qcow2.toml two.qcow2.toml; cp disk.img raw.img");
    lab.imgtool("template export --store store --format raw one -o raw.img.raw");
    lab.imgtool("template rm --store store one");
    trust(&lab, "ours");
    for file in ["one.qcow2", "two.qcow2", "raw.img.raw"] {
        sign(&lab, "ours", file);
        sign(&lab, "ours", &format!("{file}.toml"));
    }
    let before = stored(&lab);
    import(&lab, "two.qcow2").fails(1, &["two.qcow2.toml", "another image"]);
    import(&lab, "raw.img.raw").fails(1, &["raw.img.raw.toml", "does not say", "describes = "]);
    assert_eq!(stored(&lab), before);
    shell(
        &lab,
        "sed -i \"1i describes = \\\"$(sha256sum <raw.img.raw | cut -c-64)\\\"\" raw.img.raw.toml",
    );
    sign(&lab, "ours", "raw.img.raw.toml");
    import(&lab, "raw.img.raw").ok();
    import(&lab, "one.qcow2 --alias one").ok();
    clone(&lab, "one", "web").ok();
}

#[test]
fn without_its_note_a_template_is_not_taken_for_what_it_was() {
    let lab = lab();
    let noted = || shell(&lab, "find store/trusted -type f | sort");
    // Made before there was a key, and noted as it was made.
    import(&lab, "disk.qcow2 --alias early --append quiet").ok();
    clone(&lab, "early", "one").ok();
    trust(&lab, "ours");
    let early = image(&lab, "early");
    sign(&lab, "ours", &early);
    let stem = early.strip_suffix(".qcow2").unwrap();
    let (document, note) = (format!("{stem}.toml"), noted());
    let run = || lab.run("imgtool run --store store --boot uefi --print one");
    clone(&lab, "early", "two").ok();
    run().ok();
    shell(&lab, "cp -a store/trusted kept");
    for damage in [
        "rm -r store/trusted",
        "echo x >NOTE",
        "sed -i s/quiet/evil/ DOCUMENT; rm -r store/trusted",
    ] {
        shell(
            &lab,
            &damage.replace("NOTE", note.trim()).replace("DOCUMENT", &document),
        );
        let says = [&document[..], "not signed", "minisign -Sm"];
        clone(&lab, "early", "three").fails(1, &says);
        run().fails(1, &says);
        refuses(&lab.run("imgtool template verify --store store"), &says[..2]);
        lab.run("imgtool template verify --store store early")
            .fails(1, &says[..2]);
        // To import the image once more is not to say that the document is right.
        import(&lab, &early).fails(1, &[]);
        clone(&lab, "early", "three").fails(1, &says);
        shell(
            &lab,
            &format!("sed -i s/evil/quiet/ {document}; rm -rf store/trusted; cp -a kept store/trusted"),
        );
        run().ok();
    }
    fs::remove_dir_all(lab.path("store/trusted")).unwrap();
    sign(&lab, "ours", &document);
    run().ok();
    clone(&lab, "early", "three").ok();
    assert_eq!(noted(), note);
    // What is not there any more is not noted.
    fs::write(lab.path(&format!("store/trusted/{}.toml", "0".repeat(64))), "").unwrap();
    lab.imgtool("template gc --store store");
    assert_eq!(noted(), note);
    lab.imgtool("rm --store store one two three");
    lab.imgtool("template rm --store store early");
    assert_eq!(noted(), "");
}

#[test]
fn a_key_that_cannot_be_read_is_named_and_only_what_needs_it_is_refused() {
    let lab = lab();
    trust(&lab, "ours");
    sign(&lab, "ours", "disk.qcow2");
    import(&lab, "disk.qcow2 --alias signed").ok();
    clone(&lab, "signed", "one").ok();
    let run = || lab.run("imgtool run --store store --boot uefi --print one");
    let warns = |done: Done| {
        assert_eq!(done.code(), 0, "{}", done.stderr());
        let said = done.stderr();
        assert!(
            said.contains("theirs.pub: this is no public key of minisign"),
            "{said}"
        );
    };
    fs::write(lab.path("store/keys/theirs.pub"), "none").unwrap();
    warns(run());
    warns(clone(&lab, "signed", "two"));
    warns(import(&lab, "disk.qcow2"));
    warns(lab.run("imgtool template verify --store store signed"));
    refuses(&lab.run("imgtool template verify --store store"), &["theirs.pub"]);
    shell(
        &lab,
        "cp disk.qcow2 other.qcow2; printf x | dd of=other.qcow2 bs=1 seek=400000 conv=notrunc status=none",
    );
    sign(&lab, "theirs", "other.qcow2");
    refuses(
        &import(&lab, "other.qcow2"),
        &["not trusted", "theirs.pub cannot be read"],
    );
    // With no key that can be read everything is as with none that has signed, and not as with none at all.
    fs::remove_file(lab.path("store/keys/ours.pub")).unwrap();
    warns(run());
    for template in ["signed", "other.qcow2"] {
        let done = match template {
            "signed" => clone(&lab, "signed", "three"),
            file => import(&lab, file),
        };
        refuses(&done, &["not trusted", "theirs.pub cannot be read"]);
    }
    fs::remove_file(lab.path("disk.qcow2.minisig")).unwrap();
    refuses(&import(&lab, "disk.qcow2"), &["no signature"]);
    shell(&lab, "rm -r store/keys; ln -s nowhere store/keys");
    for done in [run(), clone(&lab, "signed", "three"), import(&lab, "disk.qcow2")] {
        done.fails(1, &["store/keys: read the directory"]);
    }
}
