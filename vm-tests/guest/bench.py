"""Guest: mounts the bench's disk and runs the bench's program on it."""

import os
import subprocess

from guest import PARAMETERS, modprobe

modprobe("dm-thin-pool", "nbd", "overlay", "ipv6", "ext4")
os.makedirs("/mnt/disk")
os.makedirs("/run/lock")
subprocess.run(["mount", "-o", "noatime", PARAMETERS["disks"][0], "/mnt/disk"], check=True)
subprocess.run([PARAMETERS["program"], "/mnt/disk", "/run/window/table.md", *PARAMETERS["rows"]], check=True)
subprocess.run(["umount", "/mnt/disk"], check=True)
