"""Disks that grow and shrink, in every mode."""

import os

from harness import number, seed, test
from vm import Failure, boot

MODES = ("flat", "stack", "user")


@test("resize", seconds=40)
def resize(window):
    """what was cut off a disk never comes back, whatever mode wrote it, cut it and grew it; file systems fit and are whole, siblings notice nothing"""
    first = seed()
    try:
        with boot(window, "resize.py", memory="1500M", seed=first, modes=MODES, rounds=number("ROUNDS", 4)) as vm:
            vm.finish()
    except Failure as failure:
        raise Failure(f"seed {first}: {failure}", window) from None
    with open(os.path.join(window, "done")) as file:
        return f"seed {first}, {file.read()} resizes, modes {', '.join(MODES)}"
