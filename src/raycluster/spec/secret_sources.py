"""From a secret's source, such as `env:HF_TOKEN`, to its value."""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from raycluster.core.errors import SecretError
from raycluster.core.interfaces import RegistryLogin, Secret
from raycluster.spec import ClusterSpec
from raycluster.spec.layers import read_dotenv
from raycluster.spec.secret_values import Secrets
from raycluster.spec.services import Gateway, Registry

COMMAND_TIMEOUT = 30.0
LARGEST = 64 * 1024
_OUTPUT = "its command's output"


def resolve_all(
    spec: ClusterSpec, environ: Mapping[str, str] = os.environ, *, dotenv: Path | None = None
) -> Secrets:
    """Return the values of all that the spec names by source. Raises SecretError."""
    found = Secrets(replicas=resolve(spec.secrets, environ, dotenv=dotenv))
    if spec.registry is not None:
        found = replace(found, registry=_login(spec.registry, environ, dotenv))
    if spec.gateway is None:
        return found
    found = replace(found, api_keys=_api_keys(spec.gateway, environ, dotenv))
    tls = spec.gateway.tls
    if tls is None or tls.cert is None or tls.key is None:
        return found
    certificate, key = _certificate(tls.cert, tls.key, environ, dotenv)
    return replace(found, certificate=certificate, certificate_key=key)


def _login(registry: Registry, environ: Mapping[str, str], dotenv: Path | None) -> RegistryLogin:
    sources = {"username": registry.username, "password": registry.password}
    named = {f"registry.{name}": source for name, source in sources.items()}
    username, password = resolve(named, environ, dotenv=dotenv).values()
    return RegistryLogin(registry.server, username, password)


def _api_keys(
    gateway: Gateway, environ: Mapping[str, str], dotenv: Path | None
) -> dict[str, Secret]:
    keys = resolve(gateway.sources, environ, dotenv=dotenv)
    seen: dict[Secret, str] = {}
    for owner, key in keys.items():
        where = f"gateway.{'keys' if owner in gateway.keys else 'api_keys'}.{owner}"
        if not re.fullmatch(r"[!-~]{16,512}", key.reveal()):
            raise SecretError(
                "16 to 512 letters, digits and ASCII symbols without spaces are expected",
                where=where,
                hint="generate one with: openssl rand -hex 24",
            )
        if key in seen:
            raise SecretError(f"it is the same key as {seen[key]}'s", where=where)
        seen[key] = owner
    return keys


def _certificate(
    cert: str, source: str, environ: Mapping[str, str], dotenv: Path | None
) -> tuple[bytes, Secret]:
    try:
        certificate = _read(cert)
    except SecretError as error:
        raise SecretError(error.what, where="gateway.tls") from error
    key = resolve({"gateway.tls.key": source}, environ, dotenv=dotenv)["gateway.tls.key"]
    return certificate, key


def resolve(
    sources: Mapping[str, str],
    environ: Mapping[str, str] = os.environ,
    *,
    dotenv: Path | None = None,
    timeout: float = COMMAND_TIMEOUT,
) -> dict[str, Secret]:
    """Return the value of each key's `env:NAME`, `file:PATH` or `cmd:COMMAND`.

    Variables are looked for in `environ`, then in the file `dotenv`; commands are run here by
    /bin/sh within `timeout` seconds. One line end at the end is dropped. Raises SecretError,
    which never shows a value.
    """
    variables = {**(read_dotenv(dotenv) if dotenv else {}), **environ}
    readers: dict[str, Callable[[str], str]] = {
        "env": lambda name: _variable(name, variables),
        "file": _file,
        "cmd": lambda command: _command(command, environ, timeout),
    }
    found = {}
    for key, source in sources.items():
        kind, _, rest = source.partition(":")
        if kind not in readers:
            raise SecretError("env:, file: or cmd: is expected", where=f"secret {key}")
        try:
            found[key] = Secret(_checked(readers[kind](rest)))
        except SecretError as error:
            raise SecretError(error.what, where=f"secret {key}", hint=error.hint) from error
    return found


def _checked(value: str) -> str:
    value = value.removesuffix("\n").removesuffix("\r")
    if not value.strip():
        raise SecretError("its source is empty")
    if "\0" in value:
        raise SecretError("its source contains a null byte, which a variable cannot contain")
    try:
        value.encode()
    except UnicodeEncodeError:  # of a variable; without `from`: the error holds the value
        raise SecretError("its source is not UTF-8") from None
    return value


def bearer(where: str, secret: Secret) -> dict[str, str]:
    """Return the header that carries a secret. Raises SecretError, which never shows it."""
    if not secret.fits_header:
        raise SecretError(
            "its value cannot be used in a header: ASCII on one line, without spaces, and at most "
            "8192 characters are expected",
            where=f"secret {where}",
            hint="check its source for a line break or another character besides the key",
        )
    return {"authorization": f"Bearer {secret.reveal()}"}


def _variable(name: str, variables: Mapping[str, str]) -> str:
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
        raise SecretError(
            "the text after `env:` is not a valid variable name"
        )  # it may be the value
    if not variables.get(name):
        state = "empty" if name in variables else "not set"
        raise SecretError(f"the variable {name} is {state}", hint=f"export {name}=...")
    return variables[name]


def _file(path: str) -> str:
    return _text(_read(path), path)


def _read(path: str) -> bytes:
    try:
        with Path(path).expanduser().open("rb") as file:
            return _bounded(file.read(LARGEST + 1), path)
    except OSError as error:
        raise SecretError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SecretError("that is not a valid file name") from error
    except RuntimeError as error:  # expanduser: no such user
        raise SecretError(f"{path} cannot be read: no home folder for it") from error


def _command(command: str, environ: Mapping[str, str], timeout: float) -> str:
    try:
        process = subprocess.Popen(
            ("/bin/sh", "-c", command),
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise SecretError("its command cannot be run") from error
    with process:
        try:
            output = _output(process, timeout)
        except BaseException as error:
            # the whole group: what the shell started holds the pipe open as well
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise SecretError(f"its command took longer than {timeout:g} s") from None
            raise
    if process.returncode:
        raise SecretError(
            f"its command exited with status {process.returncode}",
            hint="run it in a shell to see its output",
        )
    return _text(output, _OUTPUT)


def _output(process: subprocess.Popen[bytes], timeout: float) -> bytes:
    """Return what a command writes until it ends; raises what `communicate` does."""
    deadline, output = time.monotonic() + timeout, b""
    assert process.stdout is not None  # noqa: S101  # a pipe
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            if not (chunk := os.read(process.stdout.fileno(), LARGEST)):
                process.wait(max(0.0, deadline - time.monotonic()))
                return output
            output = _bounded(output + chunk, _OUTPUT)
    raise subprocess.TimeoutExpired(process.args, timeout)


def _bounded(raw: bytes, place: str) -> bytes:
    if len(raw) > LARGEST:
        raise SecretError(f"{place} is larger than {LARGEST // 1024} KiB")
    return raw


def _text(raw: bytes, place: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        # without `from`: the error holds the value
        raise SecretError(f"{place} is not UTF-8") from None
