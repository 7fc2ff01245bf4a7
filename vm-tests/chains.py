"""The chains that the kernel is to read: made through blockbt-ctl, or by hand; laid out in a directory per case.

A case holds its deltas, chain.tsv (file, virtual size; oldest first) and expected.tsv (MiB of the disk, SHA-256 of it; all others are zero)."""

import hashlib
import json
import os
import random
import shutil
import struct
import subprocess

from harness import ENV
from vm import Failure

MIB, KIB = 1 << 20, 1 << 10


class Ctl:
    """blockbt-ctl on one store."""

    def __init__(self, program, root):
        self.program, self.root = program, root

    def __call__(self, *words):
        done = subprocess.run([self.program, "--root", self.root, "--no-daemon", "--json", *words], text=True, capture_output=True, env=ENV)
        if done.returncode:
            raise Failure(f"blockbt-ctl {' '.join(words)}: status {done.returncode}: {done.stderr.strip()}", self.root)
        return [json.loads(line) for line in done.stdout.splitlines()]


def new_case(window, name, names_and_sizes):
    case = os.path.join(window, name)
    os.mkdir(case)
    with open(os.path.join(case, "chain.tsv"), "w") as listing:
        listing.writelines(f"{delta}\t{size}\n" for delta, size in names_and_sizes)
    with open(os.path.join(window, "cases"), "a") as cases:
        cases.write(f"{name}\n")
    return case


def expect(case, blocks):
    """`blocks`: (MiB of the disk, its bytes)."""
    with open(os.path.join(case, "expected.tsv"), "w") as expected:
        expected.writelines(f"{number}\t{hashlib.sha256(data).hexdigest()}\n" for number, data in blocks if data.strip(b"\0"))


def blocks_of(path):
    """Every MiB of a file that is no hole."""
    with open(path, "rb") as file:
        size, at = os.fstat(file.fileno()).st_size, 0
        while at < size:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA) // MIB * MIB
            except OSError:  # a hole to the end
                return
            yield at // MIB, os.pread(file.fileno(), MIB, at)
            at += MIB


def lay_out(window, name, ctl, image):
    """The image's own deltas, and what blockbt's export says is on the disk."""
    chain = ctl("info", image)[0]["chain"]
    deltas = [f"{number:04}.delta" for number in range(len(chain))]
    case = new_case(window, name, [(delta, item["virtual_size_bytes"]) for delta, item in zip(deltas, chain)])
    for delta, item in zip(deltas, chain):
        stored = os.path.join(ctl.root, "objects", item["digest"][:2], f"{item['digest']}.delta")
        shutil.copyfile(stored, os.path.join(case, delta))
    raw = os.path.join(case, "expected.raw")
    ctl("export", image, raw)
    if os.path.getsize(raw) != chain[-1]["virtual_size_bytes"]:
        raise Failure(f"the export has {os.path.getsize(raw)} bytes", case)
    expect(case, blocks_of(raw))
    os.unlink(raw)
    return case


def exceptions(path):
    """The chunk size of a delta and its exceptions [(disk chunk, file chunk)], read by nothing of blockbt's."""
    found = []
    with open(path, "rb") as file:
        magic, valid, version, sectors = struct.unpack("<4sIII", file.read(16))
        if (magic, valid, version) != (b"SnAp", 1, 1):
            raise Failure(f"no header of a valid delta: {magic} {valid} {version}", path)
        chunk_size = sectors * 512
        per_area = chunk_size // 16
        while True:
            area, slot = divmod(len(found), per_area)
            file.seek((1 + area * (per_area + 1)) * chunk_size + slot * 16)
            disk, at = struct.unpack("<QQ", file.read(16))
            if at == 0:
                return chunk_size, found
            found.append((disk, at))


def flipped(window, name, case):
    """A copy of `case` with one bit wrong in the newest delta's first chunk; returns the MiB of the disk that it is in."""
    with open(os.path.join(case, "chain.tsv")) as lines:
        deltas = [line.split() for line in lines]
    copy = new_case(window, name, deltas)
    for delta, _ in deltas:
        shutil.copyfile(os.path.join(case, delta), os.path.join(copy, delta))
    shutil.copyfile(os.path.join(case, "expected.tsv"), os.path.join(copy, "expected.tsv"))
    top = os.path.join(copy, deltas[-1][0])
    chunk_size, found = exceptions(top)
    disk, at = found[0]
    with open(top, "r+b") as file:
        file.seek(at * chunk_size + 17)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    return disk * chunk_size // MIB


def tricky(window, name, ctl):
    """A base of 64 KiB chunks and deltas of 4 KiB on a disk that is no multiple of either: a last area exactly full, once and twice, zeros
    over data and data over zeros. What must be on the disk is known here, whatever blockbt says."""
    rng = random.Random(11)
    size = 24 * MIB + 20 * KIB
    disk = bytearray(size)
    for at in rng.sample(range(0, size - 128 * KIB, 64 * KIB), 180):
        disk[at:at + 64 * KIB] = rng.randbytes(64 * KIB)
    disk[size - 8 * KIB:] = rng.randbytes(8 * KIB)
    raw = os.path.join(window, "tricky.raw")
    with open(raw, "wb") as file:
        file.write(disk)
    ctl("import", "tricky", raw)
    os.unlink(raw)
    zeroed = 0
    for count in (256, 300, 512):
        device = ctl("attach", "tricky")[0]["device"]
        try:
            with open(device, "r+b", buffering=0) as file:
                touched = 0
                for chunk in rng.sample(range(size // (4 * KIB)), size // (4 * KIB)):
                    span = slice(chunk * 4 * KIB, (chunk + 1) * 4 * KIB)
                    was_data = any(disk[span])
                    data = bytes(4 * KIB) if was_data and rng.random() < 0.3 else rng.randbytes(4 * KIB)
                    zeroed += not any(data)
                    disk[span] = data
                    os.pwrite(file.fileno(), data, span.start)
                    touched += 1
                    if touched == count:
                        break
                os.fsync(file.fileno())
        finally:
            ctl("detach", "tricky")
        ctl("commit", "tricky")
    case = lay_out(window, name, ctl, "tricky")
    with open(os.path.join(case, "expected.tsv")) as said:
        by_export = said.read()
    expect(case, ((at // MIB, bytes(disk[at:at + MIB])) for at in range(0, size, MIB)))
    with open(os.path.join(case, "expected.tsv")) as known:
        if known.read() != by_export:
            raise Failure("blockbt's export is not what was written to the device", case)
    made = [(chunk_size, len(found)) for chunk_size, found in (exceptions(os.path.join(case, f"{number:04}.delta")) for number in range(4))]
    if made[0][0] != 64 * KIB or made[1:] != [(4 * KIB, 256), (4 * KIB, 300), (4 * KIB, 512)] or zeroed < 100:
        raise Failure(f"the chain is not the tricky one: chunk sizes and exceptions {made}, {zeroed} zero chunks over data", case)
    return case


def small(ctl, mounted):
    """An ext4 with a few deltas, made through blockbt-ctl alone."""
    os.mkdir(mounted)
    ctl("create", "web", "--size", "512M")
    for step in range(3):
        ctl("mount", "web", mounted)
        try:
            for number in range(20):
                with open(os.path.join(mounted, f"file-{(step * 7 + number) % 31}"), "wb") as file:
                    file.write(os.urandom(30_000 + 1000 * number))
        finally:
            ctl("umount", "web")
        ctl("commit", "web")
