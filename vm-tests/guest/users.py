"""Who has a file system or a device in use: for the log of a test that found it busy. Changes nothing."""

import glob
import os
import subprocess


def tell(path):
    """Prints all that may hold `path`, a mount point or a device; never fails."""
    try:
        number = os.stat(path).st_rdev or os.stat(path).st_dev
        print(f"-- {path} ({os.major(number)}:{os.minor(number)}) is busy:", flush=True)
        for line in (*open_files(number), *mounts(number), *devices()):
            print(f"   {line}")
    except OSError as error:
        print(f"   {path}: {error}")
    for words in (["losetup", "--list", "--raw"], ["dmsetup", "info", "-c"], ["dmsetup", "table"], ["ps", "-eo", "pid,ppid,stat,wchan:24,args"]):
        done = subprocess.run(words, text=True, capture_output=True)
        print(f"   {' '.join(words)}:\n{done.stdout}{done.stderr}", flush=True)


def open_files(number):
    """Descriptors, directories, programs and mappings of every process that are on the device, or are it."""
    for process in glob.glob("/proc/[0-9]*"):
        command = read(f"{process}/cmdline").replace("\0", " ") or read(f"{process}/comm").strip()
        for link in (*glob.glob(f"{process}/fd/*"), *glob.glob(f"{process}/map_files/*"), f"{process}/cwd", f"{process}/root", f"{process}/exe"):
            try:
                found = os.stat(link)
            except OSError:
                continue
            if number in (found.st_dev, found.st_rdev):
                yield f"{link.removeprefix('/proc/')} of {command}: {os.readlink(link)}"


def mounts(number):
    """In every mount namespace."""
    seen = set()
    for process in glob.glob("/proc/[0-9]*"):
        try:
            space = os.readlink(f"{process}/ns/mnt")
        except OSError:
            continue
        if space in seen:
            continue
        seen.add(space)
        for line in read(f"{process}/mountinfo").splitlines():
            if line.split()[2] == f"{os.major(number)}:{os.minor(number)}":
                yield f"{space}: {line}"


def devices():
    for link in glob.glob("/sys/block/*/holders/*"):
        yield f"{link.split('/')[3]} is held by {link.split('/')[5]}"


def read(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""
