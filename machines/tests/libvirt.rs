//! libvirt takes the XML as it is: its daemon, run for this test alone, defines machines, starts them, looks at their disks,
//! takes a snapshot, and lets them go.
//!
//! It runs as another user where the test is root's, since root's own daemon has one place for all.

mod common;

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{arm_machine, machine, make_chain};
use machines::launch::Launcher;
use machines::{Accel, Boot, Machine, Network};
use tempfile::TempDir;

/// Far more than it takes.
const LIMIT: Duration = Duration::from_secs(300);
/// Nobody.
const USER: u32 = 65534;

/// Daemons with directories of their own. Dropped, they and their machines are no more.
struct Libvirt {
    directory: TempDir,
    daemons: Vec<Child>,
}

impl Libvirt {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for below in ["run", "config/libvirt", "cache", "data", "lab"] {
            fs::create_dir_all(directory.path().join(below)).unwrap();
        }
        // No AppArmor, which is the system's.
        fs::write(
            directory.path().join("config/libvirt/qemu.conf"),
            "security_driver = \"none\"\n",
        )
        .unwrap();
        let mut libvirt = Self {
            directory,
            daemons: Vec::new(),
        };
        libvirt.give();
        for (daemon, socket) in [("virtlogd", "virtlogd-sock"), ("libvirtd", "libvirt-sock")] {
            let socket = libvirt.directory.path().join("run/libvirt").join(socket);
            let log = libvirt.directory.path().join(daemon);
            let mut command = libvirt.command(&format!("/usr/sbin/{daemon}"));
            command.stderr(fs::File::create(&log).unwrap());
            let mut child = command.spawn().expect(daemon);
            eventually(daemon, || {
                let ended = child.try_wait().unwrap();
                assert!(
                    ended.is_none(),
                    "{ended:?}: {}",
                    fs::read_to_string(&log).unwrap()
                );
                socket.exists()
            });
            libvirt.daemons.push(child);
        }
        libvirt
    }

    /// Where images are.
    fn lab(&self) -> PathBuf {
        self.directory.path().join("lab")
    }

    /// All files become those of the user.
    fn give(&self) {
        if rustix::process::geteuid().is_root() {
            let mut paths = vec![self.directory.path().to_owned()];
            while let Some(path) = paths.pop() {
                chown(&path, Some(USER), Some(USER)).unwrap();
                if path.is_dir() {
                    paths.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                }
            }
        }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = if rustix::process::geteuid().is_root() {
            let mut command = Command::new("setpriv");
            let user = USER.to_string();
            command.args(["--reuid", &user, "--regid", &user, "--clear-groups", program]);
            command
        } else {
            Command::new(program)
        };
        let at = |below: &str| self.directory.path().join(below);
        command
            .current_dir(self.lab())
            .env("HOME", self.directory.path())
            .env("XDG_RUNTIME_DIR", at("run"))
            .env("XDG_CONFIG_HOME", at("config"))
            .env("XDG_CACHE_HOME", at("cache"))
            .env("XDG_DATA_HOME", at("data"))
            .stdin(Stdio::null());
        command
    }

    fn try_virsh(&self, line: &str) -> Output {
        let mut command = self.command("virsh");
        command
            .args(["-q", "-c", "qemu:///session"])
            .args(line.split(' '));
        command.output().expect("scripts/setup.sh test installs it")
    }

    fn virsh(&self, line: &str) -> String {
        let output = self.try_virsh(line);
        assert!(output.status.success(), "virsh {line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Writes the XML of a machine, which the schemas must allow.
    fn describe(&self, machine: &Machine) {
        let description = Launcher::Libvirt.describe(machine, Accel::Tcg).unwrap();
        fs::write(self.lab().join("domain.xml"), &description.text).unwrap();
        self.give();
        common::run(&self.lab(), "virt-xml-validate domain.xml domain");
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        for machine in ["web-1", "web-2"] {
            let _ = self.try_virsh(&format!("destroy {machine}"));
        }
        for daemon in self.daemons.iter_mut().rev() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < end, "{what} does not come");
        thread::sleep(Duration::from_millis(50));
    }
}

/// The value of `name` in what virsh prints.
fn value<'a>(text: &'a str, name: &str) -> &'a str {
    let lines = text.lines().map(str::trim);
    let mut values = lines.filter_map(|line| line.strip_prefix(name));
    values
        .next()
        .unwrap_or_else(|| panic!("no {name}: {text}"))
        .trim()
}

/// The user may not come to where it is.
fn copy_kernel(lab: &Path, machine: &mut Machine) {
    let Boot::Direct { kernel, .. } = &mut machine.boot else {
        unreachable!()
    };
    let copy = lab.join("it's a <kernel> & \"more\", grüße");
    fs::copy(&*kernel, &copy).unwrap();
    *kernel = copy;
}

fn start_of(directory: &Path, image: &str) -> Vec<u8> {
    common::run(directory, &format!("qemu-img convert -U -O raw {image} read"));
    fs::read(directory.join("read")).unwrap()[..7].to_vec()
}

