"""One file per command: parse options, call, print. This is the list of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from raycluster.commands.batch import batch
from raycluster.commands.bench import bench
from raycluster.commands.check import check
from raycluster.commands.deploy import deploy
from raycluster.commands.down import down
from raycluster.commands.drill import drill
from raycluster.commands.exec import exec_
from raycluster.commands.export import export
from raycluster.commands.init import init
from raycluster.commands.keys import keys
from raycluster.commands.logs import logs
from raycluster.commands.plan import plan
from raycluster.commands.recipe import recipe
from raycluster.commands.schema import schema
from raycluster.commands.ssh import ssh
from raycluster.commands.status import status
from raycluster.commands.support_bundle import support_bundle
from raycluster.commands.tunnel import tunnel
from raycluster.commands.up import up
from raycluster.commands.usage import usage


@dataclass(frozen=True)
class Command:
    """A function that typer turns into a command, and how."""

    function: Callable[..., None]
    options: Mapping[str, Any] = field(default_factory=dict)


_PASS_ON = {"context_settings": {"ignore_unknown_options": True, "allow_interspersed_args": False}}

COMMANDS: Mapping[str, Command] = {
    "init": Command(init),
    "recipe": Command(recipe),
    "check": Command(check),
    "plan": Command(plan),
    "up": Command(up),
    "deploy": Command(deploy),
    "status": Command(status),
    "usage": Command(usage),
    "keys": Command(keys),
    "tunnel": Command(tunnel),
    "bench": Command(bench),
    "batch": Command(batch),
    "logs": Command(logs),
    "support-bundle": Command(support_bundle),
    "exec": Command(exec_, _PASS_ON),
    "ssh": Command(ssh, _PASS_ON),
    "drill": Command(drill),
    "down": Command(down),
    "teardown": Command(down, {"help": "Same as `down`.", "hidden": False}),
    "export": Command(export),
    "schema": Command(schema),
}
