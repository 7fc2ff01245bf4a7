"""Guest: shows each chain in /run/window as a plain stack of dm-snapshots and compares the whole device with what it is to be.

cases: the directories, one a line. chain.tsv: one delta a line, oldest first: file, virtual size in bytes. expected.tsv: MiB of the disk, its
SHA-256; all others are zero. Writes `differs` into each case: the MiB that the kernel reads otherwise."""

import hashlib
import os
import time

import dm

MIB = 1 << 20
ZEROS = bytes(MIB)


def compare(device, size, expected):
    differs, buffer, at = [], bytearray(MIB), 0
    view = memoryview(buffer)
    with open(device, "rb", buffering=0) as disk:
        while count := disk.readinto(view[:min(MIB, size - at)]):
            if at // MIB not in expected:
                same = buffer == ZEROS if count == MIB else not any(view[:count])
            else:
                same = hashlib.sha256(view[:count]).hexdigest() == expected[at // MIB]
            if not same:
                differs.append(at // MIB)
            at += count
            if count != MIB:
                break
    if at != size or dm.sectors(device) * 512 != size:
        raise AssertionError(f"{device}: {at} bytes could be read of {dm.sectors(device)} sectors, want {size} bytes")
    return differs


with open("/run/window/cases") as lines:
    cases = lines.read().split()
for case in cases:
    start = time.monotonic()
    os.makedirs(f"/mnt/{case}")
    with open(f"/run/window/{case}/chain.tsv") as lines:
        deltas = [(f"/mnt/{case}/{name}", int(size)) for name, size in (line.split() for line in lines)]
    # Debian's kernel in emulation died in two of six runs with its loops over virtiofs (a broken list of loop's), and in none of six without.
    for path, _ in deltas:
        dm.run("cp", "--sparse=always", f"/run/window/{case}/{os.path.basename(path)}", path)
    with open(f"/run/window/{case}/expected.tsv") as lines:
        expected = {int(number): digest for number, digest in (line.split() for line in lines)}
    differs = compare(dm.stack(deltas, case), deltas[-1][1], expected)
    with open(f"/run/window/{case}/differs", "w") as result:
        result.write(" ".join(map(str, differs)))
    print(f"{case}: {len(deltas)} deltas, {len(expected)} MiB with data, differs in {differs}, {time.monotonic() - start:.1f} s", flush=True)
print(dm.run("dmsetup", "table"))
