//! Images that ask for too much, of every command that reads: each ends by itself, with little memory, and prints nothing that a
//! terminal would obey.

use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;

use crate::common::{Done, Lab};

/// What a command may have of memory and addresses, in KiB. Programs and libraries take a part of it.
const MEMORY: u64 = 400_000;
/// The commands, for an image called `image`.
const COMMANDS: [&str; 19] = [
    "info",
    "info --output json",
    "info --backing-chain",
    "check",
    "check -r all --dry-run",
    "map",
    "map --output json",
    "inspect --safe",
    "inspect --output json",
    "partition list",
    "partition verify",
    "qemu-img info",
    "qemu-img check",
    "measure -O qcow2",
    "compare other",
    "snapshot list",
    "snapshot list --output json",
    "bitmap --list",
    "convert -O qcow2 -S 0 --target",
];

/// Runs a command on `image` with limited memory. It must end by itself, and say nothing that steers a terminal.
fn bounded(lab: &Lab, command: &str) -> Done {
    let imgtool = env!("CARGO_BIN_EXE_imgtool");
    let arguments = match command.strip_suffix(" --target") {
        Some(command) => format!("{command} image copy"),
        None => format!("{command} image"),
    };
    let line = format!("ulimit -v {MEMORY}; exec {imgtool} {arguments}");
    let done = lab.run_words(&["sh", "-c", &line]);
    // A signal is a panic here already.
    let (code, said) = (done.code(), format!("{}{}", done.stdout(), done.stderr()));
    assert!(
        !said.contains("panicked") && !said.contains("memory allocation"),
        "{command}: {code}: {said}"
    );
    let obeyed = said
        .chars()
        .find(|letter| letter.is_control() && *letter != '\n' && *letter != '\r');
    assert_eq!(obeyed, None, "{command}: {said:?}");
    done
}

fn every_command_is_bounded(lab: &Lab) {
    lab.raw("other", 1 << 20, 9);
    for command in COMMANDS {
        bounded(lab, command);
        let _ = fs::remove_file(lab.path("copy"));
    }
}

fn image(lab: &Lab, options: &str, size: &str) -> fs::File {
    lab.qemu_img(&format!("create -q -f qcow2 -o {options} image {size}"));
    fs::File::options()
        .read(true)
        .write(true)
        .open(lab.path("image"))
        .unwrap()
}

fn put_u32(file: &fs::File, at: u64, value: u32) {
    file.write_all_at(&value.to_be_bytes(), at).unwrap();
}

fn put_u64(file: &fs::File, at: u64, value: u64) {
    file.write_all_at(&value.to_be_bytes(), at).unwrap();
}

fn word(file: &fs::File, at: u64) -> u64 {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, at).unwrap();
    u64::from_be_bytes(bytes)
}

/// As many as the header has room for, and one more than there may be.
#[test]
fn floods_of_extensions() {
    for count in [250_u32, 257, 8000] {
        let lab = Lab::new();
        let file = image(&lab, "cluster_size=65536", "1M");
        for number in 0..count {
            let at = 112 + 8 * u64::from(number);
            put_u32(&file, at, 0x7000_0000 + number);
            put_u32(&file, at + 4, 0);
        }
        put_u64(&file, 112 + 8 * u64::from(count), 0);
        every_command_is_bounded(&lab);
        let done = lab.run("imgtool info image");
        if count > 256 {
            done.fails(1, &["more than 256 extensions"]);
        } else {
            done.ok();
        }
    }
}

/// Snapshots whose table is real, all of them with the same large L1 table; and as many as a header can claim.
#[test]
fn floods_of_snapshots() {
    const COUNT: u32 = 65_536;
    let lab = Lab::new();
    let file = image(&lab, "cluster_size=65536", "1T");
    let (table, l1) = (1 << 30, word(&file, 40));
    let mut entries = Vec::new();
    for number in 0..COUNT {
        let id = number.to_string();
        entries.extend(l1.to_be_bytes());
        entries.extend(2048_u32.to_be_bytes());
        entries.extend((id.len() as u16).to_be_bytes());
        entries.extend(4_u16.to_be_bytes());
        entries.extend([0; 20]);
        entries.extend(16_u32.to_be_bytes());
        entries.extend([0; 8]);
        entries.extend((1_u64 << 40).to_be_bytes());
        entries.extend(id.as_bytes());
        entries.extend(b"\x1b[2J");
        entries.resize(entries.len().next_multiple_of(8), 0);
    }
    file.write_all_at(&entries, table).unwrap();
    put_u32(&file, 60, COUNT);
    put_u64(&file, 64, table);
    every_command_is_bounded(&lab);
    let listed = bounded(&lab, "info").stdout();
    assert!(listed.contains("\\u{1b}[2J"), "{}", &listed[..1000]);
    put_u32(&file, 60, u32::MAX);
    bounded(&lab, "info").fails(1, &["there may be 65536 at most"]);
}

