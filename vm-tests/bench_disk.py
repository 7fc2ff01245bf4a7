"""The disk that `vm-tests/bench` measures on: one ext4 with a store, and the same container-like layers as each peer keeps them.

    layers/000 ...           directories, the lower ones of overlayfs
    store/                   blockbt: c1 c8 c32 c128 (layers on ext4, 1 GiB), r8 r32 r128 (random 4 KiB on c1), w32 (c32's changes on 64 GiB);
                             none of them has a head
    raw/disk.raw             c128 as one raw file
    qcow2/000.qcow2 ...      a chain of backing files with the changes of c128's deltas
    thin/data thin/meta      a pool of 64 KiB blocks: device 0 ext4 with the base, device k a snapshot of k-1 with layer k

It is made once (some minutes) and kept in target/vm-bench."""

import os
import random
import shutil
import subprocess

import chains
import guest.layers as content
from vm import Failure, Vm

# Of all this: a disk of another version is made anew.
VERSION = 1
GIB, MIB, KIB = 1 << 30, 1 << 20, 1 << 10
DEPTHS = (1, 8, 32, 128)
RANDOM_BLOCKS = 400


def run(*words, **more):
    done = subprocess.run(words, text=True, capture_output=True, **more)
    if done.returncode:
        raise Failure(f"{' '.join(words)}: status {done.returncode}: {done.stderr.strip()}", os.getcwd())
    return done.stdout


def disk(work, ctl_program, say):
    """The path of the disk, made if it is not there."""
    path = os.path.join(work, f"disk-{VERSION}.img")
    if os.path.exists(path):
        return path
    for old in os.listdir(work):
        if old.startswith("disk-"):
            os.unlink(os.path.join(work, old))
    new, mounted = os.path.join(work, "new.img"), os.path.join(work, "mounted")
    with open(new, "wb") as file:
        file.truncate(16 * GIB)
    run("mkfs.ext4", "-q", "-m0", "-E", "lazy_itable_init=0,lazy_journal_init=0", new)
    os.makedirs(mounted, exist_ok=True)
    run("mount", "-o", "loop,noatime", new, mounted)
    try:
        fill(mounted, ctl_program, say)
    finally:
        run("umount", mounted)
    say("dm-thin's snapshots")
    window = os.path.join(work, "window-thin")
    os.makedirs(window, exist_ok=True)
    with Vm(window, "bench_thin.py", "2G", {}, [new]) as vm:
        vm.finish()
    shutil.rmtree(window)
    os.rename(new, path)
    return path


def fill(top, ctl_program, say):
    layers = os.path.join(top, "layers")
    at = os.path.join(top, "at")
    for name in (at, os.path.join(top, "raw"), os.path.join(top, "qcow2"), os.path.join(top, "thin")):
        os.mkdir(name)
    say("layers")
    content.make(layers, DEPTHS[-1])
    ctl = chains.Ctl(ctl_program, os.path.join(top, "store"))
    say("chain of layers")
    ctl("import", "c1", os.path.join(layers, "000"), "--size", "1G")

    def put_layer(image, layer):
        ctl("mount", image, at)
        try:
            content.apply(os.path.join(layers, f"{layer:03}"), at)
        finally:
            ctl("umount", image)

    deepen(ctl, "c", DEPTHS, put_layer)
    say("chain of random blocks")
    dice = random.Random(5)

    def put_blocks(image, _):
        with Attached(ctl, image) as device:
            for block in dice.sample(range(GIB // (4 * KIB)), RANDOM_BLOCKS):
                os.pwrite(device, dice.randbytes(4 * KIB), block * 4 * KIB)

    ctl("clone", "c1", "r1")
    deepen(ctl, "r", DEPTHS, put_blocks)
    changes = [ranges(ctl, item["digest"]) for item in ctl("info", "c128")[0]["chain"]]
    raw = os.path.join(top, "raw", "disk.raw")
    say("the same chain on 64 GiB")
    ctl("export", "c1", raw)
    os.truncate(raw, 64 * GIB)
    ctl("import", "w1", raw)
    os.truncate(raw, GIB)

    def put_changes(image, layer):
        with Attached(ctl, image) as device:
            for start, length in changes[layer]:
                os.pwrite(device, dice.randbytes(length), start)

    deepen(ctl, "w", (1, 32), put_changes)
    say("qcow2's backing files")
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, os.path.join(top, "qcow2", "000.qcow2"))
    for layer in range(1, DEPTHS[-1]):
        file = f"{layer:03}.qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", f"{layer - 1:03}.qcow2", file, cwd=os.path.join(top, "qcow2"))
        writes = "".join(f"write -q -P {layer} {start} {length}\n" for start, length in changes[layer])
        run("qemu-io", "-f", "qcow2", file, cwd=os.path.join(top, "qcow2"), input=writes)
    os.unlink(raw)
    ctl("export", "c128", raw)
    os.rmdir(at)


def deepen(ctl, prefix, depths, put):
    """`prefix``depths[0]` is there; makes the deeper ones, each on the one before it."""
    for below, depth in zip(depths, depths[1:]):
        image = f"{prefix}{depth}"
        ctl("clone", f"{prefix}{below}", image)
        for layer in range(below, depth):
            put(image, layer)
            ctl("commit", image)


def ranges(ctl, digest):
    """What a delta holds, as [(start, length)] in bytes of the disk."""
    chunk, found = chains.exceptions(os.path.join(ctl.root, "objects", digest[:2], f"{digest}.delta"))
    merged = []
    for disk, _ in found:
        start = disk * chunk
        if merged and merged[-1][0] + merged[-1][1] == start and merged[-1][1] < MIB:
            merged[-1] = (merged[-1][0], merged[-1][1] + chunk)
        else:
            merged.append((start, chunk))
    return merged


class Attached:
    """The open device of an image."""

    def __init__(self, ctl, image):
        self.ctl, self.image = ctl, image

    def __enter__(self):
        self.file = open(self.ctl("attach", self.image)[0]["device"], "r+b", buffering=0)
        return self.file.fileno()

    def __exit__(self, *_):
        try:
            os.fsync(self.file.fileno())
            self.file.close()
        finally:
            self.ctl("detach", self.image)
