"""Every error that reaches a person.

    RayclusterError            exit 1   an operation failed
    ├── SpecError              exit 2   cluster.toml is wrong
    ├── UsageError             exit 2   the command line or an input file is wrong
    ├── HostError              exit 1   something on or about one host
    │   ├── UnreachableError            no connection: name, port, timeout, jump host, or
    │   │   └── NotRunError             a login that runs something else than our commands
    │   ├── HostKeyError                the host is not the one that is known
    │   ├── AuthError                   the host refused the user or the key
    │   ├── BeyondLibraryError          the first and the third: what the system's `ssh` may do
    │   │   └── UnjudgedKeyError        and the second: the host's key cannot be judged here
    │   ├── ConnectionLostError         the connection broke while in use
    │   ├── ForwardRefusedError         sshd forbids the connection that goes through it
    │   ├── AnswerError                 what it says is too much, or cannot be understood
    │   ├── RuntimeUnavailableError     no Docker daemon, no right to use it, no environment
    │   ├── ImageError                  image missing, or without ray or an engine
    │   ├── PortInUseError              another program holds a port that we need
    │   ├── CommandError                a command on the host ended with a non-zero status
    │   └── RecordError                 a file or an answer is damaged, or
    │       └── NewerRecordError        written by a newer raycluster
    ├── VersionMismatchError   exit 1   nodes with different Ray, Python or engine
    ├── AppError               exit 1   a replica or the application cannot start
    ├── SecretError            exit 2   a secret's source is missing or empty
    ├── DegradedError          exit 3   `status` or `check` found something wrong
    ├── MissedLimitError       exit 4   a measurement missed its limit
    └── LockedError            exit 5   another run holds the cluster

An error says where (`where`), what (`what`) and the next step (`hint`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class RayclusterError(Exception):
    """An error with a place, a fact and a next step; `exit_code` is what the program ends with."""

    exit_code = 1
    together: tuple[RayclusterError, ...] = ()
    """The errors of which this one says all."""

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        step = f"\n  next: {self.hint}" if self.hint else ""
        return f"{place}{self.what}{step}"


def apart(errors: Iterable[RayclusterError]) -> list[RayclusterError]:
    """Return errors, those that say all of several as these."""
    return [each for error in errors for each in error.together or (error,)]


def raise_together(errors: Sequence[RayclusterError]) -> None:
    """Raise the error, or where there are several one of the first one's kind that says all.

    What says the same as another is left out.
    """
    every = tuple({str(error): error for error in reversed(apart(errors))}.values())[::-1]
    if len(every) == 1:
        raise every[0]
    if every:
        whole = type(every[0])("\n".join(str(error) for error in every))
        whole.together = every
        raise whole


class SpecError(RayclusterError):
    """The spec cannot be read or is not valid."""

    exit_code = 2


class UsageError(RayclusterError):
    """The command line, or a file named on it, is wrong."""

    exit_code = 2


class SecretError(RayclusterError):
    """A secret's source is missing, unreadable or empty."""

    exit_code = 2


class HostError(RayclusterError):
    """Something went wrong on, or on the way to, one host; `where` is its name."""


class UnreachableError(HostError):
    """No connection could be made."""


class NotRunError(UnreachableError):
    """The host let the user in, but did not run what it was asked to; quotes what it said."""


class HostKeyError(HostError):
    """The host's key is unknown, changed or revoked."""


class AuthError(HostError):
    """The host refused every way to log in."""


class BeyondLibraryError(UnreachableError, AuthError):
    """The SSH library cannot do what the host or the ssh config wants; OpenSSH's `ssh` may."""


class UnjudgedKeyError(BeyondLibraryError, HostKeyError):
    """What is known about the host's key is in a form that the SSH library does not read."""


class ConnectionLostError(HostError):
    """A connection that worked broke."""


class ForwardRefusedError(HostError):
    """The SSH server forbids to open connections through it."""


class AnswerError(HostError):
    """What a host says is more than is read of it, or cannot be understood."""


class RuntimeUnavailableError(HostError):
    """The host cannot run processes the way that the spec asks for."""


class ImageError(HostError):
    """The image is missing, cannot be pulled, or lacks ray or an engine."""


class PortInUseError(HostError):
    """A port that we need is taken by a program that is not ours."""


class CommandError(HostError):
    """A command on the host ended with a non-zero status, which is `status`."""

    def __init__(self, what: str, *, where: str = "", hint: str = "", status: int = 1) -> None:
        super().__init__(what, where=where, hint=hint)
        self.status = status


class RecordError(HostError):
    """What was stored, or what a host answered, cannot be read."""


class NewerRecordError(RecordError):
    """What was stored has a schema that only a newer version of raycluster reads."""


class VersionMismatchError(RayclusterError):
    """Nodes hold different versions of Ray, Python or the engine."""


class AppError(RayclusterError):
    """The application cannot start or does not answer; `what` begins with the root cause."""


class DegradedError(RayclusterError):
    """The cluster works in part, or not at all."""

    exit_code = 3


class MissedLimitError(RayclusterError):
    """A measured figure missed the limit given on the command line."""

    exit_code = 4


class LockedError(RayclusterError):
    """Another run holds the cluster's lock."""

    exit_code = 5
