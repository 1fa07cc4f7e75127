"""Compares the tunnel's two ways with plain `ssh -L`, through an sshd of its own on 127.0.0.1.

    python benchmarks/tunnel.py [--rounds 4] [--resets 20000]

The ways take turns, forwards and backwards (ABC CBA ...), so that a slow spell of the machine hits
all of them. Prints ratios to plain `ssh -L`, and the CPU seconds of the forwarding processes: per
100 MB, and for all streams together. Raw figures go to benchmarks/results/. Ends with 1 when a
wanted limit is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import multiprocessing
import multiprocessing.queues
import os
import platform
import random
import selectors
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from threading import Event, Thread

from raycluster.core.interfaces import Transport
from raycluster.tunnel.keep import Route, keep
from raycluster.tunnel.ports import Forward

RESULTS = Path(__file__).parent / "results"
BLOCK_BYTES = 1 << 18
BULK_BYTES = 1000 * BLOCK_BYTES
STREAMS, CHUNKS, INTERVAL, CHUNK_BYTES = 64, 200, 0.005, 200
RESET_CLIENTS = 16
Figures = dict[str, float]
Row = dict[str, str | float]


# ---- the far end: one port per job, in a process of its own ----


def far_end(ready: multiprocessing.queues.SimpleQueue[dict[str, int]]) -> None:
    """Serve `down`, `up`, `stream` and `short` until killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    jobs = {"down": serve_down, "up": serve_up, "short": serve_short}
    ports = {name: start_server(job) for name, job in jobs.items()}
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    ready.put({**ports, "stream": listener.getsockname()[1]})
    serve_streams(listener)


def start_server(job: Callable[[socket.socket], None]) -> int:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)

    def handle(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            job(client)

    def accept() -> None:
        while True:
            client, _ = listener.accept()
            Thread(target=handle, args=(client,), daemon=True).start()

    Thread(target=accept, daemon=True).start()
    return int(listener.getsockname()[1])


def serve_down(client: socket.socket) -> None:
    block = os.urandom(BLOCK_BYTES)
    for _ in range(BULK_BYTES // len(block)):
        client.sendall(block)


def serve_up(client: socket.socket) -> None:
    buffer = bytearray(BLOCK_BYTES)
    left = BULK_BYTES
    while left > 0:
        left -= client.recv_into(buffer)
    client.sendall(b"!")


def serve_short(client: socket.socket) -> None:
    while data := client.recv(65536):
        client.sendall(data * 20)


def serve_streams(listener: socket.socket) -> None:
    """Send every client a time-stamped chunk each INTERVAL, from one thread: no noise of ours."""
    while True:
        clients = []
        for _ in range(STREAMS):
            client, _ = listener.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            clients.append(client)
        began = time.perf_counter()
        offsets = [INTERVAL * number / STREAMS for number in range(STREAMS)]
        for chunk in range(CHUNKS):
            for client, offset in zip(clients, offsets, strict=True):
                time.sleep(max(0.0, began + chunk * INTERVAL + offset - time.perf_counter()))
                with contextlib.suppress(OSError):
                    client.sendall(struct.pack("d", time.perf_counter()).ljust(CHUNK_BYTES, b"."))
        for client in clients:
            client.close()


# ---- sshd ----


@dataclass(frozen=True)
class Server:
    """An sshd on 127.0.0.1 with its files."""

    folder: Path
    port: int

    @property
    def command(self) -> tuple[str, ...]:
        """The ssh command line that reaches it."""
        files = {"UserKnownHostsFile": "known_hosts", "IdentityFile": "client"}
        options = [f"-o{name}={self.folder / file}" for name, file in files.items()]
        only = ("-F", "none", "-oIdentitiesOnly=yes")
        return ("ssh", *only, *options, "-p", str(self.port), "127.0.0.1")


@contextlib.contextmanager
def sshd(folder: Path) -> Iterator[Server]:
    """Run an sshd whose files are in `folder`."""
    for key in ("host", "client"):
        subprocess.run(
            ("ssh-keygen", "-qt", "ed25519", "-N", "", "-f", str(folder / key)), check=True
        )
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    public = " ".join((folder / "host.pub").read_text().split()[:2])
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}\n")
    shutil.copy(folder / "client.pub", folder / "authorized_keys")
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host\nStrictModes no\nUsePAM no\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nPermitRootLogin yes\nPidFile none\n"
    )
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin") or "sshd"
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    child = subprocess.Popen((program, "-D", "-f", f"{folder}/sshd_config", "-E", f"{folder}/log"))
    try:
        wait_for_port(port)
        yield Server(folder, port)
    finally:
        child.terminate()
        child.wait()


