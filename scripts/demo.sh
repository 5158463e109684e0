#!/usr/bin/env bash
# What it is all for: a template is built of a recipe, three machines are cloned from it, each of which is another one, and one of
# them is booted, shut down, broken, and taken back to a snapshot. After every step somebody else's tool says whether it is right:
# qemu-img, e2fsck, debugfs, and the kernel of a guest.
#
#   scripts/demo.sh            with the imgtool just built (make demo builds it first)
#
# Everything stays under target/demo, and is made anew each time. Packages for the template come from the mirror of this machine's apt.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/sbin" LC_ALL=C
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
imgtool=${IMGTOOL:-$target/release/imgtool}
demo=$target/demo
export IMGTOOL_STORE=$demo/store

heading() { if [ -t 1 ]; then printf '\n\e[1m%s\e[0m\n' "$*"; else printf '\n%s\n' "$*"; fi; }
say() { printf '  %s\n' "$*"; }
fail() { printf 'demo: %s\n' "$*" >&2; exit 1; }
command -v "$imgtool" >/dev/null || fail "no $imgtool: run 'make demo', or 'cargo build --release --package imgtool'"

# ours ARGS: runs imgtool, and shows what it was asked, what it says, and how long it took.
ours() {
    local begin=$EPOCHREALTIME
    printf '\n  $ imgtool %s\n' "${*//"$demo/"/}"
    "$imgtool" "$@" >"$demo/out" || { cat "$demo/out"; fail "imgtool failed (exit $?)"; }
    sed "s|$demo/||g; s/^/    /" "$demo/out"
    awk -v a="$begin" -v b="$EPOCHREALTIME" 'BEGIN { printf "    (%.2f s)\n", b - a }'
}

# verified WHAT COMMAND: somebody else's judgement.
checks=0
verified() {
    "${@:2}" >"$demo/verdict" 2>&1 || { cat "$demo/verdict"; fail "verification failed: $1"; }
    checks=$((checks + 1))
    say "  verified: $1"
}

# e2fsck's exit code is not enough: it only prints some findings. A clean filesystem gives these lines alone.
fsck() {
    qemu-img convert -O raw "$1" "$demo/raw" && e2fsck -fn "$demo/raw" >"$demo/fsck" 2>/dev/null &&
        ! grep -v -e '^Pass [1-5]' -e ' files (.*% non-contiguous), ' "$demo/fsck"
}
# says NAME FILE: what a file in a machine's disk has, as debugfs reads it from the flat copy that fsck made.
says() { debugfs -R "cat $1" "$demo/raw" 2>/dev/null; }
is_called() { [ "$(says /etc/hostname)" = "$1" ]; }
disk() { echo "$IMGTOOL_STORE/instances/$1.qcow2"; }

mkdir -p "$demo"
rm -rf "$IMGTOOL_STORE" "$demo/key" "$demo/key.pub"
SECONDS=0

heading "A template, built of a recipe: busybox and Debian's cloud kernel"
ours template build tiny --alias tiny
template=$("$imgtool" template show --output json tiny | jq -r .image)
verified "qemu-img check" qemu-img check -q "$template"
verified "its name is the SHA-256 of what it holds" test "$(sha256sum <"$template" | cut -d ' ' -f 1).qcow2" = "${template##*/}"
verified "e2fsck finds nothing wrong" fsck "$template"

heading "Three machines, cloned copy-on-write"
ours clone web --from tiny --count 3 --size 4G
declare -A ids=()
for name in web-1 web-2 web-3; do
    verified "$name: qemu-img check" qemu-img check -q "$(disk "$name")"
    verified "$name: e2fsck finds nothing wrong" fsck "$(disk "$name")"
    verified "$name: debugfs reads its own name" is_called "$name"
    ids[$(says /etc/machine-id)]=$name
done
verified "three machine-ids" test ${#ids[@]} = 3
ours ls

heading "One of them, booted"
ours run web-2 --accel auto --quiet --wait-for "imgtool: web-2 [0-9a-f]+ ready" --timeout 150
verified "e2fsck finds nothing wrong after it was shut down" fsck "$(disk web-2)"

heading "A snapshot, and back to it"
ours snapshot create web-2 works
ours fs rm -r web-2 /sbin
verified "it is broken: debugfs finds no /sbin/init" eval 'fsck "$(disk web-2)" && ! debugfs -R "stat /sbin/init" "$demo/raw" 2>/dev/null | grep -q Inode'
ours snapshot apply web-2 works
verified "it is as it was" eval 'fsck "$(disk web-2)" && debugfs -R "stat /sbin/init" "$demo/raw" 2>/dev/null | grep -q Inode'

heading "For other launchers"
ours launch web-1 --format libvirt -o "$demo/web-1.xml"
verified "xmllint: it is well-formed" xmllint --noout "$demo/web-1.xml"

heading "The template is what it was"
ours template verify
verified "sha256sum says the same" test "$(sha256sum <"$template" | cut -d ' ' -f 1).qcow2" = "${template##*/}"
rm -f "$demo/raw"

heading "Done: $checks verifications passed in $SECONDS s. The store is $IMGTOOL_STORE."
