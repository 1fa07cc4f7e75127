"""What we ask of vLLM is there: in the CPU build, and in the wheels for GPUs of many releases.

Its command line, endpoints, figures and variables are what it promises; what its log says and what
its processes are called is not, and is missed without harm. The wheels are those of every release
that we say to have looked at; their sources are read, and nothing of them is imported.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from raycluster.core import tested_versions
from raycluster.core.tested_versions import startable
from raycluster.observe import engine_metrics
from raycluster.serve import figures
from raycluster.serve.engines import keeper, requests, server, vllm
from raycluster.serve.engines.inside import tool_parsers
from raycluster.serve.engines.vllm_log import LOGGED
from raycluster.serve.engines.warm_up import KINDS
from raycluster.serve.ready import questions
from raycluster.serve.settings import SHUT, ModelSettings

pytestmark = pytest.mark.local

ROOT = Path(__file__).parents[2]
RELEASES = tuple(f"0.{number}.0" for number in range(26, 34))
BUILDS = ("cpu", *RELEASES)
each_build = pytest.mark.parametrize("build", BUILDS)
FOR_CLIENTS = frozenset(
    {"audio", "chat", "completions", "decisions", "embeddings", "messages", "models", "realtime"}
    | {"rerank", "responses", "score", "systemone"}
)
PARTS = r"_(?:bucket|count|sum|total|created)$"
"""What prometheus_client adds to the names of figures."""


@cache
def packages(build: str) -> Path:
    """Return the folder that holds vLLM: the node's environment, or a wheel for CUDA."""
    script = ("node-env",) if build == "cpu" else ("vllm-sources", build)
    path = [ROOT / "scripts" / script[0], *script[1:]]
    done = subprocess.run(path, check=True, stdout=subprocess.PIPE, text=True)
    folder = Path(done.stdout.split("\n")[-2])
    return next(folder.glob("lib/python*/site-packages"), folder)


@cache
def source(build: str, pattern: str) -> str:
    """Return the files of vLLM whose paths are like this."""
    return "\n".join(path.read_text() for path in sorted(packages(build).glob(f"vllm/{pattern}")))


@cache
def constants(build: str, module: str) -> frozenset[str]:
    """Return the texts in a module."""
    tree = ast.parse(source(build, module.replace(".", "/") + ".py"))
    texts = (n.value for n in ast.walk(tree) if isinstance(n, ast.Constant))
    return frozenset(text for text in texts if isinstance(text, str))


@cache
def arguments(build: str) -> frozenset[str]:
    """Return the arguments of `vllm serve`: fields of classes, and what is added by its name."""
    text = source(build, "engine/arg_utils.py") + source(build, "entrypoints/**/cli_args.py")
    tree = ast.parse(text.replace("from __future__ import annotations", ""))
    fields = {n.target.id for n in ast.walk(tree) if _is_field(n)}  # type: ignore[attr-defined]
    return frozenset(fields) | {w.replace("-", "_") for w in re.findall(r'"--([\w-]+)"', text)}


def _is_there(name: str, figures: set[str]) -> bool:
    if name.endswith("_"):  # the beginning of one, or of several
        return any(f"{figure}_".startswith(name) for figure in figures)
    return name in figures or re.sub(PARTS, "", name) in figures


def _is_field(node: ast.AST) -> bool:
    return isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)


def passed() -> Iterator[str]:
    """Yield the arguments of the longest command line that we make without the spec's own."""
    settings = ModelSettings("m", "/m", adapters={"a": "/a"}, num_gpus=1)
    for word in vllm.command(settings, server.Place("h", 1, "/m/m"), cpu=False):
        if word.startswith("--"):
            yield word.removeprefix("--").partition("=")[0].replace("-", "_")


def read() -> Iterator[frozenset[str]]:
    """Yield the figures that we read; of those that were renamed any name will do."""
    yield from (frozenset(names) for names in engine_metrics.VLLM_SERIES.values())
    files = [Path(figures.__file__), *(ROOT / "dashboards").glob("*.py")]
    files += [path for path in (ROOT / "templates").rglob("*") if path.is_file()]
    for path in files:
        for name in re.findall(r"\b(?:vllm:|ray_vllm_)(\w+)", path.read_text()):
            yield frozenset({f"vllm:{name}"})


def test_every_release_that_is_said_to_be_known_is_looked_at() -> None:
    assert tested_versions.VLLM in RELEASES
    assert [version.rpartition(".")[0] for version in (RELEASES[0], RELEASES[-1])] == [
        tested_versions.OLDEST_VLLM,
        tested_versions.NEWEST_VLLM,
    ]
    assert all(map(startable, RELEASES))
    assert not startable("0.25.1")


@each_build
def test_its_server_is_started_by_a_command(build: str) -> None:
    assert "\ndef main(" in source(build, "entrypoints/cli/main.py")
    assert re.search(r'name = "serve"', source(build, "entrypoints/cli/serve.py"))
    assert "--help=all" in source(build, "**/*.py")


@each_build
def test_the_command_has_the_arguments(build: str) -> None:
    ours = set(passed())
    assert {"served_model_name", "lora_modules", "root_path", "max_loras"} <= ours
    assert ours - arguments(build) == set()


WITHOUT_MEANING = frozenset(
    {"user", "session_id", "mm_payload", "return_mm_kwargs", "return_token_offsets"}
    | {"include_reasoning", "parallel_tool_calls"}
)
"""Fields that change no answer: of images, other endpoints, and what our engine does not make."""


