"""`bench --from head`: the load is made beside the cluster, and no tunnel is in its figures."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator, Sequence

from raycluster.bench.load import Conditions, Keep
from raycluster.bench.remote import RemoteListener, RemoteRun, code, looked_file
from raycluster.bench.schedule import Load
from raycluster.bench.summary import BenchSummary
from raycluster.core.errors import CommandError, HostError
from raycluster.core.interfaces import FIND_PYTHON, Channel, Shell, Tell
from raycluster.core.iteration import ended
from raycluster.core.untrusted import lines
from raycluster.hosts.remote_files import push_files
from raycluster.openai_client.prompts import Prompt
from raycluster.openai_client.target import Target

QUIET_S = 7200.0
"""Seconds without a word after which the program is given up: a level may be that long."""
_RUN = (
    'cd "$RAYCLUSTER_ROOT/$0" && export PYTHONPATH="$PWD/code.zip" && '
    f'{FIND_PYTHON}; exec "$python" -m raycluster.bench.remote job'
)
_TOUCH = ': >"$RAYCLUSTER_ROOT/$0"'
_REMOVE = 'rm -rf "$RAYCLUSTER_ROOT/$0"'


class FromHead:
    """Runs `run_bench` inside of the head's node."""

    def __init__(self, name: str, shell: Shell) -> None:
        self._name = name
        self._shell = shell

    def __call__(
        self,
        prompts: Sequence[Prompt],
        target: Target,
        load: Load,
        *,
        tell: Tell,
        keep: Keep,
        conditions: Conditions | None = None,
    ) -> BenchSummary:
        """Run every level there; see `run_bench`. Raises HostError when the head does not."""
        job = RemoteRun(prompts, target, load, conditions or Conditions())
        folder = f"bench-{secrets.token_hex(4)}"

        def looked(number: int) -> None:
            self._shell.run(("sh", "-c", _TOUCH, f"{folder}/{looked_file(number)}"))

        listener = RemoteListener(job, tell, keep, looked)
        started, interrupted = time.time(), False
        files = {f"{folder}/code.zip": code(), f"{folder}/job": job.packed()}
        try:
            push_files(self._shell, files)
            self._listen(folder, listener)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            self._shell.run(("sh", "-c", _REMOVE, folder))
        return listener.summary(started, interrupted=interrupted)

    def _listen(self, folder: str, listener: RemoteListener) -> None:
        said = b""

        def written(output: Iterable[tuple[Channel, bytes]]) -> Iterator[bytes]:
            nonlocal said
            for channel, chunk in output:
                if channel == "stdout":
                    yield chunk
                else:
                    said = (said + chunk)[-2000:]

        try:
            with ended(self._shell.stream(("sh", "-c", _RUN, folder), quiet=QUIET_S)) as output:
                for line in lines(written(output), "the load generator", self._name):
                    listener.take(line)
        except CommandError as error:
            last = said.decode(errors="replace").strip().splitlines()[-1:] or [error.what]
            hint = "the head's environment needs httpx and httptools; or omit --from"
            raise HostError(f"bench failed: {last[0]}", where=self._name, hint=hint) from error
