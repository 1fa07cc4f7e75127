"""Every class of error and every exit code, from `errors.py`."""

from __future__ import annotations

from collections.abc import Iterator

from docs.generate.text import cell, code, table
from raycluster.cli import INTERRUPTED
from raycluster.core.errors import RayclusterError
from raycluster.serve.failures import KNOWN, SIGNALS

BESIDE = {
    0: "done, or healthy",
    INTERRUPTED: "interrupted (Ctrl-C); the next `up` or `down` continues from there",
}
"""What the program ends with when there is no error of ours."""

MEANINGS = {
    1: "an operation failed",
    2: "the command line, the spec or a secret's source is wrong; nothing was started",
    3: "`status` or `check` found a problem, or `up` did: another engine than the one asked "
    "for, ports that anyone can reach, records that could not be read",
    4: "`bench` or `drill`: a figure missed its limit",
    5: "another run has locked the cluster; it is named",
}


def classes(base: type[RayclusterError] = RayclusterError) -> Iterator[type[RayclusterError]]:
    """Yield an error and all below it, each before those below."""
    yield base
    for below in base.__subclasses__():
        if below.__module__ == RayclusterError.__module__:
            yield from classes(below)


def exit_codes() -> str:
    """Return the table of exit codes with the errors that end so."""
    known = {error.exit_code for error in classes()}
    rows = []
    for number in sorted(known | set(BESIDE)):
        named = [
            f"[{e.__name__}](#{e.__name__.lower()})" for e in classes() if e.exit_code == number
        ]
        meaning = MEANINGS[number] if number in known else BESIDE[number]
        rows.append((code(str(number)), meaning, ", ".join(named)))
    return table(("exit code", "means", "errors"), rows)


def error_classes() -> str:
    """Return the table of the classes, with what each means."""
    rows = [
        (
            f"[{error.__name__}](#{error.__name__.lower()})",
            code(str(error.exit_code)),
            code(base.__name__) if (base := error.__bases__[0]) is not Exception else "",
            cell((error.__doc__ or "").partition("\n")[0]),
        )
        for error in classes()
    ]
    return table(("error", "exit code", "is a", "means"), rows)


def engine_failures() -> str:
    """Return the table of the failures of engines that are told in words, with their cures."""
    rows = [(cell(f.cause), cell(f.cure)) for f in (*KNOWN, *SIGNALS.values())]
    return table(("cause", "solution"), rows)
