"""Gives vLLM's own parser every argument by our words, in a node's Python; prints what went wrong.

A value is of the type that vLLM declares for it: a list for a list, a table for a dictionary.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib import metadata
from typing import Any, get_args, get_origin

_version = metadata.version


def version(distribution_name: str) -> str:
    """Name the build for CPUs as vLLM wants it."""
    return "0.32.0+cpu" if distribution_name == "vllm" else _version(distribution_name)


metadata.version = version

from vllm.engine.arg_utils import (  # noqa: E402
    AsyncEngineArgs,
    get_type_hints,
    is_dict_subclass,
)
from vllm.entrypoints.launchers.cli_args import (  # noqa: E402
    FrontendArgs,
    make_arg_parser,
    validate_parsed_serve_args,
)
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS  # noqa: E402
from vllm.reasoning import ReasoningParserManager  # noqa: E402
from vllm.tool_parsers import ToolParserManager  # noqa: E402
from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: E402

from raycluster.serve.engines.vllm import OURS, flags  # noqa: E402


def values(action: argparse.Action, kinds: set[Any]) -> list[object]:
    """Return what a spec may say, by the types that vLLM declares."""
    if isinstance(action, argparse.BooleanOptionalAction):
        return [True, False]
    if isinstance(action, argparse._StoreTrueAction):
        return [True]
    found: list[object] = []
    word = next(iter(c for c in action.choices or () if c is not None), "x y=1.5")
    for kind in kinds:
        origin = get_origin(kind) or kind
        if origin in (list, tuple, set):
            of = str(get_args(kind)[0]) if get_args(kind) else ""
            many = [1, 2] if "int" in of and "str" not in of else [word, word]
            found.append(many[:1] if action.choices else many)
        elif origin is dict or is_dict_subclass(kind):
            found.append({"a": {"b": [1, "c d"]}})
        elif origin is int:
            found.append(16 if action.choices else 3)
        elif origin is float and float not in found:
            found.append(0.5)
        elif origin is str:
            found.append(word)
    return found


def same(given: object, got: object) -> bool:
    """Tell whether a value arrived, in whatever of Python's collections."""
    if isinstance(got, (set, tuple)):
        got = list(got)
    if isinstance(given, list) and isinstance(got, list):
        return list(map(str, given)) == list(map(str, got)) or set(given) == set(got)
    return given == got or str(given) == str(got) or got == [given]  # one where several may be


def refused(recipe: dict[str, Any]) -> str:
    """Return what vLLM refuses of a recipe's arguments, or ""."""
    words = [word for name, value in recipe.items() for word in flags(name, value)]
    try:
        args = make_arg_parser(FlexibleArgumentParser()).parse_args(["m", *words])
        validate_parsed_serve_args(args)
    except (SystemExit, argparse.ArgumentError, TypeError, ValueError) as error:
        return repr(error)
    known = {
        "tool_call_parser": ToolParserManager.list_registered(),
        "reasoning_parser": ReasoningParserManager.list_registered(),
        "quantization": QUANTIZATION_METHODS,
    }
    unknown = [n for n, names in known.items() if n in recipe and recipe[n] not in names]
    lost = [name for name, value in recipe.items() if getattr(args, name) != value]
    return ", ".join(unknown + lost)


def main() -> None:
    """Print what was tried."""
    parser = make_arg_parser(FlexibleArgumentParser())
    declared = {**AsyncEngineArgs.__dataclass_fields__, **FrontendArgs.__dataclass_fields__}
    wrong: dict[str, str] = {}
    tried, lists = 0, []
    for action in parser._actions:
        name = action.dest
        if name in OURS or not action.option_strings or name not in declared:
            continue
        for value in values(action, get_type_hints(declared[name].type)):
            words = flags(name, value)
            tried += 1
            lists += [name] * isinstance(value, list)
            try:
                got = getattr(parser.parse_args(["m", *words]), name)
            except (SystemExit, argparse.ArgumentError, ValueError) as error:
                wrong[name] = f"{words}: {error!r}"
                continue
            if not same(value, got):
                wrong[name] = f"{words}: {got!r}"
    recipes = {
        name: why for name, each in json.loads(sys.argv[1]).items() if (why := refused(each))
    }
    print(json.dumps({"wrong": wrong, "tried": tried, "lists": lists, "recipes": recipes}))


if __name__ == "__main__":
    main()
