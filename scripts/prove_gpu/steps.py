"""The three calls: a fallback alone, the engine alone, the whole.

The program's own commands do the work and hold the limits of a load.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.memory import processes
from benchmarks.smi import watched

from . import contents
from .place import Place
from .table import Step, StepError, Table

CHECKOUT = Path(__file__).parents[2]
CLUSTER = MODEL = "proof"
PORT = 27000
PORTS = (
    *("api", "dashboard", "gateway", "prometheus", "grafana", "gcs", "node_manager"),
    *("object_manager", "dashboard_agent_grpc", "dashboard_agent_http", "runtime_env_agent"),
    *("metrics", "transfer", "ray_client", "ingress_metrics", "ingress_stats", "ingress_fallback"),
)
"""Those of the spec that are one port; what else runs on the machine may have the usual ones."""
RANGES = {"worker": (100, 499), "replica": (500, 999)}
CONCURRENCY = 64
PROMISED = ("request_throughput>10", "e2el_p95<3s")
NO_ERRORS = "error_rate<=0%"
PROMPTS_PER_S, BUSY_PERCENT, HOST_MB = 1000, 70.0, 2000.0
USED_MIB = 500.0
LOGS_S = 20.0
FALLBACK, MISSING = "is served by transformers, not by vLLM", "No module named 'vllm'"
WRONG = "max_modl_len"
CRASHES = (0, -signal.SIGABRT, -signal.SIGSEGV, -signal.SIGILL, -signal.SIGBUS)
DEGRADED = 3

SPEC = """
[cluster]
name = "{name}"
app_timeout = 300

[runtime]
kind = "native"
python = "{python}"
start_on_boot = false

[head]
transport = "local"
gpus = {gpus}

[ports]
{ports}

