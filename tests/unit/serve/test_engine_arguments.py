from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path

import pytest

from raycluster.serve.engines import EngineError, vllm
from raycluster.serve.engines import transformers as fallback
from raycluster.serve.engines.server import Place
from raycluster.serve.settings import EngineChoice, ModelSettings


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (8192, ["--max-model-len=8192"]),
        (True, ["--max-model-len"]),
        (False, ["--no-max-model-len"]),
        (None, []),
        ("-1", ["--max-model-len=-1"]),
        ({"a": 1}, ['--max-model-len={"a": 1}']),
        (["a", {"b": 2}], ["--max-model-len", "a", '{"b": 2}']),
    ],
)
def test_words_of_vllm_s_command_line(value: object, words: list[str]) -> None:
    assert vllm.flags("max_model_len", value) == words


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("allowed_origins", ["*"], ['--allowed-origins=["*"]']),
        ("allowed_methods", [], ["--allowed-methods=[]"]),
        ("allowed_headers", ["a b", 'c"d'], ['--allowed-headers=["a b", "c\\"d"]']),
        ("middleware", ["a.B", "c.d"], ["--middleware=a.B", "--middleware=c.d"]),
        ("middleware", "a.B", ["--middleware=a.B"]),
        ("middleware", [], []),
        ("device_ids", [2, 3], ["--device-ids=2,3"]),
        ("disable_access_log_for_endpoints", ["/a", "/b"],
         ["--disable-access-log-for-endpoints=/a,/b"]),
        ("logits_processors", ["a", "b"], ["--logits-processors", "a", "b"]),
    ],
)  # fmt: skip
def test_a_list_is_given_as_the_parser_wants_it(name: str, value: object, words: list[str]) -> None:
    assert vllm.flags(name, value) == words


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("allowed_origins", "*", r"allowed_origins: a list is expected, not '\*'"),
        ("allowed_headers", 1, "allowed_headers: a list is expected"),
        ("allowed_media_domains", [], "allowed_media_domains: vLLM takes no empty list"),
    ],
)
def test_what_no_words_stand_for_is_told_by_its_name(name: str, value: object, said: str) -> None:
    with pytest.raises(EngineError, match=f"engine_args: {said}"):
        vllm.flags(name, value)


def test_an_unknown_name_gets_a_suggestion() -> None:
    known = ["max-model-len", "dtype"]
    told = vllm.in_the_specs_words("unrecognized arguments: --max-modle-len=5", known)
    assert told == "vLLM has no argument 'max_modle_len': did you mean 'max_model_len'?"
    told = vllm.in_the_specs_words("unrecognized arguments: --no-zzz", known)
    assert told == "vLLM has no argument 'zzz'"
    other = "argument --dtype: invalid choice: 'x'"
    assert vllm.in_the_specs_words(other, known) == other


@pytest.mark.parametrize(
    ("mistake", "needless"),
    [
        ("unrecognized arguments: --no-async --no-eager", ["--no-async", "--no-eager"]),
        ("unrecognized arguments: --no-async --no-eagr", []),
        ("unrecognized arguments: --no-async --eager=1", []),
        ("unrecognized arguments: x", []),
        ("argument --dtype: invalid choice: 'x'", []),
    ],
)
def test_false_for_a_flag_that_can_be_switched_on_alone(mistake: str, needless: list[str]) -> None:
    assert vllm.off_already(mistake, ["async", "eager"]) == needless


@pytest.mark.parametrize("program", ["vllm serve", "main.py serve", "python -m a.b serve"])
def test_what_the_parser_refused(program: str) -> None:
    written = f"INFO: starting\nusage: {program} [model_tag]\n{program}: error: no such thing\n"
    assert vllm.wrong_argument(2, written) == "no such thing"
    assert vllm.wrong_argument(1, written) == ""
    assert vllm.wrong_argument(2, "ValueError: other") == ""


def test_the_command_is_that_of_vllm_s_own_server() -> None:
    args = {"max-model-len": 5}
    settings = ModelSettings("a", "/m", adapters={"x": "/y"}, aliases=("b",), engine_args=args)
    argv = vllm.command(settings, Place("10.0.0.1", 30333, "/m/a"), cpu=True)
    at = argv.index("serve")
    assert argv[at + 1 : at + 8] == [
        *(
            "/m",
            "--served-model-name",
            "a",
            "b",
            "--host=10.0.0.1",
            "--port=30333",
            "--root-path=/m/a",
        )
    ]
    assert argv[-4:-1] == ["--max-model-len=5", "--lora-modules", '{"name": "x", "path": "/y"}']
    assert argv[-1] == "--middleware=raycluster_inside.middleware.Middleware"
    share = vllm.Share(1, 2, "10.0.0.1", 30700)
    part = vllm.command(settings, Place("h", 1), share, cpu=True)
    assert part[at + 1 : at + 10] == [
        *(
            "/m",
            "--served-model-name",
            "a",
            "b",
            "--nnodes=2",
            "--node-rank=1",
            "--master-addr=10.0.0.1",
        ),
        *("--master-port=30700", "--headless"),
    ]
    without = ("--host", "--port", "--root-path", "--middleware")
    assert not any(word.startswith(without) for word in part)
    first = vllm.command(settings, Place("h", 1), share.of_rank(0), cpu=True)
    assert {"--node-rank=0", "--host=h", "--port=1"} <= {*first}
    with pytest.raises(EngineError, match="'port' is set by raycluster"):
        vllm.command(ModelSettings("a", "/m", engine_args={"port": 1}), Place("h", 1), cpu=True)


