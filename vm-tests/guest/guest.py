"""Guest: what the host asks of this boot, the kernel's modules, and the host's blockbt-ctl."""

import json
import subprocess

with open("/run/window/parameters.json") as file:
    PARAMETERS = json.load(file)


def modprobe(*modules):
    """Those that init.sh did not load already."""
    subprocess.run(["modprobe", "-d", "/mnt", "-a", *modules], check=True)


def command(store, *words):
    return [PARAMETERS["ctl"], "--root", store, "--no-daemon", "--json", *words]


def ctl(store, *words):
    done = subprocess.run(command(store, *words), text=True, capture_output=True)
    print(f"{store}: {' '.join(words)}: {done.returncode} {done.stdout}{done.stderr}", flush=True)
    if done.returncode:
        raise SystemExit(f"blockbt-ctl {words[0]} ended with {done.returncode}")
    return [json.loads(line) for line in done.stdout.splitlines()]
