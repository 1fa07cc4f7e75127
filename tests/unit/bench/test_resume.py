from __future__ import annotations

import json
from dataclasses import replace

from raycluster.bench.load import Conditions
from raycluster.bench.record import Record
from raycluster.bench.resume import End
from raycluster.bench.schedule import Closed, Load
from raycluster.bench.verdict import Client
from tests.unit.bench.level import requests
from tests.unit.bench.test_server import FIRST, grown, level, seen

LOAD = Load((Closed(4),))


def end() -> End:
    server = seen(*level(a=[FIRST, grown(20, running=2.0), grown(300)], b=[None, FIRST, None]))
    return End(Closed(4), range(3, 9), Client(None, 0.5), 0, False, 3000, server)


def test_a_level_that_is_over_keeps_what_the_servers_did() -> None:
    before = end()
    plain = json.loads(json.dumps(before.to_json()))
    assert End.from_json(plain).to_json() == plain
    records: list[Record] = requests(6)
    again = End.from_json(plain).level(records, LOAD, Conditions())
    assert again.seen.server
    assert before.server
    assert again.seen.server.replicas == before.server.replicas
    assert again.seen.server.samples[1] == before.server.samples[1]
    assert "the servers generated" not in str(again.verdict.reasons)
    others = replace(before, generated=1).level(records, LOAD, Conditions())
    assert "the servers generated" in str(others.verdict.reasons)


def test_a_level_of_an_earlier_version_has_no_figures_of_servers() -> None:
    plain = end().to_json()
    del plain["server"], plain["generated"]
    again = End.from_json(json.loads(json.dumps(plain)))
    assert (again.server, again.generated) == (None, None)
