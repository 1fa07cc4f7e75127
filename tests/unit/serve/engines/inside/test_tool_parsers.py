from __future__ import annotations

import pytest

from raycluster.serve.engines.inside.tool_parsers import parser_of

KNOWN = ("hermes", "llama3_json", "mistral", "qwen3_coder")


@pytest.mark.parametrize(
    ("model_type", "name", "parser"),
    [
        ("qwen2", "Qwen/Qwen2.5-7B-Instruct", "hermes"),
        ("qwen3_moe", "Qwen/Qwen3-Coder-30B", "qwen3_coder"),
        ("llama", "meta-llama/Llama-3.3-70B", "llama3_json"),
        ("llama", "HuggingFaceTB/SmolLM2-135M", ""),
        ("mistral", "mistralai/Mistral-7B", "mistral"),
        ("llama", "NousResearch/Hermes-3-Llama-3.1-8B", "hermes"),
        ("glm4_moe", "zai/glm", ""),
        ("", "", ""),
    ],
)
def test_the_parser_of_a_family(model_type: str, name: str, parser: str) -> None:
    assert parser_of(model_type, name, KNOWN) == parser