[[models]]
name = "{name}"
source = "{model}"
{more}
"""

ON_GPU: Mapping[str, object] = {"max_model_len": 2048, "dtype": "bfloat16"}
ON_CPU: Mapping[str, object] = {"max_model_len": 512, "dtype": "bfloat16", "enforce_eager": True}
EAGER: Mapping[str, object] = {"enforce_eager": True}
CPU_ENV = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


class Proof:
    """One call on one machine."""

    def __init__(self, call: str, place: Place, *, gpu: bool) -> None:
        self.table = Table(call, gpu)
        self.place = place
        self.gpu = gpu
        self.kept = place.results / call
        self.kept.mkdir(parents=True, exist_ok=True)
        self.home = place.folder / "home"
        self.home.mkdir(exist_ok=True)
        self.spec = place.folder / "cluster.toml"
        self.environment = "without-engine" if call == "fallback" else "whole"

    def run(
        self,
        name: str,
        argv: Sequence[str | Path],
        codes: Sequence[int] = (0,),
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> tuple[int, str, str]:
        """Run a program in the step's time; return exit code, output and errors, which are kept."""
        own = {"HOME": str(self.home), "LANG": "C.UTF-8"}
        process = subprocess.Popen(
            [str(word) for word in argv],
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **own, **(env or {})},
            start_new_session=True,
        )
        late = False
        try:
            out, err = process.communicate(stdin, timeout=self.table.left())
        except subprocess.TimeoutExpired:
            late = True
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
        (self.kept / f"{name}.out").write_text(out)
        (self.kept / f"{name}.err").write_text(err)
        if late or process.returncode not in codes:
            why = "took too long" if late else f"ended with {process.returncode}"
            raise StepError(f"{name} {why}", f"{tail(out)}\n{tail(err)}\n{self.logs()}")
        return process.returncode, out, err

    def raycluster(
        self, name: str, *words: str | Path, codes: Sequence[int] = (0,)
    ) -> tuple[int, str, str]:
        """Run the program that is proved."""
        python = self.place.python(self.environment)
        return self.run(name, [Path(python).with_name("raycluster"), *words], codes)

    def logs(self) -> str:
        """Return the ends of the cluster's logs, where there are any."""
        program = Path(self.place.python(self.environment)).with_name("raycluster")
        if not self.spec.exists() or not program.exists():
            return ""
        command: list[str | Path] = [program, "logs", "--spec", self.spec, "--tail", "30"]
        env = {**os.environ, "HOME": str(self.home)}
        with suppress(subprocess.TimeoutExpired):
            done = subprocess.run(
                command, env=env, capture_output=True, text=True, timeout=LOGS_S, check=False
            )
            (self.kept / "failed.log").write_text(done.stdout)
            return tail(done.stdout, 60)
        return ""

    def write_spec(self, *lines: str, environment: str) -> None:
        """Write the cluster's file, with these lines of the model's."""
        self.environment = environment
        text = SPEC.format(
            name=CLUSTER,
            python=self.place.python(environment),
            gpus=int(self.gpu),
            ports=ports(PORT),
            model=self.place.folder / "model",
            more="\n".join(lines),
        )
        self.spec.write_text(text)
        shutil.copy(self.spec, self.kept)

    # -- what all calls begin with

    def facts(self) -> None:
        """Note what the machine is, and what of the requirements it does not have."""
        lines = [sys.version.split()[0], f"{os.cpu_count()} CPUs"]
        if self.gpu:
            query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,compute_cap"]
            lines.append(self.run("nvidia-smi", [*query, "--format=csv,noheader"])[1].strip())
        self.table.say("machine", ", ".join(lines))
        python = self.place.python(self.environment)
        lacking = self.run("lacking", [python, CHECKOUT / "scripts/prove_gpu/lacking.py"])[1]
        for line in lacking.splitlines():
            print(f"   {line}")
        self.table.say("requirements that are not met", len(lacking.splitlines()))
        with suppress(StepError):
            self.run("pip-list", [sys.executable, "-m", "pip", "list", "--format=freeze"])

    def make_model(self) -> None:
        """Make a model with random weights on the machine itself."""
        target = self.place.folder / "model"
        if (target / "model.safetensors").exists():
            return
        words = self.place.folder / "tokenizer"
        python = self.place.python(self.environment)
        for folder in (target, words):
            shutil.rmtree(folder, ignore_errors=True)
        self.run("tokenizer", [python, CHECKOUT / "scripts/prove_gpu/tokenizer.py", words])
        shape = "save_qwen.py" if self.gpu else "save_tiny.py"
        self.run("model", [python, CHECKOUT / "scripts" / shape, words, target])

    # -- what is measured

    def bench(self, name: str, *to: str | Path, seconds: float = 15.0) -> None:
        """Load what is served, 64 at a time; note figures, and what the GPU did meanwhile."""
        count = 16384 if self.gpu else 256
        held = [*(PROMISED if self.gpu else ()), NO_ERRORS]
        command = ["bench", *to, "--synthetic", f"prompt=64,output=32,count={count}"]
        command += ["-n", str(count), "-c", str(CONCURRENCY), "--endpoint", "completions"]
        command += ["--processes", str(min(4, os.cpu_count() or 1))]
        command += [*(f"--assert={limit}" for limit in held), "--json", "-o", self.kept / name]
        if self.gpu:
            command += ["--duration", str(seconds)]
        with watched() as smi:
            code, out, _ = self.raycluster(name, *command, codes=(0, 4))
        (self.kept / f"{name}.smi").write_text("\n".join(smi))
        [level] = json.loads(out)["levels"]
        rate, p95 = level["request_throughput"], level["e2el_ms"]["p95"] / 1e3
        table = self.table
        table.on_gpu(f"{name}: prompts/s", rate, "over 10", kept=rate > 10)
        table.aim(f"{name}: prompts/s", rate, f"aim: {PROMPTS_PER_S}", kept=rate >= PROMPTS_PER_S)
        table.on_gpu(f"{name}: p95, s", p95, "under 3", kept=p95 < 3)
        table.say(f"{name}: failed requests", level["failed"], "none", kept=not level["failed"])
        table.say(f"{name}: exit code of bench", code, "0", kept=code == 0)
        busy = busy_percent(smi)
        shown = "unknown" if busy is None else busy
        table.on_gpu(
            f"{name}: GPU busy, %", shown, f"over {BUSY_PERCENT:.0f}", kept=(busy or 0) > 70
        )

    def load(self, name: str) -> None:
        """Load the cluster."""
        self.bench(name, "--spec", self.spec)

    def memory(self) -> None:
        """Note the host memory of a replica with its engine."""
        rows = list(processes(CLUSTER))
        (self.kept / "memory.json").write_text(json.dumps(rows, indent=1))
        total = sum(float(str(row["pss"])) for row in rows if row["kind"] != "other")
        self.table.on_gpu("replica: host memory, MB", total, "under 2000", kept=total < HOST_MB)

    def status(self, codes: Sequence[int] = (0,)) -> dict[str, Any]:
        """Note what the cluster says of itself."""
        seen = json.loads(self.raycluster("status", "status", self.spec, "--json", codes=codes)[1])
        [model] = seen["models"]
        told = f"{model['engine']}, {len(model['replicas'])} replicas, {model['status']}"
        self.table.say("status", told)
        return dict(model)

    def down(self) -> None:
        """Take the cluster down, and see that nothing of it is left."""
        self.raycluster("down", "down", self.spec, "--yes")
        left = [row["title"] for row in processes(CLUSTER)]
        self.table.say("down: processes left", len(left), "none", kept=not left)

    # -- the fallback alone

    def up_with_fallback(self) -> None:
        """Serve with transformers because vLLM is not there, which `up` has to say."""
        self.write_spec('engine = "auto"', "fallback = true", environment="without-engine")
        _, _, err = self.raycluster("up", "up", self.spec, codes=(DEGRADED,))
        said = next((line for line in err.splitlines() if FALLBACK in line), "")
        self.table.say("up: exit code", DEGRADED, "3")
        self.table.say("up: the cause", said or tail(err), MISSING, kept=MISSING in said)

    def fallback_answers(self) -> None:
        """Ask it, and see that the GPU holds it."""
        requests = "32" if self.gpu else "8"
        command: list[str | Path] = [
            "bench",
            "--spec",
            self.spec,
            "--prompts",
            CHECKOUT / "examples/prompts.jsonl",
        ]
        command += ["-n", requests, "-c", "4", "--max-tokens", "16", f"--assert={NO_ERRORS}"]
        code, out, _ = self.raycluster("ask", *command, "--json", codes=(0, 4))
        [level] = json.loads(out)["levels"]
        self.table.say("answers", level["completed"], "no failed one", kept=code == 0)
        with watched() as smi:
            time.sleep(2.5 if self.gpu else 0)
        used = max(column(smi, "memory.used"), default=0.0)
        self.table.on_gpu("GPU memory used, MiB", used, "over 500", kept=used > USED_MIB)

    def status_of_fallback(self) -> None:
        """Look at it."""
        engine = self.status((0, DEGRADED))["engine"]
        self.table.say("status: engine", engine, "transformers", kept=engine == "transformers")

    # -- the engine alone

    def import_all(self) -> None:
        """Import every compiled library that was brought, and what stands on those left out."""
        sites = [self.place.folder / part / "site" for part in ("serving", "engine")]
        paths = [str(p.relative_to(site)) for site in sites for p in site.rglob("*.so")]
        names = [name for name in contents.modules(paths) if "thirdparty_files" not in name]
        if not self.gpu:  # a CPU takes one of those that its build has
            names = [name for name in names if not name.startswith("vllm._C")]
        wanted = [*names, *(contents.PROGRAMS if self.gpu else ())]
        program = CHECKOUT / "scripts/prove_gpu/imports.py"
        command = (self.place.python("whole"), program)
        failed: list[str] = []
        left = wanted
        while left:  # one that ends the process is left out, and the rest tried anew
            code, out, err = self.run("imports", command, CRASHES, "\n".join(left))
            told = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
            failed += [f"{row['module']}: {row['error']}" for row in told if "error" in row]
            if code == 0:
                break
            culprit = told[-1]["module"] if told else left[0]
            failed.append(f"{culprit}: signal {-code}: {tail(err, 3)}")
            left = left[left.index(culprit) + 1 :]
        print("\n".join(f"   {line}" for line in failed))
        self.table.say("imports tried", len(wanted))
        self.table.say("imports that failed", len(failed), "none", kept=not failed)

    def engine_env(self) -> dict[str, str]:
        """Return what the engine is told where it runs alone."""
        return {} if self.gpu else {**CPU_ENV, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}

    def bare(self) -> None:
        """Serve with `vllm serve` alone, compiled or else as it is, and load it."""
        said = []
        for more in ({}, EAGER) if self.gpu else ({},):
            arguments = {**(ON_GPU if self.gpu else ON_CPU), **more}
            try:
                self.serve_alone(arguments)
            except StepError as error:
                said.append(error)
                continue
            (self.place.folder / "arguments.json").write_text(json.dumps(arguments))
            return
        raise said[-1]

    def serve_alone(self, arguments: Mapping[str, object]) -> None:
        """Serve and load with these arguments."""
        python, log = self.place.python("whole"), self.kept / "bare.log"
        program = [python, "-c", KNOWN_AS_VLLM] if not self.gpu else [python, "-m", VLLM]
        url = f"http://127.0.0.1:{PORT}"
        command = [*program, "serve", str(self.place.folder / "model")]
        command += [f"--served-model-name={MODEL}", f"--port={PORT}", "--host=127.0.0.1"]
        command += [f"--gpu-memory-utilization={0.8 if self.gpu else 0.2}"]
        for name, value in arguments.items():
            flag = "--" + name.replace("_", "-")
            command.append(flag if value is True else f"{flag}={value}")
        env = {**os.environ, **self.engine_env(), "HOME": str(self.home)}
        began = time.monotonic()
        with log.open("wb") as file:
            server = subprocess.Popen(
                command, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            while not answers(f"{url}/health"):
                if server.poll() is not None or self.table.left() <= 1:
                    why = "took too long" if server.returncode is None else "ended"
                    raise StepError(f"vllm serve {why}", tail(log.read_text(errors="replace"), 60))
                time.sleep(0.5)
            self.table.say("vllm serve: seconds to start", time.monotonic() - began)
            eager = "as it is" if arguments.get("enforce_eager") else "compiled"
            self.table.say("vllm serve: the model", eager)
            self.bench("bare", "--url", url, "--model", MODEL)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    server.wait(15)
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()

    # -- the whole

    def up(self, name: str, *lines: str, codes: Sequence[int] = (0,)) -> tuple[int, str, str]:
        """Bring the cluster to the file with these lines."""
        found = self.place.folder / "arguments.json"
        arguments = json.loads(found.read_text()) if found.exists() else self.arguments()
        told = {**arguments, **({WRONG: 1} if name == "refused" else {})}
        inside = ", ".join(f"{key} = {json.dumps(value)}" for key, value in told.items())
        more = [f"engine_args = {{ {inside} }}", *lines]
        self.write_spec('engine = "vllm"', *more, environment="whole")
        return self.raycluster(name, "up", self.spec, codes=codes)

    def arguments(self) -> Mapping[str, object]:
        """Return the engine's arguments where it has not run alone."""
        return ON_GPU if self.gpu else ON_CPU

    def up_one(self) -> None:
        """Serve with one replica on the whole GPU."""
        self.up("up", f"num_gpus = {int(self.gpu)}")

    def status_of_one(self) -> None:
        """Look at it."""
        model = self.status()
        kept = model["engine"] == "vllm" and len(model["replicas"]) == 1
        self.table.say("status: vLLM, one replica", kept, "True", kept=kept)

    def two(self) -> None:
        """Change it to two replicas with half a GPU each."""
        self.up("two", "replicas = 2", f"num_gpus = {0.5 if self.gpu else 0}")
        model = self.status()
        count = len([r for r in model["replicas"] if r["state"] == "running"])
        self.table.say("two replicas: running", count, "2", kept=count == 2)

    def refused(self) -> None:
        """Ask for an argument that vLLM does not have: refused in words, and still served."""
        half = f"num_gpus = {0.5 if self.gpu else 0}"
        code, _, err = self.up("refused", "replicas = 2", half, codes=(1, 2))
        said = next((line for line in err.splitlines() if WRONG in line), "")
        self.table.say("refused: exit code", code, "1 or 2")
        self.table.say("refused: the cause", said or tail(err), "said", kept=bool(said))


VLLM = "vllm.entrypoints.cli.main"
KNOWN_AS_VLLM = f"""
import importlib.metadata as metadata, runpy
found = metadata.version
metadata.version = lambda name: found("vllm-cpu") + "+cpu" if name == "vllm" else found(name)
runpy.run_module("{VLLM}", run_name="__main__")
"""
"""vLLM asks for the package `vllm`, which its build for CPUs is not called."""


def steps(proof: Proof) -> dict[str, list[Step]]:
    """Return the steps of each call, in order."""
    begin = [Step("facts", 40, proof.facts), Step("model", 60, proof.make_model)]
    end = Step("down", 40, proof.down, always=True)
    return {
        "fallback": [
            *begin,
            Step("up", 150, proof.up_with_fallback, ["model"]),
            Step("answers", 60, proof.fallback_answers, ["up"]),
            Step("status", 15, proof.status_of_fallback, ["up"]),
            end,
        ],
        "engine": [
            *begin,
            Step("imports", 90, proof.import_all),
            Step("bare", 200, proof.bare, ["model"]),
        ],
        "serve": [
            *begin,
            Step("up", 170, proof.up_one, ["model"]),
            Step("bench", 60, partial(proof.load, "one"), ["up"]),
            Step("memory", 15, proof.memory, ["up"]),
            Step("status", 15, proof.status_of_one, ["up"]),
            Step("two replicas", 120, proof.two, ["up"]),
            Step("bench of two", 60, partial(proof.load, "two"), ["two replicas"]),
            Step("refused", 90, proof.refused, ["up"]),
            Step("answers still", 60, partial(proof.load, "after"), ["refused"]),
            end,
        ],
    }


SECONDS = {"fallback": 210.0, "engine": 240.0, "serve": 350.0}
"""What a call has, besides the steps that always have their own."""
SLOWER = 4
"""How much more time everything has in a rehearsal on a few busy CPUs."""


def ports(first: int) -> str:
    """Return lines of the spec that set all ports, beginning behind the first."""
    lines = [f"{name} = {first + at}" for at, name in enumerate(PORTS, 1)]
    for name, (low, high) in RANGES.items():
        lines += [f"{name}_min = {first + low}", f"{name}_max = {first + high}"]
    return "\n".join(lines)


def busy_percent(smi: Sequence[str]) -> float | None:
    """Return the median of the GPU's use in nvidia-smi's lines, None without any."""
    found = column(smi, "utilization.gpu")
    return median(found) if found else None


def column(smi: Sequence[str], name: str) -> list[float]:
    """Return the figures of one column of nvidia-smi's lines, of which the first is the head."""
    if not smi:
        return []
    heads = [word.split()[0] for word in smi[0].split(",")]
    found = []
    for line in smi[1:]:
        with suppress(ValueError, IndexError):
            found.append(float(line.split(",")[heads.index(name)]))
    return found


def answers(url: str) -> bool:
    """Return whether a server is ready."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def tail(text: str, lines: int = 25) -> str:
    """Return the end of a text."""
    return "\n".join(line[:400] for line in text.splitlines()[-lines:])
