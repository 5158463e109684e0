//! Raw images in parts of files (`offset` and `size` of the driver raw), by our link and by QEMU's own program.

use std::fs;

use crate::common::twins::Twins;

fn with_file() -> Twins {
    let twins = Twins::new();
    twins.in_both(|directory| {
        let mut bytes: Vec<u8> = (0..3_000_000u32).map(|at| (at / 777) as u8).collect();
        bytes[1 << 20..(1 << 20) + 70_000].fill(0);
        bytes.resize(3_000_320, 0);
        fs::write(directory.join("w"), bytes).unwrap();
        let file = fs::File::options().write(true).open(directory.join("w")).unwrap();
        file.set_len(4 << 20).unwrap();
    });
    twins
}

#[test]
fn a_part_is_described_mapped_and_refused_in_the_same_words() {
    let twins = with_file();
    for part in [
        "offset=1M,size=1M",
        "offset=1M",
        "offset=0",
        "size=1M",
        "offset=2M,size=2M",
        "offset=100,size=512",
        "offset=1048576,size=65536",
        "offset=5M",
        "size=5M",
        "size=100",
        "offset=2M,size=3M",
        "offset=-1",
        "size=-1",
        "offset=abc",
        "offset=",
    ] {
        let disk = format!("--image-opts driver=raw,{part},file.filename=w");
        for command in [
            "info",
            "info --output=json",
            "map",
            "map --output=json",
            "measure -O qcow2",
            "measure -O raw",
        ] {
            twins.both(&format!("{command} {disk}"));
        }
    }
    for disk in [
        "'json:{\"driver\":\"raw\",\"offset\":1048576,\"file\":{\"driver\":\"file\",\"filename\":\"w\"}}'",
        "'json:{\"driver\":\"raw\",\"offset\":\"1M\",\"size\":4096,\"file\":{\"driver\":\"file\",\"filename\":\"w\"}}'",
    ] {
        twins.ok(&format!("info --output=json {disk}"));
        twins.ok(&format!("map --output=json {disk}"));
    }
    twins.script(
        "0 create -q -f qcow2 q 1M
         1 info --image-opts driver=qcow2,offset=1M,file.filename=q",
    );
}

#[test]
fn parts_are_copied_compared_written_to_and_resized_alike() {
    let twins = with_file();
    twins.script(
        "0 convert --image-opts driver=raw,offset=1M,size=1M,file.filename=w -O raw part
         file part
         0 convert --image-opts driver=raw,offset=1000k,file.filename=w -O qcow2 part.qcow2
         same part.qcow2
         0 convert -C --image-opts driver=raw,offset=512k,size=2M,file.filename=w -O raw copied
         file copied
         0 dd --image-opts bs=64k skip=2 count=7 -O raw if=driver=raw,offset=777k,size=1M,file.filename=w of=some
         file some
         0 convert -O raw w w2
         0 convert -n --image-opts driver=raw,offset=1M,size=1M,file.filename=w --target-image-opts driver=raw,offset=512k,size=1M,file.filename=w2
         file w2
         0 compare --image-opts driver=raw,offset=1M,size=1M,file.filename=w driver=raw,offset=512k,size=1M,file.filename=w2
         1 compare --image-opts driver=raw,offset=1M,size=1M,file.filename=w driver=raw,offset=513k,size=1M,file.filename=w2
         1 convert -n --image-opts driver=raw,offset=1M,size=1M,file.filename=w --target-image-opts driver=raw,offset=512k,size=1k,file.filename=w2
         1 resize --image-opts driver=raw,offset=1M,size=1M,file.filename=w2 2M
         0 resize --image-opts driver=raw,offset=1M,file.filename=w2 4M
         file w2
         0 resize --shrink --image-opts driver=raw,offset=1M,file.filename=w2 1M
         file w2
         0 resize --preallocation=full --image-opts driver=raw,offset=1M,file.filename=w2 2M
         file w2",
    );
    // An image that lies somewhere in a file.
    twins.in_both(|directory| {
        let mut bytes = vec![0; 1 << 20];
        bytes.extend(fs::read(directory.join("part.qcow2")).unwrap());
        fs::write(directory.join("inside"), bytes).unwrap();
    });
    twins.script(
        "0 convert --image-opts driver=qcow2,file.driver=raw,file.offset=1M,file.file.filename=inside -O raw out
         file out
         0 check --image-opts driver=qcow2,file.driver=raw,file.offset=1M,file.file.filename=inside",
    );
}
