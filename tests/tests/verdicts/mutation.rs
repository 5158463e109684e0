//! Random changes to an image, where its readers look.

use block::test_utils::Rng;
use byteorder::{BE, ByteOrder, LE};

use crate::checksums;
use crate::seeds::Image;

/// What formats are recognised by, and what names files.
const MAGICS: [&[u8]; 16] = [
    b"QFI\xfb\0\0\0\x03",
    b"QFI\xfb\0\0\0\x01",
    b"QED\0",
    b"KDMV",
    b"COWD",
    b"conectix",
    b"cxsparse",
    b"vhdxfile",
    b"LUKS\xba\xbe\0\x01",
    b"WithoutFreeSpace",
    b"\x7f\x10\xda\xbe",
    b"koly\0\0\0\x04\0\0\x02\0",
    b"\x01CD001\x01",
    b"\0NSR02\x01",
    b"EFI PART",
    b"# Disk DescriptorFile\nversion=1\n",
];

/// A changed copy of `image`, and what was done to it. `others` lend it pieces.
pub(crate) fn mutate(image: &Image, others: &[Image], rng: &mut Rng) -> (Vec<u8>, String) {
    let mut bytes = image.bytes.clone();
    let mut what = String::new();
    for _ in 0..=rng.below(5) / 3 {
        let done = change(&mut bytes, image, others, rng);
        what = if what.is_empty() {
            done
        } else {
            format!("{what}; {done}")
        };
    }
    if rng.below(4) > 0 {
        checksums::mend(&mut bytes);
    }
    (bytes, what)
}

fn change(bytes: &mut Vec<u8>, image: &Image, others: &[Image], rng: &mut Rng) -> String {
    match rng.below(14) {
        0..2 => {
            let at = place(bytes, image, 1, rng);
            bytes[at] ^= 1 << rng.below(8);
            format!("a bit of byte {at}")
        }
        2..7 => field(bytes, image, rng),
        7 => {
            let (from, to) = (place(bytes, image, 8, rng), place(bytes, image, 8, rng));
            bytes.copy_within(from..from + 8, to);
            format!("8 bytes from {from} to {to}")
        }
        8 => signature(bytes, rng),
        9..11 => length(bytes, others, rng),
        11..13 => line(bytes, rng),
        _ => {
            let sectors = bytes.len() / 512;
            let mut sector = || {
                let at = if rng.coin() {
                    place(bytes, image, 1, rng)
                } else {
                    rng.below(bytes.len() as u64) as usize
                };
                (at / 512).min(sectors - 1) * 512
            };
            let (from, to) = (sector(), sector());
            bytes.copy_within(from..from + 512, to);
            format!("the sector from {from} to {to}")
        }
    }
}

/// Where `len` bytes that matter are, at a multiple of that mostly.
fn place(bytes: &[u8], image: &Image, len: usize, rng: &mut Rng) -> usize {
    let area = &image.areas[rng.below(image.areas.len() as u64) as usize];
    let at = area.start + rng.below(area.len() as u64) as usize;
    let at = if rng.below(8) == 0 { at } else { at / len * len };
    at.min(bytes.len() - len)
}

/// Gives a number another value, one that may mean something.
fn field(bytes: &mut [u8], image: &Image, rng: &mut Rng) -> String {
    let len = [1, 2, 4, 8][rng.below(4) as usize];
    let at = place(bytes, image, len, rng);
    let big = rng.coin();
    let old = if big {
        BE::read_uint(&bytes[at..], len)
    } else {
        LE::read_uint(&bytes[at..], len)
    };
    let file = bytes.len() as u64;
    let new = match rng.below(13) {
        0 => 0,
        1 => 1,
        2 => u64::MAX,
        3 => old.wrapping_add(1),
        4 => old.wrapping_sub(1),
        5 => old ^ (1 << rng.below(8 * len as u64)),
        6 => old.wrapping_mul(2),
        7 => old / 2,
        8 => file / 512 + rng.below(3) - 1,
        9 => file.wrapping_sub(512 * rng.below(3)),
        10 => (rng.below(file) / 4096) * 4096,
        // What a product in 64 bits loses.
        11 => old ^ (1 << (8 * len as u64 - 1 - rng.below(2 * len as u64))),
        _ => rng.below(256),
    };
    let kept = if len == 8 {
        new
    } else {
        new & ((1 << (8 * len)) - 1)
    };
    if big {
        BE::write_uint(&mut bytes[at..], kept, len);
    } else {
        LE::write_uint(&mut bytes[at..], kept, len);
    }
    format!("the {len} bytes at {at} from {old:#x} to {kept:#x}")
}

