"""Turns argv tuples into one line for the login shell of the far side: the only quoting there is.

sshd hands a single string to the user's login shell, whichever that is. What is built here is read
alike by POSIX shells, zsh, fish and csh, as it holds no quotes, no `!` and no line ends: a program
for `sh`, encoded. It cleans the environment, and writes a mark to both channels before and after
the command, which `ssh_output.OwnOutput` reads.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence

from raycluster.core.clean_environment import KEPT, SET

_PLAIN = re.compile(r"[A-Za-z0-9_./:,=-]+")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WORD = re.compile(r"(?:\\\\0[0-7]{3}|[^\\]){1,150}")  # of the line: csh takes no long ones

NO_INPUT = 98
"""The status of the line where another program read what comes before the command's input."""

_DECODE = "set -f;IFS=;eval $(printf %b $*)"

# Options that a start-up file exported (SHELLOPTS) end here, and its folder, functions, variables.
_BEGIN = r"""set +eux
cd
LC_ALL=C
IFS='
'
for k in $(export -p);do
case $k in export\ *)k=${k#export };k=${k%%=*};case $k in
*[!A-Za-z0-9_]*);;*)case :KEPT: in *:$k:*);;*)command unset $k;esac;esac;esac
done
if [ "${BASH_VERSION-}" ];then for k in $(compgen -A function);do unset -f $k;done;fi
set +f
"""

_MARKS = r"""printf '\036%s\n' MARK
printf '\036%s\n' MARK >&2
"""
_INPUT = f"""read -r k
[ "$k" = MARK ] || exit {NO_INPUT}
"""
# The shell's own words ("Killed") are none of the command's.
_RUN = r"""exec 3>&2 2>/dev/null
(exec "$@" 2>&3 3>&-)
k=$?
printf '\036%s %s\n' MARK $k
printf '\036%s %s\n' MARK $k >&3
exit $k"""

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
    argv: Sequence[str], env: Mapping[str, str] | None = None, *, mark: str, has_input: bool = False
) -> str:
    """Return the line that runs `argv` with `env` beside what `clean_environment` keeps.

    Others on the host can read both. `mark` is from `new_mark`: it stands around the output, and
    `kill_argv` finds the command and its children by it. With `has_input` a line with the mark has
    to come before the input, or the command does not run, but ends with NO_INPUT: what a start-up
    file has read would be missing. Input that is sent before both marks came may be read by one.
    Raises ValueError for an empty argv, a NUL or a name that no variable can have.
    """
    words = list(argv)
    if not words:
        raise ValueError("there is no command")
    wrong = [name for name in env or {} if not _NAME.fullmatch(name)]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is not a valid variable name")
    variables = {**SET, "RAYCLUSTER_RUN": mark, **(env or {})}
    if any("\0" in word for word in (*words, *variables.values())):
        raise ValueError("a command cannot contain a NUL character")
    begin = _BEGIN.replace("KEPT", ":".join(KEPT))
    settings = " ".join(f"{name}={_quoted(value)}" for name, value in variables.items())
    run = (_MARKS + _INPUT * has_input + _RUN).replace("MARK", mark)
    program = f"{begin}export {settings}\nset -- {' '.join(map(_quoted, words))}\n{run}"
    encoded = re.sub(rb"[^A-Za-z0-9_./:,-]", _octal, program.encode("utf-8", "surrogateescape"))
    # Not every shell replaces itself by its last command: signals would end up in the wrong one.
    decode = re.sub(r"[^A-Za-z0-9_=-]", r"\\\g<0>", _DECODE)
    return " ".join(("exec sh -c", decode, "sh", *_WORD.findall(encoded.decode("ascii"))))


def _octal(sign: re.Match[bytes]) -> bytes:
    return b"\\\\0%03o" % ord(sign[0])


def _quoted(word: str) -> str:
    return word if _PLAIN.fullmatch(word) else "'" + word.replace("'", "'\\''") + "'"


def put_argv(path: str, size: int, mode: int) -> tuple[str, ...]:
    """Return the command that writes its input to `path` whole or not at all."""
    return ("sh", "-c", _PUT, "put", path, f"{mode:o}", str(size), secrets.token_hex(8))


def new_mark() -> str:
    """Return a mark for one command alone."""
    return secrets.token_hex(8)


def kill_argv(mark: str) -> tuple[str, ...]:
    """Return the command that ends everything that runs with a mark (where there is a /proc)."""
    return ("sh", "-c", _KILL, "kill", f"RAYCLUSTER_RUN={mark}")


def why_refused_argv(path: str) -> tuple[str, ...]:
    """Return the command that prints what is wrong with a Unix socket, in one word."""
    return ("sh", "-c", _WHY, "why", path)
