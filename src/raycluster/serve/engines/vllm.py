"""vLLM's own OpenAI server, as an ASGI application in this process."""

from __future__ import annotations

import difflib
import json
import os
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

from raycluster.serve.capture import Capture
from raycluster.serve.engines import ASGI, Count, EngineError
from raycluster.serve.engines.vllm_log import phases
from raycluster.serve.engines.vllm_network import WORKER_EXTENSION, environment, interfaces
from raycluster.serve.settings import CPU_KV_GIB, GPU_MEMORY, ModelSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

OURS = frozenset(
    {"model", "served_model_name", "host", "port", "uds", "root_path", "config", "headless"}
    | {"lora_modules"}
    | {"api_server_count", "api_key", "ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "grpc"}
)
"""Arguments of vLLM's server that make no sense here: Serve and the gateway own them."""

NO_DOMAIN = "none.invalid"
"""vLLM takes an empty list of media domains for "all"; this reserved name never resolves."""

ENVIRONMENT = {"VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0", "VLLM_NO_USAGE_STATS": "1"}
"""Our defaults; what the replica's environment already says goes first."""

CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": str(CPU_KV_GIB),
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # Ray's num_cpus sets OMP_NUM_THREADS
    # Keeps the model in the engine's process; a worker of its own imports vLLM a third time. vLLM
    # wants one only to bind OpenMP threads, which "nobind" does not.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # What vLLM 0.32 compiles ahead of time and keeps, it cannot load again on a CPU ("no attribute
    # 'finalize_loading'"), and compiles anew at every start; torch's own cache works.
    "VLLM_USE_AOT_COMPILE": "0",
}
"""Our defaults where vLLM is the build for CPUs."""

PRIVATE = {
    "AsyncEngineArgs": "vllm.engine.arg_utils",
    "AsyncLLM": "vllm.v1.engine.async_llm",
    "FlexibleArgumentParser": "vllm.utils.argparse_utils",
    "ReasoningParserManager": "vllm.reasoning",
    "ToolParserManager": "vllm.tool_parsers",
    "UsageContext": "vllm.usage.usage_lib",
    "build_app": "vllm.entrypoints.launchers.app",
    "init_app_state": "vllm.entrypoints.launchers.api_server.app_state",
    "make_arg_parser": "vllm.entrypoints.launchers.cli_args",
    "validate_parsed_serve_args": "vllm.entrypoints.launchers.cli_args",
}
"""Every name of vLLM that we use and the module that has it; seen in 0.32.0."""


def upstream() -> SimpleNamespace:
    """Import vLLM and return the names of PRIVATE; takes seconds."""
    found = {name: getattr(import_module(module), name) for name, module in PRIVATE.items()}
    return SimpleNamespace(**found)


