from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from raycluster.core.errors import SpecError
from raycluster.spec import ClusterSpec, read_spec

Read = Callable[..., ClusterSpec]
Refusal = Callable[..., str]

MINIMAL = '[cluster]\nname = "q"\n[head]\nhost = "10.0.0.1"\n'


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Read text or bytes as a spec, with only the given environment and `.env`."""

    def read(
        content: str | bytes, environ: Mapping[str, str] | None = None, dotenv: str = ""
    ) -> ClusterSpec:
        path = tmp_path / "cluster.toml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        if dotenv:
            (tmp_path / ".env").write_text(dotenv, "utf-8")
        return read_spec(path, environ or {})

    return read


@pytest.fixture
def refusal(read: Read, tmp_path: Path) -> Refusal:
    """Read what must be refused and return the error's text, the folder cut off."""

    def refusal(*args: object, **kwargs: object) -> str:
        with pytest.raises(SpecError) as caught:
            read(*args, **kwargs)
        return str(caught.value).replace(f"{tmp_path}/", "")

    return refusal
