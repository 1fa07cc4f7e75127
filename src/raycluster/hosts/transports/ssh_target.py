"""Puts a spec's options and the ssh config together: the facts with which one host is dialled."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace

from raycluster.core.errors import SpecError
from raycluster.hosts.transports.ssh_config import (
    HostConfig,
    expand,
    expand_home,
    expand_path,
    host_tokens,
    lowered,
    read_config,
)
from raycluster.hosts.transports.ssh_options import SshOptions, check_options, jump_hops

_DEFAULT_KEYS = tuple(
    f"~/.ssh/id_{kind}" for kind in ("rsa", "ecdsa", "ecdsa_sk", "ed25519", "ed25519_sk")
)
_USER_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
_GLOBAL_HOSTS = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
_MOST_HOPS = 8
_PROXY_SECONDS = 60.0
"""For a ProxyCommand, which may start a machine first; `ssh` waits without an end."""


@dataclass(frozen=True)
class SshTarget:
    """One host, ready to be dialled; `jumps` are the hosts on the way, the nearest first.

    `timeout` is for each step, `patience` for the first sign of the server's, in seconds.
    """

    name: str
    options: SshOptions
    host: str
    port: int
    user: str
    required_key: str | None
    key_files: tuple[str, ...]
    default_keys: bool
    certificates: tuple[str, ...]
    identities_only: bool
    agent: str | None
    gssapi: bool
    pkcs11: bool
    known_hosts: tuple[str, ...]
    global_known_hosts: tuple[str, ...]
    key_alias: str | None
    host_key_algorithms: str | None
    known_hosts_command: str | None
    revoked_host_keys: str | None
    required_rsa_size: int
    check_host_ip: bool
    timeout: float
    family: str
    patience: float
    proxy_command: str | None
    passes_descriptor: bool
    jumps: tuple[SshTarget, ...]

    @property
    def known_as(self) -> str:
        """The name under which known_hosts files list the host."""
        return lowered(self.key_alias or self.with_port(self.host))

    @property
    def portless(self) -> str:
        """The name that counts where no line has the port."""
        return lowered(self.key_alias or self.host)

    def with_port(self, host: str) -> str:
        """Return a name or address as known_hosts files write it for the target's port."""
        return host if self.port == 22 else f"[{host}]:{self.port}"


def resolve(name: str, options: SshOptions, depth: int = 0) -> SshTarget:
    """Return how to dial; what the spec says wins over the ssh config. Raises SpecError."""
    check_options(name, options)
    if depth > _MOST_HOPS:
        raise SpecError(
            f"more than {_MOST_HOPS} jump hosts", where=name, hint="check for a ProxyJump loop"
        )
    config = read_config(options.host, options.config_file, options.user)
    port = options.port or _number(name, config, "Port", 22)
    said = config.first("hostname")
    host = expand(said, {"h": options.host, "%": "%"}) if said else options.host
    tokens = host_tokens(config, host, port)
    check_options(name, replace(options, host=host, user=tokens["r"]))
    jump = options.proxy_jump or expand(config.first("proxyjump") or "", tokens)
    required = options.identity_file and expand_path(options.identity_file, tokens)
    revoked = config.said("revokedhostkeys")
    proxy_command = None if jump else _proxy_command(name, config, tokens)
    limit = options.connect_timeout
    if unsaid := limit == SshOptions("").connect_timeout:
        limit = float(_number(name, config, "ConnectTimeout", int(limit)))
        unsaid = config.first("connecttimeout") in (None, "none")
    return SshTarget(
        name=name,
        options=options,
        host=host,
        port=port,
        user=tokens["r"],
        required_key=required,
        key_files=_key_files(config, required, tokens),
        default_keys=required is None and config.first("identityfile") is None,
        certificates=tuple(expand_path(p, tokens) for p in config.words("certificatefile")),
        identities_only=config.says_yes("identitiesonly"),
        agent=_agent(config, tokens),
        gssapi=config.says_yes("gssapiauthentication"),
        pkcs11=config.said("pkcs11provider") is not None,
        known_hosts=_known_hosts(config, options, tokens),
        global_known_hosts=config.words("globalknownhostsfile", _GLOBAL_HOSTS),
        key_alias=config.first("hostkeyalias"),
        host_key_algorithms=config.first("hostkeyalgorithms"),
        known_hosts_command=config.said("knownhostscommand"),
        revoked_host_keys=revoked and expand_home(revoked),
        required_rsa_size=_number(name, config, "RequiredRSASize", 1024),
        check_host_ip=config.says_yes("checkhostip"),
        timeout=limit,
        family=(config.first("addressfamily") or "any").lower(),
        patience=max(limit, _PROXY_SECONDS) if proxy_command and unsaid else limit,
        proxy_command=proxy_command,
        passes_descriptor=proxy_command is not None and config.says_yes("proxyusefdpass"),
        jumps=_jumps(name, options, jump, depth),
    )


def _jumps(name: str, options: SshOptions, text: str, depth: int) -> tuple[SshTarget, ...]:
    found: list[SshTarget] = []
    for user, host, port in jump_hops(name, text):
        if host == options.host and port in (None, options.port):
            continue  # `Host *` with a ProxyJump is about the jump host as well
        hop = options.hop(user, host, port, proxy_jump="none" if found else None)
        target = resolve(name, hop, depth + 1)
        found += (*target.jumps, target)
    return tuple(found)


def _key_files(config: HostConfig, required: str | None, tokens: dict[str, str]) -> tuple[str, ...]:
    said = config.words("identityfile", () if required else _DEFAULT_KEYS)
    said = tuple(expand_path(path, tokens) for path in said)
    return tuple(dict.fromkeys((required, *said) if required else said))


def _agent(config: HostConfig, tokens: dict[str, str]) -> str | None:
    said = config.first("identityagent")
    if said is None or said == "SSH_AUTH_SOCK":
        return os.environ.get("SSH_AUTH_SOCK") or None
    if said.lower() == "none":
        return None
    if said.startswith("$") and not said.startswith("${"):
        return os.environ.get(said[1:]) or None
    return expand_path(said, tokens)


def _known_hosts(
    config: HostConfig, options: SshOptions, tokens: dict[str, str]
) -> tuple[str, ...]:
    said = config.words("userknownhostsfile", _USER_HOSTS)
    if options.known_hosts is not None:
        said = (options.known_hosts,)
    return tuple(expand_path(path, tokens) for path in said)


def _proxy_command(name: str, config: HostConfig, tokens: dict[str, str]) -> str | None:
    said = config.said("proxycommand")
    unknown = [token for token in re.findall("%(.?)", said or "") if token not in tokens]
    if unknown:
        raise SpecError(
            f"ProxyCommand of the ssh config has %{unknown[0]}, which means nothing",
            where=name,
            hint="write %% for a percent sign; %h is the host, %p its port, %r the user",
        )
    return said and expand(said, tokens)


def _number(name: str, config: HostConfig, key: str, default: int) -> int:
    text = config.first(key.lower())
    if text is None or (key == "ConnectTimeout" and text == "none"):
        return default
    if not re.fullmatch("[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise SpecError(
            f"{key} {text[:40]!r} in the ssh config is not valid", where=name, hint="correct it"
        )
    return int(text)
