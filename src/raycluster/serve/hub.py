"""A model of the hub on this node: what it holds, what an engine needs of it, and bringing that.

Uses huggingface_hub's documented functions alone, of the node's own environment.
"""

from __future__ import annotations

import glob
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raycluster.serve.model_refs import ModelRef, needed_files


@dataclass(frozen=True)
class File:
    """A file as the hub describes it: `digest` is a SHA-256, or git's SHA-1 of a small file."""

    name: str
    size: int
    digest: str


@dataclass(frozen=True)
class Listing:
    """What an engine needs of one commit."""

    commit: str
    files: tuple[File, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Listing:
        """Return what `to_json` was called on."""
        return cls(plain["commit"], tuple(File(**file) for file in plain["files"]))


def listing(wanted: ModelRef) -> Listing:
    """Ask the hub. Raises what huggingface_hub raises."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(wanted.source, revision=wanted.revision, files_metadata=True)
    found = {file.rfilename: file for file in info.siblings or ()}
    names = needed_files(list(found), wanted.load_format, weights=wanted.weights)
    return Listing(str(info.sha), tuple(_file(found[name]) for name in names))


def _file(found: Any) -> File:  # noqa: ANN401  # RepoSibling, which the laptop does not know
    digest = found.lfs.sha256 if found.lfs else found.blob_id
    return File(found.rfilename, int(found.size or 0), digest or "")


def cached(wanted: ModelRef, listed: Listing) -> dict[str, Path]:
    """Return the files that are there, by name, and that the revision stands for there too."""
    from huggingface_hub import try_to_load_from_cache

    asked = (
        (f.name, try_to_load_from_cache(wanted.source, f.name, wanted.cache_dir, wanted.revision))
        for f in listed.files
    )
    paths = {name: Path(path) for name, path in asked if isinstance(path, str)}
    return {name: path for name, path in paths.items() if listed.commit in path.parts}


def complete(wanted: ModelRef, listed: Listing) -> bool:
    """Tell whether every file is there."""
    return len(cached(wanted, listed)) == len(listed.files)


def found(wanted: ModelRef) -> Listing | None:
    """Return what is there without asking the hub; its cache names large files by their digest."""
    from huggingface_hub import try_to_load_from_cache

    asked = (wanted.source, "config.json", wanted.cache_dir, wanted.revision)
    config = try_to_load_from_cache(*asked)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    paths = {str(p.relative_to(folder)): p.resolve() for p in folder.rglob("*") if p.is_file()}
    names = needed_files(sorted(paths), wanted.load_format, weights=wanted.weights)
    files = [File(n, paths[n].stat().st_size, _digest(paths[n].name)) for n in names]
    return Listing(folder.name, tuple(files))


def _digest(name: str) -> str:
    return name if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", name) else ""


def download(wanted: ModelRef, listed: Listing) -> dict[str, Path]:
    """Bring what is not there yet, and return the path of every file.

    Raises ProblemError, OSError or what huggingface_hub raises.
    """
    from huggingface_hub import snapshot_download

    _refuse_without_room(wanted, listed)
    folder = snapshot_download(
        wanted.source,
        revision=wanted.revision,
        cache_dir=wanted.cache_dir,
        allow_patterns=[glob.escape(file.name) for file in listed.files],
    )
    if Path(folder).name != listed.commit:
        raise ProblemError(f"{wanted.source} has just changed on the hub", "run it again")
    return {file.name: Path(folder, file.name) for file in listed.files}


def _refuse_without_room(wanted: ModelRef, listed: Listing) -> None:
    there = cached(wanted, listed)
    missing = sum(file.size for file in listed.files if file.name not in there)
    folder = hub_folder(wanted)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise ProblemError(
            f"{wanted.source} needs {in_words(missing)} more, but only {in_words(free)} are free "
            f"in {folder}",
            "free some space, or set HF_HOME under [runtime.env] to a folder on a larger disk",
        )


def hub_folder(wanted: ModelRef) -> Path:
    """Return the hub's cache folder that the engine will read from."""
    from huggingface_hub import constants

    return Path(wanted.cache_dir or constants.HF_HUB_CACHE).expanduser()


def model_folder(wanted: ModelRef) -> Path:
    """Return the model's folder in that cache, as the hub's library documents it."""
    return hub_folder(wanted) / f"models--{wanted.source.replace('/', '--')}"


def on_disk(wanted: ModelRef, listed: Listing) -> int:
    """Return how many bytes of the files are there, half-brought ones too."""
    digests = {file.digest for file in listed.files}
    return min(listed.size, sum(_sizes(model_folder(wanted) / "blobs", digests)))


def _sizes(folder: Path, digests: set[str]) -> Iterator[int]:
    for path in folder.glob("*"):
        if path.name.partition(".")[0] in digests:
            try:
                yield path.stat().st_blocks * 512  # a file may be made long before it is written
            except OSError:
                continue  # it was renamed meanwhile


def in_words(size: int) -> str:
    """Return bytes as "269 MB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


UNREACHED = frozenset({"TransportError", "ConnectionError", "Timeout", "OfflineModeIsEnabled"})
"""Names of the errors for "no response": the hub's library has had three HTTP clients."""
GIVE_TOKEN = 'set HF_TOKEN = "env:HF_TOKEN" under [secrets]'  # noqa: S105  # a sentence


class ProblemError(Exception):
    """What a person has to know, and their next step."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what, self.hint = what, hint


def unreached(error: BaseException) -> bool:
    """Tell whether the hub did not answer, or only that it is in trouble."""
    return bool(_kinds(error) & UNREACHED) or _status(error) >= 500


def explained(error: Exception, wanted: ModelRef) -> ProblemError:
    """Return what to tell of an error of the download."""
    from huggingface_hub import constants, get_token

    if isinstance(error, ProblemError):
        return error
    hub, token = constants.ENDPOINT, bool(get_token())
    found = _refused(error, wanted, hub, token=token) or _failed(error, wanted, hub)
    said = " ".join(str(error).split())[:300]
    return found or ProblemError(f"cannot fetch {wanted.source}: {type(error).__name__}: {said}")


def _refused(error: Exception, wanted: ModelRef, hub: str, *, token: bool) -> ProblemError | None:
    """Return what the hub's "no" means, or None where it was none."""
    kinds, source = _kinds(error), wanted.source
    if "GatedRepoError" in kinds:
        lacking = "HF_TOKEN gives no access to it" if token else "there is no HF_TOKEN"
        step = f"accept its conditions at {hub}/{source}" + ("" if token else f", and {GIVE_TOKEN}")
        return ProblemError(f"{source} is gated, and {lacking}", step)
    if "RevisionNotFoundError" in kinds:
        return ProblemError(f"{source} has no revision {wanted.revision!r}", "correct `revision`")
    if "RepositoryNotFoundError" in kinds:
        seen = "with this HF_TOKEN" if token else "without an HF_TOKEN"
        step = f"correct `source`, or, for a private model, {GIVE_TOKEN}"
        return ProblemError(f"{hub} has no model {source} visible {seen}", step)
    if _status(error) in (401, 403):
        return ProblemError(f"{hub} rejects HF_TOKEN for {source}", "give a valid HF_TOKEN")
    return None


def _failed(error: Exception, wanted: ModelRef, hub: str) -> ProblemError | None:
    """Return what a fault of the network or the disk means, or None where it was neither."""
    if isinstance(error, OSError) and error.errno and error.strerror:
        what = f"{wanted.source} cannot be stored: {error.strerror.lower()}"
        return ProblemError(what, "check the disk and the permissions of HF_HOME on the host")
    if unreached(error) or "LocalEntryNotFoundError" in _kinds(error):
        said = " ".join(str(error).split())[:300]
        step = "give the host access to the hub (HTTPS_PROXY or HF_ENDPOINT under [runtime.env]), "
        step += "or set `source` to a path"
        return ProblemError(f"cannot reach {hub} for {wanted.source}: {said}", step)
    return None


def _kinds(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _status(error: BaseException) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", None) or 0)
