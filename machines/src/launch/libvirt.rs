//! libvirt: a domain's XML.
//!
//! The chain of a disk is given whole, so that libvirt looks for nothing by itself and a backing file's format is never
//! guessed. A network that forwards ports is given as QEMU's options: libvirt's own way to say it wants passt, which libvirt 9.0
//! of Debian 12 does not know.

use block::Result;

use super::{Description, Launcher, credentials, mac, qemu, text, xml::Xml};
use crate::accel::Accel;
use crate::launch::firmware;
use crate::machine::{Architecture, Boot, Disk, Forward, Layer, Limits, Machine, Network};

/// Of the elements with QEMU's options.
const QEMU_NAMESPACE: &str = "http://libvirt.org/schemas/domain/qemu/1.0";

const LIBVIRT: Launcher = Launcher::Libvirt;

/// The letters of virtual disks, `vda` to `vdz`.
const LETTERS: std::ops::RangeInclusive<u8> = b'a'..=b'z';

pub(super) fn describe(machine: &Machine, accel: Accel) -> Result<Description> {
    let kind = match accel {
        Accel::Kvm => "kvm",
        Accel::Tcg => "qemu",
    };
    let mut xml = Xml::new();
    let mut attributes = vec![("type", kind)];
    if forwards(machine).is_some() {
        attributes.push(("xmlns:qemu", QEMU_NAMESPACE));
    }
    xml.element("domain", &attributes, |xml| domain(xml, machine, accel))?;
    Ok(Description {
        text: xml.finish()?,
        steps: vec![
            "virsh define --validate FILE".to_owned(),
            format!("virsh start --console {}", machine.name),
        ],
    })
}

fn domain(xml: &mut Xml, machine: &Machine, accel: Accel) -> Result<()> {
    xml.leaf("name", &[], &machine.name);
    xml.leaf("uuid", &[], &machine.uuid.to_string());
    xml.leaf("memory", &[("unit", "KiB")], &(machine.memory >> 10).to_string());
    xml.leaf("vcpu", &[], &machine.cpus.to_string());
    let uefi = matches!(machine.boot, Boot::Uefi { .. });
    // Where an Arm machine has no firmware there are no SMBIOS and ACPI tables either.
    let tables = uefi || machine.architecture == Architecture::X86_64;
    let strings = if tables {
        credentials::oem_strings(machine)?
    } else {
        Vec::new()
    };
    if !strings.is_empty() {
        xml.element("sysinfo", &[("type", "smbios")], |xml| {
            xml.element("oemStrings", &[], |xml| {
                for string in &strings {
                    xml.leaf("entry", &[], string);
                }
                Ok(())
            })
        })?;
    }
    let automatic = matches!(&machine.boot, Boot::Uefi { firmware: None, .. });
    let attributes: &[_] = if automatic { &[("firmware", "efi")] } else { &[] };
    xml.element("os", attributes, |xml| {
        let kind = match machine.architecture {
            Architecture::X86_64 => "q35",
            Architecture::Aarch64 => "virt",
        };
        let arch = machine.architecture.name();
        xml.leaf("type", &[("arch", arch), ("machine", kind)], "hvm");
        boot(xml, machine, tables)?;
        if !strings.is_empty() {
            xml.empty("smbios", &[("mode", "sysinfo")]);
        }
        Ok(())
    })?;
    if tables {
        // Without it libvirt before 9.2 starts QEMU with an option that QEMU 9 and later no longer have.
        xml.element("features", &[], |xml| {
            xml.empty("acpi", &[]);
            Ok(())
        })?;
    }
    let processor = match accel {
        Accel::Kvm => "host-passthrough",
        Accel::Tcg => "maximum",
    };
    xml.empty("cpu", &[("mode", processor)]);
    xml.empty("clock", &[("offset", "utc")]);
    xml.element("devices", &[], |xml| devices(xml, machine))?;
    match forwards(machine) {
        Some(forwards) => xml.element("qemu:commandline", &[], |xml| {
            let [netdev, backend, device, card] = qemu::user_network(machine, forwards);
            // Beyond those that libvirt takes for the devices that it knows, which QEMU makes later.
            let card = format!("{card},bus=pcie.0,addr=0x10");
            for argument in [netdev, backend, device, card] {
                xml.empty("qemu:arg", &[("value", &argument)]);
            }
            Ok(())
        }),
        None => Ok(()),
    }
}

/// Ports that are forwarded.
fn forwards(machine: &Machine) -> Option<&[Forward]> {
    match &machine.network {
        Network::User { forwards } if !forwards.is_empty() => Some(forwards),
        _ => None,
    }
}

fn boot(xml: &mut Xml, machine: &Machine, tables: bool) -> Result<()> {
    match &machine.boot {
        Boot::Direct {
            kernel,
            initrd,
            command_line,
        } => {
            xml.leaf("kernel", &[], text(kernel)?);
            if let Some(initrd) = initrd {
                xml.leaf("initrd", &[], text(initrd)?);
            }
            let command_line = if tables {
                command_line.clone()
            } else {
                credentials::on_command_line(command_line, machine)?
            };
            xml.leaf("cmdline", &[], &command_line);
        }
        Boot::Uefi { firmware, variables } => {
            let variables = text(variables)?;
            if let Some(code) = firmware {
                let template = firmware::variables_template(code);
                xml.leaf("loader", &[("readonly", "yes"), ("type", "pflash")], text(code)?);
                xml.leaf("nvram", &[("template", text(&template)?)], variables);
            } else {
                xml.leaf("nvram", &[], variables);
            }
        }
    }
    Ok(())
}

