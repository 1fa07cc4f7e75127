"""What commands find in their environment: the same on every way to a host; pure."""

from __future__ import annotations

from collections.abc import Mapping

KEPT = (
    *("HOME", "USER", "LOGNAME", "SHELL", "PATH", "TZ", "TMPDIR"),
    *("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"),
    "SSH_CONNECTION",  # its port stays open, whatever the firewall's rules close
    *("DBUS_SESSION_BUS_ADDRESS", "LD_LIBRARY_PATH", "CUDA_HOME"),
    *("http_proxy", "https_proxy", "no_proxy", "all_proxy"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    *("PIP_CONFIG_FILE", "PIP_CERT", "PIP_TRUSTED_HOST", "PIP_NO_INDEX"),
    *("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"),
    *("UV_CONFIG_FILE", "UV_CACHE_DIR", "UV_NATIVE_TLS", "UV_SYSTEM_CERTS", "UV_INSECURE_HOST"),
    *("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS"),
    *("UV_PYTHON_INSTALL_MIRROR", "UV_OFFLINE"),
    *("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY"),
)
"""Variables of the login that commands keep: who, where, the ways out, and where packages are."""

SET: Mapping[str, str] = {"LC_ALL": "C", "PYTHONUTF8": "1"}
"""Variables of every command: programs speak English, and Python UTF-8 all the same."""


def cleaned(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what commands keep of an environment, and what they always have."""
    return {**{name: environment[name] for name in KEPT if name in environment}, **SET}
