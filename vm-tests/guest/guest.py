"""Guest: calls the host's blockbt-ctl on the store in the window."""

import json
import os
import subprocess

os.makedirs("/mnt/web", exist_ok=True)


def ctl(*words):
    program = open("/run/window/ctl").read().strip()
    done = subprocess.run([program, "--root", "/run/window/store", "--no-daemon", *words], text=True, capture_output=True)
    print(f"blockbt-ctl {' '.join(words)}: {done.returncode} {done.stdout}{done.stderr}", flush=True)
    if done.returncode:
        raise SystemExit(f"blockbt-ctl {words[0]} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1]) if "--json" in words else None
