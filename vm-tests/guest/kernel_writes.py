"""Guest: lets the kernel write stores of known content, for blockbt's reader to read back on the host.

Makes <case>.delta and <case>.tsv in /run/window: "disk chunk, sha256 of the chunk" for every chunk that was written to."""

import hashlib
import os
import random
import time

import dm

MIB = 1 << 20


def block(rng):
    """4 KiB that compress badly and are never zero."""
    return rng.randbytes(4088) + b"blockbt!"


def case(name, chunk_sectors, chunks, disk_chunks):
    """Writes into `chunks` different chunks of a disk of `disk_chunks`, most of them once, some of them again."""
    rng = random.Random(name)
    size = chunk_sectors * 512
    per_area = size // 16
    # In memory, as the kernel flushes at each exception; the window's disk would take most of the time.
    path = f"/mnt/{name}.delta"
    with open(path, "wb") as cow:
        cow.truncate(size * (chunks + 3 + chunks // per_area + 1))
    device = dm.loop(path, False)
    disk_sectors = disk_chunks * chunk_sectors
    zero = dm.create("blockbt-test-zero", f"0 {disk_sectors} zero\n", True)
    top = dm.create("blockbt-test-head", f"0 {disk_sectors} snapshot {zero} {device} PO {chunk_sectors}\n", False)
    touched = rng.sample(range(disk_chunks), chunks)
    again = rng.sample(touched, max(1, chunks // 10))
    contents = {}
    with open(top, "r+b", buffering=0) as disk:
        for number, chunk in enumerate(touched + again):
            first = rng.randrange(size // 4096)
            data = b"".join(block(rng) for _ in range(min(rng.choice((1, 1, 2)), size // 4096 - first)))
            os.pwrite(disk.fileno(), data, chunk * size + first * 4096)
            contents.setdefault(chunk, {}).update({first + at: data[at * 4096:][:4096] for at in range(len(data) // 4096)})
            if number % 97 == 0:
                os.fsync(disk.fileno())
        os.fsync(disk.fileno())
    status = dm.run("dmsetup", "status", "blockbt-test-head")
    for device_name in ("blockbt-test-head", "blockbt-test-zero"):
        dm.remove(device_name)
    dm.run("losetup", "--detach", device)
    dm.run("cp", "--sparse=always", path, f"/run/window/{name}.delta")
    os.unlink(path)
    with open(f"/run/window/{name}.tsv", "w") as expected:
        for chunk, blocks in sorted(contents.items()):
            digest = hashlib.sha256()
            for at in range(size // 4096):
                digest.update(blocks.get(at, bytes(4096)))
            expected.write(f"{chunk}\t{digest.hexdigest()}\n")
    print(f"{time.monotonic():.1f} {name}: {chunks} chunks, {status}", flush=True)


for seed in (1, 2, 3):
    for chunk_sectors in (8, 32, 128):
        per_area = chunk_sectors * 32
        case(f"sparse-{chunk_sectors}-{seed}", chunk_sectors, 100 + seed, 1 << 20)
        case(f"full-{chunk_sectors}-{seed}", chunk_sectors, per_area, 2 * per_area)
        if chunk_sectors < 128:
            case(f"full-twice-{chunk_sectors}-{seed}", chunk_sectors, 2 * per_area, 3 * per_area)
            case(f"one-more-{chunk_sectors}-{seed}", chunk_sectors, per_area + 1, 2 * per_area)
