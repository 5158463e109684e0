//! What Firecracker and Cloud Hypervisor are told is what their published schemas allow, which are in `schemas/`, as another
//! implementation of JSON Schema reads them.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use machines::launch::Launcher;
use machines::{Accel, Architecture, Boot, Disk, Layer, Limits, Machine, Network};
use serde_json::{Value, json};
use uuid::Uuid;

/// A schema that is part of what a launcher publishes.
struct Schema(&'static str, &'static str);

const FIRECRACKER: Schema = Schema("firecracker.yaml", "#/definitions/FullVmConfiguration");
const CLOUD_HYPERVISOR: Schema = Schema("cloud-hypervisor.yaml", "#/components/schemas/VmConfig");

impl Schema {
    /// What in `text` it does not allow.
    fn faults(&self, text: &str) -> Vec<String> {
        let schemas = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/schemas");
        let mut python = Command::new("python3");
        python.arg(schemas.join("validate.py")).arg(schemas.join(self.0));
        python.arg(self.1).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut python = python.spawn().expect("scripts/setup.sh test installs it");
        let mut input = python.stdin.take().unwrap();
        input.write_all(text.as_bytes()).unwrap();
        drop(input);
        let output = python.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "scripts/setup.sh test installs PyYAML and jsonschema"
        );
        let faults = String::from_utf8(output.stdout).unwrap();
        faults.lines().map(ToOwned::to_owned).collect()
    }
}

/// Machines with everything, and with as little as there can be.
fn machines(chain: &[(&str, &str)]) -> [Machine; 2] {
    let layer = |(path, format): &(&str, &str)| Layer {
        path: path.into(),
        format: (*format).into(),
    };
    let disk = Disk {
        chain: chain.iter().map(layer).collect(),
        read_only: true,
        limits: Limits {
            bytes: Some(1 << 40),
            requests: Some(1),
        },
    };
    let full = Machine {
        name: "web-1".into(),
        uuid: Uuid::from_u128(1),
        architecture: Architecture::X86_64,
        cpus: 32,
        memory: 64 << 30,
        boot: Boot::Direct {
            kernel: "/kernel".into(),
            initrd: Some("/initrd".into()),
            command_line: "console=ttyS0".into(),
        },
        disks: vec![disk.clone(), disk],
        network: Network::Bridge { name: "br0".into() },
        mac: [2, 0, 0, 1, 2, 3],
        credentials: [("a".parse().unwrap(), "b".to_owned())].into(),
    };
    let mut least = full.clone();
    least.cpus = 1;
    least.network = Network::None;
    least.credentials.clear();
    least.disks.truncate(1);
    least.disks[0].limits = Limits::default();
    [full, least]
}

fn assert_allowed(launcher: Launcher, machine: &Machine, schema: &Schema) {
    let text = launcher.describe(machine, Accel::Kvm).unwrap().text;
    assert_eq!(schema.faults(&text), [""; 0], "{text}");
}

#[test]
fn firecrackers_configuration_is_allowed_by_its_schema() {
    for machine in machines(&[("/disk", "raw")]) {
        assert_allowed(Launcher::Firecracker, &machine, &FIRECRACKER);
    }
}

#[test]
fn cloud_hypervisors_configuration_is_allowed_by_its_schema() {
    for mut machine in machines(&[("/disk", "qcow2"), ("/base", "qcow2")]) {
        assert_allowed(Launcher::CloudHypervisor, &machine, &CLOUD_HYPERVISOR);
        machine.boot = Boot::Uefi {
            firmware: Some("/firmware".into()),
            variables: Path::new("/variables").into(),
        };
        assert_allowed(Launcher::CloudHypervisor, &machine, &CLOUD_HYPERVISOR);
    }
}

#[test]
fn what_the_schemas_do_not_know_is_a_fault() {
    let faults = |schema: &Schema, value: &Value| schema.faults(&value.to_string()).join(" ");
    for (value, fault) in [
        (json!({ "entropie": {} }), "'entropie' was unexpected"),
        (
            json!({ "boot-source": {} }),
            "boot-source: 'kernel_image_path' is a required property",
        ),
        (
            json!({ "machine-config": { "vcpu_count": 33, "mem_size_mib": 1 } }),
            "machine-config/vcpu_count: 33 is greater than the maximum of 32",
        ),
        (
            json!({ "drives": [{ "drive_id": 1, "is_root_device": true }] }),
            "drives/0/drive_id: 1 is not of type 'string'",
        ),
        (
            json!({ "drives": [{ "drive_id": "a", "is_root_device": true, "path": "b" }] }),
            "drives/0: Additional properties are not allowed ('path' was unexpected)",
        ),
    ] {
        let found = faults(&FIRECRACKER, &value);
        assert!(found.contains(fault), "{found}");
    }
    let value = json!({ "payload": {}, "disks": [{ "image_type": "Qcow3" }], "rngs": {} });
    let found = faults(&CLOUD_HYPERVISOR, &value);
    for fault in [
        "disks/0/image_type: 'Qcow3' is not one of",
        "'rngs' was unexpected",
    ] {
        assert!(found.contains(fault), "{found}");
    }
}
