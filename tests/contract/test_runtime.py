"""What every runtime promises. A new one adds its fixture `NAME_kind` and its name to KINDS."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from raycluster.core.errors import CommandError, HostError
from raycluster.core.interfaces import ROOT, Found, Process, Runtime, Versions
from tests.contract.conftest import Kind
from tests.contract.odd_hosts import EXPORTS

KINDS = ("native", "bare_native", "bare_docker")
everywhere = pytest.mark.parametrize("kind", [*KINDS, "noisy_native"], indirect=True)
"""For what the start-up files of a login shell could spoil: its output, input and environment."""


VERSIONS = Versions(python="3.11.2", ray="2.60.0")
LOOP = "trap 'exit 0' TERM; i=0; while :; do echo tick $i; i=$((i+1)); sleep 0.1; done"
NUMBERS = itertools.count()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    made: Kind = request.getfixturevalue(f"{request.param}_kind")
    return made


@pytest.fixture
def runtime(kind: Kind) -> Iterator[Runtime]:
    """Yield a runtime for a cluster that nobody had; remove what the test leaves."""
    made = kind.make_runtime(f"test-{next(NUMBERS)}")
    yield made
    made.remove()


def loop(kind: Kind, role: str = "head", script: str = LOOP, **env: str) -> Process:
    return Process(role, ("sh", "-c", script), env, volumes=kind.volumes, image=kind.image)


def begin(runtime: Runtime, process: Process, **files: bytes) -> None:
    named = {name.replace("__", "/"): content for name, content in files.items()}
    runtime.start(process, VERSIONS, named, lambda _: None)


def only(found: tuple[Found, ...]) -> Found:
    assert len(found) == 1, found
    return found[0]


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.05)


def test_nothing_is_there_before_the_first_start(runtime: Runtime) -> None:
    assert runtime.observe() == ()
    assert runtime.remove() == ()
    assert runtime.remove("head") == ()


@everywhere
def test_a_started_process_is_observed_with_what_it_was_started_from(
    kind: Kind, runtime: Runtime
) -> None:
    process = loop(kind)
    begin(runtime, process)
    found = only(runtime.observe())
    assert (found.role, found.fingerprint, found.health) == ("head", process.fingerprint, "running")
    assert found.versions == VERSIONS
    assert found.started


@pytest.mark.parametrize("kind", ["bare_docker", "bare_native"], indirect=True)
def test_other_clusters_are_known_by_the_ports_of_what_runs(kind: Kind, runtime: Runtime) -> None:
    begin(runtime, replace(loop(kind), ports={"api": 4711}))
    found = kind.make_runtime(f"test-{next(NUMBERS)}").neighbours()
    assert found[4711].startswith("the cluster test-")
    assert 4711 not in runtime.neighbours()
    runtime.remove()
    assert 4711 not in kind.make_runtime(f"test-{next(NUMBERS)}").neighbours()


def test_a_file_is_read_whether_its_process_runs_or_not(kind: Kind, runtime: Runtime) -> None:
    assert runtime.read("token") == b""
    begin(runtime, loop(kind), token=b"t", large=bytes(4 << 20))
    assert runtime.read("token") == b"t"
    assert runtime.read("other") == b""
    with pytest.raises(HostError, match="large cannot be read"):
        runtime.read("large")
    for made in ("ln -s token link", "mkdir folder"):
        assert runtime.inside("head").run(("sh", "-c", f'cd "$RAYCLUSTER_ROOT" && {made}'))
    assert runtime.read("link") in (b"", b"t")
    with suppress(HostError):
        assert runtime.read("folder") == b""
    begin(runtime, loop(kind, script="sleep 0.5; exit 1"), token=b"u")
    wait_for(lambda: only(runtime.observe()).health != "running")
    assert runtime.read("token") == b"u"


def test_the_outlook_finds_what_a_process_runs_from_and_where_its_files_lie(
    kind: Kind, runtime: Runtime
) -> None:
    process = loop(kind)
    before = runtime.outlook(process, [f"{ROOT}/x"])
    assert before.there
    assert runtime.observe() == ()
    begin(runtime, process, x=b"content")
    after = runtime.outlook(process, [f"{ROOT}/x"])
    assert before == after
    assert Path(after.places[f"{ROOT}/x"]).read_bytes() == b"content"


def test_starting_a_role_again_replaces_it(kind: Kind, runtime: Runtime) -> None:
    begin(runtime, loop(kind, WHICH="old"))
    changed = loop(kind, WHICH="new")
    begin(runtime, changed)
    assert only(runtime.observe()).fingerprint == changed.fingerprint
    assert runtime.inside("head").run(("sh", "-c", "echo $WHICH")).text == "new"


def test_root_stands_for_the_cluster_folder_in_argv_and_env(kind: Kind, runtime: Runtime) -> None:
    script = f'echo "$1" >"$1/seen"; echo "$AT" >>"$1/seen"; {LOOP}'
    process = loop(kind, AT="{root}/x")
    begin(runtime, replace(process, argv=("sh", "-c", script, "sh", "{root}")))
    see = ("sh", "-c", 'cat "${AT%/x}/seen"')
    wait_for(lambda: "/x" in runtime.inside("head").run(see).text)
    first, second = runtime.inside("head").run(see).text.splitlines()
    assert first.startswith("/")
    assert second == f"{first}/x"


@everywhere
def test_processes_find_none_of_what_a_login_exports(kind: Kind, runtime: Runtime) -> None:
    script = 'env -0 >"$RAYCLUSTER_ROOT/found"; ' + LOOP
    begin(runtime, loop(kind, script=script, RAYCLUSTER_ROOT=ROOT))
    see = ("sh", "-c", 'cat "$RAYCLUSTER_ROOT/found"')
    wait_for(lambda: "RAYCLUSTER_ROOT" in runtime.inside("head").run(see).text)
    found = dict(
        each.split("=", 1) for each in runtime.inside("head").run(see).text.split("\0")[:-1]
    )
    assert {name for name in EXPORTS if found.get(name) == EXPORTS[name]} == set()


LISTENS = """import os, socket, time
with socket.create_server(("127.0.0.1", 0)) as server:
    print("listens", os.fstat(server.fileno()).st_ino, flush=True)
    time.sleep(1000)
