"""Guest: records what a store's file system writes while images are used, by dm-log-writes, and checks what power cuts at random points
would have left, one after the other, in this one boot.

Parameters: seed, mode, fs, shown (modes of the checks), stories of work, only (which ones), cuts, broken: None, "loops" (loop devices of images drop
flushes) or "disk" (the store's file system does), which the checks have to notice. Writes `told.json`: cuts, repaired, wrong."""

import glob
import json
import os
import random
import shutil
import sys
import time
import traceback

import dm
import guest
from logwrites import Cut, Recorder, Replay
from model import Model
from survivors import Survivors, Wrong
from work import Work

PARAMETERS = guest.PARAMETERS
SIZE = 1 << 30
STORE = "/mnt/disk/store"


def drop_flushes():
    """What a careless choice of the cache's mode does: loops of images no longer pass flushes on."""
    for path in glob.glob("/sys/block/loop*/loop/backing_file"):
        queue = f"{os.path.dirname(os.path.dirname(path))}/queue"
        with open(path) as file:
            backing = file.read().strip()
        if backing.endswith("/head.delta") or "blockbt" in backing:
            with open(f"{queue}/write_cache", "w") as setting:
                setting.write("write through")
            print(f"{backing} is no longer flushed", flush=True)


class Broken(Work):
    def verb(self, verb, *words, **more):
        reply = super().verb(verb, *words, **more)
        if verb in ("mount", "attach") and PARAMETERS["broken"] == "loops":
            drop_flushes()
        return reply


def record(rng):
    """Returns the log of some work, and what was said before it."""
    guest.modprobe("dm-log-writes")
    said = []
    for name, size in (("disk", SIZE), ("log", SIZE)):
        with open(f"/mnt/files/{name}", "wb") as file:
            file.truncate(size)
    dm.run("mkfs.ext4", "-q", "-b", "4096", "/mnt/files/disk")
    dm.run("mount", "-o", "loop", "/mnt/files/disk", "/mnt/disk")
    first = Work(STORE, PARAMETERS["mode"], said.append, rng, fs=PARAMETERS["fs"])
    first.prepare()
    dm.run("umount", "/mnt/disk")
    dm.run("cp", "--sparse=always", "/mnt/files/disk", "/mnt/files/base")
    recorder = Recorder("/mnt/files/disk", "/mnt/files/log")
    dm.run("mount", "-o", "barrier=0" if PARAMETERS["broken"] == "disk" else "barrier=1", recorder.device, "/mnt/disk")
    work = Broken(STORE, PARAMETERS["mode"], recorder.mark, rng, first.model, PARAMETERS["fs"])
    work.run(PARAMETERS["stories"])
    dm.run("umount", "/mnt/disk")
    return recorder.stop(), said


def choose(log, count, rng):
    """Half of the cuts anywhere in the log, half in the middle of a verb, all verbs alike; in order."""
    began, spans = None, {}
    for number, entry in enumerate(log.entries):
        what = json.loads(entry.mark) if entry.mark and entry.mark.startswith("[") else [None]
        if what[0] == "b":
            began = number
        elif what[0] == "e":
            spans.setdefault(what[1], []).append((began, number))
    print({verb: f"{len(found)} times, {sum(end - start for start, end in found)} entries" for verb, found in spans.items()}, flush=True)
    places = []
    for number in range(count):
        first, end = (0, len(log.entries)) if number % 2 else rng.choice(spans[rng.choice(sorted(spans))])
        places.append((rng.randint(first, end), rng.choice(("order", "some", "some", "none", "torn"))))
    cuts = [Cut(log, place, kept, rng.getrandbits(32)) for place, kept in places]
    return sorted(cuts, key=lambda cut: cut.durable)


def examine(replay, cut, said, rng):
    """Returns how much had to be repaired, or raises `Wrong`."""
    if os.path.isdir("/run/blockbt"):
        shutil.rmtree("/run/blockbt")
    device = replay.make(cut)
    try:
        try:
            dm.mount(device, "/mnt/disk")
        except dm.Failed as error:
            raise Wrong(f"the store's file system: {error}") from error
        try:
            known = Model().read(said + cut.marks())
            return Survivors(STORE, known, rng.choice(PARAMETERS["shown"]), rng).check().repaired
        finally:
            dm.umount("/mnt/disk")
    finally:
        replay.drop()


def keep(replay, cut, number):
    device = replay.make(cut)
    dm.run("cp", "--sparse=always", device, f"/run/window/cut-{number}.img")
    replay.drop()


for directory in ("disk", "web", "files"):
    os.makedirs(f"/mnt/{directory}")
dm.run("mount", "-t", "tmpfs", "-o", "size=95%", "none", "/mnt/files")
rng = random.Random(PARAMETERS["seed"])
log, said = record(rng)
print(f"{len(log.entries)} entries, {len(log.flushes)} flushes, {log.bytes >> 20} MiB", flush=True)
os.unlink("/mnt/files/disk")
replay = Replay(log, "/mnt/files/base", "/mnt/files/scratch")
told = {"cuts": 0, "repaired": 0, "wrong": [], "entries": len(log.entries), "flushes": len(log.flushes)}
for number, cut in enumerate(choose(log, PARAMETERS["cuts"], rng)):
    start = time.monotonic()
    try:
        told["repaired"] += examine(replay, cut, said, rng)
        verdict = "ok"
    except Wrong as wrong:
        verdict = str(wrong)
        traceback.print_exc(file=sys.stdout)
        told["wrong"].append(f"{number}: {cut}: {wrong}")
        if len(told["wrong"]) == 1 and not PARAMETERS["broken"]:
            keep(replay, cut, number)
    told["cuts"] += 1
    print(f"== {number}: {cut}: {time.monotonic() - start:.1f} s: {verdict}", flush=True)
    with open("/run/window/told.json", "w") as file:
        json.dump(told, file)
    if len(told["wrong"]) == 3:
        break
