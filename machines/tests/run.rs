//! Machines that really run, without any acceleration: each boots in a few seconds.

mod common;

use std::fs;
use std::io::{self, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use block::ErrorKind;
use common::{arm_machine, kernel, machine, make_chain};
use machines::launch::{Launcher, prepare};
use machines::run::{Ended, RunOptions, WaitFor, run};
use machines::{Accel, Boot, Machine, Network};
use ops::{Cancel, Control};

/// Far more than it takes.
const LIMIT: Duration = Duration::from_secs(300);

/// Says what is in the layers of its disk, writes to it, and waits for nothing to happen.
const SCRIPT: &str = r#"
for at in 0 1 2; do echo "guest: $(dd if=/dev/vda bs=1M skip=$at count=1 2>/dev/null | head -c 3)"; done
echo "guest: $(cat /sys/class/dmi/id/product_uuid) $(nproc)"
printf written | dd of=/dev/vda conv=fsync 2>/dev/null
echo "guest: up and running"
sleep 1000
"#;

fn options(ephemeral: bool, pattern: &str) -> RunOptions {
    RunOptions {
        accel: Accel::Tcg,
        ephemeral: ephemeral.then(std::env::temp_dir),
        wait_for: Some(WaitFor::new(pattern, LIMIT, Duration::ZERO).unwrap()),
    }
}

/// What the guest said, and what became of it.
fn console(machine: &Machine, options: &RunOptions) -> (String, block::Result<Ended>) {
    let mut said = Vec::new();
    let result = run(machine, options, &mut said, &Cancel::new());
    (String::from_utf8_lossy(&said).into_owned(), result)
}

/// The lines that the guest's script wrote.
fn lines(console: &str) -> Vec<&str> {
    let lines = console.lines().map(str::trim_end);
    lines.filter_map(|line| line.strip_prefix("guest: ")).collect()
}

fn start_of(directory: &Path, image: &str) -> String {
    let convert = format!("qemu-img convert -O raw {image} read");
    common::run(directory, &convert);
    String::from_utf8(fs::read(directory.join("read")).unwrap()[..7].to_vec()).unwrap()
}

#[test]
fn a_guest_reads_its_chain_and_writes_to_the_image_unless_it_is_ephemeral() {
    let lab = tempfile::tempdir().unwrap();
    let chain = make_chain(lab.path());
    let mut machine = machine(lab.path(), SCRIPT, &chain);
    machine.disks[0].limits.requests = Some(100_000);
    machine.cpus = 2;
    machine.network = Network::User { forwards: vec![] };
    machine.credentials = [("a".parse().unwrap(), "b, c".to_owned())].into();
    let expected = format!("{} 2", machine.uuid);
    let expected = ["aaa", "bbb", "ccc", &expected, "up and running"];
    let before = fs::read(lab.path().join("top")).unwrap();

    let (said, result) = console(&machine, &options(true, "^guest: up and running"));
    result.unwrap_or_else(|error| panic!("{error}: {said}"));
    assert_eq!(lines(&said), expected, "{said}");
    assert!(
        fs::read(lab.path().join("top")).unwrap() == before,
        "nothing was written"
    );

    let (said, result) = console(&machine, &options(false, "^guest: up and running"));
    result.unwrap_or_else(|error| panic!("{error}: {said}"));
    assert_eq!(lines(&said), expected, "{said}");
    assert_eq!(start_of(lab.path(), "top"), "written");
    assert_eq!(start_of(lab.path(), "middle"), "\0\0\0\0\0\0\0");
    common::run(lab.path(), "qemu-img check -q top");
}

#[test]
fn a_guest_turns_itself_off_when_its_power_button_is_pressed() {
    let lab = tempfile::tempdir().unwrap();
    let chain = make_chain(lab.path());
    // What acpid does.
    let script = "insmod /modules/button.ko; insmod /modules/evdev.ko; echo 'guest: up'\n\
                  head -c 1 /dev/input/event0 >/dev/null\n\
                  printf pressed | dd of=/dev/vda conv=fsync 2>/dev/null; poweroff -f";
    let machine = machine(lab.path(), script, &chain);
    let options = RunOptions {
        wait_for: Some(WaitFor::new("guest: up", LIMIT, LIMIT).unwrap()),
        ..options(false, "")
    };
    let (said, result) = console(&machine, &options);
    let ended = result.unwrap_or_else(|error| panic!("{error}: {said}"));
    assert_eq!(ended, Ended::Itself);
    assert_eq!(start_of(lab.path(), "top"), "pressed");
}

#[test]
fn a_guest_that_does_not_hear_its_power_button_is_turned_off_and_that_is_told() {
    let lab = tempfile::tempdir().unwrap();
    let chain = make_chain(lab.path());
    let machine = machine(lab.path(), "echo 'guest: deaf'; sleep 1000", &chain);
    for (grace, expected) in [
        (Duration::ZERO, Ended::AtOnce),
        (Duration::from_millis(1), Ended::Ignored),
    ] {
        let options = RunOptions {
            wait_for: Some(WaitFor::new("guest: deaf", LIMIT, grace).unwrap()),
            ..options(true, "")
        };
        let (said, result) = console(&machine, &options);
        let ended = result.unwrap_or_else(|error| panic!("{error}: {said}"));
        assert_eq!(ended, expected, "{said}");
    }
}

#[test]
fn the_elf_kernel_boots_as_well_as_the_one_it_was_in() {
    let lab = tempfile::tempdir().unwrap();
    let chain = make_chain(lab.path());
    let machine = machine(lab.path(), SCRIPT, &chain);
    let needs = Launcher::Firecracker.needs(&machine);
    let prepared = prepare(&machine, needs, lab.path(), &Control::unwatched()).unwrap();
    let Boot::Direct { kernel: elf, .. } = &prepared.boot else {
        unreachable!()
    };
    assert_ne!(*elf, kernel());
    let (said, result) = console(&prepared, &options(false, "up and running"));
    result.unwrap_or_else(|error| panic!("{error}: {said}"));
    assert_eq!(lines(&said)[..3], ["aaa", "bbb", "ccc"], "{said}");
}

#[test]
fn an_end_and_a_time_before_what_is_waited_for_are_errors() {
    let lab = tempfile::tempdir().unwrap();
    let chain = make_chain(lab.path());
    let machine = machine(lab.path(), "echo 'guest: that was all'; poweroff -f", &chain);
    let (said, result) = console(&machine, &options(true, "never"));
    let error = result.unwrap_err().to_string();
    assert!(error.starts_with("the guest ended before"), "{error}: {said}");

    let soon = RunOptions {
        wait_for: Some(WaitFor::new("never", Duration::from_millis(1), LIMIT).unwrap()),
        ..options(true, "")
    };
    let (_, result) = console(&machine, &soon);
    assert!(result.unwrap_err().to_string().contains("was not read in 1ms"));

    let cancel = Cancel::new();
    cancel.cancel();
    let result = run(&machine, &options(true, "never"), &mut Vec::new(), &cancel);
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Interrupted);
}

