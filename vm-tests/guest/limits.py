"""Guest: heads that run out of space, in mode flat: at their limit, on a full disk of the host with space reserved and without.

Parameters: story, seed. The stores' disk is an ext4 of its own, small enough to be filled."""

import glob
import os
import random
import subprocess

import dm
import guest

STORE, TOP, FILLER = "/mnt/disk/store", "/mnt/image", "/mnt/disk/filler"
SIZES = {"ext4": "128M", "xfs": "320M"}
CHUNK, MIB = 16 << 10, 1 << 20
# It ends where the second area would begin, which is where the kernel gives a head up that could have been merely full.
LIMIT = (2 + CHUNK // 16) * CHUNK


class Noise:
    def __init__(self, seed):
        self.seed = seed

    def of(self, name, length):
        return random.Random(f"{self.seed} {name}").randbytes(length)


def write(name, content):
    """All the way to the device, or an OSError."""
    with open(f"{TOP}/{name}", "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def is_refused(name, content):
    try:
        write(name, content)
    except OSError as error:
        print(f"refused: {error}", flush=True)
        return True
    return False


def holds(name, content):
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")
    with open(f"{TOP}/{name}", "rb") as file:
        return file.read() == content


def says_no(want, *words):
    try:
        guest.ctl(STORE, *words)
    except guest.Refused as refused:
        assert want in str(refused), refused
        return
    raise AssertionError(f"{words} was carried out")


def state(image):
    (info,) = guest.ctl(STORE, "info", image)
    return info["attached"]["snapshot"]["state"]


def mount(image, *words):
    guest.ctl(STORE, "mount", image, TOP, "--mode", "flat", *words)


def sound(image, fs):
    """The file system after what a full disk did to it: what its own check mends is done first, as after a power cut."""
    if fs == "xfs":
        # Its log is replayed by a mount.
        mount(image)
        guest.ctl(STORE, "umount", image)
    (attached,) = guest.ctl(STORE, "attach", image, "--mode", "flat")
    if fs == "ext4":
        mended = subprocess.run(["e2fsck", "-fy", attached["device"]], capture_output=True, text=True)
        assert mended.returncode in (0, 1), mended
        dm.run("e2fsck", "-fn", attached["device"])
    else:
        dm.run("xfs_repair", "-n", attached["device"])
    guest.ctl(STORE, "detach", image)
    (report,) = guest.ctl(STORE, "check", image)
    assert report["findings"] == [], report


def fill():
    """Not a block is left on the stores' disk."""
    dm.run("sync")
    with open(FILLER, "wb") as file:
        step, end = 64 * MIB, 0
        while step >= 4096:
            try:
                os.posix_fallocate(file.fileno(), end, step)
                end += step
            except OSError:
                step //= 2
    dm.run("sync")


def full_head(image, fs, noise):
    kept, more = noise.of("kept", MIB), noise.of("more", 16 * MIB)
    guest.ctl(STORE, "create", image, "--fs", fs, "--size", SIZES[fs])
    mount(image, "--limit", str(LIMIT))
    write("kept", kept)
    # With more than that in the head no file system is sure to be whole: it could not write its own.
    assert is_refused("big", noise.of("big", 40 * MIB))
    assert state(image) == "overflow", state(image)
    assert holds("kept", kept)
    says_no("not all that was written", "umount", image)
    says_no("its head has", "resize", image, "--limit", "1M")
    guest.ctl(STORE, "resize", image, "--limit", "24M")
    mount(image)
    assert state(image) == "ok" and holds("kept", kept)
    if os.path.exists(f"{TOP}/big"):
        os.unlink(f"{TOP}/big")
    # That is too little for what comes: more, while it is mounted.
    (resized,) = guest.ctl(STORE, "resize", image, "--limit", "96M")
    assert resized["limit_bytes"] == 96 * MIB, resized
    says_no("in use", "resize", image, "--limit", "64M")
    (resized,) = guest.ctl(STORE, "resize", image, "--limit", "none")
    assert resized["limit_bytes"] is None, resized
    write("more", more)
    guest.ctl(STORE, "umount", image)
    sound(image, fs)
    mount(image)
    assert holds("kept", kept) and holds("more", more)
    guest.ctl(STORE, "umount", image)
    guest.ctl(STORE, "commit", image)


def reserved_head(image, fs, noise):
    guest.ctl(STORE, "create", image, "--fs", fs, "--size", SIZES[fs])
    mount(image)
    write("before", noise.of("before", MIB))
    says_no("in use", "resize", image, "--reserve")
    guest.ctl(STORE, "umount", image)
    # The kernel's head was as long as the whole disk: only what is reserved stays.
    (head,) = glob.glob(f"{STORE}/images/*/head.delta")
    guest.ctl(STORE, "resize", image, "--limit", "48M", "--reserve")
    assert os.stat(head).st_size == 48 * MIB, os.stat(head)
    os.truncate(head, 100 * MIB)
    mount(image)
    assert os.stat(head).st_size == 48 * MIB, os.stat(head)
    fill()
    content = [noise.of(f"file {number}", 4 * MIB) for number in range(6)]
    for number, one in enumerate(content):
        write(f"file-{number}", one)
    assert state(image) == "ok", state(image)
    assert all(holds(f"file-{number}", one) for number, one in enumerate(content))
    os.unlink(FILLER)
    guest.ctl(STORE, "umount", image)
    sound(image, fs)
    guest.ctl(STORE, "resize", image, "--no-reserve", "--limit", "none")
    mount(image)
    assert all(holds(f"file-{number}", one) for number, one in enumerate(content)) and holds("before", noise.of("before", MIB))
    guest.ctl(STORE, "umount", image)


def invalidated_head(image, fs, noise):
    kept, more = noise.of("kept", 2 * MIB), noise.of("more", 8 * MIB)
    guest.ctl(STORE, "create", image, "--fs", fs, "--size", SIZES[fs])
    mount(image)
    write("kept", kept)
    fill()
    assert is_refused("big", noise.of("big", 40 * MIB))
    assert state(image) == "invalid", state(image)
    says_no("in use", "check", image, "--repair")
    os.unlink(FILLER)
    says_no("not all that was written", "umount", image)
    says_no("check --repair", "mount", image, TOP)
    (report,) = guest.ctl(STORE, "check", image, "--repair")
    assert [finding["repaired"] for finding in report["findings"]] == [True], report
    sound(image, fs)
    mount(image)
    assert holds("kept", kept)
    write("more", more)
    guest.ctl(STORE, "umount", image)
    guest.ctl(STORE, "commit", image)
    mount(image, "--read-only")
    assert holds("kept", kept) and holds("more", more)
    guest.ctl(STORE, "umount", image)


# The kernel writes by itself what is half a minute old, and a file system that cannot is shut down: before that, nobody's machine is to be too slow.
for setting, off in (("vm/dirty_writeback_centisecs", 0), ("fs/xfs/xfssyncd_centisecs", 720000)):
    with open(f"/proc/sys/{setting}", "w") as file:
        file.write(str(off))
for directory in ("disk", "image", "files"):
    os.makedirs(f"/mnt/{directory}")
dm.run("mount", "-t", "tmpfs", "-o", "size=95%", "none", "/mnt/files")
with open("/mnt/files/disk", "wb") as file:
    file.truncate(700 * MIB)
dm.run("mkfs.ext4", "-q", "-b", "4096", "/mnt/files/disk")
dm.run("mount", "-o", "loop", "/mnt/files/disk", "/mnt/disk")
story = globals()[guest.PARAMETERS["story"]]
for fs in SIZES:
    image = f"{guest.PARAMETERS['story'].replace('_', '-')}-{fs}"
    story(image, fs, Noise(f"{guest.PARAMETERS['seed']} {image}"))
    guest.ctl(STORE, "rm", image)
    guest.ctl(STORE, "gc")
(report,) = guest.ctl(STORE, "check", "--all")
assert report["findings"] == [], report
