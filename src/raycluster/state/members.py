"""The record of a cluster's hosts, which every node holds: who belonged to it after the last `up`.

By it a later run finds hosts that left the spec. What it says comes from a host and is data: names,
addresses and ports. How to log in comes from the spec.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field

from raycluster.core.accelerators.values import clean
from raycluster.core.errors import HostError
from raycluster.core.interfaces import Found, Secret
from raycluster.core.stored_json import decode, unread
from raycluster.spec import ClusterSpec, ResolvedHost
from raycluster.spec.models import login_name
from raycluster.spec.runtime_section import Runtime
from raycluster.spec.sections import Ssh
from raycluster.spec.types import HostName, IpAddress, Label, Port, Price, Text, Worded

SCHEMA = 1
MOST_MEMBERS = 1000
_KINDS = ("docker", "native")
_BEFORE = " (before"


_Digest = Annotated[Text, Worded(r"[0-9a-f]{12}", "12 hexadecimal digits are")]


class Member(BaseModel):
    """A host as it is recorded; `host` is empty for the machine that ran `up`.

    `kind` is its runtime's name, which this version need not know. `user` and `via` are digests, by
    which the spec's login is found that was used: they say neither user nor jump host.
    `private_address` and the price are compared and shown alone.
    """

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    name: Label
    host: HostName | Literal[""]
    port: Port | None = None
    kind: Annotated[Text, Worded(r"[a-z0-9-]{1,40}", "a runtime's name is")]
    private_address: IpAddress | None = None
    price_per_hour: Price | None = None
    user: _Digest | None = None
    via: _Digest | None = None

    @property
    def place(self) -> tuple[object, ...]:
        """Tells two hosts apart, like `ResolvedHost.place`."""
        if not self.host:
            return ("local",)
        return (self.host.lower().removesuffix("."), self.port, self.via)

    @property
    def address(self) -> str:
        """Names the machine to a person: `host:port`."""
        return ":".join(str(part) for part in (self.host, self.port) if part)


@dataclass(frozen=True)
class Former:
    """A recorded host that the spec has no longer, or has with another runtime, which is `moved`.

    `host` is how the spec says that it is reached; without, `trouble` and `hint` say why this run
    cannot clean it.
    """

    member: Member
    name: str
    host: ResolvedHost | None = None
    moved: bool = False
    trouble: str = ""
    hint: str = ""


def member_of(host: ResolvedHost) -> Member:
    """Return what is recorded of a host of the spec."""
    local = host.transport == "local"
    return Member(
        name=host.name,
        host="" if local else host.host,
        port=None if local else host.ssh.port,
        kind=host.kind,
        private_address=host.private_address,
        price_per_hour=host.price_per_hour,
        user=None if local else _digest(host.ssh.user),
        via=None if local else _digest(host.ssh.proxy_jump),
    )


def _digest(text: str | None) -> str | None:
    return hashlib.sha256(text.encode()).hexdigest()[:12] if text else None


def members_file(members: Iterable[Member]) -> bytes:
    """Return the record of the hosts."""
    plain = [m.model_dump(mode="json", exclude_none=True) for m in members]
    return json.dumps({"schema": SCHEMA, "members": plain}).encode()


class _File(BaseModel):
    members: Annotated[tuple[Member, ...], Field(max_length=MOST_MEMBERS)]


class _Ssh(BaseModel):
    port: Port | None = None
    user: str | None = None
    proxy_jump: str | None = None


class _Runtime(BaseModel):
    kind: str | None = None


class _Unnumbered(BaseModel):
    """A host as it was recorded before there was a schema number: whole, with how to log in."""

    name: str
    host: str = ""
    transport: str
    private_address: str | None = None
    price_per_hour: float | None = None
    ssh: _Ssh
    runtime: _Runtime


def read_members(content: bytes, where: str) -> tuple[Member, ...]:
    """Return what a host's record says. Raises RecordError, or NewerRecordError."""
    what = "the record of the cluster's hosts (members.json)"
    if not content.lstrip().startswith(b"["):
        return decode(content, _File, what=what, where=where, schema=SCHEMA).members
    old = decode(content, list[_Unnumbered], what=what, where=where)
    new = json.dumps({"members": [_numbered(each) for each in old]})
    return decode(new, _File, what=what, where=where).members


