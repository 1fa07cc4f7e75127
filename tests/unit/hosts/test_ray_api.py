"""Jobs of Ray: what is asked of its API, and what its answers and silences become."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest

from raycluster.core.errors import AnswerError, AppError, ConnectionLostError, HostError
from raycluster.hosts.ray_api import RayApi, RayJobs

Answer = Callable[[httpx.Request], httpx.Response]


def jobs(answer: Answer) -> RayJobs:
    return RayJobs("head", httpx.Client(transport=httpx.MockTransport(answer), base_url="http://h"))


def test_a_job_is_submitted_asked_about_stopped_and_forgotten() -> None:
    asked: list[tuple[str, str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.method, request.url.path))
        if request.method == "POST" and request.url.path == "/api/jobs/":
            assert json.loads(request.content) == {"submission_id": "one", "entrypoint": "true"}
        return httpx.Response(200, json={"status": "RUNNING", "logs": "hello\n"})

    ray = jobs(answer)
    ray.submit("one", "true")
    assert (ray.status("one"), ray.said("one")) == ("RUNNING", "hello\n")
    ray.stop("one")
    ray.forget("one")
    assert asked == [
        ("POST", "/api/jobs/"),
        ("GET", "/api/jobs/one"),
        ("GET", "/api/jobs/one/logs"),
        ("POST", "/api/jobs/one/stop"),
        ("DELETE", "/api/jobs/one"),
    ]


def test_a_job_that_ray_does_not_know_says_nothing() -> None:
    ray = jobs(lambda _: httpx.Response(404, text="no such job"))
    assert (ray.status("one"), ray.said("one")) == ("", "")
    ray.stop("one")
    ray.forget("one")
    with pytest.raises(HostError, match="head: Ray's Jobs API responded with 404: no such job"):
        ray.submit("one", "true")


def test_what_is_no_table_says_nothing() -> None:
    ray = jobs(lambda _: httpx.Response(200, json=["RUNNING"]))
    assert ray.status("one") == ""


def test_an_error_keeps_the_end_of_its_words_on_one_line() -> None:
    with pytest.raises(HostError) as caught:
        jobs(lambda _: httpx.Response(500, text="x" * 900 + "\n the\n cause")).status("one")
    assert caught.value.what.endswith("x the cause")
    assert len(caught.value.what) < 400
    assert caught.value.hint


def test_an_answer_that_is_not_json_is_refused() -> None:
    with pytest.raises(AnswerError):
        jobs(lambda _: httpx.Response(200, text="<html>")).status("one")


def test_a_connection_that_breaks_is_one_that_may_come_back() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("broken", request=request)

    with pytest.raises(ConnectionLostError, match="does not respond"):
        jobs(answer).status("one")


@pytest.mark.parametrize(
    ("alert", "hint"),
    [
        ("cannot bind socket (Address already in use) for [127.0.0.1:8000]", "another port under"),
        ("config : parsing [a.cfg:3] : unknown keyword 'x'", "raycluster logs head"),
    ],
)
def test_a_rejected_deployment_says_why_and_what_next(alert: str, hint: str) -> None:
    said = (
        f"RuntimeError: HAProxy crashed during startup: [NOTICE] (9) : 2.8\n[ALERT] (9) : {alert}"
    )
    transport = httpx.MockTransport(lambda _: httpx.Response(500, text=said))
    with pytest.raises(AppError) as caught:
        RayApi("head", httpx.Client(transport=transport, base_url="http://h")).deploy({})
    assert caught.value.what.endswith(f"HAProxy does not start: {alert}")
    assert hint in (caught.value.hint or "")
