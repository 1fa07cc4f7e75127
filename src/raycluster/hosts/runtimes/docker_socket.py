"""Which of a host's sockets leads to its Docker: the spec's, or that of the host's own `docker`.

The order is that of Docker's command line: `DOCKER_HOST`, the context in use, /var/run/docker.sock;
where none of them is, the places where rootless Docker and the desktop programs put theirs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from raycluster.core.accelerators.host import by_word
from raycluster.core.errors import RuntimeUnavailableError
from raycluster.core.interfaces import Transport
from raycluster.core.untrusted import text_of

DEFAULT = "/var/run/docker.sock"
EXAMPLE = f'[runtime] socket = "{DEFAULT}"'
NATIVE = 'or set runtime.kind = "native" for this host'

_LOOK = r"""
say() { printf '%s %s\n' "$1" "$(printf %s "$2" | tr '\n' ' ')"; }
run=${XDG_RUNTIME_DIR:-/run/user/$(id -u)}
case $1 in
  '~/'*) say wanted "$HOME${1#\~}"; exit ;;
esac
if [ -n "${DOCKER_HOST-}" ]; then
  say variable "$DOCKER_HOST"
elif { [ -n "${DOCKER_CONTEXT-}" ] ||
    grep -q '"currentContext"' "${DOCKER_CONFIG:-$HOME/.docker}/config.json" 2>/dev/null; } &&
    command -v docker >/dev/null 2>&1; then
  if said=$(timeout 5 docker context inspect --format '{{.Endpoints.docker.Host}}' 2>&1); then
    say context "$said"
  else
    say broken "${said:-docker context inspect ended with $?}"
  fi
fi
for each in /var/run/docker.sock "$run/docker.sock" "$HOME/.docker/run/docker.sock" \
    "$HOME/.docker/desktop/docker.sock" "$HOME/.colima/default/docker.sock" \
    "$HOME/.colima/docker.sock" "$HOME/.rd/docker.sock" "$HOME/.orbstack/run/docker.sock" \
    /run/podman/podman.sock "$run/podman/podman.sock"; do
  [ ! -S "$each" ] || say there "$each"
done
true
"""


@dataclass(frozen=True)
class SocketChoice:
    """A socket's path on a host, and what names it; `others` are sockets that are there as well."""

    path: str
    named: str = ""
    others: tuple[str, ...] = ()


def find(transport: Transport, wanted: str, host: str) -> SocketChoice:
    """Return where the host's Docker is asked; `wanted` is the spec's path, empty for any.

    Raises RuntimeUnavailableError where the host's own setting leads to another machine.
    """
    if wanted.startswith("/"):
        return SocketChoice(wanted, "`socket` under [runtime]")
    done = transport.run(("sh", "-c", _LOOK, "sh", wanted))
    return choose(text_of(done, "look for Docker's socket", host), host)


def choose(text: str, host: str) -> SocketChoice:
    """Return the socket by what the host's shell said."""
    told = by_word(text)
    there = tuple(told.get("there", ()))
    for said in told.get("broken", ()):
        raise RuntimeUnavailableError(
            f"the context of its `docker` cannot be read: {said[:300].strip()}",
            where=host,
            hint=f"correct it there (`docker context ls`), or set {EXAMPLE}",
        )
    for word, name in (
        ("wanted", "`socket` under [runtime]"),
        ("variable", "DOCKER_HOST of its login"),
        ("context", "the context of its `docker`"),
    ):
        for value in told.get(word, ()):
            if path := _path(value, name, host):
                return SocketChoice(path, name, tuple(each for each in there if each != path))
    first = there[0] if there else DEFAULT
    return SocketChoice(first, "", there[1:])


def _path(value: str, name: str, host: str) -> str:
    """Return the path in an address of Docker's, empty for the default one."""
    path = value.removeprefix("unix://")
    if not path or path.startswith("/"):
        return path
    kind = re.match(r"[a-z]{1,10}(?=://)", value)
    what = f"Docker by {kind[0]}" if kind else "this address of Docker"
    raise RuntimeUnavailableError(
        f"{name} is {value[:200]}: {what} is not supported, only a Unix socket on the host",
        where=host,
        hint=f"set a socket on the host, such as {EXAMPLE}; if Docker runs on another machine, set "
        f"`host` to that machine's address; {NATIVE}",
    )
