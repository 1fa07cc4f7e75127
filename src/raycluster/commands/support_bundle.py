"""`raycluster support-bundle`: one archive of what tells how a cluster is, without secrets."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raycluster.commands import _console
from raycluster.commands._arguments import Json, SpecOption, SpecPath
from raycluster.hosts import session

if TYPE_CHECKING:
    from raycluster.core.events import Event
    from raycluster.spec.secret_values import Secrets

Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Archive to write. Default: ./raycluster-CLUSTER-TIME.tar.gz.",
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing file.")]


def support_bundle(
    spec: SpecPath = None,
    named: SpecOption = None,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Collect spec, plan, state, versions, logs, events and metrics in one archive.

    Secrets are removed. Parts that cannot be collected are listed in the archive.
    """
    from raycluster.core.errors import SecretError, UsageError

    if str(output) == "-":
        what = "the archive goes into a file, which its owner alone can read"
        raise UsageError(what, where="--output", hint="-o FILE; then cat FILE")
    opened = session.open_session(spec, named)
    from raycluster.support.archive import check_folder, refuse_existing
    from raycluster.support.run import bundle, default_path, megabytes

    path = output or default_path(opened.spec, time.time())
    (check_folder if force else refuse_existing)(path)
    lock = threading.Lock()

    def listen(event: Event) -> None:
        with lock:
            _console.err().print(f"{event.subject}: {event.text}", markup=False)

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
        _console.print_json(
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
    _console.out().print(f"{done.path}: {done.files} files, {megabytes(done.size)}", markup=False)
    if done.problems:
        _console.out().print(
            f"  {len(done.problems)} parts could not be collected: see errors.txt in it"
        )
    _console.out().print("  review it before you share it: it contains names and addresses")
