"""Hosts as people give them: `root@10.0.0.1:55089`, or the ssh command that a provider shows."""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from raycluster.core.errors import UsageError

HINT = "use user@address:port, or a full ssh command"
_COMMAND = re.compile(r"\s*(?:\$\s+)?(?:\S*[/\\])?ssh(?:\.exe)?(?:\s|$)")
_OPTIONS_WITH_VALUE = set("bBcDeEFIiJLlmOoPpQRSWw")  # of OpenSSH's client
_LONE_BACKSLASH = re.compile(r"""'[^']*'|"(?:[^"\\]|\\.)*"|\\(?P<plain>[^\W_])|\\.""", re.DOTALL)

# What is no way to the host: said to be left out.
_LEFT_OUT = {
    **dict.fromkeys("LRD", "forwards are made by `raycluster tunnel`"),
    **dict.fromkeys("AaXxYfgMNnqsTtVvGyOQe", "it only affects interactive sessions"),
    "C": "raycluster does not compress",
}
_OF_A_SESSION = {
    *("localforward", "remoteforward", "dynamicforward", "exitonforwardfailure", "gatewayports"),
    *("forwardagent", "forwardx11", "forwardx11trusted", "requesttty", "sessiontype", "sendenv"),
    *("setenv", "escapechar", "visualhostkey", "loglevel", "stdinnull", "forkafterauthentication"),
    *("controlmaster", "controlpath", "controlpersist", "addkeystoagent", "remotecommand"),
    *("permitlocalcommand", "localcommand", "hashknownhosts", "updatehostkeys"),
}
_OWN_WAY = {
    **dict.fromkeys(
        ("serveraliveinterval", "serveralivecountmax", "tcpkeepalive"),
        "raycluster checks the connection itself",
    ),
    **dict.fromkeys(
        ("batchmode", "numberofpasswordprompts", "connectionattempts"),
        "raycluster does not use passwords, and retries itself",
    ),
    "compression": _LEFT_OUT["C"],
}
_SURE = {
    "passwordauthentication": "no",
    "kbdinteractiveauthentication": "no",
    "challengeresponseauthentication": "no",
    "pubkeyauthentication": "yes",
    "preferredauthentications": "publickey",
}
"""Settings and the one value that raycluster has anyway."""


@dataclass
class _Host:
    """The keys of a host's table, and what is left out of it."""

    text: str
    table: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def say(self, key: str, value: object) -> None:
        """Set a key; a second value for it is refused, though ssh would take the first."""
        if self.table.setdefault(key, value) != value:
            raise self.refusal(
                f"gives both {self.table[key]!r} and {value!r} for {key}", "remove one of them"
            )

    def refusal(self, what: str, hint: str) -> UsageError:
        """Return the error about this host."""
        return UsageError(f"{self.text!r} {what}", where="--host", hint=hint)

    def only_in_config(self, option: str, line: str) -> UsageError:
        """Return the error about an option that only the ssh config can say."""
        host = self.table.get("host") or "HOST"
        return self.refusal(
            f"has {option}, which cluster.toml has no setting for",
            f"write `{line}` under `Host {host}` in ~/.ssh/config, which raycluster reads, and "
            "remove it here",
        )


