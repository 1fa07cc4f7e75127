"""`up` interrupted by Ctrl-C or killed at ten moments: the next run goes on, `down` cleans up."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.lab.conftest import make_cli
from tests.lab.host import Host
from tests.lab.hosts import Lab, wait_for
from tests.lab.program import Cli
from tests.lab.specs import cluster_toml
from tests.lab.test_refusals import traces

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

PROMPTLY = 10.0  # seconds from Ctrl-C to the end of the program
INT, KILL = signal.SIGINT, signal.SIGKILL


@dataclass
class Cut:
    """The cluster that the tests of this module share, one after the other."""

    cli: Cli
    spec: Path
    hosts: tuple[Host, ...]
    before: dict[str, tuple[object, ...]]

    def up_until(
        self, said: str, number: signal.Signals, then: Callable[[], None] = lambda: None
    ) -> None:
        """Run `up`, call `then` as soon as it says this, and send the signal."""
        with self.cli.start("up", self.spec) as program:
            assert program.stderr
            heard = ""
            for line in program.stderr:
                heard += line
                if re.search(said, line):
                    break
            else:
                pytest.fail(f"ended before it said {said!r}:\n{heard}")
            then()
            began = time.monotonic()
            program.send_signal(number)
            _, rest = program.communicate(timeout=60)
            took = time.monotonic() - began
        assert "Traceback" not in rest, rest
        assert program.returncode == (130 if number == INT else -KILL), heard + rest
        assert took < PROMPTLY, f"took {took:.1f} s to end"
        if number == INT:
            assert "interrupted; the next `raycluster up` or `down` goes on from here" in rest

    def down(self) -> None:
        """Take the cluster down and assert that the hosts are as they were at first."""
        done = self.cli("down", self.spec, "--yes")
        assert done.returncode == 0, done.stderr
        assert {host.name: traces(host) for host in self.hosts} == self.before


@pytest.fixture(scope="module")
def cut(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cut]:
    """Three hosts with Docker and one without; the cluster is taken down in any case."""
    folder = tmp_path_factory.mktemp("cut")
    hosts = (*lab.docker_hosts, *lab.native_hosts)
    spec = folder / "cluster.toml"
    spec.write_text(cluster_toml(lab, hosts, name="cut"))
    cli = make_cli(lab, folder / "home")
    yield Cut(cli, spec, hosts, {host.name: traces(host) for host in hosts})
    cli("down", spec, "--yes")


@pytest.mark.parametrize(
    ("said", "number"),
    [
        (r"head: \+ start head", INT),
        (r": ready: Ray", KILL),
        (r": starting the worker", KILL),
    ],
    ids=str,
)
def test_down_cleans_up_right_after(cut: Cut, said: str, number: signal.Signals) -> None:
    cut.up_until(said, number)
    cut.down()


def test_up_removes_what_a_killed_look_into_an_image_left(cut: Cut) -> None:
    head = cut.hosts[0]
    look = partial(wait_for, head.containers, "a container that looks into the image")
    cut.up_until(r"head: \+ start head", KILL, look)
    assert head.containers() != []
    cut.up_until(r"head: ready: Ray", INT)
    assert head.containers() == []


def test_one_run_at_a_time_changes_a_cluster(cut: Cut) -> None:
    def others_are_refused() -> None:
        for command in (("up", cut.spec), ("down", cut.spec, "--yes")):
            done = cut.cli(*command)
            assert done.returncode == 5, done.stderr
            assert "error: cut: is being changed by `raycluster up` of " in done.stderr
            assert "\n  next: wait" in done.stderr

    cut.up_until(r"head: starting the head", INT, others_are_refused)
    cut.down()


@pytest.mark.parametrize(
    ("said", "number"),
    [
        (r": starting the worker", INT),
        (r": has joined", KILL),
        (r": has joined|app: deploying: ", INT),
        (r"app: deploying: |replicas: 1 starting", KILL),
        (r"replicas: 1 starting", INT),
        (r"replicas: 1 starting", KILL),
    ],
    ids=str,
)
def test_up_goes_on_from_where_it_was_cut(cut: Cut, said: str, number: signal.Signals) -> None:
    cut.up_until(said, number)


def test_the_next_up_ends_with_a_real_completion(cut: Cut) -> None:
    done = cut.cli("up", cut.spec, "--json")
    assert done.returncode == 0, done.stderr
    [proof] = json.loads(done.stdout)["completions"]
    assert proof["engine"] == "vllm"
    assert [host.containers() for host in cut.hosts if host.kind == "docker"] == [
        ["raycluster-cut-head"],
        ["raycluster-cut-worker"],
        ["raycluster-cut-worker"],
    ]


def test_the_up_after_that_changes_nothing(cut: Cut) -> None:
    done = cut.cli("up", cut.spec, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["changes"] == []


@pytest.mark.parametrize(
    "command",
    [
        ("logs", "--follow", "head"),
        ("logs", "--follow", "native-1"),
        ("exec", "head", "--", "sh", "-c", "echo begun; exec sleep 1234"),
        ("exec", "native-1", "--", "sh", "-c", "echo begun; exec sleep 1234"),
        ("status", "--watch"),
        ("logs", "--follow", "app"),
    ],
    ids=" ".join,
)
def test_ctrl_c_ends_what_goes_on_for_ever(cut: Cut, command: tuple[str, ...]) -> None:
    with cut.cli.start(*command, cwd=cut.spec.parent) as program:
        assert program.stdout
        assert program.stdout.read(1)
        began = time.monotonic()
        program.send_signal(INT)
        _, rest = program.communicate(timeout=60)
    assert (program.returncode, rest) == (130, "")
    assert time.monotonic() - began < PROMPTLY
    for host in (cut.hosts[0], cut.hosts[-1]):
        wait_for(partial(_all_ended, host), f"the end of what it ran on {host.name}", 10)


def _all_ended(host: Host) -> bool:
    return not any(line.startswith(("tail ", "sleep 1234")) for line in host.processes())


def test_down_leaves_nothing(cut: Cut) -> None:
    cut.down()