/// Puts a directory of bitmaps at `place`, all of them with one table, which has so many `entries`, and has the header name it.
fn put_bitmaps(
    file: &fs::File,
    place: u64,
    names: &[String],
    granularity_bits: u8,
    table: u64,
    entries: u32,
) {
    let mut directory = Vec::new();
    for name in names {
        directory.extend(table.to_be_bytes());
        directory.extend(entries.to_be_bytes());
        directory.extend(2_u32.to_be_bytes());
        directory.extend([1, granularity_bits]);
        directory.extend((name.len() as u16).to_be_bytes());
        directory.extend(0_u32.to_be_bytes());
        directory.extend(name.as_bytes());
        directory.resize(directory.len().next_multiple_of(8), 0);
    }
    file.write_all_at(&directory, place).unwrap();
    put_u64(file, 88, 1);
    put_u32(file, 112, 0x2385_2875);
    put_u32(file, 116, 24);
    put_u32(file, 120, names.len() as u32);
    put_u32(file, 124, 0);
    put_u64(file, 128, directory.len() as u64);
    put_u64(file, 136, place);
    put_u64(file, 144, 0);
}

/// Bitmaps in a directory that is real, with names that are not nice.
#[test]
fn floods_of_bitmaps() {
    const COUNT: u32 = 65_535;
    let lab = Lab::new();
    let file = image(&lab, "cluster_size=65536", "1M");
    let place = 1_u64 << 30;
    let names: Vec<_> = (0..COUNT).map(|number| format!("\x1b]0;{number}\x07")).collect();
    // No entry of a table is needed for a disk that is mapped by one.
    put_bitmaps(&file, place, &names, 16, place + (64 << 20), 1);
    file.set_len(place + (65 << 20)).unwrap();
    every_command_is_bounded(&lab);
    let listed = bounded(&lab, "info").stdout();
    assert!(
        listed.contains("\\u{1b}]0;65534"),
        "{}",
        &listed[listed.len() - 1000..]
    );
}

/// Bitmaps of 64 MiB each in a file of 2 MiB: all entries of their tables, or all of their tables, are one.
#[test]
fn bitmaps_that_share_what_they_hold() {
    const ENTRIES: u64 = 1024;
    for (entries_of_data, bitmaps) in [(ENTRIES, 1), (2, 1000)] {
        let lab = Lab::new();
        let file = image(&lab, "cluster_size=65536", "256G");
        let [directory, table, data] = [1024_u64, 1088, 1152].map(|kib| kib << 10);
        file.set_len(2 << 20).unwrap();
        let names: Vec<_> = (0..bitmaps).map(|number| format!("{number:04}")).collect();
        put_bitmaps(&file, directory, &names, 9, table, ENTRIES as u32);
        for entry in 0..entries_of_data {
            put_u64(&file, table + 8 * entry, data);
        }
        file.write_all_at(&vec![0xAA; 64 << 10], data).unwrap();
        every_command_is_bounded(&lab);
        let shared = ["bitmaps name more clusters than the 32 of the file"];
        bounded(&lab, "bitmap --list").fails(1, &shared);
        bounded(&lab, "convert -O qcow2 --bitmaps --target").fails(1, &shared);
        // One of those that are too many together can be read.
        let ranges = lab.run("imgtool bitmap --ranges image 0000");
        assert_eq!(ranges.code(), i32::from(bitmaps == 1), "{}", ranges.stderr());
    }
}

/// Images of a few clusters whose every part is mapped by the same two L2 tables, each with all of its entries.
#[test]
fn tables_that_parts_of_the_disk_share() {
    for (cluster_size, size, parts) in [(512_u64, "1G", 32_768), (65_536, "512G", 1024)] {
        let lab = Lab::new();
        let file = image(&lab, &format!("cluster_size={cluster_size}"), size);
        let end = file.metadata().unwrap().len().next_multiple_of(cluster_size);
        file.set_len(end + 4 * cluster_size).unwrap();
        for table in 0..2 {
            for entry in 0..cluster_size / 8 {
                let data = end + (2 + entry % 2) * cluster_size;
                put_u64(&file, end + table * cluster_size + 8 * entry, data);
            }
        }
        let l1 = word(&file, 40);
        for part in 0..parts {
            put_u64(&file, l1 + 8 * part, end + part % 2 * cluster_size);
        }
        every_command_is_bounded(&lab);
        for command in [
            "map",
            "measure -O qcow2",
            "compare other",
            "convert -O raw --target",
        ] {
            bounded(&lab, command).fails(
                if command.starts_with("compare") { 2 } else { 1 },
                &["entries of the L1 table name more clusters"],
            );
        }
    }
}

