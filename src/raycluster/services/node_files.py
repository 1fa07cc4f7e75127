"""The files that every node holds: token, secrets and the app's code."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from raycluster.core.interfaces import Secret
from raycluster.core.templates import python_files
from raycluster.serve.settings import haproxy_of
from raycluster.services.data_path import HAPROXY, HAPROXY_FILE, HAPROXY_TOLD
from raycluster.services.ray_node import CODE_FOLDER, SECRETS_FILE, TOKEN_FILE


def code_files() -> dict[str, bytes]:
    """Return the part of this package that runs on the cluster, by path under the root."""
    parts = (pair for part in ("serve", "__init__.py") for pair in python_files(part))
    return {
        **{f"{CODE_FOLDER}/{path}": content for path, content in parts},
        HAPROXY_FILE: HAPROXY.encode(),
    }


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
