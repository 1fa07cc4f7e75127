"""`raycluster export`, as a person runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SPEC = """
[cluster]
name = "one"
[head]
host = "192.0.2.1"
gpus = 0
[secrets]
HF_TOKEN = "env:HF_TOKEN"
"""


def run(folder: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("raycluster")
    return subprocess.run(
        [program, "export", *args],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), **env},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a spec whose only host nobody can reach."""
    (tmp_path / "cluster.toml").write_text(SPEC)
    return tmp_path


@pytest.mark.parametrize("format", ["compose", "systemd", "kuberay"])
def test_every_format_lists_its_files_and_needs_neither_hosts_nor_secrets(
    folder: Path, format: str
) -> None:
    done = run(folder, format)
    assert done.returncode == 0, done.stderr
    listed = [folder / line for line in done.stdout.splitlines()]
    assert folder / f"one-{format}" / "README.md" in listed
    assert all(path.is_file() for path in listed)
    again = run(folder, format, "cluster.toml", "-o", "again")
    assert [path.read_bytes() for path in listed] == [
        (folder / line).read_bytes() for line in again.stdout.splitlines()
    ]


def test_a_secret_that_is_nowhere_leaves_nothing_behind(folder: Path) -> None:
    done = run(folder, "compose", "--with-secrets")
    assert (done.returncode, done.stdout) == (2, "")
    assert "HF_TOKEN" in done.stderr
    assert [path.name for path in folder.iterdir()] == ["cluster.toml"]


def test_with_secrets_their_files_are_for_the_owner_alone(folder: Path) -> None:
    done = run(folder, "compose", "--with-secrets", HF_TOKEN="hf_0123")
    assert done.returncode == 0, done.stderr
    file = folder / "one-compose/head/secrets/head/secrets.json"
    assert (file.read_text(), file.stat().st_mode & 0o777) == ('{"HF_TOKEN": "hf_0123"}', 0o600)
    assert "hf_0123" not in done.stdout + done.stderr


def test_a_folder_that_is_there_is_refused_and_replaced_by_force(folder: Path) -> None:
    assert run(folder, "compose", "-o", "out").returncode == 0
    refused = run(folder, "compose", "-o", "out")
    assert refused.returncode == 2
    assert "out: is there already" in refused.stderr
    assert run(folder, "systemd", "-o", "out", "--force").returncode == 0
    assert (folder / "out/head/install.sh").is_file()
    assert not (folder / "out/head/compose.yaml").exists()


def test_an_unknown_format_names_those_that_there_are(folder: Path) -> None:
    done = run(folder, "helm")
    assert done.returncode == 2
    assert "kuberay" in done.stderr


def test_what_the_spec_leaves_open_is_read_from_the_host(folder: Path) -> None:
    here = SPEC.replace('host = "192.0.2.1"\ngpus = 0', 'transport = "local"')
    (folder / "cluster.toml").write_text(here)
    done = run(folder, "compose")
    assert done.returncode == 0, done.stderr
    assert "--node-ip-address=127.0.0.1" in (folder / "one-compose/head/compose.yaml").read_text()


@pytest.mark.parametrize("command", [("export", "compose"), ("support-bundle",)])
def test_what_makes_a_folder_or_an_archive_does_not_call_it_a_dash(
    folder: Path, command: tuple[str, ...]
) -> None:
    program = Path(sys.executable).with_name("raycluster")
    done = subprocess.run(
        [program, *command, "-o", "-"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "--output: " in done.stderr and "next: " in done.stderr
    assert not (folder / "-").exists()
