"""What Docker, its SDK and its socket report, said as our own errors about one host."""

from __future__ import annotations

import http.client
import struct
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import docker.errors
import requests.exceptions
import urllib3.exceptions

from raycluster.core.errors import (
    AnswerError,
    ConnectionLostError,
    HostError,
    ImageError,
    RuntimeUnavailableError,
    UnreachableError,
)
from raycluster.core.interfaces import ByteStream, Transport
from raycluster.core.untrusted import not_understood
from raycluster.hosts.runtimes.docker_socket import NATIVE, SocketChoice, find
from raycluster.hosts.runtimes.docker_trouble import LOOK, SECONDS, explain, seen

NATIVE_HINT = 'check Docker on the host, or set runtime.kind = "native" for it'
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
        "Docker may not raise a limit that the container needs: {said}",
        "set lower `ulimits` under [runtime], such as memlock = 8388608: with IPC_LOCK that limit "
        "does not count",
    ),
    _Known(
        'error mounting "mqueue"',
        RuntimeUnavailableError,
        "Docker cannot share the host's IPC, which rootless Docker never can: {said}",
        "remove `ipc` from [runtime] for this host, and set `shm_size`",
    ),
    _Known(
        "authorization denied by plugin",
        HostError,
        "a Docker authorization plugin rejects it: {said}",
        "allow it in the plugin for the login user, or remove the plugin from "
        "`authorization-plugins` in "
        "/etc/docker/daemon.json",
    ),
    _Known(
        "BPF_CGROUP_DEVICE",
        RuntimeUnavailableError,
        "rootless Docker may not pass on GPUs the way NVIDIA's toolkit does: {said}",
        "`sudo nvidia-ctk config --set nvidia-container-cli.no-cgroups --in-place`, or CDI",
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
        'invalid mount config for type "bind": stat',
        HostError,
        "the user that runs Docker may not read a volume's folder: {said}",
        "give that user access to the folder and its parents (`chmod o+x`), or correct "
        "runtime.volumes",
    ),
    _Known(
        "source path does not exist",
        HostError,
        "a volume's folder is missing: {said}",
        "create it on the host, or correct runtime.volumes",
    ),
    _Known(
        "is already in use by container",
        HostError,
        "another container has the name that the cluster needs: {said}",
        "remove or rename it, or choose another cluster name",
    ),
    _Known(
        "exec format error",
        ImageError,
        "the image is built for another architecture",
        "choose an image for this host's architecture",
    ),
    _Known(
        'exec: "',
        ImageError,
        "the image lacks a program: {said}",
        "choose an image with ray and an engine",
    ),
    _Known(
        "OCI runtime create failed",
        HostError,
        "Docker cannot start the container: {said}",
        "the reason is at the end of the line",
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
        self._wanted = socket
        self._place: SocketChoice | None = None
        self._finding = threading.Lock()
        self._heard = False

    @property
    def place(self) -> SocketChoice:
        """Where the daemon's socket is, looked for once. Raises HostError."""
        with self._finding:
            if self._place is None:
                self._place = find(self._transport, self._wanted, self.host)
            return self._place

    def open(self) -> ByteStream:
        """Open a stream to the daemon; a refusal is looked into, as SSH hides its reason."""
        try:
            return self._transport.connect(self.place.path)
        except (ConnectionLostError, UnreachableError):
            raise
        except HostError as error:
            raise self._diagnose(error) from error

    @contextmanager
    def translated(self, doing: str) -> Iterator[None]:
        """Turn every foreign error inside into a HostError; `doing` tells what was attempted."""
        try:
            yield
            self._heard = True
        except docker.errors.APIError as error:
            self._heard = True
            raise self.refusal(str(error.explanation or error), doing) from error
        except (requests.exceptions.ReadTimeout, TimeoutError) as error:
            raise self._first(
                RuntimeUnavailableError(
                    f"the Docker daemon does not respond ({doing})",
                    where=self.host,
                    hint="check it on the host: `systemctl status docker`",
                )
            ) from error
        except docker.errors.DockerException as error:
            raise HostError(f"{doing}: {error}", where=self.host) from error
        except (
            requests.exceptions.RequestException,
            urllib3.exceptions.HTTPError,
            OSError,
        ) as error:
            raise self._first(self.lost(doing)) from error
        except _STRANGE as error:  # the SDK, and who reads its answers, find other things in them
            raise not_understood(f"the Docker daemon ({doing})", self.host) from error
        except AnswerError as error:
            error.where = error.where or self.host
            raise

    def _first(self, error: HostError) -> HostError:
        """Return why a daemon never answered that takes connections; `error` where it did."""
        return error if self._heard else self._diagnose(error)

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
        return HostError(f"Docker rejected the request ({doing}): {said.strip()}", where=self.host)

    def _diagnose(self, error: HostError) -> HostError:
        """Return an error with the reason and the next step, or the one at hand without them."""
        place = self.place
        try:
            done = self._transport.run(("sh", "-c", LOOK, "sh", place.path), timeout=SECONDS)
        except (ConnectionLostError, UnreachableError):
            raise
        except HostError:  # what Docker's socket said is worth more
            return error
        if done.exit_code == 0 and (found := explain(seen(done.text), place)):
            what, hint = found
            return RuntimeUnavailableError(what, where=self.host, hint=hint)
        return RuntimeUnavailableError(error.what, where=self.host, hint=error.hint or NATIVE_HINT)
