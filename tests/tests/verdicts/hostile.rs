//! Images made to be one thing to one program and another to the next. Each was once called safe, here or elsewhere.

use byteorder::{BE, ByteOrder, LE};
use inspector::Check;
use tests::Lab;

use crate::checksums;
use crate::judge;
use crate::seeds;

const SECTOR: usize = 512;
/// Room that QEMU has for a text.
const ROOM: usize = 20 * SECTOR;
const HINT: &str = "parentFileNameHint=\"/etc/passwd\"\n";
const FLAT: &str = "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\
                    RW 2 FLAT \"/etc/passwd\" 0\n";

fn assert_unsafe(what: &str, bytes: &[u8], check: Check) {
    let report = judge(bytes);
    assert!(
        report.problems.iter().any(|problem| problem.check == check),
        "{what} has no problem of {}: {report:?}",
        check.name()
    );
}

fn named(images: Vec<seeds::Image>, name: &str) -> Vec<u8> {
    let image = images.into_iter().find(|image| image.name == name);
    image.unwrap_or_else(|| panic!("no seed {name}")).bytes
}

fn text(bytes: &[u8]) -> String {
    let room = &bytes[SECTOR..SECTOR + ROOM];
    let len = room.iter().position(|byte| *byte == 0).unwrap();
    String::from_utf8(room[..len].to_vec()).unwrap()
}

fn set_text(bytes: &mut [u8], at: usize, text: &str) {
    let room = &mut bytes[at..at + ROOM];
    room.fill(0);
    room[..text.len()].copy_from_slice(text.as_bytes());
}

#[test]
fn a_parent_that_only_qemu_finds_in_the_text_of_a_vmdk_is_found() {
    let sparse = named(seeds::vmdk(&Lab::new()), "sparse");
    let text = text(&sparse);
    for hint in [
        HINT.to_owned(),
        format!("x {HINT}"),
        format!("# {HINT}"),
        format!("ddb.comment = \"{HINT}"),
    ] {
        let mut bytes = sparse.clone();
        set_text(&mut bytes, SECTOR, &format!("{text}{hint}"));
        assert_unsafe(&hint, &bytes, Check::References);
    }
    // The header names another text than the one where QEMU looks.
    let mut bytes = sparse.clone();
    let end = bytes.len();
    bytes.resize(end + ROOM, 0);
    set_text(&mut bytes, end, &text);
    set_text(&mut bytes, SECTOR, &format!("{text}{HINT}"));
    LE::write_u64(&mut bytes[28..], (end / SECTOR) as u64);
    assert_unsafe("another place", &bytes, Check::Structure);
    // Behind the end of the text, which not everybody heeds.
    let mut bytes = sparse.clone();
    let behind = SECTOR + text.len() + 100;
    bytes[behind..behind + HINT.len()].copy_from_slice(HINT.as_bytes());
    assert_unsafe("behind the text", &bytes, Check::Structure);
}

#[test]
fn texts_of_a_vmdk_that_name_files_are_found() {
    let sparse = named(seeds::vmdk(&Lab::new()), "sparse");
    let text = text(&sparse);
    let with = |text: &str| {
        let mut bytes = sparse.clone();
        set_text(&mut bytes, SECTOR, text);
        bytes
    };
    for line in [
        "RW 2048 SPARSE \"a/b\"\n",
        "RW 2048 SPARSE \"c:b\"\n",
        "RW 7 SPARSE \"b\"\n",
        "RW 2048 FLAT \"b\" 0\n",
    ] {
        let start = text.find("RW ").unwrap();
        let end = start + text[start..].find('\n').unwrap() + 1;
        let changed = format!("{}{line}{}", &text[..start], &text[end..]);
        assert_unsafe(line, &with(&changed), Check::References);
        assert_unsafe(line, &with(&format!("{text}{line}")), Check::References);
    }
    for (line, check) in [
        ("changeTrackPath=\"/etc/passwd\"\n", Check::Features),
        ("ddb.nativeParentHint = \"a\"\n", Check::Features),
        ("ddb.uuid.parent=\"1\"\n", Check::References),
        ("CID=1\n", Check::Structure),
    ] {
        assert_unsafe(line, &with(&format!("{text}{line}")), check);
    }
}

#[test]
fn a_vmdk_stream_says_the_same_at_both_ends_and_between_them() {
    let images = seeds::vmdk(&Lab::new());
    let stream = named(images, "vmware");
    let footer = stream.len() - 2 * SECTOR;
    // The first header leaves the disk to a text of other files, the last one does not.
    let mut bytes = stream.clone();
    LE::write_u64(&mut bytes[12..], 0);
    set_text(&mut bytes, SECTOR, FLAT);
    assert_unsafe("no capacity", &bytes, Check::References);
    for at in [4, 12, 20, 28, 36, 44, 64, 72, 77] {
        let mut bytes = stream.clone();
        bytes[footer + at] ^= 1;
        assert_unsafe(&format!("byte {at} of the footer"), &bytes, Check::Structure);
    }
    // A grain that only who reads from the start finds, and a marker that names another sector.
    let overhead = LE::read_u64(&stream[64..]) as usize * SECTOR;
    let mut bytes = stream.clone();
    bytes[overhead] = 128;
    assert_unsafe("a marker", &bytes, Check::Structure);
    let tables = stream.len() - 6 * SECTOR - 2048;
    assert_eq!(LE::read_u64(&stream[tables..]), 4, "the marker of the table");
    // As many bytes in 64 bits, and in more than these another number.
    let mut bytes = stream.clone();
    LE::write_u64(&mut bytes[tables..], 4 + (1 << 55));
    assert_unsafe("the length of a table", &bytes, Check::Structure);
    let mut bytes = stream.clone();
    LE::write_u32(&mut bytes[tables + SECTOR..], 0);
    assert_unsafe("a grain in no table", &bytes, Check::Structure);
}

