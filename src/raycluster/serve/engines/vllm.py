"""vLLM's own server, `vllm serve`, as a process beside this one."""

from __future__ import annotations

import asyncio
import difflib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from raycluster.serve.adding import FailedError
from raycluster.serve.engines import ASGI, Count, EngineError, inside
from raycluster.serve.engines.inside.middleware import MODEL, QUOTAS_PATH, Middleware
from raycluster.serve.engines.server import Place, Server, ServerEndedError
from raycluster.serve.engines.vllm_log import phases
from raycluster.serve.engines.vllm_network import environment, interfaces
from raycluster.serve.engines.warm_up import warm_up
from raycluster.serve.environments import versions_in
from raycluster.serve.figures import Figures
from raycluster.serve.relay import Relay
from raycluster.serve.rootcause import explain
from raycluster.serve.settings import CPU_KV_GIB, GPU_MEMORY, SHUT, ModelSettings

if TYPE_CHECKING:
    from raycluster.serve.engines.parts import Parts

logger = logging.getLogger("ray.serve")

USAGE = 2
"""The exit code of a command line that its parser refuses."""

OPTION = re.compile(r"--([a-z0-9][a-z0-9-]*)")
HELP_S = 60.0

OURS = frozenset(
    {"model", "served_model_name", "host", "port", "uds", "root_path", "config", "headless"}
    | {"lora_modules", "nnodes", "node_rank", "master_addr", "master_port"}
    | {"api_server_count", "api_key", "ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "grpc"}
)
"""Arguments of vLLM's server that make no sense here: Serve and the gateway own them."""

INSIDE = "raycluster_inside"
"""The package that vLLM's server finds beside its own."""

JSON_LISTS = frozenset({"allowed_origins", "allowed_methods", "allowed_headers"})
REPEATED = frozenset({"middleware"})
COMMAS = frozenset({"device_ids", "disable_access_log_for_endpoints"})
"""Lists that vLLM's parser takes otherwise than as words after the argument's name."""

NO_DOMAIN = "none.invalid"
"""vLLM takes an empty list of media domains for "all"; this reserved name never resolves."""

ENVIRONMENT = {
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
    "VLLM_NO_USAGE_STATS": "1",
    # HAProxy ends what it keeps idle sooner, so that none of them is closed under a new request.
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "60",
}
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

NOTHING_COMPILED = {"TORCHDYNAMO_DISABLE": "1"}
"""Our default on a CPU with `enforce_eager`: vLLM would still compile its count of logprobs, at the
first request that asks for them."""


@dataclass(frozen=True)
class Share:
    """Which part of an engine over `of` hosts a process is; they meet at the first one's host."""

    rank: int
    of: int
    address: str
    port: int

    def of_rank(self, rank: int) -> Share:
        """Return that of another part."""
        return replace(self, rank=rank)


class VllmEngine:
    """vLLM; on a CPU it needs the build for CPUs."""

    name = "vllm"

    def __init__(self, place: Place) -> None:
        self.phases: dict[str, float] = {}
        self.own_tokens = 0
        self.figures = Figures()
        self._place = place
        self._server: Server | None = None
        self._parts: Parts | None = None
        self._beside: TemporaryDirectory[str] | None = None
        self._python = sys.executable
        self.versions: Mapping[str, str] = {}

    async def start(self, settings: ModelSettings, _: Count) -> ASGI:
        if not settings.spread:
            return await self._start(settings)
        from raycluster.serve.engines.parts import Parts

        self._parts = Parts(settings)
        return await self._parts.beside(self._start(settings, self._parts.share))

    async def _start(self, settings: ModelSettings, share: Share | None = None) -> ASGI:
        began = time.monotonic()
        self.figures.server = server = await self.serve(settings, share)
        answered = time.monotonic()
        self.own_tokens = await warm_up(server, settings.name)
        self.phases = phases(server.written(), answered - began)
        self.phases["first_requests"] = time.monotonic() - answered
        return Relay(server)

    async def serve(self, settings: ModelSettings, share: Share | None = None) -> Server:
        """Return a server that answers; with `share` the other parts have to be on their way.

        Raises EngineError and ServerEndedError.
        """
        return await self._served(settings, share, Server.start)

    async def serve_part(self, settings: ModelSettings, share: Share) -> str:
        """Serve a part that is not the first, and return why it ended."""
        try:
            await self._served(settings, share, Server.run)
        except (EngineError, ServerEndedError) as error:
            return explain(error, "")
        return ""

    async def _served(
        self,
        settings: ModelSettings,
        share: Share | None,
        work: Callable[[Server], Awaitable[None]],
    ) -> Server:
        self.versions = await asyncio.to_thread(self._look, settings)
        built_for_cpu = "vllm-cpu" in self.versions or "cpu" in self.versions.get("vllm", "")
        runs = program(self._python)
        argv = [*runs, *command(settings, self._place, share, cpu=built_for_cpu)]
        env = self._environment(settings, cpu=built_for_cpu)
        self._server = server = Server(argv, env, self._place)  # to be stopped, whatever comes
        try:
            await work(server)
        except ServerEndedError as error:
            if not (mistake := wrong_argument(error.code, error.written)):
                raise
            known = OPTION.findall(await said([*runs, "serve", "--help=all"], env))
            if not (needless := off_already(mistake, known)):
                raise EngineError(f"engine_args: {in_the_specs_words(mistake, known)}") from None
            argv = [word for word in argv if word not in needless]
            await server.stop()
            self._server = server = Server(argv, env, self._place)
            await work(server)
        return server

    async def check(self) -> None:
        if self._parts is not None:
            self._parts.check()
        if self._server is not None:
            await self._server.check()

    async def quotas(self, others: bytes) -> bytes:
        if self._server is None:
            raise RuntimeError("the engine's server is not there")
        return await self._server.post(QUOTAS_PATH, others)

    async def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.stop()
        if self._parts is not None:
            self._parts.stop()
        if self._beside is not None:
            self._beside.cleanup()

    def _look(self, settings: ModelSettings) -> dict[str, str]:
        """Return what the engine's own environment holds. Raises EngineError."""
        if settings.environment is None:
            names = ("vllm", "vllm-cpu", "torch", "transformers")
            return {name: number for name in names if (number := _version(name))}
        self._python = settings.environment.program
        try:
            return versions_in(self._python)
        except FailedError as error:
            raise EngineError(f"environment: {error}") from None

    def _environment(self, settings: ModelSettings, *, cpu: bool) -> dict[str, str]:
        given = without_shut(os.environ)
        eager = bool(arguments(settings, cpu=cpu).get("enforce_eager"))
        ours = defaults(given, cpu=cpu, eager=eager)
        env = {**ours, **environment(settings, given, interfaces()), **given}
        if settings.environment is not None:
            env = apart(env, self._python, settings.env)
        if self._beside is None:
            self._beside = TemporaryDirectory(prefix="vllm-", dir=_own_folder())
        beside = Path(self._beside.name)
        write_inside(beside)
        number = self.versions.get("vllm-cpu")
        if number and "vllm" not in self.versions:
            known_as_vllm(beside, number)
        path = os.pathsep.join(filter(None, (str(beside), env.get("PYTHONPATH"))))
        return {**env, "PYTHONPATH": path, MODEL: settings.name}


def off_already(mistake: str, known: Sequence[str]) -> list[str]:
    """Return the words for `false` that the parser does not have, of flags which it has.

    Such a flag can be switched on alone: left out, it is off. [] where more is wrong than that.
    """
    found = re.fullmatch(r"unrecognized arguments: (.+)", mistake)
    words = found[1].split() if found else []
    return words if all(w.startswith("--no-") and w[5:] in known for w in words) else []


def in_the_specs_words(mistake: str, known: Sequence[str]) -> str:
    """Return what the parser refused in the words of who wrote a name of the spec."""
    found = re.match(r"unrecognized arguments: --(?:no-)?([\w-]+)", mistake)
    if not found:
        return mistake
    names = sorted({name.replace("-", "_") for name in known} - OURS)
    name = found[1].replace("-", "_")
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f": did you mean {close[0]!r}?" if close and close[0] != name else ""
    return f"vLLM has no argument {name!r}{hint}"


async def said(argv: Sequence[str], env: Mapping[str, str]) -> str:
    """Return what a program prints, or "" when it takes too long."""
    asked = await asyncio.create_subprocess_exec(
        *argv, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        out, _ = await asyncio.wait_for(asked.communicate(), HELP_S)
    except TimeoutError:
        asked.kill()
        return ""
    return out.decode("utf-8", "replace")


def write_inside(folder: Path) -> None:
    """Write the middleware as a package for vLLM's Python."""
    package = folder / INSIDE
    package.mkdir(exist_ok=True)
    for file in resources.files(inside).iterdir():
        if file.name.endswith(".py"):
            text = file.read_text().replace(f"from {inside.__name__}.", f"from {INSIDE}.")
            (package / file.name).write_text(text)


def known_as_vllm(folder: Path, number: str) -> str:
    """Write what makes Python call the build for CPUs by the name `vllm`, and return its path.

    vLLM's command line asks for that name, and finds its platform by "cpu" in the version.
    """
    told = folder / f"vllm-{number}+cpu.dist-info"
    told.mkdir(parents=True, exist_ok=True)
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {number}+cpu\n")
    return str(folder)


def command(
    settings: ModelSettings, place: Place, share: Share | None = None, *, cpu: bool
) -> list[str]:
    """Return the arguments of vLLM's program; of one part of it where there is a `share`.

    Raises EngineError for what is not the spec's to say. vLLM's own parser judges the rest.
    """
    chosen = arguments(settings, cpu=cpu)
    if ours := next((name for name in chosen if name in OURS), ""):
        raise EngineError(f"engine_args: {ours!r} is set by raycluster: remove it")
    argv = ["serve", settings.source, "--served-model-name", settings.name, *settings.aliases]
    if share is not None:
        argv += [f"--nnodes={share.of}", f"--node-rank={share.rank}"]
        argv += [f"--master-addr={share.address}", f"--master-port={share.port}"]
    if share is not None and share.rank:
        argv.append("--headless")
    else:
        argv += [f"--host={place.host}", f"--port={place.port}", f"--root-path={place.root}"]
        argv.append("--api-server-count=1")  # which its keeper can end at once
    adapters = [{"name": name, "path": path} for name, path in settings.adapters.items()]
    for name, value in {**chosen, "lora_modules": adapters or None}.items():
        argv += flags(name, value)
    if share is None or not share.rank:
        argv.append(
            f"--middleware={INSIDE}.middleware.{Middleware.__name__}"
        )  # the last is the first to be asked
    return argv


def program(python: str) -> tuple[str, ...]:
    """Return vLLM's program beside a Python, for that one to run, or the module that it is.

    The Python that the program itself names may have another name where this one runs.
    """
    own = Path(python).with_name("vllm")
    words = (str(own),) if own.exists() else ("-m", "vllm.entrypoints.cli.main")
    return (python, *words)


def apart(env: Mapping[str, str], python: str, told: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for another Python than the node's, without the node's own paths.

    What the spec itself has `told` of them stays.
    """
    own = {name: told[name] for name in ("PYTHONPATH", "PYTHONHOME") if name in told}
    left = {n: v for n, v in env.items() if n not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    path = os.pathsep.join(filter(None, (str(Path(python).parent), left.get("PATH"))))
    return {**left, **own, "PATH": path}


def wrong_argument(code: int, written: str) -> str:
    """Return what vLLM's parser refused, or "" where it was something else that ended it."""
    said = re.findall(r"(?m)^\S[^:\n]*: error: (.+)$", written)
    return str(said[-1]) if code == USAGE and said else ""


def defaults(given: Mapping[str, str], *, cpu: bool, eager: bool = False) -> dict[str, str]:
    """Return the environment for vLLM, to which what is `given` is preferred."""
    if not cpu:
        return ENVIRONMENT
    chosen = {**ENVIRONMENT, **CPU_ENVIRONMENT, **(NOTHING_COMPILED if eager else {})}
    if given.get("VLLM_CPU_OMP_THREADS_BIND", "nobind") != "nobind":
        del chosen["VLLM_ENABLE_V1_MULTIPROCESSING"]
    return chosen


def without_shut(given: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what a spec may not say, but a host or an image may have."""
    if found := sorted(SHUT.keys() & given.keys()):
        logger.warning("raycluster: %s is not taken from the environment", ", ".join(found))
    return {name: value for name, value in given.items() if name not in SHUT}


def arguments(settings: ModelSettings, *, cpu: bool) -> dict[str, object]:
    """Return the spec's arguments and our defaults for those that it leaves out.

    On a CPU the share is one of the host's memory, and VLLM_CPU_KVCACHE_SPACE goes before it.
    """
    ours: dict[str, object] = {
        "allowed_media_domains": [NO_DOMAIN],
        "disable_uvicorn_access_log": True,
        "scheduling_policy": "priority",  # `inside.vllm_hooks` gives each key its turns
    }
    if not cpu:
        part = settings.num_gpus if 0 < settings.num_gpus < 1 else 1
        ours["gpu_memory_utilization"] = round(GPU_MEMORY * part, 3)
    if settings.adapters:  # by default vLLM takes one adapter into a batch
        ours |= {"enable_lora": True, "max_loras": len(settings.adapters)}
    if settings.spread:
        ours["distributed_executor_backend"] = "mp"  # which goes over hosts by itself
    return ours | {name.replace("-", "_"): v for name, v in settings.engine_args.items()}


def flags(dest: str, value: object) -> list[str]:
    """Return the words of vLLM's command line for one argument; None leaves vLLM's default.

    Raises EngineError for a value that no words of vLLM's stand for.
    """
    flag = "--" + dest.replace("_", "-")
    if value is None:
        return []
    if value is True:
        return [flag]
    if value is False:
        return ["--no-" + dest.replace("_", "-")]
    if isinstance(value, (list, tuple)):
        return _several(dest, flag, value)
    if dest in JSON_LISTS:
        raise EngineError(f"engine_args: {dest}: a list is expected, not {value!r}")
    return [f"{flag}={_word(value)}"]


def _several(dest: str, flag: str, values: Sequence[object]) -> list[str]:
    if dest in JSON_LISTS:
        return [f"{flag}={json.dumps(values)}"]
    if dest in REPEATED:
        return [f"{flag}={value}" for value in values]
    if not values:
        raise EngineError(f"engine_args: {dest}: vLLM takes no empty list here: leave it out")
    words = [_word(value) for value in values]
    return [f"{flag}={','.join(words)}"] if dest in COMMAS else [flag, *words]


def _word(value: object) -> str:
    return json.dumps(value) if isinstance(value, (Mapping, list, tuple)) else str(value)


def _own_folder() -> str | None:
    """Return a folder of the cluster's own, which goes with it; None where there is none."""
    if not (root := os.environ.get("RAYCLUSTER_ROOT")):
        return None
    folder = Path(root, "run")
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
