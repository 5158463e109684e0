//! What deleted files have left in FAT filesystems, and the room in them that no file has.

use super::*;

#[test]
fn fat_filesystems_lose_what_deleted_files_have_left_and_nothing_else() {
    let lab = Lab::new();
    let script = "cd LAB; export MTOOLS_SKIP_CHECK=1; truncate -s 140M whole.raw; \
        printf 'label: gpt\\nstart=2048,size=131072,name=root\\nstart=133120,size=8192,type=uefi\\nstart=141312,size=40960\\nstart=182272,size=81920\\nstart=264192,size=8192\\n' \
            | sfdisk -q whole.raw; dd if=disk.raw of=whole.raw bs=1M seek=1 conv=notrunc status=none; \
        mkdir big; for n in $(seq 40); do yes \"<secret of file $n>\" | head -c $((n * 777)) >big/\"long secret name $n.txt\" || :; done; \
        for n in $(seq 40); do yes \"kept $n\" | head -c $((n * 555)) >kept$n || :; done; \
        fat() { yes '<secret of before>' | head -c $2M >f$1 || :; mkfs.vfat -F $1 -s $4 f$1 >/dev/null; \
            mmd -i f$1 ::dir ::dir/sub; \
            for n in $(seq 40); do mcopy -i f$1 kept$n ::dir/\"a long name that is kept $n\"; mcopy -i f$1 big/*\" $n.txt\" ::dir/sub; done; \
            mcopy -i f$1 -s big ::gone; mdeltree -i f$1 ::gone; \
            for n in $(seq 1 2 40); do mdel -i f$1 ::dir/\"a long name that is kept $n\"; done; \
            mdel -i f$1 '::dir/sub/*'; mcopy -i f$1 kept7 ::dir/sub/last; \
            fsck.fat -n f$1 >/dev/null; mkdir before$1; mcopy -s -i f$1 ::dir before$1; \
            dd if=f$1 of=whole.raw bs=1M seek=$3 conv=notrunc status=none; }; \
        fat 12 4 65 4; fat 16 20 69 1; fat 32 40 89 1; \
        cp f12 broken; printf x | dd of=broken bs=1 seek=$((512 + 20)) conv=notrunc status=none; \
        dd if=broken of=whole.raw bs=1M seek=129 conv=notrunc status=none";
    let here = lab.directory.path().to_str().unwrap();
    run(&["bash", "-ec", &script.replace("LAB", here)]);
    let whole = lab.path("whole.raw");
    // Of two files, a short name and a long one.
    let gone =
        Regex::new(r"(?-u)<secret of file 39>|kept 21\nkept|ONGSE~1|s\x00e\x00c\x00r\x00e\x00t").unwrap();
    let left = || {
        let bytes = fs::read(&whole).unwrap();
        gone.find_iter(&bytes)
            .map(|found| found.len())
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(left().len(), 4, "one of each");
    let chain = open(&whole, Access::WRITE);
    seal(&chain.device(), &all(), false, &Control::unwatched()).unwrap();
    let told: Vec<String> = not_looked_into(&chain.device(), true)
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        told[..3],
        ["2", "3", "4"].map(|number| {
            format!("files of partition {number} (vfat) are not looked into; what is free there is wiped")
        })
    );
    assert!(
        told[3].starts_with(
            "partition 5 (vfat) is not looked into, and its free room stays as it is (the FAT filesystem contradicts itself"
        ),
        "{told:?}"
    );
    drop(chain);
    let judge = "cd LAB; export MTOOLS_SKIP_CHECK=1; \
        dd if=whole.raw of=last bs=1M skip=129 count=4 status=none; cmp last broken; \
        fat() { dd if=whole.raw of=after bs=1M skip=$3 count=$2 status=none; fsck.fat -n after; \
            mkdir after$1; mcopy -s -i after ::dir after$1; diff -r before$1 after$1; \
            mcopy -i after kept9 ::dir/new; fsck.fat -n after; }; \
        fat 12 4 65; fat 16 20 69; fat 32 40 89; \
        dd if=/dev/zero of=whole.raw bs=1M seek=129 count=4 conv=notrunc status=none";
    run(&["bash", "-ec", &judge.replace("LAB", here)]);
    assert_eq!(secrets(&whole), [""; 0]);
    assert_eq!(left(), BTreeSet::new());
}

/// Puts secrets wherever a FAT filesystem has room that no file of it has: behind it, in reserved sectors, behind the entries of its
/// tables, in a cluster that is taken and in no file, and in a bad one.
const PLANT: &str = r#"
import struct, sys
path, width = sys.argv[1], int(sys.argv[2])
f = open(path, "r+b"); b = f.read(512)
sector, per, reserved, tables, root = struct.unpack_from("<HBHBH", b, 11)
total = struct.unpack_from("<H", b, 19)[0] or struct.unpack_from("<I", b, 32)[0]
size = struct.unpack_from("<H", b, 22)[0] or struct.unpack_from("<I", b, 36)[0]
data = reserved + tables * size + (root * 32 + sector - 1) // sector
clusters = (total - data) // per
used = ((clusters + 2) * width + 7) // 8
def put(at, text):
    f.seek(at); f.write(text)
def entry(cluster, value):
    for table in range(tables):
        at = (reserved + table * size) * sector + cluster * width // 8
        f.seek(at); old = int.from_bytes(f.read(4), "little")
        shift = 4 if width == 12 and cluster % 2 else 0
        mask = {12: 0xFFF, 16: 0xFFFF, 32: 0xFFFFFFF}[width] << shift
        put(at, (old & ~mask | value << shift).to_bytes(4, "little"))
