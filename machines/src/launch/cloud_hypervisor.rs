//! Cloud Hypervisor: the `VmConfig` that `vm.create` of its API takes.

use block::Result;
use serde_json::{Value, json};

use super::firecracker::rate_limiter;
use super::{Description, Launcher, active, credentials, mac, tap, text};
use crate::machine::{Architecture, Boot, Disk, Machine, Network};

const CLOUD_HYPERVISOR: Launcher = Launcher::CloudHypervisor;

pub(super) fn describe(machine: &Machine) -> Result<Description> {
    let mut steps = Vec::new();
    // Its SMBIOS tables are for x86 only.
    let smbios = machine.architecture == Architecture::X86_64;
    let mut config = json!({
        "payload": payload(machine, !smbios)?,
        "cpus": { "boot_vcpus": machine.cpus, "max_vcpus": machine.cpus },
        "memory": { "size": machine.memory },
        "disks": machine.disks.iter().map(disk).collect::<Result<Vec<_>>>()?,
        "rng": { "src": "/dev/urandom" },
        "serial": { "mode": "Tty" },
        "console": { "mode": "Off" },
        // What it was called before `system_uuid`, and all versions know.
        "platform": { "uuid": machine.uuid },
    });
    if smbios && !machine.credentials.is_empty() {
        config["platform"]["oem_strings"] = credentials::oem_strings(machine)?.into();
    }
    match &machine.network {
        Network::None => {}
        Network::User { .. } => return Err(CLOUD_HYPERVISOR.no_user_network()),
        Network::Bridge { name } => {
            steps = tap::steps(machine, name);
            config["net"] = json!([{ "tap": tap::name(machine), "mac": mac(machine) }]);
        }
    }
    steps.extend([
        "cloud-hypervisor --api-socket path=SOCKET &".to_owned(),
        "curl --unix-socket SOCKET -X PUT -H 'Content-Type: application/json' --data @FILE http://localhost/api/v1/vm.create"
            .to_owned(),
        "curl --unix-socket SOCKET -X PUT http://localhost/api/v1/vm.boot".to_owned(),
    ]);
    Ok(Description {
        text: format!("{config:#}\n"),
        steps,
    })
}

fn payload(machine: &Machine, credentials: bool) -> Result<Value> {
    match &machine.boot {
        Boot::Direct {
            kernel,
            initrd,
            command_line,
        } => {
            let command_line = if credentials {
                credentials::on_command_line(command_line, machine)?
            } else {
                command_line.clone()
            };
            let mut payload = json!({ "kernel": text(kernel)?, "cmdline": command_line });
            if let Some(initrd) = initrd {
                payload["initramfs"] = text(initrd)?.into();
            }
            Ok(payload)
        }
        Boot::Uefi {
            firmware: Some(firmware),
            ..
        } => Ok(json!({ "firmware": text(firmware)? })),
        Boot::Uefi { firmware: None, .. } => Err(CLOUD_HYPERVISOR.cannot(
            "needs firmware of its own kind",
            "set the machine's firmware to a CLOUDHV.fd",
        )),
    }
}

fn disk(disk: &Disk) -> Result<Value> {
    let qcow2 = disk.chain.first().is_some_and(|layer| layer.format == "qcow2");
    let mut config = json!({
        "path": text(active(disk)?)?,
        "readonly": disk.read_only,
        "image_type": if qcow2 { "Qcow2" } else { "Raw" },
    });
    if disk.chain.len() > 1 {
        config["backing_files"] = true.into();
    }
    if let Some(limiter) = rate_limiter(disk) {
        config["rate_limiter_config"] = limiter;
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bridged, chained, credentials, machine};

    #[test]
    fn the_configuration_says_all_of_the_machine() {
        let mut machine = chained();
        machine.network = bridged().network;
        machine.credentials = credentials([("a", "foo")]);
        machine.disks[0].limits.bytes = Some(1 << 20);
        let config: Value = serde_json::from_str(&describe(&machine).unwrap().text).unwrap();
        let expected = json!({
            "payload": {
                "kernel": "/k, \"1\"/vmlinuz",
                "cmdline": "root=LABEL=root console=ttyS0",
                "initramfs": "/k, \"1\"/initrd <&>",
            },
            "cpus": { "boot_vcpus": 2, "max_vcpus": 2 },
            "memory": { "size": 512 << 20 },
            "disks": [{
                "path": "/it's/a disk, grüße.qcow2",
                "readonly": false,
                "image_type": "Qcow2",
                "backing_files": true,
                "rate_limiter_config": { "bandwidth": { "size": 1 << 20, "refill_time": 1000 } },
            }],
            "rng": { "src": "/dev/urandom" },
            "serial": { "mode": "Tty" },
            "console": { "mode": "Off" },
            "platform": {
                "uuid": "6a1e5bd0-0000-4000-8000-0123456789ab",
                "oem_strings": ["io.systemd.credential.binary:a=Zm9v"],
            },
            "net": [{ "tap": "tap0012abcd", "mac": "52:54:00:12:ab:cd" }],
        });
        assert_eq!(config, expected);
    }

    #[test]
    fn firmware_is_loaded_where_it_is_named() {
        let mut machine = machine();
        machine.boot = Boot::Uefi {
            firmware: Some("/fw/CLOUDHV.fd".into()),
            variables: "/v".into(),
        };
        let config: Value = serde_json::from_str(&describe(&machine).unwrap().text).unwrap();
        assert_eq!(config["payload"], json!({ "firmware": "/fw/CLOUDHV.fd" }));
    }
}
