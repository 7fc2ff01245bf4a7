"""Guest: what the host asks of this boot, the kernel's modules, and the host's blockbt-ctl."""

import json
import os
import subprocess
import time

with open("/run/window/parameters.json") as file:
    PARAMETERS = json.load(file)


def modprobe(*modules):
    """Those that init.sh did not load already."""
    subprocess.run(["modprobe", "-d", "/mnt", "-a", *modules], check=True)


def command(store, *words):
    return [PARAMETERS["ctl"], "--root", store, "--no-daemon", "--json", *words]


class Refused(Exception):
    """blockbt-ctl did not end with 0."""


def ctl(store, *words, codes=(0,)):
    done = subprocess.run(command(store, *words), text=True, capture_output=True, timeout=600)
    print(f"{time.monotonic():.2f} {store}: {' '.join(words)}: {done.returncode} {done.stdout}{done.stderr}", end="\n" * (not done.stdout), flush=True)
    if done.returncode not in codes:
        raise Refused(f"blockbt-ctl {' '.join(words)} ended with {done.returncode}: {done.stderr.strip()}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def daemon(store):
    """A `blockbtd` that answers, for the caller to kill."""
    # The torrent engine wants it.
    modprobe("ipv6")
    with open(f"{store}/VERSION") as file:
        socket = f"/run/blockbt/{next(line.split()[1] for line in file if line.startswith('id '))}/daemon.sock"
    program = os.path.join(os.path.dirname(PARAMETERS["ctl"]), "blockbtd")
    with open("/mnt/daemon.log", "w") as log:
        process = subprocess.Popen([program, "--root", store, "--bootstrap", "none", "--listen", "127.0.0.1:6981"], stdout=log, stderr=log)
    until = time.monotonic() + 120
    while subprocess.run([PARAMETERS["ctl"], "--root", store, "--socket", socket, "list"], capture_output=True).returncode:
        assert process.poll() is None and time.monotonic() < until, open("/mnt/daemon.log").read()[-2000:]
        time.sleep(0.05)
    return process
