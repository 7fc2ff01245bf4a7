"""fs-verity, on a kernel that has it: user-mode Linux does not."""

from harness import test
from vm import boot


@test("verity", seconds=60, uml=False, stock=True)
def verity(window):
    """the kernel itself guards sealed deltas by fs-verity: a bit that flips on the disk is an I/O error, below a mounted image, too"""
    with boot(window, "verity.py") as vm:
        vm.finish()
    return "2 deltas"
