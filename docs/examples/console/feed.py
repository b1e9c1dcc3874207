"""What the pages see: the incidents, live, from one subscription for each process.

However many pages are open, the process has one consumer on the broker. Each page has a short queue; one
that does not read it is let go, and catches up when it comes again.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

from incidents import Board, Incident

from incident_messaging import BackendUnavailable, Delivery, IncidentEvent, MessagingError, MessagingService

log = logging.getLogger("console")

QUEUE = 100  # events that a page may be behind
PING_SECS = 15.0  # a page that hears nothing for longer knows that the server is away
POLL_SECS = 0.5  # how often the broker's health is looked at
AGAIN_SECS = 2.0  # until the next try to subscribe
READY_SECS = 5.0  # that a request waits for the history to be read
HISTORY_SECS = 30.0  # after which what has been read of it is shown
LONGEST_ID = 2_000  # characters that a page is given to ask with: a server refuses a request line of some 4,000

NAMES = {"nats": "NATS", "kafka": "Kafka", "memory": "memory"}


class Page:
    """One open page: events that wait for it."""

    def __init__(self, last_id: str | None) -> None:
        self.last_id = last_id
        self._events: queue.Queue[str] = queue.Queue(maxsize=QUEUE)
        self._over = False

    def offer(self, event: str) -> bool:
        """Let it have an event; false if it reads too slowly, and is over."""
        try:
            self._events.put_nowait(event)
        except queue.Full:
            self._over = True
        return not self._over

    def end(self) -> None:
        self._over = True
        if self._events.empty():
            self._events.put_nowait("")  # wakes it

    def events(self) -> Iterator[str]:
        """The events as they come, until it is over."""
        while not self._over:
            try:
                yield self._events.get(timeout=PING_SECS)
            except queue.Empty:
                yield _event("ping", {})


class Feed:
    """Follows the incidents, and tells every open page. It begins when it is first asked for anything."""

    def __init__(self, service: MessagingService) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._ready = threading.Event()
        self._thread: threading.Thread | None = None
        self._board: Board | None = None  # none until the history has been read
        self._pages: list[Page] = []
        self._status = self._look()

    # -- for the web ------------------------------------------------------------------------------

    def incidents(self) -> list[Incident]:
        board = self._known()
        with self._lock:
            return board.incidents()

    def get(self, incident_id: str) -> Incident | None:
        board = self._known()
        with self._lock:
            return board.get(incident_id)

    def stream(self, last_id: str | None) -> Iterator[str]:
        """The server-sent events of one page: what it has missed since ``last_id``, then what happens."""
        self._begin()
        page = Page(last_id)
        with self._lock:  # so that nothing falls between catching up and what comes next
            page.offer(_event("status", self._status))
            self._greet(page)
            self._pages.append(page)
        try:
            yield f"retry: {int(AGAIN_SECS * 1000)}\n\n"
            yield from page.events()
        finally:
            with self._lock:
                if page in self._pages:
                    self._pages.remove(page)

    def close(self) -> None:
        """Let all pages go, and the subscription."""
        self._stopping.set()
        with self._lock:
            thread = self._thread
            for page in self._pages:
                page.end()
        if thread is not None:
            thread.join()

    # -- the thread that follows ------------------------------------------------------------------

    def _known(self) -> Board:
        """The board, for which a request waits a little if the process has just begun."""
        self._begin()
        if not self._ready.wait(READY_SECS) or self._board is None:
            raise BackendUnavailable("the incidents have not been read yet", code="down")
        return self._board

    def _begin(self) -> None:
        # Not in the constructor: a server that loads the application and then forks would lose the thread.
        with self._lock:
            if self._thread is None and not self._stopping.is_set():
                self._thread = threading.Thread(target=self._run, name="console-feed", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._follow()
            except MessagingError as error:
                if isinstance(error, BackendUnavailable) and error.code == "closed":
                    return
                log.warning("the subscription ended, trying again: %s", error)
                self._say_status(str(error))
                self._stopping.wait(AGAIN_SECS)

    def _follow(self) -> None:
        """Read the history, show it, and go on with what happens."""
        board, shown, begun = Board(), False, time.time()
        late = time.monotonic() + HISTORY_SECS  # some writers' clocks are behind, and some never pause
        with self._service.subscribe("incidents.*", IncidentEvent, broadcast=True, start="earliest") as subscription:
            while not self._stopping.is_set():
                delivery = subscription.next(timeout=POLL_SECS)
                if delivery is not None:
                    self._take(board, delivery, shown)
                if not shown and (_is_news(delivery, begun) or time.monotonic() > late):
                    self._show(board)
                    shown = True
                self._say_status()

    def _take(self, board: Board, delivery: Delivery[IncidentEvent], shown: bool) -> None:
        source, number = _place(delivery)
        metadata = delivery.metadata
        with self._lock:
            incident = board.add(source, number, metadata.message_id, delivery.payload, metadata.timestamp)
            if shown and incident is not None:
                self._tell(_event("incidents", [incident.to_dict()], _id(board)))

    def _show(self, board: Board) -> None:
        with self._lock:
            again, self._board = self._board is not None, board
            self._ready.set()
            for page in self._pages:
                if again:
                    page.last_id = None  # what it was told since belongs to the board before
                self._greet(page)

    def _greet(self, page: Page) -> None:
        if self._board is None:
            return
        missed = self._board.since(page.last_id) if page.last_id is not None else None
        kind, incidents = ("snapshot", self._board.incidents()) if missed is None else ("incidents", missed)
        page.offer(_event(kind, [incident.to_dict() for incident in incidents], _id(self._board)))

    def _say_status(self, trouble: str | None = None) -> None:
        status = self._look(trouble)
        with self._lock:
            if status != self._status:
                self._status = status
                self._tell(_event("status", status))

    def _tell(self, event: str) -> None:
        self._pages = [page for page in self._pages if page.offer(event)]

    def _look(self, trouble: str | None = None) -> dict[str, Any]:
        """How the brokers are, in words."""
        brokers = self._service.health().backends
        names = {NAMES[name]: status for name, status in brokers.items()}
        away = [f"{name} is away{_why(status.error)}." for name, status in names.items() if _is_away(status)]
        if self._board is None and trouble is None:
            return {"ok": True, "text": "Reading the history."}
        if trouble is not None and not away:
            away = [f"The subscription ended{_why(trouble)}."]
        if away:
            return {"ok": False, "text": " ".join(away)}
        return {"ok": True, "text": f"Live from {' and '.join(names)}."}


def _is_news(delivery: Delivery[Any] | None, begun: float) -> bool:
    """Whether the history is over: nothing comes, or what has happened since."""
    return delivery is None or delivery.metadata.timestamp >= begun


def _id(board: Board) -> str | None:
    """How far it was read; of very many partitions nothing, and a page that comes again is told everything."""
    read = board.id
    return read if len(read) <= LONGEST_ID else None


def _place(delivery: Delivery[Any]) -> tuple[str, int]:
    """Where the broker keeps a message: a source in which numbers only grow, and the number there."""
    position = delivery.position
    if position.stream is not None:
        return position.stream, position.sequence or 0
    return f"{delivery.topic.removeprefix('incidents.')}/{position.partition}", position.offset or 0


def _event(kind: str, data: Any, event_id: str | None = None) -> str:
    first = "" if event_id is None else f"id: {event_id}\n"
    return f"{first}event: {kind}\ndata: {json.dumps(data)}\n\n"


def _is_away(status: Any) -> bool:
    """Of two brokers the one that is only published to is new until the first publish."""
    return status.state != "connected" and bool(status.state != "new" or status.error)


def _why(error: str | None) -> str:
    return f" ({error})" if error else ""
