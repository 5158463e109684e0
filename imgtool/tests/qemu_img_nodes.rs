//! Options of nodes, objects, and who reads what is said, by our link and by QEMU's own program.

use std::fs;
use std::process::Command;

use crate::common::Lab;
use crate::common::guest::Guest;
use crate::common::twins::Twins;

const IMAGE: &str = "0 create -q -f qcow2 a 1M";

#[test]
fn what_is_read_only_is_not_written_to() {
    let twins = Twins::new();
    twins.script(IMAGE);
    let before = fs::read(twins.ours().join("a")).unwrap();
    for (options, text) in [
        ("read-only=on", "Block node is read-only"),
        ("file.read-only=on", "Block node is read-only"),
        (
            "force-share=on",
            "force-share=on can only be used with read-only images",
        ),
        ("read-only=on,force-share=on", "Block node is read-only"),
    ] {
        let image = format!("--image-opts driver=qcow2,file.filename=a,{options}");
        for command in [
            "resize",
            "snapshot -c z",
            "bitmap --add",
            "amend -o lazy_refcounts=on",
        ] {
            let rest = match command {
                "resize" => " +64k",
                "bitmap --add" => " name",
                _ => "",
            };
            twins.refused(&format!("{command} {image}{rest}"), text);
        }
    }
    twins.refused(
        r#"resize 'json:{"driver":"qcow2","read-only":true,"file":{"driver":"file","filename":"a"}}' +64k"#,
        "Block node is read-only",
    );
    assert!(before == fs::read(twins.ours().join("a")).unwrap());
}

#[test]
fn values_of_options_are_looked_at() {
    let twins = Twins::new();
    twins.script(IMAGE);
    for option in [
        "read-only=maybe",
        "auto-read-only=x",
        "force-share=x",
        "cache.direct=x",
        "cache.no-flush=x",
        "discard=x",
        "file.discard=x",
        "detect-zeroes=x",
        "lazy-refcounts=x",
        "l2-cache-size=foo",
        "refcount-cache-size=zz",
        "cache-clean-interval=z",
        "overlap-check=x",
        "file.locking=bogus",
        "file.aio=bogus",
        "file.driver=host_device",
    ] {
        let line = format!("info --image-opts driver=qcow2,file.filename=a,{option}");
        assert_eq!(twins.both(&line).code, Some(1), "{line}");
    }
    twins.ok("map --image-opts driver=qcow2,file.filename=a,read-only=on,discard=unmap,detect-zeroes=on,l2-cache-size=1M");
}

