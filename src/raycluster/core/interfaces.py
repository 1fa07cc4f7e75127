"""The seams between the parts, and the plain values that cross them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from raycluster.core.accelerators.values import Accelerators, Choice
from raycluster.core.cgroups import Limits

ROOT = "{root}"
"""Stands in a Process's argv and env for the folder that its runtime keeps for the cluster."""


class Secret:
    """A value that prints as `***`; only `reveal()` gives it away."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the value itself."""
        return self._value

    @property
    def fits_header(self) -> bool:
        """Whether it can stand in an HTTP header: ASCII in one line, without spaces."""
        return re.fullmatch("[!-~]{1,8192}", self._value) is not None

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> str:
        raise TypeError("a Secret is not pickled")


@dataclass(frozen=True)
class Completed:
    """The end of a command: what a shell says of it (128 + a signal's number), what it wrote."""

    exit_code: int
    stdout: bytes = b""
    stderr: bytes = b""

    @property
    def text(self) -> str:
        """Standard output, decoded, without the last line end."""
        return self.stdout.decode("utf-8", "replace").rstrip("\n")

    @property
    def error_text(self) -> str:
        """The end of standard error, decoded: at most 500 characters, where the cause stands."""
        return self.stderr.decode("utf-8", "replace").strip()[-500:]


FIND_PYTHON = (
    "python=$(command -v python || command -v python3) || "
    "{ echo 'there is no python' >&2; exit 127; }"
)
"""A line for a shell inside a node: `python` is its Python, which vLLM's image has as python3."""
PYTHON = ("sh", "-c", f'{FIND_PYTHON}; exec "$python" "$@"', "python")
"""Begins a command that a node's Python runs."""

Channel = Literal["stdout", "stderr"]
Address = str | tuple[str, int]
"""A Unix socket's absolute path, or a host and port, both as seen from the far side."""


class ByteStream(Protocol):
    """A connected byte stream; what `socket.socket` offers and no more."""

    def sendall(self, data: bytes, /) -> None: ...
    def recv(self, size: int, /) -> bytes: ...
    def settimeout(self, seconds: float | None, /) -> None: ...
    def shutdown(self, how: int, /) -> None: ...
    def close(self) -> None: ...


