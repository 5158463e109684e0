//! Machines for tests: all that is hard to write in a name is in theirs.

use uuid::Uuid;

use crate::credential::Credentials;
use crate::machine::{Architecture, Boot, Disk, Layer, Limits, Machine, Network};

/// A kernel, a raw disk, no network.
pub(crate) fn machine() -> Machine {
    Machine {
        name: "web-1".into(),
        uuid: Uuid::from_u128(0x6a1e_5bd0_0000_4000_8000_0123_4567_89ab),
        architecture: Architecture::X86_64,
        cpus: 2,
        memory: 512 << 20,
        boot: Boot::Direct {
            kernel: "/k, \"1\"/vmlinuz".into(),
            initrd: Some("/k, \"1\"/initrd <&>".into()),
            command_line: "root=LABEL=root console=ttyS0".into(),
        },
        disks: vec![Disk {
            chain: vec![layer("/it's/a disk, grüße.img", "raw")],
            read_only: false,
            limits: Limits::default(),
        }],
        network: Network::None,
        mac: [0x52, 0x54, 0, 0x12, 0xab, 0xcd],
        credentials: Credentials::new(),
    }
}

/// One of each name and value.
pub(crate) fn credentials<const N: usize>(each: [(&str, &str); N]) -> Credentials {
    each.map(|(name, value)| (name.parse().unwrap(), value.to_owned()))
        .into()
}

/// On the bridge `br0`.
pub(crate) fn bridged() -> Machine {
    Machine {
        network: Network::Bridge { name: "br0".into() },
        ..machine()
    }
}

/// Its disk is a chain of three.
pub(crate) fn chained() -> Machine {
    let mut machine = machine();
    machine.disks[0].chain = vec![
        layer("/it's/a disk, grüße.qcow2", "qcow2"),
        layer("/<base> & \"more\".qcow2", "qcow2"),
        layer("/base.img", "raw"),
    ];
    machine
}

fn layer(path: &str, format: &str) -> Layer {
    Layer {
        path: path.into(),
        format: format.into(),
    }
}
