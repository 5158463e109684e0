//! crosvm: the command line of `crosvm run`.

use block::Result;

use super::{Description, Launcher, active, credentials, mac, mebibytes, tap, text};
use crate::machine::{Architecture, Boot, Machine, Network};

const CROSVM: Launcher = Launcher::Crosvm;

pub(super) fn describe(machine: &Machine) -> Result<Description> {
    Ok(tap::script(machine, arguments(machine)?))
}

fn arguments(machine: &Machine) -> Result<Vec<String>> {
    CROSVM.no_limits(machine)?;
    let mut words = vec!["crosvm".to_owned(), "run".to_owned()];
    let mut option = |name: &str, value: String| words.extend([name.to_owned(), value]);
    option("--name", machine.name.clone());
    option("--cpus", format!("num-cores={}", machine.cpus));
    option("--mem", format!("size={}", mebibytes(machine)));
    for disk in &machine.disks {
        if disk.chain.len() > 1 {
            let error = CROSVM.cannot(
                "cannot read an image that is based on another",
                "convert it with imgtool convert",
            );
            return Err(error.with_path(active(disk)?));
        }
        let path = value(text(active(disk)?)?);
        option("--block", format!("path={path},ro={}", disk.read_only));
    }
    match &machine.network {
        Network::None => {}
        Network::User { .. } => return Err(CROSVM.no_user_network()),
        Network::Bridge { .. } => option(
            "--net",
            format!("tap-name={},mac={}", tap::name(machine), value(&mac(machine))),
        ),
    }
    option("--serial", "type=stdout,hardware=serial,num=1,stdin".to_owned());
    // Its SMBIOS tables are for x86 only.
    let smbios = machine.architecture == Architecture::X86_64;
    if smbios {
        for string in credentials::oem_strings(machine)? {
            option("--oem-strings", string);
        }
    }
    match &machine.boot {
        Boot::Direct {
            kernel,
            initrd,
            command_line,
        } => {
            if let Some(initrd) = initrd {
                option("--initrd", text(initrd)?.to_owned());
            }
            let command_line = if smbios {
                command_line.clone()
            } else {
                credentials::on_command_line(command_line, machine)?
            };
            option("--params", command_line);
            words.push(text(kernel)?.to_owned());
        }
        Boot::Uefi {
            firmware: Some(firmware),
            variables,
        } => {
            option("--bios", text(firmware)?.to_owned());
            option("--pflash", format!("path={}", value(text(variables)?)));
        }
        Boot::Uefi { firmware: None, .. } => {
            return Err(CROSVM.cannot(
                "needs firmware of its own kind",
                "set the machine's firmware to a build of it for crosvm",
            ));
        }
    }
    Ok(words)
}

/// A value among others with commas: in quotes where it has what ends one.
fn value(text: &str) -> String {
    if text.contains([',', '[', ']', '"', '\'', '\\']) {
        format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bridged, chained, credentials, machine};

    #[test]
    fn the_command_line_says_all_of_the_machine() {
        let mut machine = bridged();
        machine.credentials = credentials([("a", "foo")]);
        let description = describe(&machine).unwrap();
        let expected = r#"crosvm run \
  --name web-1 \
  --cpus num-cores=2 \
  --mem size=512 \
  --block 'path="/it'\''s/a disk, grüße.img",ro=false' \
  --net tap-name=tap0012abcd,mac=52:54:00:12:ab:cd \
  --serial type=stdout,hardware=serial,num=1,stdin \
  --oem-strings io.systemd.credential.binary:a=Zm9v \
  --initrd '/k, "1"/initrd <&>' \
  --params 'root=LABEL=root console=ttyS0' '/k, "1"/vmlinuz'
"#;
        assert_eq!(description.text, expected);
    }

    #[test]
    fn firmware_and_its_variables_are_named() {
        let mut machine = machine();
        machine.boot = Boot::Uefi {
            firmware: Some("/fw".into()),
            variables: "/v,1".into(),
        };
        let text = describe(&machine).unwrap().text;
        assert!(
            text.ends_with("--bios /fw \\\n  --pflash 'path=\"/v,1\"'\n"),
            "{text}"
        );
    }

    #[test]
    fn a_chain_is_refused() {
        let error = describe(&chained()).unwrap_err();
        assert!(error.to_string().contains("based on another"), "{error}");
    }
}