"""


def test_the_sockets_are_those_of_our_processes(kind: Kind, runtime: Runtime) -> None:
    assert runtime.sockets() == frozenset()
    begin(runtime, loop(kind, script='python3 -c "$LISTENS" & wait', LISTENS=LISTENS))

    def said() -> list[int]:
        log = b"".join(runtime.logs("head", follow=False, tail=None, since=None)).decode()
        return [int(line.split()[1]) for line in log.splitlines() if line.startswith("listens")]

    wait_for(said)
    with socket.create_server(("127.0.0.1", 0)) as other:
        found = runtime.sockets()
        assert os.fstat(other.fileno()).st_ino not in found
    assert found.issuperset(said())


@everywhere
def test_files_are_there_before_the_process_and_its_own_alone(kind: Kind, runtime: Runtime) -> None:
    process = loop(kind, script=f'cat "$AT/deep/token"; {LOOP}', AT="{root}")
    begin(runtime, process, deep__token=b"content\n", plain=b"\x00\xff")
    shell = runtime.inside("head")
    seen = shell.run(("sh", "-c", "cd \"$AT\"; stat -c '%a %u' deep/token plain; id -u"))
    first, second, uid = seen.text.splitlines()
    assert first == second == f"600 {uid}"
    assert shell.run(("sh", "-c", 'cat "$AT/plain"')).stdout == b"\x00\xff"
    log = runtime.logs("head", follow=False, tail=None, since=None)
    assert b"".join(log).startswith(b"content\n")


def test_files_stay_when_a_role_is_replaced(kind: Kind, runtime: Runtime) -> None:
    begin(runtime, loop(kind, AT="{root}"), kept=b"1")
    begin(runtime, loop(kind, AT="{root}", MORE="1"), other=b"2")
    assert runtime.inside("head").run(("sh", "-c", 'cat "$AT/kept" "$AT/other"')).text == "12"


def test_a_process_that_ends_is_started_again(kind: Kind, runtime: Runtime) -> None:
    begin(
        runtime, loop(kind, script=f'echo begun; sleep 0.5; test -e "$AT/stop" || exit 3; {LOOP}')
    )

    def begun() -> int:
        log = runtime.logs("head", follow=False, tail=None, since=None)
        return b"".join(log).count(b"begun")

    wait_for(lambda: begun() >= 2)


def test_what_keeps_ending_is_told_with_its_last_words(kind: Kind, runtime: Runtime) -> None:
    with_patience = loop(kind, script="sleep 0.3; echo no such GPU; exit 3")
    begin(runtime, with_patience)
    wait_for(lambda: only(runtime.observe()).health == "restarting")
    wait_for(lambda: "no such GPU" in only(runtime.observe()).detail)


@everywhere
@pytest.mark.parametrize(
    ("script", "given", "expected"),
    [
        pytest.param("cat", b"a\x00\xff\n", (0, b"a\x00\xff\n", b""), id="stdin"),
        pytest.param("cat", b"", (0, b"", b""), id="empty stdin"),
        pytest.param("echo out; echo err >&2; exit 3", b"", (3, b"out\n", b"err\n"), id="both"),
        pytest.param("printf '\\n\\nx'", b"", (0, b"\n\nx", b""), id="empty lines first"),
        pytest.param("kill -9 $$", b"", (137, b"", b""), id="signal"),
        pytest.param("true", b"x" * 3_000_000, (0, b"", b""), id="stdin not read"),
    ],
)
def test_a_command_inside(
    kind: Kind, runtime: Runtime, script: str, given: bytes, expected: tuple[int, bytes, bytes]
) -> None:
    begin(runtime, loop(kind))
    done = runtime.inside("head").run(("sh", "-c", script), input=given)
    assert (done.exit_code, done.stdout, done.stderr) == expected


@everywhere
def test_commands_inside_take_their_arguments_as_they_are(kind: Kind, runtime: Runtime) -> None:
    begin(runtime, loop(kind, OWN="from the process"))
    shell = runtime.inside("head")
    odd = ("a b", "$(id)", "'\"", "\n", "", "*", "é")
    assert shell.run(("printf", "%s|", *odd)).stdout.decode() == "".join(f"{o}|" for o in odd)
    both = shell.run(("sh", "-c", 'echo "$OWN" "$ADDED"'), env={"ADDED": "a b"})
    assert both.text == "from the process a b"
    assert shell.run(("no-such-program",)).exit_code == 127


def test_much_goes_in_and_out_of_a_command(kind: Kind, runtime: Runtime) -> None:
    begin(runtime, loop(kind))
    much = bytes(range(256)) * 40_000
    assert runtime.inside("head").run(("cat",), input=much).stdout == much


def test_a_command_that_takes_too_long_is_ended(kind: Kind, runtime: Runtime) -> None:
    begin(runtime, loop(kind))
    shell = runtime.inside("head")
    with pytest.raises(HostError, match="did not finish within 2 s"):
        shell.run(("sh", "-c", "sleep 4321 & sleep 4321"), timeout=2)
    wait_for(lambda: not running(shell.run, "4321"))


@everywhere
def test_a_stream_inside_gives_both_channels_and_the_status(kind: Kind, runtime: Runtime) -> None:
    begin(runtime, loop(kind))
    shell, seen = runtime.inside("head"), {"stdout": b"", "stderr": b""}
    with pytest.raises(CommandError) as caught:
        for channel, data in shell.stream(("sh", "-c", "echo out; echo err >&2; exit 7")):
            seen[channel] += data
    assert caught.value.status == 7
    assert seen == {"stdout": b"out\n", "stderr": b"err\n"}


def test_closing_a_stream_ends_its_command(kind: Kind, runtime: Runtime) -> None:
    begin(runtime, loop(kind))
    shell = runtime.inside("head")
    stream = shell.stream(("sh", "-c", "echo begun; sleep 8765"))
    assert next(iter(stream)) == ("stdout", b"begun\n")
    stream.close()  # type: ignore[attr-defined]
    wait_for(lambda: not running(shell.run, "8765"))


def running(run: Callable[..., object], mark: str) -> bool:
    """Return whether a `sleep` for `mark` seconds runs inside, asked without a process list."""
    look = f"grep -lz '^{mark}$' /proc/[0-9]*/cmdline 2>/dev/null | grep -v self; true"
    return bool(run(("sh", "-c", look)).text)  # type: ignore[attr-defined]


def test_a_file_is_put_whole_with_its_mode(kind: Kind, runtime: Runtime) -> None:
    begin(runtime, loop(kind, AT="{root}"))
    shell = runtime.inside("head")
    folder = shell.run(("sh", "-c", 'echo "$AT"')).text
    path = f"{folder}/new folder/file"
    content = b"\x00'\"\n" * 500_000
    shell.put(path, b"old")
    shell.put(path, content, mode=0o640)
    assert shell.run(("cat", path)).stdout == content
    modes = shell.run(("stat", "-c", "%a", path, f"{folder}/new folder")).text
    assert modes.split() == ["640", "700"]
    assert shell.run(("ls", f"{folder}/new folder")).text == "file"


def test_a_file_that_cannot_be_put_is_an_error(kind: Kind, runtime: Runtime) -> None:
    begin(runtime, loop(kind))
    with pytest.raises(HostError, match="/proc/none/x"):
        runtime.inside("head").put("/proc/none/x", b"1")


def test_logs_by_tail_and_following(kind: Kind, runtime: Runtime) -> None:
    begin(runtime, loop(kind))
    wait_for(lambda: b"tick 3" in b"".join(runtime.logs("head", follow=False, tail=9, since=None)))
    last = b"".join(runtime.logs("head", follow=False, tail=2, since=None))
    assert last.count(b"\n") == 2
    assert b"tick 0\n" not in last
    following = runtime.logs("head", follow=True, tail=1, since=None)
    seen = b""
    while seen.count(b"\n") < 4:
        seen += next(following)
    numbers = [int(line.split()[1]) for line in seen.splitlines()]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    following.close()  # type: ignore[attr-defined]


def test_logs_since_leave_older_lines_out(kind: Kind, runtime: Runtime) -> None:
    begin(runtime, loop(kind))
    wait_for(
        lambda: b"tick 25" in b"".join(runtime.logs("head", follow=False, tail=None, since=None))
    )

    def recent() -> bool:
        lines = b"".join(runtime.logs("head", follow=False, tail=None, since=1.0))
        assert b"tick 0\n" not in lines
        return lines.startswith(b"tick ")

    wait_for(recent)  # it may have stood still for a second


@everywhere
def test_one_role_is_removed_and_then_the_rest(kind: Kind, runtime: Runtime) -> None:
    begin(runtime, loop(kind, "head"))
    begin(runtime, loop(kind, "worker"))
    removed = runtime.remove("worker")
    assert len(removed) == 1
    assert "worker" in removed[0]
    assert only(runtime.observe()).role == "head"
    assert any("head" in line for line in runtime.remove())
    assert runtime.observe() == ()
    assert runtime.remove() == ()


def test_a_new_start_after_removal_begins_with_an_empty_folder(
    kind: Kind, runtime: Runtime
) -> None:
    begin(runtime, loop(kind, AT="{root}"), old=b"1")
    runtime.remove()
    begin(runtime, loop(kind, AT="{root}"))
    assert runtime.inside("head").run(("sh", "-c", 'test ! -e "$AT/old"')).exit_code == 0


def test_two_clusters_on_a_host_do_not_see_each_other(kind: Kind, runtime: Runtime) -> None:
    other = kind.make_runtime(f"test-{next(NUMBERS)}")
    try:
        begin(runtime, loop(kind))
        begin(other, replace(loop(kind), role="worker"))
        assert only(runtime.observe()).role == "head"
        runtime.remove()
        assert only(other.observe()).role == "worker"
    finally:
        other.remove()


def test_inside_and_logs_of_what_is_not_there_name_the_host(kind: Kind, runtime: Runtime) -> None:
    with pytest.raises(HostError) as caught:
        runtime.inside("head").run(("true",))
    assert caught.value.where in {"here", "there"}
    with pytest.raises(HostError):
        list(runtime.logs("head", follow=False, tail=None, since=None))
