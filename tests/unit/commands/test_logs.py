"""`logs` of real processes on this machine that write what a node of Ray and a gateway write."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raycluster.cli import app
from raycluster.core.errors import UsageError
from raycluster.core.interfaces import Found, Process, Versions
from raycluster.hosts.fleet import Fleet, connect
from raycluster.logs.cluster import causes
from raycluster.serve.rootcause import MARK
from raycluster.spec import read_spec
from raycluster.state.cluster import App, ClusterState, HostState

SPEC = f"""
cluster.name = "c"
models = [{{ name = "Org/Big" }}]
[head]
transport = "local"
gpus = 0
[runtime]
kind = "native"
python = "{sys.executable}"
start_on_boot = false
[gateway]
"""
HEAD = r"""
logs="$RAY_TMPDIR/ray/session_1/logs"
mkdir -p "$logs" && ln -s session_1 "$RAY_TMPDIR/ray/session_latest"
{
  echo ":actor_name:ServeReplica:org-big:Model"
  echo "INFO 2026-01-02 03:04:05,006 org-big_Model abcd1234 -- begins"
  echo "INFO $(date '+%Y-%m-%d %H:%M:%S'),006 org-big_Model abcd1234 -- an Error came"
  echo "WARNING raycluster: vllm cannot start: ValueError: too little memory"
} >"$logs/worker-a-02-7.err"
for n in 1 2 3; do echo "head $n"; done
sleep 1000
"""
GATEWAY = "echo 'gate said'; sleep 1000"


@dataclass(frozen=True)
class Here:
    """A folder with a spec."""

    folder: Path

    @property
    def env(self) -> dict[str, str]:
        """Return a bare environment."""
        return {"PATH": os.environ["PATH"], "HOME": str(self.folder), "LANG": "C.UTF-8"}

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Start `logs` and return at once."""
        program = Path(sys.executable).with_name("raycluster")
        return subprocess.Popen(
            (program, "logs", *args),
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *args: str) -> tuple[BaseException | None, list[str]]:
        """Run `logs` in this process; return its error and the lines that it showed."""
        done = CliRunner().invoke(app, ["logs", "--spec", str(self.folder / "cluster.toml"), *args])
        return done.exception, done.stdout.splitlines()


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    """A head, a gateway and what a replica wrote."""
    folder = tmp_path_factory.mktemp("logs")
    (folder / "cluster.toml").write_text(SPEC)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        runtime = connect(read_spec(folder / "cluster.toml").hosts[0], "c").runtime
        try:
            for role, script in (("head", HEAD), ("gateway", GATEWAY)):
                process = Process(role, ("sh", "-c", script))
                runtime.start(process, Versions(), {}, lambda _: None)
            _wait_for_line(Here(folder))
            yield Here(folder)
        finally:
            runtime.remove()


def _wait_for_line(here: Here) -> None:
    end = time.monotonic() + 30
    while "head 3" not in here("head")[1]:
        assert time.monotonic() < end


REPLICA = "head/Org/Big:abcd1234"


@pytest.mark.parametrize(
    ("args", "lines"),
    [
        (("head", "-n", "2"), ["head 2", "head 3"]),
        (("gateway",), ["gate said"]),
        (("head/gateway", "--grep", "GATE", "-i"), ["gate said"]),
        (("head", "gateway", "-n", "1"), ["head  head 3", "head/gateway  gate said"]),
        (("--grep", "begins$"), [f"{REPLICA}  INFO 2026-01-02 03:04:05,006 org-big_Model"]),
        (("Org/Big", "--since", "1h"), [f"{REPLICA}  INFO 20", f"{REPLICA}  WARNING "]),
        (("abcd", "--grep", "an Error"), [f"{REPLICA}  INFO 20"]),
        (("all", "-n", "1"), ["head  head 3", "head/gateway  gate said", f"{REPLICA}  WARNING "]),
    ],
)
def test_what_is_asked_for_is_shown(logs: Here, args: tuple[str, ...], lines: list[str]) -> None:
    error, shown = logs(*args)
    assert error is None
    assert len(shown) == len(lines), shown
    for line, wanted in zip(shown, lines, strict=True):
        assert line.startswith(wanted)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("nothing",), "'nothing' is not a host, service, model or replica in this cluster"),
        (("nothing", "-f"), "'nothing' is not a host, service, model or replica in this cluster"),
        (("--since", "soon"), "--since: 'soon' is not a valid time"),
        (("--grep", "("), "--grep: '(' is not a valid regular expression"),
        (("Org/Big#1",), "#1: Org/Big has 0 replicas"),
    ],
)
def test_what_cannot_be_is_refused(logs: Here, args: tuple[str, ...], said: str) -> None:
    error, shown = logs(*args)
    assert isinstance(error, UsageError)
    assert said in str(error)
    assert shown == []


def test_the_cause_of_a_failed_model_is_told_with_its_replica_and_host(logs: Here) -> None:
    spec = read_spec(logs.folder / "cluster.toml")
    seen = HostState("head", "127.0.0.1", (Found("head", "", "running"),))
    message = f"Traceback\nRuntimeError: {MARK}vllm: ValueError: too little memory"
    failed = App("org-big", "DEPLOY_FAILED", message)
    with Fleet("c", 1) as fleet:
        fleet.open(spec.hosts[0])

        def told(*apps: App, asked: str = "") -> tuple[str, ...]:
            return causes(spec, ClusterState({"head": seen}, apps=apps), fleet, {asked})

        assert told(failed) == (
            "Org/Big: deploy failed: vllm: ValueError: too little memory"
            " (replica abcd1234, process 7 on head)",
        )
        assert told(App("org-big", "UNHEALTHY"), asked="org-big") == (
            "Org/Big: unhealthy: ValueError: too little memory"
            " (replica abcd1234, process 7 on head)",
        )
        assert told(failed, asked="another") == ()
        assert told(App("org-big", "RUNNING")) == ()


def test_following_all_ends_with_ctrl_c_and_leaves_nothing(logs: Here) -> None:
    with logs.start("-f", "all", "-n", "1") as program:
        assert program.stdout
        heard = {program.stdout.readline().split()[0] for _ in range(3)}
        assert heard == {"head", "head/gateway", REPLICA}
        began = time.monotonic()
        program.send_signal(signal.SIGINT)
        _, rest = program.communicate(timeout=30)
    assert program.returncode == 130
    assert "Traceback" not in rest
    assert time.monotonic() - began < 10

    def left() -> list[str]:
        listed = subprocess.run(("ps", "-eo", "args"), capture_output=True, text=True, check=True)
        return [x for x in listed.stdout.splitlines() if str(logs.folder) in x and "tail -c" in x]

    end = time.monotonic() + 30
    while found := left():
        assert time.monotonic() < end, found
