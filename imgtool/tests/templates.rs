//! Templates and machines from the command line: what people see, and what goes wrong.

use std::fs;

use crate::common::Lab;
use serde_json::Value;

/// A lab with a store, and in it a template of a root filesystem with a kernel.
fn lab() -> Lab {
    let lab = Lab::new();
    for directory in ["root/etc", "root/boot"] {
        fs::create_dir_all(lab.path(directory)).unwrap();
    }
    fs::write(lab.path("root/etc/os-release"), "ID=tiny\nPRETTY_NAME='Tiny 1'\n").unwrap();
    for (name, text) in [
        ("vmlinuz-6.1.0-9", "old kernel"),
        ("vmlinuz-6.1.0-18", "new kernel"),
        ("initrd.img-6.1.0-18", "new initrd"),
    ] {
        fs::write(lab.path("root/boot").join(name), text).unwrap();
    }
    lab.imgtool("mkfs -q --size 16M -O qcow2 root root.qcow2");
    lab
}

pub(crate) fn imported() -> Lab {
    let lab = lab();
    lab.imgtool("template import -q --store store root.qcow2 --alias tiny --memory 256M");
    lab
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_template_is_what_its_disk_says() {
    let lab = lab();
    let shown =
        lab.imgtool("template import --store store root.qcow2 --alias tiny --notes noted --user root");
    for part in [
        "tiny",
        "Tiny 1",
        "16 MiB",
        "noted",
        "root=/dev/vda rw console=ttyS0",
        "kind = \"direct\"",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let template = json(&lab.imgtool("template show --store store tiny --output json"));
    let sum = lab.run("sha256sum root.qcow2").ok();
    assert_eq!(template["fingerprint"], sum[..64]);
    let kernel = format!("store/templates/{}.kernel", &sum[..64]);
    assert_eq!(fs::read(lab.path(&kernel)).unwrap(), b"new kernel");
    assert_eq!(
        fs::read(lab.path(&kernel.replace("kernel", "initrd"))).unwrap(),
        b"new initrd"
    );
    assert_eq!(template["aliases"][0], "tiny");
    assert_eq!(template["provenance"]["source"], "root.qcow2");
    lab.imgtool(&format!("template tag --store store {} other", &sum[..8]));
    let list = lab.imgtool("template ls --store store");
    assert!(
        list.starts_with("ALIAS ") && list.contains("other, tiny"),
        "{list}"
    );
    lab.imgtool("template untag --store store other");
    lab.imgtool("template rm --store store tiny");
    assert_eq!(lab.imgtool("template ls --store store"), "");
    assert_eq!(
        json(&lab.imgtool("template ls --store store --output json")),
        Value::Array(Vec::new())
    );
}

#[test]
fn machines_are_made_listed_shown_and_removed() {
    let lab = imported();
    let made = lab.imgtool("clone web --store store --from tiny --count 3 --size 1G --cpus 2 --output json");
    assert_eq!(json(&made).as_array().unwrap().len(), 3);
    let list = lab.imgtool("ls --store store");
    assert!(
        list.contains("web-1  tiny") && list.contains("web-3  tiny"),
        "{list}"
    );
    let shown = lab.imgtool("show --store store web-2");
    for part in [
        "tiny",
        "256 MiB",
        "size:        1 GiB",
        "cpus:        2",
        ".kernel",
        "network:     user",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    lab.imgtool("config set --store store web-2 --memory 1G --net user,fwd=2222:22");
    let own = lab.imgtool("config show --store store web-2");
    assert!(
        own.contains("memory = \"1G\"") && own.contains("2222:22") && !own.contains("console"),
        "{own}"
    );
    let all = json(&lab.imgtool("config show --store store --expanded --output json web-2"));
    assert_eq!(
        (&all["cpus"], &all["memory"]),
        (&Value::from(2), &Value::from("1G"))
    );
    assert_eq!(all["boot"]["append"], "root=/dev/vda rw console=ttyS0");
    let hostname = lab.imgtool("fs cat store/instances/web-3.qcow2 /etc/hostname");
    assert_eq!(hostname, "web-3\n");
    lab.run("imgtool template rm --store store tiny")
        .fails(1, &["web-1, web-2 and web-3 are based on"]);
    lab.imgtool("rename --store store web-1 mail");
    lab.run("imgtool rm --store store web-2 web-4")
        .fails(1, &["there is no machine", "web-2"]);
    lab.imgtool("rm --store store web-2 web-3 mail");
    assert_eq!(lab.imgtool("ls --store store"), "");
    lab.imgtool("template rm --store store tiny");
}

#[test]
fn cloud_init_gets_a_disk_that_says_what_to_do() {
    let lab = imported();
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGZSZW0uZmY1cGlvcm9qb3Npb25iYW5hbmFzMTIzNDU2 me";
    fs::write(lab.path("key.pub"), format!("{key}\n")).unwrap();
    lab.imgtool(
        "clone web --store store --from tiny --seed nocloud --ssh-key key.pub --user admin --ip 10.0.0.5/24,gw=10.0.0.1,dns=10.0.0.1",
    );
    let seed = "store/instances/web.seed";
    lab.run(&format!("/sbin/fsck.fat -n {seed}")).ok();
    assert!(
        lab.run(&format!("mlabel -i {seed} -s ::"))
            .ok()
            .contains("CIDATA")
    );
    let read = |name: &str| lab.run(&format!("mtype -i {seed} ::{name}")).ok();
    let about = json(&read("meta-data"));
    let shown = json(&lab.imgtool("show --store store --output json web"));
    assert_eq!(
        (&about["instance-id"], &about["local-hostname"]),
        (&shown["uuid"], &Value::from("web"))
    );
    let data = read("user-data");
    let data = json(data.strip_prefix("#cloud-config\n").unwrap());
    assert_eq!(
        (
            &data["users"][1]["name"],
            &data["users"][1]["ssh_authorized_keys"][0]
        ),
        (&Value::from("admin"), &Value::from(key))
    );
    assert_eq!(data["users"][1]["sudo"], "ALL=(ALL) NOPASSWD:ALL");
    // Who is there already is not locked out.
    lab.imgtool("clone rooted --store store --from tiny --seed nocloud --ssh-key key.pub --user root");
    let data = lab.run("mtype -i store/instances/rooted.seed ::user-data").ok();
    let data = json(data.strip_prefix("#cloud-config\n").unwrap());
    assert_eq!(data["disable_root"], false);
    assert_eq!(data["users"][1]["lock_passwd"], false);
    lab.imgtool("rm --store store rooted");
    let network = json(&read("network-config"));
    assert_eq!(network["ethernets"]["card"]["match"]["macaddress"], shown["mac"]);
    assert_eq!(network["ethernets"]["card"]["addresses"][0], "10.0.0.5/24");
    // The guest does it, and nobody else.
    lab.run("imgtool fs cat store/instances/web.qcow2 /etc/hostname")
        .fails(1, &["/etc/hostname"]);
    let print = lab.imgtool("run --store store web --print --accel tcg");
    assert!(print.contains("web.seed"), "{print}");
    lab.imgtool("rename --store store web other");
    assert!(lab.path("store/instances/other.seed").exists());
    lab.imgtool("rm --store store other");
    assert!(!lab.path("store/instances/other.seed").exists());
}

#[test]
fn a_template_without_cloud_init_is_told_of_when_it_is_given_a_seed() {
    let lab = imported();
    let words = "--store store --seed nocloud";
    let done = lab.run(&format!("imgtool clone a {words} --from tiny --count 3"));
    assert_eq!(
        done.stderr().matches("no cloud-init").count(),
        1,
        "{}",
        done.stderr()
    );
    done.ok();
    // Who does not ask for a seed, and who has what reads it, is told nothing.
    let quiet = |line: &str| {
        let done = lab.run(line);
        assert_eq!(done.stderr(), "", "{line}");
        done.ok();
    };
    quiet("imgtool clone b --store store --from tiny");
    quiet("imgtool fs mkdir -p store/instances/b.qcow2 /etc/cloud");
    lab.imgtool("template publish --store store b --alias with --no-lint");
    quiet(&format!("imgtool clone c {words} --from with"));
}

#[test]
fn commands_for_images_take_the_names_of_machines() {
    let lab = imported();
    lab.imgtool("clone web --store store --from tiny");
    let with_store = |line: &str| {
        lab.run(&format!(
            "env IMGTOOL_STORE=store {} {line}",
            env!("CARGO_BIN_EXE_imgtool")
        ))
    };
    with_store("snapshot create web first").ok();
    assert!(with_store("snapshot list web").ok().contains("first"));
    with_store("resize web 64M").ok();
    assert!(with_store("info web").ok().contains("64 MiB"));
    assert!(with_store("fs cat web /etc/os-release").ok().contains("Tiny 1"));
    with_store("check -q web").ok();
    let template = json(&lab.imgtool("template show --store store --output json tiny"));
    let image = template["image"].as_str().unwrap();
    let before = lab.run(&format!("sha256sum {image}")).ok();
    for line in [
        "fs mkdir IMAGE /x",
        "snapshot create IMAGE x",
        "resize IMAGE +1M",
        "check -r all IMAGE",
        "amend -o lazy_refcounts=on IMAGE",
    ] {
        with_store(&line.replace("IMAGE", image))
            .fails(1, &["a template is not changed", "imgtool template publish"]);
    }
    assert_eq!(lab.run(&format!("sha256sum {image}")).ok(), before);
    with_store("info wab").fails(1, &["wab"]);
}

#[test]
fn a_machine_with_partitions_is_named_for_its_root_filesystem_and_with_a_number_for_another() {
    let lab = lab();
    let loader = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi";
    // As good a kernel as any that firmware can start.
    for kernel in ["6.1.0-9", "6.1.0-18"] {
        fs::copy(loader, lab.path(&format!("root/boot/vmlinuz-{kernel}"))).unwrap();
    }
    lab.imgtool(&format!(
        "mkdisk -q --esp-size 64M --boot-efi {loader} -O qcow2 root parts.qcow2"
    ));
    lab.imgtool("template import -q --store store parts.qcow2 --alias parts");
    lab.imgtool("clone -q --store store web --from parts");
    let with_store = |line: &str| {
        lab.run(&format!(
            "env IMGTOOL_STORE=store {} {line}",
            env!("CARGO_BIN_EXE_imgtool")
        ))
    };
    for name in ["web", "web#2"] {
        let release = with_store(&format!("fs cat {name} /etc/os-release")).ok();
        assert!(release.contains("Tiny 1"), "{name}: {release}");
    }
    with_store("fs mkdir web /made").ok();
    with_store("fs ls web#2 /made").ok();
    with_store("fs ls web#1 /").fails(1, &["web#1", "ext"]);
    with_store("map web#1").ok();
    with_store("fs cat web#3 /etc/os-release").fails(1, &["web", "there are 1"]);
    with_store("fs cat wob#1 /etc/os-release").fails(1, &["wob"]);
}

#[test]
fn what_cannot_be_is_one_line_and_a_hint() {
    let lab = imported();
    lab.imgtool("clone web --store store --from tiny");
    for (line, parts) in [
        (
            "clone a --store store --from tyni",
            &["no template \"tyni\"", "there is tiny"][..],
        ),
        (
            "clone web --store store --from tiny",
            &["there is a machine \"web\" already"],
        ),
        (
            "clone Web --store store --from tiny",
            &["\"Web\" cannot be the name", "hostname"],
        ),
        (
            "clone a --store store --from tiny --size 1M",
            &["shorter than that of template tiny"],
        ),
        (
            "clone a --store store --from tiny --profile big",
            &["no profile \"big\""],
        ),
        (
            "clone a --store store --from tiny --mac 01:00:00:00:00:00",
            &["one of a group"],
        ),
        (
            "clone a --store store --from tiny --count 2 --ip 10.0.0.1/8",
            &["cannot share an address"],
        ),
        (
            "clone a --store store --from tiny --ssh-key root/etc/os-release",
            &["root/etc/os-release: line 1 is no public key for ssh"],
        ),
        (
            "clone a --store store --from tiny --seed nocloud --as-is",
            &["cannot be left as it is"],
        ),
        (
            "clone a --store store --from tiny --ip 10.0.0.0/24",
            &["the address of the network itself", "10.0.0.5/24"],
        ),
        (
            "clone a --store store --from tiny --net user,fwd=2222:22,fwd=0.0.0.0:2222:80",
            &["port 2222 of the host is forwarded twice"],
        ),
        (
            "clone a --store store --from tiny --ip dhcp",
            &["neither systemd-networkd nor NetworkManager"],
        ),
        (
            "clone a --store store --from tiny --net tap",
            &["there is no network \"tap\""],
        ),
        ("clone a --store store --from tiny --memory 1000", &["whole MiB"]),
        ("show --store store wep", &["no machine \"wep\"", "there is web"]),
        (
            "show --store store tiny",
            &["no machine \"tiny\"", "it is a template"],
        ),
        (
            "template show --store store zzz",
            &["no template \"zzz\"", "imgtool template ls"],
        ),
        ("template import --store store nothing.img", &["nothing.img"]),
        (
            "template import --store store root.qcow2 --alias ../x",
            &["cannot be a name"],
        ),
        (
            "template import --store /proc/x root.qcow2",
            &["/proc/x", "IMGTOOL_STORE"],
        ),
        (
            "template import --store store root/etc/os-release --boot direct",
            &["no kernel on the disk", "--kernel"],
        ),
    ] {
        lab.run(&format!("imgtool {line}")).fails(1, parts);
    }
    assert_eq!(
        json(&lab.imgtool("ls --store store --output json"))
            .as_array()
            .unwrap()
            .len(),
        1
    );
    // Broken documents are told of, and hide nothing else.
    fs::write(lab.path("store/instances/web.toml"), "uuid = 1\n").unwrap();
    lab.imgtool("clone other --store store --from tiny");
    let list = lab.run("imgtool ls --store store");
    assert!(list.stdout().contains("other"));
    assert!(list.stderr().contains("line 1, column 8"), "{}", list.stderr());
    assert_eq!(list.code(), 1);
}

#[test]
fn a_killed_command_leaves_no_machine_and_no_template() {
    let lab = imported();
    lab.imgtool("clone kept --store store --from tiny");
    let listed = || {
        (
            lab.imgtool("ls --store store"),
            lab.imgtool("template ls --store store"),
        )
    };
    let files = || {
        let found = lab.run("find store/templates store/trusted -type f").ok();
        let mut names: Vec<String> = found.lines().map(str::to_owned).collect();
        names.sort_unstable();
        names
    };
    let (before, program) = (listed(), env!("CARGO_BIN_EXE_imgtool"));
    let files_before = files();
    // At every system call that changes a name or writes, one after the other, until the command ends by itself.
    for (line, cleanup) in [
        (
            "clone x --store store --from tiny --count 2",
            "rm --store store x-1 x-2",
        ),
        (
            "template import -q --store store big.qcow2 --alias big",
            "template rm --store store big",
        ),
    ] {
        lab.imgtool("create -q -f qcow2 big.qcow2 1M");
        let mut killed = 0;
        for call in ["renameat2", "openat", "mkdir", "fsync", "syncfs", "unlink"] {
            for number in 1.. {
                let trace = format!(
                    "strace -f -qq -o trace -e trace={call} -e inject={call}:signal=KILL:when={number} {program} {line}"
                );
                let words: Vec<&str> = trace.split(' ').collect();
                let done = lab.command(words[0]).args(&words[1..]).output().unwrap();
                if done.status.success() {
                    lab.imgtool(cleanup);
                    break;
                }
                assert!(number < 300, "{call}");
                killed += 1;
                let after = listed();
                // Each is whole or not there, though not all need be.
                for machine in ["x-1", "x-2"].iter().filter(|name| after.0.contains(*name)) {
                    lab.qemu_img(&format!("check -q store/instances/{machine}.qcow2"));
                    lab.imgtool(&format!("rm --store store {machine}"));
                }
                if after.1 != before.1 {
                    // It is there with its name, or not at all.
                    lab.imgtool("template rm --store store big");
                }
                assert_eq!(listed(), before, "{call} {number}");
                lab.imgtool("template verify -q --store store");
                lab.imgtool("template gc --store store");
                assert_eq!(files(), files_before, "{call} {number}");
            }
        }
        assert!(killed > 20, "{line}: {killed}");
    }
    // What killed jobs had named is known from what is away, and is gone with the next job.
    let left = lab.run("find store -name '*x-*' -o -path '*/.work/*'").ok();
    assert_eq!(left, "");
}

#[test]
fn the_name_of_a_machine_whose_removal_was_killed_is_free() {
    let lab = imported();
    let program = env!("CARGO_BIN_EXE_imgtool");
    let mut freed = 0;
    for call in ["unlink", "rename", "fsync"] {
        for number in 1.. {
            // It is refused for a name that is taken.
            lab.imgtool("clone -q --store store web --from tiny");
            let trace = format!(
                "strace -f -qq -o trace -e trace={call} -e inject={call}:signal=KILL:when={number} {program} rm --store store web"
            );
            let words: Vec<&str> = trace.split(' ').collect();
            let done = lab.run_words(&words);
            if done.signal().is_none() {
                done.ok();
                break;
            }
            assert!(number < 100, "{call}");
            if lab.imgtool("ls --store store").contains("web") {
                lab.imgtool("rm --store store web");
            } else {
                freed += 1;
            }
        }
    }
    assert!(freed > 2, "{freed}");
    assert_eq!(
        lab.run("find store -name 'web*' -o -name '.unfinished*'").ok(),
        ""
    );
}

#[test]
fn a_wrong_name_removes_no_template() {
    let lab = imported();
    lab.run("imgtool template rm --store store tiny tinny")
        .fails(1, &["there is no template \"tinny\""]);
    lab.imgtool("template show --store store tiny");
}

#[test]
fn an_image_without_a_system_is_told_to_be_that() {
    let lab = Lab::new();
    let script = "truncate -s 1M zeros; yes text | head -c 1M >text || :; truncate -s 1M swap; mkswap -q swap; \
        truncate -s 4M parts; printf 'label: gpt\\nsize=1024,type=swap\\ntype=uefi\\n' | sfdisk -q parts; \
        mkdir tree; echo a >tree/a; truncate -s 4M data; mke2fs -q -t ext4 -d tree data";
    lab.run_words(&["sh", "-ec", script]).ok();
    for (file, says) in [
        (
            "zeros",
            "no root filesystem of ext4, so machines of it get no names",
        ),
        ("zeros", ": it is empty: all zeros"),
        (
            "text",
            ": it has no partition table, and no filesystem that is known",
        ),
        ("swap", ": all of it is swap"),
        ("parts", ": there is partition 1 (swap), partition 2 (efi)"),
        ("data", "a filesystem of ext4 and no system in it"),
    ] {
        let done = lab.run(&format!("imgtool template import --store store {file}"));
        assert_eq!(done.code(), 0, "{file}: {}", done.stderr());
        assert!(done.stderr().contains(says), "{file}: {}", done.stderr());
    }
    // With keys, only a file can be imported.
    fs::create_dir_all(lab.path("signed/keys")).unwrap();
    let key = "untrusted comment: x\nRWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3\n";
    fs::write(lab.path("signed/keys/own.pub"), key).unwrap();
    for store in ["store", "signed"] {
        lab.run(&format!("imgtool template import --store {store} zeroes"))
            .fails(1, &["zeroes: open", "there is zeros"]);
    }
}

#[test]
fn a_template_is_called_as_it_was_asked_for() {
    let lab = imported();
    lab.imgtool("template tag --store store tiny a-first");
    for (name, aliases) in [("tiny", "tiny, a-first"), ("a-first", "a-first, tiny")] {
        let shown = lab.imgtool(&format!("template show --store store {name}"));
        assert!(shown.contains(&format!(" {aliases}\n")), "{shown}");
    }
    let again = lab.run("imgtool template import --store store root.qcow2 --alias tiny --notes other");
    assert!(
        again.stderr().contains("that of template tiny already"),
        "{}",
        again.stderr()
    );
    lab.imgtool("clone -q --store store web --from tiny");
    lab.run("imgtool template rm --store store tiny")
        .fails(1, &["template tiny is what web is based on"]);
    // A machine is listed with the name that its template had then, as long as it has that.
    assert!(lab.imgtool("ls --store store").contains("web   tiny "));
    lab.imgtool("template untag --store store tiny");
    assert!(lab.imgtool("ls --store store").contains("web   a-first "));
    lab.imgtool("template tag --store store a-first tiny");
    assert!(lab.imgtool("ls --store store").contains("web   tiny "));
}

#[test]
fn only_the_templates_that_are_named_are_verified() {
    let lab = imported();
    fs::write(lab.path("other"), vec![0; 1 << 20]).unwrap();
    lab.imgtool("template import -q --store store other --alias other");
    let image = lab.imgtool("template show --store store other --path");
    lab.run(&format!("chmod u+w {image}")).ok();
    fs::write(lab.path(image.trim()), "broken").unwrap();
    assert_eq!(
        lab.imgtool("template verify --store store tiny"),
        "template tiny is as it should be\n"
    );
    let both = lab.run("imgtool template verify --store store tiny other");
    assert_eq!(both.stdout(), "1 of 2 templates are as they should be\n");
    both.fails(1, &["the file has changed"]);
    lab.run("imgtool template verify --store store tinny")
        .fails(1, &["there is tiny"]);
    lab.run("imgtool template verify --store store")
        .fails(1, &["the file has changed"]);
}

/// A lab with a template that nothing starts: no kernel, no EFI system partition.
fn without_kernel() -> Lab {
    let lab = Lab::new();
    fs::create_dir_all(lab.path("root/etc")).unwrap();
    fs::write(lab.path("root/etc/os-release"), "ID=tiny\n").unwrap();
    lab.imgtool("mkfs -q --size 16M -O qcow2 root root.qcow2");
    lab.imgtool("template import -q --store store root.qcow2 --alias bare");
    lab
}

#[test]
fn a_machine_that_nothing_starts_is_made_and_exported_but_not_started() {
    let lab = without_kernel();
    lab.imgtool("clone web --store store --from bare");
    let shown = lab.imgtool("show --store store web");
    assert!(shown.contains("boots:       nothing"), "{shown}");
    lab.imgtool("template verify -q --store store");
    lab.imgtool("template export -q --store store bare -o out.qcow2");
    lab.qemu_img("compare out.qcow2 root.qcow2");
    for (line, name) in [
        ("run --store store web", "web"),
        ("run --store store --ephemeral web", "web"),
        ("run --store store --from bare new", "new"),
        ("launch --store store web --format qemu", "web"),
        ("launch --store store web --format libvirt", "web"),
    ] {
        let told = format!("nothing starts machine {name}");
        lab.run(&format!("imgtool {line}")).fails(
            1,
            &[
                &told,
                "no kernel",
                "EFI system partition",
                "--kernel",
                "--boot uefi",
            ],
        );
    }
    assert!(!lab.imgtool("ls --store store").contains("new"));
    // Who knows better says so.
    let told = lab.imgtool("launch --store store web --format libvirt --boot uefi");
    assert!(told.contains("<domain"), "{told}");
}

#[test]
fn a_template_whose_description_is_broken_is_removed_by_force_and_in_nobodys_way() {
    let lab = imported();
    lab.imgtool("clone web --store store --from tiny");
    let sum = lab.run("sha256sum root.qcow2").ok()[..64].to_owned();
    let description = lab.path(&format!("store/templates/{sum}.toml"));
    let short = &sum[..12];
    let remove = format!("imgtool template rm --force {short}");
    let rubbish = lab.path(&format!("store/templates/{}.kernel", "5".repeat(64)));
    for broken in [Some("created = 1\n"), Some("\u{fffd}="), None] {
        match broken {
            Some(text) => fs::write(&description, text).unwrap(),
            None => fs::remove_file(&description).unwrap(),
        }
        for line in ["template ls", "template rm tiny", "template show tiny"] {
            lab.run(&format!("imgtool {line} --store store"))
                .fails(1, &[&format!("{sum}.toml"), &remove]);
        }
        lab.run("imgtool template rm --store store --force tiny")
            .fails(1, &[short, "web", "remove those first"]);
        fs::write(&rubbish, "").unwrap();
        assert!(lab.imgtool("template gc --store store").contains("555.kernel"));
        assert!(!rubbish.exists());
    }
    lab.imgtool("rm --store store --force web");
    lab.run(&format!("{} --store store", remove.replace(short, "ffffffff")))
        .fails(1, &["there is no template"]);
    lab.run(&format!("{remove} --store store")).ok();
    assert_eq!(lab.imgtool("template ls --store store"), "");
    assert_eq!(fs::read_dir(lab.path("store/templates")).unwrap().count(), 0);
    lab.imgtool("template verify --store store");
}

#[test]
fn a_template_whose_image_is_missing_is_named_with_what_to_do() {
    let lab = imported();
    let sum = lab.run("sha256sum root.qcow2").ok()[..64].to_owned();
    let image = lab.path(&format!("store/templates/{sum}.qcow2"));
    fs::rename(&image, lab.path("kept")).unwrap();
    let told = [
        "the image of template tiny is missing",
        "bring it back",
        "template rm tiny",
    ];
    lab.run("imgtool clone web --store store --from tiny")
        .fails(1, &told);
    std::os::unix::fs::symlink("nowhere", &image).unwrap();
    for line in ["clone web --from tiny", "template ls", "template verify tiny"] {
        lab.run(&format!("imgtool {line} --store store")).fails(1, &told);
    }
    fs::remove_file(&image).unwrap();
    fs::rename(lab.path("kept"), &image).unwrap();
    lab.imgtool("clone web --store store --from tiny");
}

#[test]
fn who_has_a_disk_locked_is_stopped_or_waited_for_as_what_it_is() {
    let lab = imported();
    lab.imgtool("clone web --store store --from tiny");
    let disk = "store/instances/web.qcow2";
    let lines = ["rm web", "rename web new", "template publish web --alias new"];
    let pid_of = |file: &str| fs::read_to_string(lab.path(file)).unwrap().trim().to_owned();
    lab.run(&format!(
        "qemu-system-x86_64 -S -display none -nic none -serial none -monitor none -accel tcg -m 64 \
         -drive file={disk},format=qcow2,if=virtio -daemonize -pidfile pid"
    ))
    .ok();
    for line in lines {
        lab.run(&format!("imgtool {line} --store store"))
            .fails(1, &["qemu-system", "hint: the machine is running: stop it first"]);
    }
    let state = || json(&lab.imgtool("ls --store store --output json"))[0]["state"].clone();
    assert_eq!(state(), "running");
    let end = "kill $0; while kill -0 $0 2>/dev/null; do sleep 0.05; done";
    lab.run_words(&["sh", "-c", end, &pid_of("pid")]).ok();
    assert_eq!(state(), "stopped");
    // The command that holds it runs the others.
    for (n, line) in lines.iter().enumerate() {
        let imgtool = env!("CARGO_BIN_EXE_imgtool");
        let editor = format!("EDITOR={imgtool} {line} --store store 2>said{n}; true");
        lab.run_words(&[
            "env",
            "-u",
            "VISUAL",
            &editor,
            imgtool,
            "fs",
            "edit",
            disk,
            "/etc/os-release",
        ])
        .ok();
        let said = fs::read_to_string(lab.path(&format!("said{n}"))).unwrap();
        let told = said.contains("imgtool (process")
            && said.ends_with("hint: wait until that has ended, or stop it\n");
        assert!(told, "{line}: {said}");
    }
    lab.imgtool("rm --store store web");
}
