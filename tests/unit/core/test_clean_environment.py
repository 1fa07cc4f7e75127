"""Which variables commands on hosts find."""

from __future__ import annotations

from raycluster.core.clean_environment import KEPT, SET, cleaned
from raycluster.hosts.runtimes.native_host import PASSED


def test_what_changes_programs_is_not_kept_and_what_leads_out_is() -> None:
    given = dict.fromkeys(
        (*KEPT, "RAY_ADDRESS", "PYTHONHOME", "LD_PRELOAD", "HF_HOME", "LANG"), "x"
    )
    assert cleaned({**given, "LC_ALL": "de_DE.UTF-8"}) == {**dict.fromkeys(KEPT, "x"), **SET}
    ours = (
        "RAY",
        "PYTHON",
        "VLLM",
        "HF_",
        "CUDA_V",
        "NVIDIA",
        "LC_",
        "LANG",
        "LD_P",
        "BASH",
        "ENV",
    )
    assert "SSH_CONNECTION" in KEPT  # the firewall asks for it
    assert [name for name in KEPT if name.startswith(ours)] == []


def test_nodes_are_given_nothing_that_commands_do_not_find() -> None:
    assert set(PASSED) <= set(KEPT)
