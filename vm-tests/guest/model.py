"""What must be on the disks of a store's images, told by marks; knows of no power and no kernel.

A mark is what a workload said before or after it did something, one line of JSON without blanks:
  ["b",verb,...] ["e",verb,...]  a verb begins, and has ended. One at a time.
  ["w",image,file,[first,count,version]...]  these blocks of the file are synced
  ["d",image,file]  the file may be gone from now on
Every block says whose it is, where it belongs and which version it is; versions only grow, over all images."""

import copy
import hashlib
import json
import struct

BLOCK = 4096
MAGIC = b"powercut"
HEAD = struct.Struct("<8sIIIQ")


def block(uid, file, number, version):
    """The bytes of one block."""
    head = HEAD.pack(MAGIC, uid, file, number, version)
    return head + hashlib.blake2b(head).digest() * 63 + bytes(64 - HEAD.size)


def says(data):
    """(uid, file, number, version) of a block that is whole, else None."""
    magic, *key = HEAD.unpack_from(data)
    return tuple(key) if magic == MAGIC and data == block(*key) else None


class Image:
    def __init__(self, uid, fs, size):
        self.uid, self.fs, self.size = uid, fs, size
        # {file: {block: version}}: what is synced, and what is sealed.
        self.synced, self.sealed = {}, {}

    def wrong(self, file, number, data):
        """What is wrong with a block that was read, or None. A newer version than the one synced is one that was under way."""
        wanted, found = self.synced[file][number], says(data)
        if found is None:
            return f"file {file} block {number}: want version {wanted}, found {'zeros' if not any(data) else 'torn or foreign data ' + data[:32].hex()}"
        uid, its_file, its_number, version = found
        if (its_file, its_number) != (file, number) or version < wanted or (version > wanted and uid != self.uid):
            return f"file {file} block {number}: want version {wanted}, found image {uid} file {its_file} block {its_number} version {version}"
        return None


class Model:
    def __init__(self):
        self.images, self.doing, self.version, self.uids = {}, None, 0, 0

    def read(self, marks):
        for mark in marks:
            if mark.startswith("["):
                self.tell(json.loads(mark))
        return self

    def tell(self, event):
        what, *words = event
        if what == "b":
            self.doing = words
        elif what == "e":
            assert self.doing == words, f"{words} ends, {self.doing} had begun"
            self.images, self.doing = self.after(), None
        elif what == "w":
            image, file, *runs = words
            for first, count, version in runs:
                self.images[image].synced.setdefault(file, {}).update({number: version for number in range(first, first + count)})
                self.version = max(self.version, version)
        elif what == "d":
            self.images[words[0]].synced.pop(words[1], None)

    def after(self):
        """The images as they are when the verb that is under way has ended."""
        images = copy.deepcopy(self.images)
        verb, name, *words = self.doing
        if verb == "create":
            self.uids = max(self.uids, words[0])
            images[name] = Image(*words)
        elif verb == "clone":
            target, uid = words
            self.uids = max(self.uids, uid)
            images[target] = Image(uid, images[name].fs, images[name].size)
            images[target].synced, images[target].sealed = copy.deepcopy(images[name].sealed), copy.deepcopy(images[name].sealed)
        elif verb == "commit":
            images[name].sealed = copy.deepcopy(images[name].synced)
        elif verb == "resize":
            images[name].size = words[0]
        elif verb == "rename":
            images[words[0]] = images.pop(name)
        elif verb == "rm":
            del images[name]
        else:
            assert verb in ("flatten", "gc", "mount", "umount", "attach", "detach"), verb
        return images

    def allowed(self):
        """What the store's images may be: as before the verb under way, or as after it."""
        return [self.images] + ([self.after()] if self.doing else [])
