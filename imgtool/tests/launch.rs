//! Machines of a store that really run, and what launchers are told of them.

use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use crate::common::Lab;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Modules that the kernel needs for the disk, each after those that it needs.
const MODULES: [&str; 6] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
];

/// Finds the root by what it was told, and says what it finds there.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
# What the kernel has to say must not end up in a line of these.
echo 1 >/proc/sys/kernel/printk
for module in MODULES; do insmod /modules/$module.ko; done
for word in $(cat /proc/cmdline); do
    case $word in
        root=*) root=${word#root=} ;;
        stay) stay=yes ;;
    esac
done
if [ -n "$stay" ]; then
    stty raw -echo
    echo "guest: stays"
    echo "guest: was told$(head -c 1 | od -An -tx1)"
    sleep 1000
fi
mount -t ext4 -o rw $root /root && echo "guest: the root says $(cat /root/etc/greeting)"
echo "guest: $(nproc) processors"
tr '\0' '\n' </sys/firmware/dmi/tables/DMI | grep -o 'io.systemd.*' | sed 's/^/guest: told /'
echo hello again >/root/etc/greeting
umount /root && echo "guest: done"
poweroff -f
"#;

fn unpacked() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest-kernel")
}

/// A store with a template `tiny` that boots to its root, and a machine `web` of it.
fn lab() -> Lab {
    let lab = Lab::new();
    for directory in ["bin", "modules", "dev", "proc", "sys", "root"] {
        fs::create_dir_all(lab.path("initrd").join(directory)).unwrap();
    }
    for module in MODULES {
        let modules = unpacked().join("lib/modules");
        let file = format!("{module}.ko");
        let found = lab
            .run_words(&["find", modules.to_str().unwrap(), "-name", &file])
            .ok();
        fs::copy(found.trim(), lab.path("initrd/modules").join(file)).unwrap();
    }
    fs::copy("/bin/busybox", lab.path("initrd/bin/busybox")).expect("scripts/setup.sh test installs it");
    let init = INIT.replace("MODULES", &MODULES.join(" "));
    fs::write(lab.path("initrd/init"), init).unwrap();
    lab.run("chmod 755 initrd/init initrd/bin/busybox").ok();
    for directory in ["root/boot", "root/etc"] {
        fs::create_dir_all(lab.path(directory)).unwrap();
    }
    let pack = "cd initrd; find . | cpio -o -H newc --quiet >../root/boot/initrd.img-6";
    lab.run_words(&["sh", "-ec", pack]).ok();
    let boot = unpacked().join("boot").to_str().unwrap().to_owned();
    let kernel = lab.run_words(&["find", &boot, "-name", "vmlinuz-*"]).ok();
    fs::copy(kernel.trim(), lab.path("root/boot/vmlinuz-6")).expect("scripts/setup.sh test fetches it");
    fs::write(lab.path("root/etc/greeting"), "hello").unwrap();
    fs::write(lab.path("root/etc/os-release"), "ID=tiny\n").unwrap();
    lab.imgtool("mkfs -q --size 64M -O qcow2 root root.qcow2");
    lab.imgtool("template import -q --store store root.qcow2 --alias tiny --memory 256M --net none");
    lab.imgtool("clone -q --store store web --from tiny");
    lab
}

#[test]
fn a_disk_that_mkdisk_made_boots_by_itself() {
    let lab = lab();
    let line = "imgtool mkdisk -q -O qcow2 --size 700M root disk.qcow2 --append";
    let words: Vec<&str> = line
        .split(' ')
        .chain(["console=ttyS0 quiet root=/dev/vda2"])
        .collect();
    lab.run_words(&words).ok();
    lab.imgtool("template import -q --store store disk.qcow2 --alias disk --memory 256M --net none");
    lab.imgtool("clone -q --store store db --from disk");
    let shown = lab.imgtool("show --store store db");
    assert!(shown.contains("UEFI"), "{shown}");
    let first = lab.imgtool("run -q --store store --accel tcg db");
    assert_eq!(said(&first)[0], "the root says hello", "{first}");
    assert!(lab.path("store/instances/db.vars").exists());
    let again = lab.imgtool("run -q --store store --accel tcg db");
    assert_eq!(said(&again)[0], "the root says hello again", "{again}");
}

