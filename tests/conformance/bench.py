"""What a conformance case works with: services of one backend, and short words for what cases do often."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any, Self

from features import Features
from foreign import Write
from waiting import until

from incident_messaging import Delivery, MessagingConfig, MessagingService, RetryPolicy

#: Seconds after which something that should have come will not.
PATIENCE = 30.0
#: Seconds without a message after which there is none.
QUIET = 0.4

#: Seconds that a busy machine may add to what has to end in time.
SLACK = 5.0

#: Two attempts, at once.
QUICK = RetryPolicy(max_attempts=2, initial_delay_secs=0.01, jitter=False)


class Bench:
    """Services that see one another's messages and nobody else's; closed when the case is over."""

    def __init__(self, features: Features, settings: Mapping[str, Any], write: Write) -> None:
        self.features = features
        self.settings = settings
        self._write = write
        self._open = ExitStack()
        self._service: MessagingService | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def new_service(self, **overrides: Any) -> MessagingService:
        """One more service, configured like the others but for ``overrides``."""
        service = MessagingService(MessagingConfig.from_mapping({**self.settings, **overrides}))
        self._open.callback(service.close)
        return service

    @property
    def service(self) -> MessagingService:
        """The service that most cases need one of."""
        if self._service is None:
            self._service = self.new_service()
        return self._service

    def write(self, topic: str, body: bytes | None, *, key: str | None = None, **headers: str) -> None:
        """Write as another client would; of the headers' names ``_`` is ``-``."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        self._write(f"{self.settings['topic_prefix']}.{topic}", body, key, names)

    def publish(self, topic: str, numbers: Iterable[int], *, key: str | Callable[[Any], str] | None = None) -> None:
        """Publish ``{"n": number}`` for each number."""
        self.service.publish_batch(topic, [{"n": number} for number in numbers], key=key)

    def read(self, topic: str, count: int, service: MessagingService | None = None, **options: Any) -> list[Any]:
        """The numbers of so many messages, and of any that come after them and should not."""
        found = list((service or self.service).consume(topic, timeout=PATIENCE, limit=count, **options))
        return numbers(found)

    def rest(self, topic: str, count: int, service: MessagingService | None = None, **options: Any) -> list[Any]:
        """The numbers of all that is still there for a group: so many are waited for, and then for one more."""
        found: list[Delivery[Any]] = []
        with (service or self.service).subscribe(topic, **options) as place:
            while delivery := place.next(PATIENCE if len(found) < count else QUIET):
                found.append(delivery)
        return numbers(found)

    def returned(self, topic: str, count: int, service: MessagingService | None = None, **options: Any) -> list[Any]:
        """As `rest`, of what somebody gave back; sorted where the broker does not keep its order."""
        found = self.rest(topic, count, service, **options)
        return found if self.features.gives_back_in_order else sorted(found)

    def dead_letters(self, count: int) -> list[Delivery[Any]]:
        """The raw dead letters, as many as are expected; one more would be seen, too."""
        group = f"undertaker-{count}"
        found = list(self.service.consume("dead-letter", bytes, group=group, timeout=PATIENCE, limit=count))
        found += self.service.consume("dead-letter", bytes, group=group, timeout=QUIET)
        assert len(found) == count, f"{len(found)} dead letters, expected {count}"
        return found


class Seen:
    """A callback that keeps what it was called with, after ``act`` did what the case wants."""

    def __init__(self, act: Callable[[Delivery[Any]], object] | None = None) -> None:
        self._act = act
        self._lock = threading.Lock()
        self.deliveries: list[Delivery[Any]] = []

    def __call__(self, delivery: Delivery[Any]) -> None:
        with self._lock:
            self.deliveries.append(delivery)
        if self._act is not None:
            self._act(delivery)

    @property
    def numbers(self) -> list[Any]:
        return numbers(self.deliveries)

    def wait(self, count: int, timeout: float = PATIENCE) -> list[Any]:
        """The numbers once there are so many."""
        assert until(lambda: len(self.deliveries) >= count, timeout), f"only {self.numbers} came, expected {count}"
        return self.numbers


def numbers(deliveries: Iterable[Delivery[Any]]) -> list[Any]:
    return [delivery.payload["n"] for delivery in deliveries]
