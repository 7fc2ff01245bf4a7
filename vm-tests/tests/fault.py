"""What fails below an image, and what dies above it: parts of three scripts of the guest."""

import os

import harness
from harness import number, test
from vm import boot


def fault(name, script, seconds, claim, memory="1G", **parameters):
    def run(window):
        seed = harness.seed()
        try:
            with boot(window, f"fault_{script}.py", memory=memory, part=name, seed=seed, **parameters) as vm:
                vm.finish()
        finally:
            print(f"       fault-{name}: SEED={seed}", flush=True)
        with open(os.path.join(window, "said")) as file:
            return f"seed {seed}, {file.read()}"

    run.__doc__ = claim
    test(f"fault-{name}", seconds)(run)


fault("flakey", "disk", 40, "a head whose disk refuses writes, loses them or goes away keeps what was synced before, and its siblings notice nothing")
fault("flush", "disk", 15, "a flush that fails while the snapshot takes writes is told by the detach, which is done all the same")
fault("release", "disk", 15, "an attach that fails leaves nothing of what its image stood on, also where a dead verb had made it")
fault("dust", "disk", 30, "a head with blocks that cannot be read gives errors and never wrong bytes, and all of it when they can be read again")
fault("origin", "repair", 30, "an image whose origin has holes loses its snapshot and none of its data: check --repair brings it back")
fault("shared", "disk", 30, "holes in the device that all clones of a chain share are read errors for as long as they last, and lose nothing")
fault("space", "repair", 30, "the host's disk fills up: a reserved head notices nothing, a sparse one is dropped and repaired, a bounded one refuses writes and is"
      " usable again")
fault("loops", "disk", 20, "loops that somebody detaches by hand below mounted images go with their last user, and no sooner")
fault("crowd", "crowd", 60, "clones of one parent, all at once, are made, mounted, unmounted and removed while they are listed, and nothing is left",
      memory="3G", many=number("CROWD", 60))
fault("killed", "crowd", 45, "verbs that are killed at any time leave nothing that the next verb does not take away, and a mounted image works on",
      kills=number("KILLS", 40))
fault("daemon", "crowd", 45, "a daemon that is killed at any time, with verbs under way, costs a mounted image nothing", kills=number("KILLS", 20) // 2)
