"""Guest: what the fault tests share. A small host file system with a store on it, files that were synced and must be there, and devices of
ours that are laid over something that fails, by hand."""

import fcntl
import hashlib
import os
import random
import subprocess

import dm
import guest
from dm import run

HOST, STORE = "/mnt/host", "/mnt/host/store"
SEED = guest.PARAMETERS["seed"]
CHANCE = random.Random(SEED)
QUIET = ("--noudevrules", "--noudevsync")


def attempt(*words, **variables):
    """(exit code, stdout, stderr) of a verb that may fail."""
    done = subprocess.run(guest.command(STORE, *words), text=True, capture_output=True, env={**os.environ, **variables})
    print(f"{' '.join(words)}: {done.returncode} {done.stdout}{done.stderr}", flush=True)
    return done.returncode, done.stdout, done.stderr


def ctl(*words):
    return guest.ctl(STORE, *words)


def make_host(size):
    """An ext4 of `size` bytes for the store, on a loop over a file in memory."""
    os.makedirs(HOST, exist_ok=True)
    with open("/mnt/host.img", "wb") as file:
        file.truncate(size)
    run("mkfs.ext4", "-q", "-m", "0", "/mnt/host.img")
    run("mount", "-o", "loop", "/mnt/host.img", HOST)


def make_base(size="64M", mib=8):
    """`base`: a tree of random files, the same for the same seed."""
    os.makedirs("/mnt/tree", exist_ok=True)
    for number in range(mib * 4):
        with open(f"/mnt/tree/{number}", "wb") as file:
            file.write(CHANCE.randbytes(1 << 18))
    ctl("import", "base", "/mnt/tree", "--size", size)


def base_is_whole(directory):
    done = subprocess.run(["diff", "-r", "--exclude", "lost+found", "--exclude", "w-*", "/mnt/tree", directory], text=True, capture_output=True)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-1000:]


def identity():
    with open(f"{STORE}/VERSION") as file:
        return next(line.split()[1] for line in file if line.startswith("id "))


def name_of(kind, image):
    return f"blockbt-{identity()}-{kind}-{hashlib.sha256(image.encode()).hexdigest()[:32]}"


def devices():
    """Names of our device-mapper devices."""
    return sorted(name for name in os.listdir("/sys/block") if name.startswith("dm-") for name in [dm_name(name)] if name.startswith("blockbt-"))


def dm_name(block):
    try:
        with open(f"/sys/block/{block}/dm/name") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def loops():
    """{name: device} of our loops. `struct loop_info64` has the name, which losetup does not show."""
    found = {}
    for block in os.listdir("/sys/block"):
        if block.startswith("loop") and os.path.exists(f"/sys/block/{block}/loop"):
            try:
                with open(f"/dev/{block}", "rb") as file:
                    name = fcntl.ioctl(file, 0x4C05, bytes(232))[56:120].split(b"\0")[0].decode()
            except OSError:
                continue
            if name.startswith("blockbt-"):
                found[name] = f"/dev/{block}"
    return found


def nothing_left():
    assert devices() == [], devices()
    # The kernel frees a loop behind its last user's back.
    dm.until(lambda: not loops(), "our loops are free")
    nodes = [name for name in os.listdir("/dev/mapper") if name.startswith("blockbt-")]
    assert nodes == [], nodes
    mounts = [line.split()[1] for line in open("/proc/mounts") if "blockbt" in line]
    assert mounts == [], mounts
    doing = [name for name in os.listdir(f"/run/blockbt/{identity()}") if name.startswith("doing")]
    assert doing == [], doing


class Files:
    """Files in a mounted image: those that were synced are remembered."""

    def __init__(self, image):
        self.image, self.dir, self.count, self.synced = image, f"/mnt/{image}", 0, []
        os.makedirs(self.dir, exist_ok=True)

    def content(self, number):
        chance = random.Random(f"{SEED} {self.image} {number}")
        return chance.randbytes(32) * chance.randrange(1, 3000)

    def write(self, most=1):
        """Writes and syncs files until one fails: the error, or None."""
        for _ in range(most):
            number, self.count = self.count, self.count + 1
            try:
                with open(f"{self.dir}/w-{number}", "wb") as file:
                    file.write(self.content(number))
                    file.flush()
                    os.fsync(file.fileno())
                directory = os.open(self.dir, os.O_RDONLY)
                try:
                    os.fsync(directory)
                finally:
                    os.close(directory)
            except OSError as error:
                return error
            self.synced.append(number)
        return None

    def check(self, numbers=None):
        for number in self.synced if numbers is None else numbers:
            with open(f"{self.dir}/w-{number}", "rb") as file:
                assert file.read() == self.content(number), f"{self.image}: file {number} was synced and holds something else"

    def read(self):
        """How many of the synced files could be read. Those that could hold what they should: an error is one, wrong bytes are not."""
        whole = 0
        for number in self.synced:
            try:
                with open(f"{self.dir}/w-{number}", "rb") as file:
                    data = file.read()
            except OSError:
                continue
            assert data == self.content(number), f"{self.image}: file {number} holds something else, without an error"
            whole += 1
        return whole

    def mount(self, *words):
        ctl("mount", self.image, self.dir, *words)

    def umount(self):
        ctl("umount", self.image)

    def umount_lost(self):
        """Its head refused writes: it goes, and says so."""
        code, _, complaint = attempt("umount", self.image)
        assert code == 1 and "not all that was written" in complaint, f"{self.image}: {code} {complaint}"


