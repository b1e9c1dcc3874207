"""The subscriptions of a service: made, watched over, closed together."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from incident_messaging import lifecycle, topics
from incident_messaging.codec import Codec
from incident_messaging.config import MessagingBackend, MessagingConfig
from incident_messaging.connections import Connections
from incident_messaging.consuming.broadcast import shares
from incident_messaging.consuming.intake import Intake
from incident_messaging.consuming.options import Wish
from incident_messaging.consuming.plan import Plan
from incident_messaging.deadline import Deadline
from incident_messaging.errors import BackendUnavailable, MessagingError
from incident_messaging.metrics import Meter


class Subscriber:
    """Subscribes for a service, over the connections of this process.

    Attributes:
        threads: Whether subscriptions with a callback start workers; the test helper runs them itself.
    """

    def __init__(
        self, config: MessagingConfig, codec: Codec, connections: Connections, meter: Meter, lock: Any
    ) -> None:
        self._config = config
        self._codec = codec
        self._connections = connections
        self._meter = meter
        self._lock = lock
        self._intakes: set[Intake[Any]] = set()
        self._ended: dict[str, tuple[str, MessagingError]] = {}  # with its place, which a new one takes
        self.threads = True

    def subscribe(
        self, wish: Wish, message_type: Any, backend: MessagingBackend | str | None, deadline: Deadline
    ) -> Intake[Any]:
        """Open a place; promises and errors as ``MessagingService.subscribe``."""
        plan = self._plan(wish, message_type, self._one(backend))
        intake: Intake[Any] = Intake(plan, self._forget)
        shared = shares(plan.spec, wish.start)
        maker = self._connections.broadcasts(plan.backend).reader if shared else plan.broker.consumer
        with self._lock:
            self._intakes.add(intake)
            place = _place(intake.plan)
            self._ended = {name: ended for name, ended in self._ended.items() if ended[0] != place}
        try:
            intake.open(maker(plan.spec, intake), deadline)
        except BaseException as error:
            # Where a signal or Ctrl-C came as a callback began, nobody may take it for finished: it is closed with all.
            if not intake.is_busy(besides=0):
                self._forget(intake)
            if isinstance(error, MessagingError):
                error.about(topic=wish.topic)
            raise
        self._connections.look()
        return intake

    def intakes(self) -> list[Intake[Any]]:
        """Those that are open."""
        with self._lock:
            return list(self._intakes)

    def ended(self) -> dict[str, str]:
        """The subscriptions that ended by themselves, by name, and why."""
        with self._lock:
            errors = {name: error for name, (_, error) in self._ended.items()}
        errors |= {intake.plan.name: intake.error for intake in self.intakes() if intake.error is not None}
        return {name: str(error) for name, error in errors.items()}

    def stop(self) -> None:
        """Let none hand out another message."""
        for intake in self.intakes():
            intake.stop()

    def close(self, deadline: Deadline) -> list[str]:
        """Close all side by side; what could not be finished, in words."""
        intakes, found = self.intakes(), dict[Intake[Any], list[str]]()

        def close(intake: Intake[Any]) -> None:
            found[intake] = intake.close(deadline.left() or 0.0)

        threads = []
        for intake in intakes:
            name = f"incident-messaging-close-{intake.plan.name}"
            thread = threading.Thread(target=close, args=(intake,), name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the interpreter ends, and starts no more threads
                close(intake)
            else:
                threads.append(thread)
        last_words = Deadline.after((deadline.left() or 0.0) + 0.2)
        for thread in threads:
            thread.join(last_words.left())
        return [words for intake in intakes for words in found.get(intake, intake.unfinished)]

    def after_fork(self) -> None:
        """In a forked child: what was inherited says so when used, and is kept alive."""
        for intake in self._intakes:
            intake.after_fork()
            lifecycle.leak(intake)

    def _one(self, backend: MessagingBackend | str | None) -> MessagingBackend:
        if not self._config.enabled:
            raise BackendUnavailable("Messaging disabled", code="disabled")
        chosen: Sequence[MessagingBackend] = self._connections.chosen(backend)
        return chosen[0] if len(chosen) == 1 else self._config.subscribe_backend

    def _plan(self, wish: Wish, message_type: Any, backend: MessagingBackend) -> Plan:
        config = self._config
        return Plan(
            spec=wish.spec(config, backend),
            backend=backend,
            decode=self._codec.decoder(message_type),
            broker=self._connections.outlet(backend).broker,
            prefix=config.topic_prefix,
            callback=wish.callback,
            auto_ack=wish.auto_ack,
            confirm=backend is MessagingBackend.KAFKA and not config.kafka.enable_auto_commit,
            concurrency=wish.concurrency,
            handler_timeout=wish.handler_timeout,
            retry=wish.retry or config.retry,
            dead_letters=config.enable_dlq,
            dlq_topic=topics.full_name(config.topic_prefix, config.dlq_topic),
            burial_timeout=config.publish_timeout_ms / 1000,
            meter=self._meter,
            threads=self.threads,
        )

    def _forget(self, intake: Intake[Any]) -> None:
        with self._lock:
            self._intakes.discard(intake)
            if intake.error is not None:
                self._ended[intake.plan.name] = (_place(intake.plan), intake.error)


def _place(plan: Plan) -> str:
    """What the next subscription of its kind takes over; a broadcast's own name is another each time."""
    return plan.name if plan.group is not None else f"broadcast of {plan.topic} on {plan.backend.value}"
