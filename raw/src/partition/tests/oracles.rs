//! Other people's programs read what is written here, and what they write is read here: sgdisk, sfdisk, and libblkid
//! with the kernel, through partx.

use std::path::PathBuf;

use block::{Resize, Storage};

use super::*;
use crate::testing::{Loop, eventually, run, text, try_run};

struct Lab(tempfile::TempDir);

impl Lab {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn disk(&self, size: u64) -> PathBuf {
        let path = self.0.path().join("disk");
        std::fs::File::create(&path).unwrap().set_len(size).unwrap();
        path
    }
}

/// sgdisk finds nothing wrong.
fn assert_sound(path: &Path) {
    let said = run("sgdisk", &["--verify", text(path)]);
    assert!(
        said.contains("No problems found") && !said.contains("Caution"),
        "{said}"
    );
}

/// As sfdisk lists them: number, first sector, sectors, type, GUID, name.
fn sfdisk(path: &Path, sector: SectorSize) -> Vec<(u32, u64, u64, String, String, String)> {
    // A program that is given a file takes its sectors for the usual ones.
    let device = Loop::over(path, sector.bytes() as u32);
    let dump = run(
        "env",
        &["LC_ALL=C.UTF-8", "sfdisk", "--dump", text(device.path())],
    );
    let field = |line: &str, key: &str| {
        let rest = line.split(&format!("{key}=")).nth(1).unwrap_or_default();
        let (rest, end) = rest.strip_prefix('"').map_or((rest, ','), |rest| (rest, '"'));
        rest.split(end).next().unwrap_or_default().trim().to_owned()
    };
    let prefix = format!("{}p", text(device.path()));
    let lines = dump.lines().filter_map(|line| line.strip_prefix(&prefix));
    lines
        .map(|line| {
            let number = line.split(':').next().unwrap().trim().parse().unwrap();
            let number_of = |key| field(line, key).parse().unwrap();
            let (kind, uuid) = (field(line, "type"), field(line, "uuid"));
            (
                number,
                number_of("start"),
                number_of("size"),
                kind,
                uuid,
                field(line, "name"),
            )
        })
        .collect()
}

/// The same, as read here.
fn ours(path: &Path) -> Vec<(u32, u64, u64, String, String, String)> {
    let table = PartitionTable::read(&*file(path), None).unwrap();
    let row = |p: &Partition| {
        let kind = match p.kind {
            PartitionKind::Gpt(guid) => guid.to_string(),
            PartitionKind::Mbr(kind) => format!("{kind:x}"),
        };
        let guid = p.guid.map(|guid| guid.to_string()).unwrap_or_default();
        // As sfdisk writes it.
        let plain = |byte: u8| {
            if byte.is_ascii() {
                char::from(byte).to_string()
            } else {
                format!("\\x{byte:02x}")
            }
        };
        let name = p.name.bytes().map(plain).collect();
        (p.number, p.first.0, p.last.0 - p.first.0 + 1, kind, guid, name)
    };
    table.partitions().iter().map(row).collect()
}

