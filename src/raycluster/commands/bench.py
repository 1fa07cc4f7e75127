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

Prompts = Annotated[
    str, typer.Option("--prompts", "-p", metavar="FILE", help="JSON, CSV or text; - for stdin.")
]
Synthetic = Annotated[
    str,
    typer.Option(
        help="Random prompts instead of a file: prompt=512,output=128[,prefix=N,count=N] tokens."
    ),
]
Url = Annotated[str, typer.Option(help="Test this endpoint instead of the cluster.")]
ModelName = Annotated[
    str, typer.Option("--model", "-m", help="Model to request. Default: the first in the spec.")
]
Key = Annotated[
    str, typer.Option(help="Source of the API key: env:NAME, file:PATH or cmd:COMMAND.")
]
CaFile = Annotated[str, typer.Option(help="CA certificates (PEM) to verify the endpoint with.")]
Slots = Annotated[
    str,
    typer.Option(
        "--concurrency",
        "-c",
        help="Closed loop: requests in flight, such as 8, or 1,8,32 for several levels.",
    ),
]
Rate = Annotated[
    str, typer.Option("--rate", "-r", help="Open loop: requests per second; several with commas.")
]
Burstiness = Annotated[
    float | None,
    typer.Option(
        help="Open loop: shape of the gamma distribution of arrivals; 1 is Poisson, less is "
        "burstier."
    ),
]
Replay = Annotated[
    float | None,
    typer.Option(help="Replay the timestamps (ms) in the file, at this speed; 2 is twice as fast."),
]
Ramp = Annotated[
    float, typer.Option(help="Seconds to ramp up to the full load; excluded from the results.")
]
FindMax = Annotated[
    str,
    typer.Option(
        help="Find the highest rate that meets limits such as 'ttft_p99<500ms,error_rate<1%'."
    ),
]
Goodput = Annotated[
    str,
    typer.Option(
        help="Report the rate of requests that meet limits such as 'ttft<500ms,tpot<50ms'."
    ),
]
Processes = Annotated[int, typer.Option(help="Number of client processes.")]
Calibrate = Annotated[
    bool, typer.Option(help="Measure the client's own maximum rate after the test.")
]
Requests = Annotated[
    int | None,
    typer.Option("--num-requests", "-n", help="Requests per load level; prompts repeat as needed."),
]
Repeat = Annotated[int, typer.Option(help="Times to send the whole file.")]
Duration = Annotated[float | None, typer.Option(help="Seconds to send requests, per load level.")]
WarmUp = Annotated[
    int | None,
    typer.Option(
        help="Warm-up requests before each load level. Default: one per concurrent request."
    ),
]
Timeout = Annotated[float, typer.Option(help="Timeout of one request, in seconds.")]
Seed = Annotated[int, typer.Option(help="Random seed of arrival times and --synthetic prompts.")]
Salt = Annotated[bool, typer.Option(help="Make each prompt unique, to avoid prefix cache hits.")]
Endpoint = Annotated[
    Literal["chat", "completions", "responses", "messages", "embeddings"],
    typer.Option(help="API for prompts that do not name one."),
]
Column = Annotated[str, typer.Option(help="Field or column of FILE with the prompts.")]
MultiTurn = Annotated[
    bool, typer.Option(help="Send each turn of a conversation, with what was said before it.")
]
MaxTokens = Annotated[
    int,
    typer.Option(help="Maximum output tokens if a line sets none; 0: the server's limit.", min=0),
]
IgnoreEos = Annotated[
    bool, typer.Option(help="Always generate the maximum number of tokens (vLLM).")
]
From = Annotated[
    Literal["here", "head"],
    typer.Option("--from", help="Where to generate the load: on this machine or on the head."),
]
Limits = Annotated[
    list[str] | None,
    typer.Option(
        "--assert",
        help="Fail with exit code 4 unless this holds, such as 'ttft_p95<3s'; repeatable.",
    ),
]
Baseline = Annotated[
    Path | None, typer.Option(help="summary.json of an earlier run to compare with.")
]
MaxRegress = Annotated[
    str,
    typer.Option(
        help="Fail with exit code 4 if worse than the baseline by more than this, such as 5%."
    ),
]
Resume = Annotated[bool, typer.Option(help="Continue an interrupted run in the folder of -o.")]
Format = Annotated[
    Literal["table", "json", "vllm"],
    typer.Option("--format", help="Output format; vllm is that of `vllm bench serve`."),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="Folder for summary.json, requests.jsonl, requests.csv and report.html.",
    ),
]


def bench(
    *,
    prompts: Prompts = "",
    synthetic: Synthetic = "",
    spec: SpecOption = None,
    url: Url = "",
    model: ModelName = "",
    api_key: Key = "",
    ca_file: CaFile = "",
    concurrency: Slots = "",
    rate: Rate = "",
    burstiness: Burstiness = None,
    replay: Replay = None,
    ramp: Ramp = 0.0,
    find_max: FindMax = "",
    goodput: Goodput = "",
    processes: Processes = 1,
    calibrate: Calibrate = True,
    num_requests: Requests = None,
    repeat: Repeat = 1,
    duration: Duration = None,
    warmup: WarmUp = None,
    timeout: Timeout = 300.0,
    seed: Seed = 0,
    salt: Salt = False,
    column: Column = "",
    multi_turn: MultiTurn = False,
    endpoint: Endpoint = "chat",
    max_tokens: MaxTokens = 256,
    ignore_eos: IgnoreEos = False,
    source: From = "here",
    limits: Limits = None,
    baseline: Baseline = None,
    max_regress: MaxRegress = "",
    output: Output = None,
    resume: Resume = False,
    form: Format = "table",
    as_json: Json = False,
) -> None:
    """Run a load test and report latency, throughput and errors."""
    from raycluster.bench.run import BenchOptions, run
    from raycluster.core.errors import UsageError
    from raycluster.tunnel.cluster_api import key_headers

    if source == "head" and resume:
        what = "a run on the head (--from head) cannot be resumed"
        raise UsageError(what, where="--resume", hint="choose a new folder")
    options = BenchOptions(
        prompts,
        synthetic,
        concurrency=concurrency,
        rate=rate,
        burstiness=burstiness,
        replay=replay,
        ramp=ramp,
        find_max=find_max,
        goodput=goodput,
        processes=processes,
        calibrate=calibrate,
        requests=num_requests,
        repeat=repeat,
        duration=duration,
        warmup=warmup,
        timeout=timeout,
        seed=seed,
        salt=salt,
        column=column,
        multi_turn=multi_turn,
        endpoint=endpoint,
        max_tokens=max_tokens or None,
        ignore_eos=ignore_eos,
        limits=tuple(limits or ()),
        baseline=baseline,
        max_regress=max_regress,
        output=output,
        resume=resume,
        format="json" if as_json else form,
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
