"""The kernel part by itself, without an image."""

import os

from harness import test, test_program
from vm import boot


@test("kernel-dm", seconds=20)
def kernel_dm(window):
    """device-mapper and loops do what our kernel part asks: tables there and back, swaps, read-only, foreign names, crowds"""
    with boot(window, "program.py", program=test_program(window, "kernel_dm")) as vm:
        vm.finish()
    with open(os.path.join(window, "guest.log")) as log:
        (summary,) = [line for line in log if line.startswith("test result: ok.")]
    return summary.split(";")[0].removeprefix("test result: ok. ")
