"""What is left when the power goes, and what the next boot makes of it."""

import json
import os
import random
import subprocess
import time

from harness import number, seed, test
from vm import Failure, boot

# What one mode wrote is looked at through any.
SHOWN = ("flat", "user")


@test("reboot", seconds=15)
def reboot(window):
    """mounted images outlive power cuts, and the next boot finds and takes away what they left, in its own store only"""
    disk, acknowledged = os.path.join(window, "disk.img"), os.path.join(window, "acknowledged")
    open(acknowledged, "w").close()
    with open(disk, "w") as file:
        file.truncate(2 << 30)
    subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    for which in ("first", "second", "third"):
        with boot(window, "reboot.py", boot=which) as vm:
            if which == "third":
                vm.finish()
            else:
                vm.wait_for("ready")
                time.sleep(random.uniform(0, 0.3))
                vm.kill()
                os.unlink(os.path.join(window, "ready"))
    with open(acknowledged) as file:
        return f"2 power cuts, {len(file.readlines())} synced files"


def replay(window, mode, seed, cuts, stories, broken=None, fs="ext4", shown=SHOWN):
    """One boot of the guest's `power_replay.py`; returns what it tells."""
    with boot(window, "power_replay.py", memory="2G", mode=mode, fs=fs, shown=shown, seed=seed, cuts=cuts, stories=stories, broken=broken) as vm:
        vm.finish()
    with open(os.path.join(window, "told.json")) as file:
        return json.load(file)


def power_cut(window, mode, cuts, stories=14, **more):
    first, told = seed(), []
    # A log of one boot serves some cuts well; more of them come from other work.
    boots = -(-cuts // 60)
    for nth in range(boots):
        told.append(replay(window, mode, first + nth, -(-cuts // boots), stories, **more))
        if told[-1]["wrong"]:
            raise Failure(f"seed {first + nth}: {len(told[-1]['wrong'])} of {told[-1]['cuts']} cuts: {told[-1]['wrong'][0]}", window)
    total = {what: sum(one[what] for one in told) for what in ("cuts", "repaired", "entries")}
    return f"seed {first}, {total['cuts']} cuts, {total['entries']} writes recorded, {total['repaired']} repaired"


@test("power-cut-flat", seconds=120)
def power_cut_flat(window):
    """what was synced through device-mapper is there after any power cut, every delta verifies, and verbs have happened or have not"""
    return power_cut(window, "flat", number("CUTS", 100) // 2)


@test("power-cut-user", seconds=120)
def power_cut_user(window):
    """what was synced through FUSE is there after any power cut, every delta verifies, and verbs have happened or have not"""
    return power_cut(window, "user", number("CUTS", 100) // 2)


@test("power-cut-stack", seconds=30)
def power_cut_stack(window):
    """what was synced through a stack of snapshots is there after any power cut, in every mode"""
    return power_cut(window, "stack", number("CUTS", 100) // 12, 4, shown=("stack", "stack", "flat"))


@test("power-cut-xfs", seconds=40)
def power_cut_xfs(window):
    """what was synced on an xfs is there after any power cut, and its own repair finds nothing"""
    return power_cut(window, "flat", number("CUTS", 100) // 12, 4, fs="xfs")


@test("power-cut-broken", seconds=60)
def power_cut_broken(window):
    """the power cuts notice loops and a disk that drop flushes"""
    first, said = seed(), []
    for nth, broken in enumerate(("loops", "disk")):
        # It ends with the third; how many it takes, chance and the machine's pace decide: the kernel writes much by itself within seconds.
        told = replay(window, "flat", first + nth, 200, 4, broken)
        if not told["wrong"]:
            raise Failure(f"seed {first + nth}: none of {told['cuts']} cuts noticed that {broken} drop flushes", window)
        said.append(f"{broken}: {len(told['wrong'])} of {told['cuts']} cuts")
    return f"seed {first}, {', '.join(said)}"


@test("power-detach", seconds=15)
def power_detach(window):
    """what somebody wrote and closed while a detach waited for it is on the disk when the detach has ended"""
    chance = seed()
    with boot(window, "power_detach.py", seed=chance, modes=("flat", "stack", "user")) as vm:
        vm.finish()
    return f"seed {chance}"


def wait_for_marks(path, count):
    """Until so much was done, or for as long as a slow machine may take."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with open(path, "rb") as file:
            if len(file.readlines()) >= count:
                return
        time.sleep(0.02)


def power_kill(window, mode):
    first, boots = seed(), number("KILLS", 6)
    rng = random.Random(first)
    disk = os.path.join(window, "disk.img")
    with open(disk, "w") as file:
        file.truncate(1 << 30)
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", disk], check=True)
    marks = 0
    for nth in range(boots + 1):
        with boot(window, "power_kill.py", mode=mode, shown=SHOWN, seed=first + nth, last=nth == boots) as vm:
            if nth == boots:
                vm.finish()
            else:
                try:
                    vm.wait_for("ready")
                except Failure as failure:
                    raise Failure(f"seed {first}, boot {nth}: {failure}", window) from None
                wait_for_marks(os.path.join(window, "marks"), rng.randint(4, 150))
                time.sleep(rng.uniform(0, 0.2))
                vm.kill()
                os.unlink(os.path.join(window, "ready"))
        with open(os.path.join(window, "marks"), "rb") as file:
            marks += len(file.readlines())
    return f"seed {first}, {boots} power cuts, {marks} synced steps"


@test("power-kill", seconds=70)
def power_kill_flat(window):
    """a machine whose power goes again and again keeps its store sound and all that was synced"""
    return power_kill(window, "flat")
