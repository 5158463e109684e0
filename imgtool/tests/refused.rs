//! Every command refuses what makes no sense: a code that is not zero, one line that names what is wrong, a hint at most,
//! and every file as it was.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::common::Lab;

/// Everything in a directory; what a file holds, too.
fn everything(lab: &Lab) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let entries = fs::read_dir(lab.dir()).unwrap().map(|entry| entry.unwrap());
    let held = entries.map(|entry| {
        let file = entry.file_type().unwrap().is_file();
        (entry.path(), file.then(|| fs::read(entry.path()).unwrap()))
    });
    held.collect()
}

/// Takes a table of lines of `imgtool` and of what their errors say: `line => this | and this`. In a line `''` stands for an
/// empty word, and `LONG` for a name of 1100 bytes.
fn refuses(lab: &Lab, table: &str) {
    let before = everything(lab);
    let long = "n".repeat(1100);
    for row in table.lines().map(str::trim).filter(|row| !row.is_empty()) {
        let (line, says) = row.split_once(" => ").unwrap();
        let word = |word| match word {
            "''" => "",
            "LONG" => &long,
            word => word,
        };
        let words = line.split(' ').map(word);
        let words: Vec<&str> = ["imgtool"].into_iter().chain(words).collect();
        // What compare calls 1 is that images differ, and check has qemu-img's code for formats without metadata.
        let code = match line {
            line if line.starts_with("compare ") => 2,
            "check raw" => 63,
            _ => 1,
        };
        let says: Vec<&str> = says.split(" | ").collect();
        lab.run_words(&words).fails(code, &says);
        assert!(everything(lab) == before, "{line}: something has changed");
    }
}

/// Images of 4 MiB, made by QEMU: `raw`, and `disk` with two snapshots and two bitmaps; `plain`, `old` of version 2; `child`
/// over `top` over `mid` over `base`, and `sibling` over `mid`; `orphan`, whose base is gone; and what is no image.
fn lab() -> Lab {
    let lab = Lab::new();
    for line in [
        "create -q -f raw raw 4M",
        "create -q -f qcow2 disk 4M",
        "create -q -f qcow2 plain 4M",
        "create -q -f qcow2 -o compat=0.10 old 4M",
        "create -q -f qcow2 base 4M",
        "create -q -f qcow2 -b base -F qcow2 mid",
        "create -q -f qcow2 -b mid -F qcow2 top",
        "create -q -f qcow2 -b mid -F qcow2 sibling",
        "create -q -f qcow2 -b top -F qcow2 child",
        "create -q -u -f qcow2 -b gone -F raw orphan 4M",
        "snapshot -c one disk",
        "snapshot -c two disk",
        "bitmap --add disk b1",
        "bitmap --add disk b2",
    ] {
        lab.qemu_img(line);
    }
    lab.qemu_io("raw", "raw", &["write -q -P 5 1M 64k"]);
    lab.qemu_io("qcow2", "disk", &["write -q -P 5 3M 64k"]);
    fs::create_dir(lab.path("directory")).unwrap();
    lab.run("mkfifo fifo").ok();
    fs::write(lab.path("text"), "text").unwrap();
    lab
}

