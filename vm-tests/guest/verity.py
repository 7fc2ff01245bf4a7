"""Guest: a store on an ext4 with fs-verity. The kernel itself guards sealed deltas, also below a mounted image: a flipped bit on the disk is an
I/O error, never a wrong byte."""

import os
import re
import subprocess

import guest
from dm import run

DISK, STORE, FILE = "/run/window/disk.img", "/mnt/disk/store", 300_000


def content():
    return bytes(range(256)) * (FILE // 256)


def blocks_of(path):
    """Where a file's bytes lie on the disk, in blocks of 4 KiB: (first byte in the file, first on the disk, bytes)."""
    listed = subprocess.run(["filefrag", "-e", "-b4096", path], text=True, capture_output=True, check=True).stdout
    for line in listed.splitlines():
        found = re.match(r"\s*\d+:\s*(\d+)\.\.\s*(\d+):\s*(\d+)\.\.\s*(\d+):", line)
        if found:
            first, last, disk, _ = map(int, found.groups())
            yield first * 4096, disk * 4096, (last - first + 1) * 4096


os.makedirs("/mnt/disk")
os.makedirs("/mnt/image")
os.makedirs("/mnt/tree")
with open("/mnt/tree/file", "wb") as file:
    file.write(content())
with open(DISK, "wb") as file:
    file.truncate(512 << 20)
run("mkfs.ext4", "-q", "-b", "4096", "-O", "verity", DISK)
run("mount", "-o", "loop", DISK, "/mnt/disk")

guest.ctl(STORE, "import", "web", "/mnt/tree", "--size", "64M")
guest.ctl(STORE, "mount", "web", "/mnt/image")
with open("/mnt/image/more", "wb") as file:
    file.write(content())
guest.ctl(STORE, "umount", "web")
guest.ctl(STORE, "commit", "web")
(info,) = guest.ctl(STORE, "info", "web")
assert len(info["chain"]) == 2 and all(delta["verity_enforced"] for delta in info["chain"]), info["chain"]
deltas = [f"{STORE}/objects/{delta['digest'][:2]}/{delta['digest']}.delta" for delta in info["chain"]]
for path, delta in zip(deltas, info["chain"]):
    measured = run("fsverity", "measure", path).split()[0]
    assert measured == f"sha256:{delta['digest']}", f"the kernel measures {measured} for {delta['digest']}"
for path in deltas:
    try:
        open(path, "r+b")
        raise AssertionError(f"{path} can be written to")
    except PermissionError:
        pass
with open(deltas[1], "rb") as file:
    stored = file.read()
place = stored.index(content()[:4096])
(disk_at,) = [disk + place - start for start, disk, count in blocks_of(deltas[1]) if start <= place < start + count]
run("umount", "/mnt/disk")

with open(DISK, "r+b") as disk:
    disk.seek(disk_at)
    assert disk.read(4096) == content()[:4096], "this is not where the delta's chunk lies"
    disk.seek(disk_at + 7)
    disk.write(b"\xff")
run("mount", "-o", "loop", DISK, "/mnt/disk")
guest.ctl(STORE, "mount", "web", "/mnt/image", "--read-only")
with open("/mnt/image/file", "rb") as file:
    assert file.read() == content()
try:
    with open("/mnt/image/more", "rb") as file:
        assert file.read() == content(), "a wrong byte was read"
    raise AssertionError("the flipped bit was not noticed")
except OSError as error:
    print(f"reading what was flipped: {error}", flush=True)
guest.ctl(STORE, "umount", "web")
checked = subprocess.run(guest.command(STORE, "check", "web"), text=True, capture_output=True)
assert checked.returncode == 5, f"check ended with {checked.returncode}: {checked.stdout}{checked.stderr}"
print(checked.stdout)
