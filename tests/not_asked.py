"""Which cases of the conformance suite do not concern which backend, and why: told at the end of every run."""

from __future__ import annotations

from typing import Any

import pytest

#: The cases, by backend and reason.
CASES: dict[str, set[str]] = {}


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Of several processes each tells what it found; only the first one has a terminal (pytest-xdist)."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["not_asked"] = {reason: sorted(cases) for reason, cases in CASES.items()}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Another process has ended."""
    for reason, cases in getattr(node, "workeroutput", {}).get("not_asked", {}).items():
        CASES.setdefault(reason, set()).update(cases)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell."""
    if CASES:
        terminalreporter.section("conformance: what a backend is not asked")
    for reason, cases in sorted(CASES.items()):
        terminalreporter.line(f"{reason} ({len(cases)} cases)")
