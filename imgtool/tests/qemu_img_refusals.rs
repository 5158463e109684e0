//! What `qemu-img` does not do, by our link and by QEMU's own program: the same words and exit codes, in tables of command lines.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use crate::common::twins::Twins;
use crate::common::{Lab, Loop};

/// Sets the first L2 entry of an image, in both directories.
fn set_first_entry(twins: &Twins, name: &str, entry: u64) {
    twins.in_both(|directory: &Path| {
        let path = directory.join(name);
        let mut bytes = fs::read(&path).unwrap();
        let at = |offset: u64| offset as usize..offset as usize + 8;
        let read = |offset: u64| u64::from_be_bytes(bytes[at(offset)].try_into().unwrap());
        let table = read(read(40)) & OFFSET;
        bytes[at(table)].copy_from_slice(&entry.to_be_bytes());
        fs::write(&path, bytes).unwrap();
    });
}

/// The offset in an L1 entry.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

#[test]
fn snapshots_of_damaged_images_are_refused_alike() {
    let twins = Twins::new();
    for name in ["reserved", "far", "beyond"] {
        twins.script(&format!(
            "0 create -q -f qcow2 {name} 1M
             io {name} write -P 1 0 64k"
        ));
    }
    set_first_entry(&twins, "reserved", 0xbfff_ffff_ffff_0000);
    set_first_entry(&twins, "far", 0x80ff_ffff_ffff_0000);
    set_first_entry(&twins, "beyond", 0x8000_0001_0000_0000);
    twins.refused("snapshot -c one reserved", "File too large");
    twins.refused("snapshot -c one far", "File too large");
    twins.refused("snapshot -c one beyond", "Resource temporarily unavailable");
}

#[test]
fn images_that_are_read_from_are_not_written_over() {
    Twins::new().script(
        "0 create -q -f qcow2 a 1M
         0 create -q -f raw r 1M
         io a write -P 1 0 64k
         1 convert a a
         1 convert -O qcow2 a a
         1 convert -f qcow2 -O qcow2 ./a a
         1 convert -n -O qcow2 a a
         1 convert -f raw r r
         1 convert -n -f raw r r
         1 dd if=a of=a
         1 dd -O qcow2 if=a of=a
         file r
         same a",
    );
    // QEMU's own empties the file first here, and then copies what is left of it.
    let twins = Twins::new();
    fs::write(twins.ours().join("r"), [7; 4096]).unwrap();
    let line = crate::common::twins::words("dd -f raw if=r of=r");
    let done = crate::common::twins::run(&twins.link(), &line, twins.ours());
    assert_eq!(done.code, Some(1), "{done:?}");
    assert!(done.err.contains("Failed to get \"write\" lock"), "{done:?}");
    assert_eq!(fs::read(twins.ours().join("r")).unwrap(), [7; 4096]);
}

#[test]
fn what_a_device_takes_on_its_host_is_told_alike() {
    let lab = Lab::new();
    lab.qemu_img("create -q -f qcow2 image 1M");
    lab.run("truncate -s 2M image").ok();
    let device = Loop::new(&lab, "image", &[]);
    for options in ["", "--output=json", "-f raw --output=json"] {
        let line = format!("info {options} {}", device.0);
        assert_eq!(lab.imgtool(&format!("qemu-img {line}")), lab.qemu_img(&line));
    }
}

#[test]
fn the_disk_goes_back_to_no_snapshot_while_there_are_bitmaps() {
    let twins = Twins::new();
    twins.script(
        "0 create -q -f qcow2 a 1M
         0 snapshot -c s a
         0 bitmap --add a b
         io a write -P 2 0 64k",
    );
    for name in ["s", "none"] {
        twins.refused(
            &format!("snapshot -a {name} a"),
            "Device has active dirty bitmaps",
        );
    }
    twins.script(
        "0 bitmap --disable a b
         1 snapshot -a s a
         same a
         0 bitmap --remove a b
         0 snapshot -a s a
         same a",
    );
    twins.refused(
        "info json:{\"filename\":\"a\"}",
        "Must specify either driver or file",
    );
}

