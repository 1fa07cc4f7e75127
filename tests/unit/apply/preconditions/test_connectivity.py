"""What is said of the ways between hosts, by what was found at the ports."""

from __future__ import annotations

import errno
import json
import socket
import subprocess
import sys

import pytest

from raycluster.apply.preconditions import connectivity_on_host
from raycluster.apply.preconditions.connectivity import _judged, _Listening, _Way, shared_ports
from raycluster.spec import ClusterSpec

SPEC = ClusterSpec.model_validate(
    {
        "cluster": {"name": "q"},
        "head": {"host": "10.0.0.1"},
        "workers": [{"name": "w", "host": "10.0.0.2"}],
        "models": [{"name": "m"}],
    }
)
ADDRESSES = {"head": "10.0.0.1", "w": "10.0.0.2"}
REFUSED, LOST, AWAY = errno.ECONNREFUSED, errno.ETIMEDOUT, errno.EHOSTUNREACH
W = _Listening("token", 7)
HELD = _Listening("token", 7, frozenset({1}))


@pytest.mark.parametrize(
    ("there", "found", "passed", "said"),
    [
        (W, {1: (0, "token"), 2: (0, "token")}, True, "can reach w at 10.0.0.2"),
        (W, {1: (LOST, ""), 2: (LOST, "")}, False, "cannot reach w at 10.0.0.2: no response"),
        (W, {1: (REFUSED, "")}, False, "cannot reach w at 10.0.0.2: rejected by a firewall"),
        (W, {1: (0, "token"), 2: (LOST, ""), 3: (AWAY, "")}, False,
         "can reach w at 10.0.0.2, but not its ports 2, 3: no response, no route to the host, or "
         "rejected by a firewall"),
        (W, {1: (0, "another's")}, False, "a different machine responds at w at 10.0.0.2"),
        (W, {1: (None, "")}, False, "cannot reach w at 10.0.0.2: connection failed"),
        (HELD, {1: (0, "HTTP"), 2: (0, "token")}, True, "can reach"),
        (HELD, {1: (REFUSED, ""), 2: (0, "token")}, True, "can reach"),
        (None, {1: (REFUSED, "")}, True, "can reach w at 10.0.0.2"),
        (None, {1: (0, "")}, True, "can reach w at 10.0.0.2"),
        (None, {1: (AWAY, "")}, False, "cannot reach w at 10.0.0.2: no route to the host"),
        (None, {1: (None, "")}, True, "could not test whether it can reach w at 10.0.0.2: "),
    ],
)  # fmt: skip
def test_what_is_found_of_a_neighbour(
    there: _Listening | None, found: dict[int, tuple[int | None, str]], *, passed: bool, said: str
) -> None:
    listening = {"w": there} if there else {}
    [tried] = _judged(SPEC, "head", ADDRESSES, listening, {"w": _Way(found)})
    assert tried.failed is not passed
    assert tried.text.startswith(said)
    assert passed or tried.hint


def test_an_address_that_is_another_machines() -> None:
    listening = {"head": _Listening("t", 7, own=False)}
    [tried] = _judged(SPEC, "head", ADDRESSES, listening, {"head": _Way({1: (LOST, "")})})
    assert tried.failed
    assert "private_address" in tried.hint


def test_one_that_is_forwarded_to_a_host_alone_will_do() -> None:
    listening = {"head": _Listening("t", 7, own=False)}
    way = {"head": _Way({1: (0, "t")})}
    assert list(_judged(SPEC, "head", {"head": "10.0.0.1"}, listening, way)) == []


def test_a_host_whose_rules_up_writes_anew_is_not_blamed() -> None:
    spec = SPEC.model_copy(update={"firewall": SPEC.firewall.model_copy(update={"manage": True})})
    listening = {"w": _Listening("t", 7, guarded=True)}
    [tried] = _judged(spec, "head", ADDRESSES, listening, {"w": _Way({1: (LOST, "")})})
    assert not tried.failed
    assert "rewrites" in tried.text


def test_ports_between_nodes_are_those_of_ray_and_the_ends_of_ranges() -> None:
    ports = shared_ports(SPEC)
    assert ports[0] == SPEC.ports.gcs
    assert {SPEC.ports.worker_min, SPEC.ports.worker_max, SPEC.ports.object_manager} <= {*ports}
    assert SPEC.ports.gateway not in ports


def test_the_program_listens_and_connects() -> None:
    program = (sys.executable, "-I", "-S", str(connectivity_on_host.__file__))
    with socket.create_server(("127.0.0.1", 0)) as held, socket.create_server(("", 0)) as free:
        taken, port = held.getsockname()[1], free.getsockname()[1]
        free.close()
        order = {
            **{"ports": [port, taken], "token": "mine", "seconds": 20.0},
            **{"address": "192.0.2.1", "rules": "/"},
        }
        with subprocess.Popen(
            (*program, "listen", json.dumps(order)), stdout=subprocess.PIPE, text=True
        ) as listener:
            assert listener.stdout
            told = json.loads(listener.stdout.readline())
            targets = [["127.0.0.1", port], ["127.0.0.1", 1]]
            dial = json.dumps({"targets": targets, "seconds": 5.0})
            done = subprocess.run((*program, "dial", dial), capture_output=True, check=True)
            listener.stdout.close()  # it ends where nobody reads it
            listener.wait(10)
    assert json.loads(done.stdout) == {"found": [[0, "mine"], [REFUSED, ""]]}
    assert told["taken"] == {str(taken): errno.EADDRINUSE}
    assert told["own"] == errno.EADDRNOTAVAIL
    assert told["guarded"] is True
