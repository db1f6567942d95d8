#!/usr/bin/env bash
# Fetches a newer Docker Engine than the machine's own, as packages of the distribution, and unpacks it into a folder;
# prints that folder. Nothing is installed, and the machine's own apt is left alone: package lists, cache and state are
# folders of this script's. What was fetched once is used again, without network.
#
#   infra/newer-engine/fetch.sh [FOLDER]      (default: $EPSILON_TOOLS_DIR/newer-engine)
#   infra/newer-engine/fetch.sh --sources ETC      prints where it would fetch from, on a machine with this /etc
#
# The packages come from the mirror that this machine's apt uses, signed as apt asks for it: on Debian those of Debian 13
# (docker.io 26.1.5, containerd 1.7), on Ubuntu those of its own release, with updates. NEWER_ENGINE_SOURCES names another
# file in apt's one-line format.
set -euo pipefail

# shellcheck source=infra/newer-engine/say.sh
. "$(dirname "$0")/say.sh"

etc=/etc
only_sources=''
if [ "${1:-}" = --sources ]; then
    etc=${2:?} only_sources=yes
    shift 2
fi
tools=${EPSILON_TOOLS_DIR:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/epsilon-tools}
folder=${1:-$tools/newer-engine}
# Longest that apt may take, in seconds.
LIMIT=${NEWER_ENGINE_FETCH_LIMIT:-300}
# package:what its version begins with. tini is the init of containers, a static program.
release() { sed -nE "s/^$1=[\"']?([^\"']*).*/\\1/p" "$etc/os-release"; } # of os-release, by name
id=$(release ID)
case "$id" in
    debian) wanted=(docker.io:26.1.5 containerd:1.7. tini:0.) ;;
    *) wanted=(docker.io: containerd: tini:) ;;
esac
recipe="1 $id ${wanted[*]}"

# The sources of the machine, one line each: `URI SUITE KEYRING`. Both of apt's formats.
repositories() {
    shopt -s nullglob
    local file
    for file in "$etc"/apt/sources.list "$etc"/apt/sources.list.d/*.list; do
        if [ -f "$file" ]; then
            sed -nE 's/^deb[[:space:]]+(\[([^]]*)\][[:space:]]+)?(https?:[^[:space:]]+)[[:space:]]+([^[:space:]]+).*/\3 \4 \2/p' "$file" |
                awk '{ key = ""; for (i = 3; i <= NF; i++) if (sub(/^signed-by=/, "", $i)) key = $i; print $1, $2, key }'
        fi
    done
    for file in "$etc"/apt/sources.list.d/*.sources; do
        awk -v RS= '{
            uris = suites = key = ""; off = 0; field = ""
            n = split($0, lines, "\n")
            for (i = 1; i <= n; i++) {
                if (lines[i] ~ /^#/) continue
                value = lines[i]
                if (lines[i] !~ /^[ \t]/) { field = tolower(lines[i]); sub(/:.*/, "", field); sub(/^[^:]*:[ \t]*/, "", value) }
                if (field == "uris") uris = uris " " value
                if (field == "suites") suites = suites " " value
                if (field == "signed-by" && value ~ /^\//) key = value
                if (field == "enabled" && tolower(value) == "no") off = 1
            }
            if (off) next
            u = split(uris, us, " "); s = split(suites, ss, " ")
            for (i = 1; i <= u; i++) for (j = 1; j <= s; j++) if (us[i] ~ /^https?:/) print us[i], ss[j], key
        }' "$file"
    done
}

# Lines for apt: the mirror of this machine's own release, for the release that is wanted.
sources() {
    local own codename=trixie key
    own=$(release UBUNTU_CODENAME)
    own=${own:-$(release VERSION_CODENAME)}
    key=/usr/share/keyrings/$id-archive-keyring.gpg
    [ "$id" = debian ] || codename=$own
    repositories | awk -v own="$own" -v new="$codename" -v key="$key" '
        $2 == own "-updates" { updated[$1] = 1 }
        { uri[NR] = $1; suite[NR] = $2; signed[NR] = $3 }
        END {
            for (i = 1; i <= NR; i++) {
                # Others publish for the same release; the distribution is the one that has updates for it.
                ours = updated[uri[i]] && (suite[i] == own || suite[i] == own "-updates") || suite[i] == own "-security"
                if (!ours) continue
                sub("^" own, new, suite[i])
                print "deb [signed-by=" (signed[i] == "" ? key : signed[i]) "]", uri[i], suite[i], "main" (new == own ? " universe" : "")
            }
        }' | sort -u
}

