#!/bin/sh
# Inside a fresh Debian machine: what `make` itself needs, and `weft` on root's path. All else is installed by `make demo`.
# usage: provision.sh TREE
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -y -q --no-install-recommends make git
make -C "$1" setup
ln -sf "$1/.venv/bin/weft" /usr/local/bin/weft
