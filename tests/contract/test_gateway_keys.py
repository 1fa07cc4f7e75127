"""Keys with limits: real nginx, and what reaches the server behind it."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from raycluster.core.interfaces import Secret
from raycluster.services.gateway import per_minute
from raycluster.spec import ClusterSpec
from raycluster.spec.secret_values import Secrets
from tests.contract.nginx import ALICE, BOB, CONF, PATH, bearer, process_of, served, spec_of
from tests.contract.sshd import wait_for
from tests.contract.test_gateway import Api, api, reload, until_refused
from tests.ports import free_port

__all__ = ["api"]

pytestmark = pytest.mark.skipif(not shutil.which("nginx", path=PATH), reason="needs nginx")

KEYS = {"alice": ALICE, "bob": BOB, "carol": "sk-carol-0123456789", "dave": "sk-dave-0123456789"}
SECRETS = Secrets(api_keys={owner: Secret(key) for owner, key in KEYS.items()})
CAROL, DAVE = KEYS["carol"], KEYS["dave"]


def table(port: int, api: int, keys: dict[str, Any], **more: Any) -> ClusterSpec:
    sources = {owner: {"key": "env:X", **limits} for owner, limits in keys.items()}
    return spec_of(port, api, ("a", "org/b@1+x"), keys=sources, **more)


@contextmanager
def gate(
    root: Path, name: str, api: int, keys: dict[str, Any], **more: Any
) -> Iterator[tuple[httpx.Client, Path]]:
    folder = root / name
    folder.mkdir(exist_ok=True)
    port = free_port()
    process = process_of(table(port, api, keys, **more), SECRETS)
    with served(folder, process, {}, port) as client:
        yield client, folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that nginx's workers, who are another user, cannot pass through."""
    folder = tmp_path_factory.mktemp("keys")
    folder.chmod(0o700)
    return folder