#[test]
fn a_guest_whose_kernel_panics_is_not_waited_for() {
    let lab = tempfile::tempdir().unwrap();
    let chain = make_chain(lab.path());
    let machine = machine(
        lab.path(),
        "echo 0 >/proc/sys/kernel/panic; echo c >/proc/sysrq-trigger; sleep 1000",
        &chain,
    );
    let (said, result) = console(&machine, &options(true, "never"));
    let error = result.unwrap_err().to_string();
    assert!(
        error.starts_with("the guest's kernel panicked")
            && error.contains("Kernel panic - not syncing: sysrq"),
        "{error}: {said}"
    );
}

#[test]
fn what_is_in_use_is_said_before_anything_runs() {
    let lab = tempfile::tempdir().unwrap();
    let chain = make_chain(lab.path());
    let mut machine = machine(lab.path(), "poweroff -f", &chain);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    machine.network = Network::User {
        forwards: vec![format!("{port}:22").parse().unwrap()],
    };
    let (_, result) = console(&machine, &options(true, "x"));
    let error = result.unwrap_err();
    assert!(
        error.to_string().contains(&format!("port {port} of 127.0.0.1")),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("the guest's 22"), "{error:?}");

    machine.network = Network::None;
    let mut holder = Command::new("qemu-storage-daemon");
    holder.args([
        "--blockdev",
        "driver=qcow2,node-name=top,file.driver=file,file.filename=top",
        "--nbd-server",
        "addr.type=unix,addr.path=socket",
        "--export",
        "nbd,id=top,node-name=top,writable=on",
        "--pidfile",
        "running",
    ]);
    let mut holder = holder
        .current_dir(lab.path())
        .spawn()
        .expect("scripts/setup.sh test installs it");
    while !lab.path().join("running").exists() {
        assert!(holder.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(10));
    }
    let (_, result) = console(&machine, &options(false, "x"));
    holder.kill().unwrap();
    holder.wait().unwrap();
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    assert!(error.to_string().contains("qemu-storage-da"), "{error}");

    fs::remove_file(lab.path().join("middle")).unwrap();
    let (_, result) = console(&machine, &options(false, "x"));
    assert_eq!(result.unwrap_err().path(), Some(&*lab.path().join("middle")));
}

