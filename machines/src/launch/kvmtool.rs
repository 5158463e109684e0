//! kvmtool: the command line of `lkvm run`.

use block::{Error, Result};

use super::{Description, Launcher, active, credentials, mac, mebibytes, tap, text};
use crate::machine::{Architecture, Boot, Disk, Machine, Network};

const KVMTOOL: Launcher = Launcher::Kvmtool;

/// As many as it has room for.
const MAX_DISKS: usize = 4;

pub(super) fn describe(machine: &Machine) -> Result<Description> {
    Ok(tap::script(machine, arguments(machine)?))
}

fn arguments(machine: &Machine) -> Result<Vec<String>> {
    KVMTOOL.raw_disks_only(machine)?;
    KVMTOOL.no_limits(machine)?;
    if machine.disks.len() > MAX_DISKS {
        return Err(KVMTOOL.cannot(
            "has room for four disks",
            "leave some out, or use another launcher",
        ));
    }
    let mut words = vec!["lkvm".to_owned(), "run".to_owned()];
    words.push("--rng".to_owned());
    let mut option = |name: &str, value: String| words.extend([name.to_owned(), value]);
    option("--name", machine.name.clone());
    option("--cpus", machine.cpus.to_string());
    option("--mem", format!("{}M", mebibytes(machine)));
    for each in &machine.disks {
        option("--disk", disk(each)?);
    }
    option("--network", network(machine)?);
    option("--console", "serial".to_owned());
    match &machine.boot {
        Boot::Direct {
            kernel,
            initrd,
            command_line,
        } => {
            option("--kernel", text(kernel)?.to_owned());
            if let Some(initrd) = initrd {
                option("--initrd", text(initrd)?.to_owned());
            }
            option("--params", credentials::on_command_line(command_line, machine)?);
        }
        Boot::Uefi {
            firmware: Some(firmware),
            variables,
        } if machine.architecture == Architecture::Aarch64 && machine.credentials.is_empty() => {
            option("--firmware", text(firmware)?.to_owned());
            option("--flash", text(variables)?.to_owned());
        }
        Boot::Uefi { .. } => {
            let hint = "make the template with a kernel beside its disk, or use another launcher";
            return Err(KVMTOOL.cannot(
                "runs firmware on aarch64 only, a build for kvmtool and without credentials",
                hint,
            ));
        }
    }
    Ok(words)
}

/// Its options have no way to write a comma.
fn disk(disk: &Disk) -> Result<String> {
    let path = text(active(disk)?)?;
    if path.contains(',') {
        return Err(Error::invalid("kvmtool takes no file with a comma in its name")
            .with_path(path)
            .with_hint("rename the file, or a directory on the way to it"));
    }
    Ok(format!("{path}{}", if disk.read_only { ",ro" } else { "" }))
}

fn network(machine: &Machine) -> Result<String> {
    match &machine.network {
        Network::None => Ok("mode=none".to_owned()),
        Network::User { forwards } if forwards.is_empty() => {
            Ok(format!("mode=user,guest_mac={}", mac(machine)))
        }
        Network::User { .. } => Err(KVMTOOL.cannot(
            "forwards no ports",
            "connect the machine to a bridge (bridge=NAME), or use another launcher",
        )),
        Network::Bridge { .. } => Ok(format!(
            "mode=tap,tapif={},script=none,guest_mac={}",
            tap::name(machine),
            mac(machine)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bridged, credentials, machine};

    #[test]
    fn the_command_line_says_all_of_the_machine() {
        let mut machine = bridged();
        machine.disks[0].chain[0].path = "/it's/a disk, grüße.img".into();
        let error = describe(&machine).unwrap_err();
        assert!(error.to_string().contains("comma"), "{error}");

        machine.disks[0].chain[0].path = "/it's/grüße.img".into();
        machine.credentials = credentials([("a", "foo")]);
        let expected = r#"lkvm run \
  --rng \
  --name web-1 \
  --cpus 2 \
  --mem 512M \
  --disk '/it'\''s/grüße.img' \
  --network mode=tap,tapif=tap0012abcd,script=none,guest_mac=52:54:00:12:ab:cd \
  --console serial \
  --kernel '/k, "1"/vmlinuz' \
  --initrd '/k, "1"/initrd <&>' \
  --params 'root=LABEL=root console=ttyS0 systemd.set_credential_binary=a:Zm9v'
"#;
        assert_eq!(describe(&machine).unwrap().text, expected);
    }

    #[test]
    fn it_has_a_user_network_without_ports() {
        let mut machine = machine();
        machine.disks[0].chain[0].path = "/disk".into();
        machine.network = Network::User { forwards: vec![] };
        let text = describe(&machine).unwrap().text;
        assert!(
            text.contains("--network mode=user,guest_mac=52:54:00:12:ab:cd"),
            "{text}"
        );
        machine.network = Network::User {
            forwards: vec!["2222:22".parse().unwrap()],
        };
        assert!(describe(&machine).is_err());
    }
}
