//! The network device of the host that most launchers want, where QEMU and libvirt make one by themselves.

use super::{Description, shell, words::Word};
use crate::machine::{Machine, Network};

/// Its name, which follows from the machine's Ethernet address: at most 15 bytes, as the kernel wants.
pub(super) fn name(machine: &Machine) -> String {
    let [_, _, bytes @ ..] = machine.mac;
    format!("tap{}", bytes.map(|byte| format!("{byte:02x}")).concat())
}

/// How it is made and put on the bridge.
pub(super) fn steps(machine: &Machine, bridge: &str) -> Vec<String> {
    let (tap, bridge) = (name(machine), super::quoted(bridge));
    vec![
        format!("sudo ip tuntap add {tap} mode tap user \"$USER\" vnet_hdr"),
        format!("sudo ip link set {tap} master {bridge} up"),
    ]
}

/// A script of a launcher's command line, with what has to be done before it is run.
pub(super) fn script(machine: &Machine, arguments: Vec<String>) -> Description {
    let line: Vec<_> = arguments.into_iter().map(Word::from).collect();
    let mut steps = match &machine.network {
        Network::Bridge { name } => steps(machine, name),
        _ => Vec::new(),
    };
    steps.push("sh FILE".to_owned());
    Description {
        text: shell::command_line(&line),
        steps,
    }
}
