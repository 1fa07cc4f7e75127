"""Ids, urls and bodies of batch lines."""

from __future__ import annotations

import json

import pytest

from raycluster.batch.job import Refused, Shape, to_job
from raycluster.openai_wire.lines import BadIdError, parse_line
from raycluster.serve.asking.result import Job

HI = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("name", ["custom_id", "id"])
@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("a", "a"),
        (" a ", " a "),
        ("1.0", "1.0"),
        ("null", "null"),
        ("é\u2028\U0001f600", "é\u2028\U0001f600"),
        ("x" * 1000, "x" * 1000),
        ("\ud800", "\ud800"),
        (7, "7"),
        (0, "0"),
        (-12, "-12"),
        (2**70, str(2**70)),
    ],
)
def test_an_id_is_kept_as_it_is(name: str, value: object, kept: str) -> None:
    line = json.dumps({name: value, "prompt": "hi"}).encode()
    assert parse_line(line).id == kept
    job = to_job(3, line, Shape())
    assert isinstance(job, Job) and job.custom_id == kept


@pytest.mark.parametrize("name", ["custom_id", "id"])
@pytest.mark.parametrize("value", ["1.0", "1.5", "1e3", "null", "true", "false", '""', "[]", "{}"])
def test_what_is_no_id_is_refused_and_never_changed(name: str, value: str) -> None:
    with pytest.raises(BadIdError, match=f"{name} is "):
        parse_line(f'{{"{name}": {value}, "prompt": "hi"}}'.encode())


@pytest.mark.parametrize(
    "line",
    [
        b'{"custom_id": "mine", "prompt": ""}',
        b'{"custom_id": "mine", "url": "/v1/files", "body": {}}',
        b'{"custom_id": "mine", "body": null}',
        b'{"custom_id": "mine"}',
        b'{"id": "mine", "messages": []}',
        b'{"custom_id": "mine", "prompt": "torn',
        b'{"method": "POST", "custom_id" : "mine", "body": {',
        b'{"custom_id": "mine", "prompt": "na\xefve"}',
        b'{"custom_id": "mine", "prompt": "a"},',
    ],
)
def test_a_refused_line_keeps_its_id(line: bytes) -> None:
    job = to_job(2, line, Shape())
    assert isinstance(job, Refused) and job.custom_id == "mine"
    assert job.result.custom_id == "mine"


@pytest.mark.parametrize(
    "line",
    [b'{"prompt": "torn', b'{"prompt": "\\"custom_id\\": \\"no\\"', b"[1]", b'{"custom_id": "a'],
)
def test_a_refused_line_without_an_id_is_called_after_its_place(line: bytes) -> None:
    job = to_job(2, line, Shape())
    assert isinstance(job, Refused) and job.custom_id == "line-2"
