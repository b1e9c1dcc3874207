"""What a framework's own decorator collects before there is a service: handlers, and the surroundings they need."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any

import attrs

from incident_messaging.consuming.delivery import Delivery
from incident_messaging.errors import ConfigurationError
from incident_messaging.handlers import Declared
from incident_messaging.service import MessagingService


@attrs.frozen
class Declaration(Declared):
    """A function that is to handle a topic, on every service that it is put on.

    Raises:
        ConfigurationError: It is a coroutine function, which nobody here would await.
    """

    def __attrs_post_init__(self) -> None:
        if inspect.iscoroutinefunction(self.function):
            raise ConfigurationError(f"the handler of {self.topic} must be a plain function, not a coroutine function")

    def put_on(self, service: MessagingService, within: Callable[[], AbstractContextManager[object]]) -> None:
        """Declare it on a service; each call happens within what ``within`` makes for it."""

        @wraps(self.function)
        def handle(delivery: Delivery[Any]) -> object:
            with within():
                return self.function(delivery)

        service.handler(self.topic, self.message_type, **self.options)(handle)