#[test]
fn images_that_can_have_no_snapshots_are_refused_alike() {
    Twins::new().script(
        "0 create -q -f qcow2 -o data_file=ext.data ext 1M
         1 snapshot -c s ext
         1 snapshot -a s ext
         1 snapshot -d s ext
         0 snapshot -l ext
         0 create -q -f raw r 1M
         1 snapshot -c s r
         1 snapshot -a s -f raw r
         1 snapshot -d s -f raw r",
    );
}

#[test]
fn names_of_snapshots_are_cut_where_they_are_too_long() {
    let twins = Twins::new();
    twins.ok("create -q -f qcow2 a 1M");
    let long = |letter: &str, len: usize| letter.repeat(len);
    twins.ok(&format!("snapshot -c {} a", long("s", 255)));
    twins.ok(&format!("snapshot -c {} a", long("t", 256)));
    twins.ok(&format!("snapshot -c {} a", long("u", 300)));
    // As it was given it is not there.
    for (action, name) in [("-a", long("t", 256)), ("-d", long("u", 300))] {
        assert_eq!(twins.both(&format!("snapshot {action} {name} a")).code, Some(1));
    }
    for (action, name) in [
        ("-a", long("t", 255)),
        ("-d", long("u", 255)),
        ("-d", long("s", 255)),
    ] {
        twins.ok(&format!("snapshot {action} {name} a"));
    }
    twins.assert_same_disk("a");
}

#[test]
fn sizes_and_versions_that_snapshots_hold_are_refused_alike() {
    Twins::new().script(
        "0 create -q -f qcow2 a 1M
         0 snapshot -c one a
         0 amend -o size=2M a
         1 amend -o compat=0.10 a
         0 create -q -f qcow2 -o compat=0.10 old 1M
         0 snapshot -c one old
         1 amend -o size=2M old
         1 amend -o size=1M old
         1 amend -o size=1000 old
         1 resize old 2M
         1 resize old 1M
         1 resize --shrink old 512k
         0 amend -o compat=1.1,size=2M old
         same old
         0 create -q -f qcow2 b 1M
         0 snapshot -c one b
         0 amend -o compat=0.10 b
         1 amend -o compat=0.10,size=3M b
         same b
         # QEMU's own has resized it after that.
         0 create -q -f qcow2 c 1M
         0 snapshot -c one c
         1 amend -o compat=0.10,size=2M c",
    );
}

#[test]
fn compression_with_zstd_is_in_the_way_of_version_2_where_it_is_used() {
    Twins::new().script(
        "0 create -q -f qcow2 source 1M
         io source write -P 1 0 128k
         0 create -q -f qcow2 -o compression_type=zstd none 1M
         0 amend -o compat=0.10 none
         file none
         0 convert -c -O qcow2 -o compression_type=zstd source some
         1 amend -o compat=0.10 some
         0 info some
         same some",
    );
}

