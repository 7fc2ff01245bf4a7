"""Random work on some files against a model in memory, as the fsx program does it: every road in and out of a file, each read compared."""

import ctypes
import mmap
import os

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
LIBC = ctypes.CDLL(None, use_errno=True)
PAGE = 4096


class Differs(Exception):
    pass


class Fsx:
    """Files `0`, `1` ... of a directory that may be unmounted between two `run`s; the model stays."""

    def __init__(self, rng, files=3, largest=1 << 20):
        self.rng, self.largest, self.files = rng, largest, [bytearray() for _ in range(files)]
        self.done = 0
        self.direct = mmap.mmap(-1, 1 << 16)

    def span(self, limit):
        """A random range below `limit`, some of them aligned."""
        start = self.rng.randrange(limit)
        length = self.rng.randint(1, min(1 << self.rng.randrange(17), limit - start))
        if self.rng.random() < 0.3:
            start, length = start // PAGE * PAGE, max(PAGE, length // PAGE * PAGE)
        return start, min(length, limit - start)

    def put(self, model, start, data):
        if len(model) < start:
            model.extend(bytes(start - len(model)))
        model[start:start + len(data)] = data

    def compare(self, number, start, found, how):
        wanted = self.files[number][start:start + len(found)]
        if found != wanted:
            at = next(at for at in range(len(found)) if at >= len(wanted) or found[at] != wanted[at])
            bad = sum(a != b for a, b in zip(found, wanted))
            raise Differs(f"operation {self.done}: file {number} read by {how} from {start}, {len(found)} bytes: {bad} differ, the first at {start + at}")

    def read(self, number, fd, model):
        start, length = self.span(len(model))
        found = os.pread(fd, length, start)
        if len(found) != length:
            raise Differs(f"operation {self.done}: file {number}: {len(found)} of {length} bytes at {start}")
        self.compare(number, start, found, "pread")

    def write(self, number, fd, model):
        start, length = self.span(self.largest)
        data = self.rng.randbytes(length)
        os.pwrite(fd, data, start)
        self.put(model, start, data)

    def read_mapped(self, number, fd, model):
        with mmap.mmap(fd, len(model), prot=mmap.PROT_READ) as memory:
            start, length = self.span(len(model))
            self.compare(number, start, memory[start:start + length], "mmap")

    def write_mapped(self, number, fd, model):
        with mmap.mmap(fd, len(model)) as memory:
            start, length = self.span(len(model))
            memory[start:start + length] = model[start:start + length] = self.rng.randbytes(length)
            if self.rng.random() < 0.3:
                memory.flush()

    def with_direct(self, number, act):
        fd = os.open(f"{self.top}/{number}", os.O_RDWR | os.O_DIRECT)
        try:
            act(fd)
        finally:
            os.close(fd)

    def read_direct(self, number, fd, model):
        start = self.rng.randrange(len(model)) // PAGE * PAGE

        def act(direct):
            count = os.preadv(direct, [self.direct], start)
            self.compare(number, start, self.direct[:count], "direct I/O")
        self.with_direct(number, act)

    def write_direct(self, number, fd, model):
        start = self.rng.randrange(self.largest) // PAGE * PAGE
        length = self.rng.randint(1, 16) * PAGE
        length = min(length, self.largest - start)
        data = self.rng.randbytes(length)

        def act(direct):
            self.direct[:length] = data
            os.pwrite(direct, memoryview(self.direct)[:length], start)
        self.with_direct(number, act)
        self.put(model, start, data)

    def truncate(self, number, fd, model):
        size = self.rng.choice((0, len(model) // 2, self.rng.randrange(self.largest), self.rng.randrange(self.largest)))
        os.ftruncate(fd, size)
        del model[size:]
        model.extend(bytes(size - len(model)))

    def fallocate(self, fd, how, start, length):
        if LIBC.fallocate(fd, how, ctypes.c_long(start), ctypes.c_long(length)):
            raise OSError(ctypes.get_errno(), f"fallocate {how} {start} {length}")

    def punch(self, number, fd, model):
        start, length = self.span(len(model))
        self.fallocate(fd, self.rng.choice((PUNCH_HOLE, ZERO_RANGE)) | KEEP_SIZE, start, length)
        model[start:start + length] = bytes(length)

    def allocate(self, number, fd, model):
        start, length = self.span(self.largest)
        self.fallocate(fd, 0, start, length)
        model.extend(bytes(max(0, start + length - len(model))))

    def copy(self, number, fd, model):
        start, length = self.span(len(model))
        other = self.rng.randrange(len(self.files))
        if other == number:
            return
        target = self.rng.randrange(self.largest - length + 1)
        with open(f"{self.top}/{other}", "r+b", buffering=0) as file:
            copied = 0
            while copied < length:
                copied += os.copy_file_range(fd, file.fileno(), length - copied, start + copied, target + copied)
        self.put(self.files[other], target, bytes(model[start:start + length]))

    def sync(self, number, fd, model):
        self.rng.choice((os.fsync, os.fdatasync))(fd)

    def forget(self, number, fd, model):
        """What is read next comes from the device."""
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def run(self, top, operations):
        self.top = top
        fds = [os.open(f"{top}/{number}", os.O_RDWR | os.O_CREAT) for number in range(len(self.files))]
        anytime = [self.write] * 4 + [self.write_direct, self.truncate, self.allocate, self.sync, self.forget]
        filled = anytime + [self.read] * 4 + [self.read_mapped] * 2 + [self.write_mapped] * 2 + [self.read_direct] * 2 + [self.punch] * 2 + [self.copy]
        for _ in range(operations):
            number = self.rng.randrange(len(fds))
            self.done += 1
            self.rng.choice(filled if self.files[number] else anytime)(number, fds[number], self.files[number])
        for fd in fds:
            os.close(fd)

    def whole(self, top):
        """Compares all of every file."""
        for number, model in enumerate(self.files):
            with open(f"{top}/{number}", "rb") as file:
                found = file.read()
            if len(found) != len(model):
                raise Differs(f"operation {self.done}: file {number} has {len(found)} bytes, want {len(model)}")
            self.compare(number, 0, found, "whole")
