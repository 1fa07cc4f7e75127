"""`vllm bench serve` in one process for many runs: its start takes longer than a short run."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cold_up import PATCH

_PROGRAM = f"""{PATCH}
import contextlib, gc, json, sys
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
for line in sys.stdin:
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    with contextlib.redirect_stdout(sys.stderr):
        main(parser.parse_args(json.loads(line)))
    gc.collect()
    print("done", flush=True)
"""


@dataclass(frozen=True)
class VllmClient:
    """The process, which takes a line of JSON with the options of each run."""

    process: subprocess.Popen[str]
    folder: Path

    @property
    def result(self) -> Path:
        """Where a run with `--save-result` is to write its figures."""
        return self.folder / "result.json"

    def run(self, words: Sequence[str]) -> None:
        """Run `vllm bench serve` with these options; end this program when it fails."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(list(words)) + "\n")
        self.process.stdin.flush()
        if self.process.stdout.readline() != "done\n":
            raise SystemExit(f"vllm bench serve {words}:\n{_log(self.folder).read_text()[-4000:]}")


@contextmanager
def vllm_client(
    python: str, folder: Path, env: Mapping[str, str] | None = None
) -> Iterator[VllmClient]:
    """Start it with a node's Python; its output goes to a file in `folder`."""
    with (
        _log(folder).open("w") as output,
        subprocess.Popen(
            [python, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            env={**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", **(env or {})},
        ) as process,
    ):
        yield VllmClient(process, folder)
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)


def _log(folder: Path) -> Path:
    return folder / "vllm-client.log"
