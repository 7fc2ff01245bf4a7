"""Attach in every mode, and what remains when verbs, daemons and their files die."""

import os

import harness
from harness import test
from vm import TOP, boot

STOPS = os.path.join(TOP, "src", "attach", "stop.rs")


def run(window, part):
    seed = harness.seed()
    with boot(window, "attach.py", seed=seed, part=part, stops=STOPS) as vm:
        vm.finish()
    return f"seed {seed}"


@test("attach-modes", seconds=60)
def modes(window):
    """every mode shows the same, a head moves between them, clones share what they have in common, tables can be loaded by hand"""
    return run(window, "modes")


@test("attach-owners", seconds=45)
def owners(window):
    """what is attached is found without a file or a process of ours, and stays its store's; a stranger's device stays"""
    return run(window, "owners")


@test("attach-killed", seconds=120)
def killed(window):
    """an attach or detach that dies, at whichever step, leaves nothing that the next verb does not take away"""
    return run(window, "killed")


@test("attach-killed-grown", seconds=90)
def killed_grown(window):
    """one that dies at whichever step of a chain that has grown, and has thousands of runs, leaves nothing to its siblings but what they can stand on"""
    return run(window, "killed-grown")


@test("attach-short", seconds=60, uml=False, stock=True)
def short(window):
    """every mode shows the same, a head moves between them, and nothing is left"""
    return run(window, "short")


@test("udev", seconds=60)
def udev(window):
    """where udev runs it makes the nodes of images, looks into nothing else of ours, and is waited for by no verb that has ended"""
    seed = harness.seed()
    with boot(window, "udev.py", seed=seed) as vm:
        vm.finish()
    return f"seed {seed}"
