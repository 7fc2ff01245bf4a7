"""Guest: images attached in every mode; what dead verbs, other stores and strangers leave is found, told and taken away."""

import contextlib
import fcntl
import os
import re
import shutil
import signal
import stat
import subprocess
import threading

import guest
from dm import run
from images import (MNT, MODES, OTHER, RANDOM, STORE, assert_nothing, attempt, check, ctl, devices, digest, identity, image_id, info, loops, make_chain, mounted,
                    refused, write)

CONTROL = "/dev/mapper/control"


def every_mode_shows_the_same(files):
    seen = set()
    for mode in MODES:
        (reply,) = ctl("attach", "web", "--read-only", "--mode", mode)
        seen.add(digest(reply["device"]))
        refused(4, "attach", "web", "--mode", "flat" if mode != "flat" else "stack")
        attached = info("web")["attached"]
        assert (attached["mode"], attached["why"], attached["read_only"]) == (mode, "asked for", True), attached
        ctl("detach", "web")
        assert_nothing()
        mounted("web", mode, read_only=True)
        check(files)
        assert subprocess.run(["touch", f"{MNT}/x"], capture_output=True).returncode, "a read-only mount was written to"
        ctl("umount", "web")
        assert_nothing()
    assert len(seen) == 1, seen
    (reply,) = ctl("attach", "web")
    assert reply["mode"] == "flat" and "device-mapper" in info("web")["attached"]["why"]
    ctl("detach", "web")
    assert_nothing()


def a_head_moves_between_modes(files, modes):
    files = dict(files)
    ctl("clone", "web", "moving")
    for number, mode in enumerate(modes):
        mounted("moving", mode)
        check(files)
        files[f"moved-{number}"] = write(f"moved-{number}", RANDOM.randrange(1, 2_000_000))
        # The kernel would zero more than it is asked to: see kernel-notes/attach.md.
        trimmed = subprocess.run(["fstrim", MNT], capture_output=True).returncode == 0
        assert trimmed == (mode == "user"), (mode, trimmed)
        ctl("umount", "moving")
        assert_nothing()
    (attached,) = ctl("attach", "moving")
    run("e2fsck", "-fn", attached["device"])
    before = digest(attached["device"])
    ctl("detach", "moving")
    ctl("commit", "moving")
    (attached,) = ctl("attach", "moving", "--mode", "user")
    assert digest(attached["device"]) == before, "a commit changed the disk"
    ctl("detach", "moving")
    ctl("export", "moving", "/mnt/moving.tar")
    assert_nothing()


def clones_share(files):
    names = [f"clone-{number}" for number in range(5)]
    for name in names:
        ctl("clone", "web", name)
        ctl("attach", name)
    there, looped = devices(), loops()
    deltas = len(info("web")["chain"])
    assert len(there["lower"]) == 1 and len(there["origin"]) == len(there["image"]) == 5, there
    assert len([name for name in looped if "-delta-" in name]) == deltas and len([name for name in looped if "-head-" in name]) == 5, looped
    ctl("attach", "web", "--read-only", "--mode", "stack")
    assert len([name for name in loops() if "-delta-" in name]) == deltas, "a delta was looped twice"
    ctl("detach", "web")
    mounted("clone-3")
    check(files)
    write("mine", 100_000)
    ctl("umount", "clone-3")
    for name in names:
        if name != "clone-3":
            ctl("detach", name)
    assert_nothing()
    mounted("clone-4")
    assert not os.path.exists(f"{MNT}/mine")
    ctl("umount", "clone-4")
    for name in names:
        ctl("rm", name)


def make_comb():
    """A base with more runs than a flat table takes as targets. Returns what is on its disk."""
    ctl("create", "comb", "--fs", "none", "--size", "132M")
    (attached,) = ctl("attach", "comb", "--mode", "flat")
    with open(attached["device"], "r+b", buffering=0) as disk:
        for at in range(0, 132 << 20, 8192):
            os.pwrite(disk.fileno(), at.to_bytes(8) * 512, at)
    want = digest(attached["device"])
    ctl("detach", "comb")
    ctl("commit", "comb", "--chunk-size", "4K")
    return want


