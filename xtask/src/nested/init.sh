#!/bin/busybox sh
# The first program of the nested host: makes a system around /dev/kvm, runs the one command, and says how it ended.
#
# Ports of the virtio console: 1 the command's standard input, 2 its output, 3 its errors, 4 what this program says; what comes
# from there means nothing but the interrupt.
# Behind all output comes the mark, by which the other side knows that it has everything.

export PATH=/bin

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm /run /tmp /root
mount -t devpts -o ptmxmode=0666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
chmod 1777 /tmp
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
ln -sf pts/ptmx /dev/ptmx
hostname nested
ip link set lo up
for size in /sys/kernel/mm/hugepages/hugepages-*kB; do
    size=${size##*-}
    mkdir -p "/dev/hugepages-$size"
    mount -t hugetlbfs -o "pagesize=${size%B}" hugetlbfs "/dev/hugepages-$size"
done

# Also what the ports need, so that a failure is kept until there is one; the console has it at once.
while read -r module; do
    insmod "/lib/modules/$module.ko" 2>/run/insmod || echo "failed $(cat /run/insmod)" | tee -a /run/failed
done </etc/nested/modules

# A file system on a disk that is a file in memory, of so many mebibytes as the word `nested.ext4=` of the kernel's command line says.
ext4() {
    truncate -s "$1M" /dev/shm/ext4 && /sbin/mke2fs -q -t ext4 -E lazy_itable_init=0,lazy_journal_init=0 /dev/shm/ext4 &&
        mkdir -p /mnt && mount -t ext4 -o loop /dev/shm/ext4 /mnt
}
for word in $(cat /proc/cmdline); do
    case $word in
    nested.ext4=*) ext4 "${word#*=}" 2>/run/ext4 || echo "failed $(cat /run/ext4)" | tee -a /run/failed ;;
    esac
done

# The ports are announced by messages, so they are there only after a moment.
while [ ! -c /dev/vport0p4 ]; do usleep 1000; done
exec 4<>/dev/vport0p4
# A program on each CPU is woken by it: an interrupt for each of them, wherever that of the port goes.
keep=
wakes=
cpu=1
while [ "$cpu" -lt "$(nproc)" ]; do
    mkfifo "/run/wake$cpu"
    taskset -c "$cpu" cat "/run/wake$cpu" >/dev/null &
    keep="$keep $!"
    wakes="$wakes /run/wake$cpu"
    cpu=$((cpu + 1))
done
taskset -c 0 tee $wakes <&4 >/dev/null &
keep="$keep $!"
[ ! -e /run/failed ] || cat /run/failed >&4

# The other side gives up who is not heard of for minutes.
while sleep 10; do echo alive >&4; done &
keep="$keep $!"

mkfifo /run/held
/etc/nested/hold >/run/held &
keep="$keep $!"
read -r _ </run/held || echo "failed no machine can be made" >&4

# Which calls are made under filters, if that is to be known.
if [ -e /etc/nested/record ]; then
    . /etc/nested/record
    start 2>/run/record || echo "failed $(cat /run/record)" >&4
fi

# Pipes, which every program can use as such: a port can be opened once, a pipe again by /dev/stdout.
mkfifo /run/stdin /run/stdout /run/stderr
for port in 2/stdout 3/stderr; do
    { cat "/run/${port#*/}" && cat /etc/nested/mark; } >"/dev/vport0p${port%/*}" &
    keep="$keep $!"
done
cat /dev/vport0p1 >/run/stdin &
stdin=$!
(. /etc/nested/command) </run/stdin >/run/stdout 2>/run/stderr 4>&-
status=$?

# What the command has left behind ends with it.
for process in /proc/[0-9]*; do
    process=${process#/proc/}
    case " $keep 1 " in
    *" $process "*) ;;
    *) kill -9 "$process" ;;
    esac
done 2>/dev/null
[ ! -e /etc/nested/record ] || record >&4
echo "status $status" >&4
wait
while :; do sleep 60; done
