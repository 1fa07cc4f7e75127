"""Finds the replicas that run on a host and asks them at their own ports for their metrics."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from raycluster.core.errors import RayclusterError
from raycluster.core.untrusted import Told, number_of, read_json, text_of
from raycluster.hosts.dashboard import READABLE
from raycluster.serve.settings import AGE_HEADER, EARLIER_PATH, ENGINE_PATH

if TYPE_CHECKING:
    import httpx

    from raycluster.hosts.fleet import Connected
    from raycluster.spec import ClusterSpec

LISTENING = f"""{READABLE}awk '$4 == "0A" {{print $2}}' /proc/net/tcp /proc/net/tcp6 2>/dev/null
true"""
"""Prints the addresses on which the host listens, for `listening`."""


REPORT_S = 5.0
"""Seconds for a replica to tell of itself."""
METRICS_S = 10.0
"""Seconds for all of an address's metrics."""


def http_ports(spec: ClusterSpec) -> range:
    """Return the ports among which replicas choose those of their HTTP."""
    return spec.ports.replica_parts[0]


def listening(text: str) -> Iterator[tuple[int, str]]:
    """Yield the ports in addresses of /proc/net/tcp and tcp6, and how the host itself asks there.

    A port that listens for both kinds comes twice, IPv4 last.
    """
    for word in reversed(text.split()):
        match = re.fullmatch(r"([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4})", word)
        if match:
            four, port = len(match[1]) == 8 or not match[1].strip("0"), int(match[2], 16)
            yield port, f"http://{'127.0.0.1' if four else '[::1]'}:{port}"


def reports(spec: ClusterSpec, connected: Connected) -> tuple[Mapping[str, Any], ...]:
    """Return what each replica on a host tells of itself; of one that does not answer, nothing.

    Raises HostError.
    """
    from raycluster.hosts.http import http_client

    ports = http_ports(spec)
    done = connected.transport.run(("sh", "-c", LISTENING))
    text = text_of(done, "find the replicas", connected.host.name)
    places = {port: base for port, base in listening(text) if port in ports}
    with http_client(connected.transport, spec.ports.metrics, timeout=REPORT_S) as client:
        return tuple(told for base in places.values() if (told := _report(client, base)))


def _report(client: httpx.Client, base: str) -> Mapping[str, Any]:
    import httpx

    try:
        answer = client.get(base + ENGINE_PATH).raise_for_status()
        return report(read_json(answer.content, "a replica"))
    except (httpx.HTTPError, RayclusterError):
        return {}


def report(told: Told) -> Mapping[str, Any]:
    """Return what a replica tells of itself, of the parts and kinds that it has to have."""
    if not isinstance(told.value, dict):
        return {}
    seconds = {name: value.number() for name, value in told["seconds"].named()}
    return {
        "model": told["model"].text(1000),
        "engine": told["engine"].text(100),
        "reason": told["reason"].text(),
        "pid": told["pid"].whole(),
        "seconds": {name: value for name, value in seconds.items() if value is not None},
    }


@dataclass
class MetricsAddress:
    """An address that tells metrics. vLLM gives single series below /metrics/, all at /metrics."""

    base: str
    path: str = "/metrics/"

    def ask(self, client: httpx.Client, series: Sequence[str]) -> tuple[str, float | None]:
        """Return the text of these series, "" where it has none, and the clock there.

        The clock is in seconds since the epoch. Raises httpx's errors.
        """
        from raycluster.hosts.http import whole_answer

        url = self.base + self.path
        answer = whole_answer(client, url, seconds=METRICS_S, params={"name[]": series})
        if not answer.is_success and self.path.endswith("/"):
            self.path = "/metrics"
            return self.ask(client, series)
        return (answer.text if answer.is_success else ""), _moment(answer.headers.get("date", ""))

    def ask_earlier(self, client: httpx.Client) -> tuple[float, str]:
        """Return how many seconds ago the replica kept its figures, and their text.

        Raises httpx's errors; LookupError or ValueError where it tells no age.
        """
        answer = client.get(self.base + EARLIER_PATH).raise_for_status()
        age = number_of(answer.headers[AGE_HEADER], 1e9)
        if age is None:
            raise ValueError("no age")
        return age, answer.text


def _moment(date: str) -> float | None:
    """Return a date of HTTP in seconds since the epoch, None where it is none."""
    try:
        return parsedate_to_datetime(date).timestamp() if date else None
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
