"""`raycluster batch`: a file of requests through the cluster, each answered once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from raycluster import session
from raycluster.session import Json, SpecOption

if TYPE_CHECKING:
    from raycluster.batch.run import Way
    from raycluster.contracts import Tell
    from raycluster.openai_wire.target import Target

Input = Annotated[
    Path, typer.Argument(metavar="INPUT", help="Requests or prompts: JSON, CSV or text.")
]
Output = Annotated[
    Path, typer.Option("--output", "-o", metavar="FILE", help="Gets one line per line of INPUT.")
]
Url = Annotated[str, typer.Option(help="Send to this endpoint instead of the cluster's own.")]
ModelName = Annotated[
    str,
    typer.Option("--model", "-m", help="For every line; default: its own, or the spec's first."),
]
Key = Annotated[str, typer.Option(help="The API key's source: env:NAME, file:PATH or cmd:COMMAND.")]
CaFile = Annotated[str, typer.Option(help="PEM file that the endpoint's certificate is held to.")]
Slots = Annotated[
    int | None,
    typer.Option(
        "--concurrency",
        "-c",
        help="Most requests at once; adapts below it. Default: 64, or 64 a replica with --offline.",
        show_default=False,
    ),
]
Timeout = Annotated[float, typer.Option(help="Seconds that one attempt may take.")]
Retries = Annotated[int, typer.Option("--max-retries", help="Attempts after the first, per line.")]
LineTime = Annotated[float, typer.Option(help="Seconds after which a failing line is given up.")]
Patience = Annotated[
    float, typer.Option(help="Seconds without any answer after which the run stops.")
]
Limit = Annotated[int | None, typer.Option(help="Only the first so many lines.")]
Strict = Annotated[bool, typer.Option(help="Send nothing when a line is no request.")]
Order = Annotated[bool, typer.Option(help="At the end, bring FILE into the order of INPUT.")]
Column = Annotated[str, typer.Option(help="The field or column of INPUT that holds the prompts.")]
RetryErrors = Annotated[bool, typer.Option(help="Send lines again that ended as errors.")]
Offline = Annotated[
    bool,
    typer.Option("--offline", help="Let a job on the cluster send the lines, not this machine."),
]
Endpoint = Annotated[
    Literal["chat", "completions", "responses", "messages", "embeddings"],
    typer.Option(help="Where bare prompts are sent."),
]
MaxTokens = Annotated[
    int, typer.Option(help="For lines that say nothing; 0: the server's limit.", min=0)
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
    """Send every line of INPUT and keep each result; after a break the same command goes on."""
    from raycluster.batch.job import Shape
    from raycluster.batch.online import online
    from raycluster.batch.run import Options, run
    from raycluster.batch.voice import voice
    from raycluster.endpoint import key_headers, served_model
    from raycluster.errors import UsageError
    from raycluster.serve.asking.asker import Tries

    if offline and (url or api_key or ca_file):
        raise UsageError(
            "goes to the cluster's own app, from inside",
            where="--offline",
            hint="leave out --url, --api-key and --ca-file",
        )
    opened = None if url else session.open_session(spec)
    own = served_model(opened, model) if opened else ""
    options = Options(
        input_,
        output,
        shape=Shape(endpoint, max_tokens or None, model, own, column),
        concurrency=concurrency,
        tries=Tries(timeout, max_retries, line_time, patience),
        limit=limit,
        strict=strict,
        order=order,
        retry_errors=retry_errors,
        json=as_json,
    )
    headers = key_headers(api_key, url)

    def way(tell: Tell) -> Way:
        if offline and opened:
            from raycluster.batch.offline import offline as through_cluster
            from raycluster.site import site

            return through_cluster(site(opened))
        return online(lambda: _target(opened, url, headers, ca_file, tell))

    with voice(sys.stdout, session.err()) as said:
        try:
            run(options, way(said.tell), said)
        except KeyboardInterrupt as interrupt:
            said.tell("interrupted; the same command goes on from here")
            raise typer.Exit(130) from interrupt


@contextmanager
def _target(
    opened: session.Session | None, url: str, headers: dict[str, str], ca_file: str, tell: Tell
) -> Iterator[tuple[Target, Callable[[], None]]]:
    """Yield the endpoint given by `url`, or else the cluster's, on a connection that is kept."""
    from raycluster import endpoint
    from raycluster.openai_wire.target import Target

    if opened is None:
        yield endpoint.given(url, "", headers, ca_file), lambda: None
        return
    with endpoint.kept(opened, tell) as (base_url, check):
        yield Target(base_url, "", headers, ca_file), check
