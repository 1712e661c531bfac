#!/bin/sh
# promtool.sh TARGET: put promtool where the tests look for it.
#
# From Debian's package `prometheus`, of which nothing but this one program is taken: installing the package would start
# a server. It is only unpacked, so it takes no root where the lists of packages are there and new enough.
set -eu

target=$1
cannot() {
    echo "cannot get promtool: $1; put a promtool at $target, or on PATH, and run make again" >&2
    exit 1
}

if found=$(command -v promtool); then
    ln -sf "$found" "$target"
    exit 0
fi
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || cannot "it is in a Debian package, and this is no Debian"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
fetch() {
    (cd "$folder" && apt-get download -qq prometheus) >"$folder/log" 2>&1
}
# A list that is missing, or names a version that is gone, is no reason to give up.
fetch || { apt-get update -qq >"$folder/log" 2>&1 && fetch; } || cannot "$(cat "$folder/log")"
dpkg-deb --fsys-tarfile "$folder"/prometheus_*.deb | tar -xf - -C "$folder" ./usr/bin/promtool
install -m 755 "$folder/usr/bin/promtool" "$target"
