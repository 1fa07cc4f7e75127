"""Asks an image's registry by the OCI distribution API: is the tag there, how large is a pull."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher

import httpx

from raycluster.core.errors import AnswerError
from raycluster.core.interfaces import RegistryLogin
from raycluster.core.untrusted import Told, read_json
from raycluster.hosts.http import whole_answer

ANSWER_S = 5.0
"""Seconds for each answer: without the registry a plan says less, and is not held up."""
DOCKER_HUB = "registry-1.docker.io"
INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
ARCHITECTURE = "amd64"
PAGES, PAGE, NEAREST = 20, 1000, 4
"""Tags that are read at most, in pages, and that are named."""


@dataclass(frozen=True)
class ImageAnswer:
    """Whether a registry has an image, None where it did not tell, and `why`; else like tags."""

    there: bool | None
    why: str = ""
    nearest: tuple[str, ...] = ()


def ask_for(image: str, login: RegistryLogin | None) -> ImageAnswer:
    """Return whether the image's registry has its tag or digest; raises nothing."""
    server, name, reference = parse(image)
    try:
        with httpx.Client(timeout=ANSWER_S, follow_redirects=True) as client:
            repository = _Repository(client, server, name, _own(login, server))
            try:
                repository.manifest(reference)
            except httpx.HTTPStatusError as error:
                if error.response.status_code != httpx.codes.NOT_FOUND:
                    raise
                tags = [] if ":" in reference else list(repository.tags())
                return ImageAnswer(False, nearest=nearest(reference, tags))
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        return ImageAnswer(None, f"{_short(server)} answers {code} {error.response.reason_phrase}")
    except (httpx.HTTPError, httpx.InvalidURL, AnswerError, ValueError) as error:
        return ImageAnswer(None, f"{_short(server)}: {str(error)[:200] or type(error).__name__}")
    return ImageAnswer(True)


def nearest(tag: str, tags: Iterable[str]) -> tuple[str, ...]:
    """Return the tags that look most like this one, the most like it first."""

    def likeness(other: str) -> tuple[float, str]:
        return SequenceMatcher(None, tag, other).ratio(), other

    known = sorted({t for t in tags if not re.search(r"[0-9a-f]{12}", t)}, key=likeness)
    return tuple(reversed(known[-NEAREST:]))


def image_sizes(images: Iterable[str], login: RegistryLogin | None) -> dict[str, int]:
    """Return the compressed bytes of each image, without those that no registry tells.

    Of an image for several machines those for x86-64 count, or else the first.
    """
    found: dict[str, int] = {}
    silent: set[str] = set()
    for image in images:
        server, name, reference = parse(image)
        if server in silent:
            continue
        own = _own(login, server)
        try:
            with httpx.Client(timeout=ANSWER_S, follow_redirects=True) as client:
                found[image] = _size(_Repository(client, server, name, own), reference)
        except httpx.TransportError:
            silent.add(server)
        except (httpx.HTTPError, httpx.InvalidURL, AnswerError, ValueError):
            continue  # unknown there, or it wants another login: the pull says it better
    return found


def parse(image: str) -> tuple[str, str, str]:
    """Return an image's registry, its name there, and its digest or tag."""
    first, slash, rest = image.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        server, path = first, rest
    else:
        server, path = "docker.io", image
    path, _, digest = path.partition("@")
    name, colon, tag = path.rpartition(":")
    name, tag = (name, tag) if colon else (path, "latest")
    if server in ("docker.io", "index.docker.io"):
        server, name = DOCKER_HUB, name if "/" in name else f"library/{name}"
    return server, name, digest or tag


def _own(login: RegistryLogin | None, server: str) -> RegistryLogin | None:
    """Return the login if it is for this registry."""
    mine = login is not None and login.server.lower() in (server.lower(), _short(server))
    return login if mine else None


def _short(server: str) -> str:
    return "docker.io" if server == DOCKER_HUB else server


class _Repository:
    """One image's part of a registry; logs in when it is asked to."""

    def __init__(
        self, client: httpx.Client, server: str, name: str, login: RegistryLogin | None
    ) -> None:
        self._client = client
        near = re.fullmatch(r"(localhost|127(\.\d+){3})(:\d+)?", server)
        self._url = f"{'http' if near else 'https'}://{server}/v2/{name}"
        self._login = (login.username.reveal(), login.password.reveal()) if login else None
        self._headers: dict[str, str] = {"Accept": ", ".join((*INDEXES, *MANIFESTS))}

    def manifest(self, reference: str) -> Told:
        """Return an index or a manifest. Raises httpx.HTTPError and AnswerError."""
        return read_json(self._get(f"{self._url}/manifests/{reference}").content, "the registry")

    def tags(self) -> Iterator[str]:
        """Yield the repository's tags. Raises httpx.HTTPError."""
        url = f"{self._url}/tags/list?n={PAGE}"
        for _ in range(PAGES):
            answer = self._get(url)
            told = read_json(answer.content, "the registry")
            yield from (tag.text(200) for tag in told["tags"])
            following = answer.links.get("next", {}).get("url")
            if not following:
                return
            there = httpx.URL(url).join(following)
            if (there.scheme, there.netloc) != (httpx.URL(url).scheme, httpx.URL(url).netloc):
                return  # the login is for this registry alone
            url = str(there)

    def _get(self, url: str) -> httpx.Response:
        answer = whole_answer(self._client, url, headers=self._headers)
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            how = answer.headers.get("WWW-Authenticate", "")
            if how.lower().startswith("bearer "):
                self._headers["Authorization"] = f"Bearer {self._token(how)}"
                answer = whole_answer(self._client, url, headers=self._headers)
            elif self._login:
                answer = whole_answer(self._client, url, headers=self._headers, auth=self._login)
        return answer.raise_for_status()

    def _token(self, how: str) -> str:
        asked = dict(re.findall(r'(\w+)="([^"]*)"', how))
        realm = asked.pop("realm", "")
        if not realm.startswith("https://") and self._url.startswith("https://"):
            raise ValueError("the registry requests a login without TLS")
        answer = whole_answer(self._client, realm, params=asked, auth=self._login)
        told = read_json(answer.raise_for_status().content, "the registry's login")
        return told["token"].text() or told["access_token"].text()


def _size(repository: _Repository, reference: str) -> int:
    found = repository.manifest(reference)
    if "manifests" in found:
        digest = _chosen(list(found["manifests"].listed()))["digest"].text(200)
        if not re.fullmatch(r"[a-z0-9]{1,20}:[0-9a-f]{32,128}", digest):
            raise found.refused()
        found = repository.manifest(digest)
    sizes = [
        found["config"]["size"].whole(),
        *(e["size"].whole() for e in found["layers"].listed()),
    ]
    if None in sizes:
        raise found.refused()
    return sum(size or 0 for size in sizes)


def _chosen(manifests: list[Told]) -> Told:
    """Return the manifest for x86-64, or else the first that is for a machine at all."""
    known = [m for m in manifests if m["platform"]["os"].text() == "linux"]
    exact = [m for m in known if m["platform"]["architecture"].text() == ARCHITECTURE]
    return (exact or known or manifests or [Told(None)])[0]
