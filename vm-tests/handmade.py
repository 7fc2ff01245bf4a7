"""Two deltas written by hand from the byte table in kernel-notes/, to prove the harness: blockbt's code has no part in them."""

import hashlib
import os
import random
import struct


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


def chain(window, flip):
    """base (64 KiB chunks, 8 MiB), a shrink to 4 MiB, a growth to 12 MiB. With `flip`, one bit of the newest delta is wrong."""
    rng = random.Random(7)
    mib = 1 << 20
    disk = bytearray(12 * mib)
    layers = [(65536, 8 * mib, 40), (4096, 4 * mib, 256), (4096, 12 * mib, 600)]
    with open(os.path.join(window, "chain.tsv"), "w") as listing:
        for number, (chunk_size, size, count) in enumerate(layers):
            disk[size:] = bytes(12 * mib - size)
            chunks = {}
            for at in rng.sample(range(size // chunk_size), count):
                chunks[at] = bytes(chunk_size) if rng.random() < 0.1 else rng.randbytes(chunk_size)
                disk[at * chunk_size:(at + 1) * chunk_size] = chunks[at]
            delta(os.path.join(window, f"{number:04}.delta"), chunk_size, chunks)
            listing.write(f"{number:04}.delta\t{size}\n")
    with open(os.path.join(window, "expected.sha256"), "w") as expected:
        expected.write(hashlib.sha256(disk).hexdigest())
    if flip:
        with open(os.path.join(window, "0002.delta"), "r+b") as file:
            file.seek(2 * 4096 + 17)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1]))
