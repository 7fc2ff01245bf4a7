"""Guest: the same verbs where udev runs: it makes the nodes, is waited for, and looks into nothing of ours but what is for users.

Parameters: seed."""

import glob
import os
import random
import subprocess
import threading
import time

import guest
from dm import run
from images import MNT, STORE, assert_nothing, attempt, check, ctl, identity, image_id, make_chain, mounted

rng = random.Random(guest.PARAMETERS["seed"])


def settle():
    run("udevadm", "settle", "--timeout=1200")


def cookies():
    """Semaphores by which a verb waits for udev, and that are still there."""
    return [line for line in run("dmsetup", "udevcookies").splitlines() if line.startswith("0x")]


def properties(block):
    return dict(line.split("=", 1) for line in run("udevadm", "info", "--query=property", f"/dev/{block}").splitlines())


def made_by_udev(images):
    """Each image's node is udev's link, and nothing else of ours was looked into or is among the disks."""
    settle()
    links = {link: os.path.basename(os.path.realpath(link)) for link in glob.glob("/dev/mapper/*") + glob.glob("/dev/disk/*/*") if os.path.islink(link)}
    found = set()
    for path in glob.glob("/sys/block/dm-*/dm/name"):
        block = path.split("/")[3]
        with open(path) as file:
            name = file.read().strip()
        told = properties(block)
        if "-image-" in name:
            found.add(name)
            assert links.get(f"/dev/mapper/{name}") == block, (name, links)
            assert told.get("DM_UDEV_LOW_PRIORITY_FLAG") == "1", told
        else:
            # Where udev runs, it names every device there.
            assert not [link for link in links if links[link] == block and not link.startswith("/dev/mapper/")], (name, links)
            assert not [key for key in told if key.startswith("ID_FS")] and told.get("DM_UDEV_DISABLE_OTHER_RULES_FLAG") == "1", (name, told)
    assert found == {f"blockbt-{identity(STORE)}-image-{image_id(name)}" for name in images}, (found, images)
    assert cookies() == [], cookies()


def gone():
    """Links of devices that are no longer there."""
    settle()
    assert_nothing()
    left = [link for link in glob.glob("/dev/disk/*/*") if os.path.basename(os.path.realpath(link)).startswith("dm-")]
    assert left == [] and cookies() == [], (left, cookies())


def at_once(verb, names):
    """One process for each, all at the same time."""
    codes = {}
    threads = [threading.Thread(target=lambda name=name: codes.update({name: attempt(STORE, verb, name)[0]})) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(codes.values()) == {0}, codes


def alone(files):
    for mode in ("flat", "stack"):
        mounted("web", mode)
        made_by_udev(["web"])
        check(files)
        (found,) = [image for image in ctl("list") if image["name"] == "web"]
        assert (found["dir"], found["mode"]) == (MNT, mode), found
        ctl("umount", "web")
        gone()
        ctl("attach", "web", "--mode", mode, "--read-only")
        made_by_udev(["web"])
        ctl("detach", "web")
        gone()


def many():
    names = [f"clone-{number}" for number in range(6)]
    for name in names:
        ctl("clone", "web", name)
    for _ in range(3):
        at_once("attach", names)
        made_by_udev(names)
        at_once("detach", names)
        gone()


def killed():
    """Verbs that die leave nothing; the cookie of one that died while it waited is nobody's to take, as a living one's looks the same."""
    start = time.monotonic()
    ctl("attach", "web")
    took = time.monotonic() - start
    ctl("detach", "web")
    for _ in range(12):
        verb = subprocess.Popen(guest.command(STORE, "attach", "web"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            verb.wait(rng.uniform(0, took))
        except subprocess.TimeoutExpired:
            verb.kill()
        verb.wait()
        (found,) = [image for image in ctl("list") if image["name"] == "web"]
        if found["device"]:
            ctl("detach", "web")
        settle()
        assert_nothing()
    print(f"{len(cookies())} cookies of dead verbs", flush=True)
    run("dmsetup", "udevcomplete_all", "--yes")
    mounted("web", "flat")
    made_by_udev(["web"])
    ctl("umount", "web")
    gone()


os.makedirs(MNT)
run("/lib/systemd/systemd-udevd", "--daemon")
run("udevadm", "trigger")
settle()
files = make_chain(STORE, 3)
gone()
alone(files)
many()
killed()
