"""A RayService: what stands in it. KubeRay's schema is in no package: see check_rayservice.py."""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import yaml

from raycluster.export.kuberay import code_zip, kuberay
from tests.unit.export.designs import GIVEN, HUB, KEY, PLAIN, TOKEN, WHOLE, design_of


def service(tables: dict[str, Any] = WHOLE) -> dict[str, Any]:
    """Return the RayService of a design, read back."""
    made: dict[str, Any] = yaml.safe_load(kuberay(design_of(tables))["rayservice.yaml"].content)
    return made


def container(group: dict[str, Any]) -> dict[str, Any]:
    [one] = group["template"]["spec"]["containers"]
    return dict(one)


def test_hosts_that_are_alike_are_one_group() -> None:
    cluster = service()["spec"]["rayClusterConfig"]
    [group] = cluster["workerGroupSpecs"]
    assert (group["groupName"], group["replicas"], group["maxReplicas"]) == ("gpu-1", 2, 2)
    assert container(group)["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    head = container(cluster["headGroupSpec"])
    assert head["resources"]["limits"] == {"cpu": "8", "nvidia.com/gpu": "2"}
    workers = [{"host": f"10.0.0.{n}", "gpus": n % 2, "num_cpus": n} for n in (2, 3, 5)]
    groups = service({**WHOLE, "workers": workers})["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert [g["groupName"] for g in groups] == ["cpu", "gpu-1", "gpu-1-2"]
    assert groups[0]["rayStartParams"] == {"num-cpus": "2", "num-gpus": "0"}


def test_ray_asks_for_a_token_that_the_operator_makes() -> None:
    cluster = service()["spec"]["rayClusterConfig"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == "2.60.0"


def test_serve_listens_where_the_operator_asks_and_finds_the_code() -> None:
    spec = service()["spec"]
    serve = yaml.safe_load(spec["serveConfigV2"])
    assert serve["http_options"] == {"host": "0.0.0.0", "port": 8000}
    assert [a["import_path"] for a in serve["applications"]] == ["raycluster.serve.app:build"]
    head = container(spec["rayClusterConfig"]["headGroupSpec"])
    env = {each["name"]: each.get("value") for each in head["env"]}
    assert env["PYTHONPATH"] == "/raycluster-code/code.zip"
    assert {"name": "code", "mountPath": "/raycluster-code", "readOnly": True} in head[
        "volumeMounts"
    ]
    assert env["ODD"] == WHOLE["runtime"]["env"]["ODD"].replace("$(", "$$(")
    assert "{root}" not in str(spec)


def test_secrets_are_referred_to_and_written_only_when_given() -> None:
    tree = kuberay(design_of())
    assert set(tree) == {"README.md", "code.yaml", "rayservice.yaml"}
    assert "--from-literal=HF_TOKEN=..." in tree["README.md"].content.decode()
    head = container(service()["spec"]["rayClusterConfig"]["headGroupSpec"])
    assert {
        "name": "HF_TOKEN",
        "valueFrom": {"secretKeyRef": {"name": "qwen-secrets", "key": "HF_TOKEN"}},
    } in head["env"]
    given = dict(kuberay(design_of(given=GIVEN)))
    assert given["secret.yaml"].mode == 0o600
    assert yaml.safe_load(given["secret.yaml"].content)["stringData"] == {"HF_TOKEN": HUB}
    del given["secret.yaml"]
    for entry in given.values():
        for value in (TOKEN, KEY, HUB):
            assert value.encode() not in entry.content
    assert set(kuberay(design_of(PLAIN, given=GIVEN))) == set(tree)


def test_python_imports_the_code_from_the_zip_file(tmp_path: Path) -> None:
    config = yaml.safe_load(kuberay(design_of())["code.yaml"].content)
    packed = base64.b64decode(config["binaryData"]["code.zip"])
    assert packed == code_zip()
    assert len(packed) < 180_000  # with base64 below what `kubectl apply` may keep, 256 KiB
    (tmp_path / "code.zip").write_bytes(packed)
    program = "import raycluster.serve.settings as s, raycluster.serve.send_app; print(s.__file__)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path / "code.zip")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(str(tmp_path / "code.zip"))
    names = zipfile.ZipFile(io.BytesIO(packed)).namelist()
    assert {"raycluster/serve/app.py", "raycluster/serve/engines/vllm.py"} <= set(names)
