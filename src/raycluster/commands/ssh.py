"""`raycluster ssh`: a login on a host, reached as the spec says."""

from __future__ import annotations

import os
import shutil
from typing import Annotated

import typer

from raycluster.commands._arguments import SpecOption
from raycluster.commands._options import after_dashes, complete_hosts
from raycluster.hosts import session

Node = Annotated[str, typer.Argument(help="A host's name.", autocompletion=complete_hosts)]
Command = Annotated[
    list[str] | None, typer.Argument(help="Command to run instead of a shell.", show_default=False)
]


def ssh(node: Node, command: Command = None, spec: SpecOption = None) -> None:
    """Open an ssh session on a host, with the spec's settings."""
    opened = session.open_session(spec)
    from raycluster.core.errors import UsageError
    from raycluster.hosts.fleet import ssh_options
    from raycluster.hosts.transports.ssh import pinned_key
    from raycluster.hosts.transports.ssh_command import command_line
    from raycluster.services.processes import named_host

    host = named_host(opened.spec, node)
    if host.transport != "ssh":
        raise UsageError("is this machine: ssh is not needed", where=node)
    if not shutil.which("ssh"):
        raise UsageError(
            "there is no `ssh` on this machine",
            where=node,
            hint="install the OpenSSH client",
        )
    options = ssh_options(host)
    pinned = pinned_key(node, options, ask=session.TerminalPrompt()) if options.host_key else ""
    argv = (*command_line(options, pinned.partition(" ")[0]), *after_dashes(command or []))
    os.execvp(argv[0], argv)  # noqa: S606  # this process becomes ssh
