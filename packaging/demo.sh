#!/bin/bash
# The main job on real input, step by step: a Debian root file system becomes an image, is cloned, changed, committed, published,
# pulled on a second host that finds the first through the DHT alone, mounted there and compared.
#
# Hosts are network namespaces with a store of their own below target/demo/state; downloads are kept in target/demo/cache.
# Ends clean, also after Ctrl-C at any point; what a killed run left is removed at the next start. Run by `make demo`, as root.
set -euo pipefail
cd "$(dirname "$0")/.."
top=$PWD
bin=${CARGO_TARGET_DIR:-$top/target}/release
demo=${CARGO_TARGET_DIR:-$top/target}/demo
state=$demo/state cache=$demo/cache
# Of this checkout only, and short enough for a network device's name.
tag=bbt$(printf %s "$demo" | cksum | cut -c1-6)
declare -A address=([boot]=10.91.7.1 [a]=10.91.7.2 [b]=10.91.7.3)
for name in "${!BLOCKBT_@}"; do unset "$name"; done
export LC_ALL=C.UTF-8
umask 022

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' plain=$'\e[0m'; else bold='' dim='' green='' plain=''; fi
now() { local t=${EPOCHREALTIME/[.,]/}; echo $((t / 1000)); }
step_number=0 step_start=0
step() {
    step_number=$((step_number + 1)) step_start=$(now)
    printf '\n%s%d. %s%s\n' "$bold" "$step_number" "$1" "$plain"
}
took() { printf '   %s%s%s in %s\n' "$green" "${1:-done}" "$plain" "$(seconds $(($(now) - step_start)))"; }
note() { printf '   %s\n' "$*"; }
show() { printf '   %s$ %s%s\n' "$dim" "$*" "$plain"; }
seconds() { if [ "$1" -lt 1000 ]; then echo "$1 ms"; else printf '%d.%d s\n' $(($1 / 1000)) $(($1 % 1000 / 100)); fi; }
size() { numfmt --to=iec-i --suffix=B --format=%.1f "$1"; }
die() { printf '%sdemo: %s%s\n' "$bold" "$*" "$plain" >&2; exit 1; }
# json EXPRESSION: the value of a Python expression over the object r on standard input.
json() { /usr/bin/python3 -c "import json, sys; r = json.loads(sys.stdin.readlines()[-1]); print($1)"; }
space_of() { du -s -B1 --total "$@" | tail -n 1 | cut -f1; }

# Words run in a host's network, in our mount namespace (`ip netns exec` would make a new one, and mounts would die with it).
at() {
    local host=$1
    shift
    nsenter --net="/run/netns/$tag-$host" -- "$@" 9<&-
}
# A verb on a host, shown as one would type it there.
ctl() {
    local host=$1
    shift
    at "$host" "$bin/blockbt-ctl" --root "$state/$host/store" "$@"
}
shown() {
    show "blockbt-ctl ${*:2}   ${dim}# host $1"
    ctl "$@" | sed 's/^/   /'
}

# Process ids that are ours: of our programs, and working on a store of this demo.
our_processes() {
    local exe pid
    for exe in /proc/[0-9]*/exe; do
        case $(readlink "$exe" 2>/dev/null) in
        "$bin"/blockbtd* | "$bin"/blockbt-ctl*) ;;
        *) continue ;;
        esac
        pid=${exe#/proc/} pid=${pid%/exe}
        if tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null | grep -qE "^$state/|${store_ids:-^no store\$}"; then echo "$pid"; fi
    done
}
# stop SIGNAL: to all of our processes, and up to 10 s for them to go.
stop() {
    local pids tries=0
    pids=$(our_processes)
    [ -n "$pids" ] || return 0
    kill "-$1" $pids 2>/dev/null || true
    while [ -n "$(our_processes)" ] && [ $tries -lt 100 ]; do sleep 0.1 && tries=$((tries + 1)); done
}
our_mounts() {
    awk '{ print $5 }' /proc/self/mountinfo | grep -E "^$demo/|^/run/blockbt/(${store_ids:-no store})(/|\$)" | tac
}

