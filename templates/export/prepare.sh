#!/bin/sh
# Runs as root before everything else: lays files/ROLE and secrets/ROLE into the volume of each
# role named, where the user of the role's image can read them and make folders of its own. The
# volumes are below Docker's own folder, which root alone can enter.
set -eu
umask 022

for file in $NEEDED; do
  if [ ! -s "/from/secrets/$file" ]; then
    echo "secrets/$file is missing or empty: see README.md" >&2
    exit 1
  fi
done

for role in "$@"; do
  chmod 1777 "/to/$role"
  for from in "/from/files/$role" "/from/secrets/$role"; do
    [ -d "$from" ] || continue
    cd "$from"
    find . -mindepth 1 -type d | while read -r folder; do
      mkdir -p "/to/$role/$folder"
      chmod 1777 "/to/$role/$folder"
    done
    find . -type f | while read -r file; do
      cp "$file" "/to/$role/$file.new"
      case $(head -c 2 "$file") in '#!') chmod 755 "/to/$role/$file.new" ;; *) chmod 644 "/to/$role/$file.new" ;; esac
      mv -f "/to/$role/$file.new" "/to/$role/$file"
    done
  done
done
