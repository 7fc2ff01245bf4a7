"""Guest: an image is mounted and written to when the power goes. The window holds the store; blockbt-ctl comes from the host."""

import os
import time

import guest

guest.ctl("create", "web", "--size", "256M")
guest.ctl("mount", "web", "/mnt/web")
for number in range(40):
    with open(f"/mnt/web/{number}", "wb") as file:
        file.write(bytes([number]) * 50_000)
        os.fsync(file.fileno())
    if number == 0:
        os.sync()
directory = os.open("/mnt/web", os.O_RDONLY)
os.fsync(directory)
with open("/run/window/acknowledged", "w") as file:
    file.write("40")
time.sleep(600)
