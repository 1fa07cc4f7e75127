"""Projects for Docker Compose: as the program itself reads them, and as one was looked at."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from raycluster.export.compose import compose
from raycluster.export.design import Design
from raycluster.export.tree import ExportedFile, write
from raycluster.spec import ClusterSpec
from tests.unit.export.designs import GIVEN, HUB, KEY, PLAIN, TOKEN, WHOLE, design_of

CHECKOUT = Path(__file__).parents[3]
GOLDEN = Path(__file__).with_name("compose.golden.yaml")


@pytest.fixture(scope="module")
def program() -> Path:
    """Docker Compose 2, as a Python package brings it."""
    done = subprocess.run(
        [CHECKOUT / "scripts/compose"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def read(program: Path, folder: Path, **env: str) -> dict[str, Any]:
    """Return the project in a folder as Docker Compose understands it."""
    done = subprocess.run(
        [program, "config", "--format", "json"],
        cwd=folder,
        env={"PATH": os.environ["PATH"], **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compose") / "out"
    write(compose(design_of()), folder)
    return folder


def test_docker_compose_reads_every_hosts_project(program: Path, exported: Path) -> None:
    services = {name: read(program, exported / name)["services"] for name in ("head", "worker-1")}
    assert {"prepare", "head", "gateway", "prometheus", "deploy"} <= services["head"].keys()
    assert set(services["worker-1"]) == {"prepare", "worker"}
    without = read(program, exported / "head", COMPOSE_PROFILES="")["services"]
    assert set(without) == {"prepare", "head", "deploy"}


def test_values_arrive_as_they_were_whatever_signs_they_hold(program: Path, exported: Path) -> None:
    head = read(program, exported / "head")["services"]["head"]
    # `config` writes each $ twice again
    assert head["environment"]["ODD"].replace("$$", "$") == WHOLE["runtime"]["env"]["ODD"]
    assert head["entrypoint"] == ["sh"]
    assert head["command"][0] == "-c"
    assert 'exec "$@"' in head["command"][1].replace("$$", "$")
    assert head["command"][2:5] == ["/raycluster", "ray", "start"]


def test_containers_are_held_as_tightly_as_ours(program: Path, exported: Path) -> None:
    for name, service in read(program, exported / "head")["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged"), name


def test_the_head_gets_its_gpus_and_folders(program: Path, exported: Path) -> None:
    head = read(program, exported / "head")["services"]["head"]
    [device] = head["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", 2, ["gpu"])
    mounts = {v["target"]: (v["type"], v.get("read_only", False)) for v in head["volumes"]}
    assert mounts == {
        "/raycluster": ("volume", False),
        "/models": ("bind", True),
        "/spare": ("volume", False),
    }
    assert head["shm_size"] == str(8 << 30)


def test_devices_limits_and_capabilities_are_those_of_the_spec(
    program: Path, tmp_path: Path
) -> None:
    runtime = {
        **{"devices": ["/dev/infiniband"], "ulimits": {"memlock": -1, "nofile": 1048576}},
        **{"cap_add": ["IPC_LOCK", "CHOWN"], "ipc": "host"},
    }
    head = {"host": "10.0.0.1", "runtime": runtime}
    design = design_of({"cluster": {"name": "one"}, "head": head})
    write(compose(design), tmp_path / "rdma")
    service = read(program, tmp_path / "rdma/head")["services"]["head"]
    [device] = service["devices"]
    assert device["source"] == device["target"] == "/dev/infiniband"
    assert service["ulimits"] == {"memlock": -1, "nofile": 1048576}
    assert service["cap_add"].count("CHOWN") == 1
    assert "IPC_LOCK" in service["cap_add"]
    assert service["ipc"] == "host"
    assert "shm_size" not in service


def test_all_gpus_are_asked_for_where_the_host_has_some(program: Path, tmp_path: Path) -> None:
    tables = {"cluster": {"name": "one"}, "head": {"host": "10.0.0.1"}}
    design = Design(ClusterSpec.model_validate(tables), {"head": "10.0.0.1"}, {"head": 4})
    write(compose(design), tmp_path / "some")
    services = read(program, tmp_path / "some/head")["services"]
    [device] = services["head"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["count"] == -1  # Docker's word for all
    assert set(services) == {"prepare", "head"}  # without a model there is nothing to deploy
    write(compose(replace(design, gpus={"head": 0})), tmp_path / "none")
    assert "deploy" not in read(program, tmp_path / "none/head")["services"]["head"]


@pytest.mark.parametrize(("gpus", "ids"), [([0, 2], ["0", "2"]), (["GPU-aaaa"], ["GPU-aaaa"])])
def test_named_gpus_are_asked_for_by_name(
    program: Path, tmp_path: Path, gpus: list[object], ids: list[str]
) -> None:
    design = design_of({"cluster": {"name": "one"}, "head": {"host": "10.0.0.1", "gpus": gpus}})
    assert design.gpus == {"head": len(ids)}
    write(compose(design), tmp_path / "named")
    head = read(program, tmp_path / "named/head")["services"]["head"]
    [device] = head["deploy"]["resources"]["reservations"]["devices"]
    assert device["device_ids"] == ids
    assert f"--num-gpus={len(ids)}" in head["command"]


def test_secrets_stand_in_files_of_their_owner_alone(tmp_path: Path) -> None:
    tree = compose(design_of(given=GIVEN))
    held = {path for path, entry in tree.items() if entry.mode == 0o600}
    assert held == {path for path in tree if "/secrets/" in path}
    assert "head/secrets/head/token" in held
    plain = b"".join(entry.content for path, entry in tree.items() if path not in held)
    for value in (TOKEN, KEY, HUB):
        assert value.encode() not in plain


def test_without_secrets_the_readme_says_what_is_missing() -> None:
    tree = compose(design_of())
    assert not any("/secrets/" in path for path in tree)
    told = tree["README.md"].content.decode()
    named = set(re.findall(r"^\| `HOST/secrets/(.+?)` \|", told, re.M))
    whole = {path for path in compose(design_of(given=GIVEN)) if "/secrets/" in path}
    assert named == {path.partition("/secrets/")[2] for path in whole}


def test_the_readme_leads_docker_to_the_socket_of_the_spec() -> None:
    sockets = [("/srv/a b.sock", "unix://'/srv/a b.sock'"), ("~/d.sock", 'unix://"$HOME"/d.sock')]
    for given, said in sockets:
        told = compose(design_of({**PLAIN, "runtime": {"socket": given}}))["README.md"]
        assert f"- On head, before any `docker` below: `export DOCKER_HOST={said}`" in (
            told.content.decode()
        )
    assert b"DOCKER_HOST" not in compose(design_of(PLAIN))["README.md"].content


def test_the_same_design_gives_the_same_files() -> None:
    assert compose(design_of()) == compose(design_of())


def test_it_is_as_it_was_last_looked_at() -> None:
    """After a wanted change, write the new file over compose.golden.yaml and look at the diff."""
    made = compose(design_of(PLAIN))["head/compose.yaml"]
    assert yaml.safe_load(made.content) == yaml.safe_load(GOLDEN.read_text())
    assert made == ExportedFile(GOLDEN.read_bytes())


def test_prepare_lays_files_where_another_user_can_read_them(tmp_path: Path) -> None:
    write(compose(design_of(given=GIVEN)), tmp_path / "out")
    script = (tmp_path / "out/head/prepare.sh").read_text()
    here = script.replace("/from/", f"{tmp_path}/out/head/").replace("/to/", f"{tmp_path}/to/")
    for role in ("head", "gateway"):
        (tmp_path / "to" / role).mkdir(parents=True)
    needed = {"NEEDED": "head/token head/secrets.json", "PATH": os.environ["PATH"]}
    subprocess.run(["sh", "-c", here, "prepare", "head", "gateway"], env=needed, check=True)
    to = tmp_path / "to"
    assert (to / "head/token").read_text() == TOKEN
    found = {p: p.stat().st_mode & 0o777 for p in to.rglob("*") if p.is_file()}
    assert found.pop(to / "head/code/haproxy") == 0o755
    assert set(found.values()) == {0o644}
    assert (to / "gateway/gateway/keys.conf").exists()
    assert (to / "gateway").stat().st_mode & 0o7777 == 0o1777

    (tmp_path / "out/head/secrets/head/token").write_text("")
    done = subprocess.run(
        ["sh", "-c", here, "prepare", "head"],
        env=needed,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "secrets/head/token is missing or empty" in done.stderr