/// Starts and lengths in sectors of 512 bytes, as the kernel has them of a loop device.
fn kernel(path: &Path, sector: SectorSize) -> Vec<(u32, u64, u64)> {
    let device = Loop::over(path, sector.bytes() as u32);
    let name = device.path().file_name().unwrap().to_str().unwrap().to_owned();
    // A kernel that reads tables by itself has added them already.
    let _ = try_run("partx", &["--add", text(device.path())]);
    let number = |partition: &str, file: &str| -> Option<u64> {
        let path = format!("/sys/block/{name}/{partition}/{file}");
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    let mut rows = eventually(|| {
        let rows: Vec<_> = std::fs::read_dir(format!("/sys/block/{name}"))
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
            .filter(|entry| entry.starts_with(&format!("{name}p")))
            .filter_map(|p| {
                Some((
                    number(&p, "partition")? as u32,
                    number(&p, "start")?,
                    number(&p, "size")?,
                ))
            })
            .collect();
        (!rows.is_empty()).then_some(rows)
    });
    rows.sort_unstable();
    let _ = try_run("partx", &["--delete", text(device.path())]);
    rows
}

#[test]
fn they_find_what_we_write() {
    for sector in SectorSize::ALL {
        let lab = Lab::new();
        let path = lab.disk(20 * MIB);
        create(&*file(&path), &layout(sector)).unwrap();
        let rows = ours(&path);
        assert_eq!(sfdisk(&path, sector), rows);
        let unit = sector.bytes() / 512;
        let places: Vec<_> = rows
            .iter()
            .map(|row| (row.0, row.1 * unit, row.2 * unit))
            .collect();
        assert_eq!(kernel(&path, sector), places);
        if sector == SectorSize::B512 {
            assert_sound(&path);
            let said = run("sgdisk", &["--info=15", text(&path)]);
            assert!(
                said.contains("Partition name: 'ESP'") && said.contains("flags: 0000000000000001"),
                "{said}"
            );
        } else {
            let device = Loop::over(&path, 4096);
            assert_sound(device.path());
        }
    }
}

#[test]
fn we_find_what_they_write() {
    let lab = Lab::new();
    let path = lab.disk(64 * MIB);
    run(
        "sgdisk",
        &[
            "-n",
            "3:0:+10M",
            "-t",
            "3:8e00",
            "-c",
            "3:Volumes, of many",
            "-n",
            "128:0:0",
            "-t",
            "128:ef00",
            "-A",
            "128:set:2",
            text(&path),
        ],
    );
    assert_eq!(ours(&path), sfdisk(&path, SectorSize::B512));
    let table = PartitionTable::read(&*file(&path), None).unwrap();
    assert!(table.findings().is_empty());
    let kinds: Vec<_> = table
        .partitions()
        .iter()
        .map(|p| (p.number, p.kind.to_string(), p.attributes))
        .collect();
    assert_eq!(kinds, [(3, "lvm".to_owned(), 0), (128, "efi".to_owned(), 4)]);

    // A table of another size, as theirs may have.
    run("sgdisk", &["--zap-all", text(&path)]);
    run("sgdisk", &["-S", "256", "-n", "200:0:+1M", text(&path)]);
    assert_eq!(ours(&path), sfdisk(&path, SectorSize::B512));
    assert!(findings(&*file(&path)).is_empty());
    std::fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(80 * MIB)
        .unwrap();
    grow(&*file(&path), None, true).unwrap();
    assert_sound(&path);
    assert_eq!(ours(&path), sfdisk(&path, SectorSize::B512));

    let path = lab.disk(64 * MIB);
    let script = lab.0.path().join("script");
    let lines = "label: gpt\nsector-size: 4096\nsize=8MiB, type=linux, name=äöü\nsize=+, type=swap\n";
    std::fs::write(&script, lines).unwrap();
    let device = Loop::over(&path, 4096);
    run(
        "bash",
        &[
            "-c",
            &format!("sfdisk -q {} < {}", text(device.path()), text(&script)),
        ],
    );
    drop(device);
    assert_eq!(ours(&path), sfdisk(&path, SectorSize::B4096));
    assert!(findings(&*file(&path)).is_empty());
}

#[test]
fn they_find_repaired_and_grown_tables_sound() {
    let lab = Lab::new();
    let path = lab.disk(20 * MIB);
    let disk = file(&path);
    create(&*disk, &layout(SectorSize::B512)).unwrap();
    for offset in [512, 20 * MIB - 512, 1024 + 130, 512 + 60] {
        damage(&*disk, offset);
        let (_, said) = try_run("sgdisk", &["--verify", text(&path)]);
        assert!(said.contains("Caution"), "{said}");
        repair(&*disk, None, None).unwrap();
        assert_sound(&path);
    }
    disk.resize(50 * MIB, Resize::default()).unwrap();
    grow(&*disk, None, true).unwrap();
    drop(disk);
    assert_sound(&path);
    assert_eq!(ours(&path), sfdisk(&path, SectorSize::B512));
    assert_eq!(ours(&path)[0].2, 43 * MIB / 512);
}

#[test]
fn logical_partitions_are_those_that_sfdisk_and_the_kernel_find() {
    let lab = Lab::new();
    let path = lab.disk(64 * MIB);
    let script = lab.0.path().join("script");
    let lines = "label: dos\nsize=8MiB, type=83, bootable\nsize=40MiB, type=5\nsize=4MiB, type=82\nstart=20MiB, size=3MiB\nsize=5MiB, type=8e\n";
    std::fs::write(&script, lines.replace("size=4MiB", "start=50MiB, size=4MiB")).unwrap();
    run(
        "bash",
        &["-c", &format!("sfdisk -q {} < {}", text(&path), text(&script))],
    );
    let rows = ours(&path);
    assert_eq!(rows.len(), 5, "{rows:?}");
    assert_eq!(sfdisk(&path, SectorSize::B512), rows);
    let table = PartitionTable::read(&*file(&path), None).unwrap();
    assert!(table.findings().is_empty(), "{:?}", table.findings());
    assert_eq!((table.format(), table.partitions()[0].attributes), ("mbr", 4));
    let logical: Vec<_> = rows
        .iter()
        .filter(|row| row.0 >= 5)
        .map(|row| (row.0, row.1, row.2))
        .collect();
    let found = kernel(&path, SectorSize::B512);
    assert!(logical.iter().all(|row| found.contains(row)), "{found:?}");
    let disk = file(&path);
    assert!(
        table
            .open(disk.clone(), &Selector::Number(2))
            .unwrap_err()
            .to_string()
            .contains("only holds other")
    );
    assert_eq!(table.open(disk, &Selector::Number(5)).unwrap().size(), 3 * MIB);
}

#[test]
fn tables_in_memory_and_in_files_are_the_same_bytes() {
    let lab = Lab::new();
    let path = lab.disk(20 * MIB);
    create(&*file(&path), &layout(SectorSize::B512)).unwrap();
    let (storage, _) = partitioned(20 * MIB, SectorSize::B512);
    assert_eq!(storage.len().unwrap(), 20 * MIB);
    assert!(std::fs::read(&path).unwrap() == storage.to_vec());
}
