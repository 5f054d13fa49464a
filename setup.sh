#!/usr/bin/env bash
# Makes this folder runnable on Debian 12 or 13: Debian packages, a venv with the PyPI packages, generated protobuf code.
# Does nothing that is done already. Leaves no service started or enabled that was not there before.
# usage: setup.sh [run|test|bench|fuzz]...        (run is always included)
set -euo pipefail
cd "$(dirname "$0")"
say() { printf '== %s\n' "$*"; }

[ "$(id -u)" = 0 ] || { echo "setup.sh: run as root: weft loads eBPF programs and makes network namespaces" >&2; exit 1; }

packages=(python3-bpfcc python3-venv libbpf1 iproute2 nftables tcpdump kmod procps ca-certificates
          nginx curl redis-server redis-tools postgresql postgresql-client)
for extra in "$@"; do
    case $extra in
        test) packages+=(clang-format openssl ruby) ;;
        run|bench|fuzz) ;;
        *) echo "setup.sh: unknown part '$extra': run, test, bench or fuzz" >&2; exit 2 ;;
    esac
done
# Kernel headers: the running kernel's own, else any (the programs touch UAPI structs only).
headers=
if [ ! -e "/lib/modules/$(uname -r)/build" ] && ! compgen -G '/usr/src/linux-headers-*' >/dev/null; then
    headers=linux-headers-$(uname -r)
fi

# One at a time on a machine: two would install into the same folders, and into the same system.
exec 9>/run/weft-setup.lock
flock -n 9 || { say "waiting for another setup.sh"; flock 9; }

missing=()
for package in "${packages[@]}"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done

# Server packages start what they install: forbidden for the duration, unless the host has a rule of its own. The rule's file also
# says what is new here, for the next run to finish where this one is killed.
policy=/usr/sbin/policy-rc.d
mark="# Made by weft's setup.sh, which removes it. New here:"

# A server that came with an installation of ours stays off at boot too; one that was there before is not touched.
finish() {
    for unit in "$@"; do
        if command -v systemctl >/dev/null; then
            systemctl disable "$unit" >/dev/null 2>&1 || true
        fi
        deb-systemd-helper disable "$unit.service" >/dev/null 2>&1 || true
        update-rc.d "$unit" disable >/dev/null 2>&1 || true
    done
    ! grep -qsF "$mark" $policy || rm -f $policy
}

install_missing() {
    say "Debian packages: ${missing[*]}${headers:+${missing:+ }kernel headers}"
    new=()
    for unit in nginx redis-server postgresql; do
        case " ${missing[*]} " in *" $unit "*) new+=("$unit") ;; esac
    done
    trap 'finish "${new[@]}"' EXIT
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\n%s %s\nexit 101\n' "$mark" "${new[*]}" >$policy
        chmod 755 $policy
    fi
    # PostgreSQL's package would create and run a cluster "main".
    if [ "$(dpkg-query -W -f '${db:Status-Status}' postgresql-common 2>/dev/null)" != installed ]; then
        mkdir -p /etc/postgresql-common/createcluster.d
        echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.d/weft.conf
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    # Debian 13's headers come with their kernel: those of the running one bring no other, which the next boot would start.
    if [ -n "$headers" ]; then
        apt-cache show "$headers" >/dev/null 2>&1 || headers=linux-headers-$(dpkg --print-architecture)
        missing+=("$headers")
    fi
    # A machine that has just started may be upgrading itself.
    apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=300 "${missing[@]}"
    finish "${new[@]}"
    trap - EXIT
}
if grep -qsF "$mark" $policy; then
    read -ra left <<<"$(sed -n "s/^$mark//p" $policy)"
    say "finishing an installation that was killed: ${left[*]:-no servers}"
    finish "${left[@]}"
fi
[ -z "${missing[*]}$headers" ] || install_missing

venv=.venv
# One that was interrupted on its way has no pip yet; one from before the system's Python was upgraded has nothing for this Python; one
# that came here with its folder, moved or copied, runs what lies where it was made.
made_here() { case "$(cat $venv/pyvenv.cfg)" in *" $(pwd -P)/$venv"*) ;; *) return 1 ;; esac; }
if ! [ -x $venv/bin/pip ] || ! [ -d "$venv/lib/$(basename "$(readlink -f /usr/bin/python3)")" ] || ! made_here; then
    say "venv from /usr/bin/python3"
    /usr/bin/python3 -m venv --clear --system-site-packages $venv
fi

# The bench extra (Envoy) is large, and the fuzz extra (atheris) has wheels for x86-64 alone: only where asked for. Extras add up, so that `make demo` after `make test` removes nothing.
extras=build
for extra in "$@"; do [ "$extra" = run ] || extras+=",$extra"; done
stamp=$venv/.installed
wanted="$(sha256sum pyproject.toml | cut -d' ' -f1)"
for extra in ${extras//,/ }; do
    if ! grep -qsx "$wanted $extra" $stamp; then
        say "PyPI packages: weft[$extras]"
        $venv/bin/pip install -q --disable-pip-version-check -e ".[$extras]"
        for done_extra in ${extras//,/ }; do echo "$wanted $done_extra" >>$stamp; done
        break
    fi
done

# Code from our .proto files; made anew only when one of them changed.
sum="$(cat mesh/proto/*.proto | sha256sum | cut -d' ' -f1)"
if [ "$(cat mesh/proto/.generated 2>/dev/null)" != "$sum" ]; then
    say "protobuf code"
    $venv/bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. mesh/proto/*.proto
    echo "$sum" >mesh/proto/.generated
fi
