from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycluster.serve.engines.generation import Ask
from raycluster.serve.engines.requests import (
    WITHOUT_EFFECT,
    Asked,
    BadRequestError,
    Body,
    ChatBody,
    CompletionBody,
    Reader,
)
from raycluster.serve.engines.sampling import Sampling

END = 49


class Words:
    """A tokenizer: one token per word, of which each letter counts one."""

    def __init__(self) -> None:
        self.read = 0

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        self.read += len(text)
        return {"input_ids": [min(len(word), END) for word in text.split()]}

    def apply_chat_template(self, messages: list[dict[str, Any]], **options: Any) -> str:
        if messages[0]["role"] == "robot":
            raise ValueError("roles must alternate")
        return " ".join([*(str(m["content"]) for m in messages), *options.get("extra", [])])


READER = Reader(Words(), context=10, vocabulary=50, longest=20, ends=(END,))
COMPLETION: dict[str, Any] = {"prompt": "a"}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "one two three"}]}
BOTH = pytest.mark.parametrize("chat", [False, True], ids=["completion", "chat"])


def ask(body: Any, *, chat: bool = False, reader: Reader = READER) -> Asked:
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    return reader.chat(sent) if chat else reader.completion(sent)


def one(body: dict[str, Any], *, chat: bool = False) -> Ask:
    """Return the only thing that is asked for."""
    (asked,) = ask({**(CHAT if chat else COMPLETION), **body}, chat=chat).asks
    return asked


def refused(body: Any, *, chat: bool = False, reader: Reader = READER) -> BadRequestError:
    with pytest.raises(BadRequestError) as error:
        ask(body, chat=chat, reader=reader)
    assert error.value.status == 400
    assert len(str(error.value)) < 500
    return error.value


@BOTH
@pytest.mark.parametrize(
    ("body", "changed"),
    [
        ({}, {}),
        ({"max_tokens": 3}, {"max_tokens": 3}),
        ({"max_tokens": "3"}, {"max_tokens": 3}),
        ({"max_tokens": 3.0}, {"max_tokens": 3}),
        ({"max_tokens": None}, {}),
        ({"min_tokens": 2}, {"min_tokens": 2}),
        ({"stop": "x"}, {"stop": ("x",)}),
        ({"stop": ["x", "yy"]}, {"stop": ("x", "yy")}),
        ({"stop_token_ids": [7, 7]}, {"stop_ids": (7,)}),
        ({"include_stop_str_in_output": True}, {"include_stop": True}),
        ({"ignore_eos": True}, {"ends": ()}),
        ({"skip_special_tokens": False}, {"skip_special": False}),
        ({"temperature": 0.5}, {"sampling": Sampling(temperature=0.5)}),
        ({"top_p": 0.5, "top_k": 3}, {"sampling": Sampling(top_p=0.5, top_k=3)}),
        ({"top_k": -1}, {"sampling": Sampling(top_k=-1)}),
        ({"min_p": 0.5}, {"sampling": Sampling(min_p=0.5)}),
        ({"repetition_penalty": 1.5}, {"sampling": Sampling(repetition_penalty=1.5)}),
        ({"frequency_penalty": -2}, {"sampling": Sampling(frequency_penalty=-2)}),
        ({"presence_penalty": 2}, {"sampling": Sampling(presence_penalty=2)}),
        ({"seed": 2**63 - 1}, {"sampling": Sampling(seed=2**63 - 1)}),
        ({"seed": -1}, {}),
        ({"logit_bias": {"7": 200}}, {"sampling": Sampling(bias={7: 100})}),
        ({"allowed_token_ids": [1, 2]}, {"sampling": Sampling(allowed=(1, 2))}),
        ({"bad_words": ["abc", "de f"]}, {"sampling": Sampling(bad_words=((3,), (2, 1)))}),
        ({"user": "me", "metadata": {}, "store": False, "service_tier": "auto"}, {}),
        ({"a_field_of_another_server": [{}]}, {}),
    ],
)
def test_what_is_honoured(chat: bool, body: dict[str, Any], changed: dict[str, Any]) -> None:
    usual = one({}, chat=chat)
    assert (usual.ends, usual.sampling) == ((END,), Sampling())
    assert one(body, chat=chat) == replace(usual, **changed)


@BOTH
@pytest.mark.parametrize("name", sorted(WITHOUT_EFFECT))
def test_what_there_is_not_is_refused_by_name_unless_it_asks_for_nothing(
    chat: bool, name: str
) -> None:
    for value in WITHOUT_EFFECT[name]:
        assert one({name: value}, chat=chat) == one({}, chat=chat)
    for value in (1, 2.5, "x", True, ["x"], {"type": "json_object"}):
        if not any(type(value) is type(no) and value == no for no in WITHOUT_EFFECT[name]):
            error = refused({**(CHAT if chat else COMPLETION), name: value}, chat=chat)
            assert (error.param, name in str(error)) == (name, True)


