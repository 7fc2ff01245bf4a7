#!/usr/bin/python3
"""Measures the rule of the flat table: what a chain costs to activate and to read, by which runs are short.

usage: vm-tests/flat_figures.py [DEPTH...]      1 8 32 128 unless said; as root; some minutes, and some more for the chains at first
After `make demo`, for its Debian root, and `cargo build --release --example flat_table`.

Two chains are made and kept in target/flat: a Debian root with a package installed or removed per delta, as dpkg does it, and
random blocks of 4 KiB. Prints a table for kernel-notes/flat-table.md."""

import glob
import json
import os
import random
import shutil
import subprocess
import sys

import vm
from chains import Ctl

TOP = os.path.join(vm.TARGET, "flat")
TOOL = os.path.join(vm.TARGET, "release", "examples", "flat_table")
RULES = ["linear", "16", "32", "64", "short", "rule"]
DEEPEST = 128


def packages():
    """Files of the host's packages, up to 20 MB each."""
    found = []
    for listing in sorted(glob.glob("/var/lib/dpkg/info/*.list")):
        with open(listing) as lines:
            files = [path for path in lines.read().split("\n") if os.path.isfile(path) and not os.path.islink(path)]
        if 4 <= len(files) and sum(os.path.getsize(path) for path in files) < 20_000_000:
            found.append((os.path.basename(listing), files))
    return found


def install(mounted, package, files):
    for path in files:
        os.makedirs(os.path.dirname(mounted + path), exist_ok=True)
        shutil.copyfile(path, f"{mounted}{path}.dpkg-new")
        os.rename(f"{mounted}{path}.dpkg-new", mounted + path)
    shutil.copyfile(f"/var/lib/dpkg/info/{package}", f"{mounted}/var/lib/dpkg/info/{package}")


def note(mounted, text):
    """dpkg writes its whole status anew for each step, and appends to its log."""
    status = f"{mounted}/var/lib/dpkg/status"
    with open(status) as old, open(status + "-new", "w") as new:
        new.write(old.read() + text * 20)
    os.rename(status + "-new", status)
    with open(f"{mounted}/var/log/dpkg.log", "a") as log:
        log.write(text)


def container(ctl, mounted):
    ctl("import", "chain", os.path.join(vm.TARGET, "demo", "cache", "debian-bookworm.tar"), "--size", "4G")
    rng, all_packages, installed = random.Random(5), packages(), []
    for step in range(1, DEEPEST):
        ctl("mount", "chain", mounted)
        try:
            for _ in range(rng.randrange(1, 4)):
                package, files = rng.choice(all_packages)
                install(mounted, package, files)
                installed.append((package, files))
                note(mounted, f"install {package} {step}\n")
            if rng.random() < 0.6:
                package, files = installed.pop(rng.randrange(len(installed)))
                for path in files:
                    if os.path.exists(mounted + path):
                        os.unlink(mounted + path)
                note(mounted, f"remove {package} {step}\n")
        finally:
            ctl("umount", "chain")
        ctl("commit", "chain")


def blocks(ctl, mounted):
    rng, size = random.Random(6), 1 << 30
    raw = os.path.join(TOP, "raw")
    with open(raw, "wb") as file:
        for _ in range(512):
            file.write(rng.randbytes(1 << 20))
        file.truncate(size)
    ctl("import", "chain", raw)
    os.unlink(raw)
    for _ in range(1, DEEPEST):
        device = ctl("attach", "chain")[0]["device"]
        try:
            with open(device, "r+b", buffering=0) as file:
                for _ in range(2_000):
                    os.pwrite(file.fileno(), rng.randbytes(4096), rng.randrange(size // 4096) * 4096)
                os.fsync(file.fileno())
        finally:
            ctl("detach", "chain")
        ctl("commit", "chain")


def deltas(name, make):
    root = os.path.join(TOP, name)
    ctl = Ctl(vm.CTL, root)
    if not os.path.exists(f"{root}.done"):
        mounted = os.path.join(TOP, f"{name}.mounted")
        os.makedirs(mounted, exist_ok=True)
        make(ctl, mounted)
        open(f"{root}.done", "w").close()
    chain = ctl("info", "chain")[0]["chain"]
    return [os.path.join(root, "objects", item["digest"][:2], f"{item['digest']}.delta") for item in chain]


def main(depths):
    chains = {"container": deltas("container", container), "random": deltas("random", blocks)}
    for name, files in chains.items():
        for depth in depths:
            figures_of(name, files[:depth])


def figures_of(name, files):
    window = os.path.join(TOP, f"window-{name}-{len(files)}")
    shutil.rmtree(window, ignore_errors=True)
    os.makedirs(window)
    with open(os.path.join(window, "deltas"), "w") as listing:
        listing.writelines(f"{path}\n" for path in files)
    said = subprocess.run([TOOL, window, *RULES, "--", *files], check=True, text=True, capture_output=True).stdout
    facts = {fact["rule"]: fact for fact in map(json.loads, said.splitlines())}
    with vm.boot(window, "flat_figures.py", "4G", rules=RULES) as guest:
        guest.finish()
    with open(os.path.join(window, "figures.json")) as file:
        figures = json.load(file)
    shutil.rmtree(window)
    raw = figures["raw"]
    print(f"\n{name}, {len(files)} deltas, {facts['linear']['runs']} runs, loops {figures['loops_ms']:.1f} ms; ", end="")
    print(f"raw loop: {raw['seq']:.0f} MB/s, {raw['random']:.1f} kIOPS")
    print("| rule | targets | exceptions | cut, write ms | load ms | sequential MB/s | 4 KiB qd64 kIOPS |\n|---|---|---|---|---|---|---|")
    for rule in RULES:
        fact, figure = facts[rule], figures[rule]
        line = [rule, fact["targets"], fact["exceptions"], f"{fact['cut_ms']:.1f} {fact['write_ms']:.1f}", f"{figure['load_ms']:.1f}"]
        print("|", " | ".join(map(str, [*line, f"{figure['seq']:.0f}", f"{figure['random']:.1f}"])), "|", flush=True)


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    main([int(word) for word in sys.argv[1:]] or [1, 8, 32, 128])
