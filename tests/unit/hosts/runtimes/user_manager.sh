#!/bin/sh
# Runs a command beside a real systemd of root as a user that lingers: in namespaces of its own,
# with a cgroup of its own.   user_manager.sh CGROUP COMMAND...
set -e
cgroup=$1
shift
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system /run/user/0 /var/lib/systemd/linger
chmod 700 /run/user/0
mount -t tmpfs tmpfs /var/lib/systemd/linger
touch /var/lib/systemd/linger/root
sh -c 'for procs in /sys/fs/cgroup/*/"$0"/user/cgroup.procs /sys/fs/cgroup/"$0"/user/cgroup.procs; do
  [ ! -e "$procs" ] || echo $$ >"$procs"
done
XDG_RUNTIME_DIR=/run/user/0 exec /lib/systemd/systemd --user' "$cgroup" &
until XDG_RUNTIME_DIR=/run/user/0 systemctl --user show-environment >/dev/null 2>&1; do sleep 0.1; done
exec "$@"
