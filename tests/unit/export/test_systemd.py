"""Units for systemd: as systemd itself reads them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from raycluster.core.errors import SpecError
from raycluster.export.systemd import quoted, systemd
from raycluster.export.tree import write
from tests.unit.export.designs import GIVEN, PLAIN, TOKEN, WHOLE, design_of

ODD = ("", "a b", "$HOME $$ ${X}", '"quotes"', "it's", "%h %%", "back\\slash\\n", "two\nlines", ";")


@pytest.fixture
def analyze() -> str:
    """systemd's own reader of units."""
    program = shutil.which("systemd-analyze")
    if not program:
        pytest.skip("needs systemd-analyze: `make test` as root installs it")
    return program


def verify(
    analyze: str, *units: Path, path: str = "", level: str = "warning"
) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "SYSTEMD_LOG_LEVEL": level, "SYSTEMD_UNIT_PATH": path}
    return subprocess.run(
        [analyze, "verify", "--man=no", *units],
        env=env if path else {k: v for k, v in env.items() if k != "SYSTEMD_UNIT_PATH"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_systemd_finds_nothing_to_say_about_them(analyze: str, tmp_path: Path) -> None:
    write(systemd(design_of()), tmp_path / "out")
    for host, count in (("head", 4), ("worker-1", 1)):
        units = sorted((tmp_path / "out" / host / "units").glob("*.service"))
        assert len(units) == count
        done = verify(analyze, *units)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_it_would_find_a_mistake(analyze: str, tmp_path: Path) -> None:
    write(systemd(design_of(PLAIN)), tmp_path / "out")
    unit = tmp_path / "out/head/units/raycluster-one-head.service"
    unit.write_text(unit.read_text().replace("KillMode=mixed", "KillMode=mixd"))
    assert "mixd" in verify(analyze, unit).stderr


def test_systemd_reads_the_words_of_a_command_as_they_were(analyze: str, tmp_path: Path) -> None:
    words = ("/usr/bin/env", *ODD)
    unit = tmp_path / "odd.service"
    unit.write_text(f"[Service]\nExecStart={' '.join(map(quoted, words))}\n")
    said = verify(analyze, unit, level="debug").stdout
    [line] = re.findall(r"Command Line: (.*)", said)
    shown = re.findall(r'(?:"(?:\\.|[^"\\])*"|\\.|[^\s"])+', line)
    assert tuple(map(meant, shown)) == words


def meant(shown: str) -> str:
    """Return the word that systemd shows quoted, after its variables were replaced."""
    inside = shown[1:-1] if shown.startswith('"') else shown
    signs = {"n": "\n", "t": "\t"}
    plain = re.sub(r"\\(.)", lambda match: signs.get(match[1], match[1]), inside)
    return plain.replace("$$", "$")


def test_the_environment_keeps_odd_values() -> None:
    tree = systemd(design_of())
    odd = WHOLE["runtime"]["env"]["ODD"]
    [line] = re.findall(r"^ODD=\"(.*)\"$", tree["head/env/head.env"].content.decode(), re.M)
    assert re.sub(r'\\(["\\`$])', r"\1", line) == odd


def test_services_may_become_nothing_more_than_they_are() -> None:
    for path, entry in systemd(design_of()).items():
        if path.endswith(".service"):
            lines = entry.content.decode().splitlines()
            assert {"NoNewPrivileges=yes", "PrivateTmp=yes", "ProtectSystem=full"} <= {*lines}, path
            assert "User=root" in lines


def test_a_host_without_a_user_runs_it_as_one_of_its_own() -> None:
    unit = systemd(design_of(PLAIN))["head/units/raycluster-one-head.service"].content.decode()
    assert "\nUser=raycluster\n" in unit


def test_a_python_below_a_home_folder_is_refused() -> None:
    with pytest.raises(SpecError, match="not an absolute path"):
        systemd(design_of({**PLAIN, "runtime": {"python": "~/env/bin/python"}}))


def test_install_lays_everything_in_its_place(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("install.sh gives files to another user: needs root")
    write(systemd(design_of(given=GIVEN)), tmp_path / "out")
    install = ("sh", tmp_path / "out/head/install.sh")
    env = {"PATH": os.environ["PATH"], "DESTDIR": str(tmp_path / "to")}
    done = subprocess.run(install, env=env, capture_output=True, text=True, check=True)
    root = tmp_path / "to/var/lib/raycluster/qwen"
    assert (root / "token").read_text() == TOKEN
    modes = {str(p.relative_to(root)): p.stat().st_mode & 0o777 for p in root.rglob("*")}
    assert modes["token"] == 0o600
    assert modes["code/haproxy"] == 0o700
    assert modes["gateway"] == 0o700
    units = {p.name for p in (tmp_path / "to/etc/systemd/system").iterdir()}
    assert units == set(re.findall(r"raycluster-qwen-\w+\.service", done.stdout))
    assert (tmp_path / "to/etc/raycluster/qwen/head.env").exists()


def test_install_asks_for_secrets_that_were_left_out(tmp_path: Path) -> None:
    tables = {**PLAIN, "ssh": {"user": "root"}}
    write(systemd(design_of(tables)), tmp_path / "out")
    env = {"PATH": os.environ["PATH"], "DESTDIR": str(tmp_path / "to")}
    install = ("sh", tmp_path / "out/head/install.sh")
    done = subprocess.run(install, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "secrets/head/token is missing" in done.stderr
    assert not (tmp_path / "to").exists()