end = {12: 0xFFF, 16: 0xFFFF, 32: 0xFFFFFFF}[width]
for cluster, value, text in [(clusters + 1, end, b"<secret lost>"), (clusters, end - 8, b"<secret bad>")]:
    entry(cluster, value)
    put((data + (cluster - 2) * per) * sector, text)
for table in range(tables):
    assert used + 20 < size * sector, (used, size * sector)
    put((reserved + table * size) * sector + used, b"<secret of table>")
for number in range(3, reserved):
    if width != 32 or number not in (6, 7, 8):
        put(number * sector, b"<secret reserved>")
put(total * sector, b"<secret behind>")
"#;

#[test]
fn room_that_no_file_of_a_fat_filesystem_has_is_wiped_unless_something_else_has_it() {
    let lab = Lab::new();
    fs::write(lab.path("plant.py"), PLANT).unwrap();
    // The last but one has a boot loader, and the last one is half of a RAID of mdadm's version 1.0.
    let script = "cd LAB; export MTOOLS_SKIP_CHECK=1; truncate -s 203M whole.raw; \
        printf 'label: gpt\\nstart=2048,size=131072,name=root\\nstart=133120,size=8192\\nstart=141312,size=24576\\nstart=165888,size=81920\\nstart=247808,size=81920\\nstart=329728,size=81920\\n' \
            | sfdisk -q whole.raw; dd if=disk.raw of=whole.raw bs=1M seek=1 conv=notrunc status=none; \
        head -c 70000 /dev/urandom >kept; \
        fat() { truncate -s $2M f$1; mkfs.vfat -F ${1:0:2} -R $4 -s $3 f$1 $(($2 * 1024 - 128)) >/dev/null; \
            mmd -i f$1 ::dir; mcopy -i f$1 kept ::dir/kept; python3 plant.py f$1 ${1:0:2}; }; \
        fat 12 4 8 5; fat 16 12 2 5; fat 32 40 1 32; fat 32b 40 1 32; fat 32r 40 1 32; \
        printf '\\xfa\\xfc\\x31\\xc0' | dd of=f32b bs=1 seek=90 conv=notrunc status=none; \
        dd if=/dev/zero of=f32b bs=1 seek=94 count=416 conv=notrunc status=none; \
        printf '\\xfc\\x4e\\x2b\\xa9' | dd of=f32r bs=1 seek=$(((40 << 20) - 8192)) conv=notrunc status=none; \
        fsck() { fsck.fat -n f$1 >said$1.$2 || :; }; \
        for kind in 12:65 16:69 32:81 32b:121 32r:161; do fsck ${kind%:*} before; \
            dd if=f${kind%:*} of=whole.raw bs=1M seek=${kind#*:} conv=notrunc status=none; done";
    let here = lab.directory.path().to_str().unwrap();
    run(&["bash", "-ec", &script.replace("LAB", here)]);
    let whole = lab.path("whole.raw");
    let planted = |from: usize, len: usize| {
        let bytes = fs::read(&whole).unwrap();
        let secrets = Regex::new("(?-u)<secret (lost|bad|of table|reserved|behind)>").unwrap();
        let found = secrets.find_iter(&bytes[from << 20..(from + len) << 20]);
        found
            .map(|text| String::from_utf8(text.as_bytes().to_vec()).unwrap())
            .collect::<BTreeSet<_>>()
    };
    for (from, len) in [(65, 4), (69, 12), (81, 40), (121, 40), (161, 40)] {
        assert_eq!(planted(from, len).len(), 5, "{from}");
    }
    let chain = open(&whole, Access::WRITE);
    seal(&chain.device(), &all(), false, &Control::unwatched()).unwrap();
    let told = not_looked_into(&chain.device(), true).unwrap();
    let told: Vec<String> = told.iter().map(ToString::to_string).collect();
    let wiped = |number| {
        format!("files of partition {number} (vfat) are not looked into; what is free there is wiped")
    };
    assert_eq!(
        told,
        [
            wiped(2),
            wiped(3),
            wiped(4),
            wiped(5),
            "reserved sectors of partition 5 (vfat), where its boot loader may go on, stay as they are"
                .to_owned(),
            wiped(6),
            "room behind the filesystem of partition 6 (vfat), which is raid's, stays as it is".to_owned(),
        ]
    );
    drop(chain);
    assert_eq!(planted(65, 56), BTreeSet::new());
    assert_eq!(planted(121, 40), BTreeSet::from(["<secret reserved>".to_owned()]));
    assert_eq!(planted(161, 40), BTreeSet::from(["<secret behind>".to_owned()]));
    let judge = "cd LAB; export MTOOLS_SKIP_CHECK=1; \
        for kind in 12:65:4 16:69:12 32:81:40 32b:121:40 32r:161:40; do IFS=: read name from size <<<$kind; \
            dd if=whole.raw of=f$name bs=1M skip=$from count=$size status=none; fsck.fat -n f$name >said$name.after || :; \
            cmp said$name.before said$name.after; grep -q 'unused' said$name.after; \
            mcopy -n -i f$name ::dir/kept again; cmp kept again; rm again; done";
    run(&["bash", "-ec", &judge.replace("LAB", here)]);
}
