"""Handlers of which each message takes effect once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar, cast, overload

from django.db import IntegrityError, router, transaction

from incident_messaging.consuming.delivery import Delivery
from incident_messaging.contrib.outbox_rows import mark

T = TypeVar("T")
Handler = Callable[[Delivery[Any]], T]


@overload
def once(function: Handler[T]) -> Handler[T | None]: ...
@overload
def once(*, using: str | None = None, name: str | None = None) -> Callable[[Handler[T]], Handler[T | None]]: ...
def once(function: Any = None, *, using: str | None = None, name: str | None = None) -> Any:
    """Make a handler of which each message takes effect once, as ``@once`` or ``@once(using=..., name=...)``.

    The message is marked as handled in the transaction in which the handler works, which is committed when it
    returns and rolled back, mark and all, when it raises. A message that is marked already is settled without a
    call. Only what the handler does in that database takes effect once.

    Args:
        function: The handler.
        using: The alias of the database; ``None`` is where the routers write the inbox.
        name: Under which the marks are kept, 255 characters at most; ``None`` is the function's module and name.
            One that changes makes old messages new.
    """
    if function is None:
        return functools.partial(_once, using=using, name=name)
    return _once(function, using=using, name=name)


def _once(function: Handler[T], *, using: str | None, name: str | None) -> Handler[T | None]:
    own = name or f"{function.__module__}.{function.__qualname__}"

    @functools.wraps(function)
    def handle(delivery: Delivery[Any]) -> T | None:
        from incident_messaging.contrib.django.outbox.models import InboxMark

        database = using or router.db_for_write(InboxMark)
        with transaction.atomic(using=database):
            try:
                with transaction.atomic(using=database):  # the mark alone
                    marks = InboxMark.objects.using(database)
                    marks.create(handler=own, message_id=mark(delivery.metadata.message_id))
            except IntegrityError:
                return None
            return function(delivery)

    return handle


def purge(before: datetime, using: str | None = None) -> int:
    """Forget what was handled before a time, and return how many messages that is."""
    from incident_messaging.contrib.django.outbox.models import InboxMark

    marks = InboxMark.objects.using(using or router.db_for_write(InboxMark))
    deleted, _ = marks.filter(handled_at__lt=before).delete()
    return cast(int, deleted)
