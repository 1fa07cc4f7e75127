"""Processes as Docker containers; the daemon is reached through the host's transport.

Everything of a cluster carries its label: a container for each role, and one volume, mounted at
/raycluster in all of them, with the caches and the files that were delivered.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Literal

import docker
import docker.errors

from raycluster.core import tested_versions
from raycluster.core.accelerators.values import clean
from raycluster.core.errors import HostError, ImageError, RecordError
from raycluster.core.interfaces import (
    Files,
    Found,
    KnownVersions,
    PrepareForecast,
    Process,
    RegistryLogin,
    Shell,
    Tell,
    Transport,
    Versions,
    cluster_of,
)
from raycluster.core.untrusted import (
    Told,
    not_understood,
    read_json,
    text_of,
)
from raycluster.hosts.runtimes.docker_containers import Containers
from raycluster.hosts.runtimes.docker_engine import (
    LOOK,
    EngineFacts,
    engine,
    notes,
    refuse,
    refuse_process,
)
from raycluster.hosts.runtimes.docker_errors import Edge
from raycluster.hosts.runtimes.docker_gpus import FOLDER as RDMA
from raycluster.hosts.runtimes.docker_gpus import (
    LOCK,
    PIN,
    GpuOptions,
    gpu_options,
    has_rdma,
    with_rdma,
)
from raycluster.hosts.runtimes.docker_http import newest_info
from raycluster.hosts.runtimes.docker_image import Images, digests, source_of
from raycluster.hosts.runtimes.docker_options import (
    CLUSTER,
    ONEOFF,
    OWNER,
    PORTS,
    ROLE,
    archive,
    container_name,
    container_options,
    labels,
    needs_home,
    place,
    with_added,
)
from raycluster.hosts.runtimes.docker_ray import RAY, AddedRay, RayAdder
from raycluster.hosts.runtimes.docker_shell import DockerShell
from raycluster.services.ray_node import RAY_ROLES
from raycluster.spec.known_images import versions_in

_SOCKETS = """command -v ls >/dev/null && command -v grep >/dev/null || exit 127
ls -l /proc/[0-9]*/fd 2>/dev/null | grep -o 'socket:.*'; true"""
_INODE = re.compile(r"socket:\[([0-9]{1,20})\]")


class DockerRuntime:
    """Runs the cluster's processes on one host as containers."""

    def __init__(
        self,
        host: str,
        cluster: str,
        transport: Transport,
        *,
        pull: Literal["always", "missing", "never"] = "missing",
        socket: str = "",
        ray: AddedRay = RAY,
        rdma: str = RDMA,
        owner: str = "",
    ) -> None:
        self._host = host
        self._cluster = cluster
        self._owned_by = owner
        self._transport = transport
        self._pull: Literal["always", "missing", "never"] = pull
        self._ray = ray
        self._rdma = rdma
        self._edge = Edge(host, transport, socket)
        self._containers = Containers(host, cluster, self._edge)

    def socket_path(self) -> str:
        return self._edge.place.path

    @cached_property
    def _engine(self) -> tuple[EngineFacts, str]:
        """Return what the engine and its host's shell say, of one that can run our containers."""
        found = engine(self._containers.looker.info(), self._containers.looker.version())
        words = (found.root, "rootless" if found.rootless else "")
        done = self._transport.run(("sh", "-c", LOOK, "sh", *words))
        text = text_of(done, "check what Docker runs in", self._host)
        refuse(found, text, self.socket_path(), self._host)
        return found, text

    def _fits(self, process: Process) -> EngineFacts:
        found, text = self._engine
        refuse_process(found, text, process, self._host)
        return found

    def verify(self, processes: Sequence[Process]) -> tuple[str, ...]:
        """Make sure that this Docker can run them; return what a person should know of it."""
        with self._edge.translated("checking Docker"):
            found, _ = self._engine
            told = [f"Docker {found.version} at {self.socket_path()}"]
            for process in processes:
                told += notes(self._fits(process), process)
        return tuple(dict.fromkeys(told))

    @cached_property
    def _images(self) -> Images:
        return Images(self._containers.client, self._cluster, self._edge, self._pull)

    def observe(self) -> tuple[Found, ...]:
        """Return this cluster's containers, by one call where all of them run."""
        with self._edge.translated("reading the containers"):
            return self._containers.observe()

    def prepare(self, process: Process, tell: Tell) -> Versions:
        """Bring the image as the pull policy says, add Ray where a node's lacks it; its versions.

        Raises ImageError without an image, and for a Ray node whose image Ray cannot be added to.
        """
        with self._edge.translated(f"preparing {process.image}"):
            self._fits(process)
            self._gpus(process)  # what cannot be handed on is said before anything is brought
            held = self._images.bring(process, tell)
            source = source_of(process, held)
            self._containers.discard(
                self._containers.listed(ONEOFF)
            )  # a killed run could not remove its own
            if process.role.partition("-")[0] not in RAY_ROLES:
                return Versions(image=source)
            home, here = self._home(process), self._here(process)
            inside = self._images.look_inside(here, home)
            if inside.versions.ray:
                return replace(inside.versions, image=source)
            adder = RayAdder(self._containers.client, self._cluster, self._edge, self._ray)
            return replace(adder.add(here, home, inside, tell), image=source)

    def known_versions(self, process: Process) -> KnownVersions:
        """Return what is in an image that is there, or what its tag says of one that is not."""
        with self._edge.translated(f"looking into {process.image}"):
            self._fits(process)
            if self._pull == "always" or self._images.held(process.image, process.digest) is None:
                return KnownVersions(versions_in(process.image), whole=False)
            inside = self._images.look_inside(self._here(process), self._home(process)).versions
            return KnownVersions(replace(inside, ray=inside.ray or tested_versions.RAY), whole=True)

    def _here(self, process: Process) -> Process:
        """Return the process with the name that its image has on this host."""
        return replace(process, image=self._images.here(process.image, process.digest))

    def layers(self, image: str, digest: str = "") -> tuple[str, ...]:
        """Return the digests of an image's layers, the same whatever store Docker has."""
        with self._edge.translated(f"checking {image}"):
            return self._images.layers(image, digest)

    def digest(self, image: str) -> str:
        with self._edge.translated(f"looking for {image}"):
            return next(iter(digests(image, self._images.held(image) or {})), "")

    def registry_digest(self, image: str, login: RegistryLogin | None) -> str:
        """Return what the registry has under this name now, as this host's Docker is told."""
        with self._edge.translated(f"looking up {image}"):
            return self._images.registry_digest(image, login)

    def pullable(self, process: Process) -> bool:
        """Let Docker ask the image's registry, by the way and with the login of a pull.

        Returns False where that tells nothing. Raises ImageError where a pull would fail.
        """
        with self._edge.translated(f"asking for {process.image}"):
            asker = Images(self._containers.asker, self._cluster, self._edge, self._pull)
            return asker.pullable(process.image, process.login)

    def save(self, image: str) -> Iterator[bytes]:
        with self._edge.translated(f"saving {image}"):
            yield from self._containers.client.get_image(image)

    def load(self, archive: Iterable[bytes]) -> None:
        with self._edge.translated("loading an image"):
            events = self._containers.client.load_image(archive)  # type: ignore[no-untyped-call]
            for event in events:
                if "error" in event:
                    raise ImageError(f"cannot load an image: {event['error']}", where=self._host)

    def outlook(self, process: Process, paths: Sequence[str]) -> PrepareForecast:
        """Return whether the image is there, and where on the host the container's paths lie.

        Raises RuntimeUnavailableError where Docker cannot hand on the process's GPUs.
        """
        with self._edge.translated(f"looking for {process.image}"):
            self._fits(process)
            self._gpus(process)
            held = self._images.held(process.image, process.digest)
            root = str(self._containers.looker.info().get("DockerRootDir") or "")
            home = self._home(process)
            places = {path: place(path, self._cluster, process, home, root) for path in paths}
        size = Told(held)["Size"].whole()
        there = held is not None and self._pull != "always"
        return PrepareForecast(
            what=f"image {process.image}",
            there=there,
            folder=root,
            image="" if self._pull == "never" else self._images.wanted(process),
            held_bytes=size,
            places=places,
            withheld=held is None and self._pull == "never",
        )

    def start(self, process: Process, versions: Versions, files: Files, tell: Tell) -> None:
        """Replace the role's container; one that ends at once is an error with its last line."""
        name = container_name(self._cluster, process.role)
        with self._edge.translated(f"starting {name}"):
            gpus, image = self._gpus(process), self._here(process).image
            if process.gpus and not gpus:
                tell("Docker cannot pass on a GPU here: starting without one")
            made = self._with_rdma(process, tell) if gpus else process
            more = {}
            if versions.added:
                of_image = self._images.environment(image)
                more = with_added(process, of_image, versions.added)
            options = container_options(
                self._containers.client, self._cluster, made, self._home(process), gpus, more=more
            )
            user = self._images.user(image)
            self._containers.discard(self._containers.listed(f"{ROLE}={process.role}"))
            self._containers.client.create_container(
                image,
                name=name,
                labels=labels(self._cluster, self._owned_by, process, versions),
                **options,
            )
            try:
                delivery = archive(files, self._containers.owner_of(name, user), time.time())
                self._containers.client.put_archive(name, "/", delivery)
                self._containers.client.start(name)
            except Exception:  # a container that cannot start is not left behind
                with contextlib.suppress(docker.errors.APIError):
                    self._containers.client.remove_container(name, force=True)
                raise
            self._containers.check_runs(name)

    def _with_rdma(self, process: Process, tell: Tell) -> Process:
        """Return what is run on a host with GPUs: with the RDMA devices that GPUs talk through.

        They are the host's and not the spec's, and so not in the fingerprint.
        """
        if not has_rdma(self._transport, self._rdma):
            return process
        box = with_rdma(process.box, self._rdma)
        if box != process.box:
            limit = box.ulimits[LOCK]
            tell(f"RDMA devices in {self._rdma} are passed on, with {PIN} and memlock = {limit:d}")
        return replace(process, box=box)

    def _gpus(self, process: Process) -> GpuOptions | None:
        info = newest_info(self._containers.client) if process.gpus else {}
        return gpu_options(info, self._transport, process.gpus, self._host)

    def remove(self, role: str | None = None, *, purge: bool = False) -> tuple[str, ...]:
        """Remove containers, and without a role also volumes and networks; return their names."""
        with self._edge.translated("removing what this cluster started"):
            listed = self._containers.listed(*([f"{ROLE}={role}"] if role else []))
            removed = self._containers.discard(listed)
            if role is None:
                removed += self._remove_volumes() + self._remove_networks()
            if purge:
                images = sorted({each["Image"] for each in listed})
                removed += [line for image in images if (line := self._remove_image(image))]
        return tuple(removed)

    def inside(self, role: str) -> Shell:
        return DockerShell(self._containers.client, container_name(self._cluster, role), self._edge)

    def read(self, path: str) -> bytes:
        """Return a file of the cluster's volume, as any of its containers has it."""
        with self._edge.translated(f"reading {path}"):
            if listed := self._containers.listed():
                return self._containers.plain_file(str(listed[0]["Id"]), path)
            if volumes := self._volumes():
                raise RecordError(
                    f"the volume {volumes[0]} exists, but no container to read it with",
                    where=self._host,
                    hint=f"if it is not needed, remove it: docker volume rm {volumes[0]}",
                )
            return b""

    def neighbours(self) -> Mapping[int, str]:
        """Return which other clusters have containers here that run, by their ports."""
        with self._edge.translated("reading the containers of other clusters"):
            listed = self._containers.looker.containers(filters={"label": CLUSTER})
        found: dict[int, str] = {}
        for each in listed:
            marks = Told(each["Labels"])
            cluster, owner = (clean(marks[name].text(), 80) for name in (CLUSTER, OWNER))
            if cluster != self._cluster:
                ports = read_json(marks[PORTS].text() or "[]", "Docker", self._host)
                words = cluster_of(cluster, owner)
                found |= {port: words for told in ports if (port := told.whole()) is not None}
        return found

    def sockets(self) -> frozenset[int]:
        """Return the inodes of the containers' sockets, each asked inside of itself."""
        with self._edge.translated("reading the containers"):
            running = [each for each in self._containers.listed() if each["State"] == "running"]
        inodes: set[str] = set()
        for each in running:
            shell = DockerShell(self._containers.client, each["Id"], self._edge)
            try:
                done = shell.run(("sh", "-c", _SOCKETS))
                found = text_of(done, "list the open sockets of its processes", self._host)
                inodes.update(_INODE.findall(found))
            except HostError:
                if each["Labels"].get(ROLE) in RAY_ROLES:
                    raise  # another's image may lack a shell, and it has the spec's ports alone
        return frozenset(map(int, inodes))

    def logs(
        self, role: str, *, follow: bool, tail: int | None, since: float | None
    ) -> Iterator[bytes]:
        """Yield what the container wrote, across its restarts, as Docker has kept it."""
        name = container_name(self._cluster, role)
        with self._edge.translated(f"reading the log of {name}"):
            yield from self._containers.logs(name, follow=follow, tail=tail, since=since)

    def _home(self, process: Process) -> str:
        """Return the host user's home folder, asked for only where a volume names it."""
        if not needs_home(process):
            return ""
        home = self._transport.run(("sh", "-c", 'printf %s "$HOME"')).text
        if not home.startswith("/"):
            raise not_understood("the host's shell (HOME)", self._host, home)
        return home

    def _volumes(self) -> list[str]:
        told = self._containers.client.volumes(filters={"label": f"{CLUSTER}={self._cluster}"})[
            "Volumes"
        ]
        return [str(volume["Name"]) for volume in told or []]

    def _remove_volumes(self) -> list[str]:
        mine = self._volumes()
        for name in mine:
            with contextlib.suppress(docker.errors.NotFound):
                self._containers.client.remove_volume(name)
        return [f"volume {name}" for name in mine]

    def _remove_networks(self) -> list[str]:
        mine = self._containers.client.networks(filters={"label": f"{CLUSTER}={self._cluster}"})
        for network in mine:
            with contextlib.suppress(docker.errors.NotFound):
                self._containers.client.remove_network(network["Id"])
        return [f"network {network['Name']}" for network in mine]

    def _remove_image(self, image: str) -> str:
        users = self._containers.client.containers(all=True, filters={"ancestor": image})
        if users:
            return f"image {image} (kept: {users[0]['Names'][0].lstrip('/')} uses it)"
        try:
            self._containers.client.remove_image(image)
        except docker.errors.NotFound:
            return ""
        except docker.errors.APIError as error:
            return f"image {image} (kept: {error.explanation})"
        return f"image {image}"
