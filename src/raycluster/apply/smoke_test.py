"""Asks every model for a completion, at the end of `up`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from raycluster.apply.context import ApplyContext, ray_api
from raycluster.core.errors import AppError, RayclusterError
from raycluster.core.untrusted import read_json
from raycluster.core.wait import raise_lasting
from raycluster.hosts.http import http_client
from raycluster.observe.replica_endpoints import report as report_of
from raycluster.observe.replica_endpoints import reports
from raycluster.serve.settings import ENGINE_HEADER, ENGINE_PATH
from raycluster.spec import Model

PROMPT = "The capital of France is"
PROOF_S = 120.0
FIRST_ENGINE = "vllm"
UNKNOWN_REASON = "the replica gives no reason"


@dataclass(frozen=True)
class Fallback:
    """An engine that serves though another comes first, and why."""

    engine: str
    reason: str


@dataclass(frozen=True)
class Proof:
    """A completion that the cluster gave: the model, the engine that served it, and its text.

    `fallback` is there where a replica is served by another engine than the one that comes first.
    `seconds` are the parts of the start of the replica that said so.
    """

    model: str
    engine: str
    text: str
    fallback: Fallback | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)


def prove(work: ApplyContext) -> tuple[Proof, ...]:
    """Ask every model for a completion; return what came back. Raises AppError."""
    transport = work.fleet[work.head.name].transport
    most = max(PROOF_S, work.spec.cluster.app_timeout)
    with http_client(transport, work.spec.ports.api, timeout=PROOF_S) as client:
        proofs = tuple(
            _complete(client, model, PROOF_S if model.least_replicas else most)
            for model in work.spec.models
        )
    names = {m.name for m in work.spec.models if m.engine == "auto"}
    if names <= {proof.model for proof in proofs if proof.fallback}:
        return proofs
    others = fallbacks(_replicas(work), names)  # another replica may have answered
    return tuple(p if p.fallback else replace(p, fallback=others.get(p.model)) for p in proofs)


def _replicas(work: ApplyContext) -> list[Mapping[str, Any]]:
    """Return what the running replicas tell of themselves, each asked at its own port."""
    with ray_api(work) as api:
        apps = api.apps()
    running = {r.pid for app_ in apps for r in app_.replicas if r.state == "RUNNING"}
    asked = work.fleet.reach(work.spec.hosts, lambda connected: reports(work.spec, connected))
    told = [report for each in asked.values() if isinstance(each, tuple) for report in each]
    return [report for report in told if report.get("pid") in running]


def fallbacks(reports: Iterable[Mapping[str, Any]], models: Set[str]) -> dict[str, Fallback]:
    """Return the fallback of each of the models of which a replica has one."""
    found: dict[str, Fallback] = {}
    told = [report for report in reports if report.get("model") in models]
    for model in {str(report["model"]) for report in told}:
        all_ = [report for report in told if report["model"] == model]
        fell = [report for report in all_ if report.get("engine") != FIRST_ENGINE]
        if fell:
            part = f"{len(fell)} of {len(all_)} replicas: " if len(fell) < len(all_) else ""
            reason = str(fell[0].get("reason") or UNKNOWN_REASON)
            found[model] = Fallback(str(fell[0].get("engine")), part + reason)
    return found


def _complete(client: httpx.Client, model: Model, seconds: float) -> Proof:
    """Ask for a completion; a model without a replica has so many seconds to start one."""
    body = {"model": model.name, "prompt": PROMPT, "max_tokens": 8, "temperature": 0}
    end = time.monotonic() + 60
    while True:
        try:
            answer = client.post("/v1/completions", json=body, timeout=seconds)
        except httpx.HTTPError as error:
            raise_lasting(error)
            if isinstance(error, httpx.TimeoutException) or time.monotonic() > end:
                raise AppError(
                    f"no response to a completion request: {error}", where=model.name
                ) from error
        else:
            if answer.status_code not in (404, 429, 503) or time.monotonic() > end:
                break
        # HAProxy learns its routes a moment after the replicas run, by another that follows it.
        time.sleep(0.25)
    if answer.is_error:
        raise AppError(
            f"responded with {answer.status_code} to a completion request: {answer.text[:500]}",
            where=model.name,
            hint="raycluster logs app",
        )
    engine = answer.headers.get(ENGINE_HEADER, "")
    text = read_json(answer.content, "the model", model.name)["choices"][0]["text"].text(2000)
    told = _report(client, model)
    fallback = None
    if model.engine == "auto" and engine not in (FIRST_ENGINE, ""):
        fallback = Fallback(engine, str(told.get("reason") or UNKNOWN_REASON))
    return Proof(model.name, engine, text, fallback, told.get("seconds") or {})


def _report(client: httpx.Client, model: Model) -> Mapping[str, Any]:
    """Return what a replica tells of itself, or nothing; the router tells of all models."""
    try:
        answer = client.get(ENGINE_PATH, params={"model": model.name}).raise_for_status()
        told = read_json(answer.content, "a replica")
    except (httpx.HTTPError, RayclusterError):
        return {}
    return report_of(told["models"][model.name] if "models" in told else told)
