"""Ray's Jobs API on the head, over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raycluster.core.errors import ConnectionLostError, HostError
from raycluster.core.untrusted import read_json

if TYPE_CHECKING:
    import httpx

JOBS = "/api/jobs/"


class RayJobs:
    """Jobs by their submission id, through `client`; `host` is the head's name in errors."""

    def __init__(self, host: str, client: httpx.Client) -> None:
        self._host = host
        self._client = client

    def submit(self, job: str, command: str) -> None:
        """Start a command of the head's shell as a job. Raises HostError."""
        self._ask("POST", JOBS, json={"submission_id": job, "entrypoint": command})

    def status(self, job: str) -> str:
        """Return how the job stands, in Ray's words; nothing for one that Ray does not know."""
        told = self._ask("GET", JOBS + job, missing={})
        return str(told.get("status", ""))

    def said(self, job: str) -> str:
        """Return what the job wrote; nothing for one that Ray does not know."""
        return str(self._ask("GET", f"{JOBS}{job}/logs", missing={}).get("logs", ""))

    def stop(self, job: str) -> None:
        """Ask the job to end; it may run on for a moment."""
        self._ask("POST", f"{JOBS}{job}/stop", missing={})

    def forget(self, job: str) -> None:
        """Remove what Ray keeps of a job that is over."""
        self._ask("DELETE", JOBS + job, missing={})

    def _ask(
        self,
        method: str,
        path: str,
        *,
        json: dict[str, str] | None = None,
        missing: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return the answer; `missing` for one that says that there is no such job."""
        import httpx

        try:
            answer = self._client.request(method, path, json=json, timeout=60)
            if missing is not None and answer.status_code == 404:
                return missing
            answer.raise_for_status()
        except httpx.HTTPStatusError as error:
            said = " ".join(error.response.text.split())[-300:]
            what = f"Ray's Jobs API responded with {error.response.status_code}: {said}"
            raise HostError(what, where=self._host, hint="raycluster logs head") from error
        except httpx.HTTPError as error:
            what = f"Ray's Jobs API does not respond: {error}"
            raise ConnectionLostError(what, where=self._host) from error
        told = read_json(answer.content, "Ray's Jobs API", self._host).value
        return told if isinstance(told, dict) else {}
