"""Checks a store after a power cut against what its model allows. What was found wrong is raised as `Wrong`."""

import copy
import os

import dm
import guest
from model import BLOCK, says

# The exit code that says so.
DAMAGED = 5


class Wrong(Exception):
    pass


def listed(path):
    return sorted(os.listdir(path)) if os.path.isdir(path) else []


class Survivors:
    """One check of `store`, whose images are shown by `mode`. What had to be repaired is counted in `repaired`."""

    def __init__(self, store, model, mode, rng):
        self.store, self.model, self.rng, self.repaired = store, model, rng, 0
        self.mode = ["--mode", mode] if mode else []
        self.directory = "/mnt/survivors"
        os.makedirs(self.directory, exist_ok=True)

    def ctl(self, *words, codes=(0,)):
        try:
            return guest.ctl(self.store, *words, codes=codes)
        except guest.Refused as refused:
            raise Wrong(str(refused)) from refused

    def check(self):
        """All of it. Leaves nothing attached."""
        names = {image["name"] for image in self.ctl("list")}
        fitting = [images for images in self.model.allowed() if set(images) == names]
        if not fitting:
            raise Wrong(f"the store has {sorted(names)}; allowed are {[sorted(images) for images in self.model.allowed()]}, doing {self.model.doing}")
        self.tidy()
        self.verified()
        self.images = fitting[-1]
        for name in self.to_look_at():
            self.look_into(name, self.images[name], {images[name].size for images in fitting})
        if (self.model.doing or [None])[0] == "commit":
            self.commit(self.model.doing[1])
        if self.rng.random() < 0.25:
            self.go_on()
        return self

    def commit(self, name):
        """Whether it was sealed before the cut or was not, it is now."""
        self.ctl("commit", name)
        self.images[name].sealed = copy.deepcopy(self.images[name].synced)

    def to_look_at(self):
        """What a verb or a writer was at work on, and one of the others."""
        busy = {name for name in ["web", "raw", *(self.model.doing or [])[1:]] if name in self.images}
        others = sorted(set(self.images) - busy)
        return sorted(busy) + ([self.rng.choice(others)] if others else [])

    def tidy(self):
        for name in ("journal", "tmp"):
            if listed(f"{self.store}/{name}"):
                raise Wrong(f"{name} holds {listed(f'{self.store}/{name}')} after the first verb")

    def verified(self):
        """Every sealed delta verifies, and the heads are sound, if need be after a repair."""
        (report,) = self.ctl("check", "--all", codes=(0, DAMAGED))
        if report["findings"]:
            print(f"to be repaired: {report['findings']}", flush=True)
            self.repaired += 1
            self.ctl("check", "--repair", "--all")
            (report,) = self.ctl("check", "--all", codes=(0, DAMAGED))
        if report["findings"]:
            raise Wrong(f"check: {report['findings']}")

    def look_into(self, name, image, sizes):
        """Every synced block is there, and the file system is sound."""
        (attached,) = self.ctl("attach", name, *self.mode)
        try:
            device = attached["device"]
            size = dm.sectors(device) * 512
            if size not in sizes:
                raise Wrong(f"{name} has {size} bytes, allowed are {sizes}")
            image.size = size
            if image.fs == "none":
                self.look_at(name, image, 0, device)
            else:
                self.look_at_tree(name, image, device)
        finally:
            self.ctl("detach", name)

    def look_at_tree(self, name, image, device):
        try:
            # Clones have one UUID, and xfs remembers one that it had to shut down.
            dm.mount(device, self.directory, image.fs, "nouuid" if image.fs == "xfs" else "")
        except dm.Failed as error:
            raise Wrong(f"{name}: {error}") from error
        try:
            for file in image.synced:
                self.look_at(name, image, file, f"{self.directory}/{file}")
        finally:
            dm.umount(self.directory)
        try:
            dm.run(*(["xfs_repair", "-n"] if image.fs == "xfs" else ["e2fsck", "-fn"]), device)
        except dm.Failed as error:
            raise Wrong(f"{name}: {error}") from error

    def look_at(self, name, image, file, path):
        """The blocks of one file; newer versions than the synced ones are taken over into the model."""
        blocks = image.synced.get(file, {})
        if not os.path.exists(path):
            raise Wrong(f"{name}: file {file} is gone, which has {len(blocks)} synced blocks")
        wrong = []
        try:
            with open(path, "rb") as source:
                for number in sorted(blocks):
                    source.seek(number * BLOCK)
                    data = source.read(BLOCK)
                    said = image.wrong(file, number, data) if len(data) == BLOCK else f"file {file} ends before block {number}"
                    if said:
                        wrong.append(said)
                    else:
                        blocks[number] = says(data)[3]
        except OSError as error:
            raise Wrong(f"{name}: file {file}: {error}") from error
        if wrong:
            raise Wrong(f"{name}: {len(wrong)} of {len(blocks)} blocks: {'; '.join(wrong[:3])}")

    def go_on(self):
        """The store is of use: what is there can be sealed, cloned and collected."""
        name = self.rng.choice(sorted(self.images))
        self.commit(name)
        self.ctl("clone", name, "after-the-cut")
        self.ctl("rm", "after-the-cut")
        self.ctl("gc")
        self.verified()
