"""The one object that an application holds."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from datetime import timedelta
from functools import partial
from types import UnionType
from typing import Any, TypeVar, Unpack, cast, overload

import cattrs

from incident_messaging import lifecycle
from incident_messaging.backends.base import Start
from incident_messaging.callbacks import CallbackThread
from incident_messaging.codec import Codec
from incident_messaging.config import MessagingBackend, MessagingConfig, RetryPolicy
from incident_messaging.connections import Connections
from incident_messaging.consuming.dead_letters import DeadLetters
from incident_messaging.consuming.delivery import Delivery
from incident_messaging.consuming.hands import Hands
from incident_messaging.consuming.intake import Intake
from incident_messaging.consuming.options import (
    ConsumeOneOptions,
    HandlerOptions,
    IterateOptions,
    PlaceOptions,
    SubscribeOptions,
    Wish,
    backend_of,
)
from incident_messaging.consuming.places import OpenPlaces
from incident_messaging.consuming.subscriber import Subscriber
from incident_messaging.consuming.subscription import Subscription
from incident_messaging.deadline import Deadline
from incident_messaging.envelope import MessageEnvelope
from incident_messaging.errors import (
    BackendUnavailable,
    ConfigurationError,
    Timeout,
)
from incident_messaging.events import IncidentCreated, IncidentEvent, IncidentResolved, IncidentStateChanged
from incident_messaging.handlers import Declared, Handlers, signalled
from incident_messaging.health import Health
from incident_messaging.metrics import Meter
from incident_messaging.publishing.batch import Batch, BatchResult
from incident_messaging.publishing.publication import PublishReceipt
from incident_messaging.publishing.publisher import Message, Publisher
from incident_messaging.record import Record

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., object])
M = TypeVar("M")

log = logging.getLogger("incident_messaging")
# A library says nothing on stderr where the application has set up no logging.
log.addHandler(logging.NullHandler())

#: Messages of a batch that are handed over as one, where the next does not have to be waited for.
_TOGETHER = 64

#: Threads of the SDK's own on which waiting would wait for itself.
_BROKER_THREADS = frozenset({"incident-messaging-loop", "incident-messaging-kafka-reports"})


class MessagingService:
    """Publishes to and consumes from the configured brokers; thread-safe.

    The constructor does no I/O, starts no thread and opens no socket, so that a service may stand
    at module level and survive a server that preloads and forks. The first use connects. A forked
    child may use the same object: it connects anew.

    Args:
        config: ``None`` is ``MessagingConfig()``; no environment is read.
        converter: A ``cattrs.Converter`` with hooks of your own.

    Raises:
        ConfigurationError: ``config`` is not a ``MessagingConfig``; the server has taken the process's threads
            away (uWSGI without threads, gevent, eventlet).
    """

    def __init__(self, config: MessagingConfig | None = None, *, converter: cattrs.Converter | None = None) -> None:
        if config is not None and not isinstance(config, MessagingConfig):
            raise ConfigurationError(
                f"config must be a MessagingConfig, not {type(config).__name__}; see MessagingConfig.from_mapping"
            )
        self._config = config or MessagingConfig()
        if self._config.enabled:
            lifecycle.check_threads()
        self._codec = Codec(
            source=self._config.source,
            timestamp_format=self._config.timestamp_format,
            converter=converter,
        )
        self._meter = Meter(enabled=self._config.enable_metrics, topic_limit=self._config.metrics_topic_limit)
        self._handlers = Handlers()
        self._begin()
        lifecycle.watch(self)

    def _begin(self) -> None:
        """What belongs to one process: made anew in a forked child."""
        self.lock = threading.RLock()
        self._closed = False
        self._finishing = threading.Lock()
        self._finished = False
        self._callbacks = CallbackThread("incident-messaging-callbacks")
        self._timer = CallbackThread("incident-messaging-timer")
        self._connections = Connections(self._config, self._meter, self._timer, partial(lifecycle.hold, self))
        self._places = OpenPlaces(self._timer)
        self._publisher = Publisher(
            self._config, self._codec, self._connections, self._meter, self._timer, self._callbacks
        )
        self._dead_letters = DeadLetters(self._config, self._connections, self._meter)
        self._subscriber = Subscriber(self._config, self._codec, self._connections, self._meter, self.lock)

    # -- publishing -------------------------------------------------------------------------------

    def publish(
        self,
        topic: str,
        message: Any,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        correlation_id: str | None = None,
        backend: MessagingBackend | str | None = None,
        timeout: float | None = None,
    ) -> PublishReceipt:
        """Publish one message, and return when every chosen broker has acknowledged it.

        Args:
            topic: Without the prefix.
            message: A message, or a `MessageEnvelope` of one, whose metadata is kept.
            key: Messages with one key keep their order.
            headers: Text by name.
            correlation_id: Put into the envelope.
            backend: One of two brokers, to repair one side.
            timeout: Seconds; ``None`` is ``publish_timeout_ms``, 0 only looks whether it goes at once.

        Raises:
            ConfigurationError: Topic, key, header or backend is not allowed.
            SerializationError: The message cannot be written.
            PublishFailed: A broker refused it.
            ConnectionFailed: No broker has ever answered.
            BackendUnavailable: Closed, or the window of publishes in flight stayed full.
            Timeout: No outcome in time; ``maybe_delivered`` says whether it may be stored. Publishing
                ``error.envelope`` again repeats it under the same id.
        """
        self._may_block("publish")
        wish = Message(topic, message, key=key, headers=headers, correlation_id=correlation_id)
        return self._publisher.publish(wish, backend, self._deadline(timeout, self._config.publish_timeout_ms))

    def publish_nowait(
        self,
        topic: str,
        message: Any,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        correlation_id: str | None = None,
        backend: MessagingBackend | str | None = None,
        block: float = 0.0,
    ) -> Future[PublishReceipt]:
        """Hand one message over, and return a future of its receipt.

        The future is running from birth and always ends, at the latest after ``publish_timeout_ms``.
        Its callbacks run on a thread of their own and may publish. A failure that nobody retrieves
        is logged.

        Args:
            block: Seconds to wait for a place in the window of publishes in flight.

        Raises:
            ConfigurationError: Topic, key, header or backend is not allowed.
            SerializationError: The message cannot be written.
            BackendUnavailable: Closed, or the window stayed full (``window_full``).
        """
        wish = Message(topic, message, key=key, headers=headers, correlation_id=correlation_id)
        return self._publisher.publish_nowait(wish, backend, Deadline.after(block))

    def publish_batch(
        self,
        topic: str | Callable[[Any], str],
        messages: Iterable[M],
        *,
        key: str | Callable[[M], str | None] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        receipts: bool = False,
        max_failures: int = 100,
    ) -> BatchResult:
        """Publish many messages, in order, with as many in flight as the window lets.

        Args:
            topic: Without the prefix, or a callable of the message.
            messages: Any iterable, also a generator larger than memory.
            key: A key, or a callable of the message.
            headers: For every message.
            timeout: Seconds for each message; ``None`` is ``publish_timeout_ms``.
            receipts: Whether to keep a receipt of each.
            max_failures: After so many failures no more is read.

        Raises:
            ConfigurationError: A topic, key or header that is the same for all is not allowed.
            PublishFailed: Some failed; ``result`` says which and why.
        """
        self._may_block("publish_batch")
        if max_failures < 1:
            raise ConfigurationError(f"max_failures {max_failures!r} is not allowed: 1 or more")
        self._publisher.check(None if callable(topic) else topic, None if callable(key) else key, headers)
        limit = self._config.publish_timeout_ms / 1000 if timeout is None else timeout
        batch = Batch(receipts=receipts, max_failures=max_failures)
        wishes = (
            Message(
                topic(message) if callable(topic) else topic,
                message,
                key=key(message) if callable(key) else key,
                headers=headers,
            )
            for message in messages
        )
        try:
            self._publisher.publish_all(
                batch, wishes, limit, together=_TOGETHER if isinstance(messages, list | tuple) else 1
            )
        except Exception:  # of the caller's iterable or callables; Ctrl-C does not wait
            batch.wait()
            raise
        batch.wait()
        return batch.result()

    def flush(self, timeout: float | None = None) -> None:
        """Return when nothing that was handed over is still on its way.

        Raises:
            Timeout: After ``timeout`` seconds (``None``: never), naming how many are.
        """
        self._may_block("flush")
        deadline = Deadline.after(timeout)
        late = [outlet for outlet in self._connections.outlets() if not outlet.window.wait_empty(deadline)]
        words = ", ".join(f"{len(outlet.window):,} to {outlet.broker.name}" for outlet in late if len(outlet.window))
        if words:
            raise Timeout(f"flush: still on their way after {timeout} s: {words}", maybe_delivered=True)

    def publish_incident_event(
        self,
        event: IncidentEvent,
        *,
        correlation_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> PublishReceipt:
        """Publish an incident event to its own topic, with the incident's id as key.

        Raises:
            MessagingError: As `publish`.
        """
        if not isinstance(event, IncidentEvent):
            raise ConfigurationError(f"event must be an IncidentEvent, not {type(event).__name__}")
        return self.publish(
            event.topic, event, key=event.incident_id, headers=headers, correlation_id=correlation_id, timeout=timeout
        )

    def publish_incident_created(
        self, incident_id: str, severity: str, incident_type: str, title: str, **options: Any
    ) -> PublishReceipt:
        """Publish an `IncidentCreated`; options and errors as `publish_incident_event`."""
        return self.publish_incident_event(IncidentCreated(incident_id, severity, incident_type, title), **options)

    def publish_incident_state_changed(
        self, incident_id: str, old_state: str, new_state: str, **options: Any
    ) -> PublishReceipt:
        """Publish an `IncidentStateChanged`; options and errors as `publish_incident_event`."""
        return self.publish_incident_event(IncidentStateChanged(incident_id, old_state, new_state), **options)

    def publish_incident_resolved(
        self, incident_id: str, resolution_time_secs: int | timedelta, **options: Any
    ) -> PublishReceipt:
        """Publish an `IncidentResolved`; options and errors as `publish_incident_event`."""
        return self.publish_incident_event(IncidentResolved(incident_id, resolution_time_secs), **options)

    # -- consuming --------------------------------------------------------------------------------

    @overload
    def subscribe(
        self, topic: str, message_type: type[MessageEnvelope[T]], **options: Unpack[SubscribeOptions[T]]
    ) -> Subscription[T]: ...
    @overload
    def subscribe(
        self, topic: str, message_type: type[T], **options: Unpack[SubscribeOptions[T]]
    ) -> Subscription[T]: ...
    @overload
    def subscribe(
        self, topic: str, **options: Unpack[SubscribeOptions[dict[str, Any]]]
    ) -> Subscription[dict[str, Any]]: ...
    @overload
    def subscribe(
        self, topic: str, message_type: UnionType, **options: Unpack[SubscribeOptions[Any]]
    ) -> Subscription[Any]: ...
    def subscribe(
        self,
        topic: str,
        message_type: Any = dict,
        *,
        callback: Callable[[Delivery[Any]], object] | None = None,
        group: str | None = None,
        broadcast: bool = False,
        start: Start | None = None,
        auto_ack: bool = True,
        concurrency: int = 1,
        prefetch: int | None = None,
        retry: RetryPolicy | None = None,
        handler_timeout: float | None = None,
        backend: MessagingBackend | str | None = None,
        timeout: float | None = None,
    ) -> Subscription[Any]:
        """Take a place on a topic or pattern, and return when what is published from now on is seen.

        Args:
            topic: Without the prefix; ``*`` is one level, a last ``>`` one or more.
            message_type: What ``payload`` is to be; other variants of an incident event are skipped.
            callback: Called by worker threads with each `Delivery`; without it the caller iterates.
            group: Members of a group share the messages and keep their place; ``None`` is the
                configured ``group_id``.
            broadcast: See every message and keep no place on the broker.
            start: Where a place that is new begins: ``"earliest"``, ``"latest"``, an aware datetime, a
                `Position`. ``None``: earliest for a group, latest for a broadcast.
            auto_ack: Whether a callback that returns, or asking for the next, acknowledges.
            concurrency: How many workers call the callback; one key still keeps its order.
            prefetch: How many messages may be unsettled here (1,000; a broadcast may fall 10,000 behind).
            retry: When a failed message is tried again; ``None`` is the configured policy.
            handler_timeout: Seconds after which a callback counts as failed; ``None`` is never.
            backend: Which of two brokers; ``None`` is ``subscribe_backend``.
            timeout: Seconds until ready; ``None`` is ``subscribe_timeout_ms``.

        Raises:
            ConfigurationError: An option, the topic or the type is not allowed.
            SubscribeFailed: The place cannot be had.
            ConnectionFailed: No broker has ever answered.
            BackendUnavailable: Disabled or closed.
            Timeout: Not ready in time; the text says what it waited for.
        """
        wish = Wish(
            topic=topic, callback=callback, group=group, broadcast=broadcast, start=start, auto_ack=auto_ack,
            concurrency=concurrency, prefetch=prefetch, retry=retry, handler_timeout=handler_timeout,
        )  # fmt: skip
        return Subscription(self._place(wish, message_type, backend, timeout))

    @overload
    def consume(
        self, topic: str, message_type: type[MessageEnvelope[T]], **options: Unpack[IterateOptions]
    ) -> Iterator[Delivery[T]]: ...
    @overload
    def consume(
        self, topic: str, message_type: type[T], **options: Unpack[IterateOptions]
    ) -> Iterator[Delivery[T]]: ...
    @overload
    def consume(self, topic: str, **options: Unpack[IterateOptions]) -> Iterator[Delivery[dict[str, Any]]]: ...
    @overload
    def consume(
        self, topic: str, message_type: UnionType, **options: Unpack[IterateOptions]
    ) -> Iterator[Delivery[Any]]: ...
    def consume(
        self,
        topic: str,
        message_type: Any = dict,
        *,
        timeout: float | None = None,
        limit: int | None = None,
        backend: MessagingBackend | str | None = None,
        **options: Unpack[PlaceOptions],
    ) -> Iterator[Delivery[Any]]:
        """Subscribe, iterate, and leave: ends after ``timeout`` seconds without a message, or ``limit``.

        Asking for the next acknowledges the last one; leaving the loop in any other way gives it
        back. Options and errors as `subscribe`.

        Args:
            timeout: Seconds without a message, counted from being ready; ``None`` is for ever.
            limit: How many messages at most; no more than these are ever prefetched.
        """
        unknown = sorted(set(options) - PlaceOptions.__annotations__.keys())
        if unknown:
            raise ConfigurationError(
                f"consume takes no {', '.join(unknown)}; it takes timeout, limit, backend, "
                + ", ".join(PlaceOptions.__annotations__)
            )
        if limit is not None:
            if isinstance(limit, bool) or not isinstance(limit, int):
                raise ConfigurationError(f"limit {limit!r} is not allowed: a whole number")
            if limit < 1:
                return iter(())
            options["prefetch"] = min(limit, options.get("prefetch") or limit)
        deliveries = _until(self._place(Wish(topic=topic, **options), message_type, backend), timeout, limit)
        next(deliveries)
        return cast(Iterator[Delivery[Any]], deliveries)

    @overload
    def consume_one(
        self, topic: str, message_type: type[MessageEnvelope[T]], **options: Unpack[ConsumeOneOptions]
    ) -> Delivery[T] | None: ...
    @overload
    def consume_one(
        self, topic: str, message_type: type[T], **options: Unpack[ConsumeOneOptions]
    ) -> Delivery[T] | None: ...
    @overload
    def consume_one(self, topic: str, **options: Unpack[ConsumeOneOptions]) -> Delivery[dict[str, Any]] | None: ...
    @overload
    def consume_one(
        self, topic: str, message_type: UnionType, **options: Unpack[ConsumeOneOptions]
    ) -> Delivery[Any] | None: ...
    def consume_one(
        self,
        topic: str,
        message_type: Any = dict,
        *,
        timeout: float = 5.0,
        group: str | None = None,
        auto_ack: bool = True,
        start: Start | None = None,
        backend: MessagingBackend | str | None = None,
    ) -> Delivery[Any] | None:
        """One message, or ``None``: ready, and nothing came in ``timeout`` seconds.

        The first call joins the group, which may take up to ``subscribe_timeout_ms`` before. With
        ``auto_ack`` the message is acknowledged as it is returned; without, settle it yourself. The
        place is kept open for 30 s, so that a second call costs no group join; then it leaves the group
        and gives back what it holds. Errors as `subscribe`.
        """
        where = (topic, group, backend_of(backend))
        asked = (message_type if isinstance(message_type, type) else repr(message_type), start)
        wish = Wish(topic=topic, group=group, auto_ack=False, start=start, prefetch=1)
        place = self._places.take(where, asked, lambda: self._place(wish, message_type, backend))
        try:
            delivery = next(iter(Hands(place).take(1, Deadline.after(timeout))), None)
            if delivery is not None and auto_ack:
                delivery.ack()
            return delivery
        finally:
            self._places.keep(where, asked, place)

    def handler(self, topic: str, message_type: Any = dict, **options: Unpack[HandlerOptions]) -> Callable[[F], F]:
        """Declare a function as the handler of a topic; `start_handlers` subscribes it.

        Options as `subscribe`.
        """

        def declare(function: F) -> F:
            self._handlers.declare(Declared(topic, message_type, function, options))
            return function

        return declare

    def start_handlers(self, *, concurrency: int | None = None) -> list[Subscription[Any]]:
        """Subscribe every declared handler, each once; errors as `subscribe`.

        Args:
            concurrency: How many workers call a handler that declares no ``concurrency`` of its own.
        """
        return self._handlers.start(self.subscribe, concurrency)

    def run_until_signal(
        self,
        signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT),
        timeout: float = 10.0,
        *,
        concurrency: int | None = None,
    ) -> list[str]:
        """Start the declared handlers, wait for a signal, close within ``timeout`` seconds.

        To be called on the main thread. The handlers that the signals had before are put back.

        Args:
            signals: What ends it.
            timeout: Seconds for the close.
            concurrency: As `start_handlers`.

        Returns:
            What could not be finished in time, in words.

        Raises:
            ConfigurationError: ``timeout`` is not allowed; that is not for the end to find.
            MessagingError: A subscription could not be had or ended by itself, and this is why; all is closed.
        """
        Deadline.seconds(timeout, "timeout")
        with signalled(signals) as stop:
            try:
                self._handlers.wait(stop, partial(self.start_handlers, concurrency=concurrency))
            finally:
                left = self.close(timeout)
        if (error := self._handlers.error()) is not None:
            raise error
        return left

    # -- life -------------------------------------------------------------------------------------

    @property
    def config(self) -> MessagingConfig:
        """The configuration, as it was given."""
        return self._config

    @property
    def dead_letters(self) -> DeadLetters:
        """What groups gave up: to be listed, put back, thrown away."""
        return self._dead_letters

    @property
    def is_connected(self) -> bool:
        """Whether as many brokers are connected as ``publish_require`` asks for; no I/O."""
        states = [self._connections.status(backend).state == "connected" for backend in self._connections.backends]
        return all(states) if self._config.publish_require == "all" else any(states)

    def connect(self, timeout: float | None = None) -> None:
        """Connect now; the first use would, too.

        Args:
            timeout: Seconds; ``None`` is ``connect_timeout_ms``.

        Raises:
            ConnectionFailed: No connection by then, or every address has said no.
            BackendUnavailable: Closed.
        """
        self._may_block("connect")
        if self._config.enabled:
            self._connections.connect(
                self._connections.backends,
                self._deadline(timeout, self._config.connect_timeout_ms),
                require_all=self._config.publish_require == "all",
            )

    def health(self) -> Health:
        """The state of brokers, publishes and subscriptions; no I/O."""
        ages = [age for intake in self._subscriber.intakes() if (age := intake.oldest_age()) is not None]
        ended = self._subscriber.ended()
        backends = {backend.value: self._connections.status(backend) for backend in self._connections.backends}
        used = any(status.state != "new" or status.error for status in backends.values())
        return Health(
            ok=not self._closed and not ended and (self.is_connected or not used),
            backends=backends,
            in_flight={o.broker.name: len(o.window) for o in self._connections.outlets()},
            oldest_unsettled_secs=max(ages, default=None),
            ended=ended,
            waiting_handlers=len(self._handlers),
        )

    def close(self, timeout: float = 10.0) -> list[str]:
        """Stop taking, let callbacks end, settle, flush, close. Final, idempotent, never raises.

        Called by a callback it returns at once, and the rest follows when that ends.

        Args:
            timeout: Seconds for all of it.

        Returns:
            What could not be finished in time, in words; empty if all was.
        """
        self._subscriber.stop()
        if any(intake.mine for intake in self._subscriber.intakes()):
            threading.Thread(  # a callback cannot wait for its own end
                target=self.close, args=(timeout,), name="incident-messaging-close", daemon=True
            ).start()
            return []
        deadline = Deadline.after(timeout)
        with self.lock:
            self._closed = True
        if not self._finishing.acquire(timeout=deadline.left() or 0.0):
            return ["the service is being closed by another thread"]
        try:
            if self._finished:
                return []
            left = self._finish(deadline)
            self._finished = True
            return left
        finally:
            self._finishing.release()

    def _finish(self, deadline: Deadline) -> list[str]:
        left = self._subscriber.close(deadline)
        left += self._connections.close(deadline)
        self._timer.close(deadline)
        if not self._callbacks.close(deadline):
            left.append("a callback of a future is still running")
        for words in left:
            log.error("close: %s", words)
        lifecycle.let_go(self)
        return left

    def __enter__(self) -> MessagingService:
        try:
            self.connect()
        except BaseException:
            self.close(1.0)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def after_fork_in_child(self) -> None:
        """Called by `lifecycle` in a forked child: forget what was inherited, keep it alive."""
        self._connections.leak()
        self._subscriber.after_fork()
        lifecycle.leak((self._callbacks, self._timer))
        closed = self._closed
        self._begin()
        self._closed = closed

    def _prepare(self, wish: Message) -> Record:
        """For an outbox: what `publish` would send, refused as it does where the message itself is wrong."""
        return self._publisher.prepare(wish)

    def _intakes(self) -> list[Intake[Any]]:
        """For tests: what is behind the subscriptions that are open."""
        return self._subscriber.intakes()

    def _run_callbacks_by_hand(self) -> None:
        """For tests: subscriptions made from now on start no workers."""
        self._subscriber.threads = False

    # -- inside -----------------------------------------------------------------------------------

    def _place(
        self, wish: Wish, message_type: Any, backend: MessagingBackend | str | None, timeout: float | None = None
    ) -> Intake[Any]:
        """The way of every subscription."""
        self._may_block("subscribe")
        deadline = self._deadline(timeout, self._config.subscribe_timeout_ms)
        return self._subscriber.subscribe(wish, message_type, backend, deadline)

    def _deadline(self, timeout: float | None, default_ms: int) -> Deadline:
        return Deadline.after(default_ms / 1000 if timeout is None else timeout)

    @staticmethod
    def _may_block(call: str) -> None:
        name = threading.current_thread().name
        if name in _BROKER_THREADS:
            raise BackendUnavailable(f"{call} would wait for itself on the thread {name}", code="loop_thread")


def _until(intake: Intake[Any], timeout: float | None, limit: int | None) -> Iterator[Delivery[Any] | None]:
    """The way through a ``consume``: ``None`` first, since only a generator that began ends with its ``finally``."""
    try:
        yield None
        yield from Hands(intake).deliveries(timeout, limit)
    finally:
        intake.close()
