from __future__ import annotations

from pathlib import Path

import pytest

from raycluster.serve.engines.server import ServerEndedError
from raycluster.serve.rootcause import MARK, explain, last_exception, one_line, root_cause, why_dead

DATA = Path(__file__).parent / "data"
NO_MEMORY = (
    "ValueError: Available memory on node 0 (6.66/9.96 GiB) on kv cache allocation is less than "
    "requested memory for kv (9999.0 GiB). Decrease --kv-cache-memory-bytes, "
    "VLLM_CPU_KVCACHE_SPACE, or reduce CPU memory used by other processes."
)


@pytest.mark.parametrize(
    ("recorded", "cause"),
    [
        (
            "unknown_argument.txt",
            "vllm: engine_args: vLLM has no argument 'max_modle_len': "
            "did you mean 'max_model_len'?",
        ),
        (
            "no_mark.txt",
            "ModuleNotFoundError: No module named 'raycluster'",
        ),
    ],
)
def test_root_cause_of_recorded_status_messages(recorded: str, cause: str) -> None:
    assert root_cause((DATA / recorded).read_text()) == cause


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("", ""),
        ("Deploying.\n\n", "Deploying."),
        (f"RuntimeError: {MARK}first\nRuntimeError: {MARK}second\n  more", "second"),
        ("Traceback\nKeyError: 'a'\n\nDuring handling\nOSError: b\n", "OSError: b"),
        (
            "Failed to update the deployments ['Model'].",
            "Failed to update the deployments ['Model'].",
        ),
        ("2026-11-30 06:45:42,123\tINFO a.py:1 -- \x1b[36mWelcome\x1b[39m\n", ""),
        ("\x1b[37mINFO\x1b[39m ready", ""),
        (
            "sh: 1: ray: not found\n2026-11-30 06:45:42,123\tINFO a.py:1 -- on",
            "sh: 1: ray: not found",
        ),
        ("\x1b[31mno such file\x1b[0m", "no such file"),
        (
            "ray::HAProxyManager.ready()\nRuntimeError: HAProxy crashed during startup: [NOTICE]   "
            "(9) : haproxy version is 2.8.25\n[NOTICE]   (9) : path to executable is /x/haproxy\n"
            "[ALERT]    (9) : Binding [a.cfg:9] for frontend x: cannot bind socket (Address "
            "already in use) for [127.0.0.1:1]\n[ALERT]    (9) : [/x/haproxy.main()] Some "
            "protocols failed to start their listeners! Exiting.\n",
            "HAProxy does not start: Binding [a.cfg:9] for frontend x: cannot bind socket (Address "
            "already in use) for [127.0.0.1:1]",
        ),
        (
            "RuntimeError: HAProxy crashed during startup: [ALERT]    (9) : config : parsing "
            "[a.cfg:3] : unknown keyword 'x' in 'global' section\n[ALERT]    (9) : config : Fatal "
            "errors found in configuration.",
            "HAProxy does not start: config : parsing [a.cfg:3] : unknown keyword 'x' in 'global' "
            "section",
        ),
        (
            "RuntimeError: HAProxy crashed during startup: exit code 139",
            "RuntimeError: HAProxy crashed during startup: exit code 139",
        ),
        (
            "[2026-11-30 06:45:42,123 E 1 2] (gcs) no port\n[2026-11-30 06:45:42,9 I 1 2] on",
            "[2026-11-30 06:45:42,123 E 1 2] (gcs) no port",
        ),
        (
            'time=2026 level=ERROR msg="bad"\ntime=2026 level=INFO msg=on',
            'time=2026 level=ERROR msg="bad"',
        ),
        ("ERROR:    [Errno 98] in use\nINFO:     on", "ERROR:    [Errno 98] in use"),
    ],
)
def test_root_cause(message: str, cause: str) -> None:
    assert root_cause(message) == cause


def test_the_engine_process_says_why_when_the_parent_does_not() -> None:
    parent = RuntimeError(
        "Engine core initialization failed. See root cause above. Failed core proc(s): "
        "{'EngineCore_DP0': 1}"
    )
    assert explain(parent, (DATA / "engine_core.log").read_text()) == NO_MEMORY


