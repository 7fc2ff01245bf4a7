"""Guest: puts the layers of the bench's disk into a thin pool, a snapshot for each, as containerd's devmapper snapshotter does."""

import os

import dm
import layers
from guest import modprobe

SECTORS = (1 << 30) // 512

modprobe("dm-thin-pool")
os.makedirs("/mnt/disk")
os.makedirs("/mnt/at")
dm.run("mount", "-o", "noatime", "/dev/ubda", "/mnt/disk")
for name, size in (("data", 4 << 30), ("meta", 64 << 20)):
    with open(f"/mnt/disk/thin/{name}", "wb") as file:
        file.truncate(size)
meta, data = dm.loop("/mnt/disk/thin/meta", False), dm.loop("/mnt/disk/thin/data", False)
pool = dm.create("pool", f"0 {dm.sectors(data)} thin-pool {meta} {data} 128 32768 1 skip_block_zeroing\n", False)
count = len(os.listdir("/mnt/disk/layers"))
for layer in range(count):
    dm.run("dmsetup", "message", "pool", "0", f"create_snap {layer} {layer - 1}" if layer else "create_thin 0")
    device = dm.create("thin", f"0 {SECTORS} thin {pool} {layer}\n", False)
    if layer == 0:
        dm.run("mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", device)
    dm.run("mount", device, "/mnt/at")
    layers.apply(f"/mnt/disk/layers/{layer:03}", "/mnt/at")
    dm.run("umount", "/mnt/at")
    dm.remove("thin")
print(dm.run("dmsetup", "status", "pool"))
dm.remove("pool")
for device in (meta, data):
    dm.run("losetup", "--detach", device)
dm.run("umount", "/mnt/disk")
