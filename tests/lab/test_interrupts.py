"""`up` and `down` interrupted by Ctrl-C or killed at many moments, and what the next run does."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.lab.conftest import make_cli
from tests.lab.host import Host
from tests.lab.hosts import Lab, wait_for
from tests.lab.image import IMAGE
from tests.lab.program import Cli
from tests.lab.scan import open_ports
from tests.lab.specs import MODEL, cluster_toml

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

PROMPTLY = 10.0  # seconds from Ctrl-C to the end of the program
INT, KILL = signal.SIGINT, signal.SIGKILL


@dataclass(frozen=True)
class Cut:
    """The cluster that the tests of this module share, one after the other."""

    cli: Cli
    folder: Path
    hosts: tuple[Host, ...]
    before: dict[str, tuple[object, ...]]

    @property
    def spec(self) -> Path:
        """Return the spec of the cluster."""
        return self.folder / "cluster.toml"

    def up_until(
        self, said: str, number: signal.Signals, then: Callable[[], object] = lambda: None
    ) -> None:
        """Run `up`, call `then` as soon as it says this, and send the signal."""
        with self.cli.start("up", self.spec) as program:
            heard = _hear(program, said)
            then()
            _cut(program, number, heard)

    def up(self) -> dict[str, Any]:
        """Run `up` to its end and return its JSON."""
        done = self.cli("up", self.spec, "--json", timeout=400)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def converge(self) -> None:
        """Run `up` to its end; assert that all serves then, and that another changes nothing."""
        [proof] = self.up()["completions"]
        assert proof["engine"] == "vllm"
        assert "Paris" in proof["text"]
        workers = [host.containers() for host in self.hosts[1:] if host.kind == "docker"]
        assert self.hosts[0].containers() == ["raycluster-cut-head"]
        assert workers == [["raycluster-cut-worker"]] * len(workers)
        assert self.up()["changes"] == []

    def clean(self) -> None:
        """Assert that the hosts are as they were at first, once rules on trial are no more."""

        def on_trial() -> list[str]:
            every = [line for host in self.hosts for line in host.processes()]
            return [line for line in every if ".nft." in line or line == "sleep 1"]

        wait_for(lambda: not on_trial(), "what watches rules on trial to end", 40)
        assert {host.name: host.traces() for host in self.hosts} == self.before

    def down(self) -> None:
        """Take the cluster down and assert that the hosts are as they were at first."""
        done = self.cli("down", self.spec, "--yes")
        assert done.returncode == 0, done.stderr
        self.clean()


def _hear(program: subprocess.Popen[str], said: str) -> str:
    """Return what the program said so far, as soon as it said this."""
    assert program.stderr
    heard = ""
    for line in program.stderr:
        heard += line
        if re.search(said, line):
            return heard
    pytest.fail(f"ended before it said {said!r}:\n{heard}")


def _cut(program: subprocess.Popen[str], number: signal.Signals, heard: str = "") -> None:
    """Send the signal; assert that the program ends at once, and says what it should."""
    began = time.monotonic()
    program.send_signal(number)
    _, rest = program.communicate(timeout=60)
    took = time.monotonic() - began
    assert "Traceback" not in rest, rest
    assert program.returncode == (130 if number == INT else -KILL), heard + rest
    assert took < PROMPTLY, f"took {took:.1f} s to end"
    if number == INT:
        assert "interrupted; run `raycluster up` or `down` to continue from here" in rest


GATEWAYS = f'[gateway]\non = "all"\nimage = "{IMAGE}"\n'
"""On loopback, as there are no keys."""


def _spec(lab: Lab, hosts: Sequence[Host], replicas: int = 1, more: str = "") -> str:
    own = {host.name: {"user": "root"} for host in hosts}  # for the firewall's rules
    rules = "[firewall]\nmanage = true\n"
    return cluster_toml(lab, hosts, name="cut", own=own, replicas=replicas, extra=rules + more)


@pytest.fixture(scope="module")
def cut(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cut]:
    """Two hosts with Docker and one without; the cluster is taken down in any case."""
    folder = tmp_path_factory.mktemp("cut")
    hosts = (*lab.docker_hosts[:2], *lab.native_hosts)
    cli = make_cli(lab, folder / "home")
    made = Cut(cli, folder, hosts, {host.name: host.traces() for host in hosts})
    made.spec.write_text(_spec(lab, hosts))
    yield made
    cli("down", made.spec, "--yes")


@pytest.mark.parametrize(
    ("said", "number"),
    [
        (r": trying the firewall rules", KILL),
        pytest.param(r"head: \+ start head", INT, marks=pytest.mark.long),
        pytest.param(r": ready: Ray", KILL, marks=pytest.mark.long),
        (r": has joined", INT),
        pytest.param(r"replicas: 1 starting", KILL, marks=pytest.mark.long),
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

    with cut.cli.start("up", cut.spec, background=True) as program:
        _hear(program, r"head: starting the head")
        others_are_refused()
        program.send_signal(signal.SIGSTOP)
        cut.down()  # follows it as soon as its beat has stopped
        program.send_signal(signal.SIGCONT)
        _, rest = program.communicate(timeout=60)
    assert program.returncode == 5, rest
    assert re.search(r"^error: cut: .*; it has stopped and changes nothing more$", rest, re.M), rest
    for host in cut.hosts:  # one command that was on its way to each may still arrive
        assert sorted(host.processes()) == cut.before[host.name][0]
        assert len(host.files()) <= 1, host.files()
    cut.down()


def nothing(cut: Cut) -> None:
    """The hosts are as the test before left them: nothing of the cluster is there."""
    cut.clean()


def lost_worker(cut: Cut) -> None:
    """A worker of the cluster that serves is gone."""
    cut.hosts[1].check("docker", "rm", "-f", "raycluster-cut-worker")


def other_rules(cut: Cut) -> None:
    """The spec asks for other firewall rules than those in force."""
    port = random.randrange(40000, 50000)
    text = re.sub(r"allow_ports = .*\n", "", cut.spec.read_text())
    cut.spec.write_text(text.replace("manage = true\n", f"manage = true\nallow_ports = [{port}]\n"))


def another_model(cut: Cut) -> None:
    """The spec asks for other arguments of the engine than those that serve."""
    text = cut.spec.read_text()
    length = int(re.findall(r"max_model_len = (\d+)", text)[0])
    cut.spec.write_text(text.replace(f"max_model_len = {length}", f"max_model_len = {length - 1}"))


@pytest.mark.parametrize(
    ("begin", "said", "number"),
    [
        pytest.param(nothing, r"head: \+ start head", KILL, marks=pytest.mark.long),
        (other_rules, r": trying the firewall rules", KILL),
        pytest.param(lost_worker, r"docker-2: \+ start worker", INT, marks=pytest.mark.long),
        (lost_worker, r"docker-2: ready: Ray", KILL),
        pytest.param(lost_worker, r": starting the worker", INT, marks=pytest.mark.long),
        pytest.param(another_model, r"replicas: .*1 starting", INT, marks=pytest.mark.long),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_next_up_converges(
    cut: Cut, begin: Callable[[Cut], None], said: str, number: signal.Signals
) -> None:
    begin(cut)
    cut.up_until(said, number)
    cut.converge()


def _on_each(cut: Cut, hosts: Sequence[Host]) -> None:
    """See to it that each host has a replica: where one has two, one of them is killed."""

    def running() -> list[str]:
        [model] = json.loads(cut.cli("status", cut.spec, "--json").stdout)["models"]
        return [r["address"] for r in model["replicas"] if r["state"] == "running"]

    for _ in range(8):
        wait_for(lambda: len(running()) == len(hosts), "as many replicas", 180)
        if len(set(running())) == len(hosts):
            return
        [crowded] = [host for host in hosts if host.address in running()]
        killed = crowded.check("pgrep", "-o", "-f", "ray::ServeReplica").strip()
        crowded.check("kill", "-9", killed)
        wait_for(lambda: len(running()) < len(hosts), "Serve to notice", 60)
    raise AssertionError("Serve leaves a host without a replica")


ASK = f"""
import json, urllib.request
body = json.dumps({{"model": "{MODEL}", "prompt": "one", "max_tokens": 1}}).encode()
kind = {{"Content-Type": "application/json"}}
for port in (8000, 8080):
    asked = urllib.request.Request(f"http://127.0.0.1:{{port}}/v1/completions", body, kind)
    print(urllib.request.urlopen(asked, timeout=20).status)
