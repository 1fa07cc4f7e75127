# Shared by the scripts beside it: sourced, never run. Leaves the shell in the checkout.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
checkout=$PWD
cache=${XDG_CACHE_HOME:-$HOME/.cache}/raycluster

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
fail() { say "$*"; exit 1; }
hash_of() { cat "$@" | sha256sum | cut -c1-12; }
is_debian_root() { [[ $EUID == 0 && -e /etc/debian_version ]] && command -v apt-get >/dev/null; }

# Print the first Python of 3.11 or newer; $PYTHON goes first.
find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      "$candidate" -c 'import sys; print(sys.executable)'
      return
    fi
  done
  fail "no Python 3.11 or newer: install python3, or set PYTHON to its path"
}

# Say how uv is to find the CPU build of torch: wheels at hand, else PyTorch's own index.
torch_options() {
  if compgen -G "${PIP_FIND_LINKS:-/nonexistent}/torch-*+cpu-*.whl" >/dev/null; then
    printf -- '--find-links=%s' "$PIP_FIND_LINKS"
  else
    printf -- '--torch-backend=cpu'
  fi
}

# Install Debian packages without starting what they bring: a Docker daemon, an SSH server.
apt_install() {
  local policy=/usr/sbin/policy-rc.d
  say "installing Debian packages: $*"
  if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap "rm -f $policy" RETURN EXIT
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq >&2
  apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}