def wait_for_port(port: int, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on {port}")


# ---- the three ways: each is a process of its own that forwards until it gets SIGTERM ----

FORWARDED = ("down", "up", "stream", "short")


def run_plain(server: Server, forwards: tuple[Forward, ...]) -> None:
    flags = [f"-L127.0.0.1:{forward.port}:{forward.target}" for forward in forwards]
    ssh, *rest = server.command
    os.execvp(ssh, (ssh, "-N", *flags, *rest))


def run_system(server: Server, forwards: tuple[Forward, ...]) -> None:
    run_kept(Route("far end", server.command), forwards)


def run_channels(server: Server, forwards: tuple[Forward, ...]) -> None:
    run_kept(Route("far end", open_transport=functools.partial(open_transport, server)), forwards)


def run_kept(route: Route, forwards: tuple[Forward, ...]) -> None:
    stop = Event()
    signal.signal(signal.SIGTERM, lambda *_: Thread(target=stop.set).start())
    keep(route, forwards, tell_trouble, stop)


def tell_trouble(line: str) -> None:
    if "->" not in line:
        print(" ", line, file=sys.stderr)


def open_transport(server: Server) -> Transport:
    from raycluster.hosts.transports.ssh import SshOptions, open_ssh

    options = SshOptions(
        "127.0.0.1",
        port=server.port,
        identity_file=str(server.folder / "client"),
        known_hosts=str(server.folder / "known_hosts"),
        config_file="none",
    )
    return open_ssh("far end", options)


WAYS = {"ssh -L": run_plain, "system": run_system, "channels": run_channels}


class Turn:
    """One way, forwarding; `ports` maps a job of the far end to its local port."""

    def __init__(self, way: str, server: Server, far: dict[str, int]) -> None:
        self.ports = dict(zip(FORWARDED, free_ports(len(FORWARDED)), strict=True))
        forwards = tuple(
            Forward(name, ("127.0.0.1", far[name]), self.ports[name]) for name in FORWARDED
        )
        spawn = multiprocessing.get_context("spawn")
        self._process = spawn.Process(target=WAYS[way], args=(server, forwards))

    def __enter__(self) -> Turn:
        self._process.start()
        deadline = time.monotonic() + 20
        while not answers(self.ports["short"]):
            if time.monotonic() > deadline:
                self.__exit__()
                raise TimeoutError("the tunnel does not answer")
            time.sleep(0.1)
        return self

    def cpu(self) -> float:
        """Return the CPU seconds that the forwarding processes have used."""
        return tree_cpu(self._process.pid or 0)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()


def tree_cpu(pid: int) -> float:
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    ticks = sum(int(word) for word in words[11:15])  # its own, and of children that ended
    return ticks / os.sysconf("SC_CLK_TCK") + sum(map(tree_cpu, child_pids(pid)))


def child_pids(pid: int) -> set[int]:
    found: set[int] = set()
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):  # threads end meanwhile
            found.update(map(int, (thread / "children").read_text().split()))
    return found


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(probe.getsockname()[1]) for probe in probes]


# ---- the client's jobs ----


def answers(port: int) -> bool:
    """Tell whether a request comes back: a listener alone says nothing about the far end."""
    with contextlib.suppress(OSError), connect(port) as client:
        client.sendall(b"alive")
        return bool(client.recv(5))
    return False


def connect(port: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), 20)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def measure_down(port: int) -> float:
    """Return MB/s."""
    buffer = bytearray(BLOCK_BYTES)
    began, total = time.perf_counter(), 0
    with connect(port) as client:
        while size := client.recv_into(buffer):
            total += size
    return total / 1e6 / (time.perf_counter() - began)