if [ -n "$only_sources" ]; then
    sources
    exit
fi

fetched() { [ "$(head -n 1 "$folder/stamp" 2>/dev/null)" = "$recipe" ] && [ -x "$folder/root/usr/sbin/dockerd" ]; }

fetch() {
    command -v apt-get >/dev/null || die "there is no apt-get here: this script only knows Debian and Ubuntu"
    local work=$folder.new apt started=$SECONDS
    rm -rf "$work"
    mkdir -p "$work"/apt/{lists,archives}/partial "$work"/{packages,root}
    : >"$work/apt/status"
    if [ -n "${NEWER_ENGINE_SOURCES:-}" ]; then
        cp "$NEWER_ENGINE_SOURCES" "$work/apt/sources.list"
    else
        sources >"$work/apt/sources.list"
    fi
    [ -s "$work/apt/sources.list" ] ||
        die "apt's settings name no http mirror of this machine's release" "name sources in NEWER_ENGINE_SOURCES=FILE"
    # Read after the machine's own settings, of which proxies are wanted, and what is done after an update is not.
    cat >"$work/apt/conf" <<END
Dir::Etc::SourceList "$work/apt/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State "$work/apt";
Dir::State::Status "$work/apt/status";
Dir::State::Lists "$work/apt/lists";
Dir::Cache "$work/apt";
Dir::Cache::Archives "$work/apt/archives";
#clear APT::Update;
#clear Acquire::IndexTargets::deb::DEP-11;
#clear Acquire::IndexTargets::deb::DEP-11-icons;
#clear Acquire::IndexTargets::deb::DEP-11-icons-small;
#clear Acquire::IndexTargets::deb::DEP-11-icons-large;
#clear Acquire::IndexTargets::deb::DEP-11-icons-hidpi;
#clear Acquire::IndexTargets::deb::DEP-11-icons-large-hidpi;
#clear Acquire::IndexTargets::deb::CNF;
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::http::Timeout "30";
APT::Sandbox::User "root";
END
    apt=(timeout "$LIMIT" apt-get -q -c "$work/apt/conf")
    say "fetching from $(awk '{ print $3, $4 }' "$work/apt/sources.list" | paste -sd, | sed 's/,/, /g'), within $LIMIT s"
    "${apt[@]}" update >&2 || die "the package lists could not be had" "is the mirror in apt's settings reached?"
    (cd "$work/packages" && "${apt[@]}" download "${wanted[@]%%:*}" >&2) || die "the packages could not be had" "see above why"
    local want file version stamp=$recipe
    for want in "${wanted[@]}"; do
        for file in "$work/packages/${want%%:*}"_*.deb; do
            version=$(dpkg-deb -f "$file" Version) || die "apt brought no ${want%%:*}"
            # Neither an epoch nor what Ubuntu puts before it is part of the version.
            [[ "${version#*:}" == "${want#*:}"* ]] ||
                die "the mirror has ${want%%:*} $version, and ${want#*:} is wanted" "look whether the tests hold on that one, then say so in $0"
            dpkg-deb -x "$file" "$work/root"
            stamp+=$'\n'"${want%%:*} $version"
        done
    done
    # A service manager's files and such are of no use here; what runs is the machine's own runc, whose C library fits.
    rm -rf "$work/apt" "$work/packages" "$work/root/etc" "$work/root/usr/share" "$work/root/usr/lib"
    printf '%s\n' "$stamp" >"$work/stamp"
    rm -rf "$folder"
    mv "$work" "$folder"
    say "unpacked in $((SECONDS - started)) s: $(tail -n +2 "$folder/stamp" | paste -sd, | sed 's/,/, /g')"
}

mkdir -p "$(dirname "$folder")"
# One at a time: the tests of two checkouts may begin at once.
exec 9>"$folder.lock"
flock --timeout $((LIMIT * 3)) 9 || die "another run of this script holds $folder.lock"
fetched || fetch
printf '%s\n' "$folder"