#[test]
fn every_command_refuses_what_is_no_image() {
    let lab = lab();
    let commands = [
        "info {}",
        "map {}",
        "check {}",
        "convert {} new",
        "convert plain {}",
        "compare {} raw",
        "compare raw {}",
        "measure {}",
        "resize {} 8M",
        "amend -o compat=1.1 {}",
        "snapshot list {}",
        "snapshot create {} new",
        "snapshot delete {} one",
        "snapshot apply {} one",
        "snapshot rename {} one new",
        "snapshot export {} one new",
        "bitmap --list {}",
        "bitmap --add {} new",
        "bitmap --merge b1 -b {} disk b2",
        "partition list {}",
        "partition verify {}",
        "partition create {} size=1M",
        "partition repair {}",
        "partition grow {}",
        "commit {}",
        "rebase -u -b base -F raw {}",
        "rebase -b {} -F raw top",
        "stream {}",
        "dd if={} of=new",
        "create -f qcow2 -b {} -F raw new",
    ];
    for command in commands {
        let refuse = |name: &str, says: &str| {
            refuses(&lab, &format!("{} => {says}", command.replace("{}", name)));
        };
        refuse("directory", "directory: this is a directory");
        refuse("fifo", "fifo: this is a FIFO");
        refuse("/dev/null", "/dev/null: this is a character device");
        // One that is not there can be made.
        if command != "convert plain {}" {
            refuse("gone", "gone: open | No such file");
        }
    }
    for line in [
        "info -f vdi plain",
        "map -f vdi plain",
        "check -f vdi plain",
        "convert -f vdi plain new",
        "compare -F vdi raw plain",
        "measure -f vdi plain",
        "resize -f vdi plain 8M",
        "amend -f vdi -o compat=1.1 plain",
        "snapshot list -f vdi plain",
        "snapshot export -f vdi plain one new",
        "bitmap --list -f vdi plain",
        "bitmap --merge b1 -b plain -F vdi disk b2",
        "partition list -f vdi plain",
        "commit -f vdi plain",
        "rebase -f vdi -b base -F qcow2 plain",
        "rebase -b plain -F vdi top",
        "stream -f vdi plain",
        "dd -f vdi if=plain of=new",
        "create -f qcow2 -b plain -F vdi new",
    ] {
        refuses(
            &lab,
            &format!("{line} => \"vdi\" is not known | qcow2, luks, raw"),
        );
    }
    for line in [
        "info -f qcow2 raw",
        "map -f qcow2 raw",
        "check -f qcow2 raw",
        "convert -f qcow2 raw new",
        "compare -f qcow2 raw plain",
        "measure -f qcow2 raw",
        "resize -f qcow2 raw 8M",
        "amend -f qcow2 -o compat=1.1 raw",
        "snapshot list -f qcow2 raw",
        "bitmap --list -f qcow2 raw",
        "partition list -f qcow2 raw",
        "commit -f qcow2 raw",
        "rebase -b raw -F qcow2 top",
        "stream -f qcow2 raw",
        "dd -f qcow2 if=raw of=new",
        "create -f qcow2 -b raw -F qcow2 new",
    ] {
        refuses(&lab, &format!("{line} => raw: not a qcow2 image"));
    }
    refuses(&lab, "check raw => raw: raw images have nothing");
}

