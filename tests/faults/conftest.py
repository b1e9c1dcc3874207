"""The fault cases run on both brokers, each case on a broker of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from rigs import RIGS, Rig

from incident_messaging import MessagingConfig, MessagingService

NewService = Callable[..., MessagingService]


@pytest.fixture(params=sorted(RIGS))
def rig(request: pytest.FixtureRequest, nothing_left_behind: None) -> Iterator[Rig]:
    with RIGS[request.param]() as rig:
        yield rig


@pytest.fixture
def new_service(rig: Rig) -> Iterator[NewService]:
    with ExitStack() as open_ones:

        def make(**overrides: Any) -> MessagingService:
            service = MessagingService(MessagingConfig.from_mapping({**rig.settings, **overrides}))
            open_ones.callback(service.close)
            return service

        yield make
