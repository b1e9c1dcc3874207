"""A program that writes, relays and consumes in children of its own, each of which may be killed.

It is loaded once and forks for each task, which costs less than an interpreter each. Usage:
``outbox_program.py FRAMEWORK DATABASE MESSAGING`` (JSON); it reads ``[name, arguments]`` a line, and answers with
the child's process id, then with its exit code.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import traceback
from importlib import import_module
from typing import Any

from incident_messaging import (
    ConfigurationError,
    IncidentCreated,
    IncidentEscalated,
    MessageEnvelope,
    MessagingConfig,
    MessagingError,
    MessagingService,
    PublishFailed,
    SerializationError,
)
from incident_messaging.context import correlation_id
from incident_messaging.contrib.outbox import Relay

import_module("incident_messaging.backends.nats")
import_module("incident_messaging.backends.kafka")


class Steps:
    """Counts what a relay does; before one of these steps the process is hit by a signal."""

    def __init__(self, fatal: int | None, number: int) -> None:
        self.left = fatal
        self.number = number

    def step(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), self.number)


class WatchedStore:
    """A store whose steps are counted, and that ends the relay where the outbox is empty."""

    def __init__(self, store: Any, steps: Steps, empty: threading.Event) -> None:
        self.errors = store.errors
        self.rest = store.rest
        self._store = store
        self._steps = steps
        self._empty = empty

    def acquire(self, owner: str, seconds: float) -> bool:
        self._steps.step()
        return self._store.acquire(owner, seconds)

    def release(self, owner: str) -> None:
        self._steps.step()
        self._store.release(owner)

    def oldest(self, limit: int) -> Any:
        self._steps.step()
        found = self._store.oldest(limit)
        if not found:
            self._empty.set()
        return found

    def delete(self, ids: Any) -> None:
        self._steps.step()
        self._store.delete(ids)

    def park(self, entry_id: int, error: str) -> None:
        self._steps.step()
        self._store.park(entry_id, error)


class WatchedService(MessagingService):
    """A service whose publishes are steps, too."""

    steps = Steps(None, 0)

    def publish_nowait(self, *arguments: Any, **options: Any) -> Any:
        self.steps.step()
        return super().publish_nowait(*arguments, **options)


class Tasks:
    """What a child may be asked to do."""

    def __init__(self, tables: Any, messaging: dict[str, Any]) -> None:
        self._tables = tables
        self._messaging = messaging

    def create(self) -> None:
        self._tables.create()

    def write(self, messages: list[dict[str, Any]], end: str = "commit") -> None:
        """In one transaction, which ends by ``commit``, ``error``, or a kill ``before`` or ``after`` the commit."""
        try:
            with self._tables.transaction() as add:
                for message in messages:
                    add(message, topic="orders", key=message["key"])
                if end == "before":
                    die()
                if end == "error":
                    raise KeyError("the caller's own")
        except KeyError:
            return
        if end == "after":
            die()

    def relay(self, at: int | None = None, signal_number: int = signal.SIGKILL, lease_secs: float = 0.15) -> None:
        """Until the outbox is empty; a signal hits the process before step ``at``."""
        steps, empty = Steps(at, signal_number), threading.Event()
        service = WatchedService(MessagingConfig.from_mapping(self._messaging))
        service.steps = steps
        store = WatchedStore(self._tables.store(), steps, empty)
        Relay(store, service, poll_interval=0.05, lease_secs=lease_secs).run(empty)
        service.close()

    def relay_on(self, lease_secs: float = 5.0, **messaging: Any) -> None:
        """Until SIGTERM."""
        service = MessagingService(MessagingConfig.from_mapping(self._messaging | messaging))
        Relay(self._tables.store(), service, poll_interval=0.05, lease_secs=lease_secs).run_until_signal()
        assert service.close() == []

    def consume(self, group: str = "g", kill: str = "", at: int = 1, fail_first: bool = False) -> None:
        """Until SIGTERM; killed at the ``at``-th message ``inside`` the handler or ``after`` its commit."""
        handled, met = 0, set()

        def effect(delivery: Any, execute: Any) -> None:
            execute("INSERT INTO effects VALUES ('" + delivery.metadata.message_id + "')")
            if kill == "inside" and handled == at:
                die()
            if fail_first and delivery.metadata.message_id not in met:
                met.add(delivery.metadata.message_id)
                raise RuntimeError("the first attempt of each message fails")

        handle = self._tables.once(effect)

        def callback(delivery: Any) -> None:
            nonlocal handled
            handled += 1
            handle(delivery)
            if kill == "after" and handled == at:
                die()

        service = MessagingService(MessagingConfig.from_mapping(self._messaging))
        service.handler("orders", group=group)(callback)
        service.run_until_signal()

    def details(self) -> None:
        """An event, an envelope and a message that names everything itself."""
        with self._tables.transaction() as add:
            token = correlation_id.set("request-7")
            add(IncidentCreated("INC-1", "high", "database", "down"), headers={"tenant": "\xe4cme"})
            correlation_id.reset(token)
            add(MessageEnvelope.new(IncidentEscalated("INC-1", 2), message_id="m-2", correlation_id="own"))
            add({"big": 2**63 - 1, "half": 0.5}, topic="audit.trail", key="k\u2028", correlation_id="c-3")

    def refusals(self) -> None:
        """What cannot be published is refused where it is written, and spoils no transaction."""
        loop: list[Any] = []
        loop.append(loop)
        cases: list[tuple[type[MessagingError], Any, dict[str, Any]]] = [
            (ConfigurationError, {}, {}),
            (ConfigurationError, {}, {"topic": "no blanks"}),
            (ConfigurationError, {}, {"topic": "t", "key": "nul\0"}),
            (ConfigurationError, {}, {"topic": "t", "key": "\udc80"}),
            (ConfigurationError, {}, {"topic": "t", "key": 7}),
            (ConfigurationError, {}, {"topic": "t", "headers": {"x-key": "ours"}}),
            (SerializationError, loop, {"topic": "t"}),
            (PublishFailed, "x" * 2_000_000, {"topic": "t"}),
        ]
        with self._tables.transaction() as add:
            for error, message, options in cases:
                try:
                    add(message, **options)
                except error:
                    continue
                raise AssertionError(f"{options} was not refused")
            add({"key": "a", "n": 0}, topic="orders", key="a")

    def retry_failed(self, expected: int) -> None:
        assert self._tables.retry_failed() == expected


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def child(tasks: Tasks, name: str, arguments: dict[str, Any]) -> None:
    """Never returns."""
    code = 1
    try:
        os.dup2(2, 1)
        getattr(tasks, name)(**arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def main(framework: str, database: str, messaging: str) -> None:
    logging.basicConfig(level=logging.INFO)
    tables = import_module(f"outbox_on_{framework}").Tables(json.loads(database), json.loads(messaging))
    tasks = Tasks(tables, json.loads(messaging))
    for line in sys.stdin:
        name, arguments = json.loads(line)
        if name == "wait":
            answer = os.waitstatus_to_exitcode(os.waitpid(arguments, 0)[1])
        else:
            answer = os.fork()
            if not answer:
                child(tasks, name, arguments)
        print(answer, flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
