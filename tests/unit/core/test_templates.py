"""Templates show nothing that is not escaped."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycluster.core import templates


def test_a_value_without_a_filter_is_refused() -> None:
    environment = templates._environment()
    with pytest.raises(TypeError, match="not escaped"):
        environment.from_string("{{ value }}").render(value="plain")
    assert environment.from_string("{{ value | number }}").render(value=1) == "1"


@pytest.mark.parametrize("value", ["", "a b", "a;", "a\n", '"', "{", "$a", "é"])
def test_a_word_is_plain(value: str) -> None:
    with pytest.raises(ValueError, match="plain word"):
        templates.word(value)


def test_text_ends_no_element_and_no_attribute() -> None:
    assert templates.text("<a href='x'>\"&\ud800") == "&lt;a href=&#x27;x&#x27;&gt;&quot;&amp;?"
    assert templates.text(1.5) == "1.5"


def test_data_in_a_script_is_json_that_does_not_end_it() -> None:
    value = {"a": "</script><!--&", "b": [1, None]}
    written = templates.data(value)
    assert not set("<>&") & set(written)
    assert json.loads(written) == value
    with pytest.raises(ValueError, match="JSON compliant"):
        templates.data(float("nan"))


@pytest.mark.parametrize("script", ["x = '</ScRipt >'", "<!-- x"])
def test_a_program_that_ends_its_element_is_refused(script: str) -> None:
    assert templates.code("1 < 2 && 3 > 2") == "1 < 2 && 3 > 2"
    with pytest.raises(ValueError, match="its own element"):
        templates.code(script)


def test_templates_lie_in_the_checkout_or_the_package() -> None:
    names = {entry.name for entry in templates.folder().iterdir()}
    assert {"bench", "nginx", "prometheus"} <= names


@given(st.integers(-(10**11), 10**12), st.integers(0, 10**10))
def test_a_second_is_a_pattern_for_all_from_it_on(first: int, more: int) -> None:
    pattern = re.compile(f"^(?:{templates.since(first)})\\.")
    for second in {first - 1, first, first + 1, first + more, first - more}:
        if second >= 10**9:  # as nginx has written them since 2001
            assert bool(pattern.match(f"{second}.000")) == (second >= first)


@pytest.mark.parametrize("value", ["a'b", "a\\b", "$a"])
def test_json_for_nginx_has_nothing_that_it_would_read(value: str) -> None:
    with pytest.raises(ValueError, match="cannot stand"):
        templates.quoted({"a": value})
    assert templates.quoted({"a": "b;{"}) == """'{"a":"b;{"}'"""


@pytest.mark.parametrize("names", [[], ["a b"], ['"'], ["$a"], ["a;"]])
def test_names_of_models_are_plain(names: list[str]) -> None:
    assert templates.names(["a", "org/b@1+x"]) == '"a,org/b@1+x"'
    with pytest.raises(ValueError, match="names of models"):
        templates.names(names)
