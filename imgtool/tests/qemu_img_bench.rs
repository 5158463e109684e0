//! `qemu-img bench` by our link and by QEMU's own program.

use crate::common;
use crate::common::twins::Twins;

#[test]
fn requests_are_announced_timed_and_refused_in_the_same_words() {
    let twins = Twins::new();
    twins.script(
        "0 create -q -f qcow2 a 8M
         0 create -q -f raw r 8M
         0 create -q -f qcow2 none 0
         0 bench -c 100 a
         0 bench a -c 200 -d 2 -s 512 -S 100
         0 bench -c 10 -S 0 -q -U a
         0 bench -c 10 -f raw -t none -n r
         0 bench -c 10 -f raw -t none -i native r
         0 bench -c 10 -i threads --no-drain --pattern 3 a
         0 bench -c 10 -i io_uring a
         0 bench -c 0x10 -o 1M -s 64k --image-opts driver=qcow2,file.filename=a
         0 bench -w -c 10 -d 2 --flush-interval 3 a
         0 bench -w -c 10 -d 2 --flush-interval 3 --no-drain a
         0 bench -w -c 10 r
         1 bench
         1 bench a r
         1 bench -c 0 a
         1 bench -c -1 a
         1 bench -d 0 a
         1 bench -s 0 a
         1 bench -s 2G a
         1 bench -S -1 a
         1 bench -o -1 a
         1 bench -i foo a
         1 bench -t foo a
         1 bench -n a
         1 bench -i native -t writethrough a
         1 bench --pattern 256 -w a
         1 bench --flush-interval -1 -w a
         1 bench --flush-interval 64 a
         1 bench --flush-interval 63 -w a
         1 bench -c 3 nope
         1 bench -c 3 -f foo a
         1 bench -c 3 -f qcow2 --image-opts a
         # What does not fit on the disk fails, as it does on its way around.
         1 bench -c 3 -o 8M a
         1 bench -c 3 -o 9M a
         1 bench -c 3 -s 3M a
         1 bench -c 3 -s 9M -w a
         1 bench -c 3 none",
    );
}

#[test]
fn what_is_written_is_the_same() {
    let twins = Twins::new();
    twins.script(
        "0 create -q -f qcow2 -o cluster_size=4k a 8M
         0 create -q -f raw r 8M
         0 create -q -f qcow2 -b r -F raw over
         io r write -P 1 0 8M
         0 bench -w --pattern 0x11 -c 100 a
         same a
         # It goes around at the end.
         0 bench -w --pattern 0x22 -c 1000 -o 4M -s 1k -S 12k a
         same a
         0 bench -w -c 20 -d 7 -s 513 -S 60000 over
         same over
         layers over
         0 bench -w --pattern 5 -c 300 -d 3 -s 4k -S 36k --flush-interval 7 -t none -f raw r
         file r
         0 bench -w --pattern 6 -c 50 -d 3 -S 40k -t writethrough a
         0 bench -w --pattern 7 -c 50 -d 50 -i io_uring -S 44k a
         0 bench -w --pattern 8 -c 50 -t unsafe -S 84k a
         same a",
    );
}

/// QEMU needs no more: but here each request has a thread, and there is an end to that.
#[test]
fn more_requests_than_there_can_be_at_once_are_said_to_be_fewer() {
    let twins = Twins::new();
    twins.ok("create -q -f qcow2 a 8M");
    let words = common::twins::words("bench -c 3000 -d 2000 a");
    let done = common::twins::run(&twins.link(), &words, twins.ours());
    assert_eq!(
        (done.code, &*done.err),
        (
            Some(0),
            "qemu-img: warning: no more than 1024 requests are sent in parallel\n"
        )
    );
}