fn said(console: &str) -> Vec<&str> {
    let lines = console.lines().map(str::trim_end);
    lines.filter_map(|line| line.strip_prefix("guest: ")).collect()
}

#[test]
fn a_machine_runs_to_its_end_and_keeps_what_it_wrote_unless_it_is_ephemeral() {
    let lab = lab();
    let run = |words: &str| lab.run(&format!("imgtool run -q --store store --accel tcg {words}"));
    let first = ["the root says hello", "2 processors", "done"];
    let ephemeral = run("web --cpus 2 --ephemeral --wait-for ^guest:.done$").ok();
    assert_eq!(said(&ephemeral), first, "{ephemeral}");
    assert_eq!(said(&run("web --cpus 2").ok()), first);
    assert_eq!(said(&run("web").ok())[0], "the root says hello again");
    lab.qemu_img("check -q store/instances/web.qcow2");

    let other = run("other --from tiny").ok();
    assert_eq!(said(&other)[0], "the root says hello");
    assert!(lab.path("store/instances/other.qcow2").exists());
}

/// A machine that runs, and what it says.
struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut running = Self { child, lines };
        running.reads("guest: stays");
        running
    }

    fn reads(&mut self, text: &str) {
        let said = self
            .lines
            .find(|line| line.as_ref().is_ok_and(|line| line.contains(text)));
        assert!(said.is_some(), "no {text}: {:?}", self.child.wait());
    }

    fn end(mut self) -> ExitStatus {
        // Nobody is to wait for a reader.
        self.lines.by_ref().for_each(drop);
        self.child.wait().unwrap()
    }
}

#[test]
fn a_machine_has_the_terminal_and_is_nobody_elses_while_it_runs() {
    let lab = lab();
    let line = "run --store store --accel tcg web --append";
    let append = "root=/dev/vda console=ttyS0 stay";
    let mut command = lab.command("script");
    let inside = format!("{} {line} '{append}'", env!("CARGO_BIN_EXE_imgtool"));
    command.args(["-qec", &inside, "log"]);
    let mut terminal = Running::start(&mut command);

    let second = lab.run("imgtool run -q --store store --accel tcg web");
    assert_eq!(second.code(), 1);
    assert!(
        second
            .stderr()
            .contains("the image is locked: qemu-system-x86 (process "),
        "{}",
        second.stderr()
    );
    let shown = lab.imgtool("show --store store web");
    let state = "state:       the image is locked: qemu-system-x86 (process ";
    assert!(shown.contains(state), "{shown}");
    let shown: Value = serde_json::from_str(&lab.imgtool("show --store store --output json web")).unwrap();
    assert_eq!(shown["in-use"], true);
    let ephemeral = lab.run("imgtool run -q --store store --accel tcg web --ephemeral");
    assert!(ephemeral.stderr().contains("is locked"), "{}", ephemeral.stderr());

    // An interrupt is the guest's, and Ctrl-A x is QEMU's.
    let mut keys = terminal.child.stdin.take().unwrap();
    keys.write_all(b"\x03").unwrap();
    terminal.reads("guest: was told 03");
    keys.write_all(b"\x01x").unwrap();
    assert!(terminal.end().success());
    let log = fs::read_to_string(lab.path("log")).unwrap();
    assert!(log.contains("Ctrl-A x turns it off"), "{log}");

    let mut command = lab.command("imgtool");
    command.args(line.split(' ')).arg(append);
    let plain = Running::start(&mut command);
    kill_process(Pid::from_child(&plain.child), Signal::TERM).unwrap();
    assert_eq!(plain.end().code(), Some(143));
    assert_eq!(
        said(&lab.run("imgtool run -q --store store --accel tcg web").ok())[0],
        "the root says hello"
    );
}