class VllmEngine:
    """vLLM; on a CPU it needs the build for CPUs."""

    name = "vllm"

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}
        self.tasks: tuple[str, ...] = ()
        self._engine: Any = None
        self._shutdown_s: float | None = None

    @property
    def versions(self) -> Mapping[str, str]:
        found = {name: _version(name) for name in ("vllm", "vllm-cpu", "torch", "transformers")}
        return {name: number for name, number in found.items() if number}

    async def start(self, settings: ModelSettings, _: Count) -> ASGI:
        began = time.monotonic()
        ours = {
            **defaults(os.environ, cpu=_built_for_cpu()),
            **environment(settings, os.environ, interfaces()),
        }
        for name, value in ours.items():
            os.environ.setdefault(name, value)
        vllm = upstream()
        self.phases["import"] = time.monotonic() - began
        args = parse(vllm, settings)

        began = time.monotonic()
        capture = Capture()
        engine_args = vllm.AsyncEngineArgs.from_cli_args(args)
        context = vllm.UsageContext.OPENAI_API_SERVER
        config = engine_args.create_engine_config(usage_context=context)
        self._shutdown_s = config.shutdown_timeout
        self._engine = vllm.AsyncLLM.from_vllm_config(
            vllm_config=config,
            usage_context=context,
            enable_log_requests=engine_args.enable_log_requests,
            aggregate_engine_logging=engine_args.aggregate_engine_logging,
            disable_log_stats=engine_args.disable_log_stats,
        )
        await self._engine.reset_mm_cache()
        self.phases.update(phases(capture.text(), time.monotonic() - began))

        began = time.monotonic()
        self.tasks = tuple(await self._engine.get_supported_tasks())
        app = vllm.build_app(args, self.tasks, self._engine.model_config)
        _tell_routing_errors_as_others(app)
        await vllm.init_app_state(self._engine, app.state, args, self.tasks)
        self.phases["application"] = time.monotonic() - began
        asgi: ASGI = app
        return asgi

    async def check(self) -> None:
        if self._engine is not None:
            await self._engine.check_health()

    async def stop(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.shutdown(timeout=self._shutdown_s)


def defaults(given: Mapping[str, str], *, cpu: bool) -> dict[str, str]:
    """Return the environment for vLLM, to which what is `given` is preferred."""
    if not cpu:
        return ENVIRONMENT
    chosen = {**ENVIRONMENT, **CPU_ENVIRONMENT}
    if given.get("VLLM_CPU_OMP_THREADS_BIND", "nobind") != "nobind":
        del chosen["VLLM_ENABLE_V1_MULTIPROCESSING"]
    return chosen


def parse(vllm: SimpleNamespace, settings: ModelSettings) -> Namespace:
    """Return the arguments of vLLM's server, parsed and checked by its own parser.

    Raises EngineError with what is wrong about which name.
    """

    class Parser(vllm.FlexibleArgumentParser):  # type: ignore[misc, name-defined]
        def error(self, message: str) -> NoReturn:
            raise EngineError(f"engine_args: {message}")

    parser = vllm.make_arg_parser(Parser())
    known = {action.dest: action for action in parser._actions}
    chosen = arguments(settings, cpu=_built_for_cpu())
    argv = [f"--model={settings.source}", f"--served-model-name={settings.name}"]
    for name, value in chosen.items():
        if name in OURS:
            raise EngineError(f"engine_args: {name!r} is set by raycluster: remove it")
        if name not in known:
            raise EngineError(unknown(name, sorted(known.keys() - OURS)))
        argv += flags(name, value, known[name].option_strings)
    adapters = [{"name": name, "path": path} for name, path in settings.adapters.items()]
    argv += flags("lora_modules", adapters or None, ())
    args: Namespace = parser.parse_args(argv)
    vllm.validate_parsed_serve_args(args)
    _load_plugins(vllm, args)
    return args


def arguments(settings: ModelSettings, *, cpu: bool) -> dict[str, object]:
    """Return the spec's arguments and our defaults for those that it leaves out.

    On a CPU the share is one of the host's memory, and VLLM_CPU_KVCACHE_SPACE goes before it.
    """
    ours: dict[str, object] = {"allowed_media_domains": [NO_DOMAIN]}
    if not cpu:
        part = settings.num_gpus if 0 < settings.num_gpus < 1 else 1
        ours["gpu_memory_utilization"] = round(GPU_MEMORY * part, 3)
    if settings.adapters:  # by default vLLM takes one adapter into a batch
        ours |= {"enable_lora": True, "max_loras": len(settings.adapters)}
    if settings.spread:
        ours |= {
            "distributed_executor_backend": "ray",
            "worker_extension_cls": WORKER_EXTENSION,
        }
    return ours | {name.replace("-", "_"): v for name, v in settings.engine_args.items()}


def unknown(name: str, known: Sequence[str]) -> str:
    """Return what to tell about a name that vLLM does not have."""
    close = difflib.get_close_matches(name.replace("-", "_"), known, n=1, cutoff=0.6)
    hint = f": did you mean {close[0]!r}?" if close else ""
    return f"engine_args: vLLM has no argument {name!r}{hint}"


def flags(dest: str, value: object, options: Sequence[str]) -> list[str]:
    """Return the words of vLLM's command line for one argument; None leaves vLLM's default."""
    flag = "--" + dest.replace("_", "-")
    negated = "--no-" + dest.replace("_", "-")
    if value is None:
        return []
    if value is True:
        return [flag]
    if value is False:
        return [negated] if negated in options else []
    if isinstance(value, Mapping):
        return [f"{flag}={json.dumps(value)}"]
    if isinstance(value, (list, tuple)):
        return [flag, *(json.dumps(v) if isinstance(v, Mapping) else str(v) for v in value)]
    return [f"{flag}={value}"]


def _tell_routing_errors_as_others(app: FastAPI) -> None:
    """Answer unknown paths and methods in OpenAI's form, as vLLM does what its endpoints raise."""
    import fastapi
    from starlette.exceptions import HTTPException

    app.add_exception_handler(HTTPException, app.exception_handlers[fastapi.HTTPException])
    app.middleware_stack = None  # built already, of the handlers before; made anew when first asked


def _load_plugins(vllm: SimpleNamespace, args: Namespace) -> None:
    if args.tool_parser_plugin:
        vllm.ToolParserManager.import_tool_parser(args.tool_parser_plugin)
    if args.reasoning_parser_plugin:
        vllm.ReasoningParserManager.import_reasoning_parser(args.reasoning_parser_plugin)


def _built_for_cpu() -> bool:
    return bool(_version("vllm-cpu")) or "cpu" in _version("vllm")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
