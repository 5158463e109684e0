//! libvirt takes the XML as it is: its daemon, run for this test alone, defines machines, starts them, looks at their disks,
//! takes a snapshot, and lets them go.

mod common;

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use common::libvirt::{Libvirt, eventually};
use common::{arm_machine, machine, make_chain};
use machines::launch::Launcher;
use machines::{Accel, Boot, Machine, Network};

/// Writes the XML of a machine, which the schemas must allow.
fn describe(libvirt: &Libvirt, machine: &Machine) {
    let description = Launcher::Libvirt.describe(machine, Accel::Tcg).unwrap();
    fs::write(libvirt.lab().join("domain.xml"), &description.text).unwrap();
    libvirt.give();
    common::run(&libvirt.lab(), "virt-xml-validate domain.xml domain");
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
    describe(&libvirt, &machine);

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
        describe(&libvirt, &machine);
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
        describe(&libvirt, &machine);
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
    describe(&libvirt, &machine);
    // This libvirt and this QEMU start none without firmware: see docs/launch.md.
    libvirt.virsh("define --validate domain.xml");
    machine.credentials = [("a".parse().unwrap(), "b".to_owned())].into();
    machine.boot = Boot::Uefi {
        firmware: Some("/usr/share/AAVMF/AAVMF_CODE.fd".into()),
        variables: libvirt.lab().join("variables"),
    };
    describe(&libvirt, &machine);
    libvirt.virsh("define --validate domain.xml");
    libvirt.virsh("start web-1");
    assert_eq!(libvirt.virsh("domstate web-1").trim(), "running");
    libvirt.virsh("destroy web-1");
    libvirt.virsh("undefine web-1 --nvram");
}
