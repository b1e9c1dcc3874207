"""What a service can say of itself without asking a broker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from incident_messaging.backends.base import Status


@attrs.frozen(kw_only=True)
class Health:
    """A service's state at one moment, told without I/O.

    Attributes:
        ok: Not closed, connected (or never asked to be), and no subscription ended by itself.
        backends: The state and last error of each configured broker.
        in_flight: Publishes on their way, per broker.
        oldest_unsettled_secs: Age of the oldest delivery that is not settled, in seconds, or ``None``.
        ended: The subscriptions that ended by themselves, and why.
        waiting_handlers: Declared handlers that are not subscribed: in a worker 0 once it is ready.
    """

    ok: bool
    backends: Mapping[str, Status]
    in_flight: Mapping[str, int]
    oldest_unsettled_secs: float | None
    ended: Mapping[str, str]
    waiting_handlers: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The same in plain types, ready for JSON."""
        return attrs.asdict(self)
