"""The site of docs/ in a real browser: it asks no other host, and fits a phone."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
COMPLAINT = re.compile(r"CONSOLE.*|.*(?:Uncaught|Refused to|ERR_).*")
OWN_ALONE = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
"""What the theme needs of its own; all that comes from elsewhere is refused, and complained of."""

NARROW = 390  # pixels: a phone
FRAME = f"""<!doctype html><iframe src="PAGE" width="{NARROW}" height="800"></iframe><script>
document.querySelector("iframe").onload = (event) => {{
  const root = event.target.contentDocument.documentElement;
  document.title = `width ${{root.scrollWidth}} of ${{root.clientWidth}}`;
}};
</script>"""


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder to a browser that may ask nobody else."""

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", OWN_ALONE)
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as it is built, in a folder."""
    site = tmp_path_factory.mktemp("site")
    command = (sys.executable, "-m", "mkdocs", "build", "-d", str(site))
    subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True, timeout=120)
    return site


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """Where the site is served."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def opened(url: str, profile: Path) -> tuple[str, list[str]]:
    """Return the document after its scripts ran, and what the browser's console says."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("needs Chromium: `make test` as root installs it")
    done = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *("--disable-background-networking", "--disable-component-update", "--no-first-run"),
            *("--enable-logging=stderr", "--virtual-time-budget=5000", "--window-size=1280,900"),
            *(f"--user-data-dir={profile}", url),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout, COMPLAINT.findall(done.stderr)


@pytest.mark.parametrize("page", ["index.html", "reference/spec.html", "operations/errors.html"])
def test_a_page_asks_no_other_host(address: str, tmp_path: Path, page: str) -> None:
    document, complaints = opened(f"{address}/{page}", tmp_path)
    assert complaints == []
    assert "md-clipboard" in document or "md-top" in document  # the theme's scripts ran


def test_another_host_is_heard_of(address: str, folder: Path, tmp_path: Path) -> None:
    (folder / "away.html").write_text('<img src="https://fonts.example/x.png">')
    _, complaints = opened(f"{address}/away.html", tmp_path)
    assert any("Content Security Policy" in line for line in complaints)


def test_pages_fit_a_phone(address: str, folder: Path, tmp_path: Path) -> None:
    pages = ("index", "reference/spec", "operations/messages", "security", "comparison")
    wide = {}
    for page in pages:
        (folder / "frame.html").write_text(FRAME.replace("PAGE", f"{page}.html"))
        document, _ = opened(f"{address}/frame.html", tmp_path)
        found = re.search(r"<title>width (\d+) of (\d+)</title>", document)
        assert found, page
        if int(found[1]) > int(found[2]):
            wide[page] = found[0]
    assert wide == {}


def test_a_page_too_wide_for_a_phone_is_noticed(address: str, folder: Path, tmp_path: Path) -> None:
    (folder / "wide.html").write_text('<div style="width: 800px">wide</div>')
    (folder / "frame.html").write_text(FRAME.replace("PAGE", "wide.html"))
    document, _ = opened(f"{address}/frame.html", tmp_path)
    assert re.search(r"<title>width 8\d\d of 3\d\d</title>", document)
