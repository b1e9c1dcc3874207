"""``manage.py consume_incidents``: the handlers of all installed applications, run until SIGTERM."""

from __future__ import annotations

import argparse
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from incident_messaging import worker
from incident_messaging.contrib.django.handlers import MODULE, declare_handlers
from incident_messaging.contrib.django.services import forget, get_service
from incident_messaging.errors import MessagingError


class Command(BaseCommand):  # type: ignore[misc]
    """Exits with 0 at a signal, with 1 and one line where a handler could not be started or ended by itself."""

    help = f"Runs the handlers in the {MODULE} modules of the installed applications until SIGTERM or Ctrl-C."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Called by Django."""
        parser.add_argument("--concurrency", type=_from(1), help="Workers of each handler that declares none.")
        parser.add_argument("--host", default="127.0.0.1", help="Where probes and metrics are served (%(default)s).")
        parser.add_argument("--port", type=_from(0), help="Serve /livez, /readyz and /metrics here.")
        parser.add_argument("--timeout", type=float, default=10.0, help="Seconds for the end (%(default)s).")

    def handle(self, *, concurrency: int | None, host: str, port: int | None, timeout: float, **_: Any) -> None:
        """Called by Django."""
        worker.logs_somewhere()
        try:
            service = get_service()
            if not declare_handlers(service):
                raise CommandError(f"no handlers: decorate functions in {MODULE}.py of an installed application")
            left = worker.run(service, concurrency=concurrency, host=host, port=port, timeout=timeout)
        except MessagingError as error:
            raise CommandError(" ".join(str(error).split())) from error
        finally:
            forget()  # it is closed: who runs the command within a process gets a new one
        if left:
            raise CommandError(f"not finished: {'; '.join(left)}")


def _from(least: int) -> Any:
    def number(text: str) -> int:
        if int(text) < least:
            raise ValueError(text)
        return int(text)

    return number
