"""The outbox as a relay sees it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from django.db import Error, IntegrityError, close_old_connections
from django.db.models import Q
from django.utils import timezone

from incident_messaging.contrib.django.outbox.models import OutboxLease, OutboxMessage
from incident_messaging.contrib.outbox import Entry

_LEASE = "relay"


class OutboxStore:
    """One database's outbox (`incident_messaging.contrib.outbox.Store`); for a thread outside of transactions."""

    errors: tuple[type[Exception], ...] = (Error,)

    def __init__(self, using: str) -> None:
        self._using = using

    def acquire(self, owner: str, seconds: float) -> bool:
        """Make or keep ``owner`` the active relay."""
        leases, at = OutboxLease.objects.using(self._using), time.time()
        lease = leases.filter(name=_LEASE)
        if lease.filter(Q(owner=owner) | Q(until__lt=at)).update(owner=owner, until=at + seconds):
            return True
        if lease.exists():
            return False
        try:
            leases.create(name=_LEASE, owner=owner, until=at + seconds)
        except IntegrityError:  # another was first
            return False
        return True

    def release(self, owner: str) -> None:
        """End the lease, if it is the owner's."""
        OutboxLease.objects.using(self._using).filter(owner=owner).update(until=0.0)

    def oldest(self, limit: int) -> Sequence[Entry]:
        """The messages that wait, in order."""
        waiting = OutboxMessage.objects.using(self._using).filter(failed_at__isnull=True).order_by("id")
        return [Entry.of(row, row.created_at) for row in waiting[:limit]]

    def delete(self, ids: Sequence[int]) -> None:
        """Delete messages in one statement."""
        messages = OutboxMessage.objects.using(self._using)
        messages.filter(id__in=ids)._raw_delete(self._using)  # no signals, nothing refers to them

    def park(self, entry_id: int, error: str) -> None:
        """Put a message aside."""
        messages = OutboxMessage.objects.using(self._using)
        messages.filter(id=entry_id).update(failed_at=timezone.now(), error=error)

    def rest(self) -> None:
        """Close connections that are broken or older than ``CONN_MAX_AGE``."""
        close_old_connections()
