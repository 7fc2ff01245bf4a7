"""What fails below an image, and what dies above it."""

import os

import harness
from harness import test
from vm import boot


def fault(window, script, part, memory="1G", patience=900, **parameters):
    seed = harness.seed()
    try:
        with boot(window, script, memory=memory, part=part, seed=seed, **parameters) as vm:
            vm.finish(patience)
    finally:
        print(f"       fault-{part}: SEED={seed}", flush=True)
    with open(os.path.join(window, "said")) as file:
        return f"seed {seed}, {file.read()}"


@test("fault-flakey", seconds=40)
def flakey(window):
    """a head whose disk refuses writes, loses them or goes away keeps what was synced before, and its siblings notice nothing"""
    return fault(window, "fault_disk.py", "flakey")


@test("fault-dust", seconds=30)
def dust(window):
    """a head with blocks that cannot be read gives errors and never wrong bytes, and all of it when they can be read again"""
    return fault(window, "fault_disk.py", "dust")


@test("fault-origin", seconds=30)
def origin(window):
    """an image whose origin has holes loses its snapshot and none of its data: check --repair brings it back"""
    return fault(window, "fault_repair.py", "origin")


@test("fault-shared", seconds=30)
def shared(window):
    """holes in the device that all clones of a chain share are read errors for as long as they last, and lose nothing"""
    return fault(window, "fault_disk.py", "shared")


@test("fault-space", seconds=30)
def space(window):
    """the host's disk fills up: a reserved head notices nothing, a sparse one is dropped and repaired, a bounded one refuses writes and is usable again"""
    return fault(window, "fault_repair.py", "space")


@test("fault-loops", seconds=20)
def loops(window):
    """loops that somebody detaches by hand below mounted images go with their last user, and no sooner"""
    return fault(window, "fault_disk.py", "loops")


@test("fault-crowd", seconds=60)
def crowd(window):
    """clones of one parent, all at once, are made, mounted, unmounted and removed while they are listed, and nothing is left"""
    return fault(window, "fault_crowd.py", "crowd", memory="3G", many=harness.number("CROWD", 60))


@test("fault-killed", seconds=45)
def killed(window):
    """verbs that are killed at any time leave nothing that the next verb does not take away, and a mounted image works on"""
    return fault(window, "fault_crowd.py", "killed", kills=harness.number("KILLS", 40))


@test("fault-daemon", seconds=45)
def daemon(window):
    """a daemon that is killed at any time, with verbs under way, costs a mounted image nothing"""
    return fault(window, "fault_crowd.py", "daemon", kills=harness.number("KILLS", 20) // 2)
