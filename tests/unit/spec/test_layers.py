"""Variables over `.env` over the file."""

from __future__ import annotations

from typing import Any

import pytest

from raycluster.spec import ClusterSpec
from tests.unit.spec.conftest import MINIMAL, Read, Refusal

MODEL = '[[models]]\nname = "m"\n'


@pytest.mark.parametrize(
    ("variable", "value", "found"),
    [
        ("HEAD__HOST", "10.9.9.9", lambda s: s.head.host == "10.9.9.9"),
        ("HEAD__PORT", "2222", lambda s: s.head.port == 2222),
        ("HEAD__GPUS", "2", lambda s: s.head.gpus == 2),
        ("HEAD__GPUS", "[0, 2]", lambda s: s.head.gpus == (0, 2)),
        ("HEAD__GPUS", '["MIG-GPU-aaaa/1/0"]', lambda s: s.head.gpus == ("MIG-GPU-aaaa/1/0",)),
        ("SCHEMA", "1", lambda s: s.schema_version == 1),
        ("RUNTIME__START_ON_BOOT", "false", lambda s: s.runtime.start_on_boot is False),
        ("HEAD__RUNTIME__ENV__Mixed__Name", "1",
         lambda s: s.head.runtime.env == {"Mixed__Name": "1"}),
        ("SECRETS__HF_TOKEN", "env:X", lambda s: s.secrets == {"HF_TOKEN": "env:X"}),
        ("SECRETS", '{"a": "env:X"}', lambda s: s.secrets == {"a": "env:X"}),
        ("WORKERS", '[{"host": "w"}]', lambda s: [h.name for h in s.hosts] == ["head", "worker-1"]),
        ("WORKERS__0__HOST", "w", lambda s: s.hosts[1].host == "w"),
        ("MODELS__0__SOURCE", "/m",
         lambda s: (s.models[0].name, s.models[0].source) == ("m", "/m")),
        ("MODELS__0__REPLICAS", "3", lambda s: s.models[0].replicas == 3),
        ("MODELS__0__REPLICAS", '{"max": 3}', lambda s: s.models[0].replicas.max == 3),
        ("MODELS__0__REPLICAS__MAX", "3", lambda s: s.models[0].replicas.max == 3),
        ("MODELS__0__ENGINE_ARGS__MAX_MODEL_LEN", "512",
         lambda s: s.models[0].engine_args == {"max_model_len": 512}),
        ("MODELS__0__ENGINE_ARGS__DTYPE", "float32",
         lambda s: s.models[0].engine_args == {"dtype": "float32"}),
        ("GATEWAY__KEYS__bob__KEY", "env:X", lambda s: s.gateway.keys["bob"].key == "env:X"),
        ("GATEWAY__KEYS__bob", '{"key": "env:X", "expires": "2027-01-01"}',
         lambda s: s.gateway.keys["bob"].expires.year == 2027),
        ("RUNTIME__VOLUMES", '["/a:/b"]', lambda s: s.runtime.volumes == ("/a:/b",)),
    ],
)  # fmt: skip
def test_a_variable_sets_a_value(read: Read, variable: str, value: str, found: Any) -> None:
    spec = read(
        MINIMAL + MODEL, {f"RAYCLUSTER__{variable}": value, "PATH": "/bin", "RAYCLUSTER_SPEC": "x"}
    )
    assert found(spec), spec


def test_the_environment_is_over_dotenv_is_over_the_file(read: Read) -> None:
    dotenv = (
        "# another program's too\nDATABASE_URL=postgres://x\nSECRETS=1\nHEAD=2\n"
        'export RAYCLUSTER__HEAD__PORT="2"\nRAYCLUSTER__HEAD__USER=two\n'
    )
    spec = read(
        f'{MINIMAL}port = 1\nuser = "one"\nnum_cpus = 1\n', {"RAYCLUSTER__HEAD__PORT": "3"}, dotenv
    )
    assert (spec.head.port, spec.head.user, spec.head.num_cpus) == (3, "two", 1)


def test_a_model_made_by_hand_ignores_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYCLUSTER__CLUSTER__NAME", "other")
    assert ClusterSpec(cluster={"name": "q"}, head={"host": "h"}).cluster.name == "q"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("HEAD__PORT", "x", "a whole number is expected, not 'x'"),
        ("HEAD__PORT", "", "a whole number is expected, not ''"),
        ("head__port", "x", "a whole number is expected, not 'x'"),
        ("HEAD__PROT", "1", "unknown setting; did you mean `RAYCLUSTER__HEAD__PORT`?"),
        ("HAED__PORT", "1", "unknown setting; did you mean `RAYCLUSTER__HEAD`?"),
        ("HEAD__PORT__X", "1", "unknown setting"),
        ("HEAD__RUNTIME__KNID", "1",
         "unknown setting; did you mean `RAYCLUSTER__HEAD__RUNTIME__KIND`?"),
        ("WORKERS__X__HOST", "1", "unknown setting"),
        ("WORKERS__7__HOST", "w", "there are 0 before it, numbers begin at 0"),
        ("WORKERS", "w", "a table or a list in JSON is expected"),
        ("WORKERS", '[{"host": "w", "prot": 1}]', "[0].prot: unknown key; did you mean `port`?"),
        ("SECRETS__A", "hunter2", "`env:NAME`, `file:PATH` or `cmd:COMMAND` is expected, "
         "never the value"),
        ("SECRETS", "hunter2", "a table or a list in JSON is expected"),
        ("SECRETS", "[1]", "a table is expected"),
        ("HEAD__USER", "\udcff", "UTF-8 text is expected"),
    ],
)  # fmt: skip
def test_a_wrong_variable_is_named(refusal: Refusal, variable: str, value: str, said: str) -> None:
    name = variable if variable.islower() else f"RAYCLUSTER__{variable}"
    name = f"raycluster__{name}" if variable.islower() else name
    text = refusal(MINIMAL, {name: value})
    assert text.startswith(f"environment: {name}: ") and said in text
    assert "line" not in text.replace("line breaks", "")
    assert "hunter2" not in text


def test_a_wrong_line_of_dotenv_is_named(refusal: Refusal) -> None:
    said = refusal(MINIMAL, {}, "RAYCLUSTER__HEAD__PORT=x\n")
    assert said == ".env: RAYCLUSTER__HEAD__PORT: a whole number is expected, not 'x'"


@pytest.mark.parametrize("line", ["KEY='open", 'RAYCLUSTER__HEAD__USER="x" y', "A = 'b'c"])
def test_a_line_of_dotenv_that_cannot_be_read_is_named(
    refusal: Refusal, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    said = refusal(MINIMAL, {}, f"# words\nA=1\n\n{line}\n")
    assert said.startswith(".env: line 4 cannot be read")
    assert not caplog.records


def test_problems_of_file_and_variables_come_together(refusal: Refusal) -> None:
    said = refusal(
        MINIMAL + "num_cpus = -1\n", {"RAYCLUSTER__HEAD__PORT": "x", "RAYCLUSTER__X": "1"}
    )
    assert said.splitlines()[0] == "cluster.toml: 3 problems"
    assert {line.strip().split(": ")[0] for line in said.splitlines()[1:]} == {
        "environment",
        "line 5",
    }
