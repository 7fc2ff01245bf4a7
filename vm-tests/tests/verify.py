"""Every byte that programs write is read back, whatever road they take and whatever shows the image."""

import os
import time

from harness import number, seed, test
from vm import Failure, boot

MODES = ("user", "flat", "stack")


def verify(window, fs):
    first, minutes, done, boots = seed(), number("MINUTES", 0), 0, 0
    end = time.monotonic() + 60 * minutes
    while not boots or time.monotonic() < end:
        try:
            with boot(window, "verify.py", memory="2G", seed=first + boots, modes=MODES, rounds=4, operations=600, file_systems=[fs]) as vm:
                vm.finish()
        except Failure as failure:
            raise Failure(f"seed {first + boots}: {failure}", window) from None
        with open(os.path.join(window, "done")) as file:
            done += int(file.read())
        boots += 1
    return f"seed {first}, {done} operations, modes {', '.join(MODES)}"


@test("verify-ext4", seconds=40)
def verify_ext4(window):
    """on ext4, fio and a random program read what they wrote: at once, after a remount, after a commit, in another mode"""
    return verify(window, "ext4")


@test("verify-xfs", seconds=40)
def verify_xfs(window):
    """on xfs, fio and a random program read what they wrote: at once, after a remount, after a commit, in another mode"""
    return verify(window, "xfs")
