from __future__ import annotations

from typing import Any

import pytest

from raycluster.serve.engines.requests import BadRequestError, Reader


class Words:
    """A tokenizer: one token per word."""

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [len(word) for word in text.split()]}

    def apply_chat_template(self, messages: list[dict[str, Any]], **_: object) -> str:
        if messages[0]["role"] == "robot":
            raise ValueError("roles must alternate")
        return " ".join(str(m["content"]) for m in messages)


READER = Reader(Words(), context=10)
CHAT = {"messages": [{"role": "user", "content": "one two three"}]}


def test_a_completion() -> None:
    asked = READER.completion(
        {
            "prompt": "a bb",
            "max_tokens": 3,
            "temperature": 0,
            "stop": "x",
            "stream": True,
            "stream_options": {"include_usage": True},
            "seed": 1,
        }
    )
    assert (asked.ask.prompt, asked.ask.max_tokens, asked.ask.stop) == ([1, 2], 3, ("x",))
    assert asked.ask.options == {
        "do_sample": False,
        "temperature": None,
        "top_p": None,
        "top_k": None,
    }
    assert asked.stream
    assert asked.include_usage


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({}, 7),
        ({"max_tokens": 2}, 2),
        ({"max_completion_tokens": 3, "max_tokens": 2}, 3),
        ({"max_tokens": 99}, 7),
    ],
)
def test_chat_length(body: dict[str, object], tokens: int) -> None:
    assert READER.chat({**CHAT, **body}).ask.max_tokens == tokens


def test_sampling_options_have_transformers_names() -> None:
    options = READER.completion(
        {"prompt": "a", "temperature": 0.5, "top_p": 0.9, "max_tokens": 4, "ignore_eos": True}
    ).ask.options
    assert options == {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "min_new_tokens": 4}


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "a b"}, {"type": "text", "text": " c"}]
    assert READER.chat({"messages": [{"role": "user", "content": parts}]}).ask.prompt == [1, 1, 1]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": ""}, None),
        ({"prompt": "a " * 10}, None),
        ({"prompt": "a", "n": 2}, "n"),
        ({"prompt": "a", "logprobs": 1}, "logprobs"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "max_tokens": "5"}, "max_tokens"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens"),
        ({"prompt": "a", "temperature": 3}, "temperature"),
        ({"prompt": "a", "stop": [1]}, "stop"),
    ],
)
def test_a_bad_completion_names_what_is_bad(body: dict[str, object], param: str | None) -> None:
    with pytest.raises(BadRequestError) as refused:
        READER.completion(body)
    assert (refused.value.param, refused.value.status) == (param, 400)


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        "hi",
        [{"content": "a"}],
        ["a"],
        [{"role": "robot", "content": "a"}],
        [{"role": "user", "content": [{"type": "image_url"}]}],
    ],
)
def test_bad_messages(messages: object) -> None:
    with pytest.raises(BadRequestError):
        READER.chat({"messages": messages})
