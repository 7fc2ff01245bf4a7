"""Random chains beside a plain file of what they should be: on the host in user mode, in a guest in every mode.

A step: perhaps another size; an attach in some mode, writes, a detach; a look at the head in another mode; a commit with some chunk size; a look again."""

import glob
import os
import random

KIB, MIB = 1 << 10, 1 << 20
STACKED = 8


class Disk:
    """An image, and the file that it is to be like: no bytes in memory, as a process of a guest cannot have many pages."""

    def __init__(self, ctl, kernel, name, seed, model):
        self.ctl, self.kernel, self.name, self.rng = ctl, kernel, name, random.Random(f"{seed} {name}")
        self.short, self.full, self.looks, self.writes = 0, 0, 0, {}
        self.model = os.open(model, os.O_RDWR | os.O_CREAT)
        self.size = os.fstat(self.model).st_size
        self.depth = 0 if self.size == 0 else len(self.ctl("info", name)[0]["chain"])

    def make(self, model, sizes):
        self.size = self.any_size(*sizes)
        os.ftruncate(self.model, self.size)
        for _ in range(self.rng.randrange(1, 8)):
            os.pwrite(self.model, *reversed(self.stretch(self.size // 3)))
        self.ctl("import", self.name, model)
        self.depth = 1

    def any_size(self, smallest, largest):
        """A multiple of 512 bytes, and often of more."""
        grain = self.rng.choice([512, 4 * KIB, 64 * KIB])
        return self.rng.randrange(smallest, largest) // grain * grain

    def modes(self):
        return ["user"] if not self.kernel else ["flat", "user"] + (["stack"] if self.depth <= STACKED else [])

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
            self.ctl("resize", self.name, str(self.size), "--shrink")
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
        self.ctl("detach", self.name)
        if look:
            self.look(self.rng.choice([other for other in self.modes() if other != mode] or [mode]))
        if chunk is None and self.rng.random() < 0.6:
            chunk = self.rng.choice([4, 8, 16, 64, 256, 1024]) * KIB
        (reply,) = self.ctl("commit", self.name, *(["--chunk-size", str(chunk)] if chunk else []))
        self.depth = reply["deltas"]
        if chunk and changes and len(changes) * 16 % chunk == 0:
            self.full += 1
        if look:
            self.look(self.rng.choice(self.modes()))

    def attach(self, mode, *words):
        (reply,) = self.ctl("attach", self.name, "--mode", mode, *words)
        assert reply["mode"] == mode, reply
        if mode == "flat":
            self.short += any("-short-" in open(path).read() for path in glob.glob("/sys/block/dm-*/dm/name"))
        return reply["device"]

    def look(self, *modes):
        for mode in modes:
            device = self.attach(mode, *self.rng.choice([(), ("--read-only",)]))
            self.compare(device, mode)
            self.ctl("detach", self.name)

    def compare(self, device, what):
        self.looks += 1
        with open(device, "rb", buffering=0) as file:
            there = file.seek(0, os.SEEK_END)
            assert there == self.size, f"{self.name}, {what}: {there} bytes, want {self.size}"
            for at in range(0, self.size, MIB):
                found, want = os.pread(file.fileno(), MIB, at), os.pread(self.model, MIB, at)
                if found != want:
                    sectors = [at // 512 + index for index in range(len(want) // 512) if found[index * 512:][:512] != want[index * 512:][:512]]
                    where = f"sectors {sectors[0]} to {sectors[-1]}, {len(sectors)} of them"
                    raise AssertionError(f"{self.name}, depth {self.depth}, {what}: wrong in the MiB at {at}: {where}")
