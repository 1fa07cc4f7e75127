#!/bin/sh
# Lays the files of this folder in their places on this host, as root. Starts nothing.
# With DESTDIR set, below that folder.
set -eu
cd "$(dirname "$0")"
to=${DESTDIR:-}
root={{ root | shell }}
settings=/etc/raycluster/{{ cluster | shell }}
user={{ user | shell }}

id "$user" >/dev/null 2>&1 || {
  echo "there is no user $user here: useradd --system --create-home $user" >&2
  exit 1
}
for file in{% for file in needed %} {{ file | shell }}{% endfor %}; do
  [ -s "secrets/$file" ] || {
    echo "secrets/$file is missing or empty: see README.md" >&2
    exit 1
  }
done

mkdir -p "$to/var/lib/raycluster"
install -d -m 711 -o "$user" "$to$root" # nginx, started by root, has another user reach its folder
for role in{% for role in roles %} {{ role | shell }}{% endfor %}; do
  for from in "files/$role" "secrets/$role"; do
    [ -d "$from" ] || continue
    (cd "$from" && find . -mindepth 1 -type d) | while read -r folder; do
      install -d -m 700 -o "$user" "$to$root/$folder"
    done
    (cd "$from" && find . -type f) | while read -r file; do
      mode=600
      [ ! -x "$from/$file" ] || mode=700
      install -m $mode -o "$user" "$from/$file" "$to$root/$file"
    done
  done
done
install -d -m 755 "$to$settings" "$to/etc/systemd/system"
install -m 644 env/*.env "$to$settings"
install -m 644 units/*.service "$to/etc/systemd/system"
[ -n "$to" ] || systemctl daemon-reload
echo "next: systemctl enable --now{% for unit in units %} {{ unit | shell }}{% endfor %}"