#[test]
fn bitmaps_that_cannot_be_are_refused_alike() {
    let twins = Twins::new();
    twins.script(
        "0 create -q -f qcow2 -o compat=0.10 old 1M
         0 create -q -f raw r 1M
         0 create -q -f qcow2 a 2M
         0 create -q -f qcow2 small 1M
         0 create -q -f qcow2 with 2M
         0 bitmap --add with one
         1 bitmap --add old b
         1 bitmap --add --disable old b
         1 bitmap --add -g 1000 old b
         1 bitmap --remove old b
         1 bitmap --merge x old b
         1 bitmap --add r b
         1 bitmap --add -f raw r b
         1 bitmap --add -g 1000 -f raw r b
         1 bitmap --remove r b
         1 bitmap --clear -f raw r b
         1 bitmap --enable -f raw r b
         1 bitmap --disable -f raw r b
         1 bitmap --merge x -f raw r b
         1 bitmap --merge x -b a -F qcow2 -f raw r b
         1 bitmap --merge x -b gone -f raw r b
         1 convert --bitmaps -f raw -O qcow2 r out
         1 convert --bitmaps -O qcow2 old out
         1 convert --bitmaps -f raw -O foo r out
         1 convert --bitmaps -f raw -O qcow2 -o foo=1 r out
         1 convert --bitmaps -f raw -c -O raw r out
         1 convert --bitmaps -f raw -O qcow2 -o cluster_size=3 r out
         1 convert --bitmaps -f raw -O qcow2 r r out
         1 convert --bitmaps -f raw -n -O qcow2 r gone
         1 convert --bitmaps -O raw with out
         1 convert --bitmaps -O raw with gone/out
         1 convert --bitmaps -n -O raw with r
         1 convert --bitmaps -n -c -O raw with r
         1 convert --bitmaps -n -O qcow2 with old
         1 convert --bitmaps -n -O qcow2 a old
         1 convert --bitmaps -n -O qcow2 with small
         1 convert --bitmaps -O qcow2 -o compat=0.10 with gone/out
         0 convert --bitmaps -O qcow2 with out
         1 convert --bitmaps -n -O qcow2 with out
         same out",
    );
    // QEMU's own leaves the new file there.
    twins.refused(
        "convert --bitmaps -O qcow2 -o compat=0.10 with made",
        "does not support bitmaps",
    );
    assert!(!twins.ours().join("made").exists());
    // The bitmap of an image that was not closed.
    twins.in_both(|directory| {
        let path = directory.join("with");
        let mut bytes = fs::read(&path).unwrap();
        let name = bytes.windows(3).rposition(|bytes| bytes == b"one").unwrap();
        // The directory's entry: the flags are 12 bytes behind its start, and the name 24.
        bytes[name - 9] |= 1;
        fs::write(&path, bytes).unwrap();
    });
    twins.script(
        "1 convert --bitmaps -O qcow2 with made
         0 convert --bitmaps --skip-broken-bitmaps -O qcow2 with skipped
         0 info skipped
         1 bitmap --clear with one
         1 bitmap --add with one
         0 bitmap --remove with one",
    );
}

#[test]
fn bitmaps_do_not_need_what_lies_below() {
    let twins = Twins::new();
    twins.script(
        "0 create -q -f qcow2 a 1M
         0 create -q -f qcow2 -b a -F qcow2 over",
    );
    twins.in_both(|directory| fs::remove_file(directory.join("a")).unwrap());
    twins.script(
        "0 bitmap --add over b
         0 bitmap --add --disable over c
         0 bitmap --merge b over c
         0 info over
         0 bitmap --remove over b
         0 info over",
    );
}

#[test]
fn bitmaps_that_do_not_fit_are_refused_alike() {
    let twins = Twins::new();
    twins.script(
        "0 create -q -f qcow2 a 1M
         0 bitmap --add a b
         0 create -q -f qcow2 -o cluster_size=2M huge 1P
         1 bitmap --add huge c
         1 bitmap --add -g 512 huge c
         0 bitmap --add -g 2G huge c
         1 bitmap --add -g 4G a c
         1 bitmap --add -g 256 a b
         1 bitmap --add a ''",
    );
    let long = "n".repeat(1024);
    assert_eq!(twins.both(&format!("bitmap --add a {long}")).code, Some(1));
    assert_eq!(twins.both(&format!("bitmap --remove a {long}")).code, Some(1));
    twins.ok(&format!("bitmap --add a {}", &long[1..]));
}

#[test]
fn disks_and_references_that_do_not_fit_are_refused_alike() {
    Twins::new().script(
        "0 create -q -f qcow2 a 1M
         io a write -P 1 0 64k
         1 resize a 7E
         1 amend -o size=7E a
         0 snapshot -c one a
         1 amend -o refcount_bits=1 a
         0 snapshot -c two a
         0 snapshot -c three a
         1 amend -o refcount_bits=2 a
         0 amend -o refcount_bits=4 a
         same a",
    );
}

