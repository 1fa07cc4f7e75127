"""Puts firewall rules in force on hosts, on trial until a new connection has come through."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from contextlib import closing, suppress

from raycluster.apply.context import ApplyContext
from raycluster.core.errors import CommandError, HostError
from raycluster.core.events import Event
from raycluster.core.interfaces import Transport
from raycluster.hosts.fleet import Connected, all_or_raise
from raycluster.observe.listening_ports import read_listeners
from raycluster.plan.actions import ApplyFirewall
from raycluster.services.firewall import (
    REMOVED,
    Around,
    can_script,
    confirm_script,
    exemptions,
    look_script,
    owned,
    remove_script,
    take_back_script,
    try_script,
)


def guard(work: ApplyContext, guards: Iterable[ApplyFirewall]) -> None:
    """Put firewall rules in force, or take them back. Raises HostError."""
    actions = {each.host: each for each in guards}
    if not actions:
        return
    asked = (name for name, action in actions.items() if action.rules)
    all_or_raise(work.fleet.each(asked, check_firewall))
    work.fleet.check()

    def change(connected: Connected) -> None:
        action = actions[connected.host.name]
        if action.rules:
            _put(work, connected, action.rules)
        else:
            take_away(connected, work.spec.cluster.name)

    all_or_raise(work.fleet.each(actions, change))


def check_firewall(connected: Connected) -> None:
    """Raise HostError where rules could not be written on a host; changes nothing."""
    _run(connected.transport, connected.host.name, can_script())


def take_away(connected: Connected, cluster: str) -> bool:
    """Remove the cluster's rules from a host; return whether there were any. Raises HostError."""
    name = connected.host.name
    said = _run(connected.transport, name, remove_script(cluster))
    return said.rpartition("\n")[2] == REMOVED


def _put(work: ApplyContext, connected: Connected, rules: str) -> None:
    cluster, name, tag = work.spec.cluster.name, connected.host.name, secrets.token_hex(4)
    text = rules + exemptions(cluster, around(connected)) + owned(work.spec.owner)
    work.tell(name)("trying the firewall rules")
    _run(connected.transport, name, try_script(cluster, tag), text.encode())
    try:
        with closing(work.fleet.new_connection(name)) as fresh:
            said = _run(fresh, name, confirm_script(cluster, tag))
    except CommandError:
        raise
    except HostError as error:
        with suppress(HostError):  # if this cannot be said any more, the host does it by itself
            connected.transport.run(("sh", "-c", take_back_script(cluster, tag)))
        raise CommandError(
            f"the new firewall rules were reverted: they prevented new connections: {error.what}",
            where=name,
            hint="check how this machine reaches the host's sshd; firewall.allow_ports lists ports "
            "to keep open",
        ) from error
    if said:
        work.listen(Event(name, f"firewall: {said}", "note"))


def around(connected: Connected) -> Around:
    """Return what listens on a host and is not the cluster's. Raises HostError.

    What our processes have is asked for last: a socket that they open meanwhile is not mistaken.
    """
    every = read_listeners(connected.transport)
    told = _run(connected.transport, connected.host.name, look_script()).splitlines()
    found = [match for line in told if (match := re.fullmatch(r"(ssh|sshd) ([0-9]{1,20})", line))]
    ports = {int(each[2]) for each in found if each[1] == "ssh" and 0 < int(each[2]) < 1 << 16}
    sshd = {int(each[2]) for each in found if each[1] == "sshd"}
    own = connected.runtime.sockets()
    others = {each for each in every if each.inode not in own}
    return Around(
        ssh=frozenset(ports | {o.port for o in others if o.protocol == "tcp" and o.inode in sshd}),
        tcp=frozenset(each.port for each in others if each.protocol == "tcp"),
        udp=frozenset(each.port for each in others if each.protocol == "udp"),
    )


def _run(transport: Transport, host: str, script: str, given: bytes = b"") -> str:
    """Run a script of the firewall; return what it said. Raises HostError."""
    done = transport.run(("sh", "-c", script), input=given)
    if done.exit_code != 0:
        said = done.error_text
        raise CommandError(
            f"cannot change the firewall: {said}",
            where=host,
            hint="nftables, and root or sudo without a password, are needed; or set "
            "firewall.manage = false and close the ports yourself",
            status=done.exit_code,
        )
    return done.text.strip()
