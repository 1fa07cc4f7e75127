"""From a file and the environment to a ClusterSpec, or to one error that says everything wrong."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raycluster.core.errors import SpecError
from raycluster.spec.explain import explain
from raycluster.spec.layers import Layers, read_dotenv
from raycluster.spec.models import ClusterSpec
from raycluster.spec.types import shown

SPEC_VARIABLE = "RAYCLUSTER_SPEC"
DEFAULT_FILE = "cluster.toml"


def locate(given: Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the spec's path: the argument, `$RAYCLUSTER_SPEC`, or `./cluster.toml`."""
    return given or Path(environ.get(SPEC_VARIABLE) or DEFAULT_FILE)


def read_spec(
    path: Path, environ: Mapping[str, str] = os.environ, *, text: str | None = None
) -> ClusterSpec:
    """Read, override by `.env` beside the file and then by environment variables, and check.

    `text` is what the file would hold. Raises SpecError with every problem found, each with its
    line or variable.
    """
    text = _text(path) if text is None else text
    data = _parsed(path, text)
    _newer_schema(path, data)
    dotenv = {".env": read_dotenv(path.parent / ".env"), "environment": environ}
    layers = Layers(ClusterSpec, data, dotenv)
    layers.document = _anchored(layers.document, path.parent.resolve())
    problems = [f"{layer}: {problem}" for layer, problem in layers.problems]
    try:
        spec = ClusterSpec(_build_sources=((layers,), {}))  # type: ignore[call-arg]
    except ValidationError as error:
        problems += explain(
            error,
            text=text,
            document=layers.document,
            model=ClusterSpec,
            origins=layers.origins,
        )
        raise _spec_error(path, problems) from error
    if problems:
        raise _spec_error(path, problems)
    return spec


def _spec_error(path: Path, problems: Sequence[str]) -> SpecError:
    if len(problems) > 1:
        return SpecError("\n  ".join([f"{len(problems)} problems", *problems]), where=str(path))
    layer, _, problem = problems[0].partition(": ")
    if layer in {".env", "environment"}:
        return SpecError(problem, where=layer)
    return SpecError(problems[0], where=str(path))


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"not valid TOML: {error}", where=str(path)) from error
    except ValueError as error:
        raise SpecError("a number has too many digits", where=str(path)) from error
    except RecursionError as error:
        raise SpecError("lists or tables are nested too deeply", where=str(path)) from error


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise SpecError(
            "no such file", where=str(path), hint="create one with: raycluster init"
        ) from error
    except IsADirectoryError as error:
        raise SpecError("is a folder; name the TOML file in it", where=str(path)) from error
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror}", where=str(path)) from error
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise SpecError(
            f"line {line} is not UTF-8", where=str(path), hint="save the file as UTF-8"
        ) from error


def _newer_schema(path: Path, data: Mapping[str, Any]) -> None:
    version = data.get("schema", 1)
    if isinstance(version, int) and not isinstance(version, bool) and version > 1:
        raise SpecError(
            f"schema {shown(version)} is newer than this program knows (1)",
            where=str(path),
            hint="install a newer raycluster",
        )


def _anchored(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make paths that begin with `./` or `../` relative to the spec's folder."""

    def anchor(table: object, key: str, kind: str = "") -> None:
        value = table.get(key) if isinstance(table, dict) else None
        relative = (f"{kind}./", f"{kind}../")
        if isinstance(table, dict) and isinstance(value, str) and value.startswith(relative):
            table[key] = kind + os.path.normpath(folder / value.removeprefix(kind))

    workers = data.get("workers")
    models = data.get("models")
    hosts = [data.get("head"), *(workers if isinstance(workers, list) else [])]
    for table in [data.get("ssh"), *hosts]:
        anchor(table, "identity_file")
        anchor(table, "known_hosts")
    for table in [data, *hosts]:
        anchor(table.get("runtime") if isinstance(table, dict) else None, "python")
    for table in models if isinstance(models, list) else []:
        anchor(table, "source")
        anchor(table, "environment")
    gateway = data.get("gateway")
    gateway = gateway if isinstance(gateway, dict) else {}
    anchor(gateway.get("tls"), "cert")
    anchor(gateway.get("tls"), "key", "file:")
    keys = gateway.get("keys")
    for table in keys.values() if isinstance(keys, dict) else ():
        anchor(table, "key", "file:")
    for table in [data.get("secrets"), gateway.get("api_keys")]:
        for name in table if isinstance(table, dict) else {}:
            anchor(table, name, "file:")
    return data
