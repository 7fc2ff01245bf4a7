"""Guest: loads the tables that flat_table wrote, and measures them in turns. Writes figures.json: the best of its rounds, as others use the host too."""

import ctypes
import fcntl
import json
import mmap
import os
import random
import shutil
import struct
import subprocess
import time

import dm
from guest import PARAMETERS

WINDOW, ROUNDS = "/run/window", 2
CREATE, REMOVE, SUSPEND, LOAD = 3, 4, 6, 9
READ_ONLY = 1
LIBC = ctypes.CDLL(None, use_errno=True)
IO_SETUP, IO_DESTROY, IO_GETEVENTS, IO_SUBMIT = 206, 207, 208, 209


def ioctl(command, name, flags=0, table=b"", targets=0):
    """Returns the device's number, as text, and how long the call took."""
    size = 312 + len(table)
    head = struct.pack("<3I I I I i I I I Q 128s 129s 7x", 4, 0, 0, size, 312, targets, 0, flags, 0, 0, 0, name.encode(), b"")
    buffer = bytearray(head + table)
    start = time.perf_counter()
    fcntl.ioctl(CONTROL, 0xC138FD00 | command, buffer, True)
    took = time.perf_counter() - start
    number = struct.unpack_from("<Q", buffer, 40)[0]
    return f"{number >> 8 & 0xfff}:{number & 0xff | number >> 12 & 0xfff00}", took


def packed(lines):
    """[(first sector, sectors, type, parameters)]"""
    parts = []
    for at, length, kind, words in lines:
        words = words.encode() + b"\0"
        words += bytes(-len(words) % 8)
        parts.append(struct.pack("<QQiI16s", at, length, 0, 40 + len(words), kind.encode()) + words)
    return b"".join(parts), len(parts)


def make(name, lines):
    """A read-only device; its number, and seconds in the kernel."""
    number, one = ioctl(CREATE, name)
    _, two = ioctl(LOAD, name, READ_ONLY, *packed(lines))
    _, three = ioctl(SUSPEND, name, READ_ONLY)
    return number, one + two + three


def lines_of(path):
    with open(path) as lines:
        return [line.split() for line in lines]


def loop(path):
    device = dm.loop(path, True)
    return device, f"7:{device.removeprefix('/dev/loop')}"


def activate(rule):
    """Makes the devices of a rule. What is made again below (concatenation, short, flat) is timed, not the packing of the tables."""
    pieces, took, made, short = lines_of(f"{WINDOW}/{rule}.tsv"), 0, [], None
    size = int(pieces[-1][0]) + int(pieces[-1][1])
    if os.path.exists(f"{WINDOW}/{rule}.meta"):
        metadata, number = METADATA[rule]
        at = dm.sectors(metadata)
        lines = [(0, at, "linear", f"{number} 0")]
        for index, offset, length in lines_of(f"{WINDOW}/{rule}.concat"):
            lines.append((at, int(length), "linear", f"{LOOPS[int(index)]} {offset}"))
            at += int(length)
        zero, one = make("blockbt-test-zero", [(0, size, "zero", "")])
        cow, two = make("blockbt-test-cow", lines)
        short, three = make("blockbt-test-short", [(0, size, "snapshot", f"{zero} {cow} P 8")])
        took += one + two + three
        made += ["blockbt-test-zero", "blockbt-test-cow", "blockbt-test-short"]
    lines = []
    for at, length, *source in pieces:
        if source == ["zero"]:
            lines.append((int(at), int(length), "zero", ""))
        elif source == ["short"]:
            lines.append((int(at), int(length), "linear", f"{short} {at}"))
        else:
            lines.append((int(at), int(length), "linear", f"{LOOPS[int(source[0])]} {source[1]}"))
    _, last = make("blockbt-test-flat", lines)
    dm.run("dmsetup", "mknodes")
    return took + last, [*made, "blockbt-test-flat"]


def data_ranges():
    """What is not a hole of 64 KiB or more, in bytes."""
    ranges = []
    for at, length, *source in lines_of(f"{WINDOW}/linear.tsv"):
        start, end = int(at) * 512, (int(at) + int(length)) * 512
        if source == ["zero"] and end - start >= 65536:
            continue
        if ranges and ranges[-1][1] == start:
            ranges[-1][1] = end
        else:
            ranges.append([start, end])
    return ranges


