"""What mkdocs calls: adds pages from outside `docs/`, fills in what is generated, mends links.

A page of `docs/` names what is to be filled in on a line of its own: `<!-- generate: spec -->`.
"""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).parents[1]
CHECKOUT = DOCS.parent
if str(CHECKOUT) not in sys.path:
    sys.path.insert(0, str(CHECKOUT))

from docs.generate.commands import commands_reference  # noqa: E402
from docs.generate.errors import engine_failures, error_classes, exit_codes  # noqa: E402
from docs.generate.messages import messages_reference  # noqa: E402
from docs.generate.panels import dashboards_reference  # noqa: E402
from docs.generate.results import FOLDER, results_reference  # noqa: E402
from docs.generate.spec import spec_reference  # noqa: E402

GENERATED: Mapping[str, Callable[[], str]] = {
    "spec": spec_reference,
    "commands": commands_reference,
    "exit-codes": exit_codes,
    "error-classes": error_classes,
    "engine-failures": engine_failures,
    "messages": messages_reference,
    "results": results_reference,
    "dashboards": dashboards_reference,
    "example": lambda: f"```toml\n{(CHECKOUT / 'cluster.toml.example').read_text()}```",
}
"""What pages may ask for."""

ADDED: Mapping[str, str] = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security-policy.md",
    "LICENSE": "LICENSE.txt",
    "benchmarks/README.md": "benchmarks/index.md",
    **{
        f"benchmarks/results/{path.name}": f"benchmarks/results/{path.name}"
        for path in FOLDER.glob("*.json")
    },
}
"""Files of the checkout outside `docs/`, and their places in the site."""

SHOWN: Mapping[str, str] = {"cluster.toml.example": "reference/example.md"}
"""Files of the checkout that a page shows."""

PLACES = {**ADDED, **SHOWN}
_MARK = re.compile(r"^<!-- generate: ([\w-]+) -->$", re.M)
_FENCED = re.compile(r"^(```.*?^```)$", re.M | re.S)
_LINK = re.compile(r"(\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^)\s#]*)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put every record of a decision into the menu, after their index."""
    index = "decisions/README.md"
    records = (f"decisions/{path.name}" for path in sorted((DOCS / "decisions").glob("*.md")))
    _list_with(config.nav, index).extend(record for record in records if record != index)
    return config


def _list_with(menu: object, entry: str) -> list[Any]:
    """Return the list of a menu that holds an entry. Raises PluginError."""
    waiting = [menu]
    for item in waiting:
        if isinstance(item, list) and entry in item:
            return item
        waiting += (
            item if isinstance(item, list) else item.values() if isinstance(item, dict) else ()
        )
    raise PluginError(f"nav: {entry} is not in it")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside `docs/`."""
    for source, place in ADDED.items():
        files.append(File.generated(config, place, abs_src_path=str(CHECKOUT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001  # mkdocs names them
    """Return the page with the generated parts in it, and with links that hold in the site."""
    place = page.file.src_uri
    linked = relinked(markdown, place, {file.src_uri for file in files})
    return _MARK.sub(lambda mark: _generated(mark[1], place), linked)


def _generated(name: str, place: str) -> str:
    if name not in GENERATED:
        raise PluginError(f"{place}: nothing called {name!r} is generated")
    return GENERATED[name]()


def relinked(markdown: str, place: str, known: set[str]) -> str:
    """Return Markdown whose links to files of the checkout lead to their places in the site.

    `place` is the page's own in the site, `known` are all. Raises PluginError for a file that the
    site does not have.
    """
    own = next((source for source, added in ADDED.items() if added == place), f"docs/{place}")

    def link(match: re.Match[str]) -> str:
        words, target, anchor = match[1], match[2], match[3] or ""
        if not target or ":" in target:
            return match[0]
        source = posixpath.normpath(posixpath.join(posixpath.dirname(own), target))
        there = PLACES.get(source, source.removeprefix("docs/"))
        if there not in known or (source == there and source not in PLACES):
            raise PluginError(f"{own}: {target} is not in the site")
        return f"{words}({posixpath.relpath(there, posixpath.dirname(place) or '.')}{anchor})"

    parts = _FENCED.split(markdown)
    return "".join(p if p.startswith("```") else _LINK.sub(link, p) for p in parts)
