from __future__ import annotations

import pytest

from raycluster.serve.balance import STICKY, balanced

CONFIG = """\
frontend http_frontend
    bind 127.0.0.1:8000
backend http-smol
    http-reuse always
    # Servers in this backend
    server SERVE_REPLICA..smol.Model.a 127.0.0.1:30000 check
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
    ids = [line.split(" id ")[1] for line in inside.splitlines() if " id " in line]
    assert len(set(ids)) == 2
    assert " id " not in rest


def test_a_server_keeps_its_id_wherever_it_stands() -> None:
    moved = CONFIG.replace(
        "    server fallback", "    server more 1.2.3.4:5 check\n    server fallback"
    )
    kept = set(balanced(CONFIG, {"smol": "prefix"}).splitlines())
    assert kept < set(balanced(moved, {"smol": "prefix"}).splitlines())