def of(name: str, *values: Any) -> list[tuple[str, Any]]:
    return [(name, value) for value in values]


def bodies(name: str, *values: Any, **more: Any) -> list[dict[str, Any]]:
    return [{**more, name: value} for value in values]


def with_param(name: str, *values: Any) -> list[tuple[dict[str, Any], str]]:
    return [({name: value}, name) for value in values]


def of_user(*contents: Any) -> list[list[dict[str, Any]]]:
    return [[{"role": "user", "content": content}] for content in contents]


WRONG: list[tuple[str, Any]] = [
    *of("max_tokens", 0, -1, 11, 2**64, 1e308, 1.5, "many", [], {}),
    *of("max_tokens", float("inf"), float("nan")),
    *of("min_tokens", -1, 10, 2**70, None, "x", float("inf")),
    *of("n", 0, -1, 2**40, "x", [1]),
    *of("temperature", -0.1, 2.1, float("nan"), float("inf"), "warm", []),
    *of("top_p", 0, -1, 1.1, float("nan"), "x"),
    *of("top_k", -2, 0.5, "x", float("inf")),
    *of("min_p", -0.1, 1.1, float("nan")),
    *of("repetition_penalty", 0, -1, float("inf"), float("nan"), "x"),
    *of("frequency_penalty", -2.1, 2.1, float("nan"), "x", []),
    *of("presence_penalty", -2.1, 2.1, float("-inf")),
    *of("seed", 2**63, 2**64, -(2**63) - 1, 0.5, "x", float("inf")),
    *of("stop", "", [""], [1], {}, 5, ["a"] * 5, [["a"]]),
    *of("stop_token_ids", [-1], [50], [2**64], "x", ["x"], 5, [[1]]),
    *of("allowed_token_ids", [], [-1], [50], "x", 5),
    *of("logit_bias", {"50": 1}, {"-1": 1}, {"x": 1}, {"1": "x"}, [1], 5),
    ("logit_bias", {"1": float("nan")}),
    *of("bad_words", [""], [" "], "x", [1], 5),
    *of("stream", "x", 2, [], {}),
    *of("stream_options", "x", 1, [], {"include_usage": "x"}),
    ("stream_options", {"include_usage": True}),
    *of("ignore_eos", "x", 2, [], None),
    *of("model", 1, [], {}),
    *of("request_id", 1, "", "a\nb", "x" * 257),
]


@BOTH
@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda value: str(value)[:30])
def test_a_wrong_value_is_refused_by_name(chat: bool, name: str, value: Any) -> None:
    assert refused({**(CHAT if chat else COMPLETION), name: value}, chat=chat).param == name


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        *[
            (body, "prompt")
            for body in bodies("prompt", None, [], 5, {}, [[]], [True], [1.5], [""])
        ],
        *[(body, "prompt") for body in bodies("prompt", ["a", 1], [1, "a"], [[1], "a"], [["a"]])],
        *[(body, "prompt") for body in bodies("prompt", [-1], [50], [2**64], [[1], [50]], "")],
        ({"prompt": "a " * 10}, None),
        ({"prompt": ["a", "a " * 10]}, None),
        ({"prompt": [1] * 10}, None),
        ({"prompt": ["a"] * 600, "n": 2}, "n"),
        ({"prompt": "a", "n": 2, "temperature": 0}, "n"),
        ({"prompt": "a b c d e f", "max_tokens": 9, "min_tokens": 5}, "min_tokens"),
    ],
)
def test_a_wrong_prompt(body: dict[str, Any], param: str | None) -> None:
    assert refused(body).param == param


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[1]", b"5", b"null", b'"x"', b"{", b"\xff\xfe", b'{"prompt": "a"}}', b"[" * 10**5),
        *(b'{"prompt": "\\ud800"}', b'{"prompt": "a", "user": {"x": "\\udfff"}}'),
        b'{"prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}",
        b'{"prompt": "a", "x": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
    ids=lambda body: repr(body[:20]),
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    refused(body)
    refused(body.replace(b'"prompt": "a"', b'"messages": [{"role": "user"}]'), chat=True)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a bb", [[1, 2]]),
        (["a bb"], [[1, 2]]),
        (["a", "bb ccc"], [[1], [2, 3]]),
        ([7, 8], [[7, 8]]),
        ([[7], [8, 9]], [[7], [8, 9]]),
    ],
)
def test_prompts(prompt: object, expected: list[list[int]]) -> None:
    asked = ask({"prompt": prompt})
    assert [one.prompt for one in asked.asks] == expected
    assert asked.prompt_tokens == sum(map(len, expected))


