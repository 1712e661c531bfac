#!/bin/sh
# pgbouncer.sh FOLDER: put a PgBouncer where the tests look for it: FOLDER/run, with the libraries that it needs beside it.
#
# From Debian's package, which is only unpacked: installing it would start a server. It takes no root where the lists of
# packages are there.
set -eu

folder=$1
cannot() {
    echo "cannot get pgbouncer: $1; put a pgbouncer on PATH, and run make again" >&2
    exit 1
}

mkdir -p "$folder"
if found=$(PATH="$PATH:/usr/sbin" command -v pgbouncer); then
    ln -sf "$found" "$folder/run"
    exit 0
fi
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
    cannot "it comes from a Debian package, and this is no Debian"
if ! apt-cache policy pgbouncer 2>/dev/null | grep -q 'Candidate: [0-9]'; then
    apt-get update -qq || cannot "apt-get update failed (it has to be root's, once)"
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
libraries=$(apt-cache depends pgbouncer | sed -n 's/^ *Depends: \(lib[^<]*\)$/\1/p' | grep -v '^libc6$')
# shellcheck disable=SC2086 - one word for each package
(cd "$work" && apt-get download -qq pgbouncer $libraries) >"$work/log" 2>&1 || cannot "$(cat "$work/log")"
for package in "$work"/*.deb; do
    dpkg-deb --extract "$package" "$work/unpacked"
done
mkdir -p "$folder/lib"
find "$work/unpacked" -name '*.so*' ! -path '*/security/*' -exec cp -P {} "$folder/lib/" ';'
install -m 755 "$work/unpacked/usr/sbin/pgbouncer" "$folder/pgbouncer"
cat >"$folder/run" <<'END'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
LD_LIBRARY_PATH="$here/lib" exec "$here/pgbouncer" "$@"
END
chmod 755 "$folder/run"
"$folder/run" --version >/dev/null || cannot "it does not start"
