"""Which of vLLM's parsers reads the calls of tools of a model, for who asked without one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, MutableMapping
from contextlib import suppress
from typing import Any

FLAG = "--tool-call-parser"

PARSERS = {
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next"), "hermes"),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"), "hermes"),
    **dict.fromkeys(("mistral", "mistral3", "ministral3", "mixtral", "pixtral"), "mistral"),
    **dict.fromkeys(("granite", "granitemoe"), "granite"),
    **dict.fromkeys(("ernie4_5", "ernie4_5_moe"), "ernie45"),
    **dict.fromkeys(("hunyuan_v1_moe", "hunyuan_v1_dense"), "hunyuan_a13b"),
    "apertus": "apertus",
    "cohere2": "cohere_command3",
    "deepseek_v3": "deepseek_v3",
    "deepseek_v32": "deepseek_v32",
    "gemma4": "gemma4",
    "glm4_moe": "glm45",
    "gpt_oss": "openai",
    "granitemoehybrid": "granite4",
    "internlm2": "internlm",
    "jamba": "jamba",
    "kimi_k2": "kimi_k2",
    "lfm2": "lfm2",
    "llama4": "llama4_pythonic",
    "longcat_flash": "longcat",
    "minimax_m2": "minimax_m2",
    "olmo3": "olmo3",
    "seed_oss": "seed_oss",
    "step3": "step3",
}
"""The parser of vLLM that reads the calls of tools of a family, by `model_type` of its config."""

NAMED = (
    (re.compile(r"hermes"), "hermes"),
    (re.compile(r"qwen3.*coder"), "qwen3_coder"),
    (re.compile(r"llama-?3"), "llama3_json"),
    (re.compile(r"phi-?4-?mini"), "phi4_mini_json"),
    (re.compile(r"xlam"), "xlam"),
)
"""The same where the name tells more than the config: families that share another one's."""


def without_flags(body: bytes, scope: MutableMapping[str, Any], model: str) -> bytes:
    """Return vLLM's error in words of the spec, where it names a flag of its command line."""
    if FLAG.encode() not in body:
        return body
    try:
        told = json.loads(body)
        if FLAG in told["error"]["message"]:
            told["error"]["message"] = _no_parser(scope, model)
    except (ValueError, TypeError, KeyError):
        return body
    return json.dumps(told).encode()


def _no_parser(scope: MutableMapping[str, Any], model: str) -> str:
    from vllm.tool_parsers import ToolParserManager

    model_type = path = ""
    with suppress(AttributeError, KeyError):
        config = scope["app"].state.engine_client.model_config
        model_type, path = str(config.hf_config.model_type), str(config.model)
    known = sorted(ToolParserManager.list_registered())
    fits = parser_of(model_type, f"{model} {path}", known)
    which = "" if fits else f"; PARSER is one of {', '.join(known)}"
    return (
        "`tools` need a parser of what the model says: in the spec, for the model"
        f' "{model}", engine_args = {{ enable_auto_tool_choice = true,'
        f' tool_call_parser = "{fits or "PARSER"}" }}{which}'
    )


def parser_of(model_type: str, named: str, known: Iterable[str]) -> str:
    """Return the parser of `known` that fits a model's family, or ""."""
    said = (parser for pattern, parser in NAMED if pattern.search(named.lower()))
    found = next(said, PARSERS.get(model_type, ""))
    return found if found in set(known) else ""
