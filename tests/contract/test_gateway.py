"""The gateway's process as it runs on a host, in front of a small server: real nginx, real HTTP."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from raycluster.core.interfaces import Process, Secret
from raycluster.services.gateway import FIGURES_PATH
from raycluster.spec import ClusterSpec
from raycluster.spec.secret_values import Secrets
from tests.contract.gateway_api import Api, api, processes, root
from tests.contract.nginx import (
    ALICE,
    BOB,
    KEYS,
    PATH,
    bearer,
    lay,
    process_of,
    running,
    served,
    spec_of,
)
from tests.contract.sshd import wait_for
from tests.ports import free_port, free_ports

__all__ = ["Api", "api", "root"]

pytestmark = pytest.mark.skipif(not shutil.which("nginx", path=PATH), reason="needs nginx")


def reload(root: Path, process: Process) -> subprocess.CompletedProcess[str]:
    """Lay a process's new files beside the former and tell nginx, as `up` does."""
    lay(root, {f"gateway/new/{n.partition('/')[2]}": c for n, c in process.live_files.items()})
    env = {"PATH": PATH, "RAYCLUSTER_ROOT": str(root)}
    return subprocess.run(process.reload, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def guarded(root: Path, api: int) -> Iterator[httpx.Client]:
    """A gateway with two keys."""
    with running(root, api, **KEYS, max_body="100k") as client:
        yield client


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("wrong"),
        bearer(ALICE.upper()),
        bearer(ALICE.replace(".", "x")),
        bearer(ALICE + "x"),
        {"Authorization": f"Basic {ALICE}"},
        {"Authorization": ALICE},
    ],
)
def test_without_a_right_key_nobody_is_let_in(
    guarded: httpx.Client, headers: dict[str, str]
) -> None:
    answer = guarded.get("/v1/models", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_a_key_lets_in_and_goes_no_further(guarded: httpx.Client) -> None:
    answer = guarded.get("/v1/models?a=1", headers=bearer(ALICE))
    assert answer.status_code == 200
    told = answer.json()
    assert told["path"] == "/v1/models?a=1"
    assert "Authorization" not in told["headers"]
    assert told["headers"]["X-Request-Id"] == answer.headers["x-request-id"]


def test_the_log_names_the_owner_and_never_the_key(guarded: httpx.Client, root: Path) -> None:
    request = guarded.get(f"/v1/x?key={BOB}", headers=bearer(BOB)).headers["x-request-id"]
    path = root / "log"
    # nginx writes its line after the answer.
    wait_for(lambda: request in path.read_text().rpartition("\n")[0], "the request's line")
    log = path.read_text()
    [line] = [json.loads(line) for line in log.splitlines() if request in line]
    assert (line["owner"], line["path"], line["status"]) == ("bob", "/v1/x", 200)
    assert float(line["upstream_seconds"]) >= 0
    assert ALICE not in log
    assert BOB not in log


def test_health_needs_no_key(guarded: httpx.Client) -> None:
    assert guarded.get("/health").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/metrics", "/tokenize", "/healthz", "/health/x", "/v2/x", "/invocations"),
        *("/v1/../metrics", "/v1/%2e%2e/metrics", "/tokenize/../v1/x", "//v1/x", "/v1/\\x"),
    ],
)
def test_what_is_not_allowed_is_not_found(guarded: httpx.Client, path: str) -> None:
    url = guarded.base_url
    with closing(HTTPConnection(url.host, url.port)) as plain:  # httpx would straighten the path
        plain.request("GET", path, headers=bearer(ALICE))
        answer = plain.getresponse()
        assert (answer.status, json.load(answer)["error"]["code"]) == (404, "not_found")


def test_a_model_with_a_slash_in_its_name_can_be_asked_for(guarded: httpx.Client) -> None:
    url = httpx.URL(str(guarded.base_url), raw_path=b"/v1/models/Qwen%2FQwen2.5")
    answer = guarded.send(httpx.Request("GET", url, headers=bearer(ALICE)))
    assert answer.json()["path"] == "/v1/models/Qwen%2FQwen2.5"


def test_a_large_request_is_refused(guarded: httpx.Client) -> None:
    fits = guarded.post("/v1/x", headers=bearer(ALICE), content=b"x" * 100 * 1024)
    assert fits.status_code == 200
    large = guarded.post("/v1/x", headers=bearer(ALICE), content=b"x" * (100 * 1024 + 1))
    assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")


