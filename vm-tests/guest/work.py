"""Random work on a store, told of by marks as `model.py` describes: synced writes into two attached images by threads of their own, while
verbs run on others. Ends when it is told to, or when the power goes."""

import itertools
import json
import mmap
import os
import random
import threading
import time

import guest
import model
from model import BLOCK

FILES, BLOCKS = 12, 24
MIB = 1 << 20
RAW = 16 * MIB
# What disks may be resized to, the first size before that; xfs is none below 300 MiB, and does not shrink.
SIZES = {"ext4": (64 * MIB, 48 * MIB, 96 * MIB), "xfs": (304 * MIB, 320 * MIB, 336 * MIB)}
# Mode stack takes eight deltas.
DEEPEST = 6
# Bounds of a head; none of them is reached.
HEADS = [[], ["--limit", "100M"], ["--limit", "80M", "--reserve"]]


# What happens to the other images, in random order before it happens again.
STORIES = ["grow", "clone", "flatten", "resize", "rename", "grow", "rm", "flatten", "resize", "gc"]


class Writer:
    """Synced writes into one image, by every road that user space has."""

    def __init__(self, work, image, rng):
        self.work, self.image, self.rng = work, image, rng

    def fill(self, fd, runs, file):
        uid = self.work.model.images[self.image].uid
        for first, count, version in runs:
            os.pwrite(fd, b"".join(model.block(uid, file, number, version) for number in range(first, first + count)), first * BLOCK)

    def runs(self, size):
        """Up to four ranges below `size` blocks that do not overlap, each with a version of its own."""
        cuts = sorted(self.rng.sample(range(size + 1), min(size + 1, 2 * self.rng.randint(1, 4)) // 2 * 2))
        return [(first, end - first, self.work.next_version()) for first, end in zip(cuts[::2], cuts[1::2])]

    def say(self, file, runs):
        self.work.tell(["w", self.image, file, *map(list, runs)])


class DiskWriter(Writer):
    """Into an image without a file system; all of it is file 0."""

    def __init__(self, work, image, rng, device):
        super().__init__(work, image, rng)
        self.fd = os.open(device, os.O_RDWR)
        self.direct = os.open(device, os.O_RDWR | os.O_DIRECT | os.O_DSYNC)
        self.buffer = mmap.mmap(-1, BLOCKS * BLOCK)

    def step(self):
        place = self.rng.randrange(RAW // BLOCK - BLOCKS)
        runs = [(first + place, count, version) for first, count, version in self.runs(BLOCKS)]
        uid = self.work.model.images[self.image].uid
        if self.rng.random() < 0.3:
            for first, count, version in runs:
                self.buffer[:count * BLOCK] = b"".join(model.block(uid, 0, number, version) for number in range(first, first + count))
                os.pwrite(self.direct, memoryview(self.buffer)[:count * BLOCK], first * BLOCK)
        else:
            self.fill(self.fd, runs, 0)
            self.rng.choice((os.fsync, os.fdatasync))(self.fd)
        self.say(0, runs)

    def close(self):
        os.close(self.fd)
        os.close(self.direct)


class TreeWriter(Writer):
    """Into files of a mounted image."""

    def __init__(self, work, image, rng, directory):
        super().__init__(work, image, rng)
        self.top, self.directory = directory, os.open(directory, os.O_RDONLY)

    def step(self):
        file = self.rng.randrange(FILES)
        blocks = len(self.work.model.images[self.image].synced.get(file, ()))
        self.rng.choice((self.whole, self.ranges, self.ranges, self.mapped, self.replace, self.delete) if blocks else (self.whole,))(file, blocks)

    def whole(self, file, blocks):
        """All of it, and perhaps more."""
        runs = [(0, max(blocks, self.rng.randint(1, BLOCKS)), self.work.next_version())]
        fd = os.open(f"{self.top}/{file}", os.O_RDWR | os.O_CREAT)
        self.fill(fd, runs, file)
        os.fsync(fd)
        os.close(fd)
        if not blocks:
            os.fsync(self.directory)
        self.say(file, runs)

    def ranges(self, file, blocks):
        runs = self.runs(blocks)
        fd = os.open(f"{self.top}/{file}", os.O_RDWR | self.rng.choice((0, os.O_DSYNC)))
        self.fill(fd, runs, file)
        self.rng.choice((os.fsync, os.fdatasync))(fd)
        os.close(fd)
        self.say(file, runs)

    def mapped(self, file, blocks):
        runs = self.runs(blocks)
        uid = self.work.model.images[self.image].uid
        fd = os.open(f"{self.top}/{file}", os.O_RDWR)
        with mmap.mmap(fd, blocks * BLOCK) as memory:
            for first, count, version in runs:
                memory[first * BLOCK:(first + count) * BLOCK] = b"".join(model.block(uid, file, number, version) for number in range(first, first + count))
            memory.flush()
        os.close(fd)
        self.say(file, runs)

    def replace(self, file, blocks):
        """By another of at least its size, as editors do."""
        runs = [(0, max(blocks, self.rng.randint(1, BLOCKS)), self.work.next_version())]
        fd = os.open(f"{self.top}/{file}.new", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        self.fill(fd, runs, file)
        os.fsync(fd)
        os.close(fd)
        os.rename(f"{self.top}/{file}.new", f"{self.top}/{file}")
        os.fsync(self.directory)
        self.say(file, runs)

    def delete(self, file, _):
        self.work.tell(["d", self.image, file])
        os.unlink(f"{self.top}/{file}")
        os.fsync(self.directory)

    def close(self):
        os.close(self.directory)


class Work:
    def __init__(self, store, mode, mark, rng, known=None, fs="ext4"):
        """`mark` is called with each mark's text; `known` is what is there already."""
        self.store, self.mark, self.rng, self.fs = store, mark, rng, fs
        self.mode = ["--mode", mode] if mode else []
        self.model = known or model.Model()
        self.lock, self.names = threading.Lock(), itertools.count(self.model.uids + 1)
        self.versions = itertools.count(self.model.version + 1_000_000)
        self.stop, self.failed = threading.Event(), []
        self.wanted, self.bag = guest.PARAMETERS.get("only") or STORIES, []
        self.directory = "/mnt/work"
        os.makedirs(self.directory, exist_ok=True)

    def next_version(self):
        return next(self.versions)

    def tell(self, event):
        text = json.dumps(event, separators=(",", ":"))
        with self.lock:
            self.model.tell(event)
            self.mark(text)

    def verb(self, verb, *words, said=()):
        """Runs a verb between two marks; what the model is told comes from `said`."""
        self.tell(["b", verb, words[0] if words else "", *said])
        reply = guest.ctl(self.store, verb, *words)
        self.tell(["e", verb, words[0] if words else "", *said])
        return reply

    def create(self, name, fs, size):
        self.verb("create", name, "--fs", fs, "--size", str(size), said=(next(self.names), fs, size))

    def write(self, name, steps):
        """Mounts, writes, unmounts."""
        self.verb("mount", name, self.directory, *self.mode)
        writer = TreeWriter(self, name, self.rng, self.directory)
        for _ in range(steps):
            writer.step()
        writer.close()
        self.verb("umount", name)

    def clone(self, name):
        uid = next(self.names)
        target = f"image-{uid}"
        self.verb("clone", name, target, *self.rng.choice(HEADS), said=(target, uid))
        return target

    def commit(self, name):
        (reply,) = self.verb("commit", name, *self.rng.choice(([], [], ["--chunk-size", self.rng.choice(("16K", "64K"))])))
        if reply["deltas"] > DEEPEST:
            self.verb("flatten", name)

    def prepare(self):
        """What is there before anything is cut."""
        self.create("base", self.fs, SIZES[self.fs][0])
        self.write("base", 10)
        self.verb("commit", "base")
        self.create("raw", "none", RAW)
        uid = next(self.names)
        self.verb("clone", "base", "web", *self.rng.choice(HEADS), said=("web", uid))

    def others(self):
        return sorted(name for name in self.model.images if name.startswith("image-"))

    def story(self):
        """One thing that somebody does with the other images."""
        others = self.others()
        if len(others) < 2:
            name = self.clone(self.rng.choice(["base", *others]))
            self.write(name, 4)
            self.commit(name)
            return
        if not self.bag:
            self.bag = self.rng.sample(self.wanted, len(self.wanted))
        name, story = self.rng.choice(others), self.bag.pop()
        if story == "clone" and len(others) < 5:
            self.clone(name)
        elif story == "rm" and len(others) > 3:
            self.verb("rm", name)
        elif story == "rename":
            target = f"image-{next(self.names)}"
            self.verb("rename", name, target, said=(target,))
        elif story == "gc":
            self.verb("gc")
        elif story == "flatten":
            self.write(name, 2)
            self.commit(name)
            self.verb("flatten", name, *self.rng.choice(([], ["--keep", "1"])))
        elif story == "resize":
            now = self.model.images[name].size
            sizes = [size for size in SIZES[self.fs] if size > now or (size < now and self.fs != "xfs")]
            if sizes:
                size = self.rng.choice(sizes)
                self.verb("resize", name, str(size), said=(size,))
            self.write(name, 3)
            self.commit(name)
        else:
            self.write(name, 4)
            self.commit(name)

    def run(self, stories):
        """Attaches the two images and keeps writing into them while so many stories happen to others."""
        self.verb("mount", "web", "/mnt/web", *self.mode)
        (attached,) = self.verb("attach", "raw", *self.mode)
        writers = [TreeWriter(self, "web", self.rng_of(), "/mnt/web"), DiskWriter(self, "raw", self.rng_of(), attached["device"])]
        threads = [threading.Thread(target=self.keep_writing, args=(writer,), daemon=True) for writer in writers]
        for thread in threads:
            thread.start()
        for _ in range(stories):
            if not self.failed:
                self.story()
        self.stop.set()
        for thread in threads:
            thread.join()
        if self.failed:
            raise self.failed[0]
        for writer in writers:
            writer.close()
        self.verb("umount", "web")
        self.verb("detach", "raw")

    def rng_of(self):
        return random.Random(self.rng.getrandbits(32))

    def keep_writing(self, writer):
        try:
            while not self.stop.is_set():
                writer.step()
                time.sleep(writer.rng.uniform(0, 0.1))
        except BaseException as error:
            self.failed.append(error)