def sequential(device):
    """MB/s over all data, in calls of up to 1 MiB."""
    buffer, total = mmap.mmap(-1, 1 << 20), 0
    view = memoryview(buffer)
    file = os.open(device, os.O_RDONLY | os.O_DIRECT)
    start = time.perf_counter()
    for at, end in RANGES:
        while at < end:
            got = os.preadv(file, [view[:min(1 << 20, end - at)]], at)
            total += got
            at += got
    took = time.perf_counter() - start
    os.close(file)
    return total / took / 1e6


def at_random(device):
    """Thousands of 4 KiB reads a second, 64 at once, anywhere in the data."""
    rng, depth, rounds = random.Random(1), 64, 100
    blocks = [at for start, end in RANGES for at in range(start // 4096 * 4096, end - 4095, 4096)]
    buffer = mmap.mmap(-1, depth * 4096)
    start_of_buffer = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    file, context = os.open(device, os.O_RDONLY | os.O_DIRECT), ctypes.c_ulong(0)
    check(LIBC.syscall(IO_SETUP, depth, ctypes.byref(context)))
    batches = []
    for _ in range(rounds):
        # struct iocb: data, key, rw flags, opcode (0 is pread), priority, file, buffer, bytes, offset.
        words = b"".join(struct.pack("<QIIHhIQQqQII", 0, 0, 0, 0, 0, file, start_of_buffer + index * 4096, 4096, rng.choice(blocks), 0, 0, 0) for index in range(depth))
        control = ctypes.create_string_buffer(words, len(words))
        first = ctypes.addressof(control)
        batches.append(((ctypes.c_void_p * depth)(*range(first, first + depth * 64, 64)), control))
    events = ctypes.create_string_buffer(depth * 32)
    start = time.perf_counter()
    for pointers, _ in batches:
        check(LIBC.syscall(IO_SUBMIT, context, ctypes.c_long(depth), pointers) - depth)
        check(LIBC.syscall(IO_GETEVENTS, context, ctypes.c_long(depth), ctypes.c_long(depth), events, None) - depth)
    took = time.perf_counter() - start
    check(LIBC.syscall(IO_DESTROY, context))
    os.close(file)
    assert all(struct.unpack_from("<q", events, index * 32 + 16)[0] == 4096 for index in range(depth))
    return rounds * depth / took / 1e3


def check(result):
    if result:
        raise OSError(ctypes.get_errno(), f"asynchronous I/O: {result}")


with open(f"{WINDOW}/deltas") as file:
    DELTAS = file.read().split()
subprocess.run(["mount", "-o", "remount,size=3500M", "/mnt"], check=True)
LOOPS, METADATA, start = [], {}, 0
took = 0
for index, path in enumerate(DELTAS):
    shutil.copyfile(path, f"/mnt/{index}")
    start = time.perf_counter()
    LOOPS.append(loop(f"/mnt/{index}")[1])
    took += time.perf_counter() - start
CONTROL = os.open("/dev/mapper/control", os.O_RDWR)
RANGES = data_ranges()
for rule in PARAMETERS["rules"]:
    if os.path.exists(f"{WINDOW}/{rule}.meta"):
        dm.run("cp", "--sparse=always", f"{WINDOW}/{rule}.meta", f"/mnt/{rule}")
        METADATA[rule] = loop(f"/mnt/{rule}")
_, made = activate("linear")
with open("/dev/mapper/blockbt-test-flat", "rb", buffering=0) as source, open("/mnt/raw", "wb") as raw:
    os.truncate("/mnt/raw", dm.sectors(source.name) * 512)
    for at, end in RANGES:
        for part in range(at, end, 1 << 20):
            os.pwrite(raw.fileno(), os.pread(source.fileno(), min(1 << 20, end - part), part), part)
dm.remove(made[0])
raw = dm.loop("/mnt/raw", True)
figures = {name: {"seq": 0, "random": 0, "load_ms": 1e9} for name in ("raw", *PARAMETERS["rules"])}
figures["loops_ms"] = took * 1e3
for _ in range(ROUNDS):
    for name in ("raw", *PARAMETERS["rules"]):
        device, made, best = raw, [], figures[name]
        if name != "raw":
            took, made = activate(name)
            device = "/dev/mapper/blockbt-test-flat"
            best["load_ms"] = min(best["load_ms"], took * 1e3)
        best["seq"] = max(best["seq"], sequential(device), sequential(device))
        best["random"] = max(best["random"], at_random(device))
        for device in reversed(made):
            dm.remove(device)
        print(f"{time.monotonic():.1f} {name} {best}", flush=True)
with open(f"{WINDOW}/figures.json", "w") as file:
    json.dump(figures, file)
