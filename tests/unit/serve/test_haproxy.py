from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raycluster.serve.connections import most_connections
from raycluster.serve.haproxy import ALIKE, edited, metrics_relay, refusals, told
from raycluster.serve.node_files import own_address
from raycluster.serve.settings import ModelSettings, applications
from raycluster.services.data_path import HAPROXY
from raycluster.services.node_files import haproxy_file

CONFIG = """\
frontend prometheus
    bind :9101
    mode http
frontend http_frontend
    bind 127.0.0.1:8000
    log global
listen stats
  bind *:8404
  stats enable
"""
REFUSALS = "".join([*ALIKE, *refusals()])


def test_metrics_and_statistics_are_for_this_host_alone() -> None:
    private = CONFIG.replace(":9101", "127.0.0.1:9101").replace("*:8404", "127.0.0.1:8404")
    assert edited(CONFIG, {}, {}).replace(REFUSALS, "") == private


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (6, 3), (64, 4)])
def test_haproxy_takes_half_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert f"\n    nbthread {threads}\n" in edited("global\n    nbthread 4\n", {}, {})


def test_nothing_is_spliced() -> None:
    config = "defaults\n    option splice-request\n    option splice-response\n    mode http\n"
    made = edited(config, {}, {})
    assert "splice" not in made
    assert made.endswith("    mode http\n")


def test_a_model_s_requests_go_to_its_own_application() -> None:
    lines = edited(CONFIG, {"org/first": "/m/org-first", "second": "/m/second"}, {}).splitlines()
    at = lines.index("    bind 127.0.0.1:8000")
    added = lines[at + 1 : lines.index("    log global")][len(ALIKE) : -len(refusals())]
    assert added[:-1] == [
        "    # raycluster: to the application of the model that the body names",
        "    http-request wait-for-body time 10s if METH_POST",
        "    http-request set-var(txn.raycluster_model) req.body,json_query('$.model')"
        " if METH_POST !{ path_beg /m/ }",
        "    http-request set-var(txn.raycluster_model) url_param(model),url_dec"
        " if !METH_POST !{ path_beg /m/ }",
        "    http-request set-path /m/org-first%[path]"
        " if { var(txn.raycluster_model) -m str org/first }",
        "    http-request set-path /m/second%[path] if { var(txn.raycluster_model) -m str second }",
    ]
    assert added[-1].endswith("if { req.hdr(upgrade) -m str -i websocket } !{ path_beg /m/ }")


@pytest.mark.parametrize(
    ("name", "route"),
    [("a b", "/m/a"), ("a }", "/m/a"), ("a\nstats", "/m/a"), ("a", "/m/a b"), ("a", "/v1/%[x]")],
)
def test_what_is_no_plain_name_is_left_to_the_router(name: str, route: str) -> None:
    assert edited(CONFIG, {name: route}, {}) == edited(CONFIG, {}, {})


def test_another_configuration_is_left_as_it_is() -> None:
    other = "frontend http_frontend\n    mode http\n    bind 127.0.0.1:8000\n"
    assert edited(other, {"a": "/m/a"}, {"a": "sticky"}) == other


@pytest.mark.parametrize("text", [None, "", "[]", "{", "{}", '{"routes": [], "routing": 1}'])
def test_what_is_absent_or_damaged_is_nothing(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "told").write_text(text)
    assert told(str(tmp_path / "told")) == {"routes": {}, "routing": {}, "limits": {}}


def test_what_is_told_of_a_deployment_is_what_the_program_reads(tmp_path: Path) -> None:
    models = [ModelSettings("org/a", "/a", routing="sticky"), ModelSettings("b", "/b")]
    [content] = haproxy_file(applications(models, fingerprint="f")).values()
    (tmp_path / "told").write_bytes(content)
    assert told(str(tmp_path / "told")) == {
        "routes": {"org/a": "/m/org-a", "b": "/m/b"},
        "routing": {"org-a": "sticky", "b": "least-busy"},
        "limits": {"org-a": [256, 1024], "b": [256, 1024]},
    }


