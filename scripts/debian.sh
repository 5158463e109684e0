# For other scripts to read.
# shellcheck shell=bash

# debian_rootfs TARGET: a minimal system of the machine's own release, from the mirror its apt reads, in an archive or a directory.
debian_rootfs() {
    local archive mirror codename proxy=
    # shellcheck disable=SC2016  # apt fills these in.
    archive=$(apt-get indextargets --format '$(SITE) $(CODENAME)' 'Created-By: Packages' 'Origin: Debian' \
        'Label: Debian' 2>/dev/null | grep -v -e '-updates$' -e '-backports$' | head -n1) || return
    read -r mirror codename <<<"$archive"
    eval "$(apt-config shell proxy Acquire::http::Proxy)"
    mmdebstrap --quiet --variant=minbase ${proxy:+--aptopt="Acquire::http::Proxy \"$proxy\""} \
        "$codename" "$1" "deb $mirror $codename main"
}
