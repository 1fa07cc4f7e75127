"""What kept a model of the hub from coming, as a person needs it."""

from __future__ import annotations

from raycluster.serve.model_refs import ModelRef

UNREACHED = frozenset({"TransportError", "ConnectionError", "Timeout", "OfflineModeIsEnabled"})
"""Names of the errors for "no response": the hub's library has had three HTTP clients."""
GIVE_TOKEN = 'set HF_TOKEN = "env:HF_TOKEN" under [secrets]'  # noqa: S105  # a sentence


class ProblemError(Exception):
    """What a person has to know, and their next step."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what, self.hint = what, hint


def unreached(error: BaseException) -> bool:
    """Tell whether the hub did not answer, or only that it is in trouble."""
    return bool(_kinds(error) & UNREACHED) or _status(error) >= 500


def explained(error: Exception, wanted: ModelRef) -> ProblemError:
    """Return what to tell of an error of the download."""
    from huggingface_hub import constants, get_token

    if isinstance(error, ProblemError):
        return error
    hub, token = constants.ENDPOINT, bool(get_token())
    found = _refused(error, wanted, hub, token=token) or _failed(error, wanted, hub)
    said = " ".join(str(error).split())[:300]
    return found or ProblemError(f"cannot fetch {wanted.source}: {type(error).__name__}: {said}")


def _refused(error: Exception, wanted: ModelRef, hub: str, *, token: bool) -> ProblemError | None:
    """Return what the hub's "no" means, or None where it was none."""
    kinds, source = _kinds(error), wanted.source
    if "GatedRepoError" in kinds:
        lacking = "HF_TOKEN gives no access to it" if token else "there is no HF_TOKEN"
        step = f"accept its conditions at {hub}/{source}" + ("" if token else f", and {GIVE_TOKEN}")
        return ProblemError(f"{source} is gated, and {lacking}", step)
    if "RevisionNotFoundError" in kinds:
        return ProblemError(f"{source} has no revision {wanted.revision!r}", "correct `revision`")
    if "RepositoryNotFoundError" in kinds:
        seen = "with this HF_TOKEN" if token else "without an HF_TOKEN"
        step = f"correct `source`, or, for a private model, {GIVE_TOKEN}"
        return ProblemError(f"{hub} has no model {source} visible {seen}", step)
    if _status(error) in (401, 403):
        return ProblemError(f"{hub} rejects HF_TOKEN for {source}", "give a valid HF_TOKEN")
    return None


def _failed(error: Exception, wanted: ModelRef, hub: str) -> ProblemError | None:
    """Return what a fault of the network or the disk means, or None where it was neither."""
    if isinstance(error, OSError) and error.errno and error.strerror:
        what = f"{wanted.source} cannot be stored: {error.strerror.lower()}"
        return ProblemError(what, "check the disk and the permissions of HF_HOME on the host")
    if unreached(error) or "LocalEntryNotFoundError" in _kinds(error):
        said = " ".join(str(error).split())[:300]
        step = "give the host access to the hub (HTTPS_PROXY or HF_ENDPOINT under [runtime.env]), "
        step += "or set `source` to a path"
        return ProblemError(f"cannot reach {hub} for {wanted.source}: {said}", step)
    return None


def _kinds(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _status(error: BaseException) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", None) or 0)
