"""Whether a level's figures can be believed, and why not; pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from raycluster.bench.server import ServerFigures
from raycluster.bench.stats import Measures, SampleStats

Grade = Literal["VALID", "SUSPECT", "INVALID"]
Finding = tuple[Grade, str]

INVALID_ERROR_RATE = 0.05
SAMPLES = {"p95": 20, "p99": 100}
"""With fewer samples the percentile is little more than the slowest request."""
BUSY_CLIENT = 0.85
BUSIER_CLIENT = 0.97
FULL = 0.8
"""A client that sends more than this share of what it can is near its own limit."""
LAG_MS = 5.0
LAG_OF_TTFT = 0.1
LAG_INVALID = 0.5
HITS, HITS_OF_REPEATS = 0.05, 0.01
"""The shares of the input tokens that may come from the prefix cache."""
UNEVEN = 1.5
UNEVEN_FROM = 20
"""Requests for each replica, from which on the busiest is compared with the idlest."""
OTHERS_TOKENS, OTHERS_SHARE = 64, 0.01
"""Tokens generated beside those of the run, which `status` and probes may have asked for."""


@dataclass(frozen=True)
class Client:
    """How the client itself fared: its event loops' lag, and its busiest thread's share of a core.

    `capacity` is how many such requests per second it can send at all, where that was measured.
    """

    loop_lag_ms: SampleStats | None
    cpu_share: float
    processes: int = 1
    capacity: float | None = None


@dataclass(frozen=True)
class Circumstances:
    """What the figures alone do not show.

    `slots` is the concurrency that was asked for (None: open loop), `rate` the requests per second
    that were asked for (None: closed loop), `repeated` how many requests had been sent before
    with the same content, `salted` whether such requests carried a cache salt; `prefix_expected`
    that the prompts are meant to begin alike. `generated` are the output tokens of all the level's
    requests, those of its ramp too. `server` is the servers' own side, where it was seen.
    """

    client: Client
    slots: int | None = None
    rate: float | None = None
    repeated: int = 0
    salted: bool = False
    interrupted: bool = False
    prefix_expected: bool = False
    generated: int | None = None
    server: ServerFigures | None = None


@dataclass(frozen=True)
class Verdict:
    """The grade, and one reason per finding; VALID has none."""

    grade: Grade
    reasons: tuple[str, ...] = ()


def judge(measures: Measures, seen: Circumstances) -> Verdict:
    """Return the verdict on one level."""
    findings = [
        *_errors(measures),
        *_samples(measures),
        *_client(measures, seen.client),
        *_load(measures, seen),
        *_cache(measures, seen),
    ]
    if seen.server is not None:
        findings += [*_replicas(seen.server), *_engine(measures, seen, seen.server)]
    grades = {grade for grade, _ in findings}
    grade: Grade = "VALID"
    if grades:
        grade = "INVALID" if "INVALID" in grades else "SUSPECT"
    return Verdict(grade, tuple(reason for _, reason in findings))


def worst(verdicts: list[Verdict]) -> Grade:
    """Return the lowest grade among the verdicts."""
    grades: tuple[Grade, ...] = ("INVALID", "SUSPECT", "VALID")
    return next(grade for grade in grades if any(v.grade == grade for v in verdicts))


def _errors(measures: Measures) -> Iterator[Finding]:
    if not measures.failed:
        return
    kinds = ", ".join(f"{count} {name}" for name, count in measures.errors.items())
    total = measures.completed + measures.failed
    grade: Grade = "INVALID" if measures.error_rate > INVALID_ERROR_RATE else "SUSPECT"
    yield grade, f"{measures.failed} of {total} requests failed ({kinds})"


def _samples(measures: Measures) -> Iterator[Finding]:
    count = measures.completed
    thin = [name for name, needed in SAMPLES.items() if count < needed]
    if count and thin:
        yield "SUSPECT", f"too few samples for {' and '.join(thin)}: {count} answers"
    if count and measures.total_output_tokens is None:
        yield "SUSPECT", "some responses had no usage field: their tokens were not counted"


def _client(measures: Measures, client: Client) -> Iterator[Finding]:
    if client.cpu_share > BUSY_CLIENT:
        grade: Grade = "INVALID" if client.cpu_share > BUSIER_CLIENT else "SUSPECT"
        yield grade, f"client-bound: sending and reading took {client.cpu_share:.0%} of a core"
    if client.capacity is not None and measures.request_throughput > FULL * client.capacity:
        able = f"{client.capacity:,.0f} requests/s of this size"
        yield "SUSPECT", f"client-bound: it can send {able}; more --processes may send more"
    if client.loop_lag_ms is None or measures.ttft_ms is None:
        return
    lag, ttft = client.loop_lag_ms.p99, measures.ttft_ms.p50
    if lag > max(LAG_MS, LAG_OF_TTFT * ttft):
        grade = "INVALID" if lag > max(LAG_MS, LAG_INVALID * ttft) else "SUSPECT"
        yield grade, f"client-bound: its event loop lagged by {lag:.1f} ms (p99)"


def _load(measures: Measures, seen: Circumstances) -> Iterator[Finding]:
    total = measures.completed + measures.failed
    if seen.interrupted:
        yield "SUSPECT", "interrupted before the end"
    if seen.slots is not None and total < seen.slots:
        yield "SUSPECT", f"{total} requests cannot fill {seen.slots} slots"
    delay, e2el = measures.client_delay_ms, measures.e2el_ms
    if delay is None or e2el is None:
        return
    if delay.p95 > max(LAG_MS, LAG_OF_TTFT * e2el.p50):
        yield "SUSPECT", f"requests waited in the client for {delay.p95:.0f} ms (p95)"


def _cache(measures: Measures, seen: Circumstances) -> Iterator[Finding]:
    again = seen.repeated if not seen.salted else 0
    share = seen.server.prefix_cache_hit_rate if seen.server else None
    if share is None and measures.total_cached_tokens is not None:
        share = measures.total_cached_tokens / (measures.total_input_tokens or 1)
    if share is None:
        if again:
            yield "SUSPECT", f"{again} requests repeat a prompt: prefix-cache hits are possible"
        return
    hits = f"{share:.0%} of the input tokens came from the prefix cache"
    if again and share > HITS_OF_REPEATS:
        yield "SUSPECT", f"{hits}: {again} requests repeat a prompt"
    elif not again and not seen.prefix_expected and share > HITS:
        but = "despite --salt" if seen.repeated else "although this run repeats no prompt"
        yield "SUSPECT", f"{hits} {but}: an earlier run sent them, or they share prefixes"


def _replicas(server: ServerFigures) -> Iterator[Finding]:
    came = [replica for replica in server.replicas if replica.came is not None]
    went = [replica for replica in server.replicas if replica.went is not None]
    if came and went:
        when = f"{went[0].place} last responded after {went[0].went:.0f} s"
        yield "INVALID", f"a replica ended and another started: {when}"
    elif came or went:
        numbers = f"between {server.fewest_replicas} and {server.most_replicas}"
        yield "SUSPECT", f"the number of replicas changed, {numbers}"
    else:
        yield from _uneven(server)


def _uneven(server: ServerFigures) -> Iterator[Finding]:
    took = sorted((r.requests, r.place) for r in server.replicas if r.requests is not None)
    total = sum(count for count, _ in took)
    if len(took) < 2 or total < UNEVEN_FROM * len(took):
        return
    (least, idlest), (most, busiest) = took[0], took[-1]
    if most > UNEVEN * least:
        shares = f"{busiest} served {most} of {total} requests, {idlest} {least}"
        yield "SUSPECT", f"load was uneven: {shares}"


def _engine(measures: Measures, seen: Circumstances, server: ServerFigures) -> Iterator[Finding]:
    if server.preemptions:
        yield "SUSPECT", f"{server.preemptions} preemptions: the KV cache was full"
    if measures.failed or seen.interrupted or seen.generated is None:
        return
    others = (server.generation_tokens or 0) - seen.generated
    if others > max(OTHERS_TOKENS, OTHERS_SHARE * seen.generated):
        yield "SUSPECT", f"the servers generated {others:,} tokens for other clients during the run"
