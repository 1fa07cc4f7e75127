"""What Docker, its SDK and its socket report, said as our own errors about one host."""

from __future__ import annotations

import http.client
import shlex
import struct
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import docker.errors
import requests.exceptions
import urllib3.exceptions

from raycluster.contracts import ByteStream, Transport
from raycluster.errors import (
    AnswerError,
    ConnectionLostError,
    HostError,
    ImageError,
    RuntimeUnavailableError,
    UnreachableError,
)
from raycluster.untrusted import not_understood

NATIVE = 'or set runtime.kind = "native" for this host'
TOOLKIT = (
    "install nvidia-container-toolkit, run `sudo nvidia-ctk runtime configure --runtime=docker` "
    f"and restart Docker; {NATIVE}"
)


_STRANGE = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError),
    *(struct.error, tarfile.TarError, http.client.HTTPException),
)


class _Known(NamedTuple):
    needle: str
    error: type[HostError]
    what: str
    hint: str


_KNOWN = (
    _Known(
        "error setting rlimit",
        HostError,
        "Docker may not raise a limit that the container shall have: {said}",
        "set lower `ulimits` under [runtime], such as memlock = 8388608: with IPC_LOCK that limit "
        "does not count",
    ),
    _Known(
        "could not select device driver",
        RuntimeUnavailableError,
        "Docker cannot give GPUs to containers: it has no NVIDIA runtime",
        TOOLKIT,
    ),
    _Known(
        "Container Runtime Hook directly",
        RuntimeUnavailableError,
        "NVIDIA's container toolkit is in CDI mode, and its setting could not be read",
        'make /etc/nvidia-container-runtime/config.toml readable, or set its mode to "auto"',
    ),
    _Known(
        "nvidia-container-cli",
        RuntimeUnavailableError,
        "NVIDIA's container runtime cannot start: {said}",
        "run `nvidia-smi` on the host; if that works, restart Docker",
    ),
    _Known(
        "no space left on device",
        HostError,
        "the disk is full",
        "free some space, for example with `docker system prune`",
    ),
    _Known(
        "source path does not exist",
        HostError,
        "a volume's folder is missing: {said}",
        "make it on the host, or correct runtime.volumes",
    ),
    _Known(
        "is already in use by container",
        HostError,
        "a container that is not ours has the name that we need: {said}",
        "remove or rename it, or give this cluster another name",
    ),
    _Known(
        "exec format error",
        ImageError,
        "the image is made for another processor",
        "choose an image for this host's architecture",
    ),
    _Known(
        'exec: "',
        ImageError,
        "the image lacks a program: {said}",
        "choose an image that holds ray and an engine",
    ),
    _Known(
        "OCI runtime create failed",
        HostError,
        "Docker cannot start the container: {said}",
        "the reason is the last part of the line",
    ),
    _Known(
        "No such image",
        ImageError,
        "{said}",
        'pull it on the host, or set runtime.pull = "missing"',
    ),
    _Known(
        "is not running",
        HostError,
        "the container is not running",
        "see `raycluster logs`, then run `raycluster up`",
    ),
    _Known(
        "is restarting",
        HostError,
        "the container keeps restarting",
        "see `raycluster logs` for the reason",
    ),
    _Known(
        "No such container", HostError, "the container does not exist", "run `raycluster up` first"
    ),
)


class Edge:
    """Where the Docker daemon of one host is reached, and where its errors become ours."""

    def __init__(self, host: str, transport: Transport, socket: str) -> None:
        self.host = host
        self._transport = transport
        self._socket = socket

    def open(self) -> ByteStream:
        """Open a stream to the daemon; a refusal is looked into, as SSH hides its reason."""
        try:
            return self._transport.connect(self._socket)
        except (ConnectionLostError, UnreachableError):
            raise
        except HostError as error:
            raise self._diagnose(error) from error

    @contextmanager
    def translated(self, doing: str) -> Iterator[None]:
        """Turn every foreign error inside into a HostError; `doing` tells what was attempted."""
        try:
            yield
        except docker.errors.APIError as error:
            raise self.refusal(str(error.explanation or error), doing) from error
        except (requests.exceptions.ReadTimeout, TimeoutError) as error:
            raise RuntimeUnavailableError(
                f"the Docker daemon does not answer ({doing})",
                where=self.host,
                hint="look at it on the host: `systemctl status docker`",
            ) from error
        except docker.errors.DockerException as error:
            raise HostError(f"{doing}: {error}", where=self.host) from error
        except (
            requests.exceptions.RequestException,
            urllib3.exceptions.HTTPError,
            OSError,
        ) as error:
            raise self.lost(doing) from error
        except _STRANGE as error:  # the SDK, and who reads its answers, find other things in them
            raise not_understood(f"the Docker daemon ({doing})", self.host) from error
        except AnswerError as error:
            error.where = error.where or self.host
            raise

    def lost(self, doing: str) -> ConnectionLostError:
        """Return the error for a stream that broke."""
        return ConnectionLostError(
            f"the connection to the Docker daemon broke ({doing})",
            where=self.host,
            hint="run the command again",
        )

    def refusal(self, said: str, doing: str) -> HostError:
        """Return the error for what the daemon said."""
        for known in _KNOWN:
            if known.needle in said:
                return known.error(
                    known.what.format(said=said.strip()), where=self.host, hint=known.hint
                )
        return HostError(f"Docker refused ({doing}): {said.strip()}", where=self.host)

    def _diagnose(self, error: HostError) -> HostError:
        path = shlex.quote(self._socket)
        script = (
            f"id -un; test -S {path} && echo socket; test -w {path} && echo writable; "
            f"command -v docker >/dev/null && echo client; "
            f"docker -H unix://{path} version >/dev/null 2>&1 && echo answers"
        )
        seen = self._transport.run(("sh", "-c", script), timeout=30.0).text.split()
        user, facts = (seen[0] if seen else "?"), set(seen[1:])
        what, hint = _explain(user, facts, self._socket)
        return RuntimeUnavailableError(f"{what} ({error.what})", where=self.host, hint=hint)


def _explain(user: str, facts: set[str], socket: str) -> tuple[str, str]:
    """Return what is wrong and the next step, from what the host's shell saw of the socket."""
    if "socket" not in facts and "client" not in facts:
        return "Docker is not installed", f"install Docker, {NATIVE}"
    if "socket" not in facts:
        return (
            f"the Docker daemon is not running: there is no {socket}",
            f"start it: `sudo systemctl enable --now docker`; {NATIVE}",
        )
    if "writable" not in facts:
        return (
            f"user {user} may not use Docker",
            f"add user {user} to group docker: `sudo usermod -aG docker {shlex.quote(user)}`, "
            f"then log in again; {NATIVE}",
        )
    if "answers" in facts:
        return (
            "the SSH server does not forward connections to Unix sockets",
            "set `AllowStreamLocalForwarding yes` in the host's sshd_config and reload sshd",
        )
    return (
        f"nobody answers at {socket}",
        f"restart the daemon: `sudo systemctl restart docker`; {NATIVE}",
    )