@pytest.mark.parametrize(
    ("code", "written", "told"),
    [
        (1, (DATA / "engine_core.log").read_text(), NO_MEMORY),
        (
            1,
            "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause "
            "above. Failed core proc(s): {'EngineCore': -11}",
            "the engine's process: a crash in native code (signal 11)",
        ),
        (132, "ValueError: older", "the engine's process: illegal instruction: this processor"),
        (-9, "", "the engine's process: was killed (signal 9)"),
        (3, "nothing", "ServerEndedError: the engine's server exited with code 3"),
        (
            1,
            "INFO 11-30 01:02:03 [a.py:1] begun\n"
            "/env/bin/python: Error while finding module specification for "
            "'vllm.entrypoints.cli.main' (ModuleNotFoundError: No module named 'vllm')\n"
            "INFO 11-30 01:02:04 [a.py:1] over\n\n",
            "ServerEndedError: the engine's server exited with code 1: /env/bin/python: Error "
            "while "
            "finding module specification for 'vllm.entrypoints.cli.main' (ModuleNotFoundError: "
            "No module named 'vllm')",
        ),
        (
            127,
            "vllm: error while loading shared libraries: libcuda.so.1: cannot open\n",
            "ServerEndedError: the engine's server exited with code 127: vllm: error while loading "
            "shared libraries: libcuda.so.1",
        ),
        (
            1,
            "INFO all checks passed",
            "ServerEndedError: the engine's server exited with code 1: see",
        ),
    ],
)
def test_why_a_server_did_not_start(code: int, written: str, told: str) -> None:
    assert explain(ServerEndedError(code, written), written).startswith(told)


def test_what_a_server_wrote_goes_before_its_end_as_the_replica_has_logged_it() -> None:
    error = ServerEndedError(1, "/env/bin/python: No module named vllm\n")
    logged = (
        f"{error.written}Traceback (most recent call last):\nserver.ServerEndedError: {error}\n"
    )
    assert explain(error, logged).endswith("code 1: /env/bin/python: No module named vllm")


def test_a_killed_engine_process_left_no_word() -> None:
    parent = RuntimeError("See root cause above. Failed core proc(s): {'EngineCore_DP0': -9}")
    assert "signal 9" in explain(parent, "")


def test_nothing_captured_leaves_the_parent_s_own_words() -> None:
    parent = RuntimeError("Engine core initialization failed. See root cause above.")
    assert explain(parent, "INFO all checks passed") == one_line(parent)


def test_an_error_of_this_process_is_its_own_explanation() -> None:
    assert explain(ImportError("libx.so.1: not found"), "ValueError: older") == (
        "ImportError: libx.so.1: not found"
    )


def test_pydantic_s_message_is_on_the_lines_that_follow() -> None:
    log = (
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
        "  Value error, The checkpoint is not known. [type=value_error, input_value=ArgsKwargs(("
        "), {'a': 1}), input_type=ArgsKwargs]\n"
        "    For further information visit https://errors.pydantic.dev/2.14/v/value_error\n"
    )
    assert last_exception(log) == "ModelConfig: The checkpoint is not known."


def test_a_long_message_is_cut() -> None:
    assert len(one_line(ValueError("x" * 5000))) == 400
    assert one_line(ValueError("It is long. " + "x" * 5000)) == "ValueError: It is long."


DEAD = RuntimeError("EngineCore encountered an issue. See stack trace (above) for the root cause.")


@pytest.mark.parametrize(
    ("error", "written", "cause"),
    [
        (RuntimeError("no response"), "", "RuntimeError: no response"),
        (DEAD, "", "its process ended without an error (killed?)"),
        (
            DEAD,
            "ERROR 11-24 22:00:00 [serving.py:1] \nValueError: a client's mistake",
            "its process ended without an error (killed?)",
        ),
        (
            DEAD,
            "(EngineCore pid=5) ERROR 11-24 22:00:00 [core.py:1] torch.StrangeError: 2 GiB\n"
            "ValueError: a client's mistake",
            "torch.StrangeError: 2 GiB",
        ),
    ],
)
def test_a_dead_engine_s_own_words_tell_why(error: Exception, written: str, cause: str) -> None:
    assert why_dead(error, written) == cause
