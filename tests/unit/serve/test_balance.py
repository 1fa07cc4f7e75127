from __future__ import annotations

import pytest

from raycluster.serve.balance import SCRIPT, STICKY, balanced
from raycluster.services.node_files import code_files

CONFIG = """\
global
    maxconn 1
frontend http_frontend
    bind 127.0.0.1:8000
backend http-smol
    http-reuse always
    # Servers in this backend
    server SERVE_REPLICA..smol.Model.a 127.0.0.1:30000 check
    server SERVE_REPLICA..smol.Model.c 127.0.0.1:30002 check
    server fallback 127.0.0.1:8500 check backup
backend http-smol-2
    server b 127.0.0.1:30001 check
"""


@pytest.mark.parametrize("routing", [{}, {"smol": "least-busy"}, {"other": "sticky"}])
def test_what_is_not_chosen_is_left_as_it_is(routing: dict[str, str]) -> None:
    assert balanced(CONFIG, routing) == CONFIG


def test_lines_stand_first_in_their_backend_and_its_servers_have_ids() -> None:
    before, lines, after = balanced(CONFIG, {"smol": "sticky"}).partition(
        "".join(f"    {line}\n" for line in STICKY)
    )
    assert lines
    assert before.endswith("backend http-smol\n")
    inside, rest = after.split("backend http-smol-2\n")
    ids = [line.split(" id ")[1].split()[0] for line in inside.splitlines() if " id " in line]
    assert len(set(ids)) == 3
    assert " id " not in rest


def test_a_server_keeps_its_id_wherever_it_stands() -> None:
    moved = CONFIG.replace(
        "    server fallback", "    server more 1.2.3.4:5 check\n    server fallback"
    )
    kept = set(balanced(CONFIG, {"smol": "prefix"}).splitlines())
    assert kept < set(balanced(moved, {"smol": "prefix"}).splitlines())


@pytest.mark.parametrize("rule", ["sticky", "prefix"])
def test_where_one_replica_is_there_is_nothing_to_choose(rule: str) -> None:
    assert balanced(CONFIG, {"smol-2": rule}) == CONFIG


def test_the_script_is_loaded_where_a_prompt_is_looked_at() -> None:
    lines = balanced(CONFIG, {"smol": "prefix"}).splitlines()
    assert lines[:2] == ["global", f"    lua-load-per-thread '{SCRIPT}'"]
    assert "lua" not in balanced(CONFIG, {"smol": "sticky"})
    without = CONFIG.removeprefix("global\n    maxconn 1\n")
    assert balanced(without, {"smol": "prefix"}) == without


def test_the_script_goes_to_the_nodes() -> None:
    assert code_files()["code/raycluster/serve/prefix.lua"] == SCRIPT.read_bytes()