def measure_up(port: int) -> float:
    """Return MB/s."""
    block = os.urandom(BLOCK_BYTES)
    began = time.perf_counter()
    with connect(port) as client:
        for _ in range(BULK_BYTES // len(block)):
            client.sendall(block)
        client.recv(1)
    return BULK_BYTES / 1e6 / (time.perf_counter() - began)


def measure_streams(port: int) -> tuple[float, float]:
    """Return the median and the 95th percentile of a chunk's way, in milliseconds."""
    delays: list[float] = []
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for _ in range(STREAMS):
            client = stack.enter_context(connect(port))
            selector.register(client, selectors.EVENT_READ, bytearray())
        while selector.get_map():
            ready = selector.select(20)
            if not ready:
                raise TimeoutError("the streams stand still")
            for key, _ in ready:
                assert isinstance(key.fileobj, socket.socket)
                read_chunks(key.fileobj, key.data, delays, selector)
    if len(delays) != STREAMS * CHUNKS:
        raise RuntimeError(f"{len(delays)} of {STREAMS * CHUNKS} chunks came")
    return statistics.median(delays), statistics.quantiles(delays, n=20)[-1]


def read_chunks(
    client: socket.socket,
    rest: bytearray,
    delays: list[float],
    selector: selectors.BaseSelector,
) -> None:
    data = client.recv(65536)
    now = time.perf_counter()  # the machine's monotonic clock: the far end reads the same one
    if not data:
        selector.unregister(client)
    rest += data
    while len(rest) >= CHUNK_BYTES:
        (sent,) = struct.unpack_from("d", rest)
        delays.append((now - sent) * 1000)
        del rest[:CHUNK_BYTES]


def measure_resets(port: int, count: int) -> tuple[float, int]:
    """Make short connections, half of which end in a reset; return how many a second, and errors.

    An error is a connection that was refused or broke when it should not: after the last one, a
    proper request must be answered.
    """
    share = count // RESET_CLIENTS
    errors: list[str] = []
    clients = [
        Thread(target=reset_many, args=(port, share, number, errors))
        for number in range(RESET_CLIENTS)
    ]
    began = time.perf_counter()
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    rate = share * RESET_CLIENTS / (time.perf_counter() - began)
    if not answers(port):
        errors.append("dead in the end")
    for error in sorted(set(errors)):
        print(f"  {errors.count(error)} times: {error}", file=sys.stderr)
    return rate, len(errors)


def reset_many(port: int, count: int, seed: int, errors: list[str]) -> None:
    dice = random.Random(seed)
    for _ in range(count):
        try:
            with connect(port) as client:
                if dice.random() < 0.9:
                    client.sendall(b"x" * dice.choice((1, 100, 5000)))
                    if dice.random() < 0.7 and not client.recv(65536):
                        errors.append("no answer")
                if dice.random() < 0.5:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError as error:
            errors.append(str(error))


# ---- the comparison ----


def measure(turn: Turn) -> Figures:
    per_100_mb = 1e8 / BULK_BYTES
    marks = [turn.cpu()]
    median, p95 = measure_streams(turn.ports["stream"])
    marks.append(turn.cpu())
    down = measure_down(turn.ports["down"])
    marks.append(turn.cpu())
    up = measure_up(turn.ports["up"])
    marks.append(turn.cpu())
    streams_cpu, down_cpu, up_cpu = (after - before for before, after in pairwise(marks))
    return {
        "down_mb_s": down,
        "up_mb_s": up,
        "chunk_p50_ms": median,
        "chunk_p95_ms": p95,
        "streams_cpu_s": streams_cpu,
        "down_cpu_s": down_cpu * per_100_mb,
        "up_cpu_s": up_cpu * per_100_mb,
    }


def compare(server: Server, far: dict[str, int], rounds: int, resets: int) -> list[Row]:
    rows: list[Row] = []
    for number in range(rounds):
        order = list(WAYS) if number % 2 == 0 else list(reversed(WAYS))
        for way in order:
            with Turn(way, server, far) as turn:
                rows.append({"way": way, "round": number, **measure(turn)})
            print(render(rows[-1]), flush=True)
    for way in WAYS:
        with Turn(way, server, far) as turn:
            rate, errors = measure_resets(turn.ports["short"], resets)
        rows.append(
            {"way": way, "short_count": resets, "short_per_s": rate, "short_errors": errors}
        )
        print(render(rows[-1]), flush=True)
    return rows


def render(row: Row) -> str:
    figures = (f"{name}={value:.2f}" for name, value in row.items() if isinstance(value, float))
    errors = f"  errors={row['short_errors']}" if "short_errors" in row else ""
    return f"{row['way']:<9} " + "  ".join(figures) + errors


def summarize(rows: list[Row]) -> dict[str, Figures]:
    """Return each way's medians, and its throughput as a ratio to plain `ssh -L`."""
    summary: dict[str, Figures] = {}
    for way in WAYS:
        mine = [row for row in rows if row["way"] == way]
        names = sorted({name for row in mine for name in row} - {"way", "round", "short_count"})
        summary[way] = {
            name: statistics.median(float(row[name]) for row in mine if name in row)
            for name in names
        }
    for figures in summary.values():
        for name in ("down", "up"):
            figures[f"{name}_ratio"] = figures[f"{name}_mb_s"] / summary["ssh -L"][f"{name}_mb_s"]
    return summary


def missed(summary: dict[str, Figures]) -> list[str]:
    """Return the wanted limits that do not hold."""
    limits = [("system", "down_ratio", 0.95), ("system", "up_ratio", 0.95)]
    limits += [("channels", "down_ratio", 0.6), ("channels", "up_ratio", 0.6)]
    found = [
        f"{way}: {name} {summary[way][name]:.2f} is under {least}"
        for way, name, least in limits
        if summary[way][name] < least
    ]
    if summary["channels"]["chunk_p95_ms"] >= 50:
        found.append(f"channels: chunk_p95_ms {summary['channels']['chunk_p95_ms']:.0f} >= 50")
    found += [f"{way}: short connections failed" for way in WAYS if summary[way]["short_errors"]]
    return found


def main() -> int:
    """Run, print, write the figures; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--resets", type=int, default=20_000)
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    ready: multiprocessing.queues.SimpleQueue[dict[str, int]] = spawn.SimpleQueue()
    far = spawn.Process(target=far_end, args=(ready,), daemon=True)
    far.start()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="rcb-") as folder, sshd(Path(folder)) as server:
        rows = compare(server, ready.get(), options.rounds, options.resets)
    far.terminate()
    summary = summarize(rows)
    complaints = missed(summary)
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "load_before": load}
    report = {"machine": machine, "rows": rows, "summary": summary, "missed": complaints}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"tunnel-{time.strftime('%Y%m%dT%H%M%S')}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"medians, and ratios to plain ssh -L (raw figures: {path})")
    for way, figures in summary.items():
        print(f"{way:<9} " + "  ".join(f"{name}={value:.2f}" for name, value in figures.items()))
    print("\n".join(complaints) or "all limits hold")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
