#!/bin/sh
# A hook of mmdebstrap: puts the kernel headers of Debian's newest kernel into the root $1. Only headers: the packages
# depend on a compiler and the kernel's build tools, which weft has no use for.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
architecture=$(dpkg --root="$1" --print-architecture)
headers=$(apt-cache depends "linux-headers-$architecture" | sed -n 's/.*Depends: \(linux-headers-[0-9].*\)/\1/p' | head -n 1)
common=$(apt-cache depends "$headers" | sed -n 's/.*Depends: \(linux-headers-[0-9].*-common\)/\1/p' | head -n 1)
[ -n "$headers" ] && [ -n "$common" ] || { echo "headers.sh: Debian's linux-headers-$architecture is not what it was" >&2; exit 1; }
(cd "$folder" && apt-get -q download "$headers" "$common")
for package in "$folder"/*.deb; do
    dpkg-deb -x "$package" "$folder/out"
done
case $architecture in amd64) kernel=x86 ;; *) kernel=$architecture ;; esac
mkdir -p "$1/usr/src"
for source in "$folder"/out/usr/src/linux-headers-*; do
    target=$1/usr/src/$(basename "$source")
    for part in include "arch/$kernel/include"; do
        [ -d "$source/$part" ] || continue
        mkdir -p "$target/$part"
        cp -a "$source/$part/." "$target/$part/"
    done
    [ ! -e "$source/Makefile" ] || cp -a "$source/Makefile" "$target/"
done
