"""The kernel's view of deltas against ours, byte for byte."""

import os

import chains
import handmade
from harness import cargo_test, test
from vm import CTL, TARGET, Failure, boot


@test("stack", seconds=30, stock=True)
def stack(window):
    """the kernel reads our sealed chains as plain stacks of snapshots, and one flipped bit is noticed"""
    by_hand = handmade.chain(window, "by-hand")
    ctl = chains.Ctl(CTL, os.path.join(window, "store"))
    tricky = chains.tricky(window, "tricky", ctl)
    wanted = {"by-hand": [], "tricky": []}
    for case in (by_hand, tricky):
        name = f"{os.path.basename(case)}-flipped"
        wanted[name] = [chains.flipped(window, name, case)]
    demo = chains.Ctl(CTL, os.path.join(TARGET, "demo", "state", "a", "store"))
    if not os.path.isfile(os.path.join(demo.root, "VERSION")) or "web" not in [image.get("name") for image in demo("list")]:
        demo = ctl
        chains.small(ctl, os.path.join(window, "mounted"))
    name = "small" if demo is ctl else "demo"
    chains.lay_out(window, name, demo, "web")
    wanted[name] = []
    with boot(window, "stack.py", "2G") as vm:
        vm.finish()
    for name, differs in wanted.items():
        with open(os.path.join(window, name, "differs")) as file:
            found = [int(number) for number in file.read().split()]
        if found != differs:
            raise Failure(f"{name}: the kernel's disk differs from ours in MiB {found[:20]}, expected {differs}", window)
    return ", ".join(wanted)


@test("kernel-writes", seconds=30)
def kernel_writes(window):
    """we read what the kernel wrote, exception by exception, and it reads what we add"""
    with boot(window, "kernel_writes.py") as vm:
        vm.finish()
    cases = len([name for name in os.listdir(window) if name.endswith(".delta")])
    cargo_test(window, "kernel_stores", KERNEL_STORES=window)
    with boot(window, "kernel_reads.py") as vm:
        vm.finish()
    return f"{cases} stores"