def test_a_stream_comes_as_it_is_made(guarded: httpx.Client) -> None:
    Api.go_on.clear()
    with guarded.stream("GET", "/v1/stream", headers=bearer(ALICE)) as answer:
        chunks = answer.iter_raw()
        assert next(chunks) == b"first"  # the server waits with the rest
        Api.go_on.set()
        assert b"".join(chunks) == b"second"


def test_a_websocket_goes_through(guarded: httpx.Client) -> None:
    with socket.create_connection(("127.0.0.1", guarded.base_url.port or 0), timeout=10) as one:
        one.sendall(
            b"GET /v1/realtime HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==\r\n"
            b"Authorization: Bearer " + ALICE.encode() + b"\r\n\r\n"
        )
        said = b""
        while b"\r\n\r\n" not in said:
            said += one.recv(4096)
        assert said.startswith(b"HTTP/1.1 101 ")
        one.sendall(b"abcd")
        rest = said.partition(b"\r\n\r\n")[2]
        while len(rest) < 4:
            rest += one.recv(4096)
    assert rest == b"dcba"


def until_refused(client: httpx.Client, key: str) -> list[httpx.Response]:
    """Ask until it is too often, however slow the machine is; return all answers."""
    answers = [client.get("/v1/x", headers=bearer(key))]
    while answers[-1].status_code != 429:
        assert len(answers) < 500
        answers.append(client.get("/v1/x", headers=bearer(key)))
    return answers


def test_too_many_requests_of_one_key_are_refused(tmp_path: Path, root: Path, api: int) -> None:
    folder = root / "limited"
    folder.mkdir()
    with running(folder, api, **KEYS, rate_limit=2) as client:
        *let_in, refused = until_refused(client, ALICE)
        assert [answer.status_code for answer in let_in[:3]] == [200, 200, 200]
        assert {answer.status_code for answer in let_in} == {200}
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert client.get("/v1/x", headers=bearer(BOB)).status_code == 200


def test_without_keys_it_serves_loopback(root: Path) -> None:
    folder = root / "open"
    folder.mkdir()
    with running(folder, free_port()) as client:
        answer = client.get("/v1/x")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")


def test_tls(root: Path, api: int) -> None:
    folder = root / "tls"
    folder.mkdir()
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=gateway"),
            *("-keyout", folder / "k.pem", "-out", folder / "c.pem"),
        ],
        check=True,
        capture_output=True,
    )
    certificate, key = ((folder / name).read_text() for name in ("c.pem", "k.pem"))
    secrets = Secrets(certificate=certificate.encode(), certificate_key=Secret(key))
    with running(folder, api, secrets, tls={"cert": "c.pem", "key": "file:k.pem"}) as client:
        assert client.get("/v1/x").status_code == 200
        seen = ssl.get_server_certificate(("127.0.0.1", client.base_url.port or 0))
        assert seen.strip() == certificate.strip()


def test_who_trusts_the_cluster_s_own_certificate_is_served(root: Path, api: int) -> None:
    folder = root / "own"
    folder.mkdir()
    with running(folder, api, tls={"self_signed": True}) as client:
        trusted = ssl.create_default_context(cafile=str(folder / "gateway/cert.pem"))
        assert httpx.get(f"{client.base_url}/v1/x", verify=trusted).status_code == 200
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{client.base_url}/v1/x")


def test_a_changed_key_takes_effect_while_a_stream_goes_on(root: Path, api: int) -> None:
    folder = root / "reload"
    folder.mkdir()
    with running(folder, api, **KEYS) as client:
        ports = {"gateway": client.base_url.port, "api": api}
        spec = ClusterSpec.model_validate(
            {"cluster": {"name": "q"}, "head": {"host": "h"}, "gateway": KEYS, "ports": ports}
        )
        Api.go_on.clear()
        with client.stream("GET", "/v1/stream", headers=bearer(ALICE)) as answer:
            chunks = answer.iter_raw()
            assert next(chunks) == b"first"
            new = Secrets(api_keys={"alice": Secret("sk-new-0123456789"), "bob": Secret(BOB)})
            done = reload(folder, process_of(spec, new))
            assert (done.returncode, done.stderr) == (0, "")
            with httpx.Client(base_url=client.base_url, trust_env=False) as later:
                codes = [
                    later.get("/v1/x", headers=bearer(key)).status_code
                    for key in (ALICE, "sk-new-0123456789", BOB)
                ]
            assert codes == [401, 200, 200]
            Api.go_on.set()
            assert b"".join(chunks) == b"second"


