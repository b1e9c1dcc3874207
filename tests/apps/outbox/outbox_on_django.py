"""What the programs of these tests do, with Django's ORM."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import django
from django.core.management import call_command
from django.db import connections


class Tables:
    def __init__(self, database: dict[str, Any], messaging: dict[str, Any]) -> None:
        os.environ["DJANGO_SETTINGS_MODULE"] = "outbox_settings"
        os.environ["OUTBOX_DATABASE"] = json.dumps(database)
        os.environ["OUTBOX_MESSAGING"] = json.dumps(messaging)
        django.setup()
        assert connections["default"].vendor  # loads the driver, connects to nothing

    def create(self) -> None:
        from django.db import connection

        call_command("migrate", verbosity=0)
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE effects (message_id varchar(100))")

    @contextmanager
    def transaction(self) -> Iterator[Callable[..., Any]]:
        from django.db import transaction

        from incident_messaging.contrib.django.outbox import add

        with transaction.atomic():
            yield add

    def store(self) -> Any:
        from incident_messaging.contrib.django.outbox.store import OutboxStore

        return OutboxStore("default")

    def once(self, effect: Callable[[Any, Any], None]) -> Callable[[Any], Any]:
        from django.db import connection

        from incident_messaging.contrib.django.outbox import once

        @once
        def handle(delivery: Any) -> None:
            with connection.cursor() as cursor:
                effect(delivery, cursor.execute)

        return handle

    def retry_failed(self) -> int:
        from incident_messaging.contrib.django.outbox import retry_failed

        return retry_failed()