"""
ANSWERED = "200\n200"


def _asked(host: Host) -> str:
    """Return what a completion gets that is asked for at a host's own HAProxy and gateway."""
    done = host.run(("python3", "-c", ASK))
    return done.stdout.strip() or done.stderr


def _answers(host: Host) -> bool:
    return _asked(host) == ANSWERED


@pytest.mark.parametrize(
    "command",
    [
        ("logs", "--follow", "head"),
        ("logs", "--follow", "native-1"),
        ("exec", "head", "--", "sh", "-c", "echo begun; exec sleep 1234"),
        ("exec", "native-1", "--", "sh", "-c", "echo begun; exec sleep 1234"),
        ("status", "--watch"),
        ("logs", "--follow", "app"),
        ("logs", "--follow", "all"),
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
        wait_for(partial(_all_ended, host), f"the end of what it ran on {host.name}", 30)


def _all_ended(host: Host) -> bool:
    ran = ("tail ", "sleep 1234", "python -u -c")
    return not any(line.startswith(ran) for line in host.processes())


def test_of_all_ports_strangers_find_sshs_alone(cut: Cut, lab: Lab) -> None:
    """With one replica of the real vLLM on three hosts, then with two: Docker and native.

    The host that leaves in between is as it was at first, its rules included.
    """
    text = cut.spec.read_text()
    cut.converge()
    alone = {host.address: {22} for host in cut.hosts}
    assert open_ports(list(alone)) == alone
    head, leaving, native = cut.hosts
    cut.spec.write_text(_spec(lab, (head, native), replicas=2, more=GATEWAYS))
    cut.up()
    assert leaving.traces() == cut.before[leaving.name]
    _on_each(cut, (head, native))
    for host in (head, native):  # whose HAProxy begins when its first replica runs
        wait_for(partial(_answers, host), f"a way in by {host.name}", 60)
    assert [_asked(host) for host in (head, native)] == [ANSWERED, ANSWERED]
    alone = {address: {22} for host in (head, native) for address in (host.address, host.address6)}
    assert open_ports(list(alone)) == alone
    for host in (head, native):
        host.check("nft", "delete", "table", "inet", "raycluster_cut")
    found = open_ports([head.address, native.address])
    assert all(len(ports) > 4 for ports in found.values()), found  # what the rules closed
    head.check("docker", "kill", "raycluster-cut-head")
    assert [_asked(native) for _ in range(8)] == [ANSWERED] * 8  # a host without Docker is a way in
    head.check("docker", "start", "raycluster-cut-head")
    cut.spec.write_text(text)


def test_the_next_down_finishes_what_a_cut_one_began(cut: Cut) -> None:
    """The first is killed when it has only just begun, the second when one host is clean."""
    lock = ("sh", "-c", "ls -d /tmp/raycluster-cut.lock.*")
    with cut.cli.start("down", cut.spec, "--yes") as program:
        wait_for(lambda: cut.hosts[0].run(lock).returncode == 0, "the lock")
        _cut(program, KILL)
    with cut.cli.start("down", cut.spec, "--yes") as program:
        _cut(program, INT, _hear(program, ": removed "))
    cut.down()
    done = cut.cli("down", cut.spec, "--yes")
    assert (done.returncode, done.stdout) == (0, "cut is down: nothing to remove\n")