def parse_host(given: str, left_out: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Return the keys of a host's table. Raises UsageError for what names no host.

    `left_out` is told of every option that does not matter for the spec.
    """
    if given.strip() == "local":
        return {"transport": "local"}
    host = _Host(given)
    if _COMMAND.match(given):
        _ssh_command(host)
    else:
        _place(host, given.strip())
    if not host.table.get("host") or any(str(v).startswith("-") for v in host.table.values()):
        raise UsageError(f"no host in {given!r}", where="--host", hint=HINT)
    for option, why in host.left_out.items():
        left_out(f"{host.table['host']}: {option} is ignored: {why}")
    return host.table


def _place(host: _Host, text: str) -> None:
    uri = text.startswith("ssh://")
    user, at, place = text.removeprefix("ssh://").rstrip("/").rpartition("@")
    if uri:
        user = unquote(user.partition(";")[0])
    if at and ":" in user:
        raise UsageError(
            f"{place!r} contains a password", where="--host", hint="log in with a key instead"
        )
    colons = place.count(":")
    if match := re.fullmatch(r"\[([^\]]+)\](?::(\d+))?", place):
        name, port = match[1], match[2]
    elif colons > 1 and "[" not in place:
        name, port = place, None
        before, _, last = place.rpartition(":")
        if last.isdecimal() and _is_address(before):
            raise UsageError(
                f"{text!r} is ambiguous: it may end with a port",
                where="--host",
                hint=f"[{before}]:{last} or [{place}]",
            )
    elif match := re.fullmatch(r"([^:\s]+)(?::(\d+))?", place):
        name, port = match[1], match[2]
    else:
        raise UsageError(f"no host in {text!r}", where="--host", hint=HINT)
    host.table["host"] = name
    if port is not None:
        host.say("port", _port(port))
    if user:
        host.say("user", user)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True


def _ssh_command(host: _Host) -> None:
    try:
        words = shlex.split(_LONE_BACKSLASH.sub(_doubled, host.text.lstrip(" \t$")))[1:]
    except ValueError as error:
        raise UsageError(
            f"cannot read {host.text!r}: {error}", where="--host", hint=HINT
        ) from error
    options, places = _options(words)
    if places:
        _place(host, places[0])
    if places[1:]:
        command = shlex.join(places[1:])
        raise host.refusal(f"ends with a command (`{command[:80]}`)", "remove the command")
    for letter, value in options:
        _short(host, letter, value)
    if host.table.pop("identities_only", False) and "identity_file" not in host.table:
        raise host.only_in_config("-o IdentitiesOnly=yes without -i", "IdentitiesOnly yes")


def _doubled(found: re.Match[str]) -> str:
    r"""Keep a backslash before a letter, as in `ACME\jane`: nobody writes it for the shell."""
    return f"\\{found[0]}" if found["plain"] else found[0]


def _options(words: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the one-letter options with their values, and the words that are not options."""
    options: list[tuple[str, str]] = []
    places: list[str] = []
    remaining = iter(words)
    for word in remaining:
        if word == "--":
            places += remaining
        elif len(places) > 1 or not re.match(r"-[A-Za-z0-9]", word):
            places.append(word)
        else:
            for position, letter in enumerate(word[1:], start=2):
                if letter in _OPTIONS_WITH_VALUE:
                    options.append((letter, word[position:] or next(remaining, "")))
                    break
                options.append((letter, ""))
    return options, places


def _short(host: _Host, letter: str, value: str) -> None:
    shown = f"-{letter} {value}".strip()
    if letter == "p":
        host.say("port", _port(value))
    elif letter in _KEPT:
        host.say(_KEPT[letter], value)
    elif letter == "o":
        _long(host, value)
    elif letter in _LEFT_OUT:
        host.left_out[shown] = _LEFT_OUT[letter]
    elif letter == "F":
        raise host.refusal(
            f"has {shown}, which cluster.toml has no setting for",
            f"write `Include {value}` into ~/.ssh/config, which raycluster reads, and remove it "
            "here",
        )
    elif letter in _CONFIG:
        raise host.only_in_config(shown, f"{_CONFIG[letter]} {value}".strip())
    else:
        raise host.refusal(f"has {shown}, which raycluster does not support", "remove it")


_KEPT = {"l": "user", "i": "identity_file", "J": "proxy_jump"}
_CONFIG = {
    **{"4": "AddressFamily inet", "6": "AddressFamily inet6", "b": "BindAddress"},
    **{"B": "BindInterface", "c": "Ciphers", "m": "MACs", "I": "PKCS11Provider"},
    **{"K": "GSSAPIAuthentication yes", "k": "GSSAPIDelegateCredentials no"},
}
_WORDS = {
    "user": "user",
    "identityfile": "identity_file",
    "proxyjump": "proxy_jump",
    "userknownhostsfile": "known_hosts",
}


def _long(host: _Host, text: str) -> None:
    """Take `Keyword=value` or `Keyword value` of an -o."""
    keyword, _, value = text.strip().replace("=", " ", 1).partition(" ")
    value = value.strip()
    unquoted = value[1:-1] if re.fullmatch('".*"', value) else value
    key, shown = keyword.lower(), f"-o {text}"
    if key == "port":
        host.say("port", _port(unquoted))
    elif key == "userknownhostsfile" and unquoted in ("/dev/null", "none"):
        raise host.refusal(
            f"has {shown}, which discards host keys",
            "remove it; to accept a new host's key use -o StrictHostKeyChecking=accept-new",
        )
    elif key in _WORDS and unquoted and not (key == "userknownhostsfile" and " " in unquoted):
        host.say(_WORDS[key], unquoted)
    elif key == "connecttimeout" and re.fullmatch("[1-9][0-9]{0,4}", unquoted):
        host.say("connect_timeout", int(unquoted))
    elif key == "stricthostkeychecking":
        _checking(host, shown, unquoted.lower())
    elif key == "identitiesonly" and unquoted.lower() in ("yes", "true"):
        host.table["identities_only"] = True  # the file of -i is tried first anyway
    elif key == "hostname":
        raise host.refusal(f"has {shown}", f"use {unquoted} as the host")
    elif key in _OF_A_SESSION:
        host.left_out[shown] = "it only affects interactive sessions"
    elif key in _OWN_WAY:
        host.left_out[shown] = _OWN_WAY[key]
    elif _SURE.get(key) == unquoted.lower():
        host.left_out[shown] = "raycluster does so anyway"
    else:
        raise host.only_in_config(shown, f"{keyword} {value}".strip())


def _checking(host: _Host, shown: str, value: str) -> None:
    if value == "accept-new":
        host.say("host_keys", "accept-new")
    elif value in ("yes", "true", "ask"):
        host.say("host_keys", "strict")
    else:
        raise host.refusal(
            f"has {shown}, which allows man-in-the-middle attacks",
            "use accept-new to trust a new host's key, or remove it and pin host_key",
        )


def _port(text: str) -> int:
    if re.fullmatch(r"[0-9]{1,5}", text) and 0 < int(text) < 65536:
        return int(text)
    raise UsageError(f"{text!r} is not a port", where="--host", hint=HINT)
