//! What Firecracker and Cloud Hypervisor are told is what their published schemas allow.
//!
//! Said here is what `src/firecracker/swagger/firecracker.yaml` (`FullVmConfiguration`) and
//! `vmm/src/api/openapi/cloud-hypervisor.yaml` (`VmConfig`) have, as of August 2026, of the objects that are written: every
//! property that is not said is refused, and so is one of another type.

use std::path::Path;

use machines::launch::Launcher;
use machines::{Accel, Architecture, Boot, Disk, Layer, Limits, Machine, Network};
use serde_json::{Value, json};
use uuid::Uuid;

fn object(required: &[&str], properties: &Value) -> Value {
    json!({ "type": "object", "required": required, "properties": properties })
}

fn list(of: &Value) -> Value {
    json!({ "type": "array", "items": of })
}

fn integer(minimum: u64) -> Value {
    json!({ "type": "integer", "minimum": minimum })
}

fn one_of(words: &[&str]) -> Value {
    json!({ "type": "string", "enum": words })
}

/// Both have the same.
fn rate_limiter() -> Value {
    let bucket = object(
        &["size", "refill_time"],
        &json!({ "size": integer(0), "refill_time": integer(0), "one_time_burst": integer(0) }),
    );
    object(&[], &json!({ "bandwidth": bucket, "ops": bucket }))
}

fn firecracker() -> Value {
    let (text, yes_or_no) = (json!({ "type": "string" }), json!({ "type": "boolean" }));
    let boot = json!({ "boot_args": text, "initrd_path": text, "kernel_image_path": text });
    let drive = json!({
        "drive_id": text,
        "is_root_device": yes_or_no,
        "is_read_only": yes_or_no,
        "cache_type": one_of(&["Unsafe", "Writeback"]),
        "path_on_host": text,
        "rate_limiter": rate_limiter(),
        "io_engine": one_of(&["Sync", "Async"]),
    });
    let machine = json!({
        "vcpu_count": { "type": "integer", "minimum": 1, "maximum": 32 },
        "mem_size_mib": integer(1),
    });
    let interface = json!({ "guest_mac": text, "host_dev_name": text, "iface_id": text });
    object(
        &[],
        &json!({
            "boot-source": object(&["kernel_image_path"], &boot),
            "drives": list(&object(&["drive_id", "is_root_device"], &drive)),
            "machine-config": object(&["mem_size_mib", "vcpu_count"], &machine),
            "network-interfaces": list(&object(&["host_dev_name", "iface_id"], &interface)),
            "entropy": object(&[], &json!({ "rate_limiter": rate_limiter() })),
        }),
    )
}

fn cloud_hypervisor() -> Value {
    let (text, yes_or_no) = (json!({ "type": "string" }), json!({ "type": "boolean" }));
    let payload = json!({ "firmware": text, "kernel": text, "cmdline": text, "initramfs": text });
    let disk = json!({
        "path": text,
        "readonly": yes_or_no,
        "image_type": one_of(&["FixedVhd", "Qcow2", "Raw", "Vhdx", "Unknown"]),
        "backing_files": yes_or_no,
        "rate_limiter_config": rate_limiter(),
    });
    let mode = json!({ "mode": one_of(&["Off", "Pty", "Tty", "File", "Socket", "Null"]) });
    object(
        &["payload"],
        &json!({
            "payload": object(&[], &payload),
            "cpus": object(&["boot_vcpus", "max_vcpus"], &json!({ "boot_vcpus": integer(1), "max_vcpus": integer(1) })),
            "memory": object(&["size"], &json!({ "size": integer(1) })),
            "disks": list(&object(&[], &disk)),
            "net": list(&object(&[], &json!({ "tap": text, "mac": text }))),
            "rng": object(&["src"], &json!({ "src": text })),
            "serial": object(&["mode"], &mode),
            "console": object(&["mode"], &mode),
            "platform": object(&[], &json!({ "uuid": text, "oem_strings": list(&text) })),
        }),
    )
}

/// What in `value` the schema does not allow; `at` is where it is.
fn faults(value: &Value, schema: &Value, at: &str) -> Vec<String> {
    let wrong = |what: String| vec![format!("{at}: {what}")];
    match (schema["type"].as_str().unwrap(), value) {
        ("object", Value::Object(members)) => {
            let properties = schema["properties"].as_object().unwrap();
            let required = schema["required"]
                .as_array()
                .unwrap()
                .iter()
                .map(|name| name.as_str().unwrap());
            let missing = required.filter(|name| !members.contains_key(*name));
            let mut faults: Vec<String> = missing.map(|name| format!("{at}: no {name}")).collect();
            for (name, member) in members {
                let at = format!("{at}/{name}");
                match properties.get(name) {
                    Some(schema) => faults.extend(self::faults(member, schema, &at)),
                    None => faults.push(format!("{at}: not known")),
                }
            }
            faults
        }
        ("array", Value::Array(items)) => {
            let item = |(i, item)| faults(item, &schema["items"], &format!("{at}/{i}"));
            items.iter().enumerate().flat_map(item).collect()
        }
        ("string", Value::String(_)) => match schema["enum"].as_array() {
            Some(words) if !words.contains(value) => wrong(format!("{value} is not one of {words:?}")),
            _ => vec![],
        },
        ("boolean", Value::Bool(_)) => vec![],
        ("integer", Value::Number(number)) => {
            let bounds = schema["minimum"].as_u64().unwrap()..=schema["maximum"].as_u64().unwrap_or(u64::MAX);
            match number.as_u64() {
                Some(number) if bounds.contains(&number) => vec![],
                _ => wrong(format!("{number} is not in {bounds:?}")),
            }
        }
        (wanted, _) => wrong(format!("{value} is no {wanted}")),
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

fn assert_allowed(launcher: Launcher, machine: &Machine, schema: &Value) {
    let text = launcher.describe(machine, Accel::Kvm).unwrap().text;
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(faults(&value, schema, ""), [""; 0], "{text}");
}

#[test]
fn firecrackers_configuration_is_allowed_by_its_schema() {
    for machine in machines(&[("/disk", "raw")]) {
        assert_allowed(Launcher::Firecracker, &machine, &firecracker());
    }
}

#[test]
fn cloud_hypervisors_configuration_is_allowed_by_its_schema() {
    for mut machine in machines(&[("/disk", "qcow2"), ("/base", "qcow2")]) {
        assert_allowed(Launcher::CloudHypervisor, &machine, &cloud_hypervisor());
        machine.boot = Boot::Uefi {
            firmware: Some("/firmware".into()),
            variables: Path::new("/variables").into(),
        };
        assert_allowed(Launcher::CloudHypervisor, &machine, &cloud_hypervisor());
    }
}

#[test]
fn what_the_schemas_do_not_know_is_a_fault() {
    let schema = firecracker();
    for (value, fault) in [
        (json!({ "entropie": {} }), "/entropie: not known"),
        (json!({ "boot-source": {} }), "/boot-source: no kernel_image_path"),
        (
            json!({ "machine-config": { "vcpu_count": 33, "mem_size_mib": 1 } }),
            "/machine-config/vcpu_count: 33 is not in 1..=32",
        ),
        (
            json!({ "drives": [{ "drive_id": 1, "is_root_device": true }] }),
            "/drives/0/drive_id: 1 is no string",
        ),
    ] {
        assert_eq!(faults(&value, &schema, ""), [fault]);
    }
}
