"""Where requests go, and what this machine needs for it."""

from __future__ import annotations

import re
import resource
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from raycluster.core.errors import UsageError

_SPARE_FILES = 64


@dataclass(frozen=True)
class Target:
    """Where requests go. An empty `model` leaves the prompts' own; `headers` may hold a key."""

    base_url: str
    model: str
    headers: Mapping[str, str] = field(default_factory=dict)
    ca_file: str = ""

    def url(self, path: str) -> str:
        """Return the address of an API path; the base may end in /v1 or not."""
        return self.base_url.rstrip("/").removesuffix("/v1") + path

    @property
    def shown(self) -> str:
        """The base address without a password that it may hold."""
        address = urlsplit(self.base_url)
        return address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()


def wrong_address(url: str) -> str:
    """Return what keeps a text from being the address of an endpoint, or an empty string."""
    import httpx

    if not url.startswith(("http://", "https://")):
        return "not an HTTP URL"
    if not re.fullmatch("[!-~]{1,4096}", url):
        return "non-printable or non-ASCII characters, a space, or more than 4096 of them"
    try:
        host, port = httpx.URL(url).host, urlsplit(url).port
    except (httpx.InvalidURL, ValueError) as error:
        # The error may quote what is a password's.
        return (
            "before `@`, characters such as / : ? # must be percent-encoded"
            if "@" in url
            else str(error)
        )
    if not host:
        return "no host"
    return "port 0 is not a port" if port == 0 else ""


def check_address(target: Target) -> None:
    """Raise UsageError when the base address is none."""
    try:
        base = urlsplit(target.base_url)
        good = bool(base.hostname) and (base.port or 1) > 0
    except ValueError:
        good = False
    if not good:
        raise UsageError("not an HTTP URL", where="--url", hint="http://127.0.0.1:8000")


def tls_context(target: Target) -> ssl.SSLContext:
    """Return what the endpoint's certificate is held to. Raises UsageError."""
    import httpx

    context = httpx.create_ssl_context()
    if target.ca_file:
        try:
            context.load_verify_locations(target.ca_file)
        except OSError as error:
            raise UsageError(
                f"cannot read the certificate: {error}",
                where=target.ca_file,
                hint="use a PEM file",
            ) from error
    return context


def allow_connections(count: int) -> None:
    """Raise this process's limit of open files to what `count` connections need, if it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + _SPARE_FILES
    if resource.RLIM_INFINITY in (soft, hard) or needed <= soft:
        return
    if needed > hard:
        raise UsageError(
            f"{count} connections need {needed} open files, but the limit is {hard}",
            where="--concurrency",
            hint=f"ulimit -Hn {needed}",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
