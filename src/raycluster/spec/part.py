"""What all sections have in common."""

from __future__ import annotations

from pydantic import (
    BaseModel,
    ConfigDict,
)


class Part(BaseModel):
    """What every table is: frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