/// Keeps what the guest says, and looks at what the host's processes show of a machine when it has said `at`.
struct Onlooker<'a> {
    at: &'a str,
    machine: &'a Machine,
    said: Vec<u8>,
    /// The command lines that have to do with the machine.
    shown: Vec<String>,
}

impl Write for Onlooker<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.said.extend(bytes);
        if self.shown.is_empty() && String::from_utf8_lossy(&self.said).contains(self.at) {
            let uuid = self.machine.uuid.to_string();
            let processes = fs::read_dir("/proc")?.map(|entry| entry.unwrap().path().join("cmdline"));
            let lines = processes.filter_map(|path| fs::read(path).ok());
            let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
            self.shown = lines.filter(|line| line.contains(&uuid)).collect();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_guest_is_told_its_credentials_and_the_command_line_does_not_show_them() {
    let lab = tempfile::tempdir().unwrap();
    let chain = make_chain(lab.path());
    let script = "tr '\\0' '\\n' </sys/firmware/dmi/tables/DMI | grep -o 'io.systemd.*' | sed 's/^/guest: /'\n\
                  echo 'guest: up'; sleep 1000";
    // It has the same initrd, and does not look at it.
    let arm = arm_machine(lab.path(), &chain);
    let intel = machine(lab.path(), script, &chain);
    let mut firmware = intel.clone();
    firmware.boot = Boot::Uefi {
        firmware: None,
        variables: lab.path().join("variables"),
    };
    // What the guest says when it has all, and how it says what it was told.
    let strings = "guest: io.systemd.credential.binary:empty=\r\n\
                   guest: io.systemd.credential.binary:password=c2VjcmV0LCBpbmRlZWQK\r\n";
    for (mut machine, at, told) in [
        (intel, "guest: up", Some(strings)),
        (firmware, "BdsDxe", None),
        (arm, "secret, indeed", Some("secret, indeed")),
    ] {
        for (name, value) in [("password", "secret, indeed\n"), ("empty", "")] {
            machine
                .credentials
                .insert(name.parse().unwrap(), value.to_owned());
        }
        let mut onlooker = Onlooker {
            at,
            machine: &machine,
            said: Vec::new(),
            shown: Vec::new(),
        };
        let at_end = format!("{at}|^guest: up");
        run(&machine, &options(true, &at_end), &mut onlooker, &Cancel::new()).unwrap();
        let said = String::from_utf8_lossy(&onlooker.said);
        assert!(told.is_none_or(|told| said.contains(told)), "{said}");
        assert!(!onlooker.shown.is_empty(), "{at}");
        for line in &onlooker.shown {
            assert!(!line.contains("secret, ") && !line.contains("c2Vjc"), "{line}");
        }
    }
}

#[test]
fn firmware_gets_variables_of_the_machines_own() {
    let lab = tempfile::tempdir().unwrap();
    let chain = make_chain(lab.path());
    let mut machine = machine(lab.path(), "", &chain);
    let variables = lab.path().join("variables");
    machine.boot = Boot::Uefi {
        firmware: None,
        variables: variables.clone(),
    };
    // It finds nothing to boot, and says so.
    let (said, result) = console(&machine, &options(true, "BdsDxe"));
    result.unwrap_or_else(|error| panic!("{error}: {said}"));
    assert!(!variables.exists(), "they were thrown away");

    let (said, result) = console(&machine, &options(false, "BdsDxe"));
    result.unwrap_or_else(|error| panic!("{error}: {said}"));
    let template = fs::read("/usr/share/OVMF/OVMF_VARS_4M.fd").unwrap();
    let written = fs::read(&variables).unwrap();
    assert!(written.len() == template.len() && written != template);
}

#[test]
fn machines_of_another_processor_run_too() {
    let lab = tempfile::tempdir().unwrap();
    let chain = make_chain(lab.path());
    let mut machine = arm_machine(lab.path(), &chain);
    machine.network = Network::User { forwards: vec![] };
    machine.credentials = [("a".parse().unwrap(), "b".to_owned())].into();
    machine.disks[0].limits.bytes = Some(1 << 20);
    let (said, result) = console(&machine, &options(false, "^guest: up$"));
    result.unwrap_or_else(|error| panic!("{error}: {said}"));

    machine.boot = Boot::Uefi {
        firmware: None,
        variables: lab.path().join("variables"),
    };
    let (said, result) = console(&machine, &options(false, "BdsDxe"));
    result.unwrap_or_else(|error| panic!("{error}: {said}"));
}
