//! QEMU: a command line.
//!
//! Nothing is left to QEMU's defaults: no devices but those that are named here, every image with its format and all
//! that it is based on, so that nothing is guessed from what a guest could have written.

use std::fmt::Write as _;

use block::{Error, Result};
use serde_json::json;

use super::{Description, Launcher, active, credentials, mac, mebibytes, shell, text, words::Word};
use crate::accel::Accel;
use crate::machine::{Architecture, Boot, Disk, Forward, Machine, Network};

const QEMU: Launcher = Launcher::Qemu;

/// The program that emulates an architecture.
pub fn program(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::X86_64 => "qemu-system-x86_64",
        Architecture::Aarch64 => "qemu-system-aarch64",
    }
}

/// The Debian package of that program.
pub fn package(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::X86_64 => "qemu-system-x86",
        Architecture::Aarch64 => "qemu-system-arm",
    }
}

pub(super) fn describe(machine: &Machine, accel: Accel) -> Result<Description> {
    let line = command_line(machine, accel)?;
    let needs_pipes = line.iter().any(Word::names_secret);
    let shell = if needs_pipes { "bash" } else { "sh" };
    Ok(Description {
        text: shell::command_line(&line),
        steps: vec![format!("{shell} FILE")],
    })
}

/// The program and its options.
///
/// # Errors
/// `InvalidInput` for UEFI without firmware, which [`firmware::resolve`](super::firmware::resolve) finds, and for names
/// that QEMU cannot be told.
pub(crate) fn command_line(machine: &Machine, accel: Accel) -> Result<Vec<Word>> {
    let mut line = vec![Word::from(program(machine.architecture).to_owned())];
    line.extend(arguments(machine, accel)?);
    line.extend(console().map(|word| Word::from(word.to_owned())));
    Ok(line)
}

/// The options for a console on the terminal, shared with QEMU's monitor: Ctrl-A c goes from one to the other, and
/// Ctrl-A x ends it all.
fn console() -> [&'static str; 2] {
    ["-serial", "mon:stdio"]
}

/// All options but those of the console.
fn arguments(machine: &Machine, accel: Accel) -> Result<Vec<Word>> {
    let mut options = Options::default();
    options.flag("-nodefaults");
    options.flag("-no-user-config");
    options.add("-name", escaped(&machine.name));
    options.add("-uuid", machine.uuid.to_string());
    boot(&mut options, machine)?;
    options.add("-accel", accel.name());
    options.add("-cpu", accel.processor());
    options.add("-smp", machine.cpus.to_string());
    options.add("-m", format!("{}M", mebibytes(machine)));
    options.add("-display", "none");
    for (number, each) in machine.disks.iter().enumerate() {
        disk(&mut options, number, each)?;
    }
    network(&mut options, machine);
    options.add("-device", "virtio-rng-pci");
    Ok(options.0)
}

#[derive(Default)]
struct Options(Vec<Word>);

impl Options {
    fn flag(&mut self, name: &str) {
        self.0.push(name.to_owned().into());
    }

    fn add(&mut self, name: &str, value: impl Into<String>) {
        self.flag(name);
        self.0.push(value.into().into());
    }

    /// An option that is told the name of a file, which has a secret in it.
    fn add_secret(&mut self, name: &str, value: &str, secret: String) {
        self.flag(name);
        self.0.push(Word::naming_secret(value, secret));
    }
}

/// A value among others: commas are doubled.
fn escaped(value: &str) -> String {
    value.replace(',', ",,")
}

