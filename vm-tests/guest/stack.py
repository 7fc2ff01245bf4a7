"""Guest: shows the chain in /run/window as a plain stack of dm-snapshots and hashes the whole device.

chain.tsv: one delta a line, oldest first: file, virtual size in bytes. expected.sha256: of the whole disk, made by blockbt."""

import hashlib

import dm

with open("/run/window/chain.tsv") as lines:
    deltas = [(f"/run/window/{name}", int(size)) for name, size in (line.split("\t") for line in lines)]
top = dm.stack(deltas)
digest = hashlib.sha256()
with open(top, "rb", buffering=0) as disk:
    read = 0
    while data := disk.read(1 << 20):
        digest.update(data)
        read += len(data)
expected = open("/run/window/expected.sha256").read().split()[0]
print(dm.run("dmsetup", "table"))
print(f"{len(deltas)} deltas, {read} bytes, {digest.hexdigest()}")
if read != deltas[-1][1]:
    raise SystemExit(f"the device has {read} bytes, want {deltas[-1][1]}")
if digest.hexdigest() != expected:
    raise SystemExit(f"the kernel reads another disk: sha256 {digest.hexdigest()}, want {expected}")