def test_it_becomes_haproxy_with_the_edited_configuration(tmp_path: Path) -> None:
    """The program is found on the PATH here; on a node Ray brings it."""
    config = tmp_path / "haproxy.cfg"
    config.write_text(CONFIG)
    other = tmp_path / "bin" / "haproxy"
    other.parent.mkdir()
    other.write_text('#!/bin/sh\necho "$@"; env | grep -c RAY_SERVE_HAPROXY_BINARY_PATH\n')
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(HAPROXY)
    for program in (other, wrapper):
        program.chmod(0o700)
    done = subprocess.run(
        [wrapper, "-db", "-f", config],
        env={
            "PATH": f"{other.parent}:{Path(sys.executable).parent}:{os.defpath}",
            "PYTHONPATH": str(Path(__file__).parents[3] / "src"),
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(wrapper),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == f"-db -f {config}\n0\n", done.stderr
    assert config.read_text() == edited(CONFIG, {}, {}, connections=most_connections())


@pytest.mark.parametrize(
    ("address", "line"),
    [("10.0.0.2", "    bind 10.0.0.2:8000"), ("fd00::2", "    bind [fd00::2]:8000 v6only")],
)
def test_other_nodes_get_in_at_the_nodes_address(address: str, line: str) -> None:
    lines = edited(CONFIG, {}, {}, address=address).splitlines()
    assert lines[lines.index("    bind 127.0.0.1:8000") + 1] == line


def test_serves_own_proxy_is_asked_where_it_listens() -> None:
    config = "backend http-a\n    server P ::1:8500 check backup\n"
    config += "    server R ::1:30000 check observe\n    server P2 ::1:8500 track http-a/P backup\n"
    lines = edited(config, {}, {}).splitlines()
    assert lines[1:] == [
        "    server P 127.0.0.1:8500 check backup tcp-ut 5s",
        "    server R ::1:30000 check observe tcp-ut 5s",
        "    server P2 127.0.0.1:8500 track http-a/P backup",
    ]


def test_rays_metrics_are_told_at_an_address_that_ray_leaves_out() -> None:
    assert metrics_relay("fd00::2", 6385).splitlines() == [
        "listen raycluster_metrics",
        "    bind [fd00::2]:6385 v6only",
        "    server ray 127.0.0.1:6385",
    ]
    assert metrics_relay("fd00::2", 0) == metrics_relay("", 6385) == ""


@pytest.mark.parametrize("address", ["", "host", "10.0.0.2 ssl", "0.0.0.0\n    bind :1"])
def test_what_is_no_address_opens_nothing(address: str) -> None:
    assert edited(CONFIG, {}, {}, address=address) == edited(CONFIG, {}, {})


def test_its_log_has_no_query_strings() -> None:
    lines = edited("defaults\n    option httplog\n", {}, {}).splitlines()
    assert "    option httplog" not in lines
    assert "%HPO" in lines[-1]


def test_hosts_that_vanish_are_given_up() -> None:
    config = "defaults\n    mode http\nbackend http-a\n    server A 10.0.0.2:30000 check observe\n"
    lines = edited(config, {}, {}).splitlines()
    assert "    option srvtcpka" in lines
    assert lines[-1] == "    server A 10.0.0.2:30000 check observe tcp-ut 5s"


@pytest.mark.parametrize(
    ("content", "address"),
    [
        *(("[{}, {}]", "10.0.0.2"), ("[{}]", ""), ("", ""), ("{", ""), ("3", ""), ("{}", "")),
        ('{"schema": 1, "members": [{}, {}]}', "10.0.0.2"),
        ('{"schema": 1, "members": [{}]}', ""),
        ('{"schema": 1, "members": 2}', ""),
    ],
)
def test_a_lone_node_has_no_address_for_others(
    content: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYCLUSTER_ROOT", str(tmp_path))
    monkeypatch.setenv("RAYCLUSTER_ADDRESS", "10.0.0.2")
    (tmp_path / "members.json").write_text(content)
    assert own_address() == address


def test_before_any_application_is_known_a_later_try_is_advised() -> None:
    default = (
        "backend default_backend\n    http-request return status 404 content-type text/plain "
        "lf-string \"Path \\'%[path]\\' not found. Ping http://.../-/routes for routes.\"\n"
    )
    line = edited(default, {}, {}).splitlines()[1]
    assert line.startswith("    http-request return status 503 content-type application/json")
    assert line.endswith("hdr retry-after 1")
