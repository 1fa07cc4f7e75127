"""The command line: registers the commands; the one place where errors become exit codes."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn, TextIO, cast

import typer

from raycluster import __version__
from raycluster.commands import COMMANDS
from raycluster.core import startup
from raycluster.core.errors import LockedError, RayclusterError
from raycluster.core.printable import LONGEST, PrintableStream
from raycluster.core.tested_versions import sentence

INTERRUPTED = 130

app = typer.Typer(
    name="raycluster",
    help="Run vLLM on Ray Serve on machines reachable over SSH, from one TOML file.",
    no_args_is_help=True,
    rich_markup_mode=None,  # its panels cost 0.2 s
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"raycluster {__version__}\n{sentence()}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show versions.")
    ] = False,
) -> None:
    pass


for _name, _command in COMMANDS.items():
    app.command(_name, **_command.options)(_command.function)


def main() -> None:
    """Run the program and end it with the designed exit code."""
    startup.begin()
    _open_streams()
    _heed_requests()
    sys.exit(_run())


def _run() -> int:
    try:
        try:
            app(standalone_mode=True)
        finally:
            sys.stdout.flush()
    except RayclusterError as error:
        sys.stderr.write(f"error: {error}\n")
        if isinstance(error, LockedError):
            _end(error.exit_code)
        return error.exit_code
    except KeyboardInterrupt:
        _end(INTERRUPTED)
    except SystemExit as end:
        if _by_interrupt(end):
            _end(INTERRUPTED)
        return end.code if isinstance(end.code, int) else 0
    except OSError as error:
        return _cut_off(error)
    return 0


def _cut_off(error: OSError) -> int:
    """Return the exit code for output that nobody takes: `| head`, or a full disk."""
    if error.errno not in (errno.EPIPE, errno.ENOSPC):
        raise error
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno == errno.ENOSPC:
        sys.stderr.write("error: cannot write the output: the disk is full\n")
    return 1


def _open_streams() -> None:
    """Let standard streams write what is printable; the null device where one is closed.

    `cron` or `>&-` may leave them so. A line for people has an end, one for programs need not.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115  # until the end
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as sys.stderr does from the beginning
    sys.stdout = cast(TextIO, PrintableStream(sys.stdout))
    sys.stderr = cast(TextIO, PrintableStream(sys.stderr, LONGEST))


def _by_interrupt(end: SystemExit) -> bool:
    """Return True for what typer makes of Ctrl-C: an end because of an Exit because of that."""
    cause = end.__context__
    return cause is not None and isinstance(cause.__cause__, KeyboardInterrupt)


def _heed_requests() -> None:
    """Let SIGTERM and SIGHUP do what Ctrl-C does, also where Ctrl-C itself is ignored."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # `nohup` ignores the second
            signal.signal(number, _like_ctrl_c)


def _like_ctrl_c(_number: int, frame: FrameType | None) -> None:
    ctrl_c = signal.getsignal(signal.SIGINT)
    if callable(ctrl_c):
        ctrl_c(signal.SIGINT, frame)  # asyncio's ends its tasks first
    else:  # in the background of a script
        raise KeyboardInterrupt


def _end(code: int) -> NoReturn:
    sys.stderr.flush()
    if questions := sys.modules.get("raycluster.core.console"):
        questions.leave()
    os._exit(code)  # threads that wait for hosts would keep the process alive
