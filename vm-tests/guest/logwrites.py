"""Reads what dm-log-writes recorded and makes the disks that a power cut could have left.

The log (Linux `drivers/md/dm-log-writes.c`; all little-endian): sector 0 has magic, version, number of entries, sector size. An entry is a
sector with sector, sectors, flags, length of a mark and the mark's text, then the data (none for a discard). Entries are in the order of
completion; a write without FUA is logged only with the next flush, right before it. So between two flushes stand first the FUA writes and the marks, then what
the flush made durable, and of that last part a cut before the flush's end may leave any subset, in pieces of 4 KiB."""

import bisect
import os
import random
import struct

import dm

MAGIC, SECTOR, PIECE = 0x6A736677736872, 512, 4096
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8


class Entry:
    def __init__(self, sector, sectors, flags, at, mark):
        self.sector, self.sectors, self.flags, self.at, self.mark = sector, sectors, flags, at, mark

    def __repr__(self):
        names = [name for name, bit in (("flush", FLUSH), ("fua", FUA), ("discard", DISCARD)) if self.flags & bit]
        return f"{self.mark or '+'.join(names) or 'write'} {self.sector}+{self.sectors}"


class Log:
    def __init__(self, path):
        self.file = open(path, "rb", buffering=0)
        magic, version, count, size = struct.unpack("<QQQI", os.pread(self.file.fileno(), 28, 0))
        assert (magic, version, size) == (MAGIC, 1, SECTOR), f"no log of 512-byte sectors: {magic:#x} version {version}, sectors of {size}"
        self.entries, at = [], SECTOR
        for _ in range(count):
            sector, sectors, flags, length = struct.unpack("<QQQQ", os.pread(self.file.fileno(), 32, at))
            mark = os.pread(self.file.fileno(), length, at + 32).decode() if flags & MARK else None
            self.entries.append(Entry(sector, sectors, flags, at + SECTOR, mark))
            at += SECTOR + (0 if flags & DISCARD else sectors * SECTOR)
        self.flushes = [number for number, entry in enumerate(self.entries) if entry.flags & FLUSH]
        self.bytes = at

    def durable(self, position):
        """How many entries are on the disk for certain when the power goes before entry `position`: all up to the last flush."""
        before = bisect.bisect_left(self.flushes, position)
        return self.flushes[before - 1] + 1 if before else 0

    def flush_after(self, position):
        """The first flush at or behind `position`, or the end of the log."""
        after = bisect.bisect_left(self.flushes, position)
        return self.flushes[after] if after < len(self.flushes) else len(self.entries)

    def pieces(self, entry):
        """(byte of the disk, data; None for zeros), in pieces that a cut may tear apart."""
        for at in range(0, entry.sectors * SECTOR, PIECE):
            length = min(PIECE, entry.sectors * SECTOR - at)
            if entry.flags & DISCARD:
                yield entry.sector * SECTOR + at, bytes(length)
            else:
                yield entry.sector * SECTOR + at, os.pread(self.file.fileno(), length, entry.at + at)


class Cut:
    """The power goes before `position`, and of what was not flushed only `kept` of it survives: "order", all that completed before, in order of
    completion; "some", a random part; "none"; "torn", a random part, the last FUA write itself being under way."""

    def __init__(self, log, position, kept, seed):
        self.log, self.kept, self.seed = log, kept, seed
        # Of ordinary writes it is known only that they completed before their flush: they may be there if all the FUA writes of their group are.
        self.position = position if kept in ("order", "torn") else log.flush_after(position)
        self.durable = log.durable(self.position)

    def marks(self):
        """What had been said before the power went."""
        return [entry.mark for entry in self.log.entries[:self.position] if entry.mark]

    def pieces(self):
        """What survives behind the durable part; the same at each call."""
        rng = random.Random(self.seed)
        share = rng.choice((0.1, 0.5, 0.9))
        for entry in self.log.entries[self.durable:self.position]:
            for piece in self.log.pieces(entry):
                if entry.flags & FUA or self.kept in ("order", "torn") or (self.kept == "some" and rng.random() < share):
                    yield piece
        if self.kept == "torn" and self.position < len(self.log.entries):
            for piece in self.log.pieces(self.log.entries[self.position]):
                if rng.random() < 0.5:
                    yield piece

    def __str__(self):
        return f"cut before entry {self.position} of {len(self.log.entries)}, {self.position - self.durable} behind the flush, kept {self.kept}"


class Recorder:
    """A device that logs what is written to it. `disk` and `log` are files."""

    name = "blockbt-test-recorded"

    def __init__(self, disk, log):
        self.log = log
        self.loops = [dm.loop(disk, False), dm.loop(log, False)]
        self.device = dm.create(self.name, f"0 {dm.sectors(self.loops[0])} log-writes {self.loops[0]} {self.loops[1]}\n", False)

    def mark(self, text):
        dm.message(self.name, f"mark {text}")

    def stop(self):
        dm.remove(self.name)
        for device in self.loops:
            dm.run("losetup", "--detach", device)
        return Log(self.log)


class Replay:
    """Makes the disk of one cut after the other, the later ones later. `base` is the disk as it was when recording began; it is written to."""

    name = "blockbt-test-cut"

    def __init__(self, log, base, scratch):
        self.log, self.applied = log, 0
        self.base = open(base, "r+b", buffering=0)
        self.origin = dm.loop(base, False)
        with open(scratch, "wb") as file:
            file.truncate(os.path.getsize(base))
        self.cow = dm.loop(scratch, False)

    def make(self, cut):
        """The disk of `cut`, as a device that may be written to, until `drop`."""
        assert cut.durable >= self.applied, "cuts must come in order"
        for entry in self.log.entries[self.applied:cut.durable]:
            for at, data in self.log.pieces(entry):
                os.pwrite(self.base.fileno(), data, at)
        self.applied = cut.durable
        device = dm.create(self.name, f"0 {dm.sectors(self.origin)} snapshot {self.origin} {self.cow} N 8\n", False)
        with open(device, "r+b", buffering=0) as disk:
            for at, data in cut.pieces():
                os.pwrite(disk.fileno(), data, at)
            os.fsync(disk.fileno())
        return device

    def drop(self):
        dm.remove(self.name)