def one_delta_in_two_ways_at_once():
    """Of a comb; `flat` and `stack` then share its zero device."""
    want = make_comb()
    made = {"flat": "comb", "stack": "other-comb"}
    ctl("clone", *made.values())
    for first, second in (("flat", "stack"), ("stack", "flat")):
        for first_away, second_away in (("flat", "stack"), ("stack", "flat")):
            for mode in (first, second):
                (attached,) = ctl("attach", made[mode], "--read-only", "--mode", mode)
                assert digest(attached["device"]) == want, (first, mode)
            there = devices()
            assert all(len(there[kind]) == 1 for kind in ("zero", "short", "lower", "level")), there
            ctl("detach", made[first_away])
            assert digest(f"/dev/mapper/blockbt-{identity(STORE)}-image-{image_id(made[second_away])}") == want, (first, second_away)
            ctl("detach", made[second_away])
            assert_nothing()
    for name in made.values():
        ctl("rm", name)


def what_is_attached_is_in_use():
    ctl("clone", "web", "busy")
    ctl("attach", "busy")
    for words in (("commit", "busy"), ("rm", "busy"), ("rename", "busy", "x"), ("rm", "busy", "--dry-run"), ("attach", "busy", "--mode", "user")):
        refused(4, *words)
    ctl("mount", "busy", MNT)
    refused(4, "detach", "busy")
    with open(f"{MNT}/open", "w"):
        refused(4, "umount", "busy")
        assert ctl("list")[1]["dir"] == MNT
    ctl("umount", "busy")
    assert_nothing()


def nothing_of_ours_has_to_live(files):
    """Neither a process nor a file: the kernel's tables say what is attached."""
    ctl("mount", "busy", MNT)
    shutil.rmtree("/run/blockbt")
    (found,) = [image for image in ctl("list") if image["name"] == "busy"]
    assert found["dir"] == MNT and found["mode"] == "flat" and found["snapshot"] == "ok", found
    attached = info("busy")["attached"]
    assert attached["dir"] == MNT and attached["snapshot"]["used_bytes"] > 0, attached
    refused(4, "commit", "busy")
    check(files)
    ctl("umount", "busy")
    assert_nothing()
    daemon = guest.daemon(STORE)
    run(guest.PARAMETERS["ctl"], "--root", STORE, "mount", "busy", MNT)
    daemon.kill()
    daemon.wait()
    check(files)
    ctl("umount", "busy")
    ctl("rm", "busy")


def stores_do_not_touch_each_other(files):
    make_chain(OTHER, 2)
    ctl("mount", "web", "/mnt/n", store=OTHER)
    before = (devices(OTHER), loops(OTHER))
    mounted("web")
    shutil.rmtree(f"/run/blockbt/{identity(STORE)}")
    ctl("list")
    ctl("umount", "web")
    assert_nothing()
    assert (devices(OTHER), loops(OTHER)) == before
    # A copy has the same names; whose they are, the state says.
    run("cp", "-a", OTHER, "/mnt/copy")
    for lost in (False, True):
        if lost:
            # Then the head's file says it.
            shutil.rmtree(f"/run/blockbt/{identity(OTHER)}")
        refused(4, "umount", "web", store="/mnt/copy")
        refused(4, "attach", "web", store="/mnt/copy")
        assert ctl("list", store="/mnt/copy")[1]["device"] is None
    ctl("umount", "web", store=OTHER)
    assert_nothing(OTHER)


def a_stranger_with_our_name_stays():
    name = f"blockbt-{identity(STORE)}-image-{image_id('web')}"
    run("dmsetup", "create", name, "--noudevrules", "--noudevsync", stdin="0 8 zero\n")
    said = refused(1, "attach", "web")
    assert name in said, said
    ctl("list")
    assert name in run("dmsetup", "ls"), "it was removed"
    run("dmsetup", "remove", "--noudevrules", "--noudevsync", name)
    subprocess.run(["rm", "-f", f"/dev/mapper/{name}"])
    ctl("attach", "web")
    ctl("detach", "web")
    assert_nothing()


