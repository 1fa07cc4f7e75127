"""`raycluster init`: a commented `cluster.toml`, filled in with the hosts given."""

from __future__ import annotations

import re
import secrets
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from raycluster.core.errors import UsageError

PLACEHOLDERS = ("root@203.0.113.10", "root@203.0.113.11")
DEFAULT = Path("cluster.toml")
MODEL = "Qwen/Qwen2.5-0.5B-Instruct"

Hosts = Annotated[
    list[str] | None,
    typer.Option(
        "--host",
        help="user@address:port, or a full ssh command; repeatable, the first is the head.",
    ),
]
Name = Annotated[
    str | None,
    typer.Option("--name", help="The cluster's name. Default: your user name and a random suffix."),
]
ModelName = Annotated[
    str, typer.Option("--model", help="The model to serve, by its Hugging Face ID.")
]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="File to write; - for standard output.")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")]


def init(
    host: Hosts = None,
    name: Name = None,
    model: ModelName = MODEL,
    output: Output = DEFAULT,
    force: Force = False,
) -> None:
    """Write a commented cluster.toml."""
    from raycluster.spec.models import local_owner, login_name

    owner = local_owner() if host else ""
    chosen = name or own_name(login_name())
    text = init_text(host or (), chosen, model, owner, left_out=_say)
    if str(output) == "-":
        sys.stdout.write(text)
        return
    try:
        with output.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UsageError("already exists", where=str(output), hint="add --force") from error
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", where=str(output)) from error
    check = "raycluster check" + ("" if output == DEFAULT else f" {output}")
    sys.stderr.write(f"wrote {output}; next: {check}\n")


def own_name(user: str) -> str:
    """Return a name for a cluster that nobody else on the same hosts is likely to have."""
    plain = re.sub(r"[^a-z0-9]+", "-", user.lower()).strip("-")[:24].strip("-")
    return f"{plain or 'cluster'}-{secrets.token_hex(2)}"


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def init_text(
    hosts: Sequence[str],
    name: str = "my-cluster",
    model: str = MODEL,
    owner: str = "",
    *,
    left_out: Callable[[str], None] = lambda _: None,
) -> str:
    """Return the file's text; the first host is the head.

    A host is `[user@]address[:port]`, an ssh alias, `local`, or a whole ssh command. Without hosts,
    two placeholders stand in. `left_out` is told of options of ssh commands that do not matter
    here. Raises UsageError.
    """
    from raycluster.spec.example import example
    from raycluster.spec.given import parse_host

    head, *workers = [parse_host(host, left_out) for host in hosts or PLACEHOLDERS]
    cluster = {"name": name, **({"owner": owner} if owner else {})}
    text = example(cluster=cluster, head=head, workers=workers, models=[{"name": model}])
    _check(text)
    return text


def _check(text: str) -> None:
    import tomllib

    from pydantic import ValidationError

    from raycluster.spec import ClusterSpec
    from raycluster.spec.explain import explain

    document = tomllib.loads(text)
    try:
        ClusterSpec(**document)
    except ValidationError as error:
        wrong = explain(error, text="", document=document, model=ClusterSpec, origins={})
        raise UsageError("\n  ".join(wrong), where="init") from error
