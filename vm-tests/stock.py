"""Debian's own kernel under qemu's emulation, with the same guest scripts: its root is the host's, read-only, by virtiofs.

The kernel is taken out of Debian's cloud kernel package and kept in target/stock-kernel; nothing is installed for it. Ends only what it
started: qemu and the two virtiofs daemons are a process group of their own."""

import gzip
import os
import shutil
import subprocess
import time

from vm import HERE, Failure, Vm

VIRTIOFSD = "/usr/lib/qemu/virtiofsd"
# What has to be there before the host's root can be mounted, and with it all other modules.
FIRST_MODULES = ("virtio_pci", "virtiofs", "virtio_blk")
INIT = """#!/bin/busybox sh
/bin/busybox mount -t proc none /proc
/bin/busybox mount -t devtmpfs none /dev
for module in /modules/*; do /bin/busybox insmod $module; done
/bin/busybox mount -t virtiofs -o ro root /root
for word in $(/bin/busybox cat /proc/cmdline); do case $word in bbt_init=*) next=${word#*=} ;; esac; done
/bin/busybox umount /proc
/bin/busybox umount /dev
exec /bin/busybox switch_root /root $next
"""


def run(*words, **more):
    done = subprocess.run(words, text=True, capture_output=True, **more)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def kernel(target):
    """Fetches and unpacks the newest cloud kernel, once; returns (its directory, its version)."""
    keep = os.path.join(target, "stock-kernel")
    depends = run("apt-cache", "depends", "linux-image-cloud-amd64").split()
    package = next((word for word in depends if word.startswith("linux-image-") and word.endswith("-cloud-amd64") and word[12].isdigit()), None)
    if package is None:
        raise SystemExit("apt knows no linux-image-cloud-amd64: run apt-get update first")
    version = package.removeprefix("linux-image-")
    there = os.path.join(keep, version)
    if not os.path.isdir(there):
        draft = f"{there}.{os.getpid()}"
        os.makedirs(draft)
        run("apt-get", "-o", "APT::Sandbox::User=root", "download", package, cwd=draft)
        (archive,) = os.listdir(draft)
        run("dpkg-deb", "-x", archive, "unpacked", cwd=draft)
        unpacked = os.path.join(draft, "unpacked")
        run("depmod", "-b", unpacked, version)
        with open(os.path.join(unpacked, "initrd"), "wb") as file:
            file.write(initrd(unpacked, version, draft))
        os.rename(unpacked, there)
        shutil.rmtree(draft)
    return there, version


def initrd(unpacked, version, draft):
    tree = os.path.join(draft, "initrd")
    for name in ("bin", "modules", "root", "proc", "dev"):
        os.makedirs(os.path.join(tree, name))
    shutil.copy("/bin/busybox", os.path.join(tree, "bin"))
    paths = []
    for module in FIRST_MODULES:
        for line in run("modprobe", "-d", unpacked, "-S", version, "--show-depends", module).splitlines():
            path = line.split()[1]
            if line.startswith("insmod ") and path not in paths:
                paths.append(path)
    for number, path in enumerate(paths):
        shutil.copy(path, os.path.join(tree, "modules", f"{number:02}-{os.path.basename(path)}"))
    with open(os.path.join(tree, "init"), "w") as file:
        file.write(INIT)
    os.chmod(os.path.join(tree, "init"), 0o755)
    names = "\n".join(os.path.relpath(os.path.join(top, name), tree) for top, dirs, files in os.walk(tree) for name in dirs + files)
    archive = subprocess.run(["cpio", "--create", "--format=newc", "--quiet"], cwd=tree, input=names.encode(), capture_output=True, check=True)
    return gzip.compress(archive.stdout, 1)


class StockVm(Vm):
    """A guest as `Vm`, some ten times slower."""

    drive = "/dev/vd"

    def start(self, script, memory):
        there, version = kernel(os.path.dirname(os.path.dirname(self.window)))
        shares = {"root": ("/", "always"), "window": (self.window, "none")}
        devices = ["-object", f"memory-backend-memfd,id=memory,size={memory},share=on", "-numa", "node,memdev=memory"]
        daemons = []
        for tag, (source, cache) in shares.items():
            socket = os.path.join(self.scratch, tag)
            daemons.append(f"{VIRTIOFSD} --socket-path={socket} -o source={source} -o sandbox=chroot -o cache={cache} -o log_level=err &")
            devices += ["-chardev", f"socket,id={tag},path={socket}", "-device", f"vhost-user-fs-pci,chardev={tag},tag={tag}"]
        words = ["console=ttyS0", "panic=-1", "quiet", f"bbt_init={HERE}/guest/init.sh", "bbt_host=virtiofs", "bbt_window=window"]
        words += [f"bbt_script={HERE}/guest/{script}", f"bbt_modules={there}/lib/modules"]
        qemu = ["qemu-system-x86_64", "-accel", "tcg", "-m", memory, "-smp", "1", "-nographic", "-no-reboot", "-nic", "none", *devices]
        qemu += ["-kernel", f"{there}/boot/vmlinuz-{version}", "-initrd", f"{there}/initrd", "-append", " ".join(words)]
        qemu += [word for path in self.disks for word in ("-drive", f"file={path},format=raw,if=virtio,cache=writeback")]
        # The daemons end with their connection. A shell keeps all three in one process group.
        waits = " ".join(os.path.join(self.scratch, tag) for tag in shares)
        shell = [*daemons, f"for socket in {waits}; do until [ -S $socket ]; do sleep 0.05; done; done", 'exec "$@"']
        return ["sh", "-c", "\n".join(shell), "sh", *qemu]

    def finish(self):
        start = time.monotonic()
        try:
            super().finish()
        except Failure as failure:
            raise Failure(f"{failure} ({time.monotonic() - start:.0f} s, stock kernel)", self.window) from None
