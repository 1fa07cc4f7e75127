"""Reads OpenSSH client configuration: Host and Match blocks, Include, first value wins."""

from __future__ import annotations

import errno
import getpass
import glob
import os
import re
import shlex
import socket
import stat
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase

from raycluster.core.errors import UsageError
from raycluster.hosts.transports.ssh_options import DEFAULT_CONFIG

LARGEST = 16 << 20


def read_file(path: str | Path) -> bytes:
    """Return a file's bytes, none for the null device, without ever waiting for them.

    Raises OSError, also for a pipe, a device, a name that no file can have, and above 16 MiB.
    """
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "this is not a valid file name")
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise OSError(errno.EISDIR, "is a directory")
        if not stat.S_ISREG(mode) and str(path) != os.devnull:
            raise OSError(errno.EINVAL, "is not a regular file")
        with open(descriptor, "rb", closefd=False) as file:  # a descriptor
            content = file.read(LARGEST + 1)
    finally:
        os.close(descriptor)
    if len(content) > LARGEST:
        raise OSError(errno.EFBIG, f"is larger than {LARGEST >> 20} MiB")
    return content


SYSTEM_CONFIG = Path("/etc/ssh/ssh_config")
_LINE = re.compile(r'"?(\w+)"?(?:\s*=\s*|\s+|$)(.*)', re.ASCII)
_LISTS = {"identityfile", "certificatefile"}
_RAW = {"proxycommand"}
_WAYS = {"proxycommand", "proxyjump"}
_DEEPEST_INCLUDE = 16
_LOWER = str.maketrans(ascii_uppercase, ascii_lowercase)


