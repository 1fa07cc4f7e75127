"""Changes that go wrong, or that two people make at once, on a cluster that serves."""

from __future__ import annotations

import os
import random
import time

import pytest

from tests.lab.faults.cluster import Faulty, failures, told
from tests.lab.host import wait_for

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1200)]

# `make test` takes a few of each; the figures in docs/decisions/faults.md are of more.
PAIRS = int(os.environ.get("RAYCLUSTER_PAIRS", "2"))
KILLS = int(os.environ.get("RAYCLUSTER_KILLS", "3"))
REQUESTS = int(os.environ.get("RAYCLUSTER_REQUESTS", "300"))
RATE = float(os.environ.get("RAYCLUSTER_RATE", "20"))
SEED = 20261126


@pytest.mark.long
def test_a_version_that_cannot_start_costs_no_request(faulty: Faulty) -> None:
    wait_for(faulty.whole, "three replicas", 120)
    text = faulty.spec.read_text()
    attempts = 0
    with faulty.load(rate=RATE) as load:
        since = load.now()
        faulty.spec.write_text(text.replace("max_model_len = 1024", "max_modle_len = 1024"))
        try:
            while not attempts or len(load.answers) < REQUESTS:
                attempts += 1
                done = faulty.cli("deploy", faulty.spec, timeout=200)
                assert done.returncode == 1
                assert "transformers has no argument 'max_modle_len'" in done.stderr
                assert "the previous version keeps serving" in done.stderr
        finally:
            faulty.spec.write_text(text)
        back = faulty.cli("deploy", faulty.spec, timeout=300)
        assert back.returncode == 0, back.stderr
    told(f"bad rollout, tried {attempts} times", load, since)
    assert failures(load) == []
    assert faulty.up() == []


@pytest.mark.long
def test_of_two_at_once_one_changes_and_the_other_names_it(faulty: Faulty) -> None:
    slowest = 0.0
    for _ in range(PAIRS):
        faulty.hosts[1].check("docker", "rm", "-f", "raycluster-faults-worker")
        began = time.monotonic()
        pair = [faulty.cli.start("up", faulty.spec) for _ in range(2)]
        ended: dict[int, float] = {}
        while len(ended) < 2:
            for at, program in enumerate(pair):
                if at not in ended and program.poll() is not None:
                    ended[at] = time.monotonic() - began
            time.sleep(0.02)
        said = [program.communicate() for program in pair]
        codes = [program.returncode for program in pair]
        assert sorted(codes) == [0, 5], said
        loser = codes.index(5)
        slowest = max(slowest, ended[loser])
        assert "is being changed by `raycluster up` of " in said[loser][1]
    print(f"{PAIRS} pairs at once: the slowest loser was told after {slowest:.1f} s")
    assert slowest < 5
    wait_for(faulty.whole, "three replicas", 120)


@pytest.mark.long
def test_killed_at_any_moment_the_next_up_converges(faulty: Faulty) -> None:
    chance = random.Random(SEED)
    text = faulty.spec.read_text()
    for kill in range(KILLS):
        faulty.spec.write_text(
            text.replace("max_model_len = 1024", f"max_model_len = {900 + kill}")
        )
        faulty.hosts[1].check("docker", "rm", "-f", "raycluster-faults-worker")
        program = faulty.cli.start("up", faulty.spec)
        time.sleep(chance.uniform(0.2, 20))
        program.kill()
        program.communicate()
    faulty.spec.write_text(text)
    assert faulty.up(timeout=600) != []
    assert faulty.up() == []
    wait_for(faulty.whole, "three replicas", 120)