def tables_can_be_loaded_by_hand():
    for mode in ("flat", "stack"):
        (attached,) = ctl("attach", "web", "--read-only", "--mode", mode)
        want, numbers = digest(attached["device"]), {}
        tables = info("web", "--dm")["dm"]
        assert tables[-1]["name"] == os.path.basename(attached["device"])
        for number, device in enumerate(tables):
            table = re.sub(r"\b\d+:\d+\b", lambda match: numbers.get(match[0], match[0]), device["table"])
            # As it stands it is what dmsetup itself prints.
            printed = run("dmsetup", "table", device["name"])
            assert printed.split() == device["table"].split(), (printed, device)
            name = f"by-hand-{number}"
            run("dmsetup", "create", name, "--noudevrules", "--noudevsync", "--readonly", stdin=table)
            run("dmsetup", "mknodes", name)
            numbers[device["device"]] = run("dmsetup", "info", "-c", "--noheadings", "-o", "major,minor", "--separator", ":", name)
        assert digest(f"/dev/mapper/{name}") == want
        for number in reversed(range(len(tables))):
            run("dmsetup", "remove", "--noudevrules", "--noudevsync", f"by-hand-{number}")
            subprocess.run(["rm", "-f", f"/dev/mapper/by-hand-{number}"])
        ctl("detach", "web")
    assert_nothing()


def a_node_that_is_missing_is_made():
    """Whoever made the device died before it made the node; its marker is there, or went with `/run/blockbt`."""
    ctl("clone", "web", "nodeless")
    node = f"/dev/mapper/blockbt-{identity(STORE)}-image-{image_id('nodeless')}"
    doing = f"/run/blockbt/{identity(STORE)}/doing-{image_id('nodeless')}"
    ctl("attach", "nodeless")
    os.unlink(node)
    open(doing, "w").close()
    ctl("list")
    assert os.path.exists(node) and not os.path.exists(doing), "the node is still missing"
    os.unlink(node)
    ctl("mount", "nodeless", MNT)
    os.unlink(node)
    ctl("umount", "nodeless")
    assert_nothing()
    ctl("attach", "nodeless")
    os.unlink(node)
    ctl("detach", "nodeless")
    assert_nothing()
    ctl("rm", "nodeless")


def what_resisted_rests_but_for_its_own_verbs():
    """A mount died, and somebody has its device open: the marker stays, and leads others there once a minute, and a verb on that image at once."""
    ctl("clone", "web", "stubborn")
    ctl("mount", "stubborn", MNT)
    run("umount", MNT)
    doing = f"/run/blockbt/{identity(STORE)}/doing-{image_id('stubborn')}"
    open(doing, "w").close()
    with open(f"/dev/mapper/blockbt-{identity(STORE)}-image-{image_id('stubborn')}", "rb"):
        ctl("list")
        with open(doing) as marker:
            assert marker.read() == "resisted\n", "it was not noted"
        refused(4, "rm", "stubborn")
    os.utime(doing)
    ctl("list")
    assert "image" in devices() and os.path.exists(doing), "it did not rest"
    ctl("rm", "stubborn")
    assert_nothing()


@contextlib.contextmanager
def out_of_reach():
    """Device-mapper's control device is there, and nobody can open it: as in a container."""
    run("mount", "-t", "tmpfs", "-o", "nodev", "none", "/dev/mapper")
    os.mknod(CONTROL, 0o600 | stat.S_IFCHR, os.makedev(10, 236))
    try:
        yield
    finally:
        run("umount", "/dev/mapper")


