#!/bin/bash
# Installs what building and testing blockbt needs on Debian 12 or newer: only what is missing, and says what.
# usage: packaging/setup-debian.sh build|demo|test|qemu|bench|fuzz...
set -euo pipefail

say() { printf '%s\n' "$*" >&2; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

packages=()
for purpose in "$@"; do
    case $purpose in
    build) packages+=(gcc libc6-dev pkg-config make git ca-certificates curl libdevmapper-dev) ;;
    demo) packages+=(e2fsprogs python3 debootstrap rsync iproute2 util-linux xz-utils zstd) ;;
    test) packages+=(e2fsprogs xfsprogs dmsetup udev rsync iproute2 util-linux user-mode-linux kmod fsverity fio python3
        python3-libtorrent attr xz-utils zstd) ;;
    qemu) packages+=(qemu-system-x86 qemu-system-common busybox-static cpio kmod) ;;
    bench) packages+=(qemu-utils) ;;
    fuzz) packages+=(g++) ;;
    *) say "usage: $0 build|demo|test|qemu|bench|fuzz..."; exit 2 ;;
    esac
done

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

missing=()
for package in "${packages[@]}"; do
    installed "$package" || [[ " ${missing[*]-} " = *" $package "* ]] || missing+=("$package")
done
# bindgen wants libclang and its headers, of any version: the small packages where the release has a known number.
if [[ " $* " = *" build "* ]] && ! compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null; then
    case $(. /etc/os-release && echo "${VERSION_ID-}") in
    12) missing+=(libclang1-14 libclang-common-14-dev) ;;
    *) missing+=(libclang-dev) ;;
    esac
elif [[ " $* " = *" build "* ]] && ! compgen -G '/usr/lib/llvm-*/lib/clang/*/include/stdarg.h' >/dev/null &&
    ! compgen -G '/usr/lib/clang/*/include/stdarg.h' >/dev/null; then
    case $(. /etc/os-release && echo "${VERSION_ID-}") in
    12) missing+=(libclang-common-14-dev) ;;
    *) missing+=(libclang-dev) ;;
    esac
fi

if [ ${#missing[@]} -gt 0 ]; then
    command -v apt-get >/dev/null || { say "missing, and there is no apt-get to install it with: ${missing[*]}"; exit 1; }
    say "installing: ${missing[*]}"
    log=$(mktemp)
    if ! { as_root apt-get -qq update && as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "${missing[@]}"; } \
        >"$log" 2>&1 </dev/null; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        say "installing these packages did not work: ${missing[*]}"
        exit 1
    fi
    rm -f "$log"
fi

if [[ " $* " = *" build "* ]]; then
    [ -e "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"
    have=$(cargo --version 2>/dev/null | sed -n 's/^cargo 1\.\([0-9]*\)\..*/\1/p' || true)
    if [ "${have:-0}" -lt 87 ]; then
        why="there is no cargo"
        [ -z "$have" ] || why="cargo 1.$have is older than 1.87"
        say "installing Rust by https://sh.rustup.rs: $why"
        curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -q -y --profile minimal --component clippy,rustfmt >&2
    fi
fi
