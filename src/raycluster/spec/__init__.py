"""The spec of a cluster: models, reading, explaining what is wrong."""

from raycluster.spec.models import ClusterSpec, Model, ResolvedHost
from raycluster.spec.read import locate, read_spec

__all__ = ["ClusterSpec", "Model", "ResolvedHost", "locate", "read_spec"]
