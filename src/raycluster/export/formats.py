"""The formats of an export: this is the list of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from raycluster.export.compose import compose
from raycluster.export.design import Design
from raycluster.export.kuberay import kuberay
from raycluster.export.systemd import systemd
from raycluster.export.tree import Tree

FORMATS: Mapping[str, Callable[[Design], Tree]] = {
    "compose": compose,
    "systemd": systemd,
    "kuberay": kuberay,
}
