"""Container-like layers, the same for every peer: what is in them, and how one is put on top of those before it."""

import os
import random
import shutil

KIB, MIB = 1 << 10, 1 << 20
DATABASE = "var/db"
BIG = "var/big"


def write(path, data):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def size(dice):
    """Of a file: half are below 12 KiB, few have megabytes."""
    return max(1, min(8 * MIB, int(dice.lognormvariate(9.4, 1.6))))


def name(number):
    return f"usr/lib/d{number % 60:02}/f{number:04}"


def make(top, count, files=4000):
    """`top`/000 ... : a base with a file of 100 MiB, then layers, each of which replaces, adds and changes files, as a package upgrade does."""
    dice = random.Random(4)
    database = bytearray(dice.randbytes(2 * MIB))
    base = os.path.join(top, "000")
    write(os.path.join(base, BIG), dice.randbytes(100 * MIB))
    write(os.path.join(base, DATABASE), database)
    for number in range(files):
        write(os.path.join(base, name(number)), dice.randbytes(size(dice)))
    for number in range(60):
        write(os.path.join(base, f"usr/share/s{number:02}"), dice.randbytes(dice.randrange(MIB, 5 * MIB)))
    for layer in range(1, count):
        dir = os.path.join(top, f"{layer:03}")
        for number in dice.sample(range(files), 20):
            write(os.path.join(dir, name(number)), dice.randbytes(size(dice)))
        for number in range(12):
            write(os.path.join(dir, f"opt/p{layer:03}/f{number:02}"), dice.randbytes(size(dice)))
        for page in dice.sample(range(len(database) // 4096), 20):
            database[page * 4096:page * 4096 + 4096] = dice.randbytes(4096)
        write(os.path.join(dir, DATABASE), database)


def apply(layer, target):
    """Files are replaced as packages do it; the database is written where it changed."""
    for dir, _, names in os.walk(layer):
        to = os.path.join(target, os.path.relpath(dir, layer))
        os.makedirs(to, exist_ok=True)
        for name in names:
            source, goal = os.path.join(dir, name), os.path.join(to, name)
            if goal.endswith(DATABASE) and os.path.exists(goal):
                change(source, goal)
                continue
            shutil.copyfile(source, f"{goal}.new")
            os.rename(f"{goal}.new", goal)


def change(source, goal):
    with open(source, "rb") as new, open(goal, "r+b") as old:
        while data := new.read(4096):
            at = old.tell()
            if old.read(4096) != data:
                os.pwrite(old.fileno(), data, at)
