"""Reads what a host is: memory, ports, GPUs, clock."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from raycluster.core import cgroups
from raycluster.core.accelerators import host as gpus_of_host
from raycluster.core.accelerators.values import Accelerators, Trouble, clean, sharing
from raycluster.core.cgroups import Limits
from raycluster.core.errors import (
    ConnectionLostError,
    HostError,
    UnreachableError,
)
from raycluster.core.interfaces import (
    PROGRAMS,
    Facts,
    Transport,
)
from raycluster.core.untrusted import DF, free_bytes, not_understood, text_of
from raycluster.hosts.dashboard import HOLDERS, LISTENING, who_listens
from raycluster.hosts.fleet import Connected

_MACHINE = 'echo "$(cat /proc/sys/kernel/random/boot_id)" "$(readlink /proc/self/ns/net)"'

_READ_FACTS = f"""{DF}
LC_ALL=C; export LC_ALL
echo machine "$(uname -m)"
echo glibc "$(getconf GNU_LIBC_VERSION 2>/dev/null)"
df -Pk / 2>&1 | sed 's/^/disk /'
LISTEN
echo epoch "$(date +%s.%N)"
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
for program in {{programs}}; do command -v "$program" >/dev/null && echo program "$program"; done
true
""".replace("{programs}", " ".join(PROGRAMS)).replace("LISTEN", HOLDERS)
_OF_MACHINE = ("MemTotal:", "online", "allowed")
GPUS_S = 75.0
"""Seconds for all questions about GPUs; each of them has its own limit on the host."""


def facts_of(connected: Connected) -> Facts:
    """Return what the host offers to what its runtime starts there. Raises HostError."""
    return read_facts(connected.transport, boxed=not connected.host.runs_own_programs)


def read_facts(transport: Transport, *, boxed: bool = False) -> Facts:
    """Return what the host offers, to what a daemon starts where `boxed`. Raises HostError."""
    values = _told(transport, cgroups.script(boxed=boxed) + _READ_FACTS)
    found = cgroups.read(values)
    if found is None:
        told = [f"{word} {line}" for word in _OF_MACHINE for line in values.get(word, ())]
        raise not_understood("the host (memory and processors)", transport.address, "; ".join(told))
    disk = values.get("disk", ())
    free = next((size for line in disk if (size := free_bytes(line)) is not None), None)
    kind = clean("".join(values.get("machine", ())), 20)
    return Facts(
        gpus=sharing(read_gpus(transport), found.memory_bytes, kind),
        cpus=found.whole_cpus,
        memory_bytes=found.memory_bytes,
        disk_free_bytes=free,
        disk_problem="" if free is not None else clean(" ".join(disk)) or "df printed nothing",
        listening=_ports(values),
        holders={port: who for (port, _), who in who_listens(values).items()},
        epoch=_clock(transport, values.get("epoch", ())),
        programs=frozenset(PROGRAMS).intersection(values.get("program", ())),
        machine=kind,
        glibc=_glibc("".join(values.get("glibc", ()))),
        limits=found,
    )


def read_limits(connected: Connected) -> Limits | None:
    """Return what processes of ours may take of a host now. Raises HostError."""
    boxed = not connected.host.runs_own_programs
    return cgroups.read(_told(connected.transport, cgroups.script(boxed=boxed)))


def _clock(transport: Transport, said: Sequence[str]) -> float:
    """Return seconds since the epoch, whole ones where `date` knows no parts. Raises AnswerError.

    That of Busybox prints `%N` as it stands, or nothing for it.
    """
    match = re.match(r"[0-9]{1,12}(\.[0-9]{1,9}(?![^\s]))?", said[0].strip()) if said else None
    if match is None:
        raise not_understood("the host's `date`", transport.address, "".join(said[:1]))
    return float(match[0])


def _glibc(said: str) -> str:
    """Return the version in what `getconf` says, such as "glibc 2.36", or ""."""
    match = re.fullmatch(r"glibc ([0-9]{1,3}\.[0-9]{1,3})[0-9.]{0,9}", said.strip())
    return match[1] if match else ""


def read_listening(transport: Transport) -> frozenset[int]:
    """Return the ports on which the host listens. Raises HostError."""
    return _ports(_told(transport, f"{LISTENING}true"))


def read_gpus(transport: Transport) -> Accelerators:
    """Return the host's GPUs, or why they do not answer. Raises HostError."""
    try:
        done = transport.run(("sh", "-c", gpus_of_host.script()), timeout=GPUS_S)
    except (ConnectionLostError, UnreachableError):
        raise
    except HostError as error:  # it did not end: a driver that hangs cannot even be killed
        return Accelerators(
            problem=Trouble(
                f"cannot query the host's GPUs: {error.what}",
                "a GPU or its driver hangs: see `dmesg | grep -i -e xid -e nvrm`, and reboot it",
            )
        )
    if done.exit_code != 0:
        said = clean(done.error_text) or f"it exited with status {done.exit_code}"
        return Accelerators(problem=Trouble(f"cannot query the host's GPUs: {said}"))
    return gpus_of_host.read(done.text)


def _told(transport: Transport, script: str) -> dict[str, list[str]]:
    """Return the lines that a script printed, by their first word. Raises HostError."""
    done = transport.run(("sh", "-c", script))
    return gpus_of_host.by_word(text_of(done, "read the host's facts", transport.address))


def _ports(values: Mapping[str, list[str]]) -> frozenset[int]:
    return frozenset(port for port, _ in who_listens(values))


def machine(connected: Connected) -> str:
    """Return what tells this machine from others, whatever they are called. Raises HostError."""
    done = connected.transport.run(("sh", "-c", _MACHINE))
    told = text_of(done, "identify the machine", connected.host.name).strip()
    if not re.fullmatch(r"\S{1,100} \S{1,100}", told):
        raise not_understood("the host's kernel", connected.host.name, told)
    return told
