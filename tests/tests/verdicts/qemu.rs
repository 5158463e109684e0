//! What QEMU makes of an image, and which files it opens meanwhile.

use std::collections::BTreeSet;
use std::fs;

use block::size::whole_sectors;
use inspector::{Format, Report};
use serde_json::Value;
use tests::Lab;

use crate::readers;
use crate::seeds::SECRET;

/// Every command is told the format once, and guesses it once. Each says its exit code.
const COMMANDS: &str = r#"
told() { name=$1; shift; timeout 60 "$@" >$name.out 2>$name.err </dev/null; echo $name $?; }
told info-guess qemu-img info --output=json image
told info-told qemu-img info --output=json -f $FORMAT image
rm -f disk.read
told convert $CONVERT disk.read
if [ -z "$ENCRYPTED" ]; then
    told map-guess qemu-img map --output=json image
    told map-told qemu-img map --output=json -f $FORMAT image
    told compare-guess qemu-img compare -F raw image disk.read
    told compare-told qemu-img compare -f $FORMAT -F raw image disk.read
fi
"#;

/// What libraries look at to know the machine.
const MACHINE: [&str; 2] = ["/sys/devices/system/", "/proc/"];

/// QEMU, and the files that it opens for images that lead nowhere.
pub(crate) struct Qemu<'l> {
    lab: &'l Lab,
    known: BTreeSet<String>,
}

impl<'l> Qemu<'l> {
    pub(crate) fn new(lab: &'l Lab) -> Self {
        Self {
            lab,
            known: BTreeSet::new(),
        }
    }

    /// Sees what is opened for an image that nobody has changed.
    pub(crate) fn learn(&mut self, bytes: &[u8], report: &Report) {
        self.run(bytes, report);
        self.known.append(&mut self.opened());
        let agreed = self.agrees(bytes, report);
        assert_eq!(agreed, Ok(()), "{report:?}");
    }

    /// Whether QEMU takes the image for what the report says. If not, what differs.
    pub(crate) fn agrees(&self, bytes: &[u8], report: &Report) -> Result<(), String> {
        let codes = self.run(bytes, report);
        let opened: Vec<String> = self.opened().difference(&self.known).cloned().collect();
        if !opened.is_empty() {
            return Err(format!("QEMU reaches {opened:?}"));
        }
        let format = report.format.ok_or("has no format")?;
        for (name, told) in [("info-guess", false), ("info-told", true)] {
            self.same_facts(name, told, format, report)?;
        }
        let ours = readers::read(bytes, format, report);
        // Whoever guesses reads the footer of a fixed VHD, too.
        let passed = |line: &&str| line.ends_with(" 0") || (is_fixed(report) && *line == "compare-guess 1");
        let failed: Vec<&str> = codes.lines().filter(|line| !passed(line)).collect();
        match (ours, failed.as_slice()) {
            (Ok(ours), []) => self.same_bytes(&ours),
            // What is compressed or encrypted is found to be wrong when it is read, by everybody.
            (Err(_), [convert, ..]) if convert.starts_with("convert 1") => Ok(()),
            (Ok(_), failed) => {
                let said = failed.iter().filter_map(|line| line.split(' ').next());
                let said: Vec<String> = said.map(|name| self.said(name, "err")).collect();
                Err(format!("QEMU does not read it: {failed:?} {said:?}"))
            }
            (Err(ours), _) => Err(format!("QEMU reads what is no disk here: {ours}")),
        }
    }

    fn run(&self, bytes: &[u8], report: &Report) -> String {
        fs::write(self.lab.path("image"), bytes).unwrap();
        let format = report.format.map_or("raw", driver);
        let encrypted = report.features.iter().any(|name| name.starts_with("encryption"));
        let convert = match (encrypted, format) {
            (true, "luks") => format!(
                "qemu-img convert --object {SECRET} --image-opts -O raw driver=luks,key-secret=s,file.driver=file,file.filename=image"
            ),
            (true, _) => format!(
                "qemu-img convert --object {SECRET} --image-opts -O raw driver=qcow2,encrypt.key-secret=s,file.driver=file,file.filename=image"
            ),
            _ => format!("qemu-img convert -f {format} -O raw image"),
        };
        let script = format!(
            "FORMAT={format}\nCONVERT='{convert}'\nENCRYPTED={}\n{COMMANDS}",
            if encrypted { "1" } else { "" }
        );
        let calls = "trace=open,openat,openat2,creat,connect,execve";
        let words = [
            "-f",
            "--seccomp-bpf",
            "-qq",
            "-s",
            "4096",
            "-o",
            "trace",
            "-e",
            calls,
            "sh",
            "-c",
            &script,
        ];
        let outcome = self.lab.run("strace", &words);
        assert_eq!(outcome.code, 0, "{outcome:?}");
        outcome.stdout
    }

    /// The names that were opened, connected to or run, or tried.
    fn opened(&self) -> BTreeSet<String> {
        let trace = fs::read(self.lab.path("trace")).unwrap();
        let trace = String::from_utf8_lossy(&trace);
        let calls = trace.lines().filter_map(|line| line.split_once(' '));
        let calls = calls.map(|(_process, call)| call.trim());
        calls
            .filter(|call| {
                ["open", "creat", "connect", "exec"]
                    .iter()
                    .any(|name| call.starts_with(name))
            })
            .map(|call| call.split('"').nth(1).unwrap_or(call).to_owned())
            .filter(|name| !MACHINE.iter().any(|prefix| name.starts_with(prefix)))
            .collect()
    }

    fn said(&self, name: &str, stream: &str) -> String {
        let bytes = fs::read(self.lab.path(&format!("{name}.{stream}"))).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// `qemu-img info` finds the format and the size of the report.
    fn same_facts(&self, name: &str, told: bool, format: Format, report: &Report) -> Result<(), String> {
        let text = self.said(name, "out");
        let facts: Value = serde_json::from_str(&text)
            .map_err(|_| format!("QEMU does not open it ({name}): {}", self.said(name, "err")))?;
        let size = whole_sectors(report.disk_size.ok_or("has no size")?);
        let (format, size) = if is_fixed(report) && !told {
            ("raw", size + 512)
        } else {
            (driver(format), size)
        };
        if facts["format"] != format || facts["virtual-size"] != size {
            return Err(format!(
                "it is {format} of {size} bytes here, and to QEMU ({name}) {facts:#}"
            ));
        }
        if facts.get("backing-filename").is_some() || text.contains("data-file\": ") {
            return Err(format!("QEMU finds another file in it: {facts:#}"));
        }
        Ok(())
    }

    fn same_bytes(&self, ours: &[u8]) -> Result<(), String> {
        let theirs = self.lab.bytes("disk.read");
        match ours.iter().zip(&theirs).position(|(one, other)| one != other) {
            Some(at) => Err(format!(
                "QEMU reads {} at {at}, and {} is there",
                theirs[at], ours[at]
            )),
            None if theirs.len() != whole_sectors(ours.len() as u64) as usize => {
                Err(format!("QEMU reads {} bytes of {}", theirs.len(), ours.len()))
            }
            None => Ok(()),
        }
    }
}

/// What QEMU calls a format.
fn driver(format: Format) -> &'static str {
    match format {
        Format::Vhd => "vpc",
        // What a disc or a partition table is to a virtual machine.
        Format::Iso => "raw",
        other => other.name(),
    }
}

/// It is a fixed VHD: a raw disk and one sector more to whoever has to guess, and harmless as that.
fn is_fixed(report: &Report) -> bool {
    report.format == Some(Format::Vhd) && report.signatures.iter().all(|one| one.offset > 0)
}