# Also those whose file is deleted: an import that was cut short.
our_loops() {
    losetup --list --noheadings --output NAME,BACK-FILE | grep -E "$state/|/run/blockbt/(${store_ids:-no store})/" | awk '{ print $1 }'
}

# Removes everything a run can have made, but the cache and (for vm-test) the stores' files.
clean() {
    local host root image mount device
    store_ids=$(sed -n 's/^id //p' "$state"/*/store/VERSION 2>/dev/null | paste -sd '|' || true)
    for host in a b boot; do
        root=$state/$host/store
        [ -e "$root/VERSION" ] && [ -x "$bin/blockbt-ctl" ] || continue
        for image in web debian scratch; do
            timeout 20 "$bin/blockbt-ctl" --root "$root" umount "$image" >/dev/null 2>&1 || true
        done
    done
    stop TERM
    # What follows finds nothing to do after an orderly end.
    stop KILL
    for mount in $(our_mounts | grep -v '^/run/blockbt/'); do umount "$mount" 2>/dev/null || umount --lazy "$mount" || true; done
    for device in $(our_loops); do
        umount --all-targets "$device" 2>/dev/null || true
        losetup --detach "$device" 2>/dev/null || true
    done
    for mount in $(our_mounts); do umount "$mount" 2>/dev/null || umount --lazy "$mount" || true; done
    for host in a b boot; do
        [ ! -e "/run/netns/$tag-$host" ] || ip netns delete "$tag-$host"
    done
    if [ -n "$store_ids" ]; then
        (IFS='|' && for id in $store_ids; do rm -rf --one-file-system "/run/blockbt/$id"; done)
        rmdir /run/blockbt 2>/dev/null || true
    fi
    rm -rf --one-file-system "$demo/work"
}

finish() {
    local status=$?
    trap - EXIT
    trap '' INT TERM HUP
    if [ -n "$busy" ]; then kill "$busy" 2>/dev/null || true; wait "$busy" 2>/dev/null || true; fi
    [ $status = 0 ] || printf '\n%scleaning up%s\n' "$bold" "$plain" >&2
    clean || true
    # A loop device goes with its last user, which may take a moment.
    for _ in $(seq 20); do
        left=$(our_mounts; our_loops; our_processes; ip netns list | grep "^$tag-" || true)
        [ -n "$left" ] || break
        sleep 0.2
    done
    if [ -n "$left" ]; then
        printf 'left behind: %s\n' "$left" >&2
        [ $status != 0 ] || status=1
    elif [ $status = 0 ]; then
        printf '\n%sNothing is left behind%s: no mount, loop device, namespace or process. Stores: %s (until the next run).\n' "$green" "$plain" "$state"
    else
        printf 'no mount, loop device, namespace or process is left behind\n' >&2
        for log in "$state"/*/log; do
            [ $status -ge 128 ] || [ ! -s "$log" ] || { echo "last lines of $log:" && tail -n 5 "$log"; } >&2
        done
    fi
    exit "$status"
}

[ "$(id -u)" = 0 ] || die "needs root: it mounts, and makes network namespaces"
[ -x "$bin/blockbtd" ] || die "no $bin/blockbtd: run make build"
mkdir -p "$demo" "$cache"
exec 9<"$demo"
flock -n 9 || die "another run is under way in $demo"
busy='' store_ids=''
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
clean 9<&-
rm -rf --one-file-system "$state"
mkdir -p "$state"/{boot,a,b} "$demo/work"
demo_start=$(now)

printf '%sblockbt: one image from one host to another, found through the DHT alone%s\n' "$bold" "$plain"

step "Real input: a Debian root file system and a package"
. /etc/os-release
suite=${DEMO_SUITE:-${VERSION_CODENAME:-bookworm}}
mirror=${DEMO_MIRROR:-$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | grep -v '^ *#' | grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1 || true)}
mirror=${mirror:-http://deb.debian.org/debian}
rootfs=$cache/debian-$suite.tar
if [ ! -e "$rootfs" ]; then
    note "debootstrap --variant=minbase $suite (a minute or so, only this time)"
    mkdir "$demo/work/debian"
    debootstrap --variant=minbase "$suite" "$demo/work/debian" "${mirror% }" >"$demo/work/debootstrap.log" 2>&1 9<&- ||
        { tail -n 5 "$demo/work/debootstrap.log" >&2; die "debootstrap of $suite from $mirror did not work"; }
    tar -C "$demo/work/debian" --numeric-owner --xattrs --xattrs-include='*' --one-file-system -cf "$rootfs.part" .
    mv "$rootfs.part" "$rootfs"
    rm -rf --one-file-system "$demo/work/debian"
fi
deb=$(find "$cache" -name 'perl-modules-5.*.deb' | head -n 1)
if [ -z "$deb" ]; then
    package=$(apt-cache pkgnames perl-modules-5. | sort -V | tail -n 1)
    [ -n "$package" ] || die "apt knows no perl-modules-5.x: run apt-get update"
    (cd "$demo/work" && apt-get -qq -o APT::Sandbox::User=root download "$package" 9<&-)
    mv "$demo/work"/perl-modules-5.*.deb "$cache/"
    deb=$(find "$cache" -name 'perl-modules-5.*.deb' | head -n 1)
fi
note "$(basename "$rootfs"): $(size "$(stat -c %s "$rootfs")"), $(tar -tf "$rootfs" | wc -l) entries; $(basename "$deb"): $(size "$(stat -c %s "$deb")")"
took ready

step "Three hosts: a bootstrap node of the DHT, host a, host b"
for host in boot a b; do
    ip netns add "$tag-$host"
    ip -n "$tag-$host" link set lo up
done
ip -n "$tag-boot" link add bridge type bridge
ip -n "$tag-boot" address add "${address[boot]}/24" dev bridge
ip -n "$tag-boot" link set bridge up
for host in a b; do
    ip -n "$tag-$host" link add eth0 type veth peer name "to-$host" netns "$tag-boot"
    ip -n "$tag-boot" link set "to-$host" master bridge up
    ip -n "$tag-$host" address add "${address[$host]}/24" dev eth0
    ip -n "$tag-$host" link set eth0 up
done
start_daemon() {
    local host=$1 bootstrap=$2 tries=0 id
    # A session of its own: Ctrl-C is for the script, which stops the daemons in order.
    setsid nsenter --net="/run/netns/$tag-$host" -- "$bin/blockbtd" --root "$state/$host/store" \
        --listen "${address[$host]}:6981" --bootstrap "$bootstrap" >"$state/$host/log" 2>&1 </dev/null 9<&- &
    while :; do
        id=$(sed -n 's/^id //p' "$state/$host/store/VERSION" 2>/dev/null || true)
        [ -z "$id" ] || [ -z "$(find "/run/blockbt/$id" -type s 2>/dev/null)" ] || break
        tries=$((tries + 1))
        [ $tries -lt 200 ] || die "blockbtd on host $host has not come up in 10 s"
        sleep 0.05
    done
    note "host $host: blockbtd at ${address[$host]}:6981, bootstrap: $bootstrap"
}
start_daemon boot none
start_daemon a "${address[boot]}:6981"
start_daemon b "${address[boot]}:6981"
note "no tracker, no static peer, no LAN discovery: a and b know the bootstrap node and nothing of each other"
took up

step "Import the root file system as image debian (host a)"
show "blockbt-ctl import debian $(basename "$rootfs")"
ctl a import debian "$rootfs" | sed 's/^/   /'
took imported

step "Clone debian to web: hardlinks, no data"
shown a clone debian web
took cloned

step "Mount web, unpack $(basename "$deb" .deb | cut -d_ -f1) into it, delete some files"
mkdir -p "$demo/work/a" "$demo/work/b"
shown a mount web "$demo/work/a"
dpkg-deb -x "$deb" "$demo/work/a" 9<&-
gone=$(find "$demo/work/a/usr/share/doc" "$demo/work/a/usr/share/locale" -type f 2>/dev/null | sed -n 1,50p | tee "$demo/work/gone" | wc -l)
xargs -d '\n' rm -- <"$demo/work/gone"
note "$(dpkg-deb -c "$deb" | wc -l) entries unpacked, $gone files deleted"
shown a umount web
took written

step "Commit: what changed becomes a sealed delta"
shown a commit web --message "perl modules"
took committed

step "Publish, and hand the link to host b"
publish=$(ctl a publish web --json)
link=$(json 'r["link"]' <<<"$publish")
note "$link"
took published

step "Pull on host b, while host a goes on working"
# Host a's work: images are made, mounted, written to and removed, until the pull is over.
(
    mkdir -p "$demo/work/scratch"
    exec 9<&- >/dev/null 2>>"$state/a/work.log"
    trap 'exit 0' TERM
    while :; do
        ctl a clone web scratch
        ctl a mount scratch "$demo/work/scratch"
        for number in 1 2 3 4 5; do
            head -c 1000000 /dev/urandom >"$demo/work/scratch/file-$number"
            sync -f "$demo/work/scratch"
        done
        ctl a umount scratch
        ctl a rm scratch
        echo round >>"$demo/work/rounds"
    done
) &
busy=$!
show "blockbt-ctl pull 'magnet:...'   # host b"
pull_start=$(now)
ctl b pull "$link" --json >"$demo/work/pull.json"
pull_ms=$(($(now) - pull_start))
kill "$busy" 2>/dev/null || true
wait "$busy" 2>/dev/null || true
busy=''
ctl a peers --json >"$demo/work/peers-a.json"
ctl b peers --json >"$demo/work/peers-b.json"
fetched=$(json 'r["fetched_bytes"]' <"$demo/work/pull.json")
note "$(json 'str(r["deltas"]) + " deltas"' <"$demo/work/pull.json"), $(size "$fetched") fetched, verified and linked"
note "meanwhile host a cloned, wrote, unmounted and removed an image $(wc -l <"$demo/work/rounds" 2>/dev/null || echo 0) times"
shown b peers
took pulled

step "Mount both, and let rsync compare every file, owner, mode, time, xattr, hard link and byte"
ctl a umount scratch >/dev/null 2>&1 || true
ctl a mount web "$demo/work/a" --read-only >/dev/null
ctl b mount web "$demo/work/b" --read-only >/dev/null
show "rsync -aHAXn --delete --checksum -i a/ b/"
differences=$(rsync -aHAXn --delete --checksum -i "$demo/work/a/" "$demo/work/b/" 9<&-)
if [ -n "$differences" ]; then
    printf '%s\n' "$differences" | head -n 20
    die "the trees differ"
fi
entries=$(find "$demo/work/b" -xdev | wc -l)
note "no line: $entries entries are the same"
ctl a umount web >/dev/null
ctl b umount web >/dev/null
took compared

step "What it took"
sent=$(json 'sum(p["sent_bytes"] for o in r["objects"] for p in o["peers"])' <"$demo/work/peers-a.json")
received=$(json 'sum(p["received_bytes"] for o in r["objects"] for p in o["peers"])' <"$demo/work/peers-b.json")
found=$(json '", ".join(sorted({p["found_by"] for o in r["objects"] for p in o["peers"]})) or "dht"' <"$demo/work/peers-b.json")
sum=$(ctl a list --json | /usr/bin/python3 -c 'import json, sys; print(sum(json.loads(line)["stored_bytes"] for line in sys.stdin))')
disk=$(space_of "$state/a/store/objects" "$state/a/store/images")
deltas=$(ctl a info web --json | json '" + ".join(str(d["stored_bytes"]) for d in r["chain"])')
note "deltas of web      $(for bytes in ${deltas//+/}; do printf '%s ' "$(size "$bytes")"; done)"
note "sent by a          $(size "$sent") (peers on b count $(size "$received") received; found by: $found)"
note "pull               $(seconds "$pull_ms")"
note "disk on host a     $(size "$disk") for images that would take $(size "$sum") one by one: $(size $((sum > disk ? sum - disk : 0))) saved by shared deltas"
same=0 all=0
while IFS= read -r object; do
    all=$((all + 1))
    cmp -s "$object" "${object/#$state\/b/$state\/a}" && same=$((same + 1))
done < <(find "$state/b/store/objects" -name '*.delta')
note "objects on host b  $all, of which $same are the same bytes as on host a"
[ "$all" = "$same" ] || die "an object of host b differs from host a's"
took "all of it"
printf '\n%sThe whole demo took %s.%s\n' "$bold" "$(seconds $(($(now) - demo_start)))" "$plain"
