//! By what a block device is in use, for messages: what the kernel lists under `/proc` and `/sys`.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use block::{Error, ErrorKind, FileId, Result, escape};
use rustix::fs::{major, minor};

use crate::OpenOptions;

/// The error for a device, by its number, that the kernel says is in use.
pub(crate) fn in_use(device: u64) -> Error {
    let devices = with_partitions(number(device));
    error("the device", &devices, &uses(&devices))
}

/// Fails for a regular file that is the disk of a loop device which this machine uses: it is mounted, swapped to, or part of
/// another device, or a partition of it is. The kernel would not see what is changed behind its back, and undo half of it.
///
/// # Errors
/// `Locked` with where it is mounted.
pub fn refuse_mounted(file: FileId) -> Result<()> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    for name in entries.map(|entry| entry.file_name()) {
        let directory = Path::new("/sys/block").join(&name);
        if !name.as_bytes().starts_with(b"loop") || file_of_loop(&directory) != Some(file) {
            continue;
        }
        let device = Path::new("/dev").join(&name);
        let open = OpenOptions::new().exclusive(true).lock(false).open(&device);
        let is_claimed = open.is_err_and(|error| error.kind() == ErrorKind::Locked);
        // Who may not open the device still sees what is mounted.
        let number = fs::read_to_string(directory.join("dev")).unwrap_or_default();
        let devices = with_partitions(number.trim().to_owned());
        let uses = uses(&devices);
        if is_claimed || !uses.is_empty() {
            let what = format!("{}, whose disk this file is", escape(&device.to_string_lossy()));
            return Err(error(&what, &devices, &uses));
        }
    }
    Ok(())
}

/// The file behind a loop device, by its directory in `/sys`.
fn file_of_loop(directory: &Path) -> Option<FileId> {
    let name = fs::read(directory.join("loop/backing_file")).ok()?;
    let name = OsStr::from_bytes(name.strip_suffix(b"\n").unwrap_or(&name));
    let file = fs::metadata(name).ok()?;
    Some(FileId {
        device: file.dev(),
        inode: file.ino(),
    })
}

/// A device and the partitions of it.
fn with_partitions(device: String) -> Vec<String> {
    let mut devices = vec![device];
    devices.extend(partitions(&devices[0]));
    devices
}

/// What these devices are used for.
fn uses(devices: &[String]) -> Vec<String> {
    let mut uses = Vec::new();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    for device in devices {
        let places = mounts_of(&mounts, device);
        uses.extend(places.map(|place| format!("mounted on {}", escape(&place))));
        uses.extend(holders(device).map(|holder| format!("part of {}", escape(&holder))));
    }
    let is_swap = |path: &str| fs::metadata(path).is_ok_and(|file| devices.contains(&number(file.rdev())));
    if swaps
        .lines()
        .filter_map(|line| line.split(' ').next())
        .any(is_swap)
    {
        uses.push("swap".to_owned());
    }
    uses
}

fn error(what: &str, devices: &[String], uses: &[String]) -> Error {
    let (uses, hint) = match (uses, devices.len()) {
        ([], _) => (String::new(), "end what uses it first: lsblk shows it"),
        (uses, 1) => (
            format!(": it is {}", uses.join(", ")),
            "end that first, such as by umount",
        ),
        (uses, _) => (
            format!(": it is {}", uses.join(", ")),
            "end that first, such as by umount, or name the device of a partition that is not in use",
        ),
    };
    Error::new(
        ErrorKind::Locked,
        format!("{what}, or a partition of it, is in use{uses}"),
    )
    .with_hint(hint)
}

/// A device as the kernel names it: `8:1`.
fn number(device: u64) -> String {
    format!("{}:{}", major(device), minor(device))
}

fn in_sys(device: &str) -> PathBuf {
    Path::new("/sys/dev/block").join(device)
}

/// The partitions of a device that the kernel knows.
fn partitions(device: &str) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(in_sys(device)).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.path().join("partition").exists())
        .filter_map(|entry| fs::read_to_string(entry.path().join("dev")).ok())
        .map(|dev| dev.trim().to_owned())
}

/// Devices that one is part of, such as a volume group's.
fn holders(device: &str) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(in_sys(device).join("holders"));
    entries
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
}

/// Where a device is mounted (`proc_pid_mountinfo(5)`).
fn mounts_of(mounts: &str, device: &str) -> impl Iterator<Item = String> {
    mounts.lines().filter_map(move |line| {
        let mut fields = line.split(' ').skip(2);
        (fields.next() == Some(device)).then_some(())?;
        fields.nth(1).map(unescaped)
    })
}

/// Undoes the kernel's escapes: spaces and their like as three octal digits.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = &after[3..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Loop, run, text};

    #[test]
    fn mounts_are_found_by_number_and_their_names_read() {
        let mounts = "24 1 0:22 / /proc rw - proc proc rw\n\
                      60 1 7:0 /sub /mnt/a\\040b rw,relatime shared:1 - ext4 /dev/loop0 rw\n\
                      61 1 7:01 / /mnt/c rw - ext4 /dev/loop1 rw\n";
        let of = |device| mounts_of(mounts, device).collect::<Vec<_>>();
        assert_eq!(of("7:0"), ["/mnt/a b"]);
        assert!(of("7:1").is_empty());
        assert_eq!(unescaped("a\\134\\x\\9"), "a\\\\x\\9");
    }

    #[test]
    fn a_device_that_is_mounted_is_refused_where_that_was_asked_for() {
        let backing = tempfile::NamedTempFile::new().unwrap();
        backing.as_file().set_len(8 << 20).unwrap();
        run("mkfs.ext4", &["-q", "-F", text(backing.path())]);
        let device = Loop::over(backing.path(), 512);
        let exclusive = OpenOptions::new().write(true).exclusive(true);
        // Also one that is otherwise created.
        for options in [exclusive.clone(), exclusive.clone().truncate(true)] {
            drop(options.open(device.path()).unwrap());
        }
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("a place");
        fs::create_dir(&place).unwrap();
        run("mount", &[text(device.path()), text(&place)]);
        let refused = exclusive.open(device.path());
        let allowed = OpenOptions::new().write(true).open(device.path());
        run("umount", &[text(&place)]);
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Locked);
        let says = format!("is in use: it is mounted on {}", text(&place));
        assert!(error.to_string().contains(&says), "{error}");
        allowed.unwrap();
        // And while it is open, it is not mounted.
        let open = exclusive.open(device.path()).unwrap();
        let (mounted, _) = crate::testing::try_run("mount", &[text(device.path()), text(&place)]);
        assert!(!mounted);
        drop(open);
    }
}
