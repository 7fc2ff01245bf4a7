"""What a head does when it, or the host's disk, is full, by the kernel's own word."""

from harness import seed, test
from vm import Failure, boot


def limits(window, story):
    first = seed()
    try:
        with boot(window, "limits.py", memory="2G", seed=first, story=story) as vm:
            vm.finish()
    except Failure as failure:
        raise Failure(f"seed {first}: {failure}", window) from None
    return f"ext4 and xfs, seed {first}"


@test("limits-full", seconds=30)
def limits_full(window):
    """a head at its limit refuses writes and keeps what is synced; after resize --limit it has room again, without a reboot"""
    return limits(window, "full_head")


@test("limits-reserved", seconds=30)
def limits_reserved(window):
    """a reserved head is written to, and stays valid, while the host's disk is full"""
    return limits(window, "reserved_head")


@test("limits-invalidated", seconds=30)
def limits_invalidated(window):
    """a sparse head that the kernel gave up on a full host is refused by name of its cure, and check --repair brings back what was synced"""
    return limits(window, "invalidated_head")
