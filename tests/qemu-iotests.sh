#!/bin/sh
# Runs QEMU's own tests of qemu-img (tests/qemu-iotests of QEMU 10.0) with our program in its place.
#
#   tests/qemu-iotests.sh IMGTOOL [quick | all | FORMAT:TEST...]
#
# IMGTOOL    the program (target/release/imgtool)
# quick      what tests/qemu-iotests.list marks as quick; the default
# all        everything that is listed there as expected to pass
#
# The tests are QEMU's, under its licence: they are fetched from this machine's own package sources (Debian: a deb-src line has to be there)
# into $IOTESTS (target/qemu-iotests unless it is set), and nothing of them is kept in this repository. qemu-io and qemu-nbd are those that are
# installed (Debian: qemu-utils). Prints a line for each test; where one fails, its log stays in $IOTESTS/logs.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 1 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2; }
program=$(realpath "$1")
shift
iotests=${IOTESTS:-$here/../target/qemu-iotests}
mkdir -p "$iotests"
iotests=$(cd "$iotests" && pwd)
suite=$iotests/source/tests/qemu-iotests

fetch() {
    [ -x "$suite/check" ] && return
    rm -rf "$iotests/package" && mkdir -p "$iotests/package" "$iotests/source"
    (cd "$iotests/package" && apt-get source -q --download-only qemu)
    tar -xf "$(ls "$iotests"/package/qemu_10.0*.orig.tar.xz)" -C "$iotests/source" --strip-components=1 \
        --wildcards '*/tests/qemu-iotests/*' '*/python/qemu/*'
}

# The name of a system emulator is asked for by every test; these need none.
emulator() {
    printf '#!/bin/sh\ncase "$*" in *help*) echo virtio-blk ;; *) echo "QEMU emulator version 10.0.2" ;; esac\n' > "$1"
    chmod +x "$1"
}

run() { # FORMAT TEST
    log=$iotests/logs/$1-$(basename "$2").txt
    rm -rf "$work/images" "$work/sockets"
    mkdir -p "$work/images"
    if (cd "$work/images" && TEST_DIR=$work/images SOCK_DIR=$work/sockets timeout 300 \
        python3 "$suite/check" --source-dir "$suite" --build-dir "$suite" "-$1" "$2") > "$log" 2>&1 < /dev/null &&
        tr '\r' '\n' < "$log" | grep -Eq "^$2 +pass "; then
        echo "pass $1:$2"
        rm -f "$log"
    else
        echo "FAIL $1:$2 ($log)"
        failed=$((failed + 1))
    fi
}

fetch
work=$(mktemp -d /tmp/iotests-XXXXXX)
trap 'rm -rf "$work"' EXIT
ln -s "$program" "$work/qemu-img"
emulator "$work/qemu-system-x86_64"
mkdir -p "$iotests/logs"
export LANG=C LC_ALL=C.UTF-8 TZ=UTC PYTHONDONTWRITEBYTECODE=1
export QEMU_PROG="$work/qemu-system-x86_64" QEMU_IMG_PROG="$work/qemu-img"
QEMU_IO_PROG=$(command -v qemu-io)
QEMU_NBD_PROG=$(command -v qemu-nbd)
QSD_PROG=$(command -v qemu-storage-daemon)
export QEMU_IO_PROG QEMU_NBD_PROG QSD_PROG
unset IMGOPTS QEMU_IMG_OPTIONS QEMU_NBD_OPTIONS PYTHONPATH || true

case ${1:-quick} in
    quick) tests=$(awk '$2 == "quick" { print $1 }' "$here/qemu-iotests.list") ;;
    all) tests=$(awk '$2 == "quick" || $2 == "slow" { print $1 }' "$here/qemu-iotests.list") ;;
    *) tests=$* ;;
esac
failed=0
count=0
for test in $tests; do
    run "${test%%:*}" "${test#*:}"
    count=$((count + 1))
done
echo "$((count - failed)) of $count passed"
[ "$failed" = 0 ]