/// The largest tables that there may be, in a file that is nearly all hole.
#[test]
fn tables_as_large_as_they_may_be() {
    let lab = Lab::new();
    let file = image(&lab, "cluster_size=2M,refcount_bits=64", "64T");
    // Half of what ext4 has for a file.
    let far = 1 << 43;
    file.set_len(far + (256 << 20)).unwrap();
    put_u32(&file, 36, 4 << 20);
    put_u64(&file, 40, far);
    put_u64(&file, 48, far + (64 << 20));
    put_u32(&file, 56, 4);
    // Each entry of the L1 table names one L2 table, all the same.
    let entries: Vec<u8> = (0..1 << 20)
        .flat_map(|_| (far + (128_u64 << 20)).to_be_bytes())
        .collect();
    file.write_all_at(&entries, far).unwrap();
    every_command_is_bounded(&lab);
}

/// What a compressed cluster says of itself: a window of 2 GiB, a length of 1 GiB. Both are more than a cluster holds.
#[test]
fn bombs_and_windows() {
    let bomb = "head -c 1G /dev/zero |";
    for (kind, tool) in [
        ("zstd", "zstd -q -c --ultra --long=31"),
        ("zstd", "zstd -q -c -1"),
        (
            "zlib",
            "python3 -c 'import sys,zlib; c=zlib.compressobj(9,8,-15)\nfor _ in range(1024): sys.stdout.buffer.write(c.compress(sys.stdin.buffer.read(1<<20)))\nsys.stdout.buffer.write(c.flush())'",
        ),
    ] {
        let lab = Lab::new();
        lab.run_words(&["sh", "-c", &format!("{bomb} {tool} > bomb")])
            .ok();
        let mut data = fs::read(lab.path("bomb")).unwrap();
        data.truncate((2 << 20) - 512);
        image(&lab, &format!("cluster_size=2M,compression_type={kind}"), "4M");
        lab.qemu_io("qcow2", "image", &["write -q -c -P 7 0 2M"]);
        let file = fs::File::options()
            .read(true)
            .write(true)
            .open(lab.path("image"))
            .unwrap();
        let l2 = word(&file, word(&file, 40)) & 0x00ff_ffff_ffff_fe00;
        let place = file.metadata().unwrap().len().next_multiple_of(2 << 20);
        file.write_all_at(&data, place).unwrap();
        file.set_len(place + (2 << 20)).unwrap();
        // Offset in 49 bits for clusters of 2 MiB, and sectors behind the first one above.
        let sectors = (data.len() as u64).div_ceil(512) - 1;
        put_u64(&file, l2, 1 << 62 | sectors << 49 | place);
        every_command_is_bounded(&lab);
        let done = bounded(&lab, "convert -O raw --target");
        // A cluster of zeros, or an error; nothing else can come of it.
        if done.code() == 0 {
            let copy = fs::read(lab.path("copy")).unwrap();
            assert!(
                copy.len() == 4 << 20 && copy.iter().all(|byte| *byte == 0),
                "{kind}"
            );
        } else {
            done.fails(1, &["image"]);
        }
    }
}

/// Whatever an image names that is no regular file is refused before it is opened, and nothing waits for it.
#[test]
fn what_is_named_is_a_file() {
    let lab = Lab::new();
    lab.run("mkfifo fifo").ok();
    fs::create_dir(lab.path("directory")).unwrap();
    let _socket = UnixListener::bind(lab.path("socket")).unwrap();
    lab.run("mknod block b 7 0").ok();
    std::os::unix::fs::symlink("fifo", lab.path("link")).unwrap();
    for (name, what) in [
        ("fifo", "a FIFO"),
        ("link", "a FIFO"),
        ("directory", "a directory"),
        ("socket", "a socket"),
        ("/dev/zero", "a character device"),
        ("/dev/tty", "a character device"),
        ("block", "a block device"),
    ] {
        lab.qemu_img(&format!("create -q -u -f qcow2 -b {name} -F raw image 1M"));
        every_command_is_bounded(&lab);
        lab.run("imgtool map image").fails(1, &[what]);
        // As a data file, which must lie beside the image.
        let data = lab.run(&format!(
            "imgtool create -q -f qcow2 -o data_file={name} image 1M"
        ));
        assert_ne!(data.code(), 0, "{name}");
    }
}