#[test]
fn options_without_sense_are_refused() {
    let lab = lab();
    refuses(
        &lab,
        r#"
            create => not provided: <FILE>
            create -f qcow2 new => new: the new image needs a size
            create -f qcow2 new 1M more => unexpected argument 'more'
            create -f qcow2 -o cluster_size=3k new 1M => cluster_size cannot be "3k"
            create -f qcow2 -o cluster_size=4M new 1M => 2^22 bytes
            create -f qcow2 -o cluster_size new 1M => new: cluster_size: "on" is no size
            create -f qcow2 -o compat=2.0 new 1M => compat cannot be "2.0"
            create -f qcow2 -o refcount_bits=3 new 1M => refcount_bits cannot be "3"
            create -f qcow2 -o compression_type=lz4 new 1M => compression_type cannot be "lz4"
            create -f qcow2 -o compat=0.10,compression_type=zstd new 1M => no other compression
            create -f qcow2 -o compat=0.10,extended_l2=on new 1M => no extended L2 entries
            create -f qcow2 -o extended_l2=on,cluster_size=4k new 1M => 4096 bytes | 16 KiB
            create -f qcow2 -o preallocation=some new 1M => preallocation cannot be "some"
            create -f qcow2 -o lazy_refcounts=maybe new 1M => lazy_refcounts is "maybe"
            create -f qcow2 -o nosuch=1 new 1M => no option "nosuch"
            create -f qcow2 -o cluster_size=512,size=1E new => 1152921504606846976 | 512 bytes
            create -f qcow2 -o data_file_raw=on new 1M => data_file_raw | data_file=FILE
            create -f qcow2 -o data_file=disk new 1M => disk: the data file exists
            create -f raw -o cluster_size=64k new 1M => raw images have no option "cluster_size"
            create -f raw -b base -F qcow2 new => a raw image cannot have a backing file
            create -f qcow2 -b base new => "base" is not stated | -F qcow2
            create -f qcow2 none/new 1M => none/new | make the directory none
            info --output xml disk => 'xml' | [possible values: human, json]
            info --io tape disk => 'tape' | uring
            info --nested maybe disk => 'maybe' | beside
            info --frobnicate disk => --frobnicate
            info --nested deny --backing-chain top => top: names the backing file "mid" | --nested any
            map -s abc disk => -s: "abc" is no size
            map -l -1 disk => -1
            map --nested deny top => top: names the backing file "mid"
            check -r some plain => 'some' | leaks, all
            check -n plain => not provided: --repair
            check --restore text plain => text: this is no backup
            check --restore gone plain => gone: open: No such file
            convert plain => a new image have to be named
            convert -O vdi plain new => new: the format "vdi"
            convert -O qcow2 -o nosuch=1 plain new => no option "nosuch"
            convert -m 0 plain new => '0' for '--parallel <N>'
            convert --threads 999 plain new => '999' for '--threads <N>'
            convert -r 0 plain new => -r 0: at least one byte
            convert -r fast plain new => -r: "fast" is no size
            convert -S 3 plain new => -S 3: it must be a multiple of 512
            convert -S abc plain new => -S: "abc" is no size
            convert -c -O raw plain new => new: a raw image cannot be compressed
            convert --level 99 -c -O qcow2 plain new => '99' for '--level <LEVEL>'
            convert --level 3 -O qcow2 plain new => not provided: --compress
            convert -t fast plain new => 'fast' for '--target-cache <MODE>'
            convert -l nosuch disk new => disk: there is no snapshot "nosuch"
            convert -l one raw new => raw: raw images have no internal snapshots
            convert -n -O qcow2 plain gone => gone: open for writing
            convert -n -O raw raw text => text: the target has 512 bytes
            convert -n -O qcow2 raw text => text: not a qcow2 image
            convert --target-is-zero -O raw raw new => not provided: --no-create
            convert --target-is-zero -n -O qcow2 raw top => top: it has a backing file
            convert -O raw orphan new => orphan: cannot open the backing file "gone"
            convert -O qcow2 plain plain => plain: the target is an image that is read from
            convert -O qcow2 top base => base: the target is an image that is read from
            convert -O qcow2 -B gone -F raw plain new => gone: open: No such file
            convert -O qcow2 -B base plain new => "base" is not stated
            convert --bitmaps -O raw disk new => a raw image cannot have bitmaps
            convert plain none/new => none/new | make the directory none
            compare plain => not provided: <SECOND>
            compare orphan plain => orphan: cannot open the backing file "gone"
            measure => not provided: <FILE>
            measure -O vdi plain => "vdi"
            measure --size 9E => "9E" is no size
            measure -O qcow2 -o nosuch=1 plain => no option "nosuch"
            dd if=plain => a new image have to be named
            dd if=plain of=new bs=0 => bs=0
            dd if=plain of=new bs=abc => bs: "abc" is no size
            dd if=plain of=new count=-1 => count: "-1" is no size
            dd if=plain of=new conv=sync => no operand conv=
            dd if=plain of=plain => plain: the target is an image that is read from
            dd plain new => "plain" is no operand
            completions tcsh => 'tcsh'
            man gone => gone: write manual pages
            frobnicate plain => unrecognized subcommand 'frobnicate'
        "#,
    );
}

#[test]
fn sizes_that_would_cut_something_off_are_refused() {
    let lab = lab();
    refuses(
        &lab,
        r#"
            resize disk => not provided: <SIZE>
            resize disk abc => disk: "abc" is no size
            resize disk 1M => disk: the disk has 4194304 bytes | --shrink
            resize disk -1M => cut off its last 1048576 | --shrink
            resize raw 1M => raw: the disk has 4194304 bytes | --shrink
            resize --shrink disk -5M => disk: cannot take 5242880 bytes
            resize disk +8E => disk: "8E" is no size
            resize disk 7E => disk: 8070450532247928832 bytes are more than clusters of 65536 bytes can map
            resize --preallocation some disk 8M => preallocation cannot be "some"
            resize --shrink --preallocation full plain 2M => plain: nothing can be preallocated
            amend -o size=1M disk => disk: the disk has 4194304 bytes | --shrink
            amend -o size=abc disk => disk | "abc" is no size
            amend -o cluster_size=4k disk => disk: the option cluster_size
            amend -o compat=3 disk => disk: compat cannot be "3"
            amend -o compat=0.10 disk => disk: version 2 | bitmaps
            amend -o nosuch=1 disk => disk | no option "nosuch"
            amend -o backing_file=child,backing_fmt=qcow2 top => top: it cannot be based on child
            amend -f raw -o compat=1.1 raw => raw: a raw image
            amend plain => not provided: --options
        "#,
    );
}

