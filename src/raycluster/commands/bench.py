"""`raycluster bench`: put load on the endpoint, tell what it did and whether to believe it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from raycluster.commands import _console
from raycluster.commands._arguments import Json, SpecOption
from raycluster.hosts import session

if TYPE_CHECKING:
    from raycluster.bench.run import LoadTarget


def bench(
    *,
    prompts: Annotated[
        str, typer.Option("--prompts", "-p", metavar="FILE", help="JSON, CSV or text; - for stdin.")
    ] = "",
    synthetic: Annotated[
        str,
        typer.Option(
            help="Random prompts instead of a file: prompt=512,output=128[,prefix=N,count=N] "
            "tokens."
        ),
    ] = "",
    spec: SpecOption = None,
    url: Annotated[str, typer.Option(help="Test this endpoint instead of the cluster.")] = "",
    model: Annotated[
        str, typer.Option("--model", "-m", help="Model to request. Default: the first in the spec.")
    ] = "",
    api_key: Annotated[
        str, typer.Option(help="Source of the API key: env:NAME, file:PATH or cmd:COMMAND.")
    ] = "",
    ca_file: Annotated[
        str, typer.Option(help="CA certificates (PEM) to verify the endpoint with.")
    ] = "",
    concurrency: Annotated[
        str,
        typer.Option(
            "--concurrency",
            "-c",
            help="Closed loop: requests in flight, such as 8, or 1,8,32 for several levels.",
        ),
    ] = "",
    rate: Annotated[
        str,
        typer.Option("--rate", "-r", help="Open loop: requests per second; several with commas."),
    ] = "",
    burstiness: Annotated[
        float | None,
        typer.Option(
            help="Open loop: shape of the gamma distribution of arrivals; 1 is Poisson, less is "
            "burstier."
        ),
    ] = None,
    replay: Annotated[
        float | None,
        typer.Option(
            help="Replay the timestamps (ms) in the file, at this speed; 2 is twice as fast."
        ),
    ] = None,
    ramp: Annotated[
        float, typer.Option(help="Seconds to ramp up to the full load; excluded from the results.")
    ] = 0.0,
    find_max: Annotated[
        str,
        typer.Option(
            help="Find the highest rate that meets limits such as 'ttft_p99<500ms,error_rate<1%'."
        ),
    ] = "",
    goodput: Annotated[
        str,
        typer.Option(
            help="Report the rate of requests that meet limits such as 'ttft<500ms,tpot<50ms'."
        ),
    ] = "",
    processes: Annotated[int, typer.Option(help="Number of client processes.")] = 1,
    calibrate: Annotated[
        bool, typer.Option(help="Measure the client's own maximum rate after the test.")
    ] = True,
    requests: Annotated[
        int | None,
        typer.Option(
            "--num-requests", "-n", help="Requests per load level; prompts repeat as needed."
        ),
    ] = None,
    repeat: Annotated[int, typer.Option(help="Times to send the whole file.")] = 1,
    duration: Annotated[
        float | None, typer.Option(help="Seconds to send requests, per load level.")
    ] = None,
    warmup: Annotated[
        int | None,
        typer.Option(
            help="Warm-up requests before each load level. Default: one per concurrent request."
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Timeout of one request, in seconds.")] = 300.0,
    seed: Annotated[
        int, typer.Option(help="Random seed of arrival times and --synthetic prompts.")
    ] = 0,
    salt: Annotated[
        bool, typer.Option(help="Make each prompt unique, to avoid prefix cache hits.")
    ] = False,
    column: Annotated[str, typer.Option(help="Field or column of FILE with the prompts.")] = "",
    multi_turn: Annotated[
        bool, typer.Option(help="Send each turn of a conversation, with what was said before it.")
    ] = False,
    endpoint: Annotated[
        Literal["chat", "completions", "responses", "messages", "embeddings"],
        typer.Option(help="API for prompts that do not name one."),
    ] = "chat",
    max_tokens: Annotated[
        int,
        typer.Option(
            help="Maximum output tokens if a line sets none; 0: the server's limit.", min=0
        ),
    ] = 256,
    ignore_eos: Annotated[
        bool, typer.Option(help="Always generate the maximum number of tokens (vLLM).")
    ] = False,
    source: Annotated[
        Literal["here", "head"],
        typer.Option("--from", help="Where to generate the load: on this machine or on the head."),
    ] = "here",
    limits: Annotated[
        list[str] | None,
        typer.Option(
            "--assert",
            help="Fail with exit code 4 unless this holds, such as 'ttft_p95<3s'; repeatable.",
        ),
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="summary.json of an earlier run to compare with.")
    ] = None,
    max_regress: Annotated[
        str,
        typer.Option(
            help="Fail with exit code 4 if worse than the baseline by more than this, such as 5%."
        ),
    ] = "",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for summary.json, requests.jsonl, requests.csv and report.html.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option(help="Continue an interrupted run in the folder of -o.")
    ] = False,
    format: Annotated[
        Literal["table", "json", "vllm"],
        typer.Option("--format", help="Output format; vllm is that of `vllm bench serve`."),
    ] = "table",
    as_json: Json = False,
) -> None:
    """Run a load test and report latency, throughput and errors."""
    given = {**locals(), "max_tokens": max_tokens or None, "limits": tuple(limits or ())}
    if as_json:
        given["format"] = "json"
    from raycluster.bench.run import BenchOptions, run
    from raycluster.core.errors import UsageError
    from raycluster.tunnel.cluster_api import key_headers

    if source == "head" and resume:
        what = "a run on the head (--from head) cannot be resumed"
        raise UsageError(what, where="--resume", hint="choose a new folder")
    options = BenchOptions(
        **{name: value for name, value in given.items() if name in BenchOptions.__annotations__}
    )
    headers = key_headers(api_key, url)
    run(
        options,
        lambda: (
            _target(spec, url, model, headers, ca_file)
            if source == "here"
            else _head(spec, url, model)
        ),
        stdin=sys.stdin.buffer,
        console=_console.out(),
        tell=_tell,
    )


@contextmanager
def _target(
    spec: Path | None, url: str, model: str, headers: dict[str, str], ca_file: str
) -> Iterator[LoadTarget]:
    """Yield the endpoint given by `url`, or else the cluster's, through its head."""
    from raycluster.bench import server_metrics
    from raycluster.bench.run import LoadTarget
    from raycluster.openai_client.target import Target
    from raycluster.tunnel import cluster_api as endpoint

    if url:
        target = endpoint.given(url, model, headers, ca_file)
        with server_metrics.of_url(target, _tell) as watch:
            yield LoadTarget(target, watch=watch)
        return
    opened = session.open_session(spec)
    served = endpoint.served_model(opened, model)
    with (
        opened.fleet() as fleet,
        endpoint.once(opened, fleet) as (base_url, alive),
        server_metrics.of_cluster(opened.spec, fleet, served, _tell) as watch,
    ):
        yield LoadTarget(Target(base_url, served, headers, ca_file), alive, watch=watch)


def _tell(line: str) -> None:
    _console.err().print(line, markup=False)


@contextmanager
def _head(spec: Path | None, url: str, model: str) -> Iterator[LoadTarget]:
    """Yield the cluster's own endpoint as its head reaches it, for a load that is made there."""
    from raycluster.bench import server_metrics
    from raycluster.bench.head_runner import FromHead
    from raycluster.bench.run import LoadTarget
    from raycluster.core.errors import UsageError
    from raycluster.openai_client.target import Target
    from raycluster.tunnel import cluster_api as endpoint

    if url:
        raise UsageError(
            "the head can only test its own cluster", where="--url", hint="omit --from"
        )
    opened = session.open_session(spec)
    served = endpoint.served_model(opened, model)
    with opened.fleet() as fleet:
        head = fleet.open(opened.spec.head_host)
        target = Target(f"http://127.0.0.1:{opened.spec.ports.api}", served)
        inside = head.runtime.inside(head.host.role)
        with server_metrics.of_cluster(opened.spec, fleet, served, _tell) as watch:
            yield LoadTarget(target, bench=FromHead(head.host.name, inside), watch=watch)
