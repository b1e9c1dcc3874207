"""``manage.py relay_incidents``: publishes what the outbox holds, until SIGTERM."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DEFAULT_DB_ALIAS

from incident_messaging import worker
from incident_messaging.contrib.django.outbox.store import OutboxStore
from incident_messaging.contrib.django.outbox.writing import retry_failed
from incident_messaging.contrib.django.services import get_service
from incident_messaging.contrib.outbox import Relay
from incident_messaging.errors import MessagingError


class Command(BaseCommand):  # type: ignore[misc]
    """Exits with 0 at a signal, with 1 and one line where it cannot work."""

    help = "Publishes the messages of the outbox until SIGTERM or Ctrl-C; of several such processes one is active."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Called by Django."""
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS, help="Alias of the database (%(default)s).")
        parser.add_argument("--batch-size", type=int, default=500, help="Messages read at a time (%(default)s).")
        parser.add_argument("--poll-interval", type=float, default=0.5, help="Seconds between looks (%(default)s).")
        parser.add_argument("--lease-secs", type=float, default=15.0, help="Seconds to a takeover (%(default)s).")
        parser.add_argument("--host", default="127.0.0.1", help="Where probes and metrics are served (%(default)s).")
        parser.add_argument("--port", type=int, help="Serve /livez, /readyz and /metrics here.")
        parser.add_argument("--retry-failed", action="store_true", help="Put back what was put aside, and exit.")

    def handle(
        self,
        *,
        database: str,
        batch_size: int,
        poll_interval: float,
        lease_secs: float,
        host: str,
        port: int | None,
        retry_failed: bool,
        **_: Any,
    ) -> None:
        """Called by Django."""
        if retry_failed:
            self.stdout.write(f"{_retry(database)} messages are tried again")
            return
        worker.logs_somewhere()
        try:
            service = get_service()
            times = {"poll_interval": poll_interval, "lease_secs": lease_secs}
            relay = Relay(OutboxStore(database), service, batch_size=batch_size, **times)
            with nullcontext() if port is None else worker.serving(service, host, port):
                relay.run_until_signal()
            service.close()
        except MessagingError as error:
            raise CommandError(" ".join(str(error).split())) from error


_retry = retry_failed