#[test]
fn names_that_snapshots_and_bitmaps_cannot_have_are_refused() {
    let lab = lab();
    refuses(
        &lab,
        r#"
            snapshot create disk one => disk: there is a snapshot named "one" already
            snapshot create disk '' => disk: the name of a snapshot cannot be empty
            snapshot create disk LONG => disk | 255 bytes at most | 1100
            snapshot create raw new => raw: a raw image has no internal snapshots
            snapshot create disk => not provided: <NAME>
            snapshot apply disk three => disk: there is no snapshot "three"
            snapshot apply disk '' => disk: the name of a snapshot is empty
            snapshot delete disk three => disk: there is no snapshot "three" | snapshot list
            snapshot delete plain one => plain: there is no snapshot "one" | no snapshots at all
            snapshot rename disk one two => disk: there is a snapshot named "two"
            snapshot rename disk three four => disk: there is no snapshot "three"
            snapshot rename disk one '' => disk: the name of a snapshot cannot be empty
            snapshot rename disk one LONG => disk | 255 bytes at most
            snapshot export disk three new => disk: there is no snapshot "three"
            snapshot export disk one disk => disk: the target is an image that is read from
            snapshot -l -c x disk => '--list' | '--create <NAME>'
            snapshot -c one disk => disk: there is a snapshot named "one"
            snapshot -d three disk => disk: there is no snapshot "three"
            snapshot -a three disk => disk: there is no snapshot "three"
            bitmap --add disk b1 => disk: there is a bitmap 'b1' already
            bitmap --add disk '' => disk: the name of a bitmap cannot be empty
            bitmap --add disk LONG => disk | 1023 bytes | 1100
            bitmap --add -g 3k disk new => disk | 3072 bytes | power of two
            bitmap --add -g 4G disk new => disk | 4294967296 bytes
            bitmap --add -g abc disk new => -g: "abc" is no size
            bitmap --add raw new => raw: a raw image has no bitmaps
            bitmap --add old new => old: an image of version 2 | compat=1.1
            bitmap --remove disk b3 => disk: the image has no bitmap 'b3'
            bitmap --clear disk b3 => disk: the image has no bitmap 'b3'
            bitmap --enable disk b3 => disk: the image has no bitmap 'b3'
            bitmap --disable disk b3 => disk: the image has no bitmap 'b3'
            bitmap --merge b3 disk b1 => disk: the image has no bitmap 'b3'
            bitmap --merge b1 -b plain disk b1 => plain: the image has no bitmap 'b1'
            bitmap --ranges disk b3 => disk: the image has no bitmap 'b3'
            bitmap --list disk b1 => --list lists all bitmaps
            bitmap disk b1 => nothing to do
            bitmap --clear --add disk b1 => disk: there is a bitmap 'b1' already
            bitmap --remove --enable disk b1 => disk: the image has no bitmap 'b1'
            bitmap --add --add disk b9 => disk: there is a bitmap 'b9' already
        "#,
    );
}

#[test]
fn names_that_are_not_utf_8_are_refused_where_they_name_no_file() {
    let lab = lab();
    let before = everything(&lab);
    let odd = OsStr::from_bytes(b"odd\xff");
    for (line, says) in [
        ("snapshot create disk", "not UTF-8"),
        ("snapshot rename disk one", "not UTF-8"),
        ("snapshot delete disk", "not UTF-8"),
        ("bitmap --add disk", "not UTF-8"),
        ("rebase top -u -F raw -b", "not UTF-8"),
        ("create -f qcow2 new 1M -o", "not UTF-8"),
        ("partition create raw", "not UTF-8"),
        ("info", "odd\u{fffd}: open: No such file"),
        ("resize raw", "not UTF-8"),
    ] {
        let output = lab.command("imgtool").args(line.split(' ')).arg(odd).output();
        let output = output.unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{line}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{line}: {stderr}");
        assert!(stderr.contains(says), "{line}: {stderr}");
        assert!(everything(&lab) == before, "{line}: something has changed");
    }
}