def test_the_build_for_cpus_is_known_as_vllm(tmp_path: Path) -> None:
    path = vllm.known_as_vllm(tmp_path, "0.32.0")
    [found] = importlib.metadata.distributions(name="vllm", path=[path])
    assert found.version == "0.32.0+cpu"


@pytest.mark.parametrize(
    ("given", "single"),
    [
        ({}, "0"),
        ({"VLLM_CPU_OMP_THREADS_BIND": "nobind"}, "0"),
        ({"VLLM_CPU_OMP_THREADS_BIND": "0-7"}, None),
    ],
)
def test_a_worker_of_its_own_is_kept_to_bind_threads(
    given: Mapping[str, str], single: str | None
) -> None:
    assert vllm.defaults(given, cpu=True).get("VLLM_ENABLE_V1_MULTIPROCESSING") == single


def test_what_a_host_or_an_image_opens_is_shut(caplog: pytest.LogCaptureFixture) -> None:
    given = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_SERVER_DEV_MODE": "1", "HOME": "/"}
    assert vllm.without_shut(given) == {"HOME": "/"}
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING, VLLM_SERVER_DEV_MODE" in caplog.text


@pytest.mark.parametrize(
    ("cpu", "eager", "compiles"),
    [(True, True, False), (True, False, True), (False, True, True), (False, False, True)],
)
def test_nothing_is_compiled_for_an_eager_model_on_a_cpu(
    cpu: bool, eager: bool, compiles: bool
) -> None:
    chosen = vllm.defaults({}, cpu=cpu, eager=eager)
    assert (chosen.get("TORCHDYNAMO_DISABLE") is None) == compiles


def test_gpus_get_no_defaults_for_cpus() -> None:
    assert not any("CPU" in name for name in vllm.defaults({}, cpu=False))


def test_our_arguments_follow_from_the_settings_and_the_spec_s_own_go_first() -> None:
    assert vllm.arguments(ModelSettings("a", "a", engine_args={"dtype": "auto"}), cpu=True) == {
        "allowed_media_domains": [vllm.NO_DOMAIN],
        "disable_uvicorn_access_log": True,
        "scheduling_policy": "priority",
        "dtype": "auto",
    }
    given = vllm.arguments(
        ModelSettings(
            *("a", "a"),
            adapters={"b": "/b", "c": "/c"},
            engine_args={"max_loras": 1},
        ),
        cpu=True,
    )
    assert given == {
        "allowed_media_domains": [vllm.NO_DOMAIN],
        "disable_uvicorn_access_log": True,
        "scheduling_policy": "priority",
        "enable_lora": True,
        "max_loras": 1,
    }
    parts = vllm.arguments(ModelSettings("a", "a", spread=2), cpu=True)
    assert parts["distributed_executor_backend"] == "mp"


@pytest.mark.parametrize(
    ("given", "num_gpus", "cpu", "share"),
    [
        ({}, 1, False, 0.8),
        ({}, 4, False, 0.8),
        ({}, 0.5, False, 0.4),
        ({"gpu_memory_utilization": 0.95}, 1, False, 0.95),
        ({"gpu-memory-utilization": 0.95}, 1, False, 0.95),
        ({"gpu_memory_utilization": None}, 1, False, None),
        ({}, 0, True, None),
    ],
)
def test_a_replica_leaves_a_fifth_of_its_gpus_memory(
    given: Mapping[str, object], num_gpus: float, cpu: bool, share: float | None
) -> None:
    told = ModelSettings("a", "a", engine_args=given, num_gpus=num_gpus)
    assert vllm.arguments(told, cpu=cpu).get("gpu_memory_utilization") == share


def settings(engine: EngineChoice, **engine_args: object) -> ModelSettings:
    return ModelSettings(name="a", source="a", engine=engine, engine_args=engine_args)


def test_the_fallback_follows_what_it_understands() -> None:
    given = settings("auto", max_model_len=512, gpu_memory_utilization=0.8)
    assert fallback.understood(given) == {"max_model_len": 512}


def test_transformers_asked_for_by_name_refuses_what_it_does_not_understand() -> None:
    with pytest.raises(EngineError, match="did you mean 'max_model_len'"):
        fallback.understood(settings("transformers", max_model_length=512))


def test_another_python_gets_none_of_the_nodes_own_paths() -> None:
    node = {"PATH": "/bin", "PYTHONPATH": "/code:/ray", "PYTHONHOME": "/x", "HF_HOME": "/hf"}
    assert vllm.apart(node, "/env/bin/python", {}) == {
        "PATH": "/env/bin:/bin",
        "HF_HOME": "/hf",
    }
    told = {"PYTHONPATH": "/plugins", "HF_HOME": "/hf"}
    assert vllm.apart(node, "/env/bin/python", told)["PYTHONPATH"] == "/plugins"


def test_its_program_is_run_by_its_python(tmp_path: Path) -> None:
    python = tmp_path / "python"
    assert vllm.program(str(python)) == (str(python), "-m", "vllm.entrypoints.cli.main")
    (tmp_path / "vllm").touch()
    assert vllm.program(str(python)) == (str(python), str(tmp_path / "vllm"))
