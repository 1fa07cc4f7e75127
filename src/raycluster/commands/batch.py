"""`raycluster batch`: a file of requests through the cluster, each answered once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from raycluster.commands import _console
from raycluster.commands._arguments import Json, SpecOption
from raycluster.hosts import session

if TYPE_CHECKING:
    from raycluster.batch.run import Runner
    from raycluster.core.interfaces import Tell
    from raycluster.openai_client.target import Target

Input = Annotated[
    Path, typer.Argument(metavar="INPUT", help="Requests or prompts: JSON, CSV or text.")
]
Output = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="FILE", help="Result file: one line per line of INPUT."),
]
Url = Annotated[str, typer.Option(help="Send to this endpoint instead of the cluster.")]
ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="Model for every line. Default: the line's own, else the first in the spec.",
    ),
]
Key = Annotated[
    str, typer.Option(help="Source of the API key: env:NAME, file:PATH or cmd:COMMAND.")
]
CaFile = Annotated[str, typer.Option(help="CA certificates (PEM) to verify the endpoint with.")]
Slots = Annotated[
    int | None,
    typer.Option(
        "--concurrency",
        "-c",
        help="Maximum requests in flight; adapts to the load. Default: 64, or 64 per replica "
        "with --offline.",
        show_default=False,
    ),
]
Timeout = Annotated[float, typer.Option(help="Timeout of one attempt, in seconds.")]
Retries = Annotated[int, typer.Option("--max-retries", help="Retries per line.")]
LineTime = Annotated[float, typer.Option(help="Seconds after which to give up on a failing line.")]
Patience = Annotated[float, typer.Option(help="Stop after this many seconds without any response.")]
Limit = Annotated[int | None, typer.Option(help="Only the first N lines.")]
Strict = Annotated[bool, typer.Option(help="Send nothing if any line is invalid.")]
Order = Annotated[bool, typer.Option(help="Sort FILE in the order of INPUT at the end.")]
Column = Annotated[str, typer.Option(help="Field or column of INPUT with the prompts.")]
RetryErrors = Annotated[bool, typer.Option(help="Retry the lines that ended in an error.")]
Offline = Annotated[
    bool,
    typer.Option(
        "--offline", help="Send from a Ray job on the cluster instead of from this machine."
    ),
]
Endpoint = Annotated[
    Literal["chat", "completions", "responses", "messages", "embeddings"],
    typer.Option(help="API for prompts that do not name one."),
]
MaxTokens = Annotated[
    int,
    typer.Option(help="Maximum output tokens if a line sets none; 0: the server's limit.", min=0),
]


def batch(
    input_: Input,
    *,
    output: Output,
    spec: SpecOption = None,
    url: Url = "",
    model: ModelName = "",
    api_key: Key = "",
    ca_file: CaFile = "",
    offline: Offline = False,
    concurrency: Slots = None,
    timeout: Timeout = 600.0,
    max_retries: Retries = 8,
    line_time: LineTime = 3600.0,
    patience: Patience = 900.0,
    limit: Limit = None,
    strict: Strict = False,
    order: Order = False,
    retry_errors: RetryErrors = False,
    column: Column = "",
    endpoint: Endpoint = "chat",
    max_tokens: MaxTokens = 0,
    as_json: Json = False,
) -> None:
    """Send every request in INPUT and save each result; run it again to resume."""
    from raycluster.batch.console import batch_console
    from raycluster.batch.job import RequestShape
    from raycluster.batch.online import online
    from raycluster.batch.run import BatchOptions, run
    from raycluster.core.errors import UsageError
    from raycluster.serve.asking.retrying_client import Tries
    from raycluster.tunnel.cluster_api import key_headers, served_model

    if offline and (url or api_key or ca_file):
        raise UsageError(
            "sends to the cluster's own models, from inside the cluster",
            where="--offline",
            hint="omit --url, --api-key and --ca-file",
        )
    opened = None if url else session.open_session(spec)
    own = served_model(opened, model) if opened else ""
    options = BatchOptions(
        input_,
        output,
        shape=RequestShape(endpoint, max_tokens or None, model, own, column),
        concurrency=concurrency,
        tries=Tries(timeout, max_retries, line_time, patience),
        limit=limit,
        strict=strict,
        order=order,
        retry_errors=retry_errors,
        json=as_json,
    )
    headers = key_headers(api_key, url)

    def runner(tell: Tell) -> Runner:
        if offline and opened:
            from raycluster.batch.head_session import site
            from raycluster.batch.offline import offline as through_cluster

            return through_cluster(site(opened))
        return online(lambda: _target(opened, url, headers, ca_file, tell))

    with batch_console(sys.stdout, _console.err()) as said:
        try:
            run(options, runner(said.tell), said)
        except KeyboardInterrupt as interrupt:
            said.tell("interrupted; run the same command to continue")
            raise typer.Exit(130) from interrupt


@contextmanager
def _target(
    opened: session.OpenedSpec | None, url: str, headers: dict[str, str], ca_file: str, tell: Tell
) -> Iterator[tuple[Target, Callable[[], None]]]:
    """Yield the endpoint given by `url`, or else the cluster's, on a connection that is kept."""
    from raycluster.openai_client.target import Target
    from raycluster.tunnel import cluster_api as endpoint

    if opened is None:
        yield endpoint.given(url, "", headers, ca_file), lambda: None
        return
    with endpoint.kept(opened, tell) as (base_url, check):
        yield Target(base_url, "", headers, ca_file), check
