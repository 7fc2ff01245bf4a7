"""What is left when the power goes, and what the next boot makes of it."""

import os
import random
import subprocess
import time

from harness import test
from vm import boot


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
                vm.finish(150)
            else:
                vm.wait_for("ready", 150)
                time.sleep(random.uniform(0, 0.3))
                vm.kill()
                os.unlink(os.path.join(window, "ready"))
    with open(acknowledged) as file:
        return f"2 power cuts, {len(file.readlines())} synced files"
