"""Handlers that are declared in modules, and what they need round each call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, Unpack

from django.db import connections, reset_queries
from django.utils.module_loading import autodiscover_modules

from incident_messaging.consuming.options import HandlerOptions
from incident_messaging.contrib.declarations import Declaration
from incident_messaging.service import MessagingService

F = TypeVar("F", bound=Callable[..., object])

#: The module of an installed application in which handlers are looked for.
MODULE = "incident_handlers"

_declarations: list[Declaration] = []


def handler(topic: str, message_type: Any = dict, **options: Unpack[HandlerOptions]) -> Callable[[F], F]:
    """Declare a function in ``incident_handlers.py`` as the handler of a topic.

    It is subscribed by ``manage.py consume_incidents`` and called with each `Delivery`. Round each call database
    connections that are broken or too old are closed, as Django does round a request. Options as
    `MessagingService.subscribe`.

    Raises:
        ConfigurationError: It is a coroutine function.
    """

    def declare(function: F) -> F:
        _declarations.append(Declaration(topic, message_type, function, options))
        return function

    return declare


def declare_handlers(service: MessagingService) -> int:
    """Find the handlers of every installed application and declare them on a service.

    ``service.start_handlers()`` then subscribes them; to be called once for a service.

    Returns:
        How many there are.
    """
    autodiscover_modules(MODULE)
    for declaration in _declarations:
        declaration.put_on(service, _fresh_connections)
    return len(_declarations)


@contextmanager
def _fresh_connections() -> Iterator[None]:
    reset_queries()
    _close_old_connections()
    try:
        yield
    finally:
        _close_old_connections()


def _close_old_connections() -> None:
    """As ``django.db.close_old_connections``, which would break the transaction that a test puts round a delivery."""
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()