def drop_caches():
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")


def table(name):
    return run("dmsetup", "table", name)


def swap(name, text, *how):
    """Gives a live device another table."""
    run("dmsetup", "load", name, *QUIET, stdin=text)
    run("dmsetup", "suspend", name, *how)
    run("dmsetup", "resume", name, *QUIET)


def fail(name, text):
    """As `swap`, with nothing written first: that is what is to fail."""
    swap(name, text, "--nolockfs", "--noflush")


class Beneath:
    """A device `under-<image>` between an image's snapshot and its head's loop; the image is not mounted yet."""

    def __init__(self, image):
        self.image, self.name, self.dir = name_of("image", image), f"under-{image}", f"/mnt/{image}"
        (self.loop,) = [device for name, device in loops().items() if name == name_of("head", image)]
        self.sectors = dm.sectors(self.loop)
        with open(f"/sys/block/{os.path.basename(self.loop)}/dev") as file:
            self.number = file.read().strip()
        node = dm.create(self.name, self.sound(), False)
        under = os.stat(node).st_rdev
        old = table(self.image)
        new = old.replace(f" {self.number} ", f" {os.major(under)}:{os.minor(under)} ")
        assert new != old, old
        swap(self.image, new)
        run("mount", f"/dev/mapper/{self.image}", self.dir)

    def sound(self):
        return f"0 {self.sectors} linear {self.number} 0\n"

    def flakey(self, *features):
        """It fails from now on: `error_writes`, `drop_writes`, or everything."""
        words = f"{len(features)} {' '.join(features)}" if features else ""
        fail(self.name, f"0 {self.sectors} flakey {self.number} 0 0 3600 {words}\n")

    def status(self):
        return run("dmsetup", "status", self.image)

    def gone(self):
        """Takes it and the image's device away by hand. What is left of the attach is blockbt's to find."""
        unmount(self.dir)
        dm.remove(self.image)
        dm.remove(self.name)


def unmount(directory):
    dm.until(lambda: subprocess.run(["umount", directory], capture_output=True).returncode == 0, f"{directory} is unmounted")


def consistent(image):
    """The file system, by its own checker."""
    (attached,) = ctl("attach", image)
    run("e2fsck", "-fn", attached["device"])
    ctl("detach", image)


def begin():
    make_host(512 << 20)
    make_base()
    ctl("clone", "base", "sibling")
    sibling = Files("sibling")
    sibling.mount("--mode", "flat")
    assert sibling.write(3) is None
    return sibling


def unharmed(sibling):
    """Siblings of the victim read and write on."""
    assert sibling.write(2) is None
    drop_caches()
    sibling.check()
    base_is_whole(sibling.dir)


def end(sibling):
    sibling.umount()
    nothing_left()
    consistent("sibling")
    for mode in ("user", "flat"):
        sibling.mount("--mode", mode)
        sibling.check()
        sibling.umount()
    (report,) = ctl("check", "--all")
    assert report["findings"] == [], report
    nothing_left()


def whole_again(files, numbers=None):
    """The image is mounted again, in both modes, and holds what was synced."""
    for mode in ("flat", "user"):
        files.mount("--mode", mode)
        files.check(numbers)
        base_is_whole(files.dir)
        assert files.write(1) is None
        files.umount()
    consistent(files.image)
    ctl("rm", files.image)


def holes(device, share):
    """The device's own table with this share of its MiB turned into errors: of those that hold something, and of the others."""
    pieces, chosen = {}, []
    for line in table(device).splitlines():
        start, length, kind, *words = line.split()
        for at in range(0, int(length), 2048):
            target = f"linear {words[0]} {int(words[1]) + at}" if kind == "linear" else " ".join([kind, *words])
            pieces.setdefault(kind, []).append((int(start) + at, min(2048, int(length) - at), target))
    for some in pieces.values():
        wrong = CHANCE.sample(some, round(share * len(some)))
        chosen += [(start, length, "error" if (start, length, target) in wrong else target) for start, length, target in some]
    return "".join(f"{start} {length} {target}\n" for start, length, target in sorted(chosen))


def parts(found):
    """Runs the part that the host asked for."""
    print(f"seed {SEED}", flush=True)
    return found[guest.PARAMETERS["part"]]()


def said(text):
    with open("/run/window/said", "w") as file:
        file.write(text)
