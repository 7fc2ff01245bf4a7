"""Guest: the power goes right after a detach, whose image somebody else had open until the detach was under way, with writes that nobody synced.

Parameters: seed, modes."""

import os
import random
import subprocess

import dm
import guest
from logwrites import Cut, Recorder, Replay

STORE, SIZE = "/mnt/disk/store", 256 << 20


def write_and_detach(image, data):
    """Returns when the detach has ended, which the last close, and what it wrote, came in the middle of."""
    (attached,) = guest.ctl(STORE, "attach", image, "--mode", image)
    fd = os.open(attached["device"], os.O_RDWR)
    os.pwrite(fd, data, 0)
    detach = subprocess.Popen(guest.command(STORE, "detach", image), stdout=subprocess.DEVNULL)
    try:
        # It waits for us by then, or for its turn: for how long, the machine decides.
        detach.wait(1)
        raise AssertionError("the image was in use and is detached")
    except subprocess.TimeoutExpired:
        os.close(fd)
    assert detach.wait() == 0, f"{image}: the detach ended with {detach.returncode}"


def holds(image, data):
    (attached,) = guest.ctl(STORE, "attach", image, "--mode", image)
    with open(attached["device"], "rb") as disk:
        found = disk.read(len(data))
    guest.ctl(STORE, "detach", image)
    return found == data


for directory in ("disk", "files"):
    os.makedirs(f"/mnt/{directory}")
dm.run("mount", "-t", "tmpfs", "-o", "size=95%", "none", "/mnt/files")
guest.modprobe("dm-log-writes")
for name in ("disk", "log", "scratch"):
    with open(f"/mnt/files/{name}", "wb") as file:
        file.truncate(SIZE)
dm.run("mkfs.ext4", "-q", "-b", "4096", "/mnt/files/disk")
dm.run("mount", "-o", "loop", "/mnt/files/disk", "/mnt/disk")
rng = random.Random(guest.PARAMETERS["seed"])
wanted = {mode: rng.randbytes(1 << 20) for mode in guest.PARAMETERS["modes"]}
for image in wanted:
    guest.ctl(STORE, "create", image, "--fs", "none", "--size", "16M")
    guest.ctl(STORE, "commit", image)
dm.umount("/mnt/disk")
dm.run("cp", "--sparse=always", "/mnt/files/disk", "/mnt/files/base")
recorder = Recorder("/mnt/files/disk", "/mnt/files/log")
dm.mount(recorder.device, "/mnt/disk")
for image, data in wanted.items():
    write_and_detach(image, data)
    recorder.mark(image)
dm.umount("/mnt/disk")
log = recorder.stop()
replay = Replay(log, "/mnt/files/base", "/mnt/files/scratch")
for image, data in wanted.items():
    (position,) = [number for number, entry in enumerate(log.entries) if entry.mark == image]
    cut = Cut(log, position, "none", 0)
    print(cut, flush=True)
    dm.mount(replay.make(cut), "/mnt/disk")
    assert holds(image, data), f"{image}: what was written before the detach is not on the disk"
    dm.umount("/mnt/disk")
    replay.drop()
