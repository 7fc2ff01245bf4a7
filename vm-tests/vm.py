"""A guest: one kernel, one script, one window directory, a time limit. Here user-mode Linux; `stock.py` has Debian's own kernel.

Ends only what it started: the guest's processes are a process group of their own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(HERE)
TARGET = os.environ.get("CARGO_TARGET_DIR", os.path.join(TOP, "target"))
CTL = os.path.join(TARGET, "release", "blockbt-ctl")
STOCK = "--stock" in sys.argv
# Of what a guest said, in the report of a failure.
MOST_LINES = 150
# The guest has one CPU; this is the host's that it runs on.
CPU = max(os.sched_getaffinity(0))
# For a guest that hangs. One on a slow machine is none: on a quiet one the longest takes a twentieth of it.
LIMIT = 3600


def boot(window, script, memory="1G", disks=(), **parameters):
    """A guest of the kernel that was asked for: user-mode Linux, or Debian's own by `--stock`.

    It runs `guest/<script>`, which finds `parameters` in `guest.PARAMETERS`, and the devices of `disks` there, too."""
    if not STOCK:
        return Vm(window, script, memory, parameters, disks)
    from stock import StockVm
    return StockVm(window, script, memory, parameters, disks)


class Vm:
    # What the guest calls its disks: /dev/ubda, /dev/ubdb ...
    drive = "/dev/ubd"

    def __init__(self, window, script, memory, parameters, disks=()):
        """`disks`: files that are the guest's `disks`."""
        self.window, self.log, self.disks = window, os.path.join(window, "console.log"), disks
        self.scratch = os.path.join(window, "vm")
        os.makedirs(self.scratch, exist_ok=True)
        for old in ("result", "guest.log"):
            if os.path.exists(os.path.join(window, old)):
                os.unlink(os.path.join(window, old))
        with open(os.path.join(window, "parameters.json"), "w") as file:
            json.dump({"ctl": CTL, "disks": [f"{self.drive}{letter}" for _, letter in zip(disks, "abcdefgh")], **parameters}, file)
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.start(script, memory), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def start(self, script, memory):
        """The command that boots the guest."""
        words = ["taskset", "--cpu-list", str(CPU), "linux.uml", f"mem={memory}", "rootfstype=hostfs", "ro", "rootflags=/"]
        words += [f"init={HERE}/guest/init.sh", "con=null", "con0=fd:0,fd:1", "quiet", "umid=vm", f"uml_dir={self.scratch}/"]
        words += [f"ubd{number}={path}" for number, path in enumerate(self.disks)]
        return [*words, f"bbt_window={self.window}", f"bbt_script={HERE}/guest/{script}"]

    def kill(self):
        """A power cut. Safe to call twice."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def wait_for(self, name):
        """Waits until the guest has made the file `name` in the window."""
        path, end = os.path.join(self.window, name), time.monotonic() + LIMIT
        while not os.path.exists(path):
            if self.process.poll() is not None:
                raise Failure(f"the guest ended without {name}: {self.result()}", self.window)
            if time.monotonic() > end:
                raise Failure(f"no {name} after {LIMIT} s", self.window)
            time.sleep(0.05)

    def finish(self):
        """Waits for the guest to switch itself off, and for its good result."""
        try:
            self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            raise Failure(f"still running after {LIMIT} s", self.window) from None
        finally:
            self.kill()
        if self.result() != "ok":
            raise Failure(self.result(), self.window)

    def result(self):
        """What the guest's script ended with."""
        path = os.path.join(self.window, "result")
        if not os.path.exists(path):
            return "no result: the kernel did not reach the script's end"
        with open(path) as file:
            return file.read().strip()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()


class Failure(Exception):
    def __init__(self, said, window):
        self.said, self.window = said, window
        super().__init__(said)

    def tail(self):
        """The end of what the guest said, and all of what went wrong there, one error on the other."""
        lines = []
        for name in ("console.log", "guest.log"):
            path = os.path.join(self.window, name)
            if os.path.exists(path):
                with open(path, errors="replace") as file:
                    last = file.readlines()[-MOST_LINES:]
                told = next((number for number, line in enumerate(last) if line.startswith(("Traceback ", "-- "))), len(last))
                lines += [f"    {name}: {line.rstrip()}" for line in last[min(told, max(0, len(last) - 8)):]]
        return "\n".join(lines)