#[test]
fn what_would_break_a_chain_is_refused() {
    let lab = lab();
    let sibling = fs::canonicalize(lab.path("sibling")).unwrap();
    for line in [
        "commit top => mid",
        "commit -d top => mid",
        "commit -b base top => base",
    ] {
        let says = format!("other images are based on it | {} | --force", sibling.display());
        refuses(&lab, &format!("{line}: {says}"));
    }
    lab.qemu_img("create -q -f raw short 64k");
    lab.qemu_img("create -q -u -f qcow2 -b ./loop -F qcow2 loop 4M");
    refuses(
        &lab,
        r#"
            commit base => base: it has no backing file
            commit raw => raw: it has no backing file
            commit orphan => orphan: cannot open the backing file "gone"
            commit loop => loop: the chain loops
            commit -b gone top => top: it is not based on "gone" | mid, base
            commit -b child top => top: it is not based on "child"
            commit -r 0 child => -r 0
            commit -r abc child => -r: "abc" is no size
            commit -t fast child => 'fast' for '--cache <MODE>'
            commit -f raw top => top: it has no backing file
            commit --nested deny top => top: names the backing file "mid" | --nested any
            rebase top => top: the new backing file is not named | -b
            rebase -b gone -F qcow2 top => gone: open: No such file
            rebase -b base top => "base" is not stated | -F qcow2
            rebase -b base -F vdi top => base: the format "vdi"
            rebase -u -b base -F vdi top => "vdi"
            rebase -b loop -F qcow2 top => loop: the chain loops
            rebase -b orphan -F qcow2 top => orphan: cannot open the backing file "gone"
            rebase -b top -F qcow2 top => top: it cannot be based on top
            rebase -b child -F qcow2 top => top: it cannot be based on child
            rebase -b child -F raw top => top: it cannot be based on child | --force
            rebase -u -b child -F qcow2 top => top: it cannot be based on child
            rebase -u -b LONG -F raw top => top | 1100 | 1023
            rebase -f raw -b base -F qcow2 raw => raw: a raw image has no backing file
            rebase -b base -F qcow2 disk => disk: it has internal snapshots | one, two
            rebase -u -b base -F qcow2 disk => disk: it has internal snapshots | one, two
            rebase -b base -F qcow2 orphan => orphan: cannot open | -u changes the name alone
            rebase -r 0 -b base -F qcow2 top => -r 0
            rebase -U -b base -F qcow2 top => -U
            rebase --nested deny -b short -F raw top => top: names the backing file | --nested any
            stream --base gone top => top: it is not based on "gone"
            stream --base child top => top: it is not based on "child"
            stream orphan => orphan: cannot open the backing file "gone"
            stream loop => loop: the chain loops
            stream raw => raw: a raw image has no backing file
            stream -r x top => -r: "x" is no size
            create -f qcow2 -b child -F qcow2 base => base: the new image would replace one
            create -f qcow2 -b loop -F qcow2 new => loop: the chain loops
            create -f qcow2 -b orphan -F qcow2 new => orphan: cannot open the backing file
        "#,
    );
}

