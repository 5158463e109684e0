//! Inodes that the kernel wrote, made again from what `stat` says of them.

use crate::image::Image;
use crate::inode::{
    FLAG_EXTENTS, FileType, INODE_SIZE, Inode, MAP_SIZE, device, directory_links, fast_symlink,
};
use crate::time::Time;

const SCRIPT: &str = r#"
ln -s "$(printf '%059d' 7)" short
for device in 'b 0 0' 'b 8 255' 'c 255 255' 'c 256 0' 'c 0 256' 'c 4095 1048575' 'b 260 70000'; do
    mknod "dev-${device// /-}" $device
done
mkfifo fifo
touch empty
chown 65536:4294967294 empty
chmod 7654 empty
python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'
mkdir directory directory/a directory/b
ln empty hard
n=0
for seconds in -2147483648 -1 0 2147483647 2147483648 4294967295 4294967296 15032385535; do
    touch -d "@$seconds.123456789" "time-$n"
    n=$((n + 1))
done
for name in * ; do
    stat -c '%i|%n|%f|%u|%g|%s|%b|%h|%t|%T' "$name"
    for format in %x %y %z %w; do date -d "$(stat -c $format "$name")" '+%s %N'; done
done
"#;

/// What `stat` said of a file.
struct Stat {
    number: u32,
    name: String,
    inode: Inode,
    device: (u32, u32),
}

impl Stat {
    fn read(lines: &[&str]) -> Self {
        let fields: Vec<&str> = lines[0].split('|').collect();
        let hex = |field: &str| u32::from_str_radix(field, 16).expect("hexadecimal");
        let time = |line: &str| {
            let (secs, nanos) = line.split_once(' ').expect("two numbers");
            Time {
                secs: secs.parse().expect("seconds"),
                nanos: nanos.parse().expect("nanoseconds"),
            }
        };
        let inode = Inode {
            mode: hex(fields[2]) as u16,
            uid: fields[3].parse().expect("uid"),
            gid: fields[4].parse().expect("gid"),
            size: fields[5].parse().expect("size"),
            sectors: fields[6].parse().expect("blocks"),
            links: fields[7].parse().expect("links"),
            accessed: time(lines[1]),
            modified: time(lines[2]),
            changed: time(lines[3]),
            created: time(lines[4]),
            ..Inode::default()
        };
        Self {
            number: fields[0].parse().expect("inode"),
            name: fields[1].to_owned(),
            inode,
            device: (hex(fields[8]), hex(fields[9])),
        }
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("four bytes"))
}

#[test]
fn the_kernel_writes_the_same_inodes() {
    for features in ["metadata_csum,^metadata_csum_seed", "^metadata_csum"] {
        for block_size in [1024, 4096] {
            let image = Image::new("32M", &format!("-b {block_size} -I 256 -O {features}"));
            let listing = image.mounted(SCRIPT);
            let lines: Vec<&str> = listing.lines().collect();
            assert_eq!(lines.len() % 5, 0);
            let mut types = Vec::new();
            for lines in lines.chunks(5) {
                let mut stat = Stat::read(lines);
                types.push(stat.inode.mode & 0xF000);
                let found = image.inode(stat.number);
                complete(&mut stat, &found);
                let ours = stat.inode.to_bytes(stat.number, image.seed());
                assert_eq!(ours, found, "{} with {features}, {block_size}", stat.name);
            }
            for kind in [
                FileType::Regular,
                FileType::Directory,
                FileType::CharacterDevice,
                FileType::BlockDevice,
                FileType::Fifo,
                FileType::Socket,
                FileType::Symlink,
            ] {
                assert!(types.contains(&kind.mode()), "{kind:?}");
            }
        }
    }
}

/// Adds what `stat` does not say.
fn complete(stat: &mut Stat, found: &[u8; INODE_SIZE]) {
    let inode = &mut stat.inode;
    // Random, and a counter.
    inode.generation = u32_at(found, 0x64);
    inode.version = u64::from(u32_at(found, 0x24)) | u64::from(u32_at(found, 0x98)) << 32;
    match inode.mode & 0xF000 {
        0x2000 | 0x6000 => inode.map = device(stat.device.0, stat.device.1).expect("a device"),
        0xA000 => inode.map = fast_symlink(format!("{:059}", 7).as_bytes()).expect("a short target"),
        0x4000 | 0x8000 => {
            // Extents have tests of their own.
            inode.flags = FLAG_EXTENTS;
            inode.map.copy_from_slice(&found[0x28..0x28 + MAP_SIZE]);
        }
        _ => {}
    }
    if stat.name == "directory" {
        assert_eq!(inode.links, directory_links(2));
    }
}

#[test]
fn the_kernel_reads_every_field_that_has_two_halves() {
    let image = Image::new("32M", "-b 4096 -I 256 -O ^metadata_csum_seed");
    image.mounted("touch file");
    let number = image.number_of("/file");
    let found = image.inode(number);
    let mut inode = Inode {
        mode: FileType::Regular.mode() | 0o4711,
        uid: 0x1234_5678,
        gid: 0x9ABC_DEF0,
        size: 0xF_FFFF_F123,
        links: 1,
        flags: FLAG_EXTENTS,
        generation: 0x8765_4321,
        accessed: Time {
            secs: Time::MIN.secs,
            nanos: 1,
        },
        modified: Time::MAX,
        changed: Time {
            secs: 1 << 31,
            nanos: 999_999_999,
        },
        created: Time {
            secs: -1,
            nanos: 500_000_000,
        },
        ..Inode::default()
    };
    inode.map.copy_from_slice(&found[0x28..0x28 + MAP_SIZE]);
    image.write(image.inode_offset(number), &inode.to_bytes(number, image.seed()));
    image.assert_clean("with an inode of ours");
    let listing = image.mounted(
        "stat -c '%f %u %g %s %b %h' file; for f in %x %y %z %w; do date -d \"$(stat -c $f file)\" '+%s %N'; done",
    );
    let lines: Vec<&str> = listing.lines().collect();
    assert_eq!(
        lines,
        [
            "89c9 305419896 2596069104 68719472931 0 1",
            "-2147483648 000000001",
            "15032385535 999999999",
            "2147483648 999999999",
            "-1 500000000",
        ]
    );
}

#[test]
fn sectors_beyond_32_bits_are_read_by_debugfs() {
    let image = Image::new("32M", "-b 4096 -I 256 -O ^metadata_csum_seed");
    image.mounted("touch file");
    let number = image.number_of("/file");
    let inode = Inode {
        mode: FileType::Regular.mode(),
        links: 1,
        sectors: 0x1_2345_6789,
        xattr_block: 0xABCD_0123_4567,
        project: 77,
        ..Inode::default()
    };
    image.write(image.inode_offset(number), &inode.to_bytes(number, image.seed()));
    let answer = image.debugfs(&format!("stat <{number}>"));
    assert!(
        answer.contains(&format!("Blockcount: {}", 0x1_2345_6789u64)),
        "{answer}"
    );
    assert!(
        answer.contains(&format!("File ACL: {}", 0xABCD_0123_4567u64)),
        "{answer}"
    );
    assert!(answer.contains("Project:    77"), "{answer}");
}
