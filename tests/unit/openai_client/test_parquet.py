"""Parquet without pyarrow; with it: `tests/node/test_parquet.py`."""

from __future__ import annotations

import io
import sys

import pytest

from raycluster.core.errors import UsageError
from raycluster.openai_client.files import PromptFile


@pytest.mark.parametrize(("content", "name"), [(b"PAR1\x15\x04", ""), (b"x", "a.parquet.gz")])
def test_without_pyarrow_it_is_said_how_to_install_it(
    content: bytes, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError) as caught:
        PromptFile(lambda: io.BytesIO(content), where="here", name=name)
    assert "pyarrow is not installed" in caught.value.what
    assert "pip install 'raycluster[parquet]'" in str(caught.value.hint)
