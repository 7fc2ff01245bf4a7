"""Guest: what lies below a mounted image fails: writes with errors, writes that get lost, blocks that cannot be read, a device or a loop that
somebody else changes.

What was synced before is there afterwards, nothing wrong is ever read without an error, and images that share the chain notice nothing."""

import os
import subprocess

import dm
import faults
import guest
from faults import CHANCE, Beneath, Files, begin, consistent, ctl, drop_caches, end, fail, holes, nothing_left, run, said, table, unharmed, unmount, whole_again


def victim_over(image):
    """A fresh clone, attached, with a device of the test's below its snapshot, and mounted."""
    ctl("clone", "base", image)
    ctl("attach", image, "--mode", "flat")
    files = Files(image)
    return files, Beneath(image)


def flakey():
    """Writes of the COW device fail, or get lost, or all of it is gone."""
    guest.modprobe("dm-flakey")
    sibling, synced = begin(), 0
    for round_number, features in enumerate([("error_writes",), ("drop_writes",), (), ("error_writes",), ("drop_writes",), ()]):
        files, beneath = victim_over(f"victim-{round_number}")
        assert files.write(CHANCE.randrange(1, 12)) is None
        before = list(files.synced)
        beneath.flakey(*features)
        error = files.write(20)
        print(f"{features}: {len(before)} synced before, then {error}, {beneath.status()}", flush=True)
        assert error is not None or features == ("drop_writes",), f"{features}: no write failed"
        unharmed(sibling)
        beneath.gone()
        # A sync that was answered while writes got lost promised nothing that anybody could keep.
        whole_again(files, before if features == ("drop_writes",) else None)
        synced += len(before)
        unharmed(sibling)
    end(sibling)
    said(f"{synced} synced files")


