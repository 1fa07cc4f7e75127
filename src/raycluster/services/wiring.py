"""What processes are made from besides the spec: addresses, the token, the values of secrets."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

from raycluster.core.interfaces import Secret
from raycluster.spec.secret_values import Secrets


@dataclass(frozen=True)
class Wiring:
    """What the spec does not hold: the nodes' addresses by host name, the token, the secrets.

    `apart` puts API keys into a file of their own, for somebody who fills it in.
    """

    addresses: Mapping[str, str]
    token: Secret
    secrets: Secrets = field(default_factory=Secrets)
    apart: bool = False

    @property
    def token_id(self) -> str:
        """Tells tokens apart without giving one away: the token has 256 random bits."""
        return hashlib.sha256(self.token.reveal().encode()).hexdigest()[:8]

    def seal(self, files: Mapping[str, bytes]) -> str:
        """Return twelve hexadecimal digits over files; keyed, so that no content leaks."""
        digest = hmac.new(self.token.reveal().encode(), digestmod=hashlib.sha256)
        for path, content in sorted(files.items()):
            digest.update(f"{path}\0{len(content)}\0".encode() + content)
        return digest.hexdigest()[:12]