def test_files_that_nginx_refuses_leave_the_former_in_place(root: Path, api: int) -> None:
    folder = root / "kept"
    folder.mkdir()
    with running(folder, api, **KEYS) as client:
        ports = {"gateway": client.base_url.port, "api": api}
        tls = {**KEYS, "tls": {"cert": "c.pem", "key": "file:k.pem"}}
        spec = ClusterSpec.model_validate(
            {"cluster": {"name": "q"}, "head": {"host": "h"}, "gateway": tls, "ports": ports}
        )
        broken = Secrets(certificate=b"no certificate", certificate_key=Secret("no key"))
        former = (folder / "gateway/nginx.conf").read_bytes()
        done = reload(folder, process_of(spec, broken))
        assert done.returncode == 1
        assert "cannot load certificate" in done.stderr
        assert (folder / "gateway/nginx.conf").read_bytes() == former
        assert client.get("/v1/x", headers=bearer(ALICE)).status_code == 200


def test_a_reload_lasts_until_the_former_processes_take_nothing_more(root: Path, api: int) -> None:
    """One that gets no time of a processor would let in who has a former key."""
    folder = root / "former"
    folder.mkdir()
    with running(folder, api, **KEYS) as client:
        process = process_of(spec_of(client.base_url.port or 0, api, **KEYS))
        assert client.get("/v1/x", headers=bearer(ALICE)).status_code == 200
        former = [int(each.name) for each in processes(folder)[1:]]
        for pid in former:
            os.kill(pid, signal.SIGSTOP)
        try:
            *begin, script = process.reload
            done = reload(folder, replace(process, reload=(*begin, script.replace("100", "10"))))
        finally:
            for pid in former:
                os.kill(pid, signal.SIGCONT)
        assert done.returncode == 1
        assert "did not change over" in done.stderr
        assert reload(folder, process).returncode == 0


def test_where_this_nodes_ingress_is_gone_another_answers(root: Path, api: int) -> None:
    """Two addresses of one machine stand for two nodes; nothing listens on this node's."""
    folder = root / "other"
    folder.mkdir()
    ports = dict(zip(("gateway", "api"), free_ports(2), strict=True))
    workers = [{"host": "w", "name": "w"}]
    spec = ClusterSpec.model_validate(
        {
            "cluster": {"name": "q"},
            "head": {"host": "h"},
            "workers": workers,
            "gateway": {},
            "ports": ports,
        }
    )
    process = process_of(spec, others={"head": "127.0.0.1", "w": "127.0.0.2"})
    elsewhere = process.live_files["gateway/nginx.conf"].replace(
        f"127.0.0.2:{ports['api']}".encode(), f"127.0.0.1:{api}".encode()
    )
    with served(folder, process, {"gateway/nginx.conf": elsewhere}, ports["gateway"]) as client:
        answer = client.post("/v1/x", content=b"{}")
        assert answer.status_code == 200
        assert answer.headers["x-raycluster-retried"] == "1"
    assert '"upstream_status":"502, 200"' in (folder / "log").read_text()


def test_what_nginx_refuses_is_its_last_word(root: Path, api: int) -> None:
    folder = root / "refused"
    folder.mkdir()
    secrets = Secrets(certificate=b"no certificate", certificate_key=Secret("no key"))
    with (
        pytest.raises(AssertionError, match="cannot load certificate"),
        running(folder, api, secrets, tls={"cert": "c.pem", "key": "file:k.pem"}),
    ):
        pass