#[test]
fn a_chain_that_comes_back_to_itself_by_another_name_ends() {
    let lab = Lab::new();
    let overlay = |name: &str, below: &str| {
        lab.qemu_img(&format!("create -q -u -f qcow2 -b {below} -F qcow2 {name} 1M"));
    };
    overlay("first", "image");
    for (how, below) in [
        ("name", "first"),
        ("ln first hard", "hard"),
        ("ln -s first soft", "soft"),
    ] {
        if how != "name" {
            lab.run(how).ok();
        }
        overlay("image", below);
        every_command_is_bounded(&lab);
        lab.run("imgtool info --backing-chain image").fails(1, &["image"]);
    }
}

/// Names of partitions and features, which come from the image too.
#[test]
fn names_do_not_steer_a_terminal() {
    let lab = Lab::new();
    lab.run("truncate -s 8M image").ok();
    lab.run_words(&["sgdisk", "-n", "1:2048:4095", "-c", "1:\u{9b}31m\u{7f}", "image"])
        .ok();
    for command in ["partition list", "partition verify", "inspect --safe"] {
        bounded(&lab, command);
    }
    let file = image(&lab, "compat=1.1", "1M");
    put_u64(&file, 72, 1 << 50);
    // The first entry of the table of feature names becomes that of the feature.
    let mut head = [0; 1024];
    file.read_exact_at(&mut head, 0).unwrap();
    let table = head
        .windows(4)
        .position(|window| window == [0x68, 0x03, 0xf8, 0x57])
        .unwrap() as u64;
    file.write_all_at(b"\x00\x32\x1b[31mred\x07\0", table + 8)
        .unwrap();
    every_command_is_bounded(&lab);
    lab.run("imgtool info image").fails(1, &["\\u{1b}[31mred"]);
}

/// Files of a few KiB and a hole of 8 TiB, of which a few bytes name all.
#[test]
fn holes_that_are_named_whole() {
    const SECTOR: u64 = 512;
    const END: u64 = 1 << 43;
    let lab = Lab::new();
    let make = || {
        let file = fs::File::create(lab.path("image")).unwrap();
        file.set_len(END).unwrap();
        file
    };
    let refused = |why: &str| {
        let done = bounded(&lab, "inspect --safe");
        assert_eq!(done.code(), 2);
        assert!(done.stdout().contains(why), "{}", done.stdout());
    };
    // A VMDK whose text is as long as the file, and one whose grains of 32 MiB have no other bytes than their entries.
    let vmdk = |text_len: u64| {
        const GRAINS: u32 = 60_000;
        const GRAIN: u32 = 1 << 16;
        let file = make();
        let mut header = [0; 512];
        header[..4].copy_from_slice(b"KDMV");
        header[73..77].copy_from_slice(b"\n \r\n");
        for (at, value) in [(4, 1), (8, 1), (44, 512)] {
            header[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
        }
        // Capacity, grain, text and its length, the directory, and what lies before the grains.
        for (at, value) in [
            (12, u64::from(GRAINS) * u64::from(GRAIN)),
            (20, u64::from(GRAIN)),
            (28, 1),
            (36, text_len),
            (56, 64),
            (64, 4096),
        ] {
            header[at..at + 8].copy_from_slice(&u64::to_le_bytes(value));
        }
        file.write_all_at(&header, 0).unwrap();
        let tables = (0..GRAINS.div_ceil(512)).map(|table| 128 + 4 * table);
        let directory: Vec<u8> = tables.flat_map(u32::to_le_bytes).collect();
        file.write_all_at(&directory, 64 * SECTOR).unwrap();
        // None touches the next one, and the last one is the first.
        let grains = (0..GRAINS).map(|grain| 4096 + grain % (GRAINS - 1) * (GRAIN + 8));
        let entries: Vec<u8> = grains.flat_map(u32::to_le_bytes).collect();
        file.write_all_at(&entries, 128 * SECTOR).unwrap();
    };
    vmdk(END / SECTOR - 2);
    every_command_is_bounded(&lab);
    refused("should have up to");
    vmdk(20);
    every_command_is_bounded(&lab);
    refused("there is no grain 59999 at 2097152");
    // A VDI with as many blocks as it can have.
    let file = make();
    let mut header = [0; 512];
    for (at, value) in [
        (64, 0xbeda_107f),
        (68, 0x0001_0001),
        (76, 1),
        (340, 512),
        (344, u32::MAX - 511),
        (360, 512),
        (376, 1 << 20),
        (384, (u32::MAX - 1023) / 4),
        (388, (u32::MAX - 1023) / 4),
    ] {
        header[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
    }
    file.write_all_at(&header, 0).unwrap();
    every_command_is_bounded(&lab);
    refused("its blocks reach to");
}
