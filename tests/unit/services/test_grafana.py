"""Grafana's configuration, its start, and where its password is and is not."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from raycluster.core import templates
from raycluster.core.interfaces import ROOT, Process, Secret
from raycluster.services.grafana import (
    DASHBOARDS,
    HOME,
    HOW_TO_READ,
    READ_PASSWORD,
    SOURCE_UID,
    grafana,
    grafana_ini,
)
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec

# Stands for the program: tells what it was started with.
PROGRAM = """\
#!/bin/sh
{ pwd; printf '%s\\n' "$@"; env; } >"$RAYCLUSTER_ROOT/told"
"""


def spec_of(*, ports: dict[str, int] | None = None, **monitoring: Any) -> ClusterSpec:
    return ClusterSpec.model_validate(
        {
            "cluster": {"name": "q"},
            "head": {"host": "h0"},
            "workers": [{"host": "h1", "name": "a"}],
            "monitoring": {"grafana": True, **monitoring},
            "ports": ports or {},
        }
    )


def process(spec: ClusterSpec) -> Process:
    made = grafana(spec, spec.hosts[0], Wiring({"head": "10.0.0.1"}, Secret("t")))
    assert made
    return made


def settings(spec: ClusterSpec) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(grafana_ini(spec).decode())
    return parser


def test_it_runs_on_the_head_alone_and_only_when_asked_for() -> None:
    spec = spec_of()
    wiring = Wiring({}, Secret("t"))
    assert [bool(grafana(spec, host, wiring)) for host in spec.hosts] == [True, False]
    without = spec_of(grafana=False)
    assert grafana(without, without.hosts[0], wiring) is None


def test_without_prometheus_there_is_nothing_to_show() -> None:
    with pytest.raises(ValueError, match="needs `prometheus = true`"):
        spec_of(prometheus=False)


def test_it_listens_on_loopback_at_the_port_of_the_spec() -> None:
    server = settings(spec_of(ports={"grafana": 3300}))["server"]
    assert (server["http_addr"], server["http_port"]) == ("127.0.0.1", "3300")
    assert process(spec_of(ports={"grafana": 3300})).ports == {"grafana": 3300}


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("auth.anonymous", "enabled", "false"),
        ("public_dashboards", "enabled", "false"),
        ("users", "allow_sign_up", "false"),
        ("analytics", "enabled", "false"),
        ("analytics", "reporting_enabled", "false"),
        ("analytics", "check_for_updates", "false"),
        ("analytics", "check_for_plugin_updates", "false"),
        ("analytics", "feedback_links_enabled", "false"),
        ("security", "disable_gravatar", "true"),
        ("news", "news_feed_enabled", "false"),
        ("snapshots", "external_enabled", "false"),
        ("plugins", "preinstall_disabled", "true"),
        ("plugins", "public_key_retrieval_disabled", "true"),
    ],
)
def test_strangers_see_nothing_and_the_vendor_is_told_nothing(
    section: str, name: str, value: str
) -> None:
    assert settings(spec_of())[section][name] == value


def test_the_data_source_is_the_prometheus_of_the_spec_under_the_dashboards_name_for_it() -> None:
    files = process(spec_of(ports={"prometheus": 9300})).files
    told = yaml.safe_load(files["grafana/provisioning/datasources/raycluster.yaml"])
    assert told["apiVersion"] == 1
    [source] = told["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://127.0.0.1:9300")
    assert (source["uid"], source["isDefault"], source["editable"]) == (SOURCE_UID, True, False)


def test_dashboards_come_from_the_folder_where_the_files_are_laid() -> None:
    made = process(spec_of())
    told = yaml.safe_load(made.files["grafana/provisioning/dashboards/raycluster.yaml"])
    [provider] = told["providers"]
    assert provider["type"] == "file"
    assert not provider["allowUiUpdates"]
    assert provider["options"] == {"path": f"$RAYCLUSTER_ROOT/{DASHBOARDS}"}
    laid = {name: text for name, text in made.files.items() if name.startswith(f"{DASHBOARDS}/")}
    assert laid.keys() == {f"{DASHBOARDS}/{name}" for name in templates.plain(DASHBOARDS)}
    assert all(json.loads(text)["uid"] for text in laid.values())
    home = made.env["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{ROOT}/{DASHBOARDS}/{HOME}"
    assert f"{DASHBOARDS}/{HOME}" in laid


def test_another_port_starts_it_again_and_another_worker_does_not() -> None:
    before = process(spec_of())
    assert process(spec_of(ports={"grafana": 3300})).fingerprint != before.fingerprint
    alone = ClusterSpec.model_validate(
        {"cluster": {"name": "q"}, "head": {"host": "h0"}, "monitoring": {"grafana": True}}
    )
    assert process(alone).fingerprint == before.fingerprint


def start(root: Path, *, installed: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the process's own command as a runtime would, with files laid and ROOT put in."""
    made = process(spec_of())
    for name, content in made.files.items():
        (root / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    programs = root / "bin"
    if installed:
        programs.mkdir(exist_ok=True)
        (programs / "grafana").write_text(PROGRAM)
        (programs / "grafana").chmod(0o755)
    env = {name: value.replace(ROOT, str(root)) for name, value in made.env.items()}
    argv = [part.replace(ROOT, str(root)) for part in made.argv]
    env["PATH"] = f"{programs}:/usr/bin:/bin"
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False)


def test_the_first_start_makes_a_password_and_the_next_one_keeps_it(tmp_path: Path) -> None:
    assert start(tmp_path).returncode == 0
    made = {name: tmp_path / "grafana" / name for name in ("password", "secret-key")}
    first = {name: path.read_text() for name, path in made.items()}
    assert all(re.fullmatch(r"[A-Za-z0-9]{32}", text) for text in first.values())
    assert first["password"] != first["secret-key"]
    assert {path.stat().st_mode & 0o777 for path in made.values()} == {0o600}
    assert start(tmp_path).returncode == 0
    assert {name: path.read_text() for name, path in made.items()} == first


def test_grafana_is_told_where_the_password_is_and_never_what_it_is(tmp_path: Path) -> None:
    done = start(tmp_path)
    told = (tmp_path / "told").read_text()
    folder = tmp_path / "grafana"
    assert f"--config={folder}/grafana.ini" in told.splitlines()
    assert f"GF_SECURITY_ADMIN_PASSWORD=$__file{{{folder}/password}}" in told.splitlines()
    assert (folder / "data").is_dir()
    for name in ("password", "secret-key"):
        assert (folder / name).read_text() not in told + done.stdout + done.stderr


def test_the_password_is_read_again_by_the_command_that_people_are_told(tmp_path: Path) -> None:
    start(tmp_path)
    env = {"PATH": "/usr/bin:/bin", "RAYCLUSTER_ROOT": str(tmp_path)}
    password = (tmp_path / "grafana" / "password").read_text()
    command = HOW_TO_READ.partition(" -- ")[2]
    for argv in (READ_PASSWORD, ("sh", "-c", command)):
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=True)
        assert done.stdout == password


def test_where_it_is_not_installed_the_first_line_says_so(tmp_path: Path) -> None:
    done = start(tmp_path, installed=False)
    assert (done.returncode, done.stderr) == (127, "grafana is not installed\n")
    assert not (tmp_path / "grafana" / "password").exists()
