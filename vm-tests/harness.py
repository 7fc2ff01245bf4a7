"""What the tests of vm-tests/tests/ share: the register of tests, the programs under test, the seed."""

import json
import os
import random
import subprocess

from vm import STOCK, TOP, Failure

ENV = {key: value for key, value in os.environ.items() if not key.startswith("BLOCKBT_")}
TESTS = {}


class Test:
    def __init__(self, run, seconds):
        self.run, self.claim, self.seconds = run, run.__doc__, seconds


def test(name, seconds, uml=True, stock=False):
    """Registers `function(window)`: raises `Failure`, or returns what the line of the result says in brackets. Its docstring is the claim.

    `seconds` is about what it takes on a quiet machine; the longest start first where several run at once. `uml`, `stock`: the kernels that it is for."""

    def register(function):
        assert name not in TESTS, name
        if stock if STOCK else uml:
            TESTS[name] = Test(function, seconds)
        return function

    return register


def seed(default=None):
    """What decides all chance of a test: $SEED, else `default`, else a new one. The test prints it."""
    return int(os.environ.get("SEED") or (random.randrange(1 << 32) if default is None else default))


def number(name, default):
    """A size of a test that the environment may say, such as CUTS=1000."""
    return int(os.environ.get(name) or default)


def build():
    """All that the tests run, before the first of them: cargo puts a program of other features away before it links the next, and guests start it by its name."""
    cargo_test(TOP, "kernel_dm", "--test", "kernel_stores", "--no-run")


def cargo_test(window, target, *words, **variables):
    """Runs an integration test of the build that `make test` uses, whose features serve here too. Returns what it wrote to stdout."""
    command = ["cargo", "test", "--quiet", "--release", "--locked", "--features", "root-tests", "--test", target, *words]
    done = subprocess.run(command, cwd=TOP, env={**ENV, **variables}, text=True, capture_output=True)
    if done.returncode:
        raise Failure(f"cargo test ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-2000:]}", window)
    return done.stdout


def test_program(window, target):
    """Builds an integration test and returns the program, for a guest to run."""
    made = [json.loads(line) for line in cargo_test(window, target, "--no-run", "--message-format", "json").splitlines()]
    (program,) = [one["executable"] for one in made if one.get("target", {}).get("name") == target]
    return program