#[test]
fn a_machine_is_defined_started_looked_at_snapshotted_and_gone() {
    let libvirt = Libvirt::start();
    let lab = libvirt.lab();
    let chain = make_chain(&lab);
    // It comes from the lowest layer and goes to the uppermost.
    let script = "dd if=/dev/vda of=/dev/vda bs=1M skip=2 count=1 conv=fsync; sleep 1000";
    let mut machine = machine(&lab, script, &chain);
    machine.disks[0].limits.bytes = Some(100 << 20);
    machine.disks[0].limits.requests = Some(10_000);
    machine.network = Network::User { forwards: vec![] };
    machine.credentials = [("a.b".parse().unwrap(), "<&>, \"c\"".to_owned())].into();
    copy_kernel(&lab, &mut machine);
    libvirt.describe(&machine);

    libvirt.virsh("define --validate domain.xml");
    assert_eq!(libvirt.virsh("domuuid web-1").trim(), machine.uuid.to_string());
    libvirt.virsh("start web-1");
    assert_eq!(libvirt.virsh("domstate web-1").trim(), "running");
    let list = libvirt.virsh("domblklist web-1");
    assert_eq!(value(&list, "vda"), lab.join("top").to_str().unwrap());
    assert_eq!(
        value(&libvirt.virsh("domblkinfo web-1 vda"), "Capacity:"),
        "10485760"
    );
    let tune = libvirt.virsh("blkdeviotune web-1 vda");
    assert_eq!(value(&tune, "total_bytes_sec:"), "104857600");
    assert_eq!(value(&tune, "total_iops_sec :"), "10000");
    let live = libvirt.virsh("dumpxml web-1");
    for part in [
        "<backingStore type='file'",
        "middle",
        "base,",
        "io.systemd.credential.binary:a.b=PCY+LCAiYyI=",
    ] {
        assert!(live.contains(part), "{part}: {live}");
    }
    eventually("what the guest writes", || {
        let flushed = libvirt.virsh("domblkstat web-1 vda");
        value(&flushed, "vda flush_operations") != "0"
    });

    libvirt.virsh("snapshot-create-as web-1 before --disk-only --atomic");
    let list = libvirt.virsh("domblklist web-1");
    assert_eq!(value(&list, "vda"), lab.join("top.before").to_str().unwrap());
    libvirt.virsh("destroy web-1");
    libvirt.virsh("snapshot-delete web-1 before --metadata");
    libvirt.virsh("undefine web-1");
    assert_eq!(libvirt.virsh("list --all --name").trim(), "");
    assert_eq!(start_of(&lab, "top"), b"ccccccc");
    assert_eq!(start_of(&lab, "middle"), [0; 7]);
}

#[test]
fn a_machine_with_firmware_starts() {
    let libvirt = Libvirt::start();
    let lab = libvirt.lab();
    let chain = make_chain(&lab);
    let mut machine = machine(&lab, "", &chain);
    machine.name = "web-2".into();
    let variables = lab.join("variables, of its <own>");
    for firmware in [Some("/usr/share/OVMF/OVMF_CODE_4M.fd".into()), None] {
        machine.boot = Boot::Uefi {
            firmware,
            variables: variables.clone(),
        };
        libvirt.describe(&machine);
        libvirt.virsh("define --validate domain.xml");
        libvirt.virsh("start web-2");
        assert!(variables.exists());
        libvirt.virsh("destroy web-2");
        libvirt.virsh("undefine web-2 --nvram");
    }
}

#[test]
fn every_kind_of_network_is_in_the_schemas_and_ports_are_forwarded() {
    let libvirt = Libvirt::start();
    let chain = make_chain(&libvirt.lab());
    let mut machine = machine(&libvirt.lab(), "", &chain);
    copy_kernel(&libvirt.lab(), &mut machine);
    let bridge = Network::Bridge { name: "br0".into() };
    let free = || {
        TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port()
    };
    let ports = [free(), free()];
    let user = Network::User {
        forwards: ports.map(|port| format!("{port}:22").parse().unwrap()).into(),
    };
    for network in [Network::None, bridge, user] {
        machine.network = network;
        machine.disks[0].read_only ^= true;
        libvirt.describe(&machine);
        libvirt.virsh("define --validate domain.xml");
    }
    libvirt.virsh("start web-1");
    for port in ports {
        // QEMU takes it, whether the guest does or not.
        TcpStream::connect(("127.0.0.1", port)).unwrap();
    }
    libvirt.virsh("destroy web-1");
    libvirt.virsh("undefine web-1");
}

#[test]
fn a_machine_of_another_processor_starts() {
    let libvirt = Libvirt::start();
    let chain = make_chain(&libvirt.lab());
    let mut machine = arm_machine(&libvirt.lab(), &chain);
    libvirt.describe(&machine);
    // This libvirt and this QEMU start none without firmware: see docs/launch.md.
    libvirt.virsh("define --validate domain.xml");
    machine.credentials = [("a".parse().unwrap(), "b".to_owned())].into();
    machine.boot = Boot::Uefi {
        firmware: Some("/usr/share/AAVMF/AAVMF_CODE.fd".into()),
        variables: libvirt.lab().join("variables"),
    };
    libvirt.describe(&machine);
    libvirt.virsh("define --validate domain.xml");
    libvirt.virsh("start web-1");
    assert_eq!(libvirt.virsh("domstate web-1").trim(), "running");
    libvirt.virsh("destroy web-1");
    libvirt.virsh("undefine web-1 --nvram");
}
