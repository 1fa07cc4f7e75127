"""The program itself, killed and interrupted, and begun again with the same arguments."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.unit.batch.conftest import Batch, Serve

CONCURRENCY = 8
PROGRAM = "import sys; from raycluster.cli import main; sys.argv[0] = 'raycluster'; main()"


def program(batch: Batch, url: str, *more: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", PROGRAM, "batch", str(batch.input), "-o", str(batch.output)]
    argv += ["--url", url, "--concurrency", str(CONCURRENCY), *more]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def whole_lines(path: Path) -> list[bytes]:
    content = path.read_bytes() if path.exists() else b""
    return content.splitlines(keepends=True) if content.endswith(b"\n") else (
        content.splitlines(keepends=True)[:-1]
    )  # fmt: skip


def wait_for_lines(path: Path, count: int, process: subprocess.Popen[str]) -> None:
    while len(whole_lines(path)) < count and process.poll() is None:
        time.sleep(0.002)


def test_killed_five_times_nothing_is_lost_and_nothing_done_is_sent_again(
    batch: Batch, serve: Serve
) -> None:
    count, chance = 2000, random.Random(5)
    batch.ask(*(f"question {n}" for n in range(count)))
    server = serve(faults=5, delay=0.001)
    kept: list[tuple[float, set[str]]] = []
    for part in range(1, 6):
        process = program(batch, server.url)
        wait_for_lines(batch.output, part * count // 6 - chance.randrange(100), process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        done = whole_lines(batch.output)
        said = {str(json.loads(line)["response"]["body"]["said"]) for line in done}
        assert 0 < len(said) < count
        kept.append((time.monotonic(), said))
        with batch.output.open("ab") as file:  # as a write would end that was not completed
            file.write(b'{"id": "batch-' + b"x" * chance.randrange(40))
    out, err = program(batch, server.url, "--json").communicate(timeout=60)
    summary = json.loads(out)
    assert (summary["ok"], summary["failed"], summary["left"]) == (count, 0, 0), err
    results = Counter(str(r["response"]["body"]["said"]) for r in batch.results())
    assert results == {f"question {n}": 1 for n in range(count)}
    calls = server.finish()
    for killed_at, said in kept:
        assert not [c for c in calls if c["received"] > killed_at and c["text"] in said]
    good = sum(call["status"] == 200 for call in calls)
    assert good <= count + 5 * CONCURRENCY


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_it_goes_on(
    batch: Batch, serve: Serve, number: signal.Signals
) -> None:
    batch.ask(*(f"question {n}" for n in range(500)))
    server = serve(delay=0.05)
    process = program(batch, server.url)
    wait_for_lines(batch.output, 5, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "run the same command to continue" in err and "Traceback" not in err
    done = len(batch.results())
    assert f"{done} of 500 lines answered" in out


def test_off_a_terminal_progress_is_a_plain_line_now_and_then(batch: Batch, serve: Serve) -> None:
    batch.ask("one", "two")
    process = program(batch, serve().url)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")
    assert out.startswith("2 of 2 lines answered, 0 failed, 0 left")


def test_lines_that_failed_make_exit_code_1_and_bad_usage_2(batch: Batch, serve: Serve) -> None:
    batch.ask("once:400", "fine")
    url = serve().url
    for more, code, said in [
        ((), 1, "--retry-errors"),
        (("--concurrency", "0"), 2, "--concurrency: 0 is not greater than zero"),
        (("--retry-errors",), 0, "1 failed lines will be sent again"),
    ]:
        process = program(batch, url, *more)
        _, err = process.communicate(timeout=20)
        assert process.returncode == code
        assert said in err


def test_the_output_is_a_file_and_a_mixture_is_refused_before_anything(
    batch: Batch, tmp_path: Path
) -> None:
    batch.ask("one")
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text('{"prompt": "a"}\nplain\n')
    for args, said in [
        ((batch.input, "-o", "-"), "--output: a batch goes on from its output"),
        ((mixed, "-o", "out"), f"{mixed}: line 2 is plain text"),
        ((mixed, "-o", "out", "--column", "absent"), "line 2 is plain text"),
    ]:
        argv = [
            sys.executable,
            "-c",
            PROGRAM,
            "batch",
            *map(str, args),
            "--url",
            "http://127.0.0.1:9",
        ]
        done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 2 and said in done.stderr and "next: " in done.stderr
        assert done.stdout == "" and "Traceback" not in done.stderr
    assert not [name for name in ("-", "out") if (tmp_path / name).exists()]


MEMORY = """
import asyncio, json, resource, sys
from pathlib import Path
from raycluster.batch.input_summary import check_lines, summarize
from raycluster.batch.job import RequestShape, to_job
from raycluster.batch.ledger import Ledger
from raycluster.batch.online import BatchRun
from raycluster.openai_client.files import PromptFile
from raycluster.serve.asking.retrying_client import Tries
from raycluster.serve.asking.result import Reply, Fingerprint

class Null:
    async def post(self, path, content):
        await asyncio.sleep(0)
        return Reply(200, b'{"object": "answer", "said": "something of some length"}')
    def close(self):
        pass

def rss():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()

def jobs(path, ledger, marks):
    for number, item in PromptFile.at(path).items():
        if number in marks:
            marks[number] = rss()
        if not ledger.has(number):
            yield to_job(number, item, RequestShape())

path, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
marks = {first: 0, last: 0}
lines = summarize(PromptFile.at(path))
stamp = Fingerprint(lines.digest, RequestShape().digest)
checked = rss(), check_lines(PromptFile.at(path), print), rss()
with Ledger(Path(sys.argv[4]), stamp, lines.last) as ledger:
    work = BatchRun(
        jobs(path, ledger, marks), ledger, Null, where="nowhere", slots=64, tries=Tries(),
        check=lambda: None, show=lambda work: None,
    )
    asyncio.run(work.run())
    done = ledger.ok
before = rss()
with Ledger(Path(sys.argv[4]), stamp, lines.last) as ledger:
    ledger.put_in_order()
    again = ledger.ok
print(json.dumps({
    "work": marks[last] - marks[first], "check": checked[2] - checked[0],
    "again": rss() - before, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "done": [done, again],
}))
"""


def test_memory_does_not_grow_with_the_lines(batch: Batch) -> None:
    first, last = 20_000, 200_000
    with batch.input.open("w") as file:
        for number in range(last):
            file.write(f'{{"custom_id": "c{number}", "prompt": "question {number}"}}\n')
    argv = [sys.executable, "-c", MEMORY, str(batch.input), str(first), str(last)]
    ended = subprocess.run([*argv, str(batch.output)], capture_output=True, text=True, check=True)
    grown = json.loads(ended.stdout.splitlines()[-1])
    assert grown["done"] == [last, last]
    assert grown["work"] < 8 << 20
    assert grown["again"] < (8 << 20) + 10 * last
    assert grown["check"] < (8 << 20) + 16 * last
