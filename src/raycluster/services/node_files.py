"""The files that every node holds: token, secrets and the app's code."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from raycluster.core.interfaces import Secret
from raycluster.serve.settings import haproxy_of
from raycluster.services.data_path import HAPROXY, HAPROXY_FILE, HAPROXY_TOLD
from raycluster.services.ray_node import CODE_FOLDER, SECRETS_FILE, TOKEN_FILE


def code_files() -> dict[str, bytes]:
    """Return the part of this package that runs on the cluster, by path under the root."""
    package = resources.files("raycluster")
    files = dict(_walk(package / "serve", f"{CODE_FOLDER}/raycluster/serve"))
    files[f"{CODE_FOLDER}/raycluster/__init__.py"] = (package / "__init__.py").read_bytes()
    files[HAPROXY_FILE] = HAPROXY.encode()
    return files


def _walk(folder: Traversable, path: str) -> Iterator[tuple[str, bytes]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, f"{path}/{entry.name}")
        elif entry.name.endswith((".py", ".lua")):
            yield f"{path}/{entry.name}", entry.read_bytes()


def secret_files(token: Secret, secrets: Mapping[str, Secret]) -> dict[str, bytes]:
    """Return the token's and the secrets' files."""
    values = {name: secret.reveal() for name, secret in sorted(secrets.items())}
    return {
        TOKEN_FILE: token.reveal().encode(),
        SECRETS_FILE: json.dumps(values).encode(),
    }


def haproxy_file(*bodies: Mapping[str, Any]) -> dict[str, bytes]:
    """Return what HAProxy's program reads of a deployment, or of several, the last one first."""
    told: dict[str, dict[str, Any]] = {}
    for name, value in (pair for body in bodies for pair in haproxy_of(body).items()):
        told[name] = {**told.get(name, {}), **value}
    return {HAPROXY_TOLD: json.dumps(told).encode()}


def app_fingerprint(token: Secret, secrets: Mapping[str, Secret]) -> str:
    """Return twelve hexadecimal digits over code and secrets; keyed, so that no value leaks."""
    digest = hmac.new(token.reveal().encode(), digestmod=hashlib.sha256)
    for path, content in sorted({**code_files(), **secret_files(token, secrets)}.items()):
        digest.update(path.encode() + b"\0" + content + b"\0")
    return digest.hexdigest()[:12]
