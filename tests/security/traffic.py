"""Traffic that must not notice what happens to its brokers."""

from __future__ import annotations

import threading
import time

from waiting import until

from incident_messaging import MessagingService

#: Seconds that a publish may take, whatever happens.
TIMEOUT = 20.0
#: Seconds that anything else may take, on a machine that has much to do.
PATIENCE = 40.0


class Traffic:
    """Numbered messages, published one after another and handled by a group; none may get lost or be refused.

    Attributes:
        sent: How many were acknowledged.
        got: The numbers of those that were handled.
        slowest: The longest that a publish has taken, in seconds.
    """

    def __init__(self, service: MessagingService) -> None:
        self._service = service
        self._over = threading.Event()
        self._errors: list[Exception] = []
        self.sent = 0
        self.got: set[int] = set()
        self.slowest = 0.0
        self._thread = threading.Thread(target=self._publish, name="test-traffic", daemon=True)

    def __enter__(self) -> Traffic:
        self._subscription = self._service.subscribe("load", callback=lambda each: self.got.add(each.payload["n"]))
        self._thread.start()
        self.flows()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(2 * TIMEOUT)

    def _publish(self) -> None:
        while not self._over.wait(0.005):
            begun = time.monotonic()
            try:
                self._service.publish("load", {"n": self.sent}, timeout=TIMEOUT)
            except Exception as error:
                self._errors.append(error)
                return
            self.slowest = max(self.slowest, time.monotonic() - begun)
            self.sent += 1

    def flows(self, more: int = 20) -> None:
        """Return when so many more were acknowledged, and all that was so far is handled."""
        goal = self.sent + more
        assert until(lambda: self._errors or (self.sent >= goal and self.got.issuperset(range(goal))), PATIENCE), (
            self._service.health()
        )
        assert not self._errors, self._errors

    def stands_still(self, cause: str) -> None:
        """Return when the connection is lost, or cannot be had again, for this cause."""
        assert until(lambda: cause in self.trouble, PATIENCE), self.trouble

    @property
    def trouble(self) -> str:
        (broker,) = self._service.health().backends.values()
        return broker.error or ""
