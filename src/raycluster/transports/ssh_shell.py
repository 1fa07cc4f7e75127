"""Turns argv tuples into one line for the login shell of the far side: the only quoting there is.

sshd hands a single string to the user's login shell, whichever that is: what is built here is
read alike by POSIX shells, zsh and fish.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence

_PLAIN = re.compile(r"[A-Za-z0-9_./:,-]+")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_PUT = """set -e
umask 077
case $1 in /*) target=$1 ;; *) target=./$1 ;; esac
if [ -d "$target" ]; then echo "$target: Is a directory" >&2; exit 1; fi
folder=${target%/*}
mkdir -p -m 700 -- "${folder:-/}"
part=${folder}/.$4.part
trap 'rm -f -- "$part"' EXIT
trap 'exit 1' HUP INT TERM
cat > "$part"
if [ "$(($(wc -c < "$part")))" -ne "$3" ]; then
  echo "the content did not arrive whole" >&2
  exit 1
fi
chmod "$2" "$part"
mv -f -- "$part" "$target"
"""

_KILL = """mine() { grep -ls -- "$1" /proc/[0-9]*/environ | tr -dc '0-9\\n'; }
for sign in TERM KILL; do
  for wait in 1 2 3 4 5 6 7 8 9 10; do
    found=$(mine "$1")
    [ -n "$found" ] || exit 0
    [ "$wait" -gt 1 ] || kill "-$sign" $found 2>/dev/null
    sleep 0.1
  done
done
"""

_WHY = """if [ ! -e "$1" ]; then echo missing
elif [ ! -S "$1" ]; then echo other
elif [ ! -r "$1" ] || [ ! -w "$1" ]; then echo denied
elif [ -r /proc/net/unix ] && ! grep -q " 00010000 .* $1\\$" /proc/net/unix; then echo stale
else echo fine; fi
"""


def command_text(
    argv: Sequence[str], env: Mapping[str, str] | None = None, *, mark: str = ""
) -> str:
    """Return the line that runs `argv`; `env` becomes `env K=V`, which others on the host can read.

    `mark` is a variable, K=V, by which `kill_argv` finds the command and its children again.
    Raises ValueError for an empty argv, a NUL or a name that no variable can have.
    """
    words = list(argv)
    if not words:
        raise ValueError("there is no command")
    wrong = [name for name in env or {} if not _NAME.fullmatch(name)]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is not a name for a variable")
    settings = [f"{name}={value}" for name, value in (env or {}).items()]
    if settings or mark:
        words = ["env", *([mark] if mark else []), *settings, *words]
    if any("\0" in word for word in words):
        raise ValueError("a command cannot hold a NUL character")
    # Not every shell replaces itself by its last command, and then signals end up in the wrong one.
    return " ".join(("exec", *map(_quoted, words)))


def _quoted(word: str) -> str:
    if _PLAIN.fullmatch(word):
        return word
    # fish reads a backslash between single quotes as an escape; outside of them all shells do.
    inner = [part.replace("'", "'\"'\"'") for part in word.split("\\")]
    return "\\\\".join(f"'{part}'" if part else "" for part in inner) or "''"


def put_argv(path: str, size: int, mode: int) -> tuple[str, ...]:
    """Return the command that writes its input to `path` whole or not at all."""
    return ("sh", "-c", _PUT, "put", path, f"{mode:o}", str(size), secrets.token_hex(8))


def new_mark() -> str:
    """Return a variable, K=V, for one command alone."""
    return f"RAYCLUSTER_RUN={secrets.token_hex(8)}"


def kill_argv(mark: str) -> tuple[str, ...]:
    """Return the command that ends everything that runs with a mark (where there is a /proc)."""
    return ("sh", "-c", _KILL, "kill", mark)


def why_refused_argv(path: str) -> tuple[str, ...]:
    """Return the command that prints what is wrong with a Unix socket, in one word."""
    return ("sh", "-c", _WHY, "why", path)
