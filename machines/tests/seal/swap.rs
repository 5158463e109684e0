//! Swap partitions and files, and machines that sleep in them.

use super::*;

#[test]
fn a_hibernated_machine_and_boot_loaders_are_left_alone() {
    let lab = Lab::new();
    let whole = lab.path("whole.raw");
    let shown = whole.to_str().unwrap();
    let script = "truncate -s 84M whole.raw; \
        printf 'label: dos\\nstart=2048,size=131072,type=83\\nstart=133120,type=5\\nstart=135168,size=16384,type=82\\n' \
            | sfdisk -q whole.raw; \
        yes 'a boot loader' | dd of=whole.raw bs=512 seek=1 count=60 iflag=fullblock conv=notrunc status=none; \
        dd if=disk.raw of=whole.raw bs=1M seek=1 conv=notrunc status=none; \
        truncate -s 8M swap.raw; mkswap -q swap.raw; printf S1SUSPEND | dd of=swap.raw bs=1 seek=4086 conv=notrunc status=none; \
        dd if=swap.raw of=whole.raw bs=1M seek=66 conv=notrunc status=none";
    let script = format!("cd {}; {script}", lab.directory.path().to_str().unwrap());
    run(&["bash", "-ec", &script]);
    let before = fs::read(&whole).unwrap();
    let chain = open(&whole, Access::WRITE);
    let error = seal(&chain.device(), &all(), false, &Control::unwatched()).unwrap_err();
    assert!(error.to_string().contains("hibernated"), "{error}");
    drop(chain);
    assert!(fs::read(&whole).unwrap() == before, "nothing is half done");
    // It was started and turned off since.
    run(&[
        "dd",
        "if=/dev/zero",
        &format!("of={shown}"),
        "bs=1M",
        "seek=66",
        "count=8",
        "conv=notrunc",
    ]);
    let table = run(&["sfdisk", "--dump", shown]);
    let chain = open(&whole, Access::WRITE);
    seal(&chain.device(), &all(), false, &Control::unwatched()).unwrap();
    let found = not_looked_into(&chain.device(), true).unwrap();
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        [
            "partition 5 (swap) is not looked into",
            "room between the partitions in partition 2 is not looked into",
            "room before the first partition, where boot loaders are, is not looked into",
        ]
    );
    drop(chain);
    assert_eq!(run(&["sfdisk", "--dump", shown]), table);
    assert!(fs::read(&whole).unwrap()[..1 << 20] == before[..1 << 20]);
}