def device_mapper_out_of_reach(files):
    """What is attached is then not known, and never said not to be; where nothing can be, user mode serves."""
    mounted("web", "flat")
    verbs = [["list"], ["info", "web"], ["umount", "web"], ["detach", "web"], ["attach", "web"], ["commit", "web"], ["rm", "web"], ["resize", "web", "256M"]]
    with out_of_reach():
        for verb in verbs:
            assert CONTROL in refused(1, *verb), verb
    for verb in verbs:
        words = ["setpriv", "--bounding-set=-sys_admin", *guest.command(STORE, *verb)]
        done = subprocess.run(words, text=True, capture_output=True)
        print(f"{verb}: {done.returncode} {done.stdout}{done.stderr}", flush=True)
        assert done.returncode == 1, verb
    check(files)
    ctl("umount", "web")
    assert_nothing()
    with out_of_reach():
        assert CONTROL in refused(1, "attach", "web", "--mode", "flat")
        (reply,) = ctl("mount", "web", MNT)
        assert reply["mode"] == "user" and CONTROL in info("web")["attached"]["why"], reply
        check(files)
        ctl("umount", "web")
    assert_nothing()


def a_server_that_says_it_is_done_has_nothing_open():
    """Whoever detaches the last image can unmount the store's file system, however slowly the server's process ends."""
    for _ in range(3):
        # One from before may not have ended yet.
        before = served()
        ctl("attach", "web", "--mode", "user")
        (server,) = served() - before
        found = []
        waiting = threading.Thread(target=lambda: found.extend(files_when_unlocked(server)))
        waiting.start()
        ctl("detach", "web")
        waiting.join()
        assert found == [], found
    assert_nothing()


def served():
    """Processes of the servers of user mode."""
    found = set()
    for process in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{process}/cmdline") as file:
            found |= {process} if "\0fuse-serve\0" in file.read() else set()
    return found


