"""The incident console on the memory broker."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import console_kit
import pytest
from flask import Flask
from flask.testing import FlaskClient

from incident_messaging import MessagingConfig


@pytest.fixture
def config() -> MessagingConfig:
    retry = {"max_attempts": 1}
    return MessagingConfig(backend="memory", topic_prefix=f"console-{uuid.uuid4().hex[:8]}", retry=retry)


@pytest.fixture
def start() -> Iterator[Callable[[MessagingConfig], Flask]]:
    """Start a server process's application."""
    apps: list[Flask] = []

    def start(config: MessagingConfig) -> Flask:
        apps.append(console_kit.create_app(config))
        return apps[-1]

    yield start
    for app in apps:
        console_kit.close(app)


@pytest.fixture
def app(start, config) -> Flask:
    return start(config)


@pytest.fixture
def client(app) -> FlaskClient:
    return app.test_client()
