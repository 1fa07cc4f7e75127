"""What a spec says about reaching one host, checked before anything is dialled."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from raycluster.core.errors import SpecError
from raycluster.core.usernames import wrong_user

DEFAULT_CONFIG = "~/.ssh/config"
PULSE_S = 5.0
SILENCE_S = 20.0
"""Every `PULSE_S` a peer is asked for a sign of life; `SILENCE_S` without any end a connection."""
_ODD = re.compile(r"[\s\x00-\x1f\x7f'\"`$\\;&|<>(){}]")
FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]+={0,2}")
_PLACE = re.compile(
    r"\[([^\]]+)\](?::([0-9]{1,5}))?"  # [fe80::1]:22
    r"|([^:\[\]]+)(?::([0-9]{1,5}))?"  # host:22
    r"|([\da-fA-F.]*:[\da-fA-F.]*:\S*)"  # fe80::1
)


@dataclass(frozen=True)
class SshOptions:
    """How to reach a host; what is None is looked up in the ssh config, then in OpenSSH's defaults.

    `host_key` pins a fingerprint ("SHA256:..."), `proxy_jump` is written as for `ssh -J`,
    `connect_timeout` is in seconds and holds for each step: dial, banner, key exchange, login.
    """

    host: str
    port: int | None = None
    user: str | None = None
    identity_file: str | None = None
    known_hosts: str | None = None
    host_keys: Literal["strict", "accept-new"] = "strict"
    host_key: str | None = None
    proxy_jump: str | None = None
    config_file: str = DEFAULT_CONFIG
    connect_timeout: float = 10.0

    def hop(
        self, user: str | None, host: str, port: int | None, *, proxy_jump: str | None
    ) -> SshOptions:
        """Return how a jump host is reached: likewise, but for a pin, which is the host's own."""
        place = replace(self, host=host, port=port, user=user)
        return replace(place, host_key=None, proxy_jump=proxy_jump)


def check_options(where: str, options: SshOptions) -> None:
    """Refuse names that another program could take for an option or for shell text."""
    if not options.host or options.host.startswith("-") or _ODD.search(options.host):
        raise SpecError(f"host {options.host!r} is not a name", where=where, hint="correct host")
    wrong = "" if options.user is None else wrong_user(options.user)
    if wrong:
        raise SpecError(
            f"user {options.user!r} is not a name: {wrong}", where=where, hint="correct user"
        )
    if options.port is not None and not 0 < options.port < 65536:
        raise SpecError(f"port {options.port} is not a port", where=where, hint="use 1 to 65535")
    if options.host_key is not None and not FINGERPRINT.fullmatch(options.host_key):
        raise SpecError(
            f"host_key {options.host_key!r} is not a fingerprint",
            where=where,
            hint="it looks like SHA256:..., as `ssh-keygen -lf KEY.pub` prints it",
        )


def jump_hops(where: str, text: str | None) -> tuple[tuple[str | None, str, int | None], ...]:
    """Return (user, host, port) of every hop of "user@host:port,second"; none for "none"."""
    if not text or text == "none":
        return ()
    return tuple(_hop(where, part.strip()) for part in text.split(","))


def _hop(where: str, text: str) -> tuple[str | None, str, int | None]:
    bare = text.removeprefix("ssh://").rstrip("/")
    user, at, place = bare.rpartition("@")
    found = _PLACE.fullmatch(place)
    if found is None or (at and not user):
        raise SpecError(
            f"jump host {text[:80]!r} cannot be read",
            where=where,
            hint="write it as user@host:port",
        )
    host = found[1] or found[3] or found[5]
    port = found[2] or found[4]
    return user or None, host, int(port) if port else None
