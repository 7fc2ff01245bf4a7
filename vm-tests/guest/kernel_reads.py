"""Guest: reads every chunk of the stores that the kernel began and our head went on with (*.continued), through dm-snapshot."""

import glob
import hashlib
import os
import time

import dm

paths = sorted(glob.glob("/run/window/*.continued"))
if len(paths) < 27:
    raise AssertionError(f"{len(paths)} stores to read")
for path in paths:
    with open(f"{path}.tsv") as lines:
        expected = [(int(chunk), digest) for chunk, digest in (line.split() for line in lines)]
    sectors = dm.chunk_sectors(path)
    disk = (expected[-1][0] + 1) * sectors
    zero = dm.create("blockbt-test-zero", f"0 {disk} zero\n", True)
    device = dm.loop(path, True)
    top = dm.create("blockbt-test-top", f"0 {disk} snapshot {zero} {device} P {sectors}\n", True)
    with open(top, "rb", buffering=0) as file:
        for chunk, digest in expected:
            data = os.pread(file.fileno(), sectors * 512, chunk * sectors * 512)
            if hashlib.sha256(data).hexdigest() != digest:
                raise AssertionError(f"{path}: the kernel reads chunk {chunk} as something else")
    for name in ("blockbt-test-top", "blockbt-test-zero"):
        dm.remove(name)
    dm.run("losetup", "--detach", device)
    print(f"{time.monotonic():.1f} {os.path.basename(path)}: {len(expected)} chunks", flush=True)
