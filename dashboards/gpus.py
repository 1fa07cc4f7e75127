"""GPUs, and on hosts without any the CPUs and memory that do their work."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import units

from dashboards.parts import AnyPanel, Line, chooser, graph, page, warn
from dashboards.queries import NODE, PER

GPU = "{{node}} GPU {{GpuIndex}}"


def gpus() -> dashboard.Dashboard:
    """Return the page of the machines' processors."""
    return page(
        "gpus",
        "GPUs",
        "How busy, full, hot and hungry each GPU is; and CPU and memory, which do the work on "
        "hosts without GPUs.",
        [
            ("GPUs, as Ray sees them", _gpus()),
            ("GPUs, as an exporter sees them ([monitoring] gpu_exporter_port)", _exporter()),
            ("CPU and memory", _hosts()),
            ("Network and disk", _traffic()),
        ],
        [chooser("node", "Node", 'up{job="ray"}')],
    )


def _gpus() -> list[AnyPanel]:
    used, free = f"ray_node_gram_used{NODE}", f"ray_node_gram_available{NODE}"
    return [
        graph(
            "GPU utilization",
            "The share of time in which a kernel ran. It says nothing of how full the GPU was "
            "while one did. Low under load: the queue, the CPU or the network is what is slow.",
            units.PercentUnit,
            Line(f"ray_node_gpus_utilization{NODE} / 100", GPU),
            width=12,
            top=1,
        ),
        graph(
            "GPU memory in use",
            "The share of each GPU's memory. vLLM takes what gpu_memory_utilization says at its "
            "start: a full GPU is no sign of load.",
            units.PercentUnit,
            Line(f"{used} / ({used} + {free})", GPU),
            limits=warn(0.95, bad=0.98),
            width=12,
            top=1,
        ),
        graph(
            "GPU memory",
            "In bytes. Ray counts it in MiB.",
            units.BytesIEC,
            Line(f"{used} * 1048576", GPU),
        ),
        graph(
            "GPU temperature",
            "Most GPUs slow themselves down from 83 to 90 degrees Celsius on.",
            units.Celsius,
            Line(f"ray_node_gpu_temperature_celsius{NODE}", GPU),
            limits=warn(80, bad=88),
        ),
        graph(
            "GPU power",
            "What each GPU draws.",
            units.Watt,
            Line(f"ray_node_gpu_power_milliwatts{NODE} / 1000", GPU),
        ),
    ]


def _exporter() -> list[AnyPanel]:
    name = "{{node}} GPU {{gpu}}"
    return [
        graph(
            "XID errors",
            "The code of the driver's last error on each GPU; 0 is none. What codes mean stands "
            "in NVIDIA's list of XID errors: 48, 63, 79 and 94 want a look at the hardware.",
            units.Number,
            Line(f"DCGM_FI_DEV_XID_ERRORS{NODE}", name),
            limits=warn(1, bad=1),
        ),
        graph(
            "Memory errors that could not be corrected",
            "Rows of memory that the GPU replaced for good. More and more: exchange the GPU.",
            units.Number,
            Line(f"DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS{NODE}", name),
            limits=warn(1, bad=4),
        ),
        graph(
            "GPU memory at work",
            "The share of time in which memory was read or written. Generating tokens is limited "
            "by that more often than by arithmetic.",
            units.PercentUnit,
            Line(f"DCGM_FI_DEV_MEM_COPY_UTIL{NODE} / 100", name),
            top=1,
        ),
    ]


def _hosts() -> list[AnyPanel]:
    used, all_of_it = f"ray_node_mem_used{NODE}", f"ray_node_mem_total{NODE}"
    return [
        graph(
            "CPU",
            "How busy each machine's CPUs are, all processes counted.",
            units.PercentUnit,
            Line(f"ray_node_cpu_utilization{NODE} / 100", PER),
            top=1,
        ),
        graph(
            "Memory in use",
            "The share of each machine's memory. Above 95% Ray ends processes.",
            units.PercentUnit,
            Line(f"{used} / {all_of_it}", PER),
            limits=warn(0.9, bad=0.95),
            top=1,
        ),
        graph(
            "Memory",
            "In bytes.",
            units.BytesIEC,
            Line(used, PER),
        ),
    ]


def _traffic() -> list[AnyPanel]:
    return [
        graph(
            "Network, received",
            "By all interfaces of a machine.",
            units.BytesPerSecondIEC,
            Line(f"ray_node_network_receive_speed{NODE}", PER),
            width=6,
        ),
        graph(
            "Network, sent",
            "By all interfaces of a machine.",
            units.BytesPerSecondIEC,
            Line(f"ray_node_network_send_speed{NODE}", PER),
            width=6,
        ),
        graph(
            "Disk, read",
            "By all disks of a machine. High at an engine's start: weights are loaded.",
            units.BytesPerSecondIEC,
            Line(f"ray_node_disk_io_read_speed{NODE}", PER),
            width=6,
        ),
        graph(
            "Disk in use",
            "The share in use of the disk that holds Ray's files.",
            units.PercentUnit,
            Line(f"ray_node_disk_utilization_percentage{NODE} / 100", PER),
            limits=warn(0.8, bad=0.9),
            width=6,
            top=1,
        ),
    ]
