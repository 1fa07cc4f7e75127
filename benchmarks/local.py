"""A cluster of this machine alone for a benchmark: native runtime, no SSH, no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROGRAM = Path(sys.executable).with_name("raycluster")
API = 28000
SPEC = """
[cluster]
name = "{name}"
app_timeout = 900

[runtime]
kind = "native"
python = "{node}/bin/python"
start_on_boot = false

[head]
transport = "local"
gpus = {gpus}

[env]
TURN = "{turn}"

[ports]
{ports}

[[models]]
name = "model"
source = "{model}"
engine = "vllm"
engine_args = {arguments}
replicas = {replicas}
num_gpus = {share}
"""


def ports() -> str:
    """Return ports of our own, so that a cluster with the default ones may stay."""
    names = [
        *("dashboard", "gcs", "node_manager", "object_manager", "dashboard_agent_grpc"),
        *("dashboard_agent_http", "runtime_env_agent", "metrics", "ray_client"),
    ]
    lines = [f"{name} = {API + at}" for at, name in enumerate(("api", *names))]
    return "\n".join([*lines, f"worker_min = {API + 100}", f"worker_max = {API + 999}"])


def made_by(script: str) -> str:
    """Run one of the scripts that make what is needed; its last line is a path."""
    done = subprocess.run(
        [ROOT / "scripts" / script], check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.split("\n")[-2]


@dataclass(frozen=True)
class Local:
    """The program on this machine, with a home folder of its own."""

    name: str
    home: Path

    def up(
        self,
        model: str,
        arguments: str,
        turn: str = "1",
        gpus: int = 0,
        replicas: int = 1,
    ) -> dict[str, Any]:
        """Serve the model, and return what `up` tells; another `turn` replaces the replica.

        Several replicas share the GPUs.
        """
        text = SPEC.format(
            gpus=gpus,
            replicas=replicas,
            share=gpus / replicas,
            name=self.name,
            node=made_by("node-env"),
            model=model,
            arguments=arguments,
            turn=turn,
            ports=ports(),
        )
        self.spec.write_text(text)
        return dict(json.loads(self.run("up", self.spec, "--json")))

    def down(self) -> None:
        """Remove everything."""
        self.run("down", self.spec, "--yes")

    @property
    def spec(self) -> Path:
        """The cluster's TOML file."""
        return self.home / "cluster.toml"

    def run(self, *args: str | Path) -> str:
        """Run the program; return what it prints, or end this one when it fails."""
        env = {"PATH": os.environ["PATH"], "HOME": str(self.home), "LANG": "C.UTF-8"}
        command = [PROGRAM, *args]
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"raycluster {args} ended with {done.returncode}\n{done.stdout}")
        return done.stdout
