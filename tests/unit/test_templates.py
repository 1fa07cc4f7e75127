"""Templates show nothing that is not escaped."""

from __future__ import annotations

import pytest

from raycluster import templates


def test_a_value_without_a_filter_is_refused() -> None:
    environment = templates._environment()
    with pytest.raises(TypeError, match="not escaped"):
        environment.from_string("{{ value }}").render(value="plain")
    assert environment.from_string("{{ value | number }}").render(value=1) == "1"


@pytest.mark.parametrize("value", ["", "a b", "a;", "a\n", '"', "{", "$a", "é"])
def test_a_word_is_plain(value: str) -> None:
    with pytest.raises(ValueError, match="plain word"):
        templates.word(value)


def test_templates_lie_in_the_checkout_or_the_package() -> None:
    names = {entry.name for entry in templates.folder().iterdir()}
    assert {"nginx", "prometheus"} <= names
