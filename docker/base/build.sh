#!/usr/bin/env bash
# Makes the base image with debootstrap, for machines that reach a Debian mirror but no image registry.
# Knows nothing about pbxguard's own images: it gives the tag that their Dockerfiles start from.
# Runs as root.  Usage: docker/base/build.sh TAG SUITE
set -euo pipefail

tag=$1
suite=$2
root=$(mktemp -d /var/tmp/pbxguard-base.XXXXXX)
trap 'rm -rf --one-file-system "$root"' EXIT

# The mirror that this machine's own apt uses for Debian. Empty elsewhere (Ubuntu's mirrors carry no
# Debian suite): debootstrap then takes its own default.
host_mirror() {
    # shellcheck disable=SC2016  # apt fills in the field
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' \
        2>/dev/null | grep -E '^https?://' | head -n 1 || true
}

bootstrap() {
    local mirror include=()
    mirror=$(host_mirror)
    case $mirror in
        https:*) include=(--include=ca-certificates) ;;
    esac
    # shellcheck disable=SC2086  # an empty mirror must vanish, and a mirror has no blanks
    debootstrap --variant=minbase "${include[@]}" "$suite" "$root" $mirror
}

# What the public image of the same name has too: no documentation, and no service that starts by itself.
slim() {
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
    printf 'path-exclude %s\n' '/usr/share/doc/*' '/usr/share/man/*' '/usr/share/info/*' '/usr/share/locale/*' \
        >"$root/etc/dpkg/dpkg.cfg.d/slim"
    # A mirror kept for a machine without a registry may be older than its Release file allows. The
    # signature is still checked.
    echo 'Acquire::Check-Valid-Until "false";' >"$root/etc/apt/apt.conf.d/80old-mirror"
    echo 'Acquire::Languages "none";' >"$root/etc/apt/apt.conf.d/80no-languages"
    rm -rf "$root"/usr/share/{doc,man,info,locale}/* "$root"/var/cache/apt/*.bin "$root"/var/lib/apt/lists/*
    rm -f "$root"/var/cache/apt/archives/*.deb "$root"/var/log/{bootstrap,dpkg,alternatives}.log
    rm -f "$root"/etc/{hostname,resolv.conf}
}

bootstrap
slim
tar --directory "$root" --numeric-owner --create . \
    | docker import --change 'CMD ["bash"]' --change 'LABEL pbxguard=base' - "$tag"