#[test]
fn a_grain_of_zeros_without_the_flag_does_not_cover_the_text() {
    let mut bytes = named(seeds::vmdk(&Lab::new()), "sparse");
    for directory in [48, 56] {
        let directory = LE::read_u64(&bytes[directory..]) as usize * SECTOR;
        let table = LE::read_u32(&bytes[directory..]) as usize * SECTOR;
        LE::write_u32(&mut bytes[table..], 1);
    }
    assert_unsafe("grain 1", &bytes, Check::Structure);
    // Two directories that differ: which is read depends on the program.
    let mut bytes = named(seeds::vmdk(&Lab::new()), "sparse");
    let directory = LE::read_u64(&bytes[48..]) as usize * SECTOR;
    let table = LE::read_u32(&bytes[directory..]) as usize * SECTOR;
    bytes[table + 200] = 0;
    bytes.copy_within(table..table + 4, table + 8);
    assert_unsafe("two directories", &bytes, Check::Structure);
}

#[test]
fn a_vhd_says_the_same_at_both_ends_and_in_all_ways() {
    let images = seeds::vhd(&Lab::new());
    let dynamic = named(images, "dynamic");
    let end = dynamic.len() - SECTOR;
    // It grows by the copy at the start, and is fixed by the footer.
    let mut bytes = dynamic.clone();
    BE::write_u32(&mut bytes[end + 60..], 2);
    BE::write_u64(&mut bytes[end + 16..], u64::MAX);
    BE::write_u64(&mut bytes[end + 40..], end as u64);
    BE::write_u64(&mut bytes[end + 48..], end as u64);
    checksums::mend(&mut bytes);
    assert_unsafe("two kinds", &bytes, Check::Structure);
    // QEMU goes by the geometry where a program like this made it.
    let mut bytes = dynamic.clone();
    for footer in [0, end] {
        bytes[footer + 28..footer + 32].copy_from_slice(b"vpc ");
        bytes[footer + 56..footer + 60].copy_from_slice(&[0xff, 0xfe, 16, 255]);
    }
    checksums::mend(&mut bytes);
    assert_unsafe("two sizes", &bytes, Check::Sizes);
    // A sector that is not there for whoever asks the bitmap, and is for QEMU.
    let mut bytes = dynamic.clone();
    let table = BE::read_u64(&bytes[512 + 16..]) as usize;
    let block = BE::read_u32(&bytes[table..]) as usize * SECTOR;
    bytes[block] = 0x7f;
    assert_unsafe("a bitmap", &bytes, Check::Structure);
    let mut bytes = dynamic;
    bytes[512 + 64] = b'p';
    checksums::mend(&mut bytes);
    assert_unsafe("the name of a parent", &bytes, Check::References);
}

#[test]
fn a_vhdx_has_one_state_whichever_header_is_believed() {
    const KIB: usize = 1 << 10;
    let images = seeds::vhdx(&Lab::new());
    let image = named(images, "grows");
    let newest =
        |bytes: &[u8]| LE::read_u64(&bytes[64 * KIB + 8..]).max(LE::read_u64(&bytes[128 * KIB + 8..]));
    // The newer header, by number, is broken and has no log; the other one has one that would be replayed.
    let mut bytes = image.clone();
    let number = newest(&bytes);
    bytes[128 * KIB + 48..128 * KIB + 64].fill(7);
    LE::write_u64(&mut bytes[128 * KIB + 8..], number);
    LE::write_u64(&mut bytes[64 * KIB + 8..], number + 1);
    checksums::mend(&mut bytes);
    assert_unsafe("a log", &bytes, Check::Structure);
    bytes[64 * KIB + 4] ^= 1;
    assert_unsafe("a broken header", &bytes, Check::Structure);
    // Tables of regions that lead to different metadata.
    let mut bytes = image.clone();
    bytes[256 * KIB + 16 + 16 + 3] ^= 1;
    checksums::mend(&mut bytes);
    assert_unsafe("two tables of regions", &bytes, Check::Structure);
    // A disk of large sectors is smaller to QEMU.
    let mut bytes = image;
    let id = [0x1d, 0xbf, 0x41, 0x81, 0x6f, 0xa9, 0x09, 0x47];
    let entry = bytes.windows(8).position(|window| window == id).unwrap();
    let table = bytes.windows(8).position(|window| window == b"metadata").unwrap();
    let item = table + LE::read_u32(&bytes[entry + 16..]) as usize;
    assert_eq!(LE::read_u32(&bytes[item..]), 512);
    LE::write_u32(&mut bytes[item..], 4096);
    assert_unsafe("large sectors", &bytes, Check::Features);
}
