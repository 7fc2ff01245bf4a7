"""Guest: calls the host's blockbt-ctl."""

import json
import subprocess


def command(store, *words):
    with open("/run/window/ctl") as file:
        program = file.read().strip()
    return [program, "--root", store, "--no-daemon", "--json", *words]


def ctl(store, *words):
    done = subprocess.run(command(store, *words), text=True, capture_output=True)
    print(f"{store}: {' '.join(words)}: {done.returncode} {done.stdout}{done.stderr}", flush=True)
    if done.returncode:
        raise SystemExit(f"blockbt-ctl {words[0]} ended with {done.returncode}")
    return [json.loads(line) for line in done.stdout.splitlines()]
