"""The site of docs/: it builds without a warning, and says all that the code has."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mkdocs.exceptions import PluginError

from docs.generate.commands import commands_reference
from docs.generate.errors import classes
from docs.generate.hook import ADDED, relinked
from docs.generate.messages import messages, messages_reference, plain
from docs.generate.results import FOLDER, results_reference
from docs.generate.source import calls, texts
from docs.generate.spec import spec_reference
from raycluster.commands import COMMANDS
from raycluster.services.prometheus import HEAD_PORTS
from raycluster.spec import ClusterSpec
from raycluster.spec.sections import Ports

CHECKOUT = Path(__file__).parents[2]
ERRORS = (CHECKOUT / "docs" / "operations" / "errors.md").read_text()
CLOSE_LIST = re.compile(r"^(?![-*#>|\s]|\d+\.)(.+)\n(?:[-*]|\d+\.) ", re.M)
KNOWN = {"index.md", "security.md", "decisions/lock.md", *ADDED.values()}


def built(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build a site as `scripts/docs` does."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "-f", str(config), "-d", str(site)],
        cwd=CHECKOUT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole site, which was built without a warning."""
    folder = tmp_path_factory.mktemp("site")
    done = built(CHECKOUT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_every_page_loads_from_the_site_alone(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    fetching = re.compile(r"<(?:link|script|img|iframe|source)\b[^>]*?(?:href|src)=\"?([^\"\s>]+)")
    away = {
        f"{page.relative_to(site)}: {url}"
        for page in pages
        for url in fetching.findall(page.read_text())
        if "//" in url
    }
    assert away == set()
    styles = [
        p for p in site.rglob("*.css") if re.search(r"url\(['\"]?(?:https?:)?//", p.read_text())
    ]
    assert styles == []


def test_generated_pages_are_filled_in(site: Path) -> None:
    for name, words in {
        "reference/spec.html": "gpu_memory_utilization",
        "reference/commands.html": "--num-requests",
        "reference/example.html": "RAYCLUSTER__HEAD__PORT",
        "operations/errors.html": "a measured figure missed the limit",
        "benchmarks/results.html": "python -m benchmarks.serving",
    }.items():
        page = (site / name).read_text()
        assert words.lower() in re.sub(r"<[^>]+>", "", page).lower(), name
        assert "generate:" not in page


def test_every_error_has_its_part_of_the_page(site: Path) -> None:
    page = (site / "operations" / "errors.html").read_text()
    for error in classes():
        assert f'<h3 id="{error.__name__.lower()}"' in page, error
        assert f"### {error.__name__}\n\n" in ERRORS


def test_every_raw_result_is_in_the_site(site: Path) -> None:
    told = results_reference()
    for path in FOLDER.glob("*.json"):
        assert f"(results/{path.name})" in told
        assert (site / "benchmarks" / "results" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("link", ["[x](missing.md)", "[x](#nowhere)", "[x](index.md#nowhere)"])
def test_a_link_that_leads_nowhere_ends_the_build(tmp_path: Path, link: str) -> None:
    pages = tmp_path / "docs"
    pages.mkdir()
    (pages / "index.md").write_text(f"# Title\n\n{link}\n")
    config = tmp_path / "mkdocs.yml"
    inherited = f"INHERIT: {CHECKOUT / 'mkdocs.yml'}\ndocs_dir: {pages}\n"
    config.write_text(
        inherited + "nav: [index.md]\nhooks: []\nplugins: []\ntheme: {name: mkdocs}\n"
    )
    done = built(config, tmp_path / "site")
    assert done.returncode == 1
    assert "in strict mode" in done.stdout + done.stderr


def test_what_stands_behind_a_sentence_on_security_is_there() -> None:
    """Each claim names tests, and each of them exists."""
    text = (CHECKOUT / "docs/security.md").read_text()
    part = text.partition("## What stands behind")[2].partition("\n## ")[0]
    rows = [line for line in part.splitlines() if line.startswith("| ") and "`tests/" in line]
    named = [re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", row) for row in rows]
    assert len(rows) > 15
    assert all(named)
    for path, test in (each for row in named for each in row):
        assert re.search(rf"(?m)^\s*def {test or 'test_'}", (CHECKOUT / path).read_text()), path


def test_every_setting_is_in_the_reference() -> None:
    told = spec_reference()
    schema = ClusterSpec.model_json_schema(by_alias=True)
    tables = [schema, *schema["$defs"].values()]
    keys = {key for one in tables for key in one["properties"]}
    assert len(keys) > 80
    assert [k for k in keys if f"| `{k}` |" not in told and f"[{k}]" not in told] == []


def test_the_reference_tells_kinds_and_defaults() -> None:
    lines = spec_reference().splitlines()
    assert (
        '| `on` | `"head"`, `"all"` | `"head"` | Where it runs: on the head or on all hosts. |'
        in lines
    )
    [port] = [line for line in lines if line.startswith("| `gcs` |")]
    assert port.startswith("| `gcs` | whole number, 1 to 65535 | `6379` |")
    [name] = [line for line in lines if line.startswith("| `name` |") and "clients" in line]
    assert "| required |" in name


def test_every_command_and_option_is_in_the_reference() -> None:
    told = commands_reference()
    for name in COMMANDS:
        assert re.search(rf"^## raycluster {name}$", told, re.M), name
    assert "| `--version` | " in told
    assert "| `-n, --num-requests " in told
    assert "| `--assert " in told
    assert "raycluster exec [OPTIONS] {node} {command}..." in told


def test_links_out_of_docs_lead_to_the_site() -> None:
    def here(text: str, place: str) -> str:
        return relinked(text, place, KNOWN)

    assert here("[a](docs/security.md#x)", "index.md") == "[a](security.md#x)"
    assert here("[a](../README.md)", "benchmarks/index.md") == "[a](../index.md)"
    assert here("[a](../../ARCHITECTURE.md)", "decisions/lock.md") == "[a](../architecture.md)"
    assert here("[a](#b) [c](https://d.example/)", "index.md") == "[a](#b) [c](https://d.example/)"
    assert here("```\n[a](nowhere.md)\n```\n", "index.md") == "```\n[a](nowhere.md)\n```\n"
    with pytest.raises(PluginError, match=r"docs/security.md: ../src/x.py is not in the site"):
        here("[a](../src/x.py)", "security.md")


def test_every_row_of_a_load_test_is_explained() -> None:
    page = (CHECKOUT / "docs" / "guides" / "load-tests.md").read_text()
    told = {name for row in re.findall(r"^\| ([^|]+) \|", page, re.M) for name in row.split(", ")}
    code = (CHECKOUT / "src" / "raycluster" / "bench" / "report.py").read_text()
    rows = re.findall(r'(?:table\.add_row|yield|in|,)\s*\(*"([A-Za-z][\w/, ]+)", (?!")', code)
    assert len(rows) > 15
    assert [row for row in rows if row not in told and row.partition(", ")[0] not in told] == []


def test_every_benchmark_is_in_the_table_of_its_readme() -> None:
    folder = CHECKOUT / "benchmarks"
    usage = re.compile(r"^    python (?:-m benchmarks\.|benchmarks/)", re.M)
    programs = {path.stem for path in folder.glob("*.py") if usage.search(path.read_text())}
    table = (folder / "README.md").read_text()
    programs.remove("streams")  # the endpoint that others ask
    assert set(re.findall(r"^\| `python -m benchmarks\.(\w+)", table, re.M)) == programs


def test_lists_stand_apart_from_what_is_before_them() -> None:
    """In mkdocs a list that follows a line of text without a gap is part of that line."""
    assert CLOSE_LIST.search("words:\n- one")
    added = (CHECKOUT / path for path in ADDED if path.endswith(".md"))
    close = {
        f"{page.relative_to(CHECKOUT)}: {found[1]}"
        for page in (*(CHECKOUT / "docs").rglob("*.md"), *added)
        for found in CLOSE_LIST.finditer(page.read_text())
    }
    assert close == set()


def test_every_port_is_on_the_page_of_security() -> None:
    page = (CHECKOUT / "docs" / "security.md").read_text()
    assert [name for name in Ports.model_fields if f"`{name}`" not in page] == []
    assert [port for port in HEAD_PORTS.values() if str(port) not in page] == []


def test_every_message_is_found_with_its_next_step() -> None:
    said = messages()
    assert ("no such file", "create one with: raycluster init") in said["SpecError"]
    assert ("… refused the connection", "start sshd there, or correct the port") in said[
        "UnreachableError"
    ]  # assigned before, one pair for each case
    assert ("two hosts have the name …", "") in said["SpecError"]  # of a model's validator
    assert ("is not deployed", "raycluster up") in said["Issue"]
    assert sum(len(told) for told in said.values()) > 250
    page = messages_reference()
    assert "| no such file | create one with: raycluster init |" in page
    assert [error.__name__ for error in classes() if f"## {error.__name__}\n" not in page] == []


@pytest.mark.parametrize(
    ("code", "may_be"),
    [
        ("'a'", ["a"]),
        ("f'a {b} c'", ["a … c"]),
        ("'a' + f'{b}'", ["a…"]),
        ("'a' if b else known", ["a", "x", "y"]),
        ("unknown", ["…"]),
        ("call()", ["…"]),
    ],
)
def test_a_text_is_read_from_the_source(code: str, may_be: list[str]) -> None:
    assert texts(ast.parse(code, mode="eval").body, {"known": ["x", "y"]}) == may_be


def test_a_name_is_what_it_was_last_made_or_on_each_way() -> None:
    source = """
if a:
    what, hint = "one", "first"
elif b:
    what, hint = f"two {c}", "second"
else:
    raise Gone("three")
Said(what, hint)
what = "four"
if d:
    what = "five"
Said(what)
def inside():
    Said(what)
"""
    said = [[texts(a, values) for a in call.args] for call, values in calls(ast.parse(source))]
    assert [["three"]] in said
    assert [["one", "two …"], ["first", "second"]] in said
    assert said.count([["five", "four"]]) == 2
    assert len(said) == 4


def test_signs_of_markdown_are_plain_but_in_code() -> None:
    assert plain("a_b <c> [d] `e_f`") == r"a\_b &lt;c> \[d\] `e_f`"
    assert plain("a `b") == "a 'b"


def test_messages_that_the_page_of_errors_quotes_are_in_the_code() -> None:
    quoted = re.findall(r"^\| `([^`]+)` \|", ERRORS, re.M)
    assert len(quoted) > 60
    code = list(_texts())
    assert [m for m in quoted if not any(_fits(m, text) for text in code)] == []


def test_a_message_that_nobody_says_is_noticed() -> None:
    assert not any(_fits("the … is made of cheese", text) for text in _texts())


def _fits(message: str, text: str) -> bool:
    parts = [re.escape(part) for part in message.split("…")]
    return re.search(".*".join(parts), text) is not None


def _texts() -> Iterator[str]:
    """Yield every text in the package, with `…` for what is filled in."""
    for path in (CHECKOUT / "src" / "raycluster").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "…"
                    for part in node.values
                ).replace("\n", " ")
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value.replace("\n", " ")
