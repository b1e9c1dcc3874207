"""The tables of outbox and inbox."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models
from django.utils import timezone


class OutboxMessage(models.Model):  # type: ignore[misc]
    """A message that waits to be published, or was put aside (``failed_at``)."""

    id = models.BigAutoField(primary_key=True)
    message_id = models.CharField(max_length=200)
    topic = models.CharField(max_length=255)
    key = models.TextField(null=True)
    body = models.BinaryField()
    headers = models.TextField()
    created_at = models.DateTimeField(default=timezone.now)
    failed_at = models.DateTimeField(null=True)
    error = models.TextField(blank=True, default="")

    def __str__(self) -> str:
        return f"{self.message_id} to {self.topic}"


class OutboxLease(models.Model):  # type: ignore[misc]
    """Which relay is active, and until when (Unix seconds)."""

    name = models.CharField(max_length=50, primary_key=True)
    owner = models.CharField(max_length=150)
    until = models.FloatField()

    def __str__(self) -> str:
        return str(self.owner)


class InboxMark(models.Model):  # type: ignore[misc]
    """Says that a handler has had a message."""

    id = models.BigAutoField(primary_key=True)
    handler = models.CharField(max_length=255)
    message_id = models.CharField(max_length=200)
    handled_at = models.DateTimeField(default=timezone.now, db_index=True)

    class Meta:
        """One mark of each."""

        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(fields=["handler", "message_id"], name="incident_inbox_once")
        ]

    def __str__(self) -> str:
        return f"{self.message_id} by {self.handler}"