#[test]
fn columns_are_as_wide_as_names_have_bytes() {
    let twins = Twins::new();
    twins.ok("create -q -f qcow2 a 1M");
    // At the same second.
    for name in ["äöü€", "aaaaaaaaaaaaaaaaaaaäöü€", "ääääääää", "äääääää"] {
        let theirs = twins.theirs().join("a");
        crate::common::twins::run(
            Path::new("qemu-img"),
            &[
                "snapshot".into(),
                "-c".into(),
                name.into(),
                theirs.display().to_string(),
            ],
            twins.theirs(),
        );
    }
    fs::copy(twins.theirs().join("a"), twins.ours().join("a")).unwrap();
    twins.ok("snapshot -l a");
    twins.ok("info a");
}

#[test]
fn backing_files_that_an_image_cannot_name_are_refused_alike() {
    let twins = Twins::new();
    twins.ok("create -q -f qcow2 a 1M");
    for (options, len) in [("", 1024), ("", 5000), ("-o cluster_size=512", 500)] {
        let name = "x".repeat(len);
        let line = format!("create -f qcow2 {options} -u -b {name} -F raw new 1M");
        assert_eq!(twins.both(&line).code, Some(1), "{line}");
        let line = format!("rebase -u -b {name} -F raw a");
        let code = i32::from(len > 1023);
        assert_eq!(twins.both(&line).code, Some(code), "{line}");
    }
    twins.in_both(|directory| assert!(!directory.join("new").exists()));
    twins.ok(&format!(
        "create -f qcow2 -u -b {} -F raw new 1M",
        "x".repeat(1023)
    ));
}

#[test]
fn raw_images_that_are_to_be_changed_come_with_a_warning() {
    Twins::new().script(
        "0 create -q -f raw r 1M
         63 check r
         63 check -r all r
         63 check -r leaks r
         63 check -f raw -r all r
         0 resize file:r 2M
         0 resize ./r 3M
         0 resize json:{'file':{'driver':'file','filename':'r'}} 4M
         0 resize json:{'driver':'raw','file':{'driver':'file','filename':'r'}} 5M
         0 resize --image-opts file.filename=r 6M
         0 resize --image-opts driver=raw,file.filename=r 7M",
    );
}

#[test]
fn what_cannot_be_compressed_is_refused_alike() {
    Twins::new().script(
        "0 create -q -f qcow2 one 1M
         0 create -q -f qcow2 two 1M
         io two write -P 3 0 256k
         0 create -q -f qcow2 -o data_file=data -b one -F qcow2 over
         1 rebase -c -b two -F qcow2 over
         1 rebase -c -b gone -F qcow2 over
         1 rebase -c -b two -F foo over
         0 rebase -c -u -b two -F qcow2 over
         1 convert -n -c -O qcow2 two over
         1 rebase -c -f raw -b two -F qcow2 data",
    );
}

