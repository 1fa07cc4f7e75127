"""Hands a model of the hub's cache from node to node: `python -m raycluster.serve.share ORDER`.

ORDER is a file of JSON that is removed once it was read: what `transfer` is told but for the items,
and `model`, `listed` (what the model's files are, of a node that has them) and `secrets_path`.
Without `listed` it only tells what is here: `held`, whole or None.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from raycluster.serve import hub
from raycluster.serve.fetch import record_of
from raycluster.serve.hub import File, Listing, ProblemError
from raycluster.serve.model_refs import ModelRef
from raycluster.serve.node_files import load_secrets
from raycluster.serve.transfer import Item, read_order, run, say
from raycluster.serve.verify import VerifiedFiles, hashed, wrong


def main() -> None:
    order = read_order(sys.argv[1])
    load_secrets(order["secrets_path"])
    wanted = ModelRef(**order["model"])
    record = record_of(wanted)
    try:
        if order.get("listed") is None:
            say({"held": held(wanted, record)})
            return
        listed = Listing.from_json(order["listed"])
        if not order["peers"]:
            _refuse_wrong(wanted, listed, record)
            paths = hub.cached(wanted, listed)
            run(order, _items(listed, paths), say, lambda: None)
            return
        _refuse_strange(wanted, listed)
        paths = {file.name: _place(wanted, file) for file in listed.files}
        run(order, _items(listed, paths), say, lambda: put_to_use(wanted, listed, record))
    except ProblemError as problem:
        say({"error": problem.what})
    except OSError as error:
        say({"error": f"{wanted.source}: {error}"})


def held(wanted: ModelRef, record: VerifiedFiles) -> dict[str, Any] | None:
    """Return the listing of what is here without asking the hub, where all of it is."""
    if not hub.model_folder(wanted).exists():
        return None
    known = record.kept.get("listings", {}).get(wanted.key)
    listed = Listing.from_json(known) if known else hub.found(wanted)
    if listed is None or not hub.complete(wanted, listed):
        return None
    paths = hub.cached(wanted, listed)
    files = tuple(File(f.name, f.size, f.digest or hashed(paths[f.name])) for f in listed.files)
    return Listing(listed.commit, files).to_json()


def put_to_use(wanted: ModelRef, listed: Listing, record: VerifiedFiles) -> None:
    """Make what was brought and checked the hub cache's: the files' names and the revision."""
    folder = hub.model_folder(wanted)
    snapshot = folder / "snapshots" / listed.commit
    for file in listed.files:
        blob, name = _place(wanted, file), snapshot / file.name
        name.parent.mkdir(parents=True, exist_ok=True)
        new = name.with_name(f"{name.name}.{os.getpid()}")
        new.symlink_to(os.path.relpath(blob, name.parent))
        new.replace(name)
        stat = blob.stat()
        right = record.kept.setdefault("right", {})
        right[str(blob.resolve())] = [stat.st_size, stat.st_mtime_ns, file.digest]
    if wanted.revision != listed.commit:
        reference = folder / "refs" / wanted.revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(listed.commit)
    record.kept.setdefault("listings", {})[wanted.key] = listed.to_json()
    record.save()


def _items(listed: Listing, paths: Mapping[str, Path]) -> list[Item]:
    return [Item(paths[f.name].resolve(), f.size, f.digest) for f in listed.files]


def _refuse_strange(wanted: ModelRef, listed: Listing) -> None:
    """Let no name from another node lead out of the model's folder."""
    names = [*(f.name for f in listed.files), wanted.revision, listed.commit]
    if any(PurePosixPath(n).is_absolute() or ".." in PurePosixPath(n).parts for n in names):
        raise ProblemError(f"{wanted.source} lists files outside its folder")
    if not all(re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", f.digest) for f in listed.files):
        raise ProblemError(f"{wanted.source} has no digests")


def _place(wanted: ModelRef, file: File) -> Path:
    """Return where the hub's cache keeps a file's content: under its digest."""
    return hub.model_folder(wanted) / "blobs" / file.digest


def _refuse_wrong(wanted: ModelRef, listed: Listing, record: VerifiedFiles) -> None:
    """Raise ProblemError where a file is not as it was checked."""
    paths: Mapping[str, Path] = hub.cached(wanted, listed)
    bad = wrong(record, [(f.name, f.size, f.digest) for f in listed.files], paths, again=False)
    if bad:
        raise ProblemError(f"{', '.join(bad)} of {wanted.source} is damaged")
    record.save()


if __name__ == "__main__":
    main()