fn boot(options: &mut Options, machine: &Machine) -> Result<()> {
    let kind = match machine.architecture {
        Architecture::X86_64 => "q35",
        Architecture::Aarch64 => "virt,gic-version=max",
    };
    let direct = matches!(machine.boot, Boot::Direct { .. });
    // Where an Arm machine has no firmware there are no SMBIOS tables either.
    let smbios = !direct || machine.architecture == Architecture::X86_64;
    if smbios {
        for string in credentials::oem_strings(machine)? {
            options.add_secret("-smbios", "type=11,path=", string);
        }
    } else {
        for (name, value) in credentials::firmware_files(machine)? {
            options.add_secret("-fw_cfg", &format!("name={name},file="), value);
        }
    }
    match &machine.boot {
        Boot::Direct {
            kernel,
            initrd,
            command_line,
        } => {
            options.add("-machine", kind);
            options.add("-kernel", text(kernel)?);
            if let Some(initrd) = initrd {
                options.add("-initrd", text(initrd)?);
            }
            options.add("-append", command_line);
        }
        Boot::Uefi {
            firmware: Some(code),
            variables,
        } => {
            let (code, variables) = (escaped(text(code)?), escaped(text(variables)?));
            let node = "driver=raw,file.driver=file";
            options.add(
                "-blockdev",
                format!("{node},node-name=firmware,read-only=on,file.read-only=on,file.filename={code}"),
            );
            options.add(
                "-blockdev",
                format!("{node},node-name=variables,file.filename={variables}"),
            );
            options.add("-machine", format!("{kind},pflash0=firmware,pflash1=variables"));
        }
        Boot::Uefi { firmware: None, .. } => {
            return Err(QEMU.cannot("has to be told which firmware", "set the machine's firmware"));
        }
    }
    Ok(())
}

/// The nodes of a chain from the bottom up, limits on top of them, and the device.
fn disk(options: &mut Options, number: usize, disk: &Disk) -> Result<()> {
    active(disk)?;
    let mut backing: Option<String> = None;
    for (depth, layer) in disk.chain.iter().enumerate().rev() {
        if !["raw", "qcow2"].contains(&layer.format.as_str()) {
            let message = format!("{} is no format of a disk's image", block::escape(&layer.format));
            return Err(Error::invalid(message).with_path(&layer.path));
        }
        let name = node_name(number, depth);
        let mut node = format!("driver={},node-name={name}", layer.format);
        if depth > 0 || disk.read_only {
            node.push_str(",read-only=on,file.read-only=on");
        } else {
            // What the guest gives up is given back to the host.
            node.push_str(",discard=unmap,file.discard=unmap");
        }
        if let Some(backing) = backing {
            let _ = write!(node, ",backing={backing}");
        }
        let path = escaped(text(&layer.path)?);
        let _ = write!(node, ",file.driver=file,file.filename={path}");
        options.add("-blockdev", node);
        backing = Some(name);
    }
    let mut drive = node_name(number, 0);
    if !disk.limits.is_empty() {
        let group = format!("limits{number}");
        let limits = json!({ "bps-total": disk.limits.bytes, "iops-total": disk.limits.requests });
        let limits: serde_json::Map<_, _> = limits
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, limit)| !limit.is_null())
            .map(|(name, limit)| (name.clone(), limit.clone()))
            .collect();
        let object = json!({ "qom-type": "throttle-group", "id": group, "limits": limits });
        options.add("-object", object.to_string());
        let limited = format!("limited{number}");
        let read_only = if disk.read_only {
            "read-only=on,"
        } else {
            "discard=unmap,"
        };
        options.add(
            "-blockdev",
            format!("driver=throttle,{read_only}node-name={limited},throttle-group={group},file={drive}"),
        );
        drive = limited;
    }
    // With firmware, the first is the one that is booted.
    let index = number + 1;
    options.add(
        "-device",
        format!("virtio-blk-pci,drive={drive},bootindex={index}"),
    );
    Ok(())
}

/// The name of a layer's node: `disk0`, and `disk0-1` below it.
fn node_name(disk: usize, depth: usize) -> String {
    match depth {
        0 => format!("disk{disk}"),
        _ => format!("disk{disk}-{depth}"),
    }
}

fn network(options: &mut Options, machine: &Machine) {
    match &machine.network {
        Network::None => {}
        Network::User { forwards } => {
            let words = user_network(machine, forwards);
            options.0.extend(words.map(Word::from));
        }
        Network::Bridge { name } => {
            options.add("-netdev", format!("bridge,id=net0,br={}", escaped(name)));
            options.add("-device", network_card(machine));
        }
    }
}

/// The options for a network of QEMU's own.
pub(super) fn user_network(machine: &Machine, forwards: &[Forward]) -> [String; 4] {
    let each = forwards.iter();
    let each = each.map(|f| format!(",hostfwd=tcp:{}:{}-:{}", f.address, f.host, f.guest));
    let backend = format!("user,id=net0{}", each.collect::<String>());
    [
        "-netdev".to_owned(),
        backend,
        "-device".to_owned(),
        network_card(machine),
    ]
}

