"""The input file of a batch, which is read again whenever it is needed."""

from __future__ import annotations

from pathlib import Path

from raycluster.openai_client.files import PromptFile


def prompt_file(path: Path, column: str = "") -> PromptFile:
    """Return what a file holds; raises UsageError."""
    return PromptFile(
        lambda: path.open("rb", buffering=0), where=str(path), name=path.name, column=column
    )
