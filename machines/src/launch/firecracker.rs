//! Firecracker: the file of `--config-file`.

use block::Result;
use serde_json::{Value, json};

use super::{Description, Launcher, active, credentials, mac, mebibytes, tap, text};
use crate::machine::{Architecture, Boot, Disk, Machine, Network};

const FIRECRACKER: Launcher = Launcher::Firecracker;

pub(super) fn describe(machine: &Machine) -> Result<Description> {
    FIRECRACKER.raw_disks_only(machine)?;
    check_cpus(machine)?;
    let mut steps = Vec::new();
    let networks = match &machine.network {
        Network::None => json!([]),
        Network::User { .. } => return Err(FIRECRACKER.no_user_network()),
        Network::Bridge { name } => {
            steps = tap::steps(machine, name);
            json!([{ "iface_id": "net0", "guest_mac": mac(machine), "host_dev_name": tap::name(machine) }])
        }
    };
    let (boot, root) = boot_source(machine)?;
    let disks = machine.disks.iter().enumerate();
    let drives = disks.map(|(number, disk)| drive(number, disk, root && number == 0));
    let config = json!({
        "boot-source": boot,
        "drives": drives.collect::<Result<Vec<_>>>()?,
        "machine-config": { "vcpu_count": machine.cpus, "mem_size_mib": mebibytes(machine) },
        "network-interfaces": networks,
        "entropy": {},
    });
    steps.push("firecracker --no-api --config-file FILE".to_owned());
    Ok(Description {
        text: format!("{config:#}\n"),
        steps,
    })
}

/// The kernel, and whether Firecracker is to tell it which disk is the root: it does so last, which would win.
fn boot_source(machine: &Machine) -> Result<(Value, bool)> {
    let Boot::Direct {
        kernel,
        initrd,
        command_line,
    } = &machine.boot
    else {
        let hint = "make the template with a kernel beside its disk, or use another launcher";
        return Err(FIRECRACKER.cannot("loads a kernel itself and has no firmware", hint));
    };
    let command_line = credentials::on_command_line(command_line, machine)?;
    let names_root = command_line.split(' ').any(|word| word.starts_with("root="));
    let mut boot = json!({ "kernel_image_path": text(kernel)?, "boot_args": command_line });
    if let Some(initrd) = initrd {
        boot["initrd_path"] = text(initrd)?.into();
    }
    Ok((boot, !names_root))
}

fn drive(number: usize, disk: &Disk, root: bool) -> Result<Value> {
    let mut drive = json!({
        "drive_id": format!("disk{number}"),
        "path_on_host": text(active(disk)?)?,
        "is_root_device": root,
        "is_read_only": disk.read_only,
        // Without it a flush of the guest's is not carried out.
        "cache_type": "Writeback",
    });
    if let Some(limiter) = rate_limiter(disk) {
        drive["rate_limiter"] = limiter;
    }
    Ok(drive)
}

/// Buckets that are filled once a second; Cloud Hypervisor has the same.
pub(super) fn rate_limiter(disk: &Disk) -> Option<Value> {
    let bucket = |size: u64| json!({ "size": size, "refill_time": 1000 });
    let mut limiter = serde_json::Map::new();
    if let Some(bytes) = disk.limits.bytes {
        limiter.insert("bandwidth".to_owned(), bucket(bytes));
    }
    if let Some(requests) = disk.limits.requests {
        limiter.insert("ops".to_owned(), bucket(requests));
    }
    (!limiter.is_empty()).then(|| limiter.into())
}

fn check_cpus(machine: &Machine) -> Result<()> {
    let cpus = machine.cpus;
    let even = cpus.is_multiple_of(2) || machine.architecture != Architecture::X86_64;
    if (1..=32).contains(&cpus) && (cpus == 1 || even) {
        return Ok(());
    }
    let what = format!("cannot have {cpus} processors");
    Err(FIRECRACKER.cannot(&what, "give it one, or an even number up to 32"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bridged, machine};

    #[test]
    fn the_configuration_says_all_of_the_machine() {
        let mut machine = bridged();
        machine.disks[0].limits.bytes = Some(50 << 20);
        machine.disks[0].limits.requests = Some(1000);
        let description = describe(&machine).unwrap();
        let config: Value = serde_json::from_str(&description.text).unwrap();
        let bucket = |size: u64| json!({ "size": size, "refill_time": 1000 });
        let expected = json!({
            "boot-source": {
                "kernel_image_path": "/k, \"1\"/vmlinuz",
                "boot_args": "root=LABEL=root console=ttyS0",
                "initrd_path": "/k, \"1\"/initrd <&>",
            },
            "drives": [{
                "drive_id": "disk0",
                "path_on_host": "/it's/a disk, grüße.img",
                "is_root_device": false,
                "is_read_only": false,
                "cache_type": "Writeback",
                "rate_limiter": { "bandwidth": bucket(50 << 20), "ops": bucket(1000) },
            }],
            "machine-config": { "vcpu_count": 2, "mem_size_mib": 512 },
            "network-interfaces": [{
                "iface_id": "net0",
                "guest_mac": "52:54:00:12:ab:cd",
                "host_dev_name": "tap0012abcd",
            }],
            "entropy": {},
        });
        assert_eq!(config, expected);
        assert_eq!(description.steps[1], "sudo ip link set tap0012abcd master br0 up");
    }

    #[test]
    fn the_first_disk_is_the_root_where_the_command_line_names_none() {
        let mut machine = machine();
        machine.disks.push(machine.disks[0].clone());
        let Boot::Direct { command_line, .. } = &mut machine.boot else {
            unreachable!()
        };
        *command_line = "console=ttyS0".into();
        let config: Value = serde_json::from_str(&describe(&machine).unwrap().text).unwrap();
        let roots = [0, 1].map(|number| config["drives"][number]["is_root_device"].as_bool().unwrap());
        assert_eq!(roots, [true, false]);
    }

    #[test]
    fn processors_come_in_even_numbers() {
        let mut machine = machine();
        for (cpus, fine) in [(1, true), (2, true), (3, false), (32, true), (34, false)] {
            machine.cpus = cpus;
            assert_eq!(describe(&machine).is_ok(), fine, "{cpus}");
        }
    }
}
