"""The containers of a cluster on one host: listed, read, followed, ended."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import docker
import docker.errors

from raycluster.core.errors import AnswerError, HostError
from raycluster.core.interfaces import Found, Health, Versions
from raycluster.core.last_words import MOST as MOST_WORDS
from raycluster.core.last_words import last_words
from raycluster.core.stored_json import MOST, unread
from raycluster.core.untrusted import Told, is_name, joined, members, read_json, versions
from raycluster.hosts.runtimes.docker_errors import Edge
from raycluster.hosts.runtimes.docker_http import open_client
from raycluster.hosts.runtimes.docker_options import (
    CLUSTER,
    FINGERPRINT,
    FOLDER,
    ONEOFF,
    OWNER,
    ROLE,
    VERSIONS,
    owner,
)

LOOK_S = 8.0  # for a look at what runs, which a daemon that is well answers at once
REGISTRY_S = 12.0  # for what a daemon has to ask a registry for
GRACE = 10  # seconds between TERM and KILL


class Containers:
    """What carries a cluster's label, through the clients of one host's Docker.

    Errors are docker-py's; `Edge.translated` stands around them.
    """

    def __init__(self, host: str, cluster: str, edge: Edge) -> None:
        self._host = host
        self._cluster = cluster
        self._edge = edge

    @cached_property
    def client(self) -> docker.APIClient:
        """For what may take its time."""
        return open_client(self._edge.open)

    @cached_property
    def looker(self) -> docker.APIClient:
        """For a look at what runs, which a daemon that is well answers at once."""
        return open_client(self._edge.open, timeout=LOOK_S)

    @cached_property
    def asker(self) -> docker.APIClient:
        """For what the daemon asks others for."""
        return open_client(self._edge.open, timeout=REGISTRY_S)

    @cached_property
    def follower(self) -> docker.APIClient:
        """For streams that may be silent for as long as they like."""
        return open_client(self._edge.open, quiet=None)

    def observe(self) -> tuple[Found, ...]:
        """Return the cluster's processes, by one call where all of them run."""
        every = self.listed(client=self.looker)
        listed = [each for each in every if ONEOFF not in each["Labels"]]
        return tuple(found for each in listed if (found := self._found(each)))

    def logs(
        self, name: str, *, follow: bool, tail: int | None, since: float | None
    ) -> Iterator[bytes]:
        """Yield what a container wrote, across its restarts, as Docker has kept it."""
        begun = self._state(name)["StartedAt"]
        client = self.follower if follow else self.client
        lines: Any = client.logs(
            name,
            stream=True,
            follow=follow,
            tail="all" if tail is None else tail,
            since=None if since is None else max(1.0, self._now() - since),
        )
        try:
            for chunk in lines:  # noqa: UP028 - `yield from` would close them a second time
                yield chunk
        finally:
            lines.close()
        if follow and self._still_runs(name, since=begun):
            # docker-py lets a cut stream look like an ended one
            raise self._edge.lost(f"following the log of {name}")

    def listed(self, *wanted: str, client: docker.APIClient | None = None) -> list[dict[str, Any]]:
        """Return the containers with these labels, or all."""
        label = [f"{CLUSTER}={self._cluster}", *wanted]
        asked = client or self.client
        found: list[dict[str, Any]] = asked.containers(all=True, filters={"label": label})
        return found

    def _found(self, listed: Mapping[str, Any]) -> Found | None:
        """Return one of our processes, None for what somebody else gave our label."""
        marks = Told(listed["Labels"])
        role = marks[ROLE].text()
        if not is_name(role):
            return None
        health = _health(listed["State"])
        return Found(
            role=role,
            fingerprint=marks[FINGERPRINT].text(100),
            health=health,
            versions=_versions(marks[VERSIONS].text()),
            detail="" if health == "running" else self._detail(listed),
            started=datetime.fromtimestamp(listed["Created"], UTC).isoformat(),
            owner=marks[OWNER].text(),
        )

    def _detail(self, listed: Mapping[str, Any]) -> str:
        """Return why a container does not run: how it ended and the last thing it said."""
        if listed["State"] == "created":
            return "was created, but never started"
        try:
            said = self._last_words(listed["Id"])
        except docker.errors.APIError:  # it is being removed meanwhile
            return str(listed["Status"])
        return f"{listed['Status']}: {said}" if said else str(listed["Status"])

    def _last_words(self, container: str) -> str:
        said: bytes = self.client.logs(container, tail=MOST_WORDS)
        return last_words(said.decode("utf-8", "replace"))

    def owner_of(self, container: str, user: str) -> tuple[int, int]:
        """Return who the image's user is; a user without a name is still looked up for a group."""
        if user in ("", "root", "0"):
            return 0, 0
        return owner(
            user, self._read(container, "/etc/passwd"), self._read(container, "/etc/group")
        )

    def _read(self, container: str, path: str) -> str:
        try:
            chunks, _ = self.client.get_archive(container, path)
        except docker.errors.NotFound:
            return ""
        packed = joined(chunks, path, self._host)
        content = next((content for _, content in members(packed, path, self._host)), b"")
        return content.decode("utf-8", "replace")

    def plain_file(self, container: str, path: str) -> bytes:
        """Return a plain file under ROOT, empty where there is none. Raises RecordError."""
        try:
            chunks, _ = self.client.get_archive(container, f"{FOLDER}/{path}")
        except docker.errors.NotFound:
            return b""
        packed = b""
        for chunk in chunks:
            packed += chunk
            if len(packed) > 2 * MOST:
                raise unread(path, "it is too large", self._host)
        try:
            with tarfile.open(fileobj=io.BytesIO(packed), mode="r:") as tar:
                entry = tar.next()
                plain = entry and entry.isreg() and not entry.issparse()
                file = tar.extractfile(entry) if entry and plain else None
                return file.read(MOST) if file else b""
        except (tarfile.TarError, ValueError, LookupError, OSError, RecursionError) as error:
            raise unread(path, str(error), self._host) from error

    def _state(self, container: str) -> dict[str, Any]:
        state: dict[str, Any] = self.client.inspect_container(container)["State"]
        return state

    def _still_runs(self, container: str, *, since: str) -> bool:
        """Tell whether this run of the container, begun at `since`, goes on; removed is ended."""
        try:
            state = self._state(container)
        except docker.errors.NotFound:
            return False
        return bool(state["Running"]) and state["StartedAt"] == since

    def check_runs(self, name: str) -> None:
        """Raise HostError, with its last words, where a container has ended already."""
        state = self._state(name)
        if state["Running"] and not state["Restarting"]:
            return
        said = self._last_words(name)
        raise HostError(
            f"{name} exited immediately with status "
            f"{state['ExitCode']}{': ' if said else ''}{said}",
            where=self._host,
            hint="see `raycluster logs` for more",
        )

    def _now(self) -> float:
        """Return the host's own time: its clock may differ from ours."""
        said = re.sub(r"\.\d+", "", self.client.info()["SystemTime"])
        return datetime.fromisoformat(said).timestamp()

    def discard(self, listed: list[dict[str, Any]]) -> list[str]:
        """Stop and remove containers, side by side, as each may take its whole grace."""
        if not listed:
            return []
        with ThreadPoolExecutor(len(listed)) as pool:
            return list(pool.map(self._discard_one, listed))

    def _discard_one(self, listed: Mapping[str, Any]) -> str:
        try:
            if listed["State"] not in ("created", "exited", "dead"):
                self.client.stop(listed["Id"], timeout=GRACE)
            self.client.remove_container(listed["Id"], force=True, v=True)
        except docker.errors.APIError as error:  # another run removes it as well
            if error.status_code != 404 and "already in progress" not in str(error.explanation):
                raise
        return f"container {listed['Names'][0].lstrip('/')}"


def _health(state: str) -> Health:
    if state == "restarting":
        return "restarting"
    return "running" if state == "running" else "stopped"


def _versions(text: str) -> Versions:
    try:
        return versions(read_json(text, "a label"))
    except AnswerError:
        return Versions()
