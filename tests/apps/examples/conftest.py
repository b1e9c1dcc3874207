"""The examples of the documentation as processes, and a service of the test's own that sees what they publish."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from app_kit import App, running
from example_kit import EXAMPLES, Start

from incident_messaging import MessagingConfig, MessagingService
from incident_messaging.brokers.ports import free_port


@pytest.fixture
def environment(settings: dict[str, Any]) -> dict[str, str]:
    """What says to an example where its broker is."""
    found = {"PYTHONPATH": str(EXAMPLES), "PYTHONDONTWRITEBYTECODE": "1"}
    for name, value in settings.items():
        section = value if isinstance(value, dict) else {"": value}
        for field, text in section.items():
            variable = "__".join(part for part in (name, field) if part)
            found[f"INCIDENT_MESSAGING_{variable}".upper()] = ",".join(text) if isinstance(text, list) else str(text)
    return found


@pytest.fixture
def service(settings: dict[str, Any]) -> Iterator[MessagingService]:
    with MessagingService(MessagingConfig.from_mapping(settings)) as service:
        yield service


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Start ``python ...`` with a port, and wait until that answers; ``{port}`` in the arguments is its number."""
    with ExitStack() as stack:

        def begin(*command: str, serves: bool = True, **more: str) -> App:
            port = free_port()
            words = [word.format(port=port) for word in command]
            process = running(words, environment | more, tmp_path, log="log", port=port if serves else 0)
            return stack.enter_context(process)

        yield begin


@pytest.fixture
def flask(start: Start) -> Callable[[str], App]:
    return lambda name: start("-m", "flask", "--app", name, "run", "--port", "{port}")