@dataclass
class HostConfig:
    """What the configuration says about one host name, keys in lower case."""

    name: str
    user: str | None = None
    values: dict[str, list[str]] = field(default_factory=dict)

    def first(self, key: str) -> str | None:
        """Return the first word of a value, or None where nothing was said."""
        words = self.values.get(key)
        return words[0] if words else None

    def said(self, key: str) -> str | None:
        """Return the first word of a value, or None where nothing or `none` was said."""
        word = self.first(key)
        return None if word is None or word.lower() == "none" else word

    def words(self, key: str, default: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the words of a value but `none`, or the default where nothing was said."""
        return tuple(word for word in self.values.get(key, default) if word.lower() != "none")

    def says_yes(self, key: str) -> bool:
        """Tell whether a value is `yes`."""
        return (self.first(key) or "").lower() in ("yes", "true")


def read_config(name: str, config_file: str, user: str | None = None) -> HostConfig:
    """Return what applies to `name`; `user` is the one given outside the configuration.

    As `ssh -F` does, a file other than the default one replaces the system-wide file too.
    `Match canonical`, `final`, `tagged` and `localnetwork` never match. Raises UsageError.
    """
    found = HostConfig(name, user)
    if config_file in ("", "none"):
        return found
    path = Path(expand_home(config_file))
    if config_file != DEFAULT_CONFIG and not os.path.exists(path):  # noqa: PTH110  # never raises
        raise UsageError(f"there is no ssh config {path}", hint="correct config_file")
    _read(path, Path(expand_home("~/.ssh")), found)
    if config_file == DEFAULT_CONFIG:
        _read(SYSTEM_CONFIG, SYSTEM_CONFIG.parent, found)
    return found


def _read(path: Path, base: Path, found: HostConfig, active: bool = True, depth: int = 0) -> None:
    if depth > _DEEPEST_INCLUDE:
        raise UsageError(
            f"{path}: Include is nested too deeply", hint="check for a file that includes itself"
        )
    for number, key, rest in _lines(path):
        try:
            words = [rest] if key in _RAW else _words(rest)
        except ValueError as error:
            raise UsageError(
                f"{path}:{number}: {error}", hint="balance the quotes in that line"
            ) from error
        if key == "host":
            active = matches(words, found.name)
        elif key == "match":
            active = _match(words, found)
        elif active and key == "include":
            for included in _included(words, base):
                _read(included, base, found, active, depth + 1)
        elif active and words and words[0]:
            _keep(found, key, words)


def _lines(path: Path) -> Iterator[tuple[int, str, str]]:
    try:
        text = read_file(path).decode("utf-8", "surrogateescape")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return  # as ssh does
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}",
            hint="make the file readable, or remove the reference to it from the ssh config",
        ) from error
    for number, line in enumerate(text.split("\n"), 1):
        found = _LINE.match(line.partition("\0")[0].strip(" \t\r\f"))
        if found:
            yield number, found[1].lower(), found[2].strip()


def _words(text: str) -> list[str]:
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace_split = True
    lexer.commenters = lexer.escape = ""
    words = list(lexer)
    comment = next((i for i, word in enumerate(words) if word.startswith("#")), len(words))
    return words[:comment]


def _keep(found: HostConfig, key: str, words: list[str]) -> None:
    if key in _WAYS and not _WAYS.isdisjoint(found.values):
        return  # either of them stands for both
    if key in _LISTS:
        found.values.setdefault(key, []).append(words[0])
    else:
        found.values.setdefault(key, words)


def _included(words: list[str], base: Path) -> Iterator[Path]:
    for word in words:
        # Unlike pathlib's these never raise: what there cannot be is not there.
        pattern = str(base / os.path.expanduser(word))  # noqa: PTH111
        yield from map(Path, sorted(glob.glob(pattern)))  # noqa: PTH207


def _match(words: list[str], found: HostConfig) -> bool:
    queue = list(words)
    while queue:
        word = queue.pop(0).lower()
        wanted = not word.startswith("!")
        criterion = word.removeprefix("!")
        if criterion == "all":
            met = True
        elif criterion in ("canonical", "final") or not queue:
            met = False
        else:
            met = _meets(criterion, queue.pop(0), found)
        if met is not wanted:
            return False
    return bool(words)


def _meets(criterion: str, argument: str, found: HostConfig) -> bool:
    local = own_name()
    if criterion == "exec":
        return _succeeds(expand(argument, host_tokens(found)))
    subject = {
        "host": found.first("hostname") or found.name,
        "originalhost": found.name,
        "user": found.user or found.first("user") or local,
        "localuser": local,
    }.get(criterion)
    return subject is not None and matches(argument.split(","), subject)


def _succeeds(command: str) -> bool:
    try:
        argv = (user_shell(), "-c", command)
        nowhere = subprocess.DEVNULL
        done = subprocess.run(argv, check=False, stdin=nowhere, stdout=nowhere, stderr=nowhere)
    except OSError as error:
        raise UsageError(
            f"`Match exec` cannot be run: {error.strerror}", hint="shorten that line"
        ) from error
    return done.returncode == 0


def user_shell() -> str:
    """Return the shell that runs the commands of an ssh config."""
    return os.environ.get("SHELL") or "/bin/sh"


def own_name() -> str:
    """Return the local user's name, or number where the system has no name for it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return str(os.getuid())


def host_tokens(found: HostConfig, host: str = "", port: int = 22) -> dict[str, str]:
    """Return the values of OpenSSH's % tokens for a host."""
    local = socket.gethostname()
    name = host or found.first("hostname") or found.name
    return {
        "%": "%",
        "d": expand_home("~"),
        "h": name,
        "i": str(os.getuid()) if hasattr(os, "getuid") else "0",
        "k": found.first("hostkeyalias") or name,
        "L": local.split(".")[0],
        "l": local,
        "n": found.name,
        "p": str(port),
        "r": found.user or found.first("user") or own_name(),
        "u": own_name(),
    }


def expand(text: str, tokens: Mapping[str, str]) -> str:
    """Replace % tokens; an unknown one stays as it is."""
    return re.sub(r"%(.)", lambda found: tokens.get(found[1], found[0]), text)


def expand_path(text: str, tokens: Mapping[str, str]) -> str:
    """Replace a leading ~, ${NAME} from the environment, and % tokens. Raises UsageError."""
    try:
        named = re.sub(r"\$\{(\w+)\}", lambda found: os.environ[found[1]], text)
    except KeyError as error:
        raise UsageError(
            f"{text}: the variable {error.args[0]} is not set", hint="set it, or correct the path"
        ) from error
    return expand_home(expand(named, tokens))


def expand_home(text: str) -> str:
    """Replace a leading ~ or ~USER. Raises UsageError where there is no such folder."""
    try:
        return str(Path(text).expanduser())
    except RuntimeError as error:
        raise UsageError(
            f"{text}: the home folder does not exist", hint="correct the path, or set HOME"
        ) from error


def lowered(text: str) -> str:
    """Return a text with the letters of ASCII, and no others, in lower case, as OpenSSH does."""
    return text.translate(_LOWER)


def matches(patterns: Iterable[str], name: str) -> bool:
    """Tell whether a pattern matches and none that begins with `!` does."""
    found = False
    for pattern in patterns:
        if _fits(pattern.removeprefix("!"), name):
            if pattern.startswith("!"):
                return False
            found = True
    return found


def _fits(pattern: str, name: str) -> bool:
    if "*" not in pattern and "?" not in pattern:
        return pattern == name
    return fnmatchcase(name, pattern.replace("[", "[[]"))  # it alone gives brackets a meaning