#[test]
fn damaged_and_missing_partitions_are_refused() {
    let lab = Lab::new();
    lab.qemu_img("create -q -f raw raw 4M");
    lab.qemu_img("create -q -f raw tiny 4k");
    lab.qemu_img("create -q -f raw gpt 16M");
    lab.imgtool("partition create -q gpt size=4M,name=ESP,type=efi size=8M,name=root");
    let whole = fs::read(lab.path("gpt")).unwrap();
    let damaged = |name: &str, at: &[usize]| {
        let mut bytes = whole.clone();
        for at in at {
            bytes[*at] ^= 1;
        }
        fs::write(lab.path(name), bytes).unwrap();
    };
    let backup = whole.len() - 512;
    // The checksums of both headers; one header, and the entries that the other one counts; all signatures.
    damaged("headers", &[512 + 16, backup + 16]);
    damaged("mixed", &[512 + 24, backup - 100]);
    damaged("signatures", &[512, backup]);
    fs::write(lab.path("cut"), &whole[..10 << 20]).unwrap();
    fs::write(lab.path("mbr"), vec![0; 16 << 20]).unwrap();
    let sfdisk = "echo start=2048,size=4096,type=83 | sfdisk -q mbr";
    lab.run_words(&["sh", "-c", sfdisk]).ok();
    refuses(
        &lab,
        r#"
            partition list raw => raw: there is no partition table
            partition list headers => headers: both copies | checksum of its header
            partition verify headers => headers: both copies
            partition repair headers => headers: both copies
            partition repair --from backup headers => headers: both copies
            partition grow headers => headers: both copies
            partition repair mixed => mixed: both copies
            partition list signatures => signatures
            partition repair --from middle gpt => 'middle' | primary, backup
            partition repair mbr => mbr: the disk has an MBR
            partition grow --last mbr => mbr: the disk has an MBR
            partition grow raw => raw: there is no partition table
            partition grow cut => cut: the disk is too short | imgtool resize
            partition repair cut => cut: the disk is too short | imgtool resize
            partition create gpt size=1M => gpt: the disk has a partition table (gpt) | --force
            partition create mbr size=1M => mbr: the disk has a partition table | --force
            partition create tiny size=1k => tiny: the disk is too short
            partition create raw size=8M => raw: partition 1 has sectors 2048 to 18431 | 34 to 8158
            partition create raw size=1M,start=64k size=1M,start=512k => partitions 1 and 2 overlap
            partition create raw size=0 => raw: partition 1 would have no sectors
            partition create raw size=1M,start=1 => raw: partition 1 cannot start at 1
            partition create raw size=1M,number=0 => raw: partitions have numbers from 1 to 128
            partition create raw size=1M,number=x => "x" is no number
            partition create raw size=1M,number=1 size=1M,number=1 => two partitions 1
            partition create raw size=1M,uuid=no => "no" is no GUID
            partition create raw size=1M,type=linus => no partition type "linus"
            partition create raw size=1M,attributes=fast => no attribute "fast"
            partition create raw size=abc => size: "abc" is no size
            partition create raw nonsense => partitions have no "nonsense"
            partition create --sector-size 1000 raw => 1000 bytes | 512 and 4096
            partition create --seed x raw => 'x' for '--seed <N>'
            partition create --guid x raw => "x" is no GUID
            partition list --sector-size 4096 gpt => gpt: both copies
            convert gpt#9 new => gpt: there is no partition 9 | 1 (ESP) and 2 (root)
            convert gpt#name:boot new => gpt: there is no partition name:boot
            convert headers#1 new => headers: both copies
            convert raw#1 new => raw: there is no partition table
            convert -n raw gpt#9 => gpt: there is no partition 9
            convert -n gpt#2 gpt#1 => gpt#1: the target is an image that is read from
            compare gpt#1 gpt#9 => gpt: there is no partition 9
            map gpt#9 => gpt: there is no partition 9
            measure -O qcow2 gpt#9 => gpt: there is no partition 9
            info gpt#9 => gpt: there is no partition 9
            dd if=gpt#9 of=new => gpt: there is no partition 9
            resize gpt#1 +1M => gpt#1 | name the image alone
            partition list gpt#1 => gpt#1 | name the image alone
        "#,
    );
}

/// Whoever has an image open for writing keeps every command that writes to it away, and those that read.
#[test]
fn images_in_use_are_refused() {
    let lab = lab();
    let _guest = lab.guest("plain");
    for line in [
        "info plain",
        "map plain",
        "check plain",
        "check -r all plain",
        "convert plain new",
        "convert -n -O qcow2 raw plain",
        "convert -O qcow2 raw plain",
        "create -f qcow2 plain 1M",
        "compare plain raw",
        "measure plain",
        "resize plain +1M",
        "amend -o lazy_refcounts=on plain",
        "snapshot list plain",
        "snapshot create plain new",
        "bitmap --add plain new",
        "bitmap --list plain",
        "partition create plain size=1M",
        "rebase -b base -F qcow2 plain",
        "rebase -u -b base -F qcow2 plain",
        "rebase -b plain -F qcow2 top",
        "stream plain",
        "commit plain",
        "dd if=plain of=new",
    ] {
        refuses(&lab, &format!("{line} => plain: | lock"));
    }
}
