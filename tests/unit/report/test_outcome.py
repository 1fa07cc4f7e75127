from __future__ import annotations

from collections.abc import Mapping

import pytest

from raycluster.apply.converge import Outcome
from raycluster.apply.smoke_test import Fallback, Proof
from raycluster.core.interfaces import Secret
from raycluster.plan.actions import Deploy
from raycluster.plan.rollout import Rollout
from raycluster.report.outcome import fell_back, outcome_json, outcome_text
from raycluster.services.grafana import HOW_TO_READ
from raycluster.spec import ClusterSpec
from raycluster.spec.services import Monitoring

PASSWORD = "Grafana0123456789"
SPEC = ClusterSpec.model_validate({"cluster": {"name": "q"}, "head": {"host": "h0"}})
TOOK = {"import": 9.1, "engine": 0.3, "load": 2.2, "compile": 8.4, "warm_up": 3.0, "total": 23.0}


def outcome(seconds: Mapping[str, float], *, changed: bool) -> Outcome:
    actions = (Deploy(Rollout((), {}), ("m: changed",)),) if changed else ()
    return Outcome(actions, (Proof("m", "vllm", "Paris", seconds=seconds),))


@pytest.mark.parametrize(
    ("seconds", "changed", "said"),
    [
        (TOOK, True, "vllm started in 23 s: import 9, load 2, compile 8, warm-up 3"),
        ({"load": 0.2, "total": 0.4}, True, "vllm started in 0 s"),
        (TOOK, False, ""),
        ({}, True, ""),
    ],
)
def test_a_new_start_is_told_by_its_parts(
    seconds: Mapping[str, float], changed: bool, said: str
) -> None:
    lines = outcome_text(SPEC, outcome(seconds, changed=changed)).splitlines()
    assert [line.strip() for line in lines if "started in" in line] == ([said] if said else [])


def test_programs_get_all_the_parts() -> None:
    (told,) = outcome_json(SPEC, outcome(TOOK, changed=True))["completions"]
    assert told["start_seconds"] == TOOK


def test_a_fallback_is_told_first_and_is_an_error() -> None:
    fallback = Fallback("transformers", "ImportError: libcuda.so.1")
    fell = Outcome((), (Proof("m", "transformers", "Paris", fallback),))
    first, why, answered, *_ = outcome_text(SPEC, fell).splitlines()
    assert first == "q is up, but degraded: 0 changes"
    assert why == "  ! m: is served by transformers, not by vLLM: ImportError: libcuda.so.1"
    assert answered == "  m (transformers) responded: 'Paris'"
    [told] = outcome_json(SPEC, fell)["completions"]
    assert told["fallback_reason"] == "ImportError: libcuda.so.1"
    [error] = fell_back(fell)
    assert (error.exit_code, error.where) == (3, "m")
    assert str(error).startswith(why.removeprefix("  ! "))
    assert error.hint


def test_what_was_asked_for_is_no_error() -> None:
    served = outcome({}, changed=False)
    assert fell_back(served) == ()
    assert outcome_text(SPEC, served).startswith("q is up: 0 changes")


def test_a_new_password_is_shown_to_persons_alone() -> None:
    brought = Outcome((), (), Secret(PASSWORD))
    told = outcome_text(SPEC, brought, private=True)
    assert f"Grafana's user is admin, the password {PASSWORD}, shown only once" in told
    logged = outcome_text(SPEC, brought)
    assert PASSWORD not in logged + str(outcome_json(SPEC, brought)) + repr(brought)
    for text in (told, logged):
        assert text.splitlines()[-1].strip() == HOW_TO_READ
        assert len(text.splitlines()[-1]) <= 80
    assert "Grafana" not in outcome_text(SPEC, Outcome((), ()), private=True)


def test_grafana_is_among_the_endpoints_where_the_spec_has_it() -> None:
    shown = SPEC.model_copy(update={"monitoring": Monitoring(grafana=True)})
    url = "http://127.0.0.1:3000"
    assert url in outcome_text(shown, outcome({}, changed=False))
    assert url not in outcome_text(SPEC, outcome({}, changed=False))
