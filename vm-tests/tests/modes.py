"""Chains in all modes beside a model."""

import os
import shutil

from chains import Ctl
from disks import MIB, Disk
from harness import number, seed, test
from vm import CTL, Failure, boot


def in_all_modes(window, deepest, small, scattered):
    chance = seed()
    print(f"modes: SEED={chance}", flush=True)
    deep = deep_chains(window, chance, deepest)
    with boot(window, "modes.py", "2G", seed=chance, deep=deep, small=small, scattered=scattered) as vm:
        vm.finish()
    with open(os.path.join(window, "said")) as said:
        return f"SEED={chance}, {said.read()}"


@test("modes", seconds=120)
def modes(window):
    """random chains look the same in the modes flat, stack and user, and what the kernel wrote is read back in the others and after commit"""
    return in_all_modes(window, number("DEEPEST", 128), (0, 2, 4, 7, 9), True)


@test("modes-short", seconds=60, uml=False, stock=True)
def modes_short(window):
    """random chains look the same in the modes flat, stack and user, and what the kernel wrote is read back in the others and after commit"""
    return in_all_modes(window, 12, (1,), False)


def deep_chains(window, chance, deepest):
    """Made here, as each verb takes a guest a quarter of a second. Images of 32 deltas and of the most, and a `.model` of each; their names."""
    ctl, model, made = Ctl(CTL, os.path.join(window, "store")), os.path.join(window, "model"), []
    disk = Disk(ctl, False, "deep", chance, model)
    disk.make(model, (24 * MIB, 48 * MIB))
    try:
        while disk.depth < deepest:
            disk.step(100, (24 * MIB, 48 * MIB), disk.depth % 32 == 0)
            if disk.depth in (32, deepest) and f"deep-{disk.depth}" not in made:
                made.append(f"deep-{disk.depth}")
                # Without the head that the last look left.
                ctl("clone", "deep", made[-1])
                shutil.copyfile(model, os.path.join(window, f"{made[-1]}.model"))
    except AssertionError as wrong:
        ctl("detach", "deep")
        raise Failure(f"SEED={chance}: {wrong}", window) from None
    ctl("rm", "deep")
    if deepest >= 100 and not disk.full:
        raise Failure(f"SEED={chance}: no delta with areas exactly full", window)
    return made


@test("flatten", seconds=60)
def flatten(window):
    """a chain of DELTAS deltas (12 unless said) is made one while a clone on the old chain is attached, which notices nothing"""
    with boot(window, "flatten.py", "1G", deltas=number("DELTAS", 12)) as vm:
        vm.finish()
    with open(os.path.join(window, "said")) as said:
        return said.read()