#[test]
fn files_that_are_swapped_to_keep_their_blocks_and_lose_what_is_in_them() {
    let lab = Lab::new();
    let disk = lab.path("disk.raw");
    let shown = disk.to_str().unwrap();
    // The first is written, the second reserved and swapped to past the filesystem, the third new; the last is none.
    lab.mounted(
        "fill() { yes '<secret swapped out>' | dd of=\"$1\" bs=4096 seek=1 count=$2 iflag=fullblock conv=notrunc status=none; }
         mkdir srv/s 'srv/a b'; ln -s /srv/s/written swap.img; fill srv/s/written 1023; head -c 4096 /dev/zero | dd of=srv/s/written conv=notrunc status=none
         fallocate -l 2M 'srv/a b/reserved'; dd if=/dev/zero of=srv/new bs=1M count=1 status=none; cp srv/new srv/none; fill srv/none 2; mv srv/none swapfile
         chmod 600 srv/s/written srv/new 'srv/a b/reserved'
         mkswap -q -L paging -U 6a0f3d30-98ab-4ac9-9e1b-5c8ab3fd6ba1 srv/s/written; mkswap -q 'srv/a b/reserved'; mkswap -q srv/new
         printf '/srv/a\\\\040b/reserved none swap sw 0 0\n/srv/new none swap\n/swap.img none swap sw 0 0\n' >etc/fstab",
    );
    let extents = |path: &str| run(&["debugfs", "-R", &format!("blocks \"{path}\""), shown]);
    let reserved = extents("/srv/a b/reserved");
    let second: u64 = reserved.split_whitespace().nth(1).unwrap().parse().unwrap();
    let block = run(&["dumpe2fs", "-h", shown]);
    let block = block
        .lines()
        .find_map(|line| line.strip_prefix("Block size:"))
        .unwrap();
    let block: u64 = block.trim().parse().unwrap();
    let unwritten = format!(
        "yes '<secret past the filesystem>' | dd of={shown} bs={block} seek={} count=8 iflag=fullblock conv=notrunc status=none",
        second + 8
    );
    run(&["bash", "-ec", &unwritten]);
    let before = [extents("/srv/s/written"), reserved, extents("/srv/new")];
    let found = |root: &Root| {
        let found = lint(root, &[]).unwrap().into_iter();
        let found = found.filter(|finding| finding.reason.contains("swapped out"));
        found.map(|finding| finding.path).collect::<Vec<_>>()
    };
    let chain = open(&disk, Access::WRITE);
    let root = Root::find(&chain.device()).unwrap().unwrap();
    assert_eq!(found(&root), ["/srv/a b/reserved", "/swap.img"]);
    seal(&chain.device(), &all(), false, &Control::unwatched()).unwrap();
    assert_eq!(found(&root), [""; 0]);
    drop((root, chain));
    // It does not say that it is swap, and is somebody's file.
    assert_eq!(secrets(&disk), ["<secret swapped out>"]);
    let swapfile = run(&["debugfs", "-R", "cat /swapfile", shown]);
    assert_eq!(swapfile.matches("<secret swapped out>").count(), 8192 / 21);
    let after = ["/srv/s/written", "/srv/a b/reserved", "/srv/new"].map(extents);
    assert_eq!(after, before, "they have no holes");
    run(&["e2fsck", "-fn", shown]);
    lab.mounted("rm swapfile");
    let probed = lab.mounted(
        "blkid -p -o export srv/s/written; blkid -p -s TYPE -o value 'srv/a b/reserved' srv/new; swaplabel srv/s/written",
    );
    assert_eq!(probed.matches("swap\n").count(), 3, "{probed}");
    assert_eq!(
        probed.matches("6a0f3d30-98ab-4ac9-9e1b-5c8ab3fd6ba1").count(),
        2,
        "{probed}"
    );
    assert!(probed.contains("LABEL=paging"), "{probed}");
}

#[test]
fn a_template_has_nothing_of_a_file_that_its_machine_swapped_to_and_a_hibernated_one_is_refused() {
    let lab = Lab::new();
    lab.mounted(
        "yes '<secret swapped out>' | head -c 1M >swap.img || :
         head -c 4096 /dev/zero | dd of=swap.img conv=notrunc status=none; chmod 600 swap.img; mkswap -q swap.img",
    );
    let machine = lab.machine();
    let publish = |selection: Option<(&Selection, Leftovers)>| {
        let new = NewTemplate::default();
        lab.store.publish(&machine, new, selection, &Control::unwatched())
    };
    let image = publish(Some(sealed(&all()))).unwrap().template.image();
    let raw = lab.text("published.raw");
    run(&["qemu-img", "convert", "-O", "raw", image.to_str().unwrap(), &raw]);
    assert_eq!(secrets(Path::new(&raw)), [""; 0]);
    run(&["e2fsck", "-fn", &raw]);

    lab.mounted("printf S1SUSPEND | dd of=swap.img bs=1 seek=4086 conv=notrunc status=none");
    let disk = lab.path("disk.raw");
    let before = fs::read(&disk).unwrap();
    let chain = open(&disk, Access::WRITE);
    let error = seal(&chain.device(), &all(), false, &Control::unwatched()).unwrap_err();
    assert!(
        error.to_string().starts_with("/swap.img holds the memory"),
        "{error}"
    );
    let root = Root::find(&chain.device()).unwrap().unwrap();
    let found = lint(&root, &[]).unwrap();
    assert!(
        found
            .iter()
            .any(|finding| finding.path == "/swap.img" && finding.reason.contains("hibernated"))
    );
    drop((root, chain));
    assert!(fs::read(&disk).unwrap() == before, "nothing is half done");
}
