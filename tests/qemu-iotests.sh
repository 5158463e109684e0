#!/bin/sh
# Runs QEMU's own tests of qemu-img (tests/qemu-iotests of QEMU 10.0.2) with our program in its place.
#
#   tests/qemu-iotests.sh IMGTOOL [quick | all | mark | FORMAT:TEST...]
#
# IMGTOOL    the program (target/release/imgtool)
# quick      what tests/qemu-iotests.list marks as quick; the default
# all        everything that is marked there as expected to pass, quick or slow
# mark       everything that is listed, and prints the list with new marks instead of failing
#
# JOBS tests run at a time (2). The tests are QEMU's, under its licence: they are fetched from the package archive that this machine uses
# (Debian's source package of qemu-utils) into $IOTESTS (target/qemu-iotests unless it is set), and nothing of them is kept in this
# repository. qemu-io and qemu-nbd are those that are installed (Debian: qemu-utils). Prints a line for each test; where one fails,
# its log stays in $IOTESTS/logs.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
tarball=qemu_10.0.2+ds.orig.tar.xz
checksum=0901da33844a331bf8b3602b9c1fbd178e60b737c8e3ade678255bd090c9b9f1

# The package archive is asked for sources, wherever it is set up for programs.
fetch() {
    [ -x "$suite/check" ] && return
    package=$iotests/package
    rm -rf "$package" && mkdir -p "$package/sources" "$package/lists/partial" "$package/cache/archives/partial" "$iotests/source"
    for list in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
        [ -e "$list" ] || continue
        sed -E 's/^deb /deb-src /; s/^(Types:).*/\1 deb-src/' "$list" > "$package/sources/$(basename "$list")"
    done
    version=$(dpkg-query -W -f '${source:Version}' qemu-utils)
    (
        cd "$package"
        set -- -q -o "Dir::Etc::sourcelist=/dev/null" -o "Dir::Etc::sourceparts=$package/sources" \
            -o "Dir::State::lists=$package/lists" -o "Dir::Cache=$package/cache" -o APT::Sandbox::User=root
        apt-get "$@" update
        # Of an older version an archive may have lost all but the tarball, which is all that is needed.
        apt-get "$@" source --download-only --only-source "qemu=$version" || true
    ) >&2
    if ! echo "$checksum  $package/$tarball" | sha256sum --check --quiet; then
        echo "$package has no $tarball of the right content: qemu-utils $version is not the version that these tests are for" >&2
        exit 1
    fi
    tar -xf "$package/$tarball" -C "$iotests/source" --strip-components=1 --wildcards '*/tests/qemu-iotests/*' '*/python/qemu/*'
    rm -rf "$package"
}

# Every test asks a system emulator for what there is of formats and devices; no more is needed of it.
emulator() {
    cat > "$1" << 'END'
#!/bin/sh
formats='blkdebug bochs file host_device luks nbd null-aio null-co qcow2 quorum raw throttle vhdx'
case "$*" in
    *format=help*) printf 'Supported formats: %s\nSupported formats (read-only): %s\n' "$formats" "$formats" ;;
    *help*) echo virtio-blk ;;
    *) echo 'QEMU emulator version 10.0.2' ;;
esac
END
    chmod +x "$1"
}

# One test, in a place of its own.
run() { # FORMAT TEST
    name=$1-$2
    log=$iotests/logs/$name.txt
    mkdir -p "$work/$name/images"
    start=$(date +%s)
    if (cd "$work/$name/images" && TEST_DIR=$work/$name/images SOCK_DIR=$work/$name/s timeout 300 \
        python3 "$suite/check" --source-dir "$suite" --build-dir "$suite" "-$1" "$2") > "$log" 2>&1 < /dev/null &&
        tr '\r' '\n' < "$log" | grep -Eq "^$2 +pass "; then
        echo "pass $1:$2 $(($(date +%s) - start))"
        rm -f "$log"
    else
        echo "FAIL $1:$2 $(($(date +%s) - start)) $log"
    fi
    rm -rf "${work:?}/$name"
}

if [ "${1:-}" = --one ]; then
    run "${2%%:*}" "${2#*:}"
    exit
fi

[ $# -ge 1 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2; }
program=$(realpath "$1")
shift
iotests=${IOTESTS:-$here/../target/qemu-iotests}
mkdir -p "$iotests/logs"
iotests=$(cd "$iotests" && pwd)
suite=$iotests/source/tests/qemu-iotests
fetch
work=$(mktemp -d /tmp/iotests-XXXXXX)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
ln -s "$program" "$work/qemu-img"
emulator "$work/qemu-system-x86_64"
export LANG=C LC_ALL=C.UTF-8 TZ=UTC PYTHONDONTWRITEBYTECODE=1
export QEMU_PROG="$work/qemu-system-x86_64" QEMU_IMG_PROG="$work/qemu-img"
QEMU_IO_PROG=$(command -v qemu-io)
QEMU_NBD_PROG=$(command -v qemu-nbd)
QSD_PROG=$(command -v qemu-storage-daemon)
export QEMU_IO_PROG QEMU_NBD_PROG QSD_PROG iotests suite work
unset IMGOPTS QEMU_IMG_OPTIONS QEMU_NBD_OPTIONS PYTHONPATH || true

list=$here/qemu-iotests.list
case ${1:-quick} in
    quick) tests=$(awk '$2 == "quick" { print $1 }' "$list") ;;
    all) tests=$(awk '$2 == "quick" || $2 == "slow" { print $1 }' "$list") ;;
    mark) tests=$(awk '!/^#/ { print $1 }' "$list") ;;
    *) tests=$* ;;
esac
results=$work/results
if [ "${1:-}" = mark ]; then
    echo "$tests" | xargs -P "${JOBS:-2}" -n 1 sh "$here/qemu-iotests.sh" --one > "$results"
    # One that is missing keeps its reason; one that fails and had none gets it from whoever looks.
    awk -v limit=4 '
        FNR == NR { passed[$2] = $1 == "pass"; seconds[$2] = $3; next }
        /^#/ { print; next }
        passed[$1] { printf "%-34s %s\n", $1, seconds[$1] <= limit ? "quick" : "slow"; next }
        { reason = "to be looked at" }
        $2 == "missing" { reason = $0; sub(/^[^ ]+ +missing +/, "", reason) }
        { printf "%-34s missing %s\n", $1, reason }' "$results" "$list"
    exit
fi
# shellcheck disable=SC2086 # a list of words
printf '%s\n' $tests | xargs -P "${JOBS:-2}" -n 1 sh "$here/qemu-iotests.sh" --one | tee "$results"
passed=$(grep -c '^pass' "$results" || true)
count=$(wc -l < "$results")
echo "$passed of $count passed"
[ "$passed" = "$count" ]