def _numbered(old: _Unnumbered) -> dict[str, Any]:
    local = old.transport == "local"
    return {
        "name": old.name.partition(_BEFORE)[0],
        "host": "" if local else old.host or "-",
        "port": None if local else old.ssh.port,
        "kind": old.runtime.kind or "docker",
        "private_address": old.private_address,
        "price_per_hour": old.price_per_hour,
        "user": None if local else _digest(old.ssh.user),
        "via": None if local else _digest(old.ssh.proxy_jump),
    }


def read_token(content: bytes, where: str) -> Secret:
    """Return Ray's token from a host's file. Raises RecordError."""
    if not re.fullmatch(rb"[0-9a-f]{64}", content):
        raise unread("Ray's token", "64 hexadecimal digits are expected", where)
    return Secret(content.decode())


def former(spec: ClusterSpec, members: Iterable[Member]) -> tuple[Former, ...]:
    """Return the recorded hosts that are to be cleaned, each once and under a name of its own."""
    now = {member_of(host).place: host for host in spec.hosts}
    taken = {host.name for host in spec.hosts}
    found: dict[object, Former] = {}
    for member in members:
        host = now.get(member.place)
        if member.place in found or (host and host.kind == member.kind):
            continue
        name = _free(member.name, taken)
        taken.add(name)
        found[member.place] = _former(spec, member, name, host)
    return tuple(found.values())


def _free(name: str, taken: set[str]) -> str:
    """Return the name, or one made from it where another host has it."""
    others = (f"{name}{_BEFORE}{'' if n == 1 else f' {n}'})" for n in range(1, len(taken) + 2))
    return next(each for each in (name, *others) if each not in taken)


def _former(spec: ClusterSpec, member: Member, name: str, host: ResolvedHost | None) -> Former:
    if member.kind not in _KINDS:
        return Former(
            member,
            name,
            moved=host is not None,
            trouble=f"was started with the runtime {member.kind}, which this version does not "
            "support",
            hint="clean it up with a version of raycluster that supports it",
        )
    runtime = Runtime(kind=cast("Literal['docker', 'native']", member.kind))
    if host:
        return Former(
            member, name, host.model_copy(update={"name": name, "runtime": runtime}), True
        )
    if not member.host:
        return Former(
            member,
            name,
            trouble="was the machine that ran `raycluster up` (transport = local), which cannot "
            "be reached from elsewhere",
            hint='run `raycluster down` there with a spec that has it as transport = "local"',
        )
    login = _login(spec, member)
    if login is None:
        return Former(
            member,
            name,
            trouble=f"was reached at {member.address} with a user or jump host that the spec no "
            "longer has",
            hint="set them under [ssh], or put the host back into the spec",
        )
    reached = ResolvedHost(
        name=name,
        role="worker",
        host=member.host,
        transport="ssh",
        host_key=None,
        private_address=member.private_address,
        gpus=0,
        num_cpus=None,
        price_per_hour=member.price_per_hour,
        ssh=login.model_copy(update={"port": member.port, "host_keys": "strict"}),
        runtime=runtime,
    )
    return Former(member, name, reached)


def _login(spec: ClusterSpec, member: Member) -> Ssh | None:
    """Return that of the spec's logins by which the member was reached."""
    for ssh in (spec.ssh, *(host.ssh for host in spec.hosts if host.transport == "ssh")):
        if (_digest(ssh.user), _digest(ssh.proxy_jump)) == (member.user, member.via):
            return ssh
    return None


MOST = 200  # characters of an owner, which has to be written as it is


def of_another(
    spec: ClusterSpec, where: str, found: Iterable[Found], firewall_owner: str = ""
) -> HostError | None:
    """Return the error for a host on which somebody else has a cluster of this name."""
    named, ours = spec.cluster.owner, {spec.owner}
    if not named:
        ours.add(login_name())  # as it was noted before the machine was
    owners = (*((each.owner, each.started) for each in found), (firewall_owner, ""))
    theirs = next((each for each in owners if each[0] and each[0] not in ours), None)
    if theirs is None:
        return None
    owner, started = clean(theirs[0], MOST), clean(theirs[1], 40)
    since = f" (running since {started})" if started else ""
    us = (
        f"this spec has owner {named}"
        if named
        else f"this spec names none, and you are {spec.owner}"
    )
    return HostError(
        f"the cluster {spec.cluster.name} there belongs to {owner}{since}, but {us}",
        where=where,
        hint="choose another name and other ports for yours; if it is the same cluster, everybody "
        f"who shares the spec must set `owner = {json.dumps(owner)}` under [cluster]",
    )