#[test]
fn options_that_cannot_be_are_refused_alike() {
    let twins = Twins::new();
    twins.script(
        "0 create -q -f qcow2 a 1M
         0 create -q -f qcow2 -o compat=0.10 old 1M
         0 create -q -f qcow2 -b a -F qcow2 over
         0 create -q -f qcow2 -o data_file=d data 1M
         0 create -q -f raw r 1M
         io a write -P 3 0 64k",
    );
    twins.script(
        "1 info --image-opts driver=qcow2,backing.driver=qcow2,file.filename=a
         1 info --image-opts driver=qcow2,backing=x,file.filename=a
         1 map --image-opts driver=qcow2,backing.driver=qcow2,file.filename=a
         1 map --image-opts driver=qcow2,backing.foo=qcow2,file.filename=a
         1 map --image-opts driver=qcow2,backing=x,file.filename=a
         1 map --image-opts driver=qcow2,backing=x,file.filename=over
         1 map --image-opts driver=qcow2,backing=x,backing.driver=raw,file.filename=over
         0 map --image-opts driver=qcow2,backing=,file.filename=over
         1 map --image-opts driver=raw,backing.driver=raw,file.filename=r
         1 map --image-opts driver=raw,backing=x,file.filename=r
         1 info --image-opts driver=qcow2,encrypt.format=luks,file.filename=a
         1 info --image-opts driver=qcow2,encrypt.format=foo,file.filename=a
         0 info --image-opts driver=qcow2,encrypt.foo=luks,file.filename=a
         1 info --image-opts driver=raw,encrypt.format=luks,file.filename=r
         1 info --image-opts driver=raw,lazy-refcounts=on,file.filename=r
         1 info --image-opts driver=raw,cache-size=1M,file.filename=r
         1 map --image-opts driver=raw,data-file.filename=r,file.filename=r
         1 map --image-opts driver=qcow2,data-file=x,file.filename=a
         1 map --image-opts driver=qcow2,data-file.foo=x,file.filename=data
         1 map --image-opts driver=qcow2,foo=1,file.filename=r
         1 map --image-opts driver=qcow2,foo=1,bar=2,zoo=3,file.filename=a
         1 map --image-opts driver=raw,a=1,b=2,c=3,d=4,e=5,f=6,g=7,file.filename=r
         1 info --image-opts driver=qcow2,node-name=1,file.filename=a
         1 info --image-opts driver=qcow2,node-name=,file.filename=a
         1 info --image-opts driver=qcow2,node-name=aaaaaaaaaabbbbbbbbbbccccccccccdd,file.filename=a
         0 info --image-opts driver=qcow2,node-name=aaaaaaaaaabbbbbbbbbbccccccccccd,file.filename=a
         1 info --image-opts driver=qcow2,node-name=n,file.node-name=n,file.filename=a
         0 info --image-opts driver=qcow2,node-name=n,file.node-name=m,file.filename=a
         0 compare --image-opts driver=qcow2,node-name=n,file.filename=a driver=qcow2,file.filename=over
         2 compare --image-opts driver=raw,node-name=n,file.filename=r driver=raw,node-name=n,file.filename=r
         1 info --image-opts driver=qcow2,cache-size=1M,l2-cache-size=2M,file.filename=a
         1 info --image-opts driver=qcow2,cache-size=1M,refcount-cache-size=2M,file.filename=a
         1 info --image-opts driver=qcow2,cache-size=1M,l2-cache-size=1k,refcount-cache-size=1k,file.filename=a
         1 info --image-opts driver=qcow2,cache-size=999999999G,file.filename=a
         1 info --image-opts driver=qcow2,refcount-cache-size=99999999G,file.filename=a
         1 info --image-opts driver=qcow2,refcount-cache-size=9999999999999G,file.filename=a
         1 info --image-opts driver=qcow2,l2-cache-entry-size=256,file.filename=a
         1 info --image-opts driver=qcow2,l2-cache-entry-size=1M,file.filename=a
         0 info --image-opts driver=qcow2,l2-cache-entry-size=4k,l2-cache-size=999999G,file.filename=a
         1 info --image-opts driver=qcow2,cache-clean-interval=99999999999,file.filename=a
         1 info --image-opts driver=qcow2,lazy-refcounts=on,file.filename=old
         1 info --image-opts driver=qcow2,discard-no-unref=on,file.filename=old
         0 info --image-opts driver=qcow2,discard-no-unref=on,pass-discard-other=off,file.filename=a
         1 info --image-opts driver=qcow2,pass-discard-request=x,file.filename=a
         1 info --image-opts driver=qcow2,overlap-check.template=x,file.filename=a
         1 info --image-opts driver=qcow2,overlap-check=all,overlap-check.template=none,file.filename=a
         0 info --image-opts driver=qcow2,overlap-check.template=all,overlap-check.main-header=on,file.filename=a
         1 info --image-opts driver=qcow2,overlap-check.main-header=x,file.filename=a
         1 info --image-opts driver=qcow2,overlap-check.foo=on,file.filename=a
         1 map --image-opts driver=file,filename=a,detect-zeroes=unmap
         0 map --image-opts driver=file,filename=a,detect-zeroes=unmap,discard=unmap
         0 map --image-opts driver=file,filename=a,read-only=yes
         1 map --image-opts driver=file,filename=a,aio=native
         1 map --image-opts driver=file,filename=a,aio-max-batch=x
         0 map --image-opts driver=file,filename=a,aio-max-batch=1,x-check-cache-dropped=on
         1 map --image-opts driver=file,filename=a,pr-manager=x
         1 map --image-opts driver=host_device,filename=gone
         1 map --image-opts driver=host_device
         0 info --image-opts driver=null-co,node-name=n,read-only=on,cache.direct=on
         1 map --image-opts driver=null-co,node-name=1
         1 map --image-opts driver=null-co,discard=x
         1 map --image-opts driver=null-co,latency-ns=-1
         1 map --image-opts driver=null-co,size=9223372036854775807
         1 map -f null-co a
         1 map null-co:
         1 map null-co://x
         0 map --image-opts driver=blkdebug,image.filename=a
         0 map --image-opts driver=blkdebug,x-image=a
         1 map --image-opts driver=blkdebug,image=a
         1 map --image-opts driver=blkdebug
         1 map --image-opts driver=quorum,vote-threshold=1
         1 map --image-opts driver=quorum,vote-threshold=x,children.0.driver=qcow2,children.0.file.filename=a
         1 map --image-opts driver=quorum,vote-threshold=2,children.0.driver=qcow2,children.0.file.filename=a
         1 map --image-opts driver=quorum,children.0.driver=qcow2,children.0.file.filename=a
         1 map --image-opts driver=quorum,vote-threshold=1,children.0=a
         1 map --image-opts driver=quorum,vote-threshold=1,children.1.driver=qcow2,children.1.file.filename=a
         1 bitmap --add --image-opts driver=qcow2,backing.driver=raw,file.filename=over b
         1 map -f '' a
         1 map --image-opts driver=
         1 map --image-opts ''
         1 map --image-opts a
         1 map --image-opts nothing
         1 map --image-opts filename=a
         0 map --image-opts driver=qcow2,file.filename=a,read-only
         0 map --image-opts driver=qcow2,file.filename=a,noread-only
         1 map --image-opts driver=qcow2,file.filename=a,nofoo
         1 map --image-opts nothing,read-only
         0 compare --image-opts driver=qcow2,file.filename=a,read-only driver=qcow2,file.filename=a
         1 convert -l snapshot.name a out
         1 convert -l snapshot.nofoo a out
         1 convert -l snapshot.id=1,nofoo a out
         1 map --image-opts file=a
         1 map --image-opts id=x,driver=file,filename=a
         1 map --image-opts id=1,driver=file,filename=a",
    );
}

