"""Guest: the kernel drops the snapshot of a mounted image: the host's file system is full, or the origin has holes. `check --repair` brings it
back; an image whose space is reserved notices nothing."""

import errno
import os

import faults
from faults import HOST, Files, attempt, begin, consistent, ctl, drop_caches, end, fail, holes, name_of, nothing_left, run, said, table, unharmed, whole_again


def fill():
    """Takes all of the host's space but a little."""
    with open(f"{HOST}/filling", "ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 20))
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
        file.truncate(max(0, file.seek(0, 2) - (1 << 20)))
        os.fsync(file.fileno())


def status(image):
    """Of its snapshot: the space that it has, or what is wrong with it."""
    return run("dmsetup", "status", name_of("image", image)).split(maxsplit=3)[3]


def space():
    faults.make_host(300 << 20)
    faults.make_base()
    for image, words in (("sparse", ()), ("reserved", ("--reserve",)), ("bounded", ("--reserve", "--limit", "16M"))):
        ctl("clone", "base", image, *words)
    images = [Files(image) for image in ("sparse", "reserved", "bounded")]
    sparse, reserved, bounded = images
    for files in images:
        files.mount("--mode", "flat")
        assert files.write(5) is None
    fill()
    error = None
    for _ in range(2000):
        error = sparse.write(1)
        if error or "Invalid" in status("sparse"):
            break
    print(f"sparse: {len(sparse.synced)} files, {error}, {status('sparse')}", flush=True)
    assert status("sparse") == "Invalid", f"{error}: {status('sparse')}"
    attempt("list")
    attempt("info", "sparse")
    # What is reserved is there to the last block of the file system above.
    error = reserved.write(2000)
    assert error is not None and error.errno == errno.ENOSPC, error
    assert "/" in status("reserved"), status("reserved")
    drop_caches()
    reserved.check()
    faults.base_is_whole(reserved.dir)
    # A head that is full to its limit refuses writes and reads on.
    error = bounded.write(2000)
    print(f"bounded: {len(bounded.synced)} files, {error}, {status('bounded')}", flush=True)
    assert error is not None and status("bounded") == "Overflow", f"{error}: {status('bounded')}"
    sparse.umount_lost()
    reserved.umount()
    bounded.umount_lost()
    nothing_left()
    os.unlink(f"{HOST}/filling")
    code, _, _ = attempt("mount", "sparse", sparse.dir)
    assert code == 5, f"an invalid head was mounted: {code}"
    attempt("check", "sparse")
    ctl("check", "sparse", "--repair")
    ctl("resize", "bounded", "--limit", "48M")
    for files in images:
        for mode in ("flat", "user"):
            files.mount("--mode", mode)
            files.check()
            faults.base_is_whole(files.dir)
            files.umount()
        consistent(files.image)
    bounded.mount("--mode", "flat")
    assert bounded.write(5) is None
    bounded.umount()
    nothing_left()
    (report,) = ctl("check", "--all")
    assert report["findings"] == [], report
    said(", ".join(f"{files.image} {len(files.synced)} synced files" for files in images))


def origin():
    """The origin has holes that are errors: the victim's own, and the lower device that all share."""
    sibling, told = begin(), []
    for number, share in enumerate((0.2, 1.0)):
        image = f"victim-{number}"
        ctl("clone", "base", image)
        files = Files(image)
        files.mount("--mode", "flat")
        assert files.write(8) is None
        os.sync()
        device = name_of("origin", image)
        sound = table(device)
        fail(device, holes(device, share))
        drop_caches()
        error = files.write(30)
        print(f"{share}: {error}, {status(image)}", flush=True)
        unharmed(sibling)
        attempt("info", image)
        attempt("list")
        if status(image) != "Invalid":
            # Else what it still has to write could make it so.
            fail(device, sound + "\n")
        told.append(status(image))
        # An image that is in use, and invalid, can be taken away.
        if told[-1] != "Invalid":
            files.umount()
        else:
            files.umount_lost()
            code, _, complaint = attempt("mount", image, files.dir)
            assert code == 5, f"an invalid head was mounted: {code} {complaint}"
            ctl("check", image, "--repair")
        whole_again(files)
    end(sibling)
    said(", ".join(told))


faults.parts({"space": space, "origin": origin})