def dust():
    """Blocks of the COW device cannot be read."""
    guest.modprobe("dm-dust")
    sibling, failed = begin(), 0
    for number in range(3):
        files, beneath = victim_over(f"victim-{number}")
        assert files.write(30) is None
        os.sync()
        fail(beneath.name, f"0 {beneath.sectors} dust {beneath.number} 0 4096\n")
        # The COW device's first chunks are its metadata, which nobody reads again.
        used = int(beneath.status().split()[3].split("/")[0]) // 8
        for block in CHANCE.sample(range(16, used), used // (4 << number)):
            run("dmsetup", "message", beneath.name, "0", "addbadblock", str(block))
        run("dmsetup", "message", beneath.name, "0", "enable")
        drop_caches()
        whole = files.read()
        failed += len(files.synced) - whole
        assert whole < len(files.synced), "no read failed"
        assert "Invalid" not in beneath.status(), "a read error costs the snapshot"
        unharmed(sibling)
        run("dmsetup", "message", beneath.name, "0", "disable")
        drop_caches()
        beneath.gone()
        whole_again(files)
    end(sibling)
    said(f"{failed} reads failed")


def shared():
    """The device that all images of a chain share has holes for a while: reads there fail for all, and nothing is lost for any."""
    sibling = begin()
    others = []
    for number in range(3):
        ctl("clone", "base", f"other-{number}")
        others.append(Files(f"other-{number}"))
        others[-1].mount("--mode", "flat")
        assert others[-1].write(3) is None
    os.sync()
    (lower,) = [name for name in faults.devices() if "-lower-" in name]
    sound = table(lower)
    fail(lower, holes(lower, 0.3))
    drop_caches()
    failed = 0
    for files in others:
        for name in os.listdir("/mnt/tree"):
            try:
                with open(f"{files.dir}/{name}", "rb") as file, open(f"/mnt/tree/{name}", "rb") as want:
                    assert file.read() == want.read(), f"{files.image}: {name} holds something else, without an error"
            except OSError:
                failed += 1
        files.check()
    assert failed, "no read failed"
    fail(lower, sound + "\n")
    drop_caches()
    for files in others:
        faults.base_is_whole(files.dir)
        assert files.write(2) is None
        files.check()
        files.umount()
    unharmed(sibling)
    end(sibling)
    said(f"{failed} reads failed")


def loops():
    """Somebody detaches our loops by hand, below images that are mounted."""
    faults.make_host(300 << 20)
    faults.make_base()
    images = []
    for number in range(3):
        ctl("clone", "base", f"image-{number}")
        images.append(Files(f"image-{number}"))
        images[-1].mount("--mode", "flat")
        assert images[-1].write(2) is None
    for device in faults.loops().values():
        run("losetup", "--detach", device)
    for files in images:
        assert files.write(5) is None
        files.check()
    drop_caches()
    (shown,) = [image for image in ctl("list") if image["name"] == "image-0"]
    assert shown["dir"] == images[0].dir, shown
    # One more, above a loop that is on its way out.
    ctl("clone", "base", "late")
    images.append(Files("late"))
    images[-1].mount("--mode", "flat")
    assert images[-1].write(2) is None
    for files in images[:3]:
        files.umount()
    images[3].check()
    faults.base_is_whole(images[3].dir)
    images[3].umount()
    nothing_left()
    for files in images:
        files.mount("--mode", "flat")
        files.check()
        faults.base_is_whole(files.dir)
        files.umount()
        consistent(files.image)
    nothing_left()
    said(f"{len(images)} images")


def flush():
    """The host's disk fails with the last flush alone. The head is in the host's memory, and what is written over again needs no metadata, so that the
    snapshot notices nothing: who detaches is the only one who can tell."""
    guest.modprobe("dm-flakey")
    with open("/mnt/host.img", "wb") as file:
        file.truncate(256 << 20)
    # Larger sectors than our loops have: none over a file there can do direct I/O.
    disk = run("losetup", "--find", "--show", "--sector-size", "4096", "/mnt/host.img")
    sectors = dm.sectors(disk)
    node = dm.create("host", f"0 {sectors} linear {disk} 0\n", False)
    run("mkfs.ext4", "-q", "-m", "0", node)
    os.makedirs(faults.HOST)
    run("mount", node, faults.HOST)
    faults.make_base()
    ctl("clone", "base", "victim")
    (attached,) = ctl("attach", "victim", "--mode", "flat")
    (head,) = [device for name, device in faults.loops().items() if name == faults.name_of("head", "victim")]
    with open(f"/sys/block/{os.path.basename(head)}/loop/dio") as file:
        assert file.read().strip() == "0", "the head is not cached"
    for synced in (True, False):
        with open(attached["device"], "r+b", buffering=0) as file:
            file.write(CHANCE.randbytes(1 << 18))
            if synced:
                os.fsync(file.fileno())
    fail("host", f"0 {sectors} flakey {disk} 0 0 3600 1 error_writes\n")
    status = run("dmsetup", "status", faults.name_of("image", "victim"))
    assert "/" in status.split()[3], status
    code, _, complaint = faults.attempt("detach", "victim")
    fail("host", f"0 {sectors} linear {disk} 0\n")
    assert code == 1 and "not all that was written" in complaint and f"flush {head}" in complaint, f"{code} {complaint}"
    nothing_left()
    # Who asked for it is dead: it is told to whoever comes next.
    unmount(faults.HOST)
    subprocess.run(["e2fsck", "-fy", node])
    run("mount", node, faults.HOST)
    ctl("clone", "base", "mounted")
    files = Files("mounted")
    files.mount("--mode", "flat")
    assert files.write(3) is None
    code, _, complaint = faults.attempt("umount", "mounted", BLOCKBT_STOP_AT="detach.unmount")
    assert code == -9, f"{code} {complaint}"
    fail("host", f"0 {sectors} flakey {disk} 0 0 3600 1 error_writes\n")
    code, _, complaint = faults.attempt("list")
    fail("host", f"0 {sectors} linear {disk} 0\n")
    (warning,) = [line for line in complaint.splitlines() if line.startswith("blockbt-ctl: warning: leftovers are taken away")]
    assert code == 0 and 'image "mounted" is detached, and not all that was written' in warning and ": flush /dev/loop" in warning, f"{code} {complaint}"
    nothing_left()
    said("a failed flush is told, also by a sweep")


def release():
    """An attach that fails takes away what its image stood on, though it was there before: who had left it may leave it to us."""
    faults.make_host(300 << 20)
    faults.make_base()
    for image in ("one", "two"):
        ctl("clone", "base", image)
    (attached,) = ctl("attach", "two", "--mode", "flat")
    with open(attached["device"], "r+b") as file:
        file.write(bytes(1 << 16))
    ctl("detach", "two")
    ctl("attach", "one", "--mode", "flat")
    code, _, complaint = faults.attempt("detach", "one", BLOCKBT_STOP_AT="detach.origin")
    assert code == -9, f"{code} {complaint}"
    assert any("-lower-" in name for name in faults.devices()), faults.devices()
    # As if somebody had tried a moment ago: verbs on other images leave it alone for a minute.
    with open(f"/run/blockbt/{faults.identity()}/doing-{faults.name_of('image', 'one').split('-')[-1]}", "a") as file:
        file.write("resisted\n")
    os.makedirs("/mnt/two")
    code, _, complaint = faults.attempt("mount", "two", "/mnt/two", "--mode", "flat")
    assert code == 1 and "mount at /mnt/two" in complaint, f"{code} {complaint}"
    # The loop of one's head is left to verbs on that.
    left = faults.devices() + sorted(faults.loops())
    assert left == [faults.name_of("head", "one")], left
    files = Files("one")
    files.mount("--mode", "flat")
    faults.base_is_whole(files.dir)
    files.umount()
    nothing_left()
    said("nothing stays")


faults.parts({"flakey": flakey, "flush": flush, "release": release, "dust": dust, "shared": shared, "loops": loops})
