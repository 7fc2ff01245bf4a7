"""Guest: fio's verification and an fsx-like program on images that go from mode to mode between two mounts, and are committed now and then.

Parameters: seed, modes, rounds, operations, file_systems."""

import glob
import os
import random

import dm
import guest
from fsx import Differs, Fsx
from images import loop_name

PARAMETERS = guest.PARAMETERS
STORE, TOP = "/mnt/disk/store", "/mnt/image"
# mkfs.xfs makes nothing smaller than 300 MB.
SIZES = {"ext4": "128M", "xfs": "320M"}


def fio(seed, *words):
    """The same offsets and bytes for the same seed; with --verify_only reads and compares what was written by it."""
    command = ["fio", "--name=verify", f"--directory={TOP}", f"--randseed={seed}", "--rw=randwrite", "--bs=4k", "--size=6m", "--verify=crc32c"]
    command += ["--verify_state_save=0", "--do_verify=0", "--ioengine=psync", "--end_fsync=1", "--thread", "--output-format=terse", *words]
    dm.run(*command)


def mount(image, mode):
    (mounted,) = guest.ctl(STORE, "mount", image, TOP, *(["--mode", mode] if mode else []))
    return mounted


def devices_are_as_said():
    """Deltas read-only and cached once for all, heads past the host's cache; nothing but an image is writable, and every sector has 512 bytes."""
    kinds, found = {"delta": ("1", "0"), "meta": ("1", "0"), "head": ("0", "1"), "user": ("0", "1")}, set()
    for loop in (path.split("/")[3] for path in glob.glob("/sys/block/loop*/loop/backing_file")):
        name = loop_name(f"/dev/{loop}")
        if name.startswith("blockbt-"):
            kind, made = name.split("-")[2], (value(f"{loop}/ro"), value(f"{loop}/loop/dio"))
            assert made == kinds[kind], (name, made)
            found.add((loop, kind))
    for path in glob.glob("/sys/block/dm-*/dm/name"):
        device, kind = path.split("/")[3], value(path[len("/sys/block/"):]).split("-")[2]
        assert value(f"{device}/ro") == ("0" if kind == "image" else "1"), kind
        found.add((device, kind))
    there = {kind for _, kind in found}
    assert "user" in there or {"delta", "head", "image", "origin"} <= there, there
    for device, kind in found:
        assert value(f"{device}/queue/logical_block_size") == "512", kind


def value(attribute):
    with open(f"/sys/block/{attribute}") as file:
        return file.read().strip()


def check_file_system(fs, device):
    dm.run(*(["e2fsck", "-fn"] if fs == "ext4" else ["xfs_repair", "-n"]), device)


def one_wrong_byte(fsx):
    """The program would notice."""
    file = max(range(len(fsx.files)), key=lambda number: len(fsx.files[number]))
    with open(f"{TOP}/{file}", "r+b") as changed:
        changed.seek(len(fsx.files[file]) // 2)
        byte = changed.read(1)[0]
        changed.seek(-1, 1)
        changed.write(bytes([byte ^ 1]))
    try:
        fsx.whole(TOP)
    except Differs as differs:
        print(f"noticed: {differs}", flush=True)
        with open(f"{TOP}/{file}", "r+b") as changed:
            changed.write(fsx.files[file])
        return
    raise AssertionError("one wrong byte was not noticed")


def rounds(fs, rng):
    image = f"verify-{fs}"
    guest.ctl(STORE, "create", image, "--fs", fs, "--size", SIZES[fs])
    fsx, written = Fsx(rng), None
    modes = PARAMETERS["modes"]
    for number in range(PARAMETERS["rounds"]):
        mode = modes[number % len(modes)]
        mount(image, mode)
        devices_are_as_said()
        if number:
            # As another mode, and a commit, left it.
            fsx.whole(TOP)
            fio(written, "--verify_only")
        fsx.run(TOP, PARAMETERS["operations"])
        fsx.whole(TOP)
        written = rng.randrange(1, 1 << 30)
        fio(written, "--do_verify=1")
        if number == 0:
            one_wrong_byte(fsx)
        guest.ctl(STORE, "umount", image)
        (attached,) = guest.ctl(STORE, "attach", image, *(["--mode", mode] if mode else []))
        check_file_system(fs, attached["device"])
        guest.ctl(STORE, "detach", image)
        mount(image, mode)
        fsx.whole(TOP)
        fio(written, "--verify_only")
        guest.ctl(STORE, "umount", image)
        if rng.random() < 0.6:
            guest.ctl(STORE, "commit", image)
    mount(image, modes[0])
    fsx.whole(TOP)
    fio(written, "--verify_only")
    guest.ctl(STORE, "umount", image)
    return fsx.done


for directory in ("disk", "image", "files"):
    os.makedirs(f"/mnt/{directory}")
dm.run("mount", "-t", "tmpfs", "-o", "size=95%", "none", "/mnt/files")
with open("/mnt/files/disk", "wb") as file:
    file.truncate(1 << 30)
dm.run("mkfs.ext4", "-q", "-b", "4096", "/mnt/files/disk")
dm.run("mount", "-o", "loop", "/mnt/files/disk", "/mnt/disk")
rng = random.Random(PARAMETERS["seed"])
done = 0
for fs in PARAMETERS["file_systems"]:
    done += rounds(fs, rng)
(report,) = guest.ctl(STORE, "check", "--all")
assert report["findings"] == [], report
with open("/run/window/done", "w") as file:
    file.write(str(done))
