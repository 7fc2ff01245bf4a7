"""Deltas written by hand from the byte table in kernel-notes/, to prove the harness: blockbt's code has no part in them."""

import os
import random
import struct

from chains import MIB, expect, new_case


def delta(path, chunk_size, chunks):
    """A sealed-looking store: `chunks` is {disk chunk: data}, in order of the disk."""
    per_area = chunk_size // 16
    items = sorted(chunks.items())
    with open(path, "wb") as file:
        file.write(struct.pack("<4sIII", b"SnAp", 1, 1, chunk_size // 512))
        for index, (disk, data) in enumerate(items):
            area, slot = divmod(index, per_area)
            at = index + area + 2
            file.seek((1 + area * (per_area + 1)) * chunk_size + slot * 16)
            file.write(struct.pack("<QQ", disk, at))
            file.seek(at * chunk_size)
            file.write(data)
        areas = len(items) // per_area + 1
        file.truncate(max(1 + (areas - 1) * (per_area + 1) + 1, len(items) + areas + 1) * chunk_size)


def chain(window, name):
    """base (64 KiB chunks, 8 MiB), a shrink to 4 MiB, a growth to 12 MiB."""
    rng = random.Random(7)
    disk = bytearray(12 * MIB)
    layers = [(65536, 8 * MIB, 40), (4096, 4 * MIB, 256), (4096, 12 * MIB, 600)]
    case = new_case(window, name, [(f"{number:04}.delta", size) for number, (_, size, _) in enumerate(layers)])
    for number, (chunk_size, size, count) in enumerate(layers):
        disk[size:] = bytes(12 * MIB - size)
        chunks = {}
        for at in rng.sample(range(size // chunk_size), count):
            chunks[at] = bytes(chunk_size) if rng.random() < 0.1 else rng.randbytes(chunk_size)
            disk[at * chunk_size:(at + 1) * chunk_size] = chunks[at]
        delta(os.path.join(case, f"{number:04}.delta"), chunk_size, chunks)
    expect(case, ((at // MIB, bytes(disk[at:at + MIB])) for at in range(0, len(disk), MIB)))
    return case
