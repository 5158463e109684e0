//! External data files as `qemu-img`: which file a name is, and what is said where it is gone.

use std::fs;
use std::path::Path;

use crate::common::Lab;
use crate::common::twins::Twins;

#[test]
fn a_check_misses_a_data_file_that_is_gone() {
    let twins = Twins::new();
    twins.script("0 create -q -f qcow2 -o data_file=data image 1M");
    twins.in_both(|directory: &Path| fs::remove_file(directory.join("data")).unwrap());
    for line in ["check image", "check -r all image", "check --output=json image"] {
        twins.refused(line, "Could not open 'data': No such file or directory");
    }
}

#[test]
fn a_data_file_of_the_same_name_elsewhere_is_not_emptied() {
    let lab = Lab::new();
    fs::create_dir(lab.path("sub")).unwrap();
    fs::write(lab.path("sub/data"), "precious").unwrap();
    lab.raw("source", 1 << 20, 1);
    for line in [
        "create -q -f qcow2 -o data_file=data sub/image 1M",
        "convert -f raw -O qcow2 -o data_file=data source sub/image",
    ] {
        let done = lab.run(&format!("imgtool qemu-img {line}"));
        assert_eq!(done.code(), 1);
        assert!(
            done.stderr().contains("the data file exists"),
            "{}",
            done.stderr()
        );
        assert_eq!(fs::read(lab.path("sub/data")).unwrap(), b"precious");
        assert!(!lab.path("sub/image").exists());
    }
    fs::write(lab.path("data"), "to go").unwrap();
    lab.imgtool("qemu-img create -q -f qcow2 -o data_file=data image 1M");
    assert_eq!(lab.path("data").metadata().unwrap().len(), 1 << 20);
}
