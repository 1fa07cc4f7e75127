"""A whole archive of a cluster on this machine: real processes, but no Ray; one host is away."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from raycluster.core.interfaces import Process, Secret, Versions
from raycluster.hosts.fleet import connect
from raycluster.services.gateway import nginx_conf
from raycluster.services.node_files import secret_files
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec, read_spec
from raycluster.spec.secret_values import Secrets

HF, KEY, ODD = "hf_Lab0123456789abcdef", 'sk-A+/="&%k(e)y.0123', 'pass "w/o" end\\é+1'
TOKEN, PASSWORD, FORMER = "f0" * 32, "proxy-passw0rd", "former-Key-0123456789"
PLAIN, GRAFANA = "literal-S3cret-value", "grafana-admin-pw-77"
USER, REGISTRY = "robot-account", "registry/p@ss=word"
ALL = (HF, KEY, ODD, TOKEN, PASSWORD, FORMER, PLAIN, GRAFANA, USER, REGISTRY)
SPEC = f"""
cluster.name = "c"
models = [{{ name = "m" }}]
[head]
transport = "local"
private_address = "10.0.0.1"
gpus = 0
[[workers]]
name = "away"
host = "127.0.0.1"
port = 1
[runtime]
kind = "native"
python = "{sys.executable}"
start_on_boot = false
[env]
DB_PASSWORD = "{PLAIN}"
[secrets]
HF_TOKEN = "env:LAB_HF"
ODD = "env:LAB_ODD"
[registry]
server = "registry.example"
username = "env:LAB_USER"
password = "env:LAB_REGISTRY"
[gateway]
api_keys = {{ alice = "env:LAB_KEY" }}
"""
SAYS = r"""
logs="$RAY_TMPDIR/ray/session_1/logs"
mkdir -p "$logs/serve" "$logs/events" && ln -s session_1 "$RAY_TMPDIR/ray/session_latest"
printenv SAID | tee "$logs/gcs_server.out" "$logs/raylet.err" "$logs/serve/controller_1.log"
{ echo ":actor_name:ServeReplica:m:Model"; printenv SAID; } >"$logs/worker-a-02-7.err"
echo "another worker" >"$logs/worker-b-02-8.err"
sleep 1000
"""


@dataclass(frozen=True)
class Here:
    """A folder with a spec, whose program knows the secrets."""

    folder: Path
    spec: ClusterSpec

    def bundle(self, *more: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `support-bundle`."""
        program = Path(sys.executable).with_name("raycluster")
        secrets = {"LAB_HF": HF, "LAB_ODD": ODD, "LAB_KEY": KEY, "LAB_USER": USER}
        secrets["LAB_REGISTRY"] = REGISTRY
        return subprocess.run(
            (program, "support-bundle", *more),
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder), **secrets, **env},
            capture_output=True,
            text=True,
            check=False,
        )


