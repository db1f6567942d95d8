#!/usr/bin/env bash
# Makes a release package: what a machine needs to run any part of Epsilon, in one reproducible archive.
#
#   infra/package.sh VERSION [--bin DIR] [--out DIR]      (default: target/release, dist)
#   → dist/epsilon-VERSION-linux-ARCH.tar.gz and the same with .sha256
#
# The programs are taken as they are: `cargo build --release` is the caller's business. The same programs and the
# same checkout give the same bytes: names sorted, no owners, one time for all files (SOURCE_DATE_EPOCH, else the
# last commit's).
set -euo pipefail
called_from=$PWD
cd "$(dirname "$0")/.."

die() {
    printf 'package: error: %s\n' "$*" >&2
    exit 1
}

programs=(epsilon epsilon-gateway epsilon-vm-agent epsilon-builder)
version=${1:-}
# It becomes part of paths and addresses.
[[ "$version" =~ ^[0-9A-Za-z][0-9A-Za-z.+~-]{0,63}$ ]] ||
    die "usage: infra/package.sh VERSION [--bin DIR] [--out DIR]; VERSION like 0.1.0"
shift
bin='' out=dist
while [ $# -gt 0 ]; do
    [ -n "${2:-}" ] || die "$1 needs a folder"
    folder=$2
    [[ "$folder" = /* ]] || folder=$called_from/$folder
    case "$1" in
        --bin) bin=$folder ;;
        --out) out=$folder ;;
        *) die "\`$1\` is not known" ;;
    esac
    shift 2
done
if [ -z "$bin" ]; then
    bin=$(cargo metadata --format-version 1 --no-deps --offline --locked |
        grep -o '"target_directory":"[^"]*"' | cut -d'"' -f4)/release
fi
for program in "${programs[@]}"; do
    [ -x "$bin/$program" ] || die "$bin/$program is not there; build it first: cargo build --release --bins"
done

# The machine that the programs were built for, from the head of the ELF file.
case "$(od -An -tx1 -j18 -N2 "$bin/epsilon" | tr -d ' ')" in
    3e00) arch=amd64 ;;
    b700) arch=arm64 ;;
    *) die "$bin/epsilon is no Linux program for amd64 or arm64" ;;
esac

name=epsilon-$version-linux-$arch
work=$(mktemp -d "${TMPDIR:-/tmp}/epsilon-package.XXXXXX")
trap 'rm -rf "$work"' EXIT
tree=$work/$name
mkdir -p "$tree/bin" "$tree/systemd" "$tree/aws"
for program in "${programs[@]}"; do install -m 755 "$bin/$program" "$tree/bin/$program"; done
install -m 644 infra/systemd/epsilon*.service infra/systemd/epsilon*.socket infra/systemd/sysusers.conf "$tree/systemd/"
install -m 755 infra/aws/instance/*.sh "$tree/aws/"
install -m 644 infra/aws/instance/*.service "$tree/aws/"
install -m 755 infra/install.sh infra/ensure-docker.sh "$tree/"
install -m 644 infra/systemd/epsilon.yaml LICENSE "$tree/"
printf '%s\n' "$version" >"$tree/VERSION"
printf 'linux-%s\n' "$arch" >"$tree/PLATFORM"
(cd "$tree" && find . -type f ! -name SHA256SUMS -printf '%P\n' | LC_ALL=C sort | xargs sha256sum >"$work/sums")
install -m 644 "$work/sums" "$tree/SHA256SUMS"

epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
mkdir -p "$out"
tar --create --directory "$work" --sort=name --format=gnu --mtime="@$epoch" \
    --owner=0 --group=0 --numeric-owner --mode=u+rwX,go+rX,go-w "$name" | gzip -n -9 >"$work/archive"
mv "$work/archive" "$out/$name.tar.gz"
(cd "$out" && sha256sum "$name.tar.gz" >"$name.tar.gz.sha256")
printf '%s\n' "$out/$name.tar.gz"
