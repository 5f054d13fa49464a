#!/usr/bin/env bash
# Makes the node image: a Debian 13 root (Python 3.13, OpenSSL 3.5, bcc, kernel headers), weft in a venv, as an OCI archive.
# Proves that weft's processes run from that root before it packs it.
# usage: image.sh [FOLDER]      default: build/image; the archive is FOLDER/weft.tar, the root stays in FOLDER/root
# needs: root, the network. A Debian mirror other than mmdebstrap's own default: MIRROR=http://...
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "image.sh: run as root: it makes a Debian root" >&2; exit 1; }

folder=$(realpath -m "${1:-build/image}")
root=$folder/root
say() { printf '== %s\n' "$*"; }

needed=()
# Debian 13's buildah begins nothing without netavark, which it only recommends.
for package in mmdebstrap buildah netavark debian-archive-keyring; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || needed+=("$package")
done
if [ ${#needed[@]} != 0 ]; then
    say "Debian packages: ${needed[*]}"
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${needed[@]}"
fi
./setup.sh run
mkdir -p "$folder"

version=$(.venv/bin/python -c 'import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["project"]["version"])')
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || echo 0)
export SOURCE_DATE_EPOCH

if [ ! -e "$root/.debian" ]; then
    say "Debian 13 root"
    rm -rf "$root"
    mmdebstrap --quiet --variant=essential --include=python3,python3-venv,python3-bpfcc,libbpf1,iproute2 \
        --aptopt='Acquire::Retries "3"' --customize-hook="daemonset/headers.sh \"\$1\"" \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
        trixie "$root" ${MIRROR:+"$MIRROR"}
    touch "$root/.debian"
fi

say "weft $version"
rm -rf "$folder/wheel" "$root/opt/weft" "$root/tmp/weft" build/lib build/bdist.*
.venv/bin/pip wheel -q --disable-pip-version-check --no-deps -w "$folder/wheel" .
rm -rf build/lib build/bdist.*
mkdir -p "$root/opt" "$root/tmp/weft"
cp "$folder"/wheel/*.whl "$root/tmp/weft/"
# How this machine finds names and whom it trusts is lent to pip in a mount namespace, and not part of the image.
mkdir -p "$root/etc/ssl/certs"
touch "$root/etc/resolv.conf"
unshare --mount --propagation private /bin/sh -ec '
    mount --bind /etc/resolv.conf "$1/etc/resolv.conf"
    mount --bind /etc/ssl/certs "$1/etc/ssl/certs"
    trusted=/etc/ssl/certs/ca-certificates.crt
    export PIP_CERT=$trusted SSL_CERT_FILE=$trusted
    exec env -u PIP_FIND_LINKS chroot "$1" /bin/sh -ec "
        python3 -m venv --system-site-packages /opt/weft
        /opt/weft/bin/pip install -q --disable-pip-version-check --no-cache-dir --only-binary :all: /tmp/weft/weft-*.whl
        /opt/weft/bin/pip uninstall -q -y pip 2>/dev/null
        ln -sf /opt/weft/bin/weft /usr/bin/weft
    "
' sh "$root"
rm -rf "$root/tmp/weft" "$root/etc/resolv.conf"

daemonset/prove.sh "$root"

say "OCI archive"
storage=$folder/storage
oci() { buildah --root "$storage/root" --runroot "$storage/run" --storage-driver vfs "$@"; }
container=$(oci from scratch)
trap 'oci rm "$container" >/dev/null 2>&1 || true; rm -rf "$storage"' EXIT
tar -C "$root" --numeric-owner --sort=name --mtime="@$SOURCE_DATE_EPOCH" --exclude=./.debian --exclude='./dev/*' -cf "$folder/root.tar" .
oci add -q "$container" "$folder/root.tar" / >/dev/null
rm "$folder/root.tar"
oci config --env PATH=/opt/weft/bin:/usr/sbin:/usr/bin:/sbin:/bin --env PYTHONUNBUFFERED=1 --workingdir / --cmd weft \
    --label org.opencontainers.image.title=weft --label "org.opencontainers.image.version=$version" "$container"
rm -f "$folder/weft.tar"
# By its whole name: containerd finds none under a short one.
oci commit -q --disable-compression=false "$container" "oci-archive:$folder/weft.tar:docker.io/library/weft:$version" >/dev/null
say "$folder/weft.tar ($(du -h "$folder/weft.tar" | cut -f1)): docker.io/library/weft:$version"
