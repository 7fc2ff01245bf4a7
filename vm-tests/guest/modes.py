"""Guest: random chains in every mode (`disks.py`), and those that the host has made deep. What is wrong is copied to /run/window/wreck."""

import os
import shutil
import subprocess
import sys
import time

import dm
from guest import PARAMETERS, ctl

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from disks import MIB, Disk

STORE, MODEL = "/mnt/store", "/mnt/model"


def case(name, deltas, sizes, blocks, every=1):
    """So many deltas more; `every`: how many are made between two looks."""
    start, disk = time.monotonic(), Disk(lambda *words: ctl(STORE, *words), True, name, PARAMETERS["seed"], MODEL)
    try:
        if disk.depth == 0:
            disk.make(MODEL, sizes)
        disk.look(*disk.modes())
        before = disk.depth
        for step in range(deltas):
            disk.step(blocks, sizes, step % every == 0)
        disk.look(*disk.modes())
        ctl(STORE, "flatten", name, "--keep", str(disk.rng.randrange(min(disk.depth, 4))))
        (info,) = ctl(STORE, "info", name)
        disk.depth = len(info["chain"])
        disk.look(*disk.modes())
        (report,) = ctl(STORE, "check", name)
        assert report["findings"] == [], report
    except BaseException:
        os.makedirs("/run/window/wreck")
        print(dm.run("dmsetup", "ls"), flush=True)
        subprocess.run(["cp", "-a", "--sparse=always", STORE, MODEL, "/run/window/wreck"])
        raise
    ctl(STORE, "rm", name)
    ctl(STORE, "gc")
    os.unlink(MODEL)
    print(f"{name}: {before} deltas, then {deltas} more, {disk.looks} looks, writes {disk.writes}, {disk.full} times areas exactly full, {time.monotonic() - start:.1f} s", flush=True)
    return disk


dm.run("cp", "-a", "--sparse=always", "/run/window/store", STORE)
disks = []
for name in PARAMETERS["deep"]:
    shutil.copyfile(f"/run/window/{name}.model", MODEL)
    disks.append(case(name, 1, (24 * MIB, 48 * MIB), 100))
disks += [case(f"small-{deltas}", deltas, (MIB, 12 * MIB), 40) for deltas in PARAMETERS["small"]]
if PARAMETERS["scattered"]:
    disks.append(case("scattered", 6, (135 * MIB, 144 * MIB), "comb", 3))
    assert disks[-1].short, "no flat table had a short device"
left = [dm.run("dmsetup", "ls"), dm.run("losetup", "--list", "--noheadings")]
assert left[0] in ("", "No devices found") and left[1] == "", left
with open("/run/window/said", "w") as file:
    file.write(f"{len(disks)} chains, {sum(disk.looks for disk in disks)} looks, {sum(disk.short for disk in disks)} short devices")
