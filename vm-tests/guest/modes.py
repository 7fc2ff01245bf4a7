"""Guest: random chains beside a plain list of bytes; what each mode shows, and what is written in each mode, must be that list.

A step: perhaps another size; an attach in some mode, writes, a detach; a look at the head in another mode; a commit with some chunk size; a look again.
What is wrong is copied to /run/window/wreck: the store, and what should be on the disk."""

import os
import random
import subprocess
import time

import dm
from guest import PARAMETERS, ctl

KIB, MIB = 1 << 10, 1 << 20
STORE, MODEL = "/mnt/store", "/mnt/model"
STACKED = 8


class Disk:
    def __init__(self, name, seed, sizes):
        self.name, self.rng = name, random.Random(f"{seed} {name}")
        self.depth, self.short, self.looks, self.writes = 0, 0, 0, {}
        # A file, as a process of the guest cannot have many pages.
        self.size, self.model = self.any_size(*sizes), os.open(MODEL, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.ftruncate(self.model, self.size)
        for _ in range(self.rng.randrange(1, 8)):
            os.pwrite(self.model, *reversed(self.stretch(self.size // 3)))
        ctl(STORE, "import", name, MODEL)
        self.depth = 1
        self.look(*self.modes())

    def any_size(self, smallest, largest):
        """A multiple of 512 bytes, and often of more."""
        grain = self.rng.choice([512, 4 * KIB, 64 * KIB])
        return self.rng.randrange(smallest, largest) // grain * grain

    def modes(self):
        return ["flat", "user"] + (["stack"] if self.depth <= STACKED else [])

    def stretch(self, longest):
        """A place on the disk, and random data for it, or zeros."""
        grain = self.rng.choice([512, 4 * KIB, 4 * KIB, 64 * KIB])
        length = min(self.rng.randrange(grain, max(longest, grain) + 1) // grain * grain, self.size)
        at = self.rng.randrange(0, self.size - length + 1) // 512 * 512
        return at, bytes(length) if self.rng.random() < 0.25 else self.rng.randbytes(length)

    def comb(self):
        """Every eighth block of the disk, so that four deltas have every second one: more runs than a table has without a short device."""
        every = range(self.depth % 4 * 2, self.size // (4 * KIB), 8)
        return [(index * 4 * KIB, self.rng.randbytes(4 * KIB)) for index in every], 4 * KIB

    def changes(self, blocks):
        """[(at, data)] of one delta, and the chunk size that it is to be sealed with, or None."""
        kind = self.rng.choice(["blocks", "stretches", "full", "sectors"])
        if kind == "full":
            # So many chunks that the areas of the sealed delta are exactly full.
            chunk = self.rng.choice([4 * KIB, 4 * KIB, 8 * KIB])
            count = chunk // 16 * self.rng.choice([1, 1, 2])
            if count * chunk <= self.size:
                chosen = self.rng.sample(range(self.size // chunk), count)
                return [(index * chunk, self.rng.randbytes(chunk)) for index in chosen], chunk
        if kind == "sectors":
            places = [self.rng.randrange(self.size // 512) * 512 for _ in range(20)]
            return [(at, self.rng.randbytes(512)) for at in places], None
        if kind == "stretches":
            return [self.stretch(MIB) for _ in range(self.rng.randrange(1, 5))], None
        chosen = self.rng.sample(range(self.size // (4 * KIB)), min(blocks, self.size // (4 * KIB)))
        return [(index * 4 * KIB, self.rng.randbytes(4 * KIB)) for index in chosen], 4 * KIB if self.rng.random() < 0.7 else None

    def step(self, blocks, sizes, look):
        combed = blocks == "comb" and self.depth <= 4
        if not combed and self.rng.random() < 0.3:
            self.size = self.any_size(*sizes)
            ctl(STORE, "resize", self.name, str(self.size), "--shrink")
            os.ftruncate(self.model, self.size)
        mode = self.rng.choice(self.modes())
        changes, chunk = self.comb() if combed else self.changes(40 if blocks == "comb" else blocks)
        device = self.attach(mode)
        with open(device, "r+b", buffering=0) as file:
            for at, data in changes:
                os.pwrite(file.fileno(), data, at)
                os.pwrite(self.model, data, at)
            os.fsync(file.fileno())
        self.writes[mode] = self.writes.get(mode, 0) + len(changes)
        if look:
            self.compare(device, f"{mode}, just written")
        ctl(STORE, "detach", self.name)
        if look:
            self.look(self.rng.choice([other for other in self.modes() if other != mode]))
        if chunk is None and self.rng.random() < 0.6:
            chunk = self.rng.choice([4, 8, 16, 64, 256, 1024]) * KIB
        (reply,) = ctl(STORE, "commit", self.name, *(["--chunk-size", str(chunk)] if chunk else []))
        self.depth = reply["deltas"]
        if chunk and changes and len(changes) * 16 % chunk == 0:
            print(f"  {len(changes)} chunks of {chunk} bytes: areas that are exactly full", flush=True)
        if look:
            self.look(self.rng.choice(self.modes()))

    def attach(self, mode, *words):
        (reply,) = ctl(STORE, "attach", self.name, "--mode", mode, *words)
        assert reply["mode"] == mode, reply
        if mode == "flat":
            self.short += "-short-" in dm.run("dmsetup", "ls")
        return reply["device"]

    def look(self, *modes):
        for mode in modes:
            device = self.attach(mode, *self.rng.choice([(), ("--read-only",)]))
            self.compare(device, mode)
            ctl(STORE, "detach", self.name)

    def compare(self, device, what):
        self.looks += 1
        assert dm.sectors(device) * 512 == self.size, f"{self.name}, {what}: {dm.sectors(device)} sectors, want {self.size} bytes"
        with open(device, "rb", buffering=0) as file:
            for at in range(0, self.size, MIB):
                found, want = os.pread(file.fileno(), MIB, at), os.pread(self.model, MIB, at)
                if found != want:
                    sectors = [at // 512 + index for index in range(len(want) // 512) if found[index * 512:][:512] != want[index * 512:][:512]]
                    where = f"sectors {sectors[0]} to {sectors[-1]}, {len(sectors)} of them"
                    raise AssertionError(f"{self.name}, depth {self.depth}, {what}: wrong in the MiB at {at}: {where}")


def case(name, depth, sizes, blocks, every=1):
    """`every`: how many deltas are made between two looks."""
    start = time.monotonic()
    disk = Disk(name, PARAMETERS["seed"], sizes)
    try:
        while disk.depth < depth:
            disk.step(blocks, sizes, disk.depth % every == 0)
        disk.look(*disk.modes())
        ctl(STORE, "flatten", name, "--keep", str(disk.rng.randrange(min(depth, 4))))
        (info,) = ctl(STORE, "info", name)
        disk.depth = len(info["chain"])
        disk.look(*disk.modes())
        (report,) = ctl(STORE, "check", name)
        assert report["findings"] == [], report
    except BaseException:
        os.makedirs("/run/window/wreck")
        print(dm.run("dmsetup", "ls"), flush=True)
        subprocess.run(["cp", "-a", "--sparse=always", STORE, MODEL, "/run/window/wreck"])
        raise
    ctl(STORE, "rm", name)
    ctl(STORE, "gc")
    print(f"{name}: {depth} deltas, {disk.looks} looks, writes {disk.writes}, short devices {disk.short}, {time.monotonic() - start:.1f} s", flush=True)
    return disk


print(f"seed {PARAMETERS['seed']}", flush=True)
disks = [case(f"small-{depth}", depth, (MIB, 12 * MIB), 40) for depth in (1, 3, 5, 8, 11)]
disks.append(case("scattered", 7, (135 * MIB, 144 * MIB), "comb", 3))
assert disks[-1].short, "no flat table had a short device"
disks.append(case("deep", PARAMETERS["deepest"], (24 * MIB, 48 * MIB), 100, 32))
left = [dm.run("dmsetup", "ls"), dm.run("losetup", "--list", "--noheadings")]
assert left[0] in ("", "No devices found") and left[1] == "", left
with open("/run/window/said", "w") as file:
    file.write(f"{len(disks)} chains, {sum(disk.looks for disk in disks)} looks, {sum(disk.short for disk in disks)} short devices")
