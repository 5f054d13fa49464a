#!/usr/bin/env bash
# Proves that weft's processes run from the Debian root $1: Python, OpenSSL, every import, every command line, and the eBPF
# programs compiled with the root's own kernel headers, loaded into the running kernel and taken away again.
set -euo pipefail
root=$(realpath "$1")
say() { printf '== %s\n' "$*"; }

# A mount namespace of its own: nothing of it stays, whatever happens.
inside() {
    unshare --mount --propagation private /bin/sh -ec '
        root=$1; shift
        mount -t proc proc "$root/proc"
        mount --rbind /sys "$root/sys"
        mount --rbind /dev "$root/dev"
        mount -t bpf bpf "$root/mnt"
        exec chroot "$root" /usr/bin/env -i PATH=/opt/weft/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
    ' sh "$root" "$@"
}

say "proof: Python and OpenSSL"
inside python3 -c '
import ssl, sys
assert sys.version_info[:2] == (3, 13), sys.version
assert ssl.OPENSSL_VERSION_INFO[:2] >= (3, 5), ssl.OPENSSL_VERSION
print(sys.version.split()[0], ssl.OPENSSL_VERSION)
'
say "proof: imports"
inside /opt/weft/bin/python -c '
import bcc, cryptography, grpc, pyroute2, sqlalchemy
import importlib, pkgutil
count = 0
for name in ("mesh", "wire", "bpf", "agent", "ztunnel", "control", "cli", "lab"):
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            count += 1
print(count, "modules")
'
say "proof: command lines"
inside weft version --client
for process in agent ztunnel control; do
    inside /opt/weft/bin/python -m "$process" --help >/dev/null
    echo "$process --help"
done
say "proof: eBPF, with the kernel headers of the root, on the running kernel"
mount_point=$(sed -n 's/^[^ ]* \([^ ]*\) cgroup2 .*/\1/p' /proc/self/mounts | head -n 1)
[ -n "$mount_point" ] || { echo "prove.sh: no cgroup v2 is mounted" >&2; exit 1; }
cgroup=$mount_point/weft-prove-$$
mkdir "$cgroup"
trap 'rmdir "$cgroup"' EXIT
# The bpffs is this one command's own: with its mount namespace go the pins, and with them the programs.
inside /bin/sh -ec '
    ! ls -d "/lib/modules/$(uname -r)/build" 2>/dev/null
    /opt/weft/bin/python -c "
import sys
from pathlib import Path
from bpf.loader import load
load(Path(\"/mnt\"), Path(sys.argv[1]))
" "$1"
    ls /mnt/programs
' sh "$cgroup"