#[test]
fn what_json_says_in_another_type_says_what_it_does_for_qemu() {
    let twins = Twins::new();
    twins.script(
        "0 create -q -f qcow2 a 1M
         0 create -q -f qcow2 -b a -F qcow2 over
         io a write -P 3 0 64k",
    );
    let file = |value: &str| format!(r#""file":{{"driver":"file","filename":{value}}}"#);
    let (a, over) = (file("\"a\""), file("\"over\""));
    for (code, members) in [
        (0, format!(r#""driver":null,{a}"#)),
        (0, format!(r#""driver":1,{a}"#)),
        (0, format!(r#""driver":true,{a}"#)),
        (0, format!(r#""driver":{{}},{a}"#)),
        (1, format!(r#""driver":"",{a}"#)),
        (
            0,
            r#""driver":"qcow2","file":{"driver":1,"filename":"a"}"#.to_owned(),
        ),
        (1, format!(r#""driver":"qcow2",{}"#, file("1"))),
        (1, format!(r#""driver":"qcow2",{}"#, file("null"))),
        (1, r#""driver":"qcow2","file":null"#.to_owned()),
        (1, r#""driver":"qcow2","file":1"#.to_owned()),
        (1, r#""driver":"qcow2","file":"a""#.to_owned()),
        (1, r#""file":null"#.to_owned()),
        (1, r#""file":"a""#.to_owned()),
        (0, format!(r#""driver":"qcow2","backing":null,{over}"#)),
        (0, format!(r#""driver":"qcow2","backing":"",{over}"#)),
        (0, format!(r#""driver":"qcow2","backing":1,{over}"#)),
        (1, format!(r#""driver":"qcow2","backing":"x",{over}"#)),
        (0, format!(r#""driver":"qcow2","l2-cache-size":null,{a}"#)),
        (0, format!(r#""driver":"qcow2","read-only":null,{a}"#)),
        (1, format!(r#""driver":"qcow2","read-only":1,{a}"#)),
        (1, format!(r#""driver":"qcow2","node-name":1,{a}"#)),
        (0, format!(r#""driver":"raw","offset":null,{a}"#)),
    ] {
        let line = format!("map json:{{{members}}}");
        assert_eq!(twins.both(&line).code, Some(code), "{line}");
    }
    twins.ok(&format!(r#"map -f raw json:{{"driver":"qcow2",{a}}}"#));
    twins.ok(&format!(r#"map -f qcow2 json:{{"driver":1,{a}}}"#));
    assert_eq!(twins.both(&format!("map -f '' json:{{{a}}}")).code, Some(1));
}

#[test]
fn what_is_no_json_is_refused_alike() {
    let twins = Twins::new();
    for text in [
        r#"{"a":}"#,
        r#"{"a":1,}"#,
        "{,}",
        r#"{"a" 1}"#,
        r#"{"a":1 "b":2}"#,
        r#"{"a":1;}"#,
        r#"{"a":1}}"#,
        r#"{"a":1} x"#,
        r#"{"a":1} {"#,
        "{a:1}",
        "{a:1} x",
        "{1:1}",
        "{null:1}",
        r#"{"a":True}"#,
        r#"{"a":-}"#,
        r#"{"a":1.}"#,
        r#"{"a":1e+}"#,
        r#"{"a":01}"#,
        r#"{"a":0x1}"#,
        r#"{"a":1a}"#,
        r#"{"a":x-y}"#,
        r#"{"a":(1)}"#,
        r#"{"a":%d}"#,
        r#"{"a":"b"#,
        r#"{"a":"b\"#,
        r#"{"a":"\x"}"#,
        r#"{"a":"\u12"}"#,
        r#"{"a":"\ud800"}"#,
        r#"{"a":"\ud800\u0041"}"#,
        r#"{"a":"\uffff"}"#,
        r#"{"a":[1,2}"#,
        r#"{"a":[1 2]}"#,
        r#"{"a":[1,]}"#,
        r#"{"a":1]"#,
        r#"{"a":,#}"#,
        r#"{"a":{"b":1,"b":2}}"#,
        "[1",
        "[1]",
        "[1]]",
        "-",
        "00",
        "tru e",
        "]",
        ":",
        "#",
        " ",
    ] {
        assert_eq!(twins.both(&format!("info 'json:{text}'")).code, Some(1), "{text}");
    }
    for depth in [1024, 1025] {
        let text = "[".repeat(depth) + &"]".repeat(depth);
        assert_eq!(twins.both(&format!("info json:{text}")).code, Some(1));
    }
}

#[test]
fn disks_of_images_in_images_are_described_as_trees() {
    let twins = Twins::new();
    twins.script(
        "0 create -q -f qcow2 a 1M
         0 create -q -f qcow2 -b a -F qcow2 over
         io a write -P 3 0 64k",
    );
    for options in [
        "driver=raw,file.driver=qcow2,file.file.filename=a",
        "driver=raw,file.driver=qcow2,file.file.filename=over",
        "driver=raw,size=512k,file.driver=qcow2,file.file.filename=a",
        "driver=raw,file.driver=raw,file.file.filename=a",
        "driver=raw,file.driver=raw,file.file.driver=raw,file.file.file.filename=a",
        "file.driver=raw,file.file.filename=a",
        "driver=qcow2,file.driver=raw,file.offset=0,file.file.filename=a",
        "driver=raw,file.driver=qcow2,file.file.driver=blkdebug,file.file.image.driver=file,file.file.image.filename=a",
        "driver=blkdebug,image.driver=qcow2,image.file.filename=a",
        "driver=raw,file.driver=blkdebug,file.image.driver=qcow2,file.image.file.filename=a",
    ] {
        twins.ok(&format!("info --image-opts {options}"));
        twins.ok(&format!("info --output json --image-opts {options}"));
    }
    twins.script(
        "0 map --image-opts driver=raw,file.driver=qcow2,file.file.filename=a
         0 map --image-opts driver=qcow2,file.driver=raw,file.file.filename=a
         0 map --output json --image-opts driver=qcow2,file.driver=raw,file.file.filename=a
         0 map --image-opts driver=raw,file.driver=raw,file.file.driver=raw,file.file.file.filename=a
         0 compare --image-opts driver=raw,file.driver=qcow2,file.file.filename=a driver=qcow2,file.filename=a",
    );
}

#[test]
fn images_in_use_are_looked_at_and_have_overlays_made_over_them() {
    let twins = Twins::new();
    twins.script(
        "0 create -q -f qcow2 a 1M
         0 create -q -f raw r 1M",
    );
    let images = [("qcow2", "a"), ("raw", "r")];
    let guests = images.map(|(format, image)| {
        [twins.ours(), twins.theirs()].map(|directory| Guest::new(directory, format, image))
    });
    twins.refused("map a", "Failed to get shared \"write\" lock");
    for options in ["force-share=on", "file.locking=off", "file.force-share=on"] {
        twins.ok(&format!(
            "map --image-opts driver=qcow2,file.filename=a,{options}"
        ));
    }
    twins.ok("create -f qcow2 -F qcow2 -b a overlay");
    twins.ok("create -f qcow2 -F raw -b r other");
    drop(guests);
    twins.script(
        "same overlay
         same other",
    );
}

#[test]
fn objects_are_lists_or_json_and_never_shown() {
    let twins = Twins::new();
    twins.script(IMAGE);
    twins.ok(r#"map --object '{"data":"hunter2","qom-type":"secret","id":"s"}' a"#);
    let lab = Lab::new();
    lab.imgtool("create -q -f qcow2 a 1M");
    for object in [r#"{"data":"hunter2","id":"s"}"#, "data:hunter2,id=s"] {
        let done = lab.run_words(&["imgtool", "qemu-img", "info", "--object", object, "a"]);
        assert_eq!(done.code(), 1);
        assert!(done.stderr().contains("qom-type"), "{}", done.stderr());
        assert!(!done.stderr().contains("hunter2"), "{}", done.stderr());
    }
}

#[test]
fn formats_that_are_not_read_are_not_taken_for_raw() {
    let lab = Lab::new();
    for format in ["vmdk", "vdi", "vhdx", "vpc", "qed", "parallels"] {
        lab.qemu_img(&format!("create -q -f {format} v 8M"));
        let before = fs::read(lab.path("v")).unwrap();
        for line in [
            "qemu-img info v",
            "qemu-img convert -O raw v new",
            "qemu-img resize v +8M",
        ] {
            let done = lab.run(&format!("imgtool {line}"));
            let text = format!("qemu-img: Could not open 'v': Unknown driver '{format}'\n");
            assert_eq!((done.code(), done.stderr()), (1, text), "{line}");
        }
        for line in [
            "info v",
            "convert -O raw v new",
            "resize v 16M",
            "map v",
            "compare v v",
            "check v",
        ] {
            lab.run(&format!("imgtool {line}")).fails(
                if line.starts_with("compare") { 2 } else { 1 },
                &["v", format, "not supported", "format is raw"],
            );
        }
        assert!(before == fs::read(lab.path("v")).unwrap());
        assert!(!lab.path("new").exists());
        // Said to be raw, it is.
        lab.imgtool("convert -q -f raw -O raw v new");
        assert!(before == fs::read(lab.path("new")).unwrap());
        fs::remove_file(lab.path("new")).unwrap();
        fs::remove_file(lab.path("v")).unwrap();
    }
}

/// A script that tries again what had been done would do it twice.
#[test]
fn what_is_said_in_passing_may_go_unread() {
    let twins = Twins::new();
    twins.script(IMAGE);
    for (line, code) in [
        ("resize a +1M", 0),
        ("create -f qcow2 b 1M", 0),
        ("info a", 1),
        // 1 would mean that they differ.
        ("compare a a", 2),
        ("compare a b", 2),
    ] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let done = Command::new(twins.link())
            .args(line.split(' '))
            .current_dir(twins.ours())
            .stdout(full)
            .output()
            .unwrap();
        assert_eq!(done.status.code(), Some(code), "{line}: {done:?}");
    }
    assert!(twins.ours().join("b").exists());
    let lab = Lab::new();
    lab.imgtool("create -q -f raw a 1M");
    lab.imgtool("create -q -f raw b 2M");
    for other in ["a", "b"] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let done = lab
            .command("imgtool")
            .args(["compare", "a", other])
            .stdout(full)
            .output()
            .unwrap();
        assert_eq!(done.status.code(), Some(2), "{done:?}");
    }
}