@runtime_checkable
class Shell(Protocol):
    """A place where commands run and files are written: a host, or the inside of a process's box.

    `argv` stays a tuple until the implementation quotes it, once. `env` is added to what is there,
    which on a host is what `clean_environment` keeps of the login's.
    Commands do not read the caller's terminal.
    """

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout: float | None = 60.0,
    ) -> Completed:
        """Run to the end; `timeout` in seconds. Raises HostError only when it could not be run.

        A command that writes more than `untrusted.ANSWER_BYTES` is ended: AnswerError.
        """

    def stream(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        quiet: float | None = None,
    ) -> Iterator[tuple[Channel, bytes]]:
        """Yield output as it comes; closing the iterator ends the command.

        Raises CommandError, with its `status`, at the end of a command that did not end with 0, and
        HostError where it says nothing for `quiet` seconds.
        """

    def put(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        """Write a file whole or not at all (temporary name, then rename); parents are made 0700."""


class Transport(Shell, Protocol):
    """One reached host."""

    @property
    def address(self) -> str:
        """The IP address that the host was reached at, or 127.0.0.1 for this machine."""

    @property
    def alive(self) -> bool:
        """Whether the connection to the host stands, as far as is known without asking it."""

    def connect(self, address: Address, *, timeout: float = 10.0) -> ByteStream:
        """Open a stream to an address as the host sees it. Raises HostError."""

    def close(self) -> None:
        """Close everything that was opened. May be called twice."""


Gpus = Choice
"""All of a host's GPUs, the first so many, or those with these indices or UUIDs."""


@dataclass(frozen=True)
class Volume:
    """A folder or named volume of the host, seen by the process at `target`."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True)
class BoxOptions:
    """What a container has besides; a runtime without containers takes none of it.

    `devices` are as Docker writes them, `PATH[:PATH[:rwm]]`; a limit of -1 is none.
    """

    devices: tuple[str, ...] = ()
    ulimits: Mapping[str, int] = field(default_factory=dict)
    capabilities: tuple[str, ...] = ()
    ipc: str = ""

    @property
    def facts(self) -> list[object]:
        """What is set, for a fingerprint; nothing where nothing is."""
        every = (self.devices, dict(self.ulimits), self.capabilities, self.ipc)
        return [every] if any(every) else []


@dataclass(frozen=True)
class RegistryLogin:
    """What a registry of images asks for; `server` is how its images' names begin."""

    server: str
    username: Secret
    password: Secret


@dataclass(frozen=True)
class Process:
    """Something that should run on a host, whatever runs it there.

    It works in a folder of its own with a short path, for sockets, that is gone with the process.
    `argv` and `env` may hold ROOT. What changes `fingerprint` makes a running one
    out of date. `ports` maps the names under `[ports]` to what the process will listen on. `files`
    (path under ROOT -> content) are there before it runs, and stand in the fingerprint as
    `files_id`, which is keyed for they may hold secrets. `live_files` it reads again by itself:
    they make nothing out of date. Where it does so only when it is told, `reload` is a command that
    tells it, run inside of its box, and `live_id` tells live files apart, keyed like `files_id`; it
    stands in the file `live_id_path` there. `note` is what a person should know when it starts.
    `login` is for the registry of its image, where that asks for one. `program` is what a host
    without Docker must have installed for it, besides the Python environment.

    What the host at hand gives it makes nothing out of date: `limits`, within which it has to stay,
    and `more`, which follows `argv` there. Nor does `digest`: which of the images that its registry
    has had under the name `image` is meant, "" for any.
    """

    role: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    gpus: Gpus = 0
    ports: Mapping[str, int] = field(default_factory=dict)
    volumes: tuple[Volume, ...] = ()
    image: str = ""
    shm_size: str = ""
    box: BoxOptions = BoxOptions()
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    files_id: str = ""
    live_files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    live_id: str = ""
    reload: tuple[str, ...] = ()
    note: str = ""
    login: RegistryLogin | None = field(default=None, repr=False)
    program: str = ""
    limits: Limits | None = None
    more: tuple[str, ...] = ()
    digest: str = ""

    def __post_init__(self) -> None:
        if bool(self.files) != bool(self.files_id):
            raise ValueError("files and files_id come together")
        if bool(self.reload) != bool(self.live_id):
            raise ValueError("reload and live_id come together")

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits over all that a running process is made from."""
        volumes = [(v.source, v.target, v.read_only) for v in self.volumes]
        facts: list[object] = [self.role, self.argv, dict(self.env), self.gpus, dict(self.ports)]
        facts += [volumes, self.image, self.shm_size, self.files_id]
        facts += self.box.facts  # nothing by default: a cluster of before does not restart
        canonical = json.dumps(facts, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Versions:
    """What a node's environment holds; an empty string means absent.

    `added` is the folder under ROOT with what its runtime added to it, where it did; `image` the
    image's name and `@` its digest, for one that came from a registry.
    """

    python: str = ""
    ray: str = ""
    vllm: str = ""
    transformers: str = ""
    added: str = ""
    image: str = ""


class KnownVersions(NamedTuple):
    """What is known of a node's environment before anything is brought to its host.

    Where it is not `whole`, what is empty is not known.
    """

    versions: Versions
    whole: bool


def live_id_path(role: str) -> str:
    """Return the file under ROOT that tells which live files a process has read."""
    return f"{role}/live-id"


Health = Literal["running", "restarting", "stopped"]


@dataclass(frozen=True)
class Found:
    """One of our processes, as seen on a host; `versions` were probed when it was started.

    `owner` is whose cluster it was started for, "" where that was not noted.
    """

    role: str
    fingerprint: str
    health: Health
    versions: Versions = Versions()
    detail: str = ""
    started: str = ""
    owner: str = ""


def cluster_of(cluster: str, owner: str) -> str:
    """Return a cluster in words."""
    return f"the cluster {cluster} of {owner}" if owner else f"the cluster {cluster}"


PROGRAMS = ("nginx", "prometheus", "grafana")
"""What services need on a host without Docker."""


@dataclass(frozen=True)
class Facts:
    """What a host offers: read when something is to be started there, and by `check`.

    `cpus` and `memory_bytes` are what processes of ours may take, of which `limits` tells more.
    `disk_free_bytes` is None where it could not be looked at; `disk_problem` says why. `holders`
    names who listens on a port. `epoch` is the host's clock. `programs` are those of PROGRAMS that
    are installed. `machine` is the processor's kind as `uname` names it, `glibc` a version, empty
    where there is another libc.
    """

    gpus: Accelerators = field(default_factory=Accelerators)
    cpus: int = 0
    memory_bytes: int = 0
    disk_free_bytes: int | None = 0
    disk_problem: str = ""
    listening: frozenset[int] = frozenset()
    holders: Mapping[int, str] = field(default_factory=dict)
    epoch: float = 0.0
    programs: frozenset[str] = frozenset()
    machine: str = ""
    glibc: str = ""
    limits: Limits | None = None


@dataclass(frozen=True)
class PrepareForecast:
    """What `prepare` would find on a host, and where paths of the process lie there.

    `what` names what the process runs from, an image or an environment, and `there` says whether it
    is on the host and is taken as it is; `folder` is where it lies. `image` is what its registry
    can be asked for. `held_bytes` are those of what is there, where they can be told;
    `download_bytes` and `stored_bytes` those of what is not there, where they are known by
    themselves. `places` are paths of the host by those that were asked for, empty for what lies in
    an image. `withheld` says that it is not there, and that the spec lets nothing bring it.
    """

    what: str
    there: bool
    folder: str = ""
    image: str = ""
    held_bytes: int | None = None
    download_bytes: int | None = None
    stored_bytes: int | None = None
    places: Mapping[str, str] = field(default_factory=dict)
    boot: str = ""
    withheld: bool = False


Files = Mapping[str, bytes]
"""Relative path under ROOT -> content. Owned by who runs the process, with `file_mode`."""


def file_mode(content: bytes) -> int:
    """Return the mode of one of our files: nobody else's, and a script can be run."""
    return 0o700 if content.startswith(b"#!") else 0o600


Tell = Callable[[str], None]
"""Takes one short line of progress about the host at hand."""


@runtime_checkable
class ImageStore(Protocol):
    """A runtime that keeps images. All errors are HostErrors that name the host."""

    def socket_path(self) -> str:
        """Return where the host's own programs reach what keeps the images."""

    def layers(self, image: str, digest: str = "") -> tuple[str, ...]:
        """Return the digests of the layers of what is run as an image; none without it."""

    def digest(self, image: str) -> str:
        """Return which of a registry's images has this name here; "" without, or for another's."""

    def registry_digest(self, image: str, login: RegistryLogin | None) -> str:
        """Return what the registry has under this name now, "" where it does not tell."""

    def pullable(self, process: Process) -> bool:
        """Ask the registry of the process's image as a pull would; False where that tells nothing.

        Raises ImageError where a pull would fail.
        """

    def save(self, image: str) -> Iterator[bytes]:
        """Yield an archive of an image."""

    def load(self, archive: Iterable[bytes]) -> None:
        """Take the images of an archive."""


class Runtime(Protocol):
    """One way to run processes on a host. All errors are HostErrors that name the host."""

    def observe(self) -> tuple[Found, ...]:
        """Return our cluster's processes on this host; changes nothing."""

    def prepare(self, process: Process, tell: Tell) -> Versions:
        """Bring the image or environment to the host and return what is in it; starts nothing."""

    def outlook(self, process: Process, paths: Sequence[str]) -> PrepareForecast:
        """Return what `prepare` would bring, and where `paths`, as the process has them, lie.

        A path may begin with ROOT. Changes nothing, and needs no process to run.
        """

    def known_versions(self, process: Process) -> KnownVersions:
        """Return what `prepare` would return, as far as it is known before; changes nothing."""

    def verify(self, processes: Sequence[Process]) -> tuple[str, ...]:
        """Make sure that these can run here, and return what a person should know of it.

        Changes nothing. Raises RuntimeUnavailableError.
        """

    def start(self, process: Process, versions: Versions, files: Files, tell: Tell) -> None:
        """Replace whatever has this role by `process`, with `files` in place before it runs."""

    def remove(self, role: str | None = None, *, purge: bool = False) -> tuple[str, ...]:
        """Remove one role, or everything of this cluster with its files; return what was removed.

        `purge` also removes the image or the shared environment.
        """

    def inside(self, role: str) -> Shell:
        """Return a shell inside the process's box: same files, environment and user."""

    def read(self, path: str) -> bytes:
        """Return a small file under ROOT, whether anything runs or not; empty where there is none.

        Raises RecordError where it is large, and where something of ours is there that cannot tell.
        """

    def neighbours(self) -> Mapping[int, str]:
        """Return which other clusters run here, in words, by the ports that were noted of them."""

    def sockets(self) -> frozenset[int]:
        """Return the inodes of the sockets that our cluster's processes have open here."""

    def logs(
        self, role: str, *, follow: bool, tail: int | None, since: float | None
    ) -> Iterator[bytes]:
        """Yield what the process wrote; `tail` in lines, `since` in seconds before now.

        A piece may be empty, so that who follows can end it while nothing is written.
        """