def test_figures_are_for_prometheus_alone(root: Path, api: int) -> None:
    port = free_port()
    spec = ClusterSpec.model_validate(
        {
            "cluster": {"name": "q"},
            "head": {"host": "h"},
            "gateway": {"tls": {"self_signed": True}, "paths": ["/"]},
            "ports": {"gateway": port, "api": api},
            "monitoring": {},
        }
    )
    with served(root, process_of(spec, Secrets()), {}, port, "https") as client:
        answer = client.get(FIGURES_PATH)
        assert answer.headers["content-type"] == "text/plain; version=0.0.4"

        def told() -> dict[str, float]:
            families = text_string_to_metric_families(client.get(FIGURES_PATH).text)
            return {sample.name: sample.value for f in families for sample in f.samples}

        # The connection that found out that nginx listens is counted until nginx sees its end.
        wait_for(lambda: told()["nginx_connections_active"] == 1, "no other connection")
        figures = told()
        assert figures["raycluster_gateway_certificate_expiry_timestamp_seconds"] == 2082758400
        elsewhere = httpx.HTTPTransport(local_address="127.0.0.2", verify=False)
        with httpx.Client(base_url=client.base_url, transport=elsewhere) as stranger:
            assert stranger.get(FIGURES_PATH).status_code == 404
            assert stranger.get("/v1/models").status_code == 200


def test_without_monitoring_there_are_no_figures(root: Path, api: int) -> None:
    with running(root, api) as client:
        assert client.get(FIGURES_PATH).status_code == 404


def test_who_shall_come_back_is_told_when(root: Path, api: int) -> None:
    folder = root / "later"
    folder.mkdir()
    with running(folder, free_port(), **KEYS, rate_limit=1) as client:
        first = until_refused(client, ALICE)
    answers = [*first]
    with running(folder, api, **KEYS) as client:
        told = (429, 502, 503, 504)
        answers += [client.get(f"/v1/say/{code}", headers=bearer(ALICE)) for code in told]
        own = client.get("/v1/say/429?retry-after=7", headers=bearer(ALICE))
        well = client.get("/v1/x", headers=bearer(ALICE))
    assert {a.status_code for a in first} == {503, 429}
    assert [a.headers.get_list("retry-after") for a in answers] == [["1"]] * len(answers)
    assert own.headers.get_list("retry-after") == ["7"]
    assert "retry-after" not in well.headers
    assert all(a.json()["error"]["message"] for a in first)


@pytest.mark.parametrize(
    "request_line",
    [
        *(b"TRACE /v1/x HTTP/1.1", b"GET /v1/x HTTP/2.0", b"CONNECT x:443 HTTP/1.1"),
        *(b"GET /" + b"x" * 40_000, b"x"),
    ],
)
def test_what_is_no_request_is_told_in_openai_s_form(
    guarded: httpx.Client, request_line: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", guarded.base_url.port or 0), timeout=20) as one:
        one.sendall(request_line + b"\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = HTTPResponse(one)
        answer.begin()
        assert (answer.status, json.load(answer)["error"]["code"]) == (400, "malformed")


@pytest.mark.parametrize("more", [b"X-More: " + b"x" * 40_000, b"Authorization: Bearer x"])
def test_a_head_that_is_refused_is_told_in_openai_s_form(
    guarded: httpx.Client, more: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", guarded.base_url.port or 0), timeout=20) as one:
        first = b"GET /v1/x HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer y\r\n"
        one.sendall(first + more + b"\r\nConnection: close\r\n\r\n")
        answer = HTTPResponse(one)
        answer.begin()
        assert answer.status in (400, 401)
        assert json.load(answer)["error"]["message"]


def test_twenty_kilobytes_of_url_or_header_come_through(guarded: httpx.Client) -> None:
    long = "x" * 20_000
    assert guarded.get(f"/v1/x?a={long}", headers=bearer(ALICE)).status_code == 200
    assert guarded.get("/v1/x", headers={**bearer(ALICE), "X-More": long}).status_code == 200


def test_an_id_is_kept_and_a_bad_one_replaced(guarded: httpx.Client) -> None:
    for given in ("my-id-1", "b" * 129, "a b", ""):
        answer = guarded.get("/v1/x", headers={**bearer(ALICE), "X-Request-Id": given})
        [told] = answer.headers.get_list("x-request-id")
        assert (told == given) == (given == "my-id-1")
        assert answer.json()["headers"]["X-Request-Id"] == told


def test_adapters_are_not_changed_at_run_time(guarded: httpx.Client) -> None:
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/load_lora_adapter/"):
        assert guarded.post(path, headers=bearer(ALICE)).status_code == 404


def test_nothing_but_a_websocket_is_made_of_a_connection(guarded: httpx.Client) -> None:
    headers = {**bearer(ALICE), "Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c"}
    told = guarded.get("/v1/x", headers=headers).json()["headers"]
    assert "Upgrade" not in told
    assert "Upgrade" not in told.get("Connection", "")