def test_choices_have_seeds_of_their_own() -> None:
    asked = ask({"prompt": ["a", "b c"], "n": 2, "seed": 5})
    assert [(len(one.prompt), one.sampling.seed) for one in asked.asks] == [
        *((1, 5), (1, 6), (2, 5), (2, 6))
    ]
    assert asked.prompt_tokens == 3


def test_how_to_answer() -> None:
    asked = ask(
        {**COMPLETION, "stream": True, "stream_options": {"include_usage": True}, "model": "m"}
    )
    assert (asked.stream, asked.include_usage, asked.continuous_usage) == (True, True, False)
    assert asked.model == "m"
    told = {"include_usage": True, "continuous_usage_stats": True}
    assert ask({**COMPLETION, "stream": True, "stream_options": told}).continuous_usage
    assert not ask({**COMPLETION, "stream_options": {}}).stream


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({}, 7),
        ({"max_tokens": 2}, 2),
        ({"max_completion_tokens": 3, "max_tokens": 2}, 3),
        ({"max_tokens": 9}, 7),
    ],
)
def test_chat_length(body: dict[str, object], tokens: int) -> None:
    assert one(body, chat=True).max_tokens == tokens


def test_the_model_s_own_parameters_are_the_usual_ones() -> None:
    reader = replace(READER, defaults={"temperature": 0.6, "top_k": 20})
    (asked,) = ask({**COMPLETION, "top_k": 5}, reader=reader).asks
    assert asked.sampling == Sampling(temperature=0.6, top_k=5)


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "a b"}, {"type": "text", "text": " c"}]
    body = {"messages": [{"role": "user", "content": parts}]}
    assert ask(body, chat=True).asks[0].prompt == [1, 1, 1]


def test_a_template_has_arguments_of_its_own() -> None:
    body = {**CHAT, "chat_template_kwargs": {"extra": ["four"]}}
    assert ask(body, chat=True).asks[0].prompt == [3, 3, 5, 4]


@pytest.mark.parametrize(
    "body",
    [
        *bodies("messages", None, [], "hi", 5, {}, ["a"], [None]),
        *bodies("messages", [{}], [{"content": "a"}], [{"role": 5}]),
        *[{"messages": each} for each in of_user(5, {}, [1], ["a"])],
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
        {"messages": [{"role": "robot", "content": "a"}]},
        {"messages": [{"role": "user", "content": "a " * 10}]},
        {**CHAT, "continue_final_message": True},
        *bodies("chat_template_kwargs", {"tokenize": True}, 5, [], "x", **CHAT),
        *bodies("reasoning_effort", "huge", 5, **CHAT),
        {**CHAT, "documents": [5]},
    ],
    ids=lambda body: json.dumps(body)[:60],
)
def test_bad_messages(body: dict[str, Any]) -> None:
    refused(body, chat=True)


@BOTH
def test_a_text_that_is_far_too_long_is_not_made_into_tokens(chat: bool) -> None:
    words = Words()
    reader = replace(READER, tokenizer=words)
    text = "a " * 10_000_000
    body = {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
    assert "maximum context length is 10 tokens" in str(refused(body, chat=chat, reader=reader))
    assert words.read == 0


def test_a_text_of_few_long_tokens_is_counted_by_its_beginning() -> None:
    words = Words()
    reader = replace(READER, tokenizer=words, context=100)
    refused({"prompt": "a " * 1000}, reader=reader)
    assert words.read == 800
    ask({"prompt": f"{'a' * 20} " * 90}, reader=reader)


def test_the_largest_body_follows_from_the_context() -> None:
    assert READER.largest_body < 2 << 20
    assert replace(READER, context=10**6).largest_body == 32 << 20


FIELDS = sorted({*CompletionBody.model_fields, *ChatBody.model_fields, *WITHOUT_EFFECT})
LEAVES = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters(), max_size=5)),
    *(st.sampled_from([2**63, 2**64, -(2**63), 10**400, 1e-320, -0.0]), st.just("\ud800")),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4), st.booleans())
def test_whatever_is_sent_is_understood_or_refused(body: dict[str, Any], chat: bool) -> None:
    sent = json.dumps({**(CHAT if chat else COMPLETION), **body}).encode()
    try:
        asked = ask(sent, chat=chat)
    except BadRequestError as error:
        assert re.fullmatch(r"[^\ud800-\udfff]+", str(error))
    else:
        assert all(0 < one.max_tokens < 10 for one in asked.asks)


def test_no_field_is_in_both_lists() -> None:
    assert not WITHOUT_EFFECT.keys() & {*Body.model_fields, *ChatBody.model_fields}
