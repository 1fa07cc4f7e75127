"""`raycluster bench`: put load on the endpoint, tell what it did and whether to believe it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from raycluster import session
from raycluster.session import Json, SpecOption

if TYPE_CHECKING:
    from raycluster.bench.run import Reached

Prompts = Annotated[
    str, typer.Option("--prompts", "-p", metavar="FILE", help="JSON, CSV or text; - for stdin.")
]
Synthetic = Annotated[
    str, typer.Option(help="Instead: random tokens, prompt=512,output=128; also prefix=, count=.")
]
Url = Annotated[str, typer.Option(help="Measure this endpoint instead of the cluster's own.")]
ModelName = Annotated[str, typer.Option("--model", "-m", help="Default: the spec's first model.")]
Key = Annotated[str, typer.Option(help="The API key's source: env:NAME, file:PATH or cmd:COMMAND.")]
CaFile = Annotated[str, typer.Option(help="PEM file that the endpoint's certificate is held to.")]
Slots = Annotated[str, typer.Option("--concurrency", "-c", help="Closed loop: 8, or 1,8,32.")]
Rate = Annotated[str, typer.Option("--rate", "-r", help="Open loop: requests per second.")]
Burstiness = Annotated[
    float | None, typer.Option(help="Open loop: 1 is Poisson, less comes in bursts (gamma).")
]
Replay = Annotated[
    float | None,
    typer.Option(help="Send when the lines' timestamps (ms) say; 2 is twice as fast."),
]
Ramp = Annotated[float, typer.Option(help="Seconds to reach the full load; not in the figures.")]
FindMax = Annotated[
    str, typer.Option(help="Search the highest rate with such as 'ttft_p99<500ms,error_rate<1%'.")
]
Goodput = Annotated[
    str, typer.Option(help="Count the requests that keep such as 'ttft<500ms,tpot<50ms'.")
]
Processes = Annotated[int, typer.Option(help="Send from so many processes.")]
Calibrate = Annotated[
    bool, typer.Option(help="Measure afterwards what this client can send at all.")
]
Requests = Annotated[
    int | None, typer.Option("--num-requests", "-n", help="Per level; the file starts again.")
]
Repeat = Annotated[int, typer.Option(help="Send the file so many times.")]
Duration = Annotated[float | None, typer.Option(help="Stop sending after so many seconds.")]
WarmUp = Annotated[int | None, typer.Option(help="Requests before each level; default: 1 a slot.")]
Timeout = Annotated[float, typer.Option(help="Seconds that one request may take.")]
Seed = Annotated[int, typer.Option(help="Of the arrivals in the open loop.")]
Salt = Annotated[bool, typer.Option(help="Keep repeats out of vLLM's prefix cache.")]
Endpoint = Annotated[
    Literal["chat", "completions", "responses", "messages", "embeddings"],
    typer.Option(help="Where bare prompts are sent."),
]
Column = Annotated[str, typer.Option(help="The field or column of FILE that holds the prompts.")]
MultiTurn = Annotated[
    bool, typer.Option(help="Send each turn of a conversation, with what was said before it.")
]
MaxTokens = Annotated[
    int, typer.Option(help="For lines that say nothing; 0: the server's limit.", min=0)
]
IgnoreEos = Annotated[bool, typer.Option(help="Always generate up to the limit (vLLM).")]
From = Annotated[Literal["here", "head"], typer.Option("--from", help="Where the load is made.")]
Limits = Annotated[
    list[str] | None, typer.Option("--assert", help="Such as 'ttft_p95<3s'; missed: exit code 4.")
]
Baseline = Annotated[Path | None, typer.Option(help="summary.json of a run to compare with.")]
MaxRegress = Annotated[str, typer.Option(help="Such as 5%; exit code 4 when worse by more.")]
Resume = Annotated[bool, typer.Option(help="Go on with the run in -o that was cut short.")]
Format = Annotated[
    Literal["table", "json", "vllm"],
    typer.Option("--format", help="vllm: as its own client saves."),
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Folder for summary.json, requests.jsonl.")
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
    """Load the cluster with the prompts of a file. Reports latency, throughput and errors."""
    from raycluster.bench.run import Options, run
    from raycluster.endpoint import key_headers
    from raycluster.errors import UsageError

    if source == "head" and resume:
        what = "a run on the head does not note where its levels end"
        raise UsageError(what, where="--resume", hint="name a new folder")
    options = Options(
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
        console=session.out(),
        tell=_tell,
    )


@contextmanager
def _target(
    spec: Path | None, url: str, model: str, headers: dict[str, str], ca_file: str
) -> Iterator[Reached]:
    """Yield the endpoint given by `url`, or else the cluster's, through its head."""
    from raycluster import endpoint, scrape
    from raycluster.bench.run import Reached
    from raycluster.openai_wire.target import Target

    if url:
        target = endpoint.given(url, model, headers, ca_file)
        with scrape.of_url(target, _tell) as watch:
            yield Reached(target, watch=watch)
        return
    opened = session.open_session(spec)
    served = endpoint.served_model(opened, model)
    with (
        opened.fleet() as fleet,
        endpoint.once(opened, fleet) as (base_url, alive),
        scrape.of_cluster(opened.spec, fleet, served, _tell) as watch,
    ):
        yield Reached(Target(base_url, served, headers, ca_file), alive, watch=watch)


def _tell(line: str) -> None:
    session.err().print(line, markup=False)


@contextmanager
def _head(spec: Path | None, url: str, model: str) -> Iterator[Reached]:
    """Yield the cluster's own endpoint as its head reaches it, for a load that is made there."""
    from raycluster import endpoint, scrape
    from raycluster.bench.run import Reached
    from raycluster.errors import UsageError
    from raycluster.from_head import FromHead
    from raycluster.openai_wire.target import Target

    if url:
        raise UsageError("the head asks its own cluster", where="--url", hint="leave --from out")
    opened = session.open_session(spec)
    served = endpoint.served_model(opened, model)
    with opened.fleet() as fleet:
        head = fleet.open(opened.spec.hosts[0])
        target = Target(f"http://127.0.0.1:{opened.spec.ports.api}", served)
        inside = head.runtime.inside(head.host.role)
        with scrape.of_cluster(opened.spec, fleet, served, _tell) as watch:
            yield Reached(target, bench=FromHead(head.host.name, inside), watch=watch)
