"""Guest: disks that grow and shrink between two attaches, each in another mode, beside a model in memory; a sibling on the same deltas is attached
all the while.

Parameters: seed, modes, rounds."""

import os
import random
import struct

import dm
import guest
from fsx import Fsx

PARAMETERS = guest.PARAMETERS
STORE, TOP = "/mnt/disk/store", "/mnt/image"
MIB = 1 << 20
# A mode of the kernel's own stands on one loop per delta, and "stack" on eight deltas at most.
DEEPEST = 6
rng = random.Random(PARAMETERS["seed"])
resized = 0


def ctl(*words):
    return guest.ctl(STORE, *words)


def attach(image, mode):
    (attached,) = ctl("attach", image, "--mode", mode)
    assert attached["mode"] == mode, attached
    return attached["device"]


def resize(image, size):
    global resized
    (reply,) = ctl("resize", image, str(size), "--shrink")
    assert reply["virtual_size_bytes"] == size, reply
    resized += 1


def compare(device, wanted, when):
    with open(device, "rb") as disk:
        found = disk.read()
    if found != wanted:
        at = next((at for at in range(min(len(found), len(wanted))) if found[at] != wanted[at]), min(len(found), len(wanted)))
        raise AssertionError(f"{when}: {len(found)} bytes, want {len(wanted)}; the first that differs is {at}")


def raw(rounds):
    """No file system: every byte is in the model."""
    wanted = bytearray(2 * MIB)
    ctl("create", "raw", "--fs", "none", "--size", "2M")
    sibling = None
    for number in range(rounds):
        mode = rng.choice(PARAMETERS["modes"])
        device = attach("raw", mode)
        compare(device, wanted, f"round {number}, {mode}")
        with open(device, "r+b", buffering=0) as disk:
            for _ in range(rng.randrange(5)):
                start = rng.randrange(len(wanted)) // 512 * 512
                # Often up to the end, so that there is something in the chunk that it cuts.
                length = rng.choice((512, 4096, 300 << 10, len(wanted) - start))
                data = rng.randbytes(min(length, len(wanted) - start))
                disk.seek(start)
                disk.write(data)
                wanted[start:start + len(data)] = data
            os.fsync(disk.fileno())
        ctl("detach", "raw")
        if rng.random() < 0.3:
            (committed,) = ctl("commit", "raw")
            if committed["deltas"] >= DEEPEST:
                ctl("flatten", "raw")
            if sibling is None:
                ctl("clone", "raw", "sibling")
                sibling = (attach("sibling", PARAMETERS["modes"][0]), bytes(wanted))
                try:
                    ctl("resize", "sibling", "1G")
                    raise AssertionError("an attached image was resized")
                except guest.Refused as refused:
                    assert "in use" in str(refused), refused
        if rng.random() < 0.7:
            size = 512 * rng.randrange(1, 6 * MIB // 512)
            resize("raw", size)
            del wanted[size:]
            wanted.extend(bytes(size - len(wanted)))
        if sibling:
            compare(*sibling, f"the sibling after round {number}")
    if sibling:
        ctl("detach", "sibling")


def ext4_bytes(device):
    with open(device, "rb") as disk:
        disk.seek(1024)
        blocks, log_size = struct.unpack("<4xI16xI", disk.read(28))
    return blocks << 10 + log_size


def file_system(fs, rounds, sizes):
    image = f"disk-{fs}"
    ctl("create", image, "--fs", fs, "--size", str(sizes(None)))
    fsx, size = Fsx(rng), None
    for number in range(rounds):
        mode = rng.choice(PARAMETERS["modes"])
        (mounted,) = ctl("mount", image, TOP, "--mode", mode)
        if number:
            fsx.whole(TOP)
            # Both take their journals off; an ext4's does not shrink with the disk, so that its own count says what it spans.
            shown = ext4_bytes(mounted["device"]) if fs == "ext4" else os.statvfs(TOP).f_blocks * os.statvfs(TOP).f_frsize
            assert 0.75 * size < shown <= size, f"{fs}: {shown} of {size}"
        fsx.run(TOP, 100)
        # Here and there on the disk, and gone again.
        for name in range(6):
            with open(f"{TOP}/big", "wb") as file:
                file.write(rng.randbytes(rng.randrange(4 * MIB)))
            os.rename(f"{TOP}/big", f"{TOP}/big-{name % 2}")
        ctl("umount", image)
        if rng.random() < 0.3:
            ctl("commit", image)
        size = sizes(size)
        resize(image, size)
        device = attach(image, rng.choice(PARAMETERS["modes"]))
        dm.run(*(["e2fsck", "-fn"] if fs == "ext4" else ["xfs_repair", "-n"]), device)
        ctl("detach", image)
    ctl("mount", image, TOP)
    fsx.whole(TOP)
    ctl("umount", image)


for directory in ("disk", "image", "files"):
    os.makedirs(f"/mnt/{directory}")
dm.run("mount", "-t", "tmpfs", "-o", "size=95%", "none", "/mnt/files")
with open("/mnt/files/disk", "wb") as file:
    file.truncate(1 << 30)
dm.run("mkfs.ext4", "-q", "-b", "4096", "/mnt/files/disk")
dm.run("mount", "-o", "loop", "/mnt/files/disk", "/mnt/disk")
raw(2 * PARAMETERS["rounds"])
file_system("ext4", PARAMETERS["rounds"], lambda size: rng.choice([mib * MIB for mib in (64, 96, 200, 640) if mib * MIB != size]))
file_system("xfs", PARAMETERS["rounds"] // 2, lambda size: 320 * MIB if size is None else size + 128 * MIB)
(report,) = ctl("check", "--all")
assert report["findings"] == [], report
with open("/run/window/done", "w") as file:
    file.write(str(resized))
