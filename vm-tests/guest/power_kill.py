"""Guest: one of many boots of one machine, each but the last ended by a power cut. Checks what the cut before left, then works on until the next.

The store is on an ext4 in a file of the window, below a loop device: what is not synced is lost. Parameters: seed, mode, shown (modes of the check), last.
`known` in the window is the model when this boot began to work; `marks` what was said since, each synced to the host."""

import os
import pickle
import random

import dm
import guest
from survivors import Survivors
from work import Work

STORE = "/mnt/disk/store"
KNOWN, MARKS = "/run/window/known", "/run/window/marks"

for directory in ("disk", "web"):
    os.makedirs(f"/mnt/{directory}")
dm.run("mount", "-o", "loop", "/run/window/disk.img", "/mnt/disk")
rng, mode = random.Random(guest.PARAMETERS["seed"]), guest.PARAMETERS["mode"]
if os.path.exists(KNOWN):
    with open(KNOWN, "rb") as file:
        known = pickle.load(file)
    with open(MARKS) as file:
        # The last one may be half a line, of which nobody was told that it is there.
        known.read(file.read().rpartition("\n")[0].splitlines())
    checked = Survivors(STORE, known, rng.choice(guest.PARAMETERS["shown"]), rng).check()
    with open("/run/window/repaired", "a") as file:
        file.write("." * checked.repaired)
    known.images, known.doing = checked.images, None
else:
    work = Work(STORE, mode, lambda mark: None, rng)
    work.prepare()
    known = work.model
if not guest.PARAMETERS["last"]:
    os.sync()
    with open(KNOWN, "wb") as file:
        pickle.dump(known, file)
    marks = os.open(MARKS, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def mark(text):
        os.write(marks, text.encode() + b"\n")
        os.fsync(marks)

    work = Work(STORE, mode, mark, rng, known)
    os.sync()
    open("/run/window/ready", "w").close()
    work.run(1000)
    raise AssertionError("the power did not go")