fn devices(xml: &mut Xml, machine: &Machine) -> Result<()> {
    if machine.disks.len() > LETTERS.count() {
        return Err(LIBVIRT.cannot("is given 26 disks at most here", "leave some out"));
    }
    for (letter, each) in LETTERS.zip(&machine.disks) {
        xml.element("disk", &[("type", "file"), ("device", "disk")], |xml| {
            disk(xml, each, &format!("vd{}", char::from(letter)))
        })?;
    }
    network(xml, machine)?;
    xml.element("serial", &[("type", "pty")], |xml| {
        xml.empty("target", &[("port", "0")]);
        Ok(())
    })?;
    xml.element("console", &[("type", "pty")], |xml| {
        xml.empty("target", &[("type", "serial"), ("port", "0")]);
        Ok(())
    })?;
    xml.element("rng", &[("model", "virtio")], |xml| {
        xml.leaf("backend", &[("model", "random")], "/dev/urandom");
        Ok(())
    })
}

fn disk(xml: &mut Xml, disk: &Disk, target: &str) -> Result<()> {
    let path = text(super::active(disk)?)?;
    let format = disk.chain[0].format.as_str();
    xml.empty(
        "driver",
        &[("name", "qemu"), ("type", format), ("discard", "unmap")],
    );
    xml.empty("source", &[("file", path)]);
    backing_store(xml, &disk.chain[1..])?;
    xml.empty("target", &[("dev", target), ("bus", "virtio")]);
    let Limits { bytes, requests } = disk.limits;
    if !disk.limits.is_empty() {
        xml.element("iotune", &[], |xml| {
            if let Some(bytes) = bytes {
                xml.leaf("total_bytes_sec", &[], &bytes.to_string());
            }
            if let Some(requests) = requests {
                xml.leaf("total_iops_sec", &[], &requests.to_string());
            }
            Ok(())
        })?;
    }
    if disk.read_only {
        xml.empty("readonly", &[]);
    }
    Ok(())
}

/// What an image is based on, each inside the one before. An empty element ends the chain.
fn backing_store(xml: &mut Xml, layers: &[Layer]) -> Result<()> {
    let Some((layer, below)) = layers.split_first() else {
        xml.empty("backingStore", &[]);
        return Ok(());
    };
    let path = text(&layer.path)?;
    xml.element("backingStore", &[("type", "file")], |xml| {
        xml.empty("format", &[("type", &layer.format)]);
        xml.empty("source", &[("file", path)]);
        backing_store(xml, below)
    })
}

fn network(xml: &mut Xml, machine: &Machine) -> Result<()> {
    let kind = match &machine.network {
        Network::Bridge { .. } => "bridge",
        Network::User { forwards } if forwards.is_empty() => "user",
        Network::User { .. } | Network::None => return Ok(()),
    };
    xml.element("interface", &[("type", kind)], |xml| {
        xml.empty("mac", &[("address", &mac(machine))]);
        if let Network::Bridge { name } = &machine.network {
            xml.empty("source", &[("bridge", name)]);
        }
        xml.empty("model", &[("type", "virtio")]);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{chained, credentials, machine};

    #[test]
    fn the_chain_of_a_disk_is_given_whole() {
        let mut machine = chained();
        machine.disks[0].limits.bytes = Some(50 << 20);
        let text = describe(&machine, Accel::Kvm).unwrap().text;
        let expected = r#"
    <disk type="file" device="disk">
      <driver name="qemu" type="qcow2" discard="unmap"/>
      <source file="/it's/a disk, grüße.qcow2"/>
      <backingStore type="file">
        <format type="qcow2"/>
        <source file="/&lt;base&gt; &amp; &quot;more&quot;.qcow2"/>
        <backingStore type="file">
          <format type="raw"/>
          <source file="/base.img"/>
          <backingStore/>
        </backingStore>
      </backingStore>
      <target dev="vda" bus="virtio"/>
      <iotune>
        <total_bytes_sec>52428800</total_bytes_sec>
      </iotune>
    </disk>
"#;
        assert!(text.contains(expected), "{text}");
        assert!(
            text.starts_with("<domain type=\"kvm\">\n  <name>web-1</name>"),
            "{text}"
        );
        assert!(
            text.contains("<acpi/>") && text.contains("host-passthrough"),
            "{text}"
        );
    }

    #[test]
    fn an_arm_machine_without_firmware_has_no_tables() {
        let mut machine = machine();
        machine.architecture = Architecture::Aarch64;
        machine.credentials = credentials([("a", "foo")]);
        let text = describe(&machine, Accel::Tcg).unwrap().text;
        assert!(
            text.contains("<type arch=\"aarch64\" machine=\"virt\">"),
            "{text}"
        );
        assert!(!text.contains("acpi") && !text.contains("smbios"), "{text}");
        assert!(
            text.contains("systemd.set_credential_binary=a:Zm9v</cmdline>"),
            "{text}"
        );
    }
}
