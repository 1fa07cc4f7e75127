"""Whatever stands in a file or a variable gives a spec or one SpecError."""

from __future__ import annotations

import string
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from raycluster.core.errors import SpecError
from raycluster.spec import ClusterSpec, read_spec, shape
from raycluster.spec.example import toml_value
from tests.unit.spec.conftest import MINIMAL


def outcome(content: bytes, environ: Mapping[str, str]) -> ClusterSpec | SpecError:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "cluster.toml")
        path.write_bytes(content)
        try:
            return read_spec(path, environ)
        except SpecError as error:
            assert str(error).strip()
            return error


@given(st.binary(max_size=300))
def test_any_bytes(content: bytes) -> None:
    outcome(content, {})


@given(st.text(alphabet="[]{}=.,#\"'\\\n ab1-", max_size=60))
def test_any_text_after_a_good_beginning(text: str) -> None:
    outcome((MINIMAL + text).encode(), {})


KEYS = st.sampled_from(
    sorted({
        "schema", "cluster", "name", "head", "host", "workers", "runtime", "env", "models", "ports",
        "replicas", "min", "max", "engine_args", "gpus", "secrets", "port", "kind", "volumes",
        "tensor_parallel_size", "api", "private_address", "proxy_jump", "number", "table", "int",
        *shape.keys(ClusterSpec),
    })
) | st.text(string.printable, max_size=5)  # fmt: skip
SCALARS = (
    st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from(["q", "10.0.0.1", "all", "env:X", "::1", "a:/b", "-x", "HUGE"])
)  # fmt: skip
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=15,
)


@given(st.dictionaries(KEYS, TREES, max_size=5), TREES, TREES)
@settings(max_examples=200)
def test_any_document(document: dict[str, Any], head: Any, models: Any) -> None:
    document = {"cluster": {"name": "q"}, **document, "head": head, "models": models}
    text = "".join(f"{toml_value(key)} = {toml_value(value)}\n" for key, value in document.items())
    outcome(text.replace('"HUGE"', "0x" + "f" * 5000).encode(), {})


NAMES = st.lists(
    st.sampled_from(["HEAD", "PORT", "WORKERS", "0", "1", "MODELS", "ENV", "RUNTIME", "SECRETS",
                     "REPLICAS", "MIN", "ENGINE_ARGS", "SCHEMA", "x", ""]),
    max_size=4,
).map("__".join)  # fmt: skip
TEXTS = st.text(st.characters(exclude_characters="\0"), max_size=20) | st.sampled_from(
    ["[]", "{}", "[{}]", '{"host": 1}', "null", "[" * 5000, "9" * 5000, "1e999", "\udcff"]
)


@given(st.dictionaries(NAMES.map("RAYCLUSTER__".__add__), TEXTS, max_size=4))
@settings(max_examples=200)
@example({"RAYCLUSTER__": "x"})
def test_any_variables(environ: dict[str, str]) -> None:
    outcome((MINIMAL + '[[models]]\nname = "m"\n').encode(), environ)
