"""The command line with which the system's ssh does what the library would do."""

from __future__ import annotations

import shlex

from raycluster.hosts.transports.ssh_options import (
    DEFAULT_CONFIG,
    FINGERPRINT,
    SshOptions,
    jump_hops,
)

_PINNED = "raycluster-pinned"


def command_line(options: SshOptions, kind: str = "") -> tuple[str, ...]:
    """Return the system ssh's argv up to and with the host, doing what `open_ssh` would do.

    `kind` is that of the host key that is asked for. With `host_key` it is the pinned one's, from
    `pinned_key`: ssh asks for a key before it looks at fingerprints.
    """
    settings = {
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "ForwardAgent": "no",
        "ConnectTimeout": f"{max(1, round(_patience(options)))}",
        # the spec says how strict it is; no host and no name server has a say in known_hosts
        "StrictHostKeyChecking": "accept-new" if options.host_keys == "accept-new" else "yes",
        "VerifyHostKeyDNS": "no",
        "NoHostAuthenticationForLocalhost": "no",
        "UpdateHostKeys": "no",
    }
    if options.host_key is not None:
        settings |= _pinned(options.host_key)
    elif options.known_hosts is not None:
        settings["UserKnownHostsFile"] = f'"{options.known_hosts}"'
    if kind:
        settings["HostKeyAlgorithms"] = "rsa-sha2-512,rsa-sha2-256" if kind == "ssh-rsa" else kind
    argv = [
        "ssh",
        *(word for name, value in settings.items() for word in ("-o", f"{name}={value}")),
    ]
    if options.config_file != DEFAULT_CONFIG:
        argv += ["-F", options.config_file or "none"]
    if options.identity_file is not None:
        argv += ["-i", options.identity_file]
    if options.user is not None:
        argv += ["-l", options.user]
    if options.port is not None:
        argv += ["-p", str(options.port)]
    argv += _jump_arguments(options)
    return (*argv, options.host)


def _patience(options: SshOptions) -> float:
    """Return the seconds that `open_ssh` gives the host for its first sign."""
    from raycluster.hosts.transports.ssh_target import resolve

    return resolve(options.host, options).patience


def _pinned(fingerprint: str) -> dict[str, str]:
    """Trust one key and nothing else: no file, or connection that is open already.

    KnownHostsCommand came with OpenSSH 8.5; an older one refuses to start.
    """
    if not FINGERPRINT.fullmatch(fingerprint):
        raise ValueError(fingerprint)
    judge = f"test %f = {fingerprint.rstrip('=')} && echo {_PINNED} %t %K || :"
    return {
        "StrictHostKeyChecking": "yes",
        "HostKeyAlias": _PINNED,
        "KnownHostsCommand": f'/bin/sh -c "{judge}"',
        "UserKnownHostsFile": "/dev/null",
        "GlobalKnownHostsFile": "/dev/null",
        "ControlPath": "none",
    }


def _jump_arguments(options: SshOptions) -> list[str]:
    """`ssh -J` would leave out our key and known_hosts file for the jump hosts."""
    if options.proxy_jump is None:
        return []
    hops = jump_hops(options.host, options.proxy_jump)
    if not hops:
        return ["-o", "ProxyJump=none"]
    *before, last = hops
    jump = ",".join(_hop_text(*hop) for hop in before) or None
    *prefix, name = command_line(options.hop(*last, proxy_jump=jump))
    inner = shlex.join(prefix).replace("%", "%%")
    return ["-o", f"ProxyCommand={inner} -W '[%h]:%p' {shlex.quote(name)}"]


def _hop_text(user: str | None, host: str, port: int | None) -> str:
    bracketed = f"[{host}]" if ":" in host else host
    return f"{user + '@' if user else ''}{bracketed}{f':{port}' if port else ''}"