/// Runs the machine on a terminal with a script in the place of QEMU, and then a command there. Gives what is to be read there.
fn on_terminal(lab: &Lab, qemu: &str, words: &str, then: &str) -> String {
    let program = lab.path("bin/qemu-system-x86_64");
    fs::create_dir_all(lab.path("bin")).unwrap();
    fs::write(&program, format!("#!/bin/sh\n{qemu}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/bin:/bin", lab.path("bin").display());
    let inside = format!(
        "{} run -q --store store --accel tcg web {words}; {then}",
        env!("CARGO_BIN_EXE_imgtool")
    );
    let mut command = lab.command("script");
    command.args(["-qec", &inside, "log"]).env("PATH", path);
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

#[test]
fn a_terminal_is_as_before_when_qemu_has_crashed() {
    let lab = lab();
    let shown = on_terminal(&lab, "stty raw -echo; kill -SEGV $$", "", "stty -a");
    assert!(shown.contains("QEMU failed (signal: 11"), "{shown}");
    let set: Vec<&str> = shown.split([' ', ';', '\r', '\n']).collect();
    for mode in ["icanon", "isig", "echo", "icrnl", "opost"] {
        assert!(set.contains(&mode), "{mode}: {shown}");
    }
}

#[test]
fn what_was_waited_for_ends_its_line_on_a_terminal_and_stays_as_it_is_in_a_file() {
    let lab = lab();
    // The keys that turn it off.
    let qemu = "printf 'web login: '; head -c 2 >/dev/null";
    let words = "--wait-for login: --grace 0";
    let shown = on_terminal(&lab, qemu, words, "echo prompt");
    assert_eq!(shown.replace('\r', ""), "web login: \nprompt\n");
    let shown = on_terminal(&lab, qemu, &format!("{words} >file"), "od -An -c file");
    assert!(shown.trim_end().ends_with("l   o   g   i   n   :"), "{shown}");
    assert_eq!(fs::read(lab.path("file")).unwrap(), b"web login: ");
}

#[test]
fn no_machine_outlives_a_command_that_is_killed() {
    let lab = lab();
    let mut command = lab.command("imgtool");
    command.args("run --store store --accel tcg web --append".split(' '));
    let mut running = Running::start(command.arg("root=/dev/vda console=ttyS0 stay"));
    running.child.kill().unwrap();
    // QEMU has the other end of the pipe until it ends.
    running.lines.by_ref().for_each(drop);
    running.child.wait().unwrap();
    lab.qemu_img("check -q store/instances/web.qcow2");
    let again = lab.run("imgtool run -q --store store --accel tcg web").ok();
    assert_eq!(said(&again)[0], "the root says hello", "{again}");
}

#[test]
fn what_is_in_the_way_is_one_line_and_what_to_do() {
    let lab = lab();
    let fails = |line: &str| {
        let done = lab.run(&line.replace("IMGTOOL", env!("CARGO_BIN_EXE_imgtool")));
        assert_eq!(done.code(), 1, "{line}");
        assert_eq!(done.stderr().lines().count(), 2, "{line}: {}", done.stderr());
        done.stderr()
    };
    let template = fails("imgtool run --store store tiny");
    assert!(
        template.contains("is a template") && template.contains("--from tiny"),
        "{template}"
    );
    let missing = fails("env PATH=/nowhere IMGTOOL run -q --store store --accel tcg web");
    assert!(
        missing.contains("qemu-system-x86_64 is not installed"),
        "{missing}"
    );
    assert!(missing.contains("apt install qemu-system-x86"), "{missing}");
    let ends = fails("imgtool run -q --store store --accel tcg --ephemeral web --wait-for nothing");
    assert!(ends.contains("ended before"), "{ends}");
    let expression = fails("imgtool run -q --store store web --wait-for (");
    assert!(expression.contains("no regular expression"), "{expression}");
    let files = fails("imgtool launch --store store web --format firecracker");
    assert!(files.contains("-o or --files"), "{files}");
    let network = fails("imgtool launch --store store web --format crosvm --net user -o x");
    assert!(
        network.contains("no network of its own") && !lab.path("x").exists(),
        "{network}"
    );
    let bridge = fails("imgtool run -q --store store --accel tcg web --net bridge=no-such-br");
    assert!(bridge.contains("there is no bridge \"no-such-br\""), "{bridge}");
    // What was made to be run is gone where it was not.
    for wrong in ["--net bridge=no-such-br", "--net bridge=a;b", "--memory 1"] {
        fails(&format!(
            "imgtool run -q --store store --accel tcg --from tiny new {wrong}"
        ));
        assert_eq!(
            lab.imgtool("ls --store store").matches("tiny").count(),
            1,
            "{wrong}"
        );
    }
    let large = lab.run("imgtool run -q --store store --accel tcg --from tiny new --memory 64T");
    assert_eq!(large.code(), 1, "{}", large.stderr());
    assert!(large.stderr().contains("QEMU failed"), "{}", large.stderr());
    assert!(!lab.path("store/instances/new.qcow2").exists());
    let print = fails("imgtool run --store store --from tiny new --print");
    assert!(print.contains("cannot be used with '--print'"), "{print}");
    assert!(!lab.path("store/instances/new.toml").exists());
    let files = lab.run("imgtool launch --store store web --format firecracker --net none --files missing");
    files.fails(1, &["web-vmlinux", "make the directory first"]);
    assert!(!files.stderr().contains(".imgtool-"), "{}", files.stderr());
    let launcher = fails("imgtool launch --store store web --format vmware");
    assert!(launcher.contains("there is no launcher"), "{launcher}");
}

#[test]
fn what_an_ephemeral_machine_writes_is_its_owners_alone_and_goes_though_it_is_killed() {
    let lab = lab();
    fs::create_dir(lab.path("tmp")).unwrap();
    let run = |words: &str| {
        let mut command = lab.command("imgtool");
        let line = format!("run -q --store store --accel tcg --ephemeral web {words}");
        command
            .args(line.split_whitespace())
            .env("TMPDIR", lab.path("tmp"));
        command
    };
    let set_aside = || -> Vec<PathBuf> {
        let entries = fs::read_dir(lab.path("tmp")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    let mut child = run("--wait-for never --timeout 300")
        .args(["--append", "root=/dev/vda console=ttyS0 stay"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // QEMU has opened its disk when the guest writes. Who reads on is there to the end: without, the command would end.
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines
        .find(|line| line.as_ref().unwrap().contains("guest: stays"))
        .unwrap()
        .unwrap();
    let [directory] = set_aside().try_into().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&directory), 0o700);
    assert_eq!(mode(&directory.join("disk0.qcow2")), 0o600);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(set_aside(), [directory]);
    let output = run("--wait-for never --timeout 0").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(set_aside().is_empty());
}

#[test]
fn launchers_get_what_they_take() {
    let lab = lab();
    let steps = lab.imgtool("launch --store store web --format libvirt --accel tcg -o web.xml");
    assert_eq!(
        steps,
        "virsh define --validate web.xml\nvirsh start --console web\n"
    );
    lab.run("virt-xml-validate web.xml domain").ok();
    let xml = fs::read_to_string(lab.path("web.xml")).unwrap();
    let image = lab.path("store/instances/web.qcow2");
    assert!(xml.contains(&format!("file=\"{}\"", image.display())), "{xml}");
    assert!(xml.contains("/store/templates/"), "{xml}");

    let steps = lab.imgtool("launch --store store web --format firecracker -o web.json");
    assert_eq!(steps, "firecracker --no-api --config-file web.json\n");
    let json: Value = serde_json::from_str(&fs::read_to_string(lab.path("web.json")).unwrap()).unwrap();
    assert_eq!(
        json["drives"][0]["path_on_host"],
        lab.path("web-disk0.raw").to_str().unwrap()
    );
    lab.qemu_img("compare -q -f qcow2 -F raw store/instances/web.qcow2 web-disk0.raw");
    assert!(fs::read(lab.path("web-vmlinux")).unwrap().starts_with(b"\x7fELF"));

    // The command line that is shown is one that runs.
    for (line, greeting) in [("launch --format qemu", "hello"), ("run --print", "hello again")] {
        let script = lab.imgtool(&format!("{line} --store store --accel tcg web"));
        let done = lab.run_words(&["sh", "-c", &format!("{} </dev/null", script.trim_end())]);
        assert_eq!(said(&done.ok())[0], format!("the root says {greeting}"), "{line}");
    }
}

#[test]
fn a_description_takes_the_place_of_no_machine_and_fails_before_anything_is_made() {
    let lab = lab();
    lab.imgtool("clone -q --store store db --from tiny");
    let names = |directory: &str| {
        let entries = fs::read_dir(lab.path(directory)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect::<std::collections::BTreeSet<_>>()
    };
    symlink(lab.path("store/instances/db.qcow2"), lab.path("link.xml")).unwrap();
    lab.qemu_img("create -q -f qcow2 used.xml 1M");
    let guest = lab.guest("used.xml");
    lab.run("mkfifo fifo.xml").ok();
    let before = names(".");
    let (disk, aliases) = ("store/instances/db.qcow2", "store/aliases.toml");
    let contents = [disk, aliases].map(|name| fs::read(lab.path(name)).unwrap());
    for out in [disk, aliases, "store/instances/new.xml", "link.xml"] {
        for command in [
            "launch --store store web --format libvirt --accel tcg",
            "template export --store store tiny",
        ] {
            lab.run(&format!("imgtool {command} -o {out}"))
                .fails(1, &["it is a file of the store"]);
        }
    }
    assert_eq!(
        [disk, aliases].map(|name| fs::read(lab.path(name)).unwrap()),
        contents
    );
    for (out, why) in [
        ("used.xml", "lock"),
        ("fifo.xml", "this is a FIFO"),
        ("store", "directory"),
        ("missing/web.json", "No such file or directory"),
    ] {
        lab.run(&format!(
            "imgtool launch --store store web --format firecracker --net none --files . -o {out}"
        ))
        .fails(1, &[why]);
    }
    assert_eq!(names("."), before);
    drop(guest);

    // Nobody knows the name under which it is written.
    fs::write(lab.path("victim"), "victim").unwrap();
    symlink("victim", lab.path("web.xml.partial")).unwrap();
    lab.imgtool("launch -q --store store web --format libvirt --accel tcg --credential a=b -o web.xml");
    assert_eq!(fs::read(lab.path("victim")).unwrap(), b"victim");
    let printed = lab.imgtool("launch --store store web --format libvirt --accel tcg --credential a=b -o -");
    assert_eq!(fs::read_to_string(lab.path("web.xml")).unwrap(), printed);
}

#[test]
fn a_description_replaces_what_launch_has_made_and_nothing_else() {
    let lab = lab();
    let line = "launch -q --store store web --format libvirt --accel tcg -o web.xml";
    let refused = || {
        let done = lab.run(&format!("imgtool {line}"));
        done.fails(
            1,
            &[
                "web.xml",
                "is not a description as imgtool launch has made it",
                "--force",
            ],
        );
    };
    fs::write(lab.path("web.xml"), "mine").unwrap();
    refused();
    assert_eq!(fs::read(lab.path("web.xml")).unwrap(), b"mine");
    lab.imgtool(&format!("{line} --force"));
    let made = fs::read_to_string(lab.path("web.xml")).unwrap();
    assert!(made.contains("<domain"), "{made}");
    lab.imgtool(line);
    assert_eq!(fs::read_to_string(lab.path("web.xml")).unwrap(), made);
    // What somebody has changed is theirs.
    fs::write(lab.path("web.xml"), made + "<!-- mine -->").unwrap();
    refused();
    fs::write(lab.path("web.xml"), "").unwrap();
    lab.imgtool(line);
}

#[test]
fn credentials_of_profiles_machines_and_the_command_line_reach_launchers_and_nobody_else() {
    let lab = lab();
    let mode = |path: &str| fs::metadata(lab.path(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("store/instances/web.toml") & 0o600, 0o600);
    fs::create_dir_all(lab.path("store/profiles")).unwrap();
    let profile = "[credentials]\n\"from.profile\" = \"one\"\nshared = \"lost\"\n";
    fs::write(lab.path("store/profiles/own.toml"), profile).unwrap();
    fs::write(lab.path("secret"), "two").unwrap();
    lab.imgtool("clone -q --store store db --from tiny --profile own --credential shared=@secret");
    assert_eq!(mode("store/instances/db.toml"), 0o600);
    let shown = lab.imgtool("config show --store store --expanded db");
    assert!(
        shown.contains("shared = \"two\"") && shown.contains("\"from.profile\" = \"one\""),
        "{shown}"
    );
    let printed = lab.imgtool("run --store store --accel tcg db --print --credential third=3");
    // What base64 makes of them.
    let strings = ["from.profile=b25l", "shared=dHdv", "third=Mw=="];
    let strings = strings.map(|string| format!("io.systemd.credential.binary:{string}"));
    for string in &strings {
        let option = format!("-smbios type=11,path=<(printf %s {string})");
        assert!(printed.contains(&option), "{option}: {printed}");
    }
    assert!(!printed.contains("bG9zdA"), "{printed}");
    let told = strings.map(|string| format!("told {string}"));
    // Without words of the kernel in between.
    let quiet = ["--append", "root=/dev/vda console=ttyS0 quiet"];
    lab.run_words(
        &[
            &["imgtool", "config", "set", "--store", "store", "db"],
            &quiet[..],
        ]
        .concat(),
    )
    .ok();
    let boots =
        "run -q --store store --accel tcg --ephemeral --wait-for ^guest:.done db --credential third=3";
    let booted = lab.imgtool(boots);
    assert_eq!(said(&booted)[2..5], told, "{booted}");
    let printed = lab.imgtool("run --store store --accel tcg db --print --credential third=3");
    // The command line that is shown is one that bash runs.
    fs::write(lab.path("db.sh"), printed).unwrap();
    assert_eq!(said(&lab.run("bash db.sh").ok())[2..5], told);

    lab.imgtool("config set --store store web --credential later=x");
    assert_eq!(mode("store/instances/web.toml"), 0o600);
    lab.imgtool("launch --store store web --format libvirt --accel tcg -o web.xml");
    lab.run("virt-xml-validate web.xml domain").ok();
    let xml = fs::read_to_string(lab.path("web.xml")).unwrap();
    assert!(xml.contains("io.systemd.credential.binary:later=eA=="), "{xml}");
    assert_eq!(mode("web.xml"), 0o600);

    // A template that is made of it is for anybody.
    lab.imgtool("template publish -q --store store db --alias mine");
    let template = lab.imgtool("template show --store store mine --output json");
    assert!(!template.contains("shared"), "{template}");
    for (wrong, words) in [
        ("a", "gives a credential no value"),
        ("a/b=c", "no name of a credential"),
        ("a=@none", "none: read"),
    ] {
        let done = lab.run(&format!(
            "imgtool run --store store --print web --credential {wrong}"
        ));
        assert!(
            done.code() == 1 && done.stderr().contains(words),
            "{}",
            done.stderr()
        );
    }
}

#[test]
fn a_host_is_examined() {
    let lab = Lab::new();
    let text = lab.imgtool("doctor --store store");
    assert!(text.contains("ok      emulator"), "{text}");
    let json: Value = serde_json::from_str(&lab.imgtool("doctor --store store --output json")).unwrap();
    let of = |name: &str| {
        json.as_array()
            .unwrap()
            .iter()
            .find(|check| check["name"] == name)
            .unwrap()
            .clone()
    };
    assert_eq!(of("emulator")["ok"], true);
    assert!(of("images")["found"].as_str().unwrap().contains("MiB are free"));
    let without = lab.run(&format!(
        "env PATH=/nowhere {} doctor --store store",
        env!("CARGO_BIN_EXE_imgtool")
    ));
    assert_eq!(without.code(), 1);
    assert!(
        without.stdout().contains("MISSING emulator"),
        "{}",
        without.stdout()
    );
}
