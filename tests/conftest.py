"""With RAYCLUSTER_NO_SKIPS=1 a skip in the suites of real parts is a failure."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

# A shell's background jobs ignore Ctrl-C, and what they start does too: tests that send it need it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Several tests share the cores: none fails for being slow.
settings.register_profile(
    "here",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="CI" in os.environ,
)
settings.load_profile("here")

MUST_RUN = ("tests/browser/", "tests/contract/", "tests/lab/", "tests/local/", "tests/node/")


def pytest_runtest_setup() -> None:
    """Python drops what a signal's handler raises in such a callback, and hypothesis has one."""
    gc.callbacks.clear()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long tests to `make test-all`; pytest tells how many were deselected."""
    if os.environ.get("RAYCLUSTER_LONG") == "1":
        return
    long = [item for item in items if item.get_closest_marker("long")]
    items[:] = [item for item in items if item not in long]
    if long:
        config.hook.pytest_deselected(items=long)


def _refuse(report: pytest.TestReport | pytest.CollectReport) -> None:
    forbidden = os.environ.get("RAYCLUSTER_NO_SKIPS") == "1"
    expected = hasattr(report, "wasxfail") or not report.nodeid.startswith(MUST_RUN)
    if forbidden and report.skipped and not expected:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skips are refused here (RAYCLUSTER_NO_SKIPS=1): {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skipped test into a failed one."""
    report = yield
    _refuse(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn a skipped module into an error."""
    report = yield
    _refuse(report)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what tests tell whoever reads the log: their property `told`."""
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == "told":
                terminalreporter.write_line(str(value))