/// No machine boots from the network, and the program for that may not be installed.
fn network_card(machine: &Machine) -> String {
    format!("virtio-net-pci,netdev=net0,mac={},romfile=", mac(machine))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bridged, chained, credentials, machine};

    #[test]
    fn the_command_line_says_all_of_the_machine() {
        let mut machine = chained();
        machine.disks[0].limits.requests = Some(1000);
        machine.network = Network::User {
            forwards: vec!["2222:22".parse().unwrap(), "0.0.0.0:80:8080".parse().unwrap()],
        };
        machine.credentials = credentials([("a", "foo")]);
        let expected = r#"qemu-system-x86_64 \
  -nodefaults \
  -no-user-config \
  -name web-1 \
  -uuid 6a1e5bd0-0000-4000-8000-0123456789ab \
  -smbios type=11,path=<(printf %s io.systemd.credential.binary:a=Zm9v) \
  -machine q35 \
  -kernel '/k, "1"/vmlinuz' \
  -initrd '/k, "1"/initrd <&>' \
  -append 'root=LABEL=root console=ttyS0' \
  -accel kvm \
  -cpu host \
  -smp 2 \
  -m 512M \
  -display none \
  -blockdev driver=raw,node-name=disk0-2,read-only=on,file.read-only=on,file.driver=file,file.filename=/base.img \
  -blockdev 'driver=qcow2,node-name=disk0-1,read-only=on,file.read-only=on,backing=disk0-2,file.driver=file,file.filename=/<base> & "more".qcow2' \
  -blockdev 'driver=qcow2,node-name=disk0,discard=unmap,file.discard=unmap,backing=disk0-1,file.driver=file,file.filename=/it'\''s/a disk,, grüße.qcow2' \
  -object '{"qom-type":"throttle-group","id":"limits0","limits":{"iops-total":1000}}' \
  -blockdev driver=throttle,discard=unmap,node-name=limited0,throttle-group=limits0,file=disk0 \
  -device virtio-blk-pci,drive=limited0,bootindex=1 \
  -netdev user,id=net0,hostfwd=tcp:127.0.0.1:2222-:22,hostfwd=tcp:0.0.0.0:80-:8080 \
  -device virtio-net-pci,netdev=net0,mac=52:54:00:12:ab:cd,romfile= \
  -device virtio-rng-pci \
  -serial mon:stdio
"#;
        assert_eq!(describe(&machine, Accel::Kvm).unwrap().text, expected);
    }

    #[test]
    fn firmware_has_its_variables_in_flash() {
        let mut machine = bridged();
        machine.boot = Boot::Uefi {
            firmware: Some("/c,1".into()),
            variables: "/v".into(),
        };
        let text = describe(&machine, Accel::Tcg).unwrap().text;
        for part in [
            "driver=raw,file.driver=file,node-name=firmware,read-only=on,file.read-only=on,file.filename=/c,,1",
            "driver=raw,file.driver=file,node-name=variables,file.filename=/v",
            "-machine q35,pflash0=firmware,pflash1=variables",
            "-netdev bridge,id=net0,br=br0",
            "-accel tcg \\\n  -cpu max",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn the_shell_that_takes_it_is_said_and_what_a_machine_without_smbios_has_instead() {
        let mut machine = machine();
        assert_eq!(describe(&machine, Accel::Tcg).unwrap().steps, ["sh FILE"]);
        machine.architecture = Architecture::Aarch64;
        machine.credentials = credentials([("a", "it's")]);
        let description = describe(&machine, Accel::Tcg).unwrap();
        assert_eq!(description.steps, ["bash FILE"]);
        let option = r"-fw_cfg name=opt/io.systemd.credentials/a,file=<(printf %s 'it'\''s')";
        assert!(description.text.contains(option), "{}", description.text);
        assert!(
            !description.text.contains("set_credential"),
            "{}",
            description.text
        );
    }

    #[test]
    fn a_format_that_is_none_is_refused() {
        let mut machine = machine();
        machine.disks[0].chain[0].format = "raw,file.locking=off".into();
        assert!(describe(&machine, Accel::Tcg).is_err());
    }
}
