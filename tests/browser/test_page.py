"""The page of a bench run in a real browser: its plots are drawn, and it complains of nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from raycluster.bench.page import page
from tests.unit.bench.level import requests, summary

EVIL = "</script><script>document.title = 'hijacked'</script>"
COMPLAINT = re.compile(r"CONSOLE.*|.*(?:Uncaught|Refused to|ERR_).*")


@pytest.fixture(scope="module")
def browser() -> str:
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("needs Chromium: `make test` as root installs it")
    return found


def opened(browser: str, path: Path, profile: Path) -> tuple[str, list[str]]:
    """Return the document after its scripts ran, and what the browser's console says."""
    done = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *("--disable-background-networking", "--disable-component-update", "--no-first-run"),
            *("--enable-logging=stderr", "--virtual-time-budget=20000", "--window-size=1200,900"),
            *(f"--user-data-dir={profile}", path.as_uri()),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout, COMPLAINT.findall(done.stderr)


def test_plots_are_drawn_and_nothing_is_wrong(browser: str, tmp_path: Path) -> None:
    failed = replace(requests(1)[0], failure="protocol", detail=EVIL)
    levels = [[*requests(300, 4, failed=0.1), failed], requests(300, 8)]
    path = tmp_path / "report.html"
    data = summary(*levels).to_json()
    data["levels"][0]["server"] = {"samples": [{"t": t, "running": t} for t in range(5)]}
    path.write_bytes(page(data, levels))
    document, complaints = opened(browser, path, tmp_path / "profile")
    assert complaints == []
    assert document.count('data-plot=""') == document.count('class="js-plotly-plot"') == 10
    # The traces of every plot: 3 of each throughput's, 2 of each level's, and those of the levels.
    assert document.count('class="scatterlayer mlayer"') >= 10
    assert document.count('class="trace scatter') == 3 * 3 + 3 * 2 + (7 + 4) + (5 + 4)
    assert "<title>m: raycluster bench</title>" in document


def test_the_console_is_heard(browser: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.html"
    path.write_text("<script>console.error('heard'); missing()</script>")
    _, complaints = opened(browser, path, tmp_path / "profile")
    assert any("heard" in line for line in complaints)
    assert any("missing" in line for line in complaints)


def test_a_script_that_is_not_ours_does_not_run(browser: str, tmp_path: Path) -> None:
    records = requests(5)
    content = page(summary(records).to_json(), [records])
    path = tmp_path / "report.html"
    path.write_bytes(content.replace(b"</main>", b"<script>document.title = 'hijacked'</script>"))
    document, complaints = opened(browser, path, tmp_path / "profile")
    assert "<title>m: raycluster bench</title>" in document
    assert any("Content Security Policy" in line for line in complaints)
