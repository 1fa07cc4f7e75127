"""Reads source: which calls it makes, and what the texts in their arguments may be; pure."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

GAP = "…"
"""Stands for what is filled in when the program runs."""

Values = Mapping[str, Sequence[str]]
"""What a name may be at a place, one text for each way that leads there."""

_Function = ast.FunctionDef | ast.AsyncFunctionDef
Found = list[tuple[ast.Call, Values]]
_ENDS = (ast.Return, ast.Raise, ast.Continue, ast.Break)


def calls(tree: ast.Module) -> Iterator[tuple[ast.Call, Values]]:
    """Yield every call by a plain name, with what names may be where it stands."""
    found: Found = []
    known = _block(tree.body, {}, found)
    for node in ast.walk(tree):
        if isinstance(node, _Function):
            _block(node.body, known, found)
    yield from found


def texts(node: ast.expr, values: Values) -> list[str]:
    """Return what an expression may be, with `…` for what the source does not tell."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=parts):
            return ["".join(str(p.value) if isinstance(p, ast.Constant) else GAP for p in parts)]
        case ast.BinOp(op=ast.Add()):
            pairs = product(texts(node.left, values), texts(node.right, values))
            return [left + right for left, right in pairs]
        case ast.IfExp():
            return texts(node.body, values) + texts(node.orelse, values)
        case ast.Name(id=name) if name in values:
            return list(values[name])
    return [GAP]


def _block(
    body: Sequence[ast.stmt], before: Values, found: list[tuple[ast.Call, Values]]
) -> Values:
    """Note the calls of statements in order, and return what names may be after them."""
    values = dict(before)
    for statement in body:
        if isinstance(statement, _Function):
            continue
        blocks = _blocks(statement)
        inside = {id(n) for block in blocks for part in block for n in ast.walk(part)}
        found += [
            (node, dict(values))
            for node in ast.walk(statement)
            if isinstance(node, ast.Call) and id(node) not in inside
        ]
        if isinstance(statement, ast.Assign):
            values |= _assigned(statement, values)
        elif blocks:
            after = [(_block(block, values, found), block[-1]) for block in blocks]
            ways = [way for way, last in after if not isinstance(last, _ENDS)]
            if isinstance(statement, ast.If | ast.For | ast.While) and not statement.orelse:
                ways.append(values)
            values = _merged(ways or [values])
    return values


def _blocks(statement: ast.stmt) -> list[list[ast.stmt]]:
    named = (getattr(statement, name, None) for name in ("body", "orelse", "finalbody"))
    blocks = [block for block in named if isinstance(block, list) and block]
    for part in (*getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
        blocks.append(part.body)
    return blocks


def _assigned(statement: ast.Assign, values: Values) -> dict[str, Sequence[str]]:
    target, value = statement.targets[0], statement.value
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        pairs = list(zip(target.elts, value.elts, strict=False))
    else:
        pairs = [(target, value)]
    return {name.id: texts(v, values) for name, v in pairs if isinstance(name, ast.Name)}


def _merged(ways: Sequence[Values]) -> dict[str, Sequence[str]]:
    """Return what names may be after any of several ways, in the order of the ways."""
    merged: dict[str, Sequence[str]] = {}
    for name in dict.fromkeys(name for way in ways for name in way):
        several = [tuple(way[name]) for way in ways if name in way]
        same = len(set(several)) == 1
        merged[name] = list(several[0]) if same else [text for one in several for text in one]
    return merged
