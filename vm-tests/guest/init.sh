#!/bin/sh
# First process of the guest: mounts, modules, one Python script, a result file, off.
# The guest's root is the host's, read-only; the only writable place that outlives it is /run/window.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/mnt TMPDIR=/mnt LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev 2>/dev/null
mount -t tmpfs none /mnt
mount -t tmpfs none /run
# User-mode Linux starts /sbin/hotplug, which nobody has, for each device that comes and goes: a process each, dearer with each head there is.
[ ! -e /sys/kernel/uevent_helper ] || echo >/sys/kernel/uevent_helper
mkdir -p /dev/shm /run/window /mnt/lib
mount -t tmpfs none /dev/shm
for word in $(cat /proc/cmdline); do
    case $word in bbt_*=*) eval "${word%%=*}=\${word#*=}" ;; esac
done
case ${bbt_host:-hostfs} in
hostfs) mount -t hostfs none /run/window -o "$bbt_window" ;;
virtiofs) mount -t virtiofs "$bbt_window" /run/window ;;
esac
ln -s "${bbt_modules:-/usr/lib/uml/modules}" /mnt/lib/modules
modprobe -d /mnt loop max_loop=0
modprobe -d /mnt -a dm-mod dm-snapshot dm-zero fuse xfs
ip link set lo up 2>/dev/null
if /usr/bin/python3 "$bbt_script" >/run/window/guest.log 2>&1; then
    echo ok >/run/window/result
else
    echo "the guest's script ended with $?" >/run/window/result
fi
sync
poweroff -f
