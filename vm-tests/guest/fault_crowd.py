"""Guest: many at once, and many that are killed: what stays mounted works on, and nothing is left of the others."""

import json
import os
import signal
import subprocess
import threading
import time

import faults
import guest
from faults import CHANCE, STORE, Files, ctl, nothing_left, said


class Steady:
    """An image that is mounted and written to all the time, for however long: the oldest of its files make room."""

    # Of 96 kB at most; the disk has 64 MiB.
    MOST_FILES = 200

    def __init__(self):
        ctl("clone", "base", "steady")
        self.files, self.error, self.stop = Files("steady"), None, threading.Event()
        self.files.mount("--mode", "flat")
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    def work(self):
        while not self.stop.wait(0.2) and self.error is None:
            self.error = self.files.write(1)
            if len(self.files.synced) > self.MOST_FILES:
                os.unlink(f"{self.files.dir}/w-{self.files.synced.pop(0)}")

    def end(self):
        alive = self.thread.is_alive()
        self.stop.set()
        self.thread.join()
        assert alive and self.error is None, self.error
        faults.drop_caches()
        self.files.check()
        faults.base_is_whole(self.files.dir)
        self.files.umount()
        return self.files.count


def crowd():
    """Clones of one parent are made, mounted, written to, unmounted and removed at once, while somebody lists them."""
    many, failures, listed = guest.PARAMETERS["many"], [], 0
    faults.make_host(1 << 30)
    faults.make_base()
    os.makedirs("/mnt/keep")
    ctl("mount", "base", "/mnt/keep", "--read-only", "--mode", "flat")
    before = (faults.devices(), sorted(faults.loops()))

    def verb(*words):
        done = subprocess.run(guest.command(STORE, *words), text=True, capture_output=True)
        if done.returncode:
            failures.append(f"{' '.join(words)}: {done.returncode} {done.stderr}")
        return done

    def one(number):
        name, directory = f"clone-{number}", f"/mnt/c/{number}"
        os.makedirs(directory)
        verb("clone", "base", name)
        if verb("mount", name, directory, "--mode", "flat").returncode == 0:
            with open(f"{directory}/mine", "w") as file:
                file.write(name)
            verb("umount", name)
        verb("rm", name)

    start = time.monotonic()
    workers = [threading.Thread(target=one, args=(number,)) for number in range(many)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        shown = verb("list").stdout.splitlines()
        assert all(json.loads(line)["name"] for line in shown)
        listed += 1
        time.sleep(0.2)
    took = time.monotonic() - start
    for failure in failures[:20]:
        print(failure, flush=True)
    assert failures == [], f"{len(failures)} verbs failed"
    assert (faults.devices(), sorted(faults.loops())) == before, f"{faults.devices()}, {faults.loops()}"
    faults.base_is_whole("/mnt/keep")
    ctl("umount", "base")
    nothing_left()
    assert [image["name"] for image in ctl("list")] == ["base"]
    (report,) = ctl("check", "--all")
    assert report["findings"] == [], report
    said(f"{many} clones in {took:.1f} s, listed {listed} times")


class Victim:
    """An image whose verbs are killed. What it is, and what may come next, `list` says after each."""

    def __init__(self):
        self.files, self.took, self.killed = Files("victim"), {}, {}

    def state(self):
        for image in ctl("list"):
            if image["name"] == "victim":
                return "mounted" if image["dir"] else "attached" if image["device"] else "there"
        return None

    def next_verb(self, state):
        """One that fits. Files are checked, and new ones synced, whenever it is mounted."""
        mode = ("--mode", CHANCE.choice(("flat", "flat", "flat", "stack", "user")))
        match state:
            case None:
                self.files.synced = []
                return ("clone", "base", "victim")
            case "attached":
                return ("detach", "victim")
            case "mounted":
                self.files.check()
                assert self.files.write(CHANCE.randrange(3)) is None
                return ("umount", "victim")
        mount, attach = ("mount", "victim", self.files.dir, *mode), ("attach", "victim", *mode)
        return CHANCE.choice((mount, mount, mount, attach, ("commit", "victim"), ("rm", "victim")))

    def kill_within(self, verb):
        """When to kill, by how long the verb takes here; None: let it end, so that it is known."""
        if verb not in self.took or CHANCE.random() < 0.15:
            return None
        return CHANCE.uniform(0, 1.1) * self.took[verb]

    def ran(self, words, seconds, killed):
        if killed:
            self.killed[words[0]] = self.killed.get(words[0], 0) + 1
        else:
            self.took[words[0]] = seconds
        print(f"{' '.join(words)}: {'killed' if killed else 'ended'} after {seconds:.3f} s", flush=True)

    def end(self):
        """Nothing of it is left when it is gone."""
        match self.state():
            case "mounted":
                self.files.check()
                ctl("umount", "victim")
            case "attached":
                ctl("detach", "victim")
            case None:
                return
        self.files.mount()
        self.files.check()
        self.files.umount()
        ctl("rm", "victim")

    def told(self):
        return ", ".join(f"{count} {verb}" for verb, count in sorted(self.killed.items()))


def killed_by(round_of):
    """Verbs on a victim, each perhaps killed, beside an image that works on."""
    faults.make_host(1 << 30)
    faults.make_base(mib=4)
    steady, victim = Steady(), Victim()
    own = (faults.devices(), sorted(faults.loops()))
    while sum(victim.killed.values()) < guest.PARAMETERS["kills"]:
        state = victim.state()
        if state in (None, "there"):
            left = (faults.devices(), sorted(faults.loops()))
            assert left == own, f"left: {left}, want {own}"
        round_of(victim, state)
    victim.end()
    synced = steady.end()
    nothing_left()
    (report,) = ctl("check", "--all")
    assert report["findings"] == [], report
    said(f"killed: {victim.told()}; {synced} synced files beside them")


def killed():
    """kill -9 of the command line at any time."""

    def round_of(victim, state):
        words = victim.next_verb(state)
        within, start = victim.kill_within(words[0]), time.monotonic()
        process = subprocess.Popen(guest.command(STORE, *words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(within)
        except subprocess.TimeoutExpired:
            process.kill()
        code = process.wait()
        assert code in (0, -signal.SIGKILL), f"{words}: {code}"
        victim.ran(words, time.monotonic() - start, code != 0)

    killed_by(round_of)


def daemon():
    """kill -9 of the daemon at any time, with a verb under way."""
    ctl_program = guest.PARAMETERS["ctl"]

    def round_of(victim, state):
        process = guest.daemon(STORE)
        for _ in range(4):
            words = victim.next_verb(state)
            within, start = victim.kill_within(words[0]), time.monotonic()
            verb = subprocess.Popen([ctl_program, "--root", STORE, "--json", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                verb.wait(within)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            code, died = verb.wait(), process.poll() is not None
            assert died or code == 0, f"{words}: {code}"
            victim.ran(words, time.monotonic() - start, died)
            if died:
                return
            state = victim.state()
        process.kill()
        process.wait()

    killed_by(round_of)


faults.parts({"crowd": crowd, "killed": killed, "daemon": daemon})
