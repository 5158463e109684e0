#!/usr/bin/env bash
# Installs, with apt, what a task needs and this machine lacks; touches nothing else.
#
#   scripts/setup.sh build|check|test|test-slow|fuzz|miri|demo
#
# Tests and demo compare with QEMU's tools, version 10 or later. Where the machine's own suite has an older one,
# its backports suite is added, from the mirror the machine uses already.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/sbin" DEBIAN_FRONTEND=noninteractive
qemu_wanted=10
qemu_packages=(qemu-utils)

say() { echo "setup: $*"; }
fail() { echo "setup: $*" >&2; exit 1; }
has() { command -v "$1" >/dev/null; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif has sudo; then sudo "$@"
    else fail "needs root or sudo for: $*"
    fi
}

apt_is_fresh=
apt_update() {
    has apt-get || fail "no apt-get here: install by hand what is missing ($*)"
    [ -n "$apt_is_fresh" ] || as_root apt-get update -qq || fail "apt-get update failed: is there a network?"
    apt_is_fresh=1
}

# packages: a list of names that apt is to install, gathered first so that it runs once.
packages=()
need() { # tool package
    has "$1" || packages+=("$2")
}

install_packages() {
    [ ${#packages[@]} -gt 0 ] || return 0
    say "installing ${packages[*]}"
    apt_update "${packages[*]}"
    as_root apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null </dev/null ||
        fail "could not install: ${packages[*]}"
}

check_cargo() {
    has cargo || fail "no cargo: install Rust first, with rustup or from a recent suite"
    local wanted found
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    found=$(cargo --version | cut -d' ' -f2)
    [ "$(printf '%s\n' "$wanted" "$found" | sort -V | head -n1)" = "$wanted" ] ||
        fail "cargo is $found, and the workspace needs $wanted: update it ('rustup update stable')"
}

need_component() { # subcommand component
    cargo "$1" --version >/dev/null 2>&1 && return
    has rustup || fail "no 'cargo $1': install the component $2 of your Rust toolchain"
    say "adding the Rust component $2"
    rustup component add "$2"
}

need_miri() {
    cargo +nightly miri --version >/dev/null 2>&1 && return
    has rustup || fail "no Miri: it comes with a nightly Rust toolchain, by rustup"
    say "adding Miri and a nightly Rust toolchain"
    rustup toolchain install nightly --profile minimal --component miri,rust-src ||
        fail "could not install Miri: not every nightly has it"
}

# The major version of the first qemu-img in PATH; nothing where there is none.
qemu_installed() {
    has qemu-img || return 0
    qemu-img --version | sed -n 's/^qemu-img version \([0-9]*\).*/\1/p'
}

# The lowest major version of QEMU's packages that apt would install, from a suite if one is given; 0 where it knows none.
qemu_candidate() {
    local major
    major=$(apt-cache ${1:+-t "$1"} policy "${qemu_packages[@]}" 2>/dev/null |
        sed -n 's/^ *Candidate: \([0-9]*:\)\?\([0-9]\+\).*/\2/p' | sort -n | head -n1) || true
    echo "${major:-0}"
}

# "mirror codename" of the Debian archive that this machine's apt reads already.
debian_archive() {
    # shellcheck disable=SC2016  # apt fills these in.
    apt-get indextargets --format '$(SITE) $(CODENAME)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' |
        grep -v -e '-updates$' -e '-backports$' | head -n1
}

install_qemu() {
    local installed archive mirror codename suite=
    installed=$(qemu_installed)
    if [ "${installed:-0}" -ge "$qemu_wanted" ] && has qemu-io && has qemu-storage-daemon &&
        has qemu-system-x86_64 && { [ "$task" != test ] || has qemu-system-aarch64; }; then return; fi
    apt_update qemu-utils
    if [ "$(qemu_candidate)" -lt "$qemu_wanted" ]; then
        archive=$(debian_archive)
        read -r mirror codename <<<"$archive" || fail "qemu-utils is too old here (need $qemu_wanted), and apt reads no Debian archive"
        suite=$codename-backports
        if [ "$(qemu_candidate "$suite")" -lt "$qemu_wanted" ]; then
            say "adding the suite $suite to apt, for qemu-utils $qemu_wanted or later"
            echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" |
                as_root tee "/etc/apt/sources.list.d/$suite.list" >/dev/null
            apt_is_fresh=
            apt_update qemu-utils
        fi
    fi
    say "installing ${qemu_packages[*]}${suite:+ from $suite}"
    as_root apt-get install -y -qq --no-install-recommends ${suite:+-t "$suite"} "${qemu_packages[@]}" >/dev/null </dev/null ||
        fail "could not install ${qemu_packages[*]}"
    installed=$(qemu_installed)
    [ "${installed:-0}" -ge "$qemu_wanted" ] ||
        fail "qemu-img is version ${installed:-none}, and the tests need $qemu_wanted or later"
}

# The kernel of a guest that tests boot, unpacked and not installed: this machine's own is none of our business.
fetch_guest_kernel() {
    local into=target/guest-kernel package
    [ ! -e $into/boot ] || return 0
    apt_update linux-image-cloud-amd64
    package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: *\(linux-image-.*\)$/\1/p' | head -n1)
    [ -n "$package" ] || fail "apt knows no linux-image-cloud-amd64, whose kernel the tests boot"
    say "unpacking $package for a guest"
    rm -rf $into.partial
    mkdir -p $into.partial
    (cd $into.partial && apt-get download -qq "$package" >/dev/null 2>&1 && dpkg-deb -x ./*.deb . && rm ./*.deb) ||
        fail "could not fetch $package"
    rm -rf $into
    mv $into.partial $into
}

task=${1:-}
case $task in
    build | check | test | miri | demo) ;;
    # All that tests need, and more at the end.
    test-slow) slow=1 task=test ;;
    fuzz) fuzz=1 task=test ;;
    *) fail "usage: scripts/setup.sh build|check|test|test-slow|fuzz|miri|demo" ;;
esac

check_cargo
need cc gcc
[ -e /usr/include/stdio.h ] || packages+=(libc6-dev)
case $task in
    check)
        need_component fmt rustfmt
        need_component clippy clippy
        ;;
    miri) need_miri ;;
    test | demo)
        need mke2fs e2fsprogs
        need mkfs.fat dosfstools
        need cryptsetup cryptsetup-bin
        need mcopy mtools
        need mkfs.xfs xfsprogs
        need mkfs.btrfs btrfs-progs
        need mount mount
        need sgdisk gdisk
        need xmllint libxml2-utils
        need sfdisk fdisk
        need partx util-linux
        need bsdtar libarchive-tools
        need setfacl acl
        need setfattr attr
        need setcap libcap2-bin
        need python3 python3
        need xz xz-utils
        need zstd zstd
        need bzip2 bzip2
        need umoci umoci
        need skopeo skopeo
        ;;
esac
if [ "$task" = test ]; then
    need busybox busybox-static
    # They need no emulator, which apt would take from another suite than the tools.
    need virsh libvirt-clients
    [ -x /usr/sbin/libvirtd ] || packages+=(libvirt-daemon-system libvirt-daemon-driver-qemu)
    need virt-install virtinst
    need setpriv util-linux
    need cpio cpio
    need strace strace
    need xorriso xorriso
    need mksquashfs squashfs-tools
    need mkntfs ntfs-3g
    need pvcreate lvm2
    need losetup mount
    need nbdkit nbdkit
    need nbdinfo libnbd-bin
    need ssh-keygen openssh-client
    need pwck passwd
    need mmdebstrap mmdebstrap
    # Its daemon takes and gives images; it starts nothing.
    need lxd lxd
    python3 -c 'import jsonschema, yaml' 2>/dev/null || packages+=(python3-jsonschema python3-yaml)
    need minisign minisign
    # LibFuzzer is built with it.
    if [ -n "${fuzz:-}" ]; then need c++ g++; fi
    [ -e /usr/share/OVMF/OVMF_CODE_4M.fd ] || packages+=(ovmf)
    [ -e /usr/share/AAVMF/AAVMF_CODE.fd ] || packages+=(qemu-efi-aarch64)
    [ -e /usr/lib/systemd/boot/efi/systemd-bootx64.efi ] || packages+=(systemd-boot-efi)
fi
case $task in
    # From one suite with the tools, which apt would else replace with older ones that go with an older emulator.
    test) qemu_packages+=(qemu-system-x86 qemu-system-arm) ;;
    demo) qemu_packages+=(qemu-system-x86) ;;
esac
if [ "$task" = demo ]; then
    need mmdebstrap mmdebstrap
    need jq jq
fi
install_packages
case $task in test | demo) install_qemu ;; esac
if [ "$task" = test ]; then fetch_guest_kernel; fi
if [ -n "${slow:-}" ]; then
    packages=()
    need ssh openssh-client
    need debootstrap debootstrap
    # In Debian 12 it is in the suite that QEMU is from.
    [ -e /usr/share/keyrings/ubuntu-archive-keyring.gpg ] || packages+=(ubuntu-keyring)
    install_packages
fi
