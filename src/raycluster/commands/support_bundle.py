"""`raycluster support-bundle`: one archive of what tells how a cluster is, without secrets."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raycluster import session
from raycluster.session import Json, SpecOption, SpecPath

if TYPE_CHECKING:
    from raycluster.events import Event
    from raycluster.services.wiring import Secrets

Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="The archive; default: raycluster-CLUSTER-TIME.tar.gz in this folder.",
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]


def support_bundle(
    spec: SpecPath = None,
    named: SpecOption = None,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write spec, plan, state, versions, logs, events and metrics into one archive, no secrets.

    What cannot be had costs nothing else, and is named in it.
    """
    from raycluster.errors import SecretError, UsageError

    if str(output) == "-":
        what = "the archive goes into a file, which its owner alone can read"
        raise UsageError(what, where="--output", hint="-o FILE; then cat FILE")
    opened = session.open_session(spec, named)
    from raycluster.bundle.archive import check_folder, refuse_existing
    from raycluster.bundle.run import bundle, default_path, megabytes

    path = output or default_path(opened.spec, time.time())
    (check_folder if force else refuse_existing)(path)
    lock = threading.Lock()

    def listen(event: Event) -> None:
        with lock:
            session.err().print(f"{event.subject}: {event.text}", markup=False)

    secrets: Secrets | SecretError
    try:
        secrets = opened.secrets()
    except SecretError as error:
        secrets = error
    dotenv = opened.path.parent / ".env"
    with opened.fleet() as fleet:
        done = bundle(opened.spec, fleet, secrets, listen, path=path, dotenv=dotenv)
    if as_json:
        failed = [{"part": name, "error": what} for name, what in done.problems.items()]
        session.print_json(
            {
                "schema": 1,
                "cluster": opened.spec.cluster.name,
                "file": str(done.path),
                "bytes": done.size,
                "files": done.files,
                "failed": failed,
            }
        )
        return
    session.out().print(f"{done.path}: {done.files} files, {megabytes(done.size)}", markup=False)
    if done.problems:
        session.out().print(f"  {len(done.problems)} parts could not be had: see errors.txt in it")
    session.out().print("  look through it before you hand it on: names and addresses are in it")
