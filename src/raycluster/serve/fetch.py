"""Brings models to this node before replicas start: `python -m raycluster.serve.fetch ORDER`.

ORDER is what `model_refs.order` returns. Every line of the output is JSON too: progress (`done` and
`total` bytes), `result`, or `error` with a `hint`.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raycluster.serve import hub
from raycluster.serve.hub import Listing, ProblemError, explained, unreached
from raycluster.serve.model_refs import ModelRef, is_path
from raycluster.serve.node_files import load_secrets
from raycluster.serve.rootcause import root_cause
from raycluster.serve.verify import VerifiedFiles, hashed, wrong

EVERY_S = 1.0
SMALL = 1 << 20
"""Bytes up to which the files of a folder are compared by content and not by size alone."""
MOST_FILES = 10_000


def main() -> None:
    told = json.loads(sys.argv[1])
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    wanted = ModelRef(source="")
    try:
        load_secrets(told["secrets_path"])
        for plain in told["models"]:
            wanted = ModelRef(**plain)
            say(model=wanted.source, result=bring(wanted, again=told["verify"]))
    except ProblemError as problem:
        say(error=problem.what, hint=problem.hint)
    except OSError as error:
        say(error=f"{wanted.source}: {error}", hint="")
    except RuntimeError as error:  # of load_secrets
        say(error=root_cause(str(error)), hint="raycluster up")


def say(**line: object) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def bring(wanted: ModelRef, *, again: bool) -> dict[str, Any]:
    """Return what is there in the end: `version`, which is the same on nodes with the same model,
    or `files` for a folder; raises ProblemError."""
    if is_path(wanted.source):
        return {"files": manifest(Path(wanted.source).expanduser(), whole=again)}
    try:
        return from_hub(wanted, record_of(wanted), again=again)
    except Exception as error:  # whatever the hub's library and its HTTP client raise
        raise explained(error, wanted) from error


def record_of(wanted: ModelRef) -> VerifiedFiles:
    """Return what this node remembers of a model of the hub."""
    name = wanted.source.replace("/", "--")
    return VerifiedFiles(Path(os.environ["RAYCLUSTER_ROOT"], "cache", "verified", f"{name}.json"))


def from_hub(wanted: ModelRef, record: VerifiedFiles, *, again: bool) -> dict[str, Any]:
    """Download what is missing, compare all with the hub's digests, and remember that."""
    key = wanted.key
    listings = record.kept.setdefault("listings", {})
    note = ""
    try:
        listed = hub.listing(wanted)
    except Exception as error:
        known = Listing.from_json(listings[key]) if key in listings else hub.found(wanted)
        if not unreached(error) or known is None or not hub.complete(wanted, known):
            raise
        listed, note = known, "the Hugging Face Hub does not respond: using the files already there"
    before = len(hub.cached(wanted, listed))
    _check(wanted, listed, record, again=again, alone=bool(note))
    listings[key] = listed.to_json()
    record.save()
    fetched = before < len(listed.files)
    return {"version": listed.commit, "bytes": listed.size, "fetched": fetched, "note": note}


def _check(
    wanted: ModelRef, listed: Listing, record: VerifiedFiles, *, again: bool, alone: bool
) -> None:
    """Make every file what it should be: what is not, is brought a second time unless `alone`."""
    files = [(f.name, f.size, f.digest) for f in listed.files]
    if alone:
        bad = wrong(record, files, hub.cached(wanted, listed), again=again)
        return _refuse(
            bad, wanted, "differs from the hub's version", "give the host access to the hub"
        )
    for last in (False, True):
        paths = hub.cached(wanted, listed)
        if len(paths) < len(files):
            with _told(wanted, listed):
                paths = hub.download(wanted, listed)
        bad = wrong(record, files, paths, again=again)
        for name in bad:
            _remove(paths[name])
        if not bad:
            return None
        if last:
            what = "was received with a wrong SHA-256 or size twice, and was removed"
            _refuse(bad, wanted, what, "check the proxy or mirror between the host and the hub")
    return None


def _refuse(bad: list[str], wanted: ModelRef, what: str, hint: str) -> None:
    if bad:
        raise ProblemError(f"{', '.join(bad)} of {wanted.source} {what}", hint)


def _remove(path: Path) -> None:
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


@contextmanager
def _told(wanted: ModelRef, listed: Listing) -> Iterator[None]:
    """Tell how much is there while the body runs, at most a line for each hundredth."""
    ended = threading.Event()

    def tell() -> None:
        last = hub.on_disk(wanted, listed)
        while not ended.wait(EVERY_S):
            done = hub.on_disk(wanted, listed)
            if (done - last) * 100 >= listed.size:
                say(model=wanted.source, done=done, total=listed.size)
                last = done

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def manifest(path: Path, *, whole: bool) -> dict[str, str]:
    """Return "SIZE" or "SIZE DIGEST" of every file, by name; `whole` reads the large ones too."""
    if not path.exists():
        raise ProblemError(f"the model {path} does not exist", "copy it to the host, or mount it")
    found = [path] if path.is_file() else sorted(_files(path))
    if not found:
        raise ProblemError(f"the model's folder {path} is empty", "copy the model to the host")
    if len(found) > MOST_FILES:
        raise ProblemError(
            f"{path} holds more than {MOST_FILES} files", "check that it is a model's folder"
        )
    root = path.parent if path.is_file() else path
    return {str(f.relative_to(root)): _mark(f, whole=whole) for f in found}


def _files(folder: Path) -> Iterator[Path]:
    for entry in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in entry.relative_to(folder).parts)
        if entry.is_file() and not hidden:
            yield entry


def _mark(path: Path, *, whole: bool) -> str:
    size = path.stat().st_size
    return f"{size} {hashed(path)[:16]}" if whole or size <= SMALL else str(size)


if __name__ == "__main__":
    main()
