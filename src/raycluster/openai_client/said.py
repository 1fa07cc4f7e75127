"""What a server says about an error, made fit to be shown."""

from __future__ import annotations

from raycluster.serve.asking.said import error_text, failure_in, hidden, is_secret, printable

__all__ = ["error_text", "failure_in", "hidden", "is_secret", "printable"]