@each_build
@pytest.mark.parametrize("body", ["CompletionRequest", "ChatCompletionRequest"])
def test_transformers_honours_or_refuses_each_field_of_a_request(build: str, body: str) -> None:
    """A field of vLLM's that our engine does not know would be ignored without a word."""
    text = source(build, "entrypoints/openai/**/protocol.py")
    tree = ast.parse(text.replace("from __future__ import annotations", ""))
    (kind,) = (n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == body)
    fields = {n.target.id for n in kind.body if _is_field(n)}  # type: ignore[attr-defined]
    ours = {*requests.CompletionBody.model_fields, *requests.ChatBody.model_fields}
    known = ours | requests.WITHOUT_EFFECT.keys() | WITHOUT_MEANING
    assert {name for name in fields if not name.startswith("_")} - known == set()


@each_build
def test_what_each_key_took_is_counted_where_sequences_end(build: str) -> None:
    text = source(build, "v1/engine/output_processor.py")
    assert text.count("self.request_states.pop(") == 2  # an end, and what is given up
    assert "self.request_states[request_id] = req_state" in text
    assert "self.request_states.clear" not in text
    state = {"is_prefilling", "prompt_len", "num_cached_tokens", "lora_name", "detokenizer"}
    assert {name for name in state if f"self.{name} = " not in text} == set()
    assert "req_stats.num_generation_tokens += " in source(build, "v1/metrics/stats.py")
    assert "in args.middleware:" in source(build, "entrypoints/**/*.py")
    text = source(build, "v1/engine/async_llm.py")
    assert "async def _add_request(\n        self,\n        request: EngineCoreRequest," in text
    handed = text.index("self.engine_core.add_request_async(request)")
    assert text.index("self.output_processor.add_request(request") < handed
    assert re.search(r"(?m)^    priority: int = 0$", source(build, "v1/engine/__init__.py"))
    assert '"priority"' in source(build, "config/scheduler.py")
    assert re.search(r"async def abort\(\s+self, request_id: [^\n]+, internal: bool = False", text)


@each_build
def test_the_parsers_that_we_name_are_there(build: str) -> None:
    ours = {*tool_parsers.PARSERS.values(), *(parser for _, parser in tool_parsers.NAMED)}
    assert ours - constants(build, "tool_parsers.__init__") == set()
    assert tool_parsers.FLAG in source(build, "renderers/*.py")


@each_build
def test_the_server_has_the_endpoints(build: str) -> None:
    text = source(build, "entrypoints/**/*.py")
    paths = {server.HEALTH, "/metrics", *(path for path, _ in questions("m"))}
    assert {path for path in paths if f'"{path}"' not in text} == set()


@each_build
def test_what_is_below_v1_is_for_clients(build: str) -> None:
    """The gateway lets all of it through but what it refuses by name."""
    paths = set(re.findall(r'"/v1/([a-z_]+)', source(build, "entrypoints/**/*.py")))
    assert paths - FOR_CLIENTS == {"load_lora_adapter", "unload_lora_adapter"}
    gateway = (ROOT / "templates/nginx/nginx.conf").read_text()
    assert all(f"location ^~ /v1/{path} {{" in gateway for path in paths - FOR_CLIENTS)


@each_build
def test_the_server_has_the_figures(build: str) -> None:
    there = set(re.findall(r'"(vllm:\w+)"', source(build, "**/*.py")))
    lacking = [names for names in read() if not any(_is_there(name, there) for name in names)]
    assert lacking == []


@each_build
def test_its_requests_are_counted_by_the_package_whose_figures_we_read(build: str) -> None:
    assert "prometheus_fastapi_instrumentator" in source(build, "entrypoints/**/*.py")
    [package] = packages("cpu").glob("prometheus_fastapi_instrumentator/metrics.py")
    assert {"http_requests_total", "http_request_duration_seconds"} <= set(
        re.findall(r'"(http_\w+)"', package.read_text())
    )


@each_build
def test_the_first_requests_have_its_fields(build: str) -> None:
    asked = {name for body in KINDS.values() for name in body}
    text = source(build, "entrypoints/**/*.py")
    assert {name for name in asked if not re.search(rf"(?m)^    {name}:", text)} == set()


@each_build
def test_it_reads_the_variables(build: str) -> None:
    text = source(build, "envs.py")
    ours = {*SHUT, *vllm.ENVIRONMENT, *(vllm.CPU_ENVIRONMENT if build == "cpu" else ())}
    assert {name for name in ours if f'"{name}"' not in text} == set()


@each_build
def test_what_its_engines_are_called(build: str) -> None:
    prefix = 'os.getenv("VLLM_PROCESS_NAME_PREFIX", "VLLM")'
    assert prefix in source(build, "envs.py")
    assert "EngineCore" in constants(build, "v1.engine.core")
    assert "VLLM::EngineCore".startswith(keeper.ENGINE)
    assert "setproctitle" in source(build, "utils/system_utils.py")


@each_build
def test_what_it_logs_of_a_start(build: str) -> None:
    lacking = {
        key: module
        for key, (text, module) in LOGGED.items()
        if not any(text in found for found in constants(build, module))
    }
    assert not lacking, "see LOGGED in serve/engines/vllm_log.py"