/// Puts a signature where somebody may look for it, or nobody does.
fn signature(bytes: &mut [u8], rng: &mut Rng) -> String {
    let magic = MAGICS[rng.below(MAGICS.len() as u64) as usize];
    let end = bytes.len();
    let at = match rng.below(14) {
        0 | 1 => 0,
        2 => 64,
        3 => 512,
        4 => 0x8000,
        5 => 0x9000,
        6 => 0x8800,
        7 => end - 512,
        8 => end - 511,
        9 => end - 1024,
        10 => end - 1000,
        11 => 4096,
        _ => rng.below(end as u64) as usize,
    };
    let at = at.min(end - magic.len());
    bytes[at..at + magic.len()].copy_from_slice(magic);
    format!("\"{}\" at {at}", magic.escape_ascii())
}

/// Makes the file longer or shorter.
fn length(bytes: &mut Vec<u8>, others: &[Image], rng: &mut Rng) -> String {
    let len = bytes.len();
    let some = [1, 511, 512, 1024, 4096, 65536, 1 << 20][rng.below(7) as usize];
    match rng.below(5) {
        0 => bytes.truncate((len - some.min(len - 1)).max(1)),
        1 => bytes.resize(len + some, 0),
        2 => bytes.resize(len + some, 0x77),
        3 => bytes.extend_from_within(..512),
        _ => {
            let other = &others[rng.below(others.len() as u64) as usize].bytes;
            bytes.extend(&other[other.len() - some.min(other.len())..]);
        }
    }
    format!("{} bytes instead of {len}", bytes.len())
}

/// Adds a line to a text that describes a disk, or changes one. Other images get a signature.
fn line(bytes: &mut [u8], rng: &mut Rng) -> String {
    const LINES: [&str; 14] = [
        "parentFileNameHint=\"/etc/passwd\"\n",
        "# parentFileNameHint=\"/etc/passwd\"\n",
        "RW 2048 FLAT \"/etc/passwd\" 0\n",
        "RW 2048 SPARSE \"other.vmdk\"\n",
        "createType=\"monolithicFlat\"\n",
        "parentCID=00000001\n",
        "changeTrackPath=\"/etc/passwd\"\n",
        "ddb.comment = \"parentFileNameHint\"\n",
        "ddb.uuid.parent=\"1\"\n",
        "ddb.uuid.image=\"1\"\n",
        "encoding=\"UTF-8\"\n",
        "# a comment\n",
        "\0parentFileNameHint=\"/etc/passwd\"\n",
        "version=3\n",
    ];
    if !bytes.starts_with(b"KDMV") {
        return signature(bytes, rng);
    }
    let room = &mut bytes[512..512 + 10240];
    let len = room.iter().position(|byte| *byte == 0).unwrap_or(0);
    let starts: Vec<usize> = (0..=len).filter(|at| *at == 0 || room[at - 1] == b'\n').collect();
    let at = starts[rng.below(starts.len() as u64) as usize];
    let line = LINES[rng.below(LINES.len() as u64) as usize].as_bytes();
    if rng.below(4) == 0 {
        // Instead of what is there.
        room[at..at + line.len()].copy_from_slice(line);
    } else {
        room.copy_within(at..len, at + line.len());
        room[at..at + line.len()].copy_from_slice(line);
    }
    format!("\"{}\" in its text", line.escape_ascii())
}
