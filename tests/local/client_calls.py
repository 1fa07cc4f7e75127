"""Clients of other makers, as their users set them up; run by the Python that has them.

    python tests/local/client_calls.py URL KEY MODEL

URL is an API's address without `/v1`. Prints a line of JSON for each client: its name, and what
went wrong, if anything.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false"}
SAY: Any = [{"role": "user", "content": "Say hi"}]
MOST = 8


def openai_client(url: str, key: str, model: str) -> None:
    """Chat and responses, whole and streamed, and a wrong key."""
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key)
    asked: Any = {"model": model, "messages": SAY, "max_tokens": MOST}
    whole = client.chat.completions.create(**asked)
    assert whole.usage is not None
    assert 0 < whole.usage.completion_tokens <= MOST
    parts = [*client.chat.completions.create(**asked, stream=True)]
    assert parts[-1].choices[0].finish_reason in ("stop", "length")
    said = client.responses.create(model=model, input="Say hi", max_output_tokens=MOST)
    assert said.usage is not None
    with client.responses.stream(model=model, input="Say hi", max_output_tokens=MOST) as events:
        kinds = [event.type for event in events]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed" or "incomplete" in kinds[-1]
    try:
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong").models.list()
    except openai.AuthenticationError as error:
        assert error.code == "invalid_api_key"
    else:
        raise AssertionError("a wrong key is let in")


def anthropic_client(url: str, key: str, model: str) -> None:
    """Messages, whole, streamed and counted, and a wrong key."""
    import anthropic

    client = anthropic.Anthropic(base_url=url, api_key=key)
    asked: Any = {"model": model, "messages": SAY, "max_tokens": MOST}
    whole = client.messages.create(**asked)
    assert 0 < whole.usage.output_tokens <= MOST
    with client.messages.stream(**asked) as stream:
        assert stream.get_final_message().stop_reason in ("end_turn", "max_tokens")
    assert client.messages.count_tokens(model=model, messages=SAY).input_tokens > 0
    assert anthropic.Anthropic(base_url=url, auth_token=key).messages.create(**asked).usage
    try:
        anthropic.Anthropic(base_url=url, api_key="wrong").messages.create(**asked)
    except anthropic.AuthenticationError as error:
        assert error.body["error"]["type"] == "authentication_error"
    else:
        raise AssertionError("a wrong key is let in")


def litellm_sdk(url: str, key: str, model: str) -> None:
    """Both of its ways."""
    import litellm

    for kind, base in (("openai", f"{url}/v1"), ("anthropic", url)):
        asked: Any = {"model": f"{kind}/{model}", "api_base": base, "api_key": key}
        asked |= {"messages": SAY, "max_tokens": MOST}
        assert 0 < litellm.completion(**asked).usage.completion_tokens <= MOST
        assert [*litellm.completion(**asked, stream=True)]


def langchain(url: str, key: str, model: str) -> None:
    """Whole and streamed."""
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(base_url=f"{url}/v1", api_key=key, model=model, max_tokens=MOST)
    assert chat.invoke("Say hi").usage_metadata["output_tokens"] <= MOST
    assert [*chat.stream("Say hi")]


def llama_index(url: str, key: str, model: str) -> None:
    """Whole and streamed."""
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    chat = OpenAILike(
        model=model, api_base=f"{url}/v1", api_key=key, is_chat_model=True, max_tokens=MOST
    )
    said = [ChatMessage(role="user", content="Say hi")]
    assert chat.chat(said).raw.usage.completion_tokens <= MOST
    assert [*chat.stream_chat(said)]


CLIENTS: tuple[Callable[[str, str, str], None], ...] = (
    *(openai_client, anthropic_client, litellm_sdk, langchain, llama_index),
)


def main() -> None:
    url, key, model = sys.argv[1:]
    for client in CLIENTS:
        problem = ""
        try:
            with redirect_stdout(sys.stderr):  # some of them say things
                client(url, key, model)
        except Exception:
            problem = traceback.format_exc()
        print(json.dumps([client.__name__, problem]), flush=True)


if __name__ == "__main__":
    main()
