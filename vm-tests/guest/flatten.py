"""Guest: a chain of many deltas is made one, beside a clone on the old chain that the kernel has attached."""

import hashlib
import os
import statistics
import subprocess

import guest
from guest import ctl

STORE, DEPTH, MIB = "/mnt/store", guest.PARAMETERS["deltas"], 1 << 20


def attach(name, *words):
    (reply,) = ctl(STORE, "attach", name, "--mode", "flat", *words)
    assert reply["mode"] == "flat", reply
    return reply


def write(device, at, data):
    with open(device, "r+b", buffering=0) as disk:
        os.pwrite(disk.fileno(), data, at)
        os.fsync(disk.fileno())


def look(device):
    with open(device, "rb") as disk:
        return hashlib.file_digest(disk, "sha256").hexdigest()


def attach_ms(name):
    """The median of some attaches, inside the verb, and what the device shows."""
    times, shown = [], set()
    for _ in range(5):
        reply = attach(name, "--read-only")
        times.append(reply["took_ms"])
        shown.add(look(reply["device"]))
        ctl(STORE, "detach", name)
    (shown,) = shown
    return statistics.median(times), shown


ctl(STORE, "create", "web", "--size", "64M", "--fs", "none")
for n in range(DEPTH):
    reply = attach("web")
    write(reply["device"], n * MIB, os.urandom(300 * 4096))
    ctl(STORE, "detach", "web")
    (commit,) = ctl(STORE, "commit", "web")
assert commit["deltas"] == DEPTH and commit["flatten_proposed"] == (DEPTH >= 32), commit
ctl(STORE, "clone", "web", "old")
before_ms, before = attach_ms("web")

device = attach("old")["device"]
refused = subprocess.run(guest.command(STORE, "flatten", "old"), text=True, capture_output=True)
assert refused.returncode == 4, f"flatten of what is attached ended with {refused.returncode}: {refused.stderr}"
(flat,) = ctl(STORE, "flatten", "web")
assert flat["replaced_deltas"] == DEPTH and flat["deltas"] == 1, flat
ctl(STORE, "gc")
assert look(device) == before, "the attached clone on the old chain has changed"
write(device, 5, b"a clone that goes on")
changed = look(device)
ctl(STORE, "detach", "old")
ctl(STORE, "commit", "old")
after_ms, after = attach_ms("web")
assert after == before, "the flattened image shows something else"
assert attach_ms("old")[1] == changed
(report,) = ctl(STORE, "check", "--all")
assert report["findings"] == [], report
sizes = f"{flat['replaced_bytes'] >> 20} MiB to {flat['delta_bytes'] >> 20} in {flat['took_ms']} ms"
with open("/run/window/said", "w") as said:
    said.write(f"{DEPTH} deltas to one, {sizes}; attach {before_ms} ms before, {after_ms} after")
