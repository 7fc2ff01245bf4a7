"""Chains in all modes beside a model."""

import os

from harness import number, seed, test
from vm import boot


@test("modes", seconds=150)
def modes(window):
    """random chains look the same in the modes flat, stack and user, and what the kernel wrote is read back in the others and after commit"""
    chance = seed()
    print(f"modes: SEED={chance}", flush=True)
    with boot(window, "modes.py", "2G", seed=chance, deepest=number("DEEPEST", 128)) as vm:
        vm.finish(600)
    with open(os.path.join(window, "said")) as said:
        return f"SEED={chance}, {said.read()}"
