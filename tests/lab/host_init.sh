#!/bin/bash
# The first process of a lab host, in namespaces of its own: builds the host's root, enters it,
# starts its services and keeps reaping. Its disk is an overlay over this machine's own root.
#
#   host_init.sh FOLDER NAME KIND SSH_PORT CGROUP [VOLUME...]
set -euo pipefail
folder=$1 name=$2 kind=$3 ssh_port=$4 cgroup=$5
shift 5
root=$folder/root disk=$folder/disk

mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=/,upperdir=$disk/changes,workdir=$disk/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount --rbind /sys/fs/cgroup "$root/sys/fs/cgroup"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
for private in tmp home root var/log var/lib/docker var/spool/cron/crontabs; do
  mkdir -p "$root/$private"
  mount --bind "$disk/$private" "$root/$private"
done
for volume in "$@"; do
  mkdir -p "$root$volume"
  mount --bind "$volume" "$root$volume"
  mount -o remount,bind,ro "$root$volume"
done

cd "$root"
pivot_root . .
umount --lazy .
cd /
hostname "$name"
mkdir -p /run/sshd /run/lock

if [[ ! -e /etc/lab_made ]]; then
  useradd --create-home --shell /bin/bash --password '*' ubuntu
  useradd --create-home --shell /bin/bash --password '*' outsider
  if [[ $kind == docker ]]; then
    usermod --append --groups docker ubuntu
  else
    rm -f $(type -ap docker dockerd) # this host has none
  fi
  rm -rf /etc/cron.d/* /etc/crontab
  touch /etc/lab_made
fi

service() { # NAME COMMAND...: write it down for a later start, and start it
  printf '#!/bin/sh\nexec %s\n' "${*:2}" >"/run/start-$1"
  chmod +x "/run/start-$1"
  "/run/start-$1" &
}
service sshd /usr/sbin/sshd -D -f /etc/ssh/lab_sshd_config -p "$ssh_port" -E /var/log/sshd.log
if [[ $kind == docker ]]; then
  service dockerd dockerd --host unix:///run/docker.sock --data-root /var/lib/docker \
    --exec-root /run/docker --pidfile /run/docker.pid --cgroup-parent "$cgroup" \
    '>>/var/log/dockerd.log 2>&1'
else
  service cron cron -f
fi
sleep infinity & # so that the host lives on when its services are stopped
wait
