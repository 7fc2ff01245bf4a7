"""Loops and device-mapper from text tables, by losetup and dmsetup. Knows the delta's header and nothing else of blockbt."""

import ctypes
import fcntl
import os
import struct
import subprocess
import time

import users

DM_TARGET_MSG = 0xC138FD0E
LIBC = ctypes.CDLL(None, use_errno=True)
# What the kernel may take to let go of something, on a machine that has other work: nothing here comes near it.
PATIENCE = 60


class Failed(Exception):
    """A program, or the kernel, refused. No `SystemExit`, which Python ends with in silence, whatever went wrong before it."""


def run(*words, stdin=None):
    done = subprocess.run(words, input=stdin, text=True, capture_output=True)
    if done.returncode:
        raise Failed(f"{' '.join(words)}: status {done.returncode}: {done.stderr.strip()}\n{stdin or ''}".rstrip())
    return done.stdout.strip()


def until(done, what):
    """Waits for what the kernel does behind its last user's back."""
    end = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > end:
            raise Failed(f"{what}: not after {PATIENCE} s")
        time.sleep(0.02)


def mount(device, directory, fs="ext4", options=""):
    """By system call, as starting a program takes longer here than most of what is tested."""
    if LIBC.mount(device.encode(), directory.encode(), fs.encode(), 0, options.encode()):
        raise Failed(f"mount {device} {directory} {options}: {os.strerror(ctypes.get_errno())}")


def umount(directory):
    """At once: what a verb has taken away is away when it has ended."""
    if LIBC.umount2(directory.encode(), 0):
        said = os.strerror(ctypes.get_errno())
        users.tell(directory)
        raise Failed(f"umount {directory}: {said}")


def loop(path, read_only):
    return run("losetup", "--find", "--show", *(["--read-only"] if read_only else []), path)


def create(name, table, read_only):
    run("dmsetup", "create", name, "--noudevrules", "--noudevsync", *(["--readonly"] if read_only else []), stdin=table)
    run("dmsetup", "mknodes", name)
    return f"/dev/mapper/{name}"


def remove(name):
    """The kernel lets go of a file system's device a moment after its unmount."""
    words = ["dmsetup", "remove", "--noudevrules", "--noudevsync", name]
    try:
        until(lambda: subprocess.run(words, capture_output=True).returncode == 0, f"{name} is removed")
    except Failed:
        users.tell(f"/dev/mapper/{name}")
        raise


def sectors(device):
    with open(device, "rb", buffering=0) as file:
        return file.seek(0, os.SEEK_END) // 512


def chunk_sectors(path):
    """The chunk size that the delta's own header states."""
    with open(path, "rb") as file:
        magic, valid, version, chunk = struct.unpack("<4sIII", file.read(16))
    if (magic, valid, version) != (b"SnAp", 1, 1):
        raise Failed(f"{path}: not a valid delta: {magic} valid {valid} version {version}")
    return chunk


def stack(deltas, prefix="blockbt-test"):
    """Read-only snapshots over a zero device; `deltas` is [(path, virtual size in bytes)], oldest first. Returns the top device."""
    below = create(f"{prefix}-zero", f"0 {deltas[0][1] // 512} zero\n", True)
    for number, (path, size) in enumerate(deltas):
        wanted, there = size // 512, sectors(below)
        if there < wanted:
            below = create(f"{prefix}-{number}-pad", f"0 {there} linear {below} 0\n{there} {wanted - there} zero\n", True)
        device = loop(path, True)
        if os.stat(path).st_size % 512 or sectors(device) * 512 != os.stat(path).st_size:
            raise Failed(f"{path}: the loop shows {sectors(device)} sectors")
        below = create(f"{prefix}-{number}", f"0 {wanted} snapshot {below} {device} P {chunk_sectors(path)}\n", True)
    return below


def message(name, text):
    """A message to sector 0 of a device, by ioctl: a program for each would be most of a workload's time."""
    data = struct.pack("<Q", 0) + text.encode() + b"\0"
    head = struct.pack("<3I2I5IQ128s129s7x", 4, 0, 0, 312 + len(data), 312, 0, 0, 0, 0, 0, 0, name.encode(), b"")
    with open("/dev/mapper/control", "rb") as control:
        fcntl.ioctl(control, DM_TARGET_MSG, bytearray(head + data))
