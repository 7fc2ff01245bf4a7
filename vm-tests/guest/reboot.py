"""Guest: one of three boots of one machine. The first two end by a power cut in the middle of work, the last one comes to its end.

The disk is an ext4 in a file of the window, below a loop device: what is not synced is lost. It holds two stores, and what of /run/blockbt
survives, so that the second boot finds the state files of the first; before the third, /run is emptied as on most machines.
`acknowledged` in the window: a line for each file that was written to `web` and synced."""

import hashlib
import os
import signal
import subprocess
import tarfile
import time

import guest
from dm import run

WEB, OTHER = "/mnt/disk/web", "/mnt/disk/other"
FILE = 50_000


def boot_id():
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def content(number):
    return hashlib.sha256(str(number).encode()).digest() * (FILE // 32)


def list_of(path):
    return sorted(os.listdir(path)) if os.path.isdir(path) else []


def fingerprint(*tops):
    """Every file below `tops`, by what it holds and when it was changed."""
    found = {}
    for top in tops:
        for directory, _, names in os.walk(top):
            found[directory] = os.lstat(directory).st_mtime_ns
            for name in names:
                path = os.path.join(directory, name)
                if os.path.islink(path):
                    held = os.readlink(path)
                else:
                    with open(path, "rb") as file:
                        held = hashlib.sha256(file.read()).hexdigest()
                found[path] = (os.lstat(path).st_mtime_ns, held)
    return found


def run_dir(store):
    with open(f"{store}/VERSION") as file:
        (identity,) = [line.split()[1] for line in file if line.startswith("id ")]
    return f"/run/blockbt/{identity}"


def acknowledged():
    with open("/run/window/acknowledged") as file:
        return [int(line) for line in file]


def check_files(directory):
    numbers = acknowledged()
    for number in numbers:
        with open(f"{directory}/{number}", "rb") as file:
            assert file.read() == content(number), f"file {number} was synced and holds something else"
    return numbers


def write_on():
    """Files that are synced and then acknowledged, until the power goes. `ready` says that there are enough."""
    first = max(acknowledged(), default=-1) + 1
    directory = os.open("/mnt/web", os.O_RDONLY)
    for number in range(first, first + 2000):
        with open(f"/mnt/web/{number}", "wb") as file:
            file.write(content(number))
            file.flush()
            os.fsync(file.fileno())
        os.fsync(directory)
        with open("/run/window/acknowledged", "a") as file:
            file.write(f"{number}\n")
            file.flush()
            os.fsync(file.fileno())
        if number == first + 30:
            open("/run/window/ready", "w").close()
    # There is no more room: until the power goes.
    signal.pause()


def in_background(store, *words):
    """Starts a verb and returns when it is in the journal."""
    before = list_of(f"{store}/journal")
    log = open("/mnt/background.log", "w")
    process = subprocess.Popen(guest.command(store, *words), stdout=log, stderr=log)
    end = time.monotonic() + 60
    while list_of(f"{store}/journal") == before:
        assert time.monotonic() < end, f"{words}: no entry in the journal"
        assert process.poll() is None, f"{words} ended before it was cut: {open('/mnt/background.log').read()}"
        time.sleep(0.005)


def mount_other():
    guest.ctl(OTHER, "mount", "other", "/mnt/other")
    with open("/mnt/other/file", "rb") as file:
        assert file.read() == content("other")


def first():
    os.mkdir("/mnt/tree")
    for number in range(30):
        with open(f"/mnt/tree/{number}", "wb") as file:
            file.write(os.urandom(20_000))
    guest.ctl(OTHER, "create", "other", "--size", "64M")
    guest.ctl(OTHER, "mount", "other", "/mnt/other")
    with open("/mnt/other/file", "wb") as file:
        file.write(content("other"))
        file.flush()
        os.fsync(file.fileno())
    os.sync()
    guest.ctl(WEB, "import", "base", "/mnt/tree", "--size", "256M")
    guest.ctl(WEB, "clone", "base", "web")
    guest.ctl(WEB, "mount", "web", "/mnt/web")
    # An archive that never ends: its import is under way when the power goes.
    os.mkfifo("/mnt/half.tar")
    pipe = os.open("/mnt/half.tar", os.O_RDWR)
    entry = tarfile.TarInfo("file")
    entry.size = 1 << 20
    os.write(pipe, entry.tobuf() + os.urandom(32 << 10))
    in_background(WEB, "import", "half", "/mnt/half.tar", "--size", "64M")
    write_on()


def second():
    left = {name: list_of(f"{WEB}/{name}") for name in ("journal", "tmp")}
    stale = [name for name in list_of(run_dir(WEB)) if os.path.isdir(f"{run_dir(WEB)}/{name}")]
    print(f"left by the power cut: {left}, stale in /run: {stale}", flush=True)
    assert left["journal"] and left["tmp"] and stale, "the power cut left nothing to find"
    tidy_start("web", "base")
    guest.ctl(WEB, "clone", "base", "big")
    guest.ctl(WEB, "mount", "big", "/mnt/big")
    with open("/mnt/big/file", "wb") as file:
        file.write(os.urandom(60_000_000))
    guest.ctl(WEB, "umount", "big")
    guest.ctl(WEB, "mount", "web", "/mnt/web")
    in_background(WEB, "commit", "big")
    write_on()


def third():
    tidy_start("web", "base", "big")
    guest.ctl(WEB, "mount", "big", "/mnt/big")
    assert os.path.getsize("/mnt/big/file") == 60_000_000
    guest.ctl(WEB, "umount", "big")
    guest.ctl(WEB, "import", "half", "/usr/share/doc/bash", "--size", "64M")
    for image in ("web", "big"):
        guest.ctl(WEB, "commit", image)
    (report,) = guest.ctl(WEB, "check", "--all")
    assert report["findings"] == [] and report["images"] == 4, report
    (garbage,) = guest.ctl(WEB, "gc", "--dry-run")
    assert garbage["removed"] == [], f"deltas that no image has: {garbage}"


def tidy_start(*images):
    """The first verbs after a power cut tidy up their own store, and nothing else."""
    before = fingerprint(OTHER, run_dir(OTHER))
    found = guest.ctl(WEB, "list")
    assert sorted(image["name"] for image in found) == sorted(images), found
    assert all(image["device"] is None and image["dir"] is None for image in found), found
    (report,) = guest.ctl(WEB, "check", "--all")
    assert report["findings"] == [], report
    for name in ("journal", "tmp"):
        assert list_of(f"{WEB}/{name}") == [], f"{name}: {list_of(f'{WEB}/{name}')}"
    assert [name for name in list_of(run_dir(WEB)) if not name.endswith(".lock") and name != f"mapped-{boot_id()}"] == [], list_of(run_dir(WEB))
    assert fingerprint(OTHER, run_dir(OTHER)) == before, "another store was touched"
    mount_other()
    guest.ctl(WEB, "mount", "web", "/mnt/web")
    numbers = check_files("/mnt/web")
    guest.ctl(WEB, "umount", "web")
    (attached,) = guest.ctl(WEB, "attach", "web")
    run("e2fsck", "-fn", attached["device"])
    guest.ctl(WEB, "detach", "web")
    with open("/mnt/other/file", "rb") as file:
        assert file.read() == content("other")
    print(f"{len(numbers)} synced files are there", flush=True)


boot = guest.PARAMETERS["boot"]
for directory in ("disk", "web", "other", "big"):
    os.makedirs(f"/mnt/{directory}")
run("mount", "-o", "loop", "/run/window/disk.img", "/mnt/disk")
os.makedirs("/mnt/disk/run", exist_ok=True)
os.makedirs("/run/blockbt")
if boot != "third":
    run("mount", "--bind", "/mnt/disk/run", "/run/blockbt")
{"first": first, "second": second, "third": third}[boot]()
