"""Guest: images attached in every mode; what dead verbs, other stores and strangers leave is found, told and taken away."""

import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import time

import guest
from dm import run

STORE, OTHER, MNT = "/mnt/store", "/mnt/other", "/mnt/m"
RANDOM = random.Random(guest.PARAMETERS.get("seed", 1))
MODES = ("flat", "stack", "user")


def attempt(store, *words, **variables):
    """(exit code, what was printed, what was said)"""
    done = subprocess.run(guest.command(store, *words), text=True, capture_output=True, env={**os.environ, **variables})
    print(f"{' '.join(words)} {variables}: {done.returncode} {done.stdout}{done.stderr}", flush=True)
    return done.returncode, done.stdout, done.stderr


def ctl(*words, store=STORE):
    return guest.ctl(store, *words)


def refused(code, *words, store=STORE):
    found, _, said = attempt(store, *words)
    assert found == code, f"{words}: ended with {found}, want {code}"
    return said


def identity(store):
    with open(f"{store}/VERSION") as file:
        return next(line.split()[1] for line in file if line.startswith("id "))


def image_id(name):
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def devices(store=STORE):
    """Our device-mapper devices, by kind."""
    text = run("dmsetup", "info", "-c", "--noheadings", "-o", "uuid")
    found = {}
    for uuid in text.split():
        if match := re.fullmatch(f"BLOCKBT-{identity(store)}-([a-z]+)-([0-9a-f]+)", uuid):
            found.setdefault(match[1], []).append(match[2])
    return found


def loops(store=STORE):
    """Our loop devices' names."""
    found = []
    for number in sorted(os.listdir("/sys/block")):
        if number.startswith("loop") and os.path.exists(f"/sys/block/{number}/loop"):
            found.append(loop_name(f"/dev/{number}"))
    return sorted(name for name in found if name.startswith(f"blockbt-{identity(store)}-"))


def loop_name(device):
    """`struct loop_info64`'s lo_file_name, which losetup does not show."""
    import fcntl
    with open(device, "rb") as file:
        info = fcntl.ioctl(file, 0x4C05, bytes(232))
    return info[56:120].split(b"\0")[0].decode()


def assert_nothing(store=STORE, but=()):
    assert devices(store) == {}, devices(store)
    left = [name for name in loops(store) if name not in but]
    assert left == [], left
    left = [name for name in os.listdir(f"/run/blockbt/{identity(store)}") if not re.match(r"mapped-|[a-z0-9]+\.lock|mnt$|doing$|daemon", name)]
    doing = f"/run/blockbt/{identity(store)}/doing"
    assert left == [] and not (os.path.exists(doing) and os.listdir(doing)), left
    assert not [name for name in os.listdir("/dev/mapper") if identity(store) in name], os.listdir("/dev/mapper")


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def info(name, *words, store=STORE):
    return ctl("info", name, *words, store=store)[0]


def mounted(name, mode=None, read_only=False):
    words = ["mount", name, MNT] + (["--mode", mode] if mode else []) + (["--read-only"] if read_only else [])
    (reply,) = ctl(*words)
    assert mode is None or reply["mode"] == mode, reply
    return reply


def write(name, size):
    data = RANDOM.randbytes(size)
    with open(f"{MNT}/{name}", "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return data


def check(files):
    for name, data in files.items():
        with open(f"{MNT}/{name}", "rb") as file:
            assert file.read() == data, f"{name} is not what was written"


def make_chain(store, deltas):
    """`web`, and what is on it."""
    files = {}
    os.makedirs("/mnt/tree/etc", exist_ok=True)
    with open("/mnt/tree/etc/motd", "w") as file:
        file.write("hello\n")
    ctl("import", "base", "/mnt/tree", "--size", "128M", store=store)
    ctl("clone", "base", "web", store=store)
    for number in range(deltas - 1):
        ctl("mount", "web", MNT, store=store)
        files[f"file-{number}"] = write(f"file-{number}", RANDOM.randrange(1, 3_000_000))
        ctl("umount", "web", store=store)
        ctl("commit", "web", store=store)
    return files


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


def a_head_moves_between_modes(files):
    files = dict(files)
    ctl("clone", "web", "moving")
    for number, mode in enumerate(("user", "flat", "stack", "flat", "user", "stack", "user", "user", "flat", "flat")):
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
    daemon = subprocess.Popen(
        [os.path.join(os.path.dirname(guest.PARAMETERS["ctl"]), "blockbtd"), "--root", STORE, "--bootstrap", "none", "--listen", "127.0.0.1:6981"],
        stdout=subprocess.DEVNULL, stderr=open("/mnt/daemon.log", "w"))
    words = [guest.PARAMETERS["ctl"], "--root", STORE, "mount", "busy", MNT]
    end = time.monotonic() + 60
    while not os.path.exists(f"/run/blockbt/{identity(STORE)}/daemon.sock") and time.monotonic() < end:
        time.sleep(0.05)
    run(*words)
    daemon.send_signal(signal.SIGKILL)
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
    refused(3, "umount", "web", store="/mnt/copy")
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


# Which stop points each mode comes by, for a chain without growth whose table is all linear.
COMES_BY = {
    "flat": ("attach.mark attach.state attach.head attach.loop-delta attach.lower attach.loop-head attach.origin attach.image attach.unlock attach.mount "
             "detach.mark detach.unmount detach.flush detach.image detach.origin detach.loop detach.lower detach.state"),
    "stack": "attach.loop-delta attach.zero attach.level attach.image attach.mount detach.mark detach.image detach.level detach.zero detach.loop",
    "user": ("attach.place attach.state attach.head attach.server attach.loop attach.mount "
             "detach.unmount detach.flush detach.loop detach.fuse detach.server detach.place"),
}
# They take a grown chain, or one with thousands of runs: `vm-tests/run parity` makes those devices.
NOT_HERE = {f"{verb}.{word}" for verb in ("attach", "detach") for word in ("pad", "cow", "short")} | {"attach.loop-meta"}


def a_dead_verb_is_cleaned_up_after_at_every_step():
    with open(guest.PARAMETERS["stops"]) as file:
        points = set(re.findall(r'^    "((?:attach|detach)\.[a-z-]+)",$', file.read(), re.M))
    assert points == NOT_HERE.union(*(words.split() for words in COMES_BY.values())), points
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


PART = guest.PARAMETERS["part"]
os.makedirs(MNT)
os.makedirs("/mnt/n")
FILES = make_chain(STORE, 2 if PART == "killed" else 5)
assert_nothing()
if PART == "modes":
    every_mode_shows_the_same(FILES)
    a_head_moves_between_modes(FILES)
    clones_share(FILES)
    tables_can_be_loaded_by_hand()
elif PART == "owners":
    what_is_attached_is_in_use()
    nothing_of_ours_has_to_live(FILES)
    stores_do_not_touch_each_other(FILES)
    a_stranger_with_our_name_stays()
else:
    a_dead_verb_is_cleaned_up_after_at_every_step()