def written(value: str) -> Iterator[str]:
    """Yield how a secret may have been written."""
    yield from (value, json.dumps(value), quote(value, safe=""), quote_plus(value))
    for before in ("", "a", "user:"):
        yield base64.b64encode((before + value).encode()).decode()
    yield value.encode().hex()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    """A head and a gateway that wrote all secrets in every way, in a home of their own."""
    folder = tmp_path_factory.mktemp("here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        yield from _running(folder)


def _running(folder: Path) -> Iterator[Here]:
    path = folder / "cluster.toml"
    path.write_text(SPEC)
    spec = read_spec(path)
    runtime = connect(spec.hosts[0], "c").runtime
    known = [value for value in ALL if value != FORMER]
    said = "\n".join(f"said {form}" for value in known for form in written(value))
    said += f"\nhttps://me:{PASSWORD}@proxy/ gone\nBearer {FORMER}\n"
    secrets = {"HF_TOKEN": Secret(HF), "ODD": Secret(ODD)}
    former = Secrets(api_keys={"alice": Secret(FORMER)})
    conf = nginx_conf(spec, spec.hosts[0], Wiring({"head": "10.0.0.1"}, Secret(TOKEN), former))
    env = {"SAID": said, "DB_PASSWORD": PLAIN, "PROXY": f"http://me:{PASSWORD}@proxy:1/"}
    try:
        for role, files in (
            ("head", secret_files(Secret(TOKEN), secrets)),
            ("gateway", {"gateway/nginx.conf": conf, "gateway/password": GRAFANA.encode()}),
        ):
            process = Process(role, ("sh", "-c", SAYS if role == "head" else "env; sleep 99"), env)
            runtime.start(process, Versions(), files, lambda _: None)
        yield Here(folder, spec)
    finally:
        runtime.remove()


def read(path: Path) -> Mapping[str, bytes]:
    """Return the archive's files by their paths below its folder."""
    with tarfile.open(path) as tar:
        found = {m.name.partition("/")[2]: tar.extractfile(m) for m in tar}
        return {name: file.read() for name, file in found.items() if file}


def test_an_archive_tells_all_that_can_be_had_and_no_secret(here: Here) -> None:
    done = here.bundle("-o", "first.tar.gz", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    path = here.folder / "first.tar.gz"
    assert (told["schema"], told["bytes"]) == (1, path.stat().st_size)
    assert path.stat().st_mode & 0o777 == 0o600
    files = read(path)
    manifest: dict[str, Any] = json.loads(files["manifest.json"])
    assert manifest["schema"] == 1
    assert {f["path"] for f in manifest["files"]} == files.keys() - {"manifest.json"}
    assert files.keys() > {
        *("spec.json", "versions.json", "status.json", "errors.txt"),
        *("hosts/head/system.txt", "hosts/head/docker.txt", "hosts/head/processes.json"),
        *("hosts/head/logs/head.log", "hosts/head/logs/gateway.log", "hosts/away/error.txt"),
        *("hosts/head/head/environment.json", "hosts/head/head/packages.txt"),
        *("hosts/head/head/ray/gcs_server.out", "hosts/head/head/ray/raylet.err"),
        *("hosts/head/head/ray/serve/controller_1.log", "hosts/head/head/ray/worker-a-02-7.err"),
        *("hosts/head/gateway/config.txt", "hosts/head/gateway/environment.json"),
    }
    assert "hosts/head/head/ray/worker-b-02-8.err" not in files
    for value in ALL:
        for form in written(value):
            holding = [n for n, data in files.items() if form.strip('"').encode() in data]
            assert holding == [], form
    assert b"typer==" in files["hosts/head/head/packages.txt"]
    assert b"said ***" in files["hosts/head/logs/head.log"]
    config = files["hosts/head/gateway/config.txt"]
    assert b"listen" in config and b"bearer" not in config.lower()
    environment = json.loads(files["hosts/head/gateway/environment.json"])
    assert (environment["PROXY"], environment["SAID"]) == ("***", "***")
    assert "/bin" in environment["PATH"]
    assert b"https://me:***@proxy/ gone" in files["hosts/head/head/ray/gcs_server.out"]


def test_what_is_away_is_named_and_costs_its_part_alone(here: Here) -> None:
    done = here.bundle("-o", "away.tar.gz")
    assert done.returncode == 0, done.stderr
    assert any(line.startswith("away: ") for line in done.stderr.splitlines())
    assert any(line.startswith("head: ") and "files" in line for line in done.stderr.splitlines())
    files = read(here.folder / "away.tar.gz")
    failed = {f["part"]: f["error"] for f in json.loads(files["manifest.json"])["failed"]}
    assert failed["hosts/away/host"] in files["hosts/away/error.txt"].decode()
    assert failed["plan.txt"] == "left out: not available: away"


def test_secrets_that_cannot_be_read_here_are_masked_by_what_the_host_holds(here: Here) -> None:
    done = here.bundle("-o", "unset.tar.gz", LAB_HF="")
    assert done.returncode == 0, done.stderr
    files = read(here.folder / "unset.tar.gz")
    failed = {f["part"]: f["error"] for f in json.loads(files["manifest.json"])["failed"]}
    assert "the variable LAB_HF is empty" in failed["secrets"]
    for value in (HF, ODD, TOKEN):
        assert [n for n, data in files.items() if value.encode() in data] == []


def test_a_file_that_is_there_is_kept_without_force(here: Here) -> None:
    (here.folder / "b.tar.gz").write_text("mine")
    done = here.bundle("-o", "b.tar.gz")
    assert (done.returncode, done.stdout) == (2, "")
    assert "already exists" in done.stderr
    assert (here.folder / "b.tar.gz").read_text() == "mine"
    assert here.bundle("-o", "b.tar.gz", "--force").returncode == 0
    assert "manifest.json" in read(here.folder / "b.tar.gz")