#[test]
fn objects_are_looked_at_alike() {
    let twins = Twins::new();
    twins.ok("create -q -f qcow2 a 1M");
    twins.in_both(|directory| {
        let keys = directory.join("keys");
        fs::create_dir(&keys).unwrap();
        fs::write(keys.join("keys.psk"), format!("other:{}\n", "0".repeat(64))).unwrap();
        fs::write(keys.join("ca-cert.pem"), "").unwrap();
    });
    for (code, object) in [
        (0, "tls-creds-anon,id=t"),
        (0, "tls-creds-anon,id=t,endpoint=server,dir=gone,priority=x"),
        (1, "tls-creds-anon"),
        (1, "tls-creds-anon,id=t,endpoint=both"),
        (1, "tls-creds-anon,id=t,verify-peer=maybe"),
        (1, "tls-creds-anon,id=t,passwordid=x"),
        (1, "tls-creds-psk,id=t"),
        (1, "tls-creds-psk,id=t,dir=gone"),
        (1, "tls-creds-psk,id=t,dir=keys"),
        (1, "tls-creds-psk,id=t,dir=keys,username=oth"),
        (0, "tls-creds-psk,id=t,dir=keys,username=other"),
        (0, "tls-creds-psk,id=t,dir=keys,endpoint=server"),
        (1, "tls-creds-psk,id=t,dir=keys,endpoint=server,username=other"),
        (1, "tls-creds-psk,id=t,dir=keys,sanity-check=on"),
        (1, "tls-creds-x509,id=t,endpoint=client"),
        (1, "tls-creds-x509,id=t,endpoint=client,dir=gone"),
        (1, "tls-creds-x509,id=t,endpoint=server,dir=gone"),
        (1, "tls-creds-x509,id=t,endpoint=server,dir=keys"),
        (1, "tls-creds-x509,id=t,endpoint=client,dir=keys"),
        (1, "tls-creds-x509,id=t,dir=keys,foo=1"),
        (0, "throttle-group,id=t,x-iops-total=100,limits.bps-read=1"),
        (1, "throttle-group,id=t,x-foo=1"),
        (1, "throttle-group,id=1"),
        (1, "throttle-group"),
        (1, "secret,id=1s,data=a"),
        (1, "secret,id=s,data=a,foo=b"),
        (1, "secret,id=s,data=a,format=x"),
        (1, "secret,data=a,foo=b"),
        (1, "foo,id=s"),
        (1, "''"),
        (1, ","),
        (1, "="),
        (1, "a=b"),
        (1, "secret,,id=s"),
        (1, "secret,id"),
        (1, "foo"),
        (1, "secret,id=s,data"),
        (1, "secret,id=s,nodata"),
        (1, "secret,id=s,=x"),
        (1, "secret,id=s,a..b=x"),
        (1, "secret,id=s,d?=x"),
        (1, "secret,id=s,data.x=y"),
        (1, "secret,id=s,data=x,data.y=z"),
        (1, "secret,id=s,data=x,file=y"),
        (1, "secret,id=s,file=."),
        (1, "secret,id=s,keyid=m,data=x,foo"),
        (1, "secret,id=s,keyid=m,data=x"),
        (1, "secret,id=s,keyid=s,data=x"),
        (1, "secret,id=m,data=x --object secret,id=s,keyid=m,data=x"),
        (
            1,
            "secret,id=m,data=01234567890123456789012345678901 --object secret,id=s,keyid=m,data=x",
        ),
        (
            1,
            "secret,id=m,data=01234567890123456789012345678901 --object secret,id=s,keyid=m,iv=AAAA,data=x",
        ),
        (
            1,
            "secret,id=m,data=01234567890123456789012345678901 --object \
             secret,id=s,keyid=m,iv=AAAAAAAAAAAAAAAAAAAAAA==,data=x",
        ),
        (
            1,
            "secret,id=m,data=01234567890123456789012345678901 --object \
             secret,id=s,keyid=m,iv=AAAAAAAAAAAAAAAAAAAAAA==,data=AAAAAAAAAAAAAAAAAAAAAA==,format=base64",
        ),
        (0, "secret,qom-type=secret,id=s,data=x"),
        (0, "id=s,qom-type=secret,data=x"),
        (1, "secret,qom-type=foo,id=s,data=x"),
        (1, "secret,id=s,data=!!!,format=base64"),
        (1, "'secret,id=s,data=AA AA,format=base64'"),
        (0, "secret,id=s,data=AAA,format=base64"),
        (0, "secret,id=s,data=AAAA=,format=base64"),
        (0, "secret,help"),
        (0, "secret,?"),
        (0, "secret,id=s,help"),
        (0, "throttle-group,help"),
        (0, "tls-creds-anon,help"),
        (0, "tls-creds-psk,help"),
        (0, "tls-creds-x509,help"),
        (1, "secret,help,foo"),
        (1, "throttle-group,id=t,limits=1"),
        (1, "throttle-group,id=t,limits.foo=1"),
        (1, "throttle-group,id=t,limits.bps-total.x=1"),
        (1, "throttle-group,id=t,limits.bps-total=1k"),
        (1, "throttle-group,id=t,limits.bps-total=-1"),
        (1, "throttle-group,id=t,limits.bps-total=1,limits.bps-read=1"),
        (1, "throttle-group,id=t,limits.iops-size=1"),
        (1, "throttle-group,id=t,limits.bps-total-max-length=0"),
        (1, "throttle-group,id=t,limits.bps-total-max-length=99999999999"),
        (1, "throttle-group,id=t,x-bps-total-max-length=99999999999"),
        (1, "throttle-group,id=t,x-bps-total=x"),
        (1, "throttle-group,id=t,x-bps-total=-1"),
        (1, "throttle-group,id=t,x-bps-total=9999999999999999"),
        (1, "throttle-group,id=t,x-bps-total-max=1"),
        (1, "throttle-group,id=t,x-bps-total=2,x-bps-total-max=1"),
        (1, "throttle-group,id=t,x-bps-total=2,x-bps-total-max-length=2"),
        (
            0,
            "throttle-group,id=t,x-bps-total=2,x-bps-total-max=4,x-bps-total-max-length=2",
        ),
        (1, "throttle-group,id=t,x-iops-total=1,x-iops-write=1"),
        (1, r#"{"qom-type":"secret","id":"s","data":12345}"#),
        (1, r#"{"qom-type":"secret","id":"s","data":null}"#),
        (1, r#"{"qom-type":"secret","id":"s","data":["x"]}"#),
        (1, r#"{"qom-type":"secret","id":1,"data":"x"}"#),
        (1, r#"{"qom-type":1,"id":"s","data":"x"}"#),
        (1, r#"{"qom-type":"secret","id":"s","file":1}"#),
        (1, r#"{"qom-type":"secret","id":"s","format":1,"data":"x"}"#),
        (1, r#"{"qom-type":"secret","id":"s","data":"x","x":{"y":1}}"#),
        (1, r#"{"qom-type":"secret","id":"s","data":}"#),
        (1, r#"{"qom-type":"secret","id":"s","data":"x"}x"#),
        (1, r#"{"qom-type":"throttle-group","id":"t","limits":1}"#),
        (
            1,
            r#"{"qom-type":"throttle-group","id":"t","limits":{"bps-total":"1"}}"#,
        ),
        (1, r#"{"qom-type":"throttle-group","id":"t","x-bps-total":"1"}"#),
        (1, r#"{"qom-type":"tls-creds-anon","id":"t","verify-peer":"on"}"#),
        (1, r#"{"qom-type":"tls-creds-anon","id":"t","dir":1}"#),
        (1, r#"{"qom-type":"secret","id":"s","id":"t","data":"x"}"#),
        (1, r#"{"qom-type":"secret""#),
        (1, "secret,id=s,data=a --object tls-creds-anon,id=s"),
        (1, "tls-creds-anon,id=s --object tls-creds-psk,id=s"),
    ] {
        let line = format!("info --object {object} a");
        assert_eq!(twins.both(&line).code, Some(code), "{line}");
    }
}

#[test]
fn what_json_says_twice_is_refused_alike() {
    let twins = Twins::new();
    twins.ok("create -q -f qcow2 a 1M");
    for (code, json) in [
        (
            1,
            r#"json:{"driver":"qcow2","driver":"raw","file":{"driver":"file","filename":"a"}}"#,
        ),
        (
            1,
            r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"b","filename":"a"}}"#,
        ),
        (
            1,
            "json:{'driver':'qcow2','driver':'raw','file':{'driver':'file','filename':'a'}}",
        ),
        (
            0,
            r#"json:{"driver":"qcow2","file.driver":"file","file":{"filename":"a"}}"#,
        ),
        (1, "json:"),
    ] {
        let line = format!("info {json}");
        assert_eq!(twins.both(&line).code, Some(code), "{line}");
    }
    twins.ok("info --image-opts driver=qcow2,driver=raw,file.filename=a");
}

#[test]
fn disks_of_which_nothing_is_asked_for_are_mapped_alike() {
    Twins::new().script(
        "0 create -q -f raw r 0
         0 create -q -f qcow2 q 0
         0 create -q -f qcow2 a 1M
         0 map -f raw r
         0 map -f raw --output json r
         0 map q
         0 map --output json q
         0 map --output json -s 1M a
         0 map --output json -s 2M a
         0 map --output json -l 0 a
         0 map -s 2M a",
    );
}

#[test]
fn character_devices_are_empty_disks() {
    Twins::new().script(
        "0 create -q -f raw r 1M
         0 create -q -f raw e 0
         0 info /dev/null
         0 info -f raw /dev/null
         0 info --output json -f raw /dev/zero
         0 info --image-opts driver=host_device,filename=/dev/null
         1 info --image-opts driver=file,filename=/dev/null
         1 info file:/dev/null
         1 info -f qcow2 /dev/null
         1 info /dev/tty
         0 map -f raw --output json /dev/null
         63 check /dev/null
         63 check -r all /dev/null
         0 compare -f raw -F raw /dev/null e
         0 measure -f raw -O qcow2 /dev/null
         0 convert /dev/null out
         file out
         0 convert -f raw -O qcow2 /dev/null out
         same out
         0 create -f raw /dev/null 0
         1 create -f qcow2 /dev/null 0
         0 convert -f raw e /dev/null
         1 convert -f raw -O qcow2 e /dev/null
         0 dd -f raw if=e of=/dev/null
         0 dd -f raw if=r of=/dev/null count=0
         0 dd -f raw if=/dev/null of=out
         file out
         0 snapshot -l /dev/null
         1 snapshot -c x /dev/null
         1 bitmap --add -f raw /dev/null b
         1 commit -f raw /dev/null
         1 rebase -f raw -b '' /dev/null
         1 amend -f raw -o size=1 /dev/null
         1 resize -f raw /dev/null 1M
         1 resize -f raw --preallocation=full /dev/null 1M
         1 create -f raw /dev/null 1M
         1 create -f qcow2 /dev/null 1M
         1 convert -f raw r /dev/null
         1 convert -f raw -O qcow2 r /dev/null
         1 convert -n -f raw r /dev/null
         1 dd -f raw if=r of=/dev/null
         0 create -f qcow2 -b /dev/null -F raw over 1M
         0 map --output json over
         0 info --backing-chain over
         0 rebase -b '' over",
    );
}

#[test]
fn devices_stay_as_long_as_they_are() {
    let twins = Twins::new();
    let devices: Vec<Device> = [twins.theirs(), twins.ours()]
        .into_iter()
        .map(Device::new)
        .collect();
    twins.script(
        "0 create -q -f raw r 2M
         0 create -q -f raw big 8M
         1 resize -f raw device 8M
         1 resize -f raw --shrink device 8M
         0 resize -f raw device 4M
         0 resize -f raw device +0
         1 resize -f raw device 2M
         1 resize -f raw --shrink device 2M
         1 resize -f raw --shrink device -1M
         1 resize --preallocation=full -f raw device 8M
         1 resize --preallocation=falloc -f raw device 8M
         1 create -f raw device 8M
         0 create -f raw device 4M
         0 create -f raw device 2M
         1 convert -f raw -O raw big device
         1 convert -n -f raw -O raw big device
         1 dd -f raw if=big of=device
         1 convert -f raw device device
         0 create -f qcow2 device 1M
         0 resize device 8M
         1 resize device 512k
         0 resize --shrink device 512k
         0 convert -f raw -O raw r device",
    );
    drop(devices);
}

/// A block device of 4 MiB with a link to it in a directory.
struct Device(String);

impl Device {
    fn new(directory: &Path) -> Self {
        let file = directory.join("device.raw");
        fs::write(&file, vec![0; 4 << 20]).unwrap();
        let made = Command::new("losetup").args(["--show", "-f"]).arg(&file).output();
        let made = made.unwrap();
        assert!(made.status.success(), "losetup: {made:?}");
        let name = String::from_utf8(made.stdout).unwrap().trim().to_owned();
        symlink(&name, directory.join("device")).unwrap();
        Self(name)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

#[test]
fn odd_names_sizes_and_formats_are_taken_alike() {
    let twins = Twins::new();
    twins.in_both(|directory| {
        fs::create_dir(directory.join("d")).unwrap();
        symlink("loop", directory.join("loop")).unwrap();
        symlink("gone", directory.join("dangling")).unwrap();
        fs::write(directory.join("one"), "x").unwrap();
        drop(UnixListener::bind(directory.join("socket")).unwrap());
        let made = Command::new("mkfifo")
            .arg(directory.join("fifo"))
            .status()
            .unwrap();
        assert!(made.success());
    });
    twins.script(
        "0 create -q -f qcow2 a 1M
         0 create -q -f raw r 1M
         0 create -q -f qcow2 -b a -F qcow2 over
         0 create -f raw x +1M
         0 create -f raw x +0x200
         0 resize a ++1k
         1 resize -f raw r +-1k
         1 create -f raw d 1M
         1 create -f raw d/ 1M
         1 create -f raw no/ 1M
         1 create -f raw no/x 1M
         1 create -f qcow2 loop 1M
         0 create -f qcow2 dangling 1M
         1 info loop
         1 info d
         1 info a/
         1 info a/b
         0 info one
         1 info -f qcow2 one
         0 map -f raw --output json one
         0 compare one one
         1 convert
         1 convert a
         1 convert -l '' a x
         1 measure -l '' a
         1 convert -n --target-image-opts -O raw a driver=raw,file.filename=r
         1 create -f qcow2 -F qcow2 x 1M
         1 create -f qcow2 -F foo x 1M
         1 create -f qcow2 -F raw -u x 1M
         1 create -f qcow2 -u -b a -F foo x 1M
         0 create -f qcow2 -u -b a -F vmdk x 1M
         1 convert -O qcow2 -F qcow2 a x
         1 convert -O qcow2 -o backing_fmt=raw a x
         0 create -f file x 1M
         0 create -f file -o preallocation=full x 1M
         0 create -f file -o help
         0 create -f file -o help x
         0 convert -O file a x
         file x
         0 dd -O file if=a of=x
         file x
         1 measure -O file --size 1M
         1 measure -O null-co --size 1M
         1 create -f null-co x 1M
         1 create -f null-aio -o help x
         1 create -f blkdebug x 1M
         1 create -f quorum x 1M
         1 convert -O null-co a x
         1 convert -n -O null-co a x
         1 dd -O null-co if=a of=x
         1 info socket
         1 map socket
         1 create -f raw socket 1M
         1 create -f qcow2 socket 1M
         1 convert a socket
         1 dd if=a of=socket
         1 resize socket 1M
         1 create -f raw fifo 1M
         1 convert a fifo
         1 create -f qcow2 -o data_file=no/x x 1M
         1 create -f qcow2 -o data_file= x 1M
         1 create -f qcow2 -o refcount_bits=-1 x 1M
         1 create -f raw -o extent_size_hint=5G x 1M
         1 create -f qcow2 -o extent_size_hint=5G x 1M
         0 create -f raw -o extent_size_hint=1M x 1M
         0 bitmap --add -g 0 a b
         1 bitmap --add -g 0 a b",
    );
}
