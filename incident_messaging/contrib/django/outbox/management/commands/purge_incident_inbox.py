"""``manage.py purge_incident_inbox``: forgets what was handled long ago."""

from __future__ import annotations

import argparse
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand
from django.db import DEFAULT_DB_ALIAS
from django.utils import timezone

from incident_messaging.contrib.django.outbox.inbox import purge


class Command(BaseCommand):  # type: ignore[misc]
    """For a daily job."""

    help = "Deletes marks of the inbox that are older than any message that may still come again."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Called by Django."""
        parser.add_argument("--days", type=float, default=30.0, help="Older than so many days (%(default)s).")
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS, help="Alias of the database (%(default)s).")

    def handle(self, *, days: float, database: str, **_: Any) -> None:
        """Called by Django."""
        deleted = purge(timezone.now() - timedelta(days=days), using=database)
        self.stdout.write(f"{deleted} messages are forgotten")
