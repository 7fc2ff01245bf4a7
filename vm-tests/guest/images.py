"""Guest: what the tests of attach share: verbs, what the kernel has of a store, and an image with a chain.

Knows the names of kernel-notes/attach.md, not how they are made."""

import fcntl
import hashlib
import os
import random
import re
import subprocess

import guest
from dm import run

STORE, OTHER, MNT = "/mnt/store", "/mnt/other", "/mnt/m"
RANDOM = random.Random(guest.PARAMETERS.get("seed", 1))
MODES = ("flat", "stack", "user")


def attempt(store, *words, **variables):
    """(exit code, what was printed, what was said)"""
    done = subprocess.run(guest.command(store, *words), text=True, capture_output=True, env={**os.environ, **variables})
    print(f"{' '.join(words)} {variables}: {done.returncode} {done.stdout}{done.stderr}", flush=True)
    return done.returncode, done.stdout, done.stderr


def ctl(*words, store=STORE):
    return guest.ctl(store, *words)


def refused(code, *words, store=STORE):
    found, _, said = attempt(store, *words)
    assert found == code, f"{words}: ended with {found}, want {code}"
    return said


def identity(store):
    with open(f"{store}/VERSION") as file:
        return next(line.split()[1] for line in file if line.startswith("id "))


def image_id(name):
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def devices(store=STORE):
    """Our device-mapper devices, by kind."""
    text = run("dmsetup", "info", "-c", "--noheadings", "-o", "uuid")
    found = {}
    for uuid in text.split():
        if match := re.fullmatch(f"BLOCKBT-{identity(store)}-([a-z]+)-([0-9a-f]+)", uuid):
            found.setdefault(match[1], []).append(match[2])
    return found


def loops(store=STORE):
    """Our loop devices' names."""
    found = []
    for number in sorted(os.listdir("/sys/block")):
        if number.startswith("loop") and os.path.exists(f"/sys/block/{number}/loop"):
            found.append(loop_name(f"/dev/{number}"))
    return sorted(name for name in found if name.startswith(f"blockbt-{identity(store)}-"))


def loop_name(device):
    """`struct loop_info64`'s lo_file_name, which losetup does not show."""
    with open(device, "rb") as file:
        info = fcntl.ioctl(file, 0x4C05, bytes(232))
    return info[56:120].split(b"\0")[0].decode()


def assert_nothing(store=STORE, but=()):
    assert devices(store) == {}, devices(store)
    left = [name for name in loops(store) if name not in but]
    assert left == [], left
    left = [name for name in os.listdir(f"/run/blockbt/{identity(store)}") if not re.match(r"mapped-|[a-z0-9]+\.lock|mnt$|daemon", name)]
    assert left == [], left
    assert not [name for name in os.listdir("/dev/mapper") if identity(store) in name], os.listdir("/dev/mapper")


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def info(name, *words, store=STORE):
    return ctl("info", name, *words, store=store)[0]


def mounted(name, mode=None, read_only=False):
    words = ["mount", name, MNT] + (["--mode", mode] if mode else []) + (["--read-only"] if read_only else [])
    (reply,) = ctl(*words)
    assert mode is None or reply["mode"] == mode, reply
    return reply


def write(name, size):
    data = RANDOM.randbytes(size)
    with open(f"{MNT}/{name}", "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return data


def check(files):
    for name, data in files.items():
        with open(f"{MNT}/{name}", "rb") as file:
            assert file.read() == data, f"{name} is not what was written"


def make_chain(store, deltas):
    """`web`, and what is on it."""
    files = {}
    os.makedirs("/mnt/tree/etc", exist_ok=True)
    with open("/mnt/tree/etc/motd", "w") as file:
        file.write("hello\n")
    ctl("import", "base", "/mnt/tree", "--size", "128M", store=store)
    ctl("clone", "base", "web", store=store)
    for number in range(deltas - 1):
        ctl("mount", "web", MNT, store=store)
        files[f"file-{number}"] = write(f"file-{number}", RANDOM.randrange(1, 3_000_000))
        ctl("umount", "web", store=store)
        ctl("commit", "web", store=store)
    return files
