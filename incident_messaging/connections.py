"""The brokers of a service: made at the first use, watched, closed, left behind in a forked child."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from incident_messaging import lifecycle
from incident_messaging.backends import make
from incident_messaging.backends.base import Status
from incident_messaging.callbacks import CallbackThread
from incident_messaging.config import MessagingBackend, MessagingConfig
from incident_messaging.consuming.broadcast import Broadcasts
from incident_messaging.consuming.options import backend_of
from incident_messaging.deadline import Deadline
from incident_messaging.errors import BackendUnavailable, ConfigurationError, MessagingError
from incident_messaging.metrics import Meter
from incident_messaging.publishing.outlet import Ledger, Outlet, Window

_BOTH = (MessagingBackend.NATS, MessagingBackend.KAFKA)

#: Seconds between looks at the brokers' states, for the gauge of connections.
LOOK_EVERY = 1.0


class Connections:
    """One broker object for each backend in use, with its window and its shared broadcasts."""

    def __init__(self, config: MessagingConfig, meter: Meter, timer: CallbackThread, used: Callable[[], None]) -> None:
        self._used = used
        self._config = config
        #: The configured brokers.
        self.backends: Sequence[MessagingBackend] = (
            _BOTH if config.backend is MessagingBackend.BOTH else (config.backend,)
        )
        self._meter = meter
        self._timer = timer
        self._lock = threading.RLock()
        self._outlets: dict[MessagingBackend, Outlet] = {}
        self._broadcasts: dict[MessagingBackend, Broadcasts] = {}
        self._connected: set[str] = set()
        self.closed = False

    def chosen(self, backend: MessagingBackend | str | None) -> Sequence[MessagingBackend]:
        """The brokers that a call asks for; ``None`` is all that are configured.

        Raises:
            BackendUnavailable: All is closed.
            ConfigurationError: One is not configured.
        """
        if self.closed:
            raise BackendUnavailable("the messaging service is closed", code="closed")
        if backend is None:
            return self.backends
        wanted = backend_of(backend)
        if wanted is None or wanted is self._config.backend:
            return self.backends
        if wanted not in self.backends:
            names = ", ".join(one.value for one in self.backends)
            raise ConfigurationError(f"backend {wanted.value!r} is not configured: {names}")
        return (wanted,)

    def outlet(self, backend: MessagingBackend) -> Outlet:
        """The broker of a backend, made if need be; no I/O.

        Raises:
            BackendUnavailable: All is closed.
            ConfigurationError: The server takes the process's threads away.
        """
        outlet = self._outlets.get(backend)
        if outlet is not None and not self.closed:
            return outlet
        with self._lock:
            if self.closed:
                raise BackendUnavailable("the messaging service is closed", code="closed")
            if backend in self._outlets:
                return self._outlets[backend]
            outlet = self._outlets[backend] = self._make(backend)
        self._meter.connected(outlet.broker.name, 0, users=1)  # from now on the broker is missed
        return outlet

    def _make(self, backend: MessagingBackend) -> Outlet:
        if not self._outlets:
            lifecycle.check_threads()  # again: some servers change the threads after the import
            lifecycle.check_forks()
            self._used()  # what it is handed must be sent at the end, also where nobody holds it
            lifecycle.closes_at_exit()
            self._timer.submit(self._look_again, LOOK_EVERY)
        window = Window(self._config.max_in_flight, self._config.max_in_flight_bytes)
        with lifecycle.IMPORTING:
            broker = make(backend, self._config)
        ledger = Ledger(broker.name, window, self._meter)
        broker.told = ledger.settle
        return Outlet(backend, broker, window, ledger)

    def broadcasts(self, backend: MessagingBackend) -> Broadcasts:
        """The shared broadcasts of a backend."""
        broker = self.outlet(backend).broker
        with self._lock:
            return self._broadcasts.setdefault(backend, Broadcasts(broker))

    def outlets(self) -> Sequence[Outlet]:
        """The brokers made so far."""
        return list(self._outlets.values())

    def status(self, backend: MessagingBackend) -> Status:
        """A backend's state, without making it."""
        outlet = self._outlets.get(backend)
        return Status(state="closed" if self.closed else "new") if outlet is None else outlet.broker.status()

    def connect(self, backends: Sequence[MessagingBackend], deadline: Deadline, *, require_all: bool) -> None:
        """Connect them side by side.

        Raises:
            MessagingError: The first that failed, where all are required; the last, where one is enough.
        """
        outlets = [self.outlet(backend) for backend in backends]
        if len(outlets) == 1:
            outlets[0].broker.connect(deadline)
        else:
            self._connect_all(outlets, deadline, require_all)
        self.look()

    def note(self) -> None:
        """An acknowledgement came: the gauge must not wait for the next look."""
        if len(self._connected) < len(self._outlets):
            self.look()

    def look(self) -> None:
        """Bring the gauge of connections up to date."""
        with self._lock:
            now = {outlet.broker.name for outlet in self._outlets.values()
                   if outlet.broker.status().state == "connected"}  # fmt: skip
            changes = [(name, 1) for name in now - self._connected]
            changes += [(name, -1) for name in self._connected - now]
            self._connected = now
        for name, change in changes:
            self._meter.connected(name, change)

    def close(self, deadline: Deadline) -> list[str]:
        """Close every broker; what had no outcome, in words."""
        with self._lock:
            self.closed = True
        left = []
        for outlet in self.outlets():
            if unfinished := outlet.broker.close(deadline):
                left.append(f"{unfinished} publishes to {outlet.broker.name} without an outcome")
        self.look()
        for outlet in self.outlets():
            self._meter.connected(outlet.broker.name, 0, users=-1)
        return left

    def leak(self) -> None:
        """In a forked child: keep everything inherited alive and untouched."""
        for outlet in self._outlets.values():
            lifecycle.leak(outlet)

    def _look_again(self) -> None:
        if not self.closed:
            self.look()
            self._timer.submit(self._look_again, LOOK_EVERY)

    @staticmethod
    def _connect_all(outlets: Sequence[Outlet], deadline: Deadline, require_all: bool) -> None:
        need = len(outlets) if require_all else 1
        ended = threading.Condition()
        errors: list[MessagingError | None] = []

        def connect(outlet: Outlet) -> None:
            error = None
            try:
                outlet.broker.connect(deadline)
            except MessagingError as failure:
                error = failure
            with ended:
                errors.append(error)
                ended.notify_all()

        def decided() -> bool:
            good = errors.count(None)
            return good >= need or len(errors) - good > len(outlets) - need

        for outlet in outlets:
            name = f"incident-messaging-connect-{outlet.broker.name}"
            threading.Thread(target=connect, args=(outlet,), name=name, daemon=True).start()
        with ended:
            ended.wait_for(decided)
        if errors.count(None) < need:
            raise next(error for error in errors if error is not None)
