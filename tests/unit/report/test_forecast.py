"""The forecast as people read it and as programs do."""

from __future__ import annotations

import io

from rich.console import Console

from raycluster.plan.forecast.downloads import Download
from raycluster.plan.forecast.fits import ModelForecast, Problem
from raycluster.plan.forecast.interruptions import Interruption
from raycluster.plan.forecast.whole import CostChange, Forecast
from raycluster.plan.sizing.memory import Fit, ReplicaMemory
from raycluster.report.forecast import forecast_json, forecast_view
from raycluster.report.outcome import plan_json
from raycluster.state.inventory import Disk
from tests.unit.plan.forecast.given import GIB, spec_of

LOAD = ReplicaMemory(16 * GIB, 8_000_000_000, 131_072.0, 8192, ())
FIT = Fit(80 * GIB, 64 * GIB, 16 * GIB, 48 * GIB, GIB, 48.5)
NO = Fit(24 * GIB, 19 * GIB, 16 * GIB, 3 * GIB, 4 * GIB, 0.75, "one request takes 4", "shorten")
MODEL = ModelForecast("llama", 1, 2, 256, LOAD, {"head": FIT, "gpu-1": FIT, "gpu-2": NO})
UNKNOWN = ModelForecast(
    "other",
    1,
    1,
    256,
    ReplicaMemory(None, None, None, None, ()),
    {"head": Fit(80 * GIB)},
    0,
    ("no config",),
)
WHOLE = Forecast(
    models=(MODEL, UNKNOWN),
    downloads=(
        Download("head", "meta/llama", 16_060_000_000, "/hub", Disk(10**12, "8:1")),
        Download("gpu-1", "image ray:1", None, "", None, certain=False),
        Download("gpu-2", "image ray:1", 5_000_000_000, "", None, False, stored=9_000_000_000),
    ),
    interruptions=(Interruption("llama", "the model is unavailable for about 42 s", 42.0),),
    cost=CostChange("EUR", 7.5, -2.5, ("gpu-2",)),
    problems=(Problem("llama", "fits on no host", "shorten"),),
    warnings=(Problem("gpu-2", "too small"),),
)


def shown(forecast: Forecast) -> list[str]:
    text = io.StringIO()
    Console(file=text, width=200).print(forecast_view(forecast))
    return [line.rstrip() for line in text.getvalue().splitlines()]


def test_a_person_reads_what_is_wrong_first_and_only_what_there_is_to_say() -> None:
    assert shown(WHOLE) == [
        "✗ llama: fits on no host",
        "    next: shorten",
        "! gpu-2: too small",
        "MODEL  WEIGHTS   A REQUEST                 HOSTS        FULL-LENGTH REQUESTS AT ONCE",
        "llama  16.0 GiB  1.0 GiB for 8,192 tokens  head, gpu-1  up to 48 (256 asked for)",
        "llama  16.0 GiB  4.0 GiB for 8,192 tokens  gpu-2        does not fit",
        "other  ?         ?                         head         unknown",
        "  other: cannot tell whether it fits: no config",
        "HOST   TO FETCH                               FREE       IN",
        "head   meta/llama (16.1 GB)                   1000.0 GB  /hub",
        "gpu-1  image ray:1 (unknown size)             ?",
        "gpu-2  image ray:1 (5.0 GB, 9.0 GB unpacked)  ?",
        "~ llama: the model is unavailable for about 42 s",
        "cost: 7.50 EUR per hour (-2.50 by this change); without a price: gpu-2",
    ]
    assert shown(Forecast()) == []


def test_a_program_reads_everything_in_bytes_and_null_for_unknown() -> None:
    told = forecast_json(WHOLE)
    assert set(told) == {
        *("problems", "warnings", "notes", "models", "downloads", "interruptions", "cost"),
    }
    llama, other = told["models"]
    assert llama["weights_bytes"] == 16 * GIB
    assert llama["hosts"]["head"]["fits"] is True
    assert llama["hosts"]["gpu-2"]["fits"] is False
    assert llama["hosts"]["gpu-2"]["hint"] == "shorten"
    assert (other["hosts"]["head"]["fits"], other["unknown"]) == (None, ["no config"])
    assert told["downloads"][1] == {
        "host": "gpu-1",
        "what": "image ray:1",
        "bytes": None,
        "stored_bytes": None,
        "exact": False,
        "folder": None,
        "free_bytes": None,
    }
    assert told["interruptions"] == [
        {"where": "llama", "what": "the model is unavailable for about 42 s", "seconds": 42.0}
    ]
    assert told["cost"]["change"] == -2.5


def test_the_plan_has_its_forecast_beside_the_changes() -> None:
    told = plan_json(spec_of(), (), Forecast())
    assert (told["schema"], told["changes"], told["models"], told["cost"]) == (1, [], [], None)
    assert set(plan_json(spec_of(), ())) == {"schema", "cluster", "changes"}