def told(client: httpx.Client, key: str, **headers: str) -> dict[str, str]:
    """Return the headers that reached the server, with names as it reads them."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    got = client.get("/v1/x", headers={**bearer(key), **sent}).json()["headers"]
    return {name.lower(): value for name, value in got.items()}


def test_the_server_learns_whose_key_it_was_and_what_it_is_for(root: Path, api: int) -> None:
    keys = {"alice": {"models": ["a", "org/b@1+x"]}, "bob": {}}
    with gate(root, "names", api, keys, api_keys={"carol": "env:C"}) as (client, _):
        alice, bob, carol = (told(client, key) for key in (ALICE, BOB, CAROL))
        assert alice["x-raycluster-owner"] == "alice"
        assert alice["x-raycluster-models"] == "a,org/b@1+x"
        assert (bob["x-raycluster-owner"], carol["x-raycluster-owner"]) == ("bob", "carol")
        assert "x-raycluster-models" not in bob | carol


def test_engines_learn_the_limits_that_they_keep(root: Path, api: int) -> None:
    keys = {
        "alice": {"tokens_per_minute": 5, "tokens_per_day": 10**12, "priority": "low"},
        "bob": {"requests_per_minute": 3, "priority": "normal"},
    }
    name = "x-raycluster-limits"
    with gate(root, "limits", api, keys) as (client, _):
        limits = "tokens_per_minute=5,tokens_per_day=1000000000000,priority=low"
        assert told(client, ALICE, X_Raycluster_Limits="priority=high")[name] == limits
        assert name not in told(client, BOB, X_Raycluster_Limits="priority=high")
    workers = {"workers": ({"host": "other"},)}
    spec = table(1, api, keys, on="all").model_dump(exclude_unset=True) | workers
    several = process_of(ClusterSpec.model_validate(spec), SECRETS).live_files[CONF].decode()
    assert '"requests_per_minute=3"' in several


@pytest.mark.parametrize("name", ["X-Raycluster-Owner", "x-raycluster-owner", "X_Raycluster_Owner"])
def test_no_client_says_who_it_is(root: Path, api: int, name: str) -> None:
    folder = root / name
    folder.mkdir()
    with gate(folder, "g", api, {"alice": {"models": ["a"]}, "bob": {}}) as (client, _):
        lies = {name: "carol", name.replace("wner", "WNER"): "dave"}
        models = name.lower().replace("owner", "models")
        for key, owner in ((ALICE, "alice"), (BOB, "bob")):
            headers = {**bearer(key), **lies, models: "org/b@1+x"}
            got = client.get("/v1/x", headers=headers).json()["headers"]
            mine = {k.lower(): v for k, v in got.items() if "raycluster" in k.lower()}
            assert mine.pop("x-raycluster-owner") == owner
            assert mine == ({"x-raycluster-models": "a"} if owner == "alice" else {})
        anybody = client.get("/health", headers={name: "carol", models: "a"}).json()["headers"]
        assert not [k for k in anybody if "raycluster" in k.lower()]


@pytest.mark.parametrize("rate", [1, 3, 20])
def test_a_key_asks_as_often_as_it_may(root: Path, api: int, rate: int) -> None:
    keys = {"alice": {"requests_per_minute": rate}, "bob": {"requests_per_minute": rate}}
    with gate(root, f"rate-{rate}", api, {**keys, "carol": {}}) as (client, _):
        began = time.monotonic()
        answers = until_refused(client, ALICE)
        more = (time.monotonic() - began) * rate / 60  # what it may in the time that this took
        assert rate <= len(answers) - 1 <= rate + more
        last = answers[-1]
        assert last.headers["retry-after"] == str(per_minute(rate))
        assert last.headers["x-ratelimit-limit-requests"] == str(rate)
        assert last.headers["x-ratelimit-remaining-requests"] == "0"
        assert last.headers["x-ratelimit-reset-requests"] == f"{per_minute(rate)}s"
        assert last.json()["error"]["code"] == "rate_limit_exceeded"
        assert answers[0].headers["x-ratelimit-limit-requests"] == str(rate)
        assert client.get("/v1/x", headers=bearer(BOB)).status_code == 200
        for _ in range(rate + 2):
            free = client.get("/v1/x", headers=bearer(CAROL))
            assert free.status_code == 200
            assert not [name for name in free.headers if "ratelimit" in name]
        assert client.get("/health").status_code == 200
        other_way = [client.get("/v1/x", headers={"X-Api-Key": ALICE}) for _ in range(2)]
        assert 429 in {answer.status_code for answer in other_way}


def test_who_comes_back_when_told_is_let_in(root: Path, api: int) -> None:
    with gate(root, "back", api, {"alice": {"requests_per_minute": 60}}) as (client, _):
        while (answer := client.get("/v1/x", headers=bearer(ALICE))).status_code == 200:
            pass
        time.sleep(int(answer.headers["retry-after"]))
        assert client.get("/v1/x", headers=bearer(ALICE)).status_code == 200


def test_a_key_s_limit_stands_beside_the_gateway_s_own(root: Path, api: int) -> None:
    keys = {"alice": {"requests_per_minute": 1000}, "bob": {}}
    with gate(root, "both", api, keys, rate_limit=2) as (client, _):
        for key in (ALICE, BOB):
            assert {answer.status_code for answer in until_refused(client, key)} == {200, 429}


def test_a_key_ends_when_it_is_said_to(root: Path, api: int, seconds: int = 3) -> None:
    now = datetime.now(tz=UTC).replace(microsecond=0)
    ends = now + timedelta(seconds=seconds)
    keys = {
        "alice": {"expires": ends},
        "bob": {"expires": now - timedelta(seconds=1)},
        "carol": {"expires": now + timedelta(days=400)},
        "dave": {"expires": "2020-01-01"},
    }
    with gate(root, f"ends-{seconds}", api, keys) as (client, _):

        def code(key: str) -> int:
            return client.get("/v1/x", headers=bearer(key)).status_code

        codes = [code(key) for key in KEYS.values()]
        early = datetime.now(tz=UTC) < ends
        said = client.get("/v1/x", headers=bearer(BOB))
        assert said.json()["error"]["message"] == "This API key has expired."
        assert said.headers["www-authenticate"] == "Bearer"
        anthropic = client.post("/v1/messages", headers={"X-Api-Key": BOB}, content=b"{}").json()
        assert anthropic["error"]["type"] == "authentication_error"
        wait_for(lambda: code(ALICE) == 401, "the end of a key", seconds + 20)
        assert datetime.now(tz=UTC) >= ends
    if early:
        assert codes == [200, 401, 200, 401]
    else:  # it had ended before it was asked for: give it more time
        assert codes[1:] == [401, 200, 401]
        test_a_key_ends_when_it_is_said_to(root, api, 4 * seconds)


def test_a_revoked_key_is_out_while_its_stream_goes_on(root: Path, api: int) -> None:
    keys: dict[str, Any] = {"alice": {"requests_per_minute": 9}, "bob": {"models": ["a"]}}
    with gate(root, "revoked", api, keys) as (client, folder):
        port = client.base_url.port or 0
        Api.go_on.clear()
        with client.stream("GET", "/v1/stream", headers=bearer(ALICE)) as answer:
            chunks = answer.iter_raw()
            assert next(chunks) == b"first"
            later = {"bob": {"requests_per_minute": 5, "models": ["org/b@1+x"]}}
            done = reload(folder, process_of(table(port, api, later), SECRETS))
            assert (done.returncode, done.stderr) == (0, "")
            with httpx.Client(base_url=client.base_url, trust_env=False) as fresh:
                assert fresh.get("/v1/x", headers=bearer(ALICE)).status_code == 401
                assert told(fresh, BOB)["x-raycluster-models"] == "org/b@1+x"
            Api.go_on.set()
            assert b"".join(chunks) == b"second"


def test_the_log_is_kept_for_as_long_as_it_is_said(root: Path, api: int) -> None:
    kept = root / "log" / "gateway" / "access"
    kept.mkdir(parents=True)
    for name, days in (("2020-01-01.log", 4), ("2020-01-03.log", 2)):
        (kept / name).write_text("{}")
        old = time.time() - days * 86_400
        os.utime(kept / name, (old, old))
    with gate(root, "log", api, {"bob": {}}, access_log="3d") as (client, _):
        mine = client.get("/v1/say/418?retry-after=hidden", headers=bearer(BOB)).headers[
            "x-request-id"
        ]
        refused = client.get("/v1/x").headers["x-request-id"]
        wait_for(lambda: not (kept / "2020-01-01.log").exists(), "an old file to go")
        assert (kept / "2020-01-03.log").exists()

        def lines() -> dict[str, dict[str, Any]]:
            today = [path for path in kept.iterdir() if not path.name.startswith("2020")]
            found = [json.loads(x) for path in today for x in path.read_text().splitlines()]
            return {line["request"]: line for line in found}

        wait_for(lambda: {mine, refused} <= lines().keys(), "the lines of two requests")
        line = lines()[mine]
        assert (line["owner"], line["status"], line["path"]) == ("bob", 418, "/v1/say/418")
        assert line["bytes"] > 0
        assert float(line["upstream_seconds"]) <= line["seconds"] + 1
        assert lines()[refused]["owner"] == ""
        assert BOB not in "".join(path.read_text() for path in kept.iterdir())
        assert "hidden" not in "".join(path.read_text() for path in kept.iterdir())


def test_the_log_cannot_fill_the_disk(root: Path, api: int) -> None:
    """Files with holes, which take no room here: today's, which grows, and those before it."""
    kept = root / "full" / "gateway" / "access"
    kept.mkdir(parents=True)
    sizes = {"2020-01-01.log": 700, "2020-01-02.log": 700, "2020-01-03.log": 700, "now.log": 800}
    for age, (name, size) in enumerate(reversed(sizes.items())):
        with (kept / name).open("wb") as file:
            file.truncate(size << 20)
        then = time.time() - age
        os.utime(kept / name, (then, then))

    def left() -> list[str]:
        return sorted(path.name[:11] for path in kept.iterdir() if path.name < "2021")

    with gate(root, "full", api, {"bob": {}}, access_log="9999d"):
        wait_for(lambda: len(left()) == 1, "the oldest files to go")
        assert left() == ["2020-01-03."] and (kept / "now.log").exists()
        assert not (kept / "2020-01-03.log").exists(), "a large file is put aside"