def files_when_unlocked(server):
    """What a server has open of the store when others find it gone: it gets no further until we have looked."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    with open(f"/run/blockbt/{identity(STORE)}/{image_id('web')}/server.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            links = [f"/proc/{server}/fd/{number}" for number in os.listdir(f"/proc/{server}/fd")]
            return [path for path in map(os.readlink, links) if path.startswith(STORE)]
    return []


# Which stop points each mode comes by, for a chain without growth whose table is all linear.
COMES_BY = {
    "flat": ("attach.mark attach.state attach.head attach.loop-delta attach.lower attach.loop-head attach.origin attach.image attach.unlock attach.mount "
             "detach.mark detach.unmount detach.flush detach.image detach.origin detach.loop detach.lower detach.state"),
    "stack": "attach.loop-delta attach.zero attach.level attach.image attach.mount detach.mark detach.image detach.level detach.zero detach.loop",
    "user": ("attach.place attach.state attach.head attach.server attach.loop attach.mount "
             "detach.unmount detach.flush detach.loop detach.fuse detach.server detach.place"),
}
# And for one that has grown, and has thousands of runs: without a mount, as all that is new is below the image.
COMES_BY_GROWN = {
    "flat": ("attach.loop-delta attach.loop-meta attach.zero attach.cow attach.short attach.lower attach.origin "
             "detach.image detach.lower detach.short detach.cow detach.zero detach.loop"),
    "stack": "attach.zero attach.pad attach.level attach.origin detach.image detach.pad detach.level detach.zero detach.loop",
}


def a_dead_verb_is_cleaned_up_after_at_every_step():
    with open(guest.PARAMETERS["stops"]) as file:
        points = set(re.findall(r'^    "((?:attach|detach)\.[a-z-]+)",$', file.read(), re.M))
    comes_by = [words.split() for words in (*COMES_BY.values(), *COMES_BY_GROWN.values())]
    assert points == set().union(*comes_by), points
    for mode, words in COMES_BY.items():
        for point in words.split():
            # Only an image without a head gets one.
            ctl("create", "victim", "--size", "16M") if point == "attach.head" else ctl("clone", "web", "victim")
            stop = {"BLOCKBT_STOP_AT": point}
            if point.startswith("detach."):
                ctl("mount", "victim", MNT, "--mode", mode)
                code, _, _ = attempt(STORE, "umount", "victim", **stop)
            else:
                code, _, _ = attempt(STORE, "mount", "victim", MNT, "--mode", mode, **stop)
            assert code == -signal.SIGKILL, f"{mode}: {point} was not reached"
            (found,) = [image for image in ctl("list") if image["name"] == "victim"]
            if found["device"] is not None:
                # It had come to the end of the mount, or had not begun to unmount; user mode keeps what was made for a mount.
                assert found["dir"] == MNT or mode == "user", (point, found)
                ctl("umount", "victim")
            assert_nothing()
            ctl("rm", "victim")


def a_dead_verb_leaves_a_grown_chain_of_many_runs_to_its_siblings():
    make_comb()
    ctl("resize", "comb", "140M")
    (attached,) = ctl("attach", "comb")
    with open(attached["device"], "r+b", buffering=0) as disk:
        os.pwrite(disk.fileno(), RANDOM.randbytes(8192), 139 << 20)
    want = digest(attached["device"])
    ctl("detach", "comb")
    ctl("commit", "comb")
    ctl("clone", "comb", "sibling")
    for mode, words in COMES_BY_GROWN.items():
        for point in words.split():
            ctl("clone", "comb", "victim")
            if point.startswith("detach."):
                ctl("attach", "victim", "--mode", mode)
            verb = ["detach", "victim"] if point.startswith("detach.") else ["attach", "victim", "--mode", mode]
            code, _, _ = attempt(STORE, *verb, BLOCKBT_STOP_AT=point)
            assert code == -signal.SIGKILL, f"{mode}: {point} was not reached"
            # The next verb is on another image, which is to stand on what is left, or would.
            (attached,) = ctl("attach", "sibling", "--read-only", "--mode", mode)
            assert digest(attached["device"]) == want, f"{mode}: {point}"
            assert info("victim")["attached"] is None, f"{mode}: {point}"
            ctl("detach", "sibling")
            assert_nothing()
            ctl("rm", "victim")


def who_asks_for_an_owner_is_none():
    """A verb had an image for itself and died. That somebody else asks for its owner, too, does not make him one."""
    for mode, point, lock in (("flat", "attach.image", "doing-{}"), ("user", "attach.loop", "{}/owner.lock")):
        with out_of_reach() if mode == "user" else contextlib.nullcontext():
            code, _, _ = attempt(STORE, "export", "web", "/mnt/exported.tar", BLOCKBT_STOP_AT=point)
            assert code == -signal.SIGKILL, f"{mode}: {point} was not reached"
            with open(f"/run/blockbt/{identity(STORE)}/{lock.format(image_id('web'))}") as asked:
                fcntl.flock(asked, fcntl.LOCK_SH)
                (found,) = [image for image in ctl("list") if image["name"] == "web"]
                assert found["device"] is None, f"{mode}: it is still attached"
        assert_nothing()
        ctl("export", "web", "/mnt/exported.tar")
        assert_nothing()


PART = guest.PARAMETERS["part"]
os.makedirs(MNT)
os.makedirs("/mnt/n")
FILES = make_chain(STORE, 2 if PART in ("killed", "short") else 5)
assert_nothing()
if PART == "modes":
    every_mode_shows_the_same(FILES)
    a_head_moves_between_modes(FILES, ("user", "flat", "stack", "flat", "user", "stack", "user", "user", "flat", "flat"))
    clones_share(FILES)
    one_delta_in_two_ways_at_once()
    tables_can_be_loaded_by_hand()
elif PART == "short":
    every_mode_shows_the_same(FILES)
    a_head_moves_between_modes(FILES, ("flat", "user", "stack"))
elif PART == "owners":
    what_is_attached_is_in_use()
    nothing_of_ours_has_to_live(FILES)
    stores_do_not_touch_each_other(FILES)
    a_stranger_with_our_name_stays()
    a_node_that_is_missing_is_made()
    what_resisted_rests_but_for_its_own_verbs()
    device_mapper_out_of_reach(FILES)
    a_server_that_says_it_is_done_has_nothing_open()
elif PART == "killed-grown":
    a_dead_verb_leaves_a_grown_chain_of_many_runs_to_its_siblings()
else:
    who_asks_for_an_owner_is_none()
    a_dead_verb_is_cleaned_up_after_at_every_step()
