"""A backend in one file: topics in a file of SQLite, for the processes of one host.

It shows what the contract (incident_messaging/backends/base.py) asks of a broker, and is held to it by the conformance
suite. It is no broker for production: consumers look into the file fifty times a second.

The file is the one that SQLITE_BACKEND_FILE names, incidents.sqlite otherwise.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime

from incident_messaging import topics
from incident_messaging.backends.base import (
    Archive,
    ConsumerSpec,
    MessageConsumer,
    MessageProducer,
    Parcel,
    Sink,
    Start,
    Status,
)
from incident_messaging.config import MessagingConfig
from incident_messaging.deadline import Deadline
from incident_messaging.errors import BackendUnavailable, ConnectionFailed, ConsumeFailed, Timeout
from incident_messaging.record import Position, RawHeader, Received, Record

POLL_SECS = 0.02
#: Seconds between looks for members whose process has died.
BURY_SECS = 1.0
#: Seconds that a transaction waits for those of others.
BUSY_SECS = 10.0

#: ``held``: what a place has handed out and nobody has acknowledged; without a member it was given back.
SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT, key TEXT, headers TEXT, body BLOB, stored REAL);
CREATE TABLE IF NOT EXISTS places (name TEXT PRIMARY KEY, next INTEGER);
CREATE TABLE IF NOT EXISTS held (
    place TEXT, seq INTEGER, member TEXT, suspect INTEGER DEFAULT 0, starts INTEGER DEFAULT 0,
    PRIMARY KEY (place, seq));
"""


class File:
    """A connection to the file, for one thread at a time."""

    def __init__(self) -> None:
        path = os.environ.get("SQLITE_BACKEND_FILE", "incidents.sqlite")
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, timeout=BUSY_SECS, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.executescript(SCHEMA)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            yield self._db

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it or nothing."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def close(self) -> None:
        with self._lock:
            self._db.close()


class SqliteBroker(MessageProducer):
    """The door: publishes on one thread, which begins with the first record."""

    name = "sqlite"

    def __init__(self, config: MessagingConfig) -> None:
        self._writer = ThreadPoolExecutor(1, "incident-messaging-sqlite")
        self._lock = threading.Condition()
        self._opened: File | None = None
        self._closed = False
        self._under_way = 0

    def connect(self, deadline: Deadline) -> None:
        self._connected()

    def _connected(self) -> File:
        with self._lock:
            if self._closed:
                raise BackendUnavailable("the SQLite backend is closed", code="closed", backend=self.name)
            if self._opened is None:
                try:
                    self._opened = File()
                except sqlite3.Error as error:
                    raise ConnectionFailed(f"SQLite connection failed: {error}", backend=self.name) from error
            return self._opened

    def send_all(self, parcels: Sequence[Parcel]) -> None:
        with self._lock:
            self._under_way += len(parcels)
        try:
            self._writer.submit(self._write, list(parcels))
        except RuntimeError:  # the thread has ended
            self._tell(parcels, [None] * len(parcels), BackendUnavailable("closed", code="closed", backend=self.name))

    def _write(self, parcels: Sequence[Parcel]) -> None:
        positions: list[Position | None] = [None] * len(parcels)
        error: ConnectionFailed | BackendUnavailable | Timeout | None = None
        try:
            with self._connected().writing() as db:
                positions = [insert(db, parcel) for parcel in parcels]
        except (ConnectionFailed, BackendUnavailable) as failure:
            error = failure
        except sqlite3.Error as failure:  # rolled back: nothing is stored
            error = Timeout(f"SQLite did not store it: {failure}", backend=self.name, maybe_delivered=False)
        self._tell(parcels, positions, error)

    def _tell(self, parcels: Sequence[Parcel], positions: Sequence[Position | None], error: object) -> None:
        with self._lock:
            self._under_way -= len(parcels)
            self._lock.notify_all()
        for parcel, position in zip(parcels, positions, strict=True):
            parcel(position, False, error)  # type: ignore[arg-type]
        self.told()

    def consumer(self, spec: ConsumerSpec, sink: Sink) -> MessageConsumer:
        return SqliteConsumer(spec, sink)

    def archive(self, topic: str, patience: float) -> Archive:
        return SqliteArchive(topic)

    def status(self) -> Status:
        if self._closed:
            return Status(state="closed")
        return Status(state="new" if self._opened is None else "connected")

    def close(self, deadline: Deadline) -> int:
        self._writer.shutdown(wait=False)  # it ends with what it was given
        with self._lock:
            done = self._lock.wait_for(lambda: not self._under_way, deadline.left())
            self._closed = True
            if done and self._opened is not None:
                self._opened.close()
            return self._under_way


class SqliteConsumer(MessageConsumer):
    """A member of a place; one thread takes what there is room for and hands it out."""

    def __init__(self, spec: ConsumerSpec, sink: Sink) -> None:
        self._spec = spec
        self._sink = sink
        self._member = f"{os.getpid()}-{uuid.uuid4().hex}"
        self._wants = topics.regex(spec.topic).fullmatch
        self._not = spec.dead_letter_topic if topics.is_pattern(spec.topic) else None
        self._sizes: dict[int, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"incident-messaging-sqlite-{spec.name}", daemon=True)
        self._opened: File | None = None

    @property
    def _file(self) -> File:
        if self._opened is None:
            raise RuntimeError("open() comes first")
        return self._opened

    def open(self, deadline: Deadline) -> None:
        self._opened = File()
        with self._file.writing() as db:
            begin = first(db, self._spec.start)
            db.execute("INSERT OR IGNORE INTO places VALUES (?, ?)", (self._spec.name, begin))
            bury(db)
        self._thread.start()

    def ack(self, batch: Sequence[Received], deadline: Deadline | None = None) -> None:
        mine = [(self._spec.name, sequence(message), self._member) for message in batch]
        with self._file.writing() as db:
            db.executemany("DELETE FROM held WHERE place = ? AND seq = ? AND member = ?", mine)
            for _, seq, _ in mine:
                self._sizes.pop(seq, None)

    def extend(self, batch: Sequence[Received]) -> None:
        """Nothing runs out: a message is its member's as long as the process lives."""

    def mark(self, message: Received, starts: int, deadline: Deadline) -> None:
        with self._file.writing() as db:
            where = (starts, self._spec.name, sequence(message))
            db.execute("UPDATE held SET starts = ? WHERE place = ? AND seq = ?", where)

    def close(self, deadline: Deadline) -> str | None:
        if self._opened is None or self._stop.is_set():
            return None
        self._stop.set()
        self._thread.join(deadline.wait(BUSY_SECS))
        with self._file.writing() as db:
            db.execute("UPDATE held SET member = NULL WHERE member = ?", (self._member,))
            if self._spec.group is None:
                db.execute("DELETE FROM places WHERE name = ?", (self._spec.name,))
                db.execute("DELETE FROM held WHERE place = ?", (self._spec.name,))
        self._file.close()
        return None

    def _run(self) -> None:
        try:
            self._hand_out()
        except sqlite3.Error as error:
            self._sink.ended(ConsumeFailed(f"SQLite failed: {error}", code="lost_place", backend=SqliteBroker.name))

    def _hand_out(self) -> None:
        buried = time.monotonic()
        while not self._stop.wait(POLL_SECS):
            if time.monotonic() - buried > BURY_SECS:
                with self._file.writing() as db:
                    bury(db)
                buried = time.monotonic()
            if self._something():
                with self._file.writing() as db:
                    batch = list(self._take(db))
                if batch:
                    self._sink.deliver(batch)

    def _something(self) -> bool:
        """Whether there may be something to take: a look that holds up nobody's writing."""
        if len(self._sizes) >= self._spec.prefetch:
            return False
        query = """SELECT EXISTS (SELECT 1 FROM held WHERE place = :name AND member IS NULL)
            OR EXISTS (SELECT 1 FROM messages WHERE seq >= (SELECT next FROM places WHERE name = :name))"""
        with self._file.reading() as db:
            return bool(db.execute(query, {"name": self._spec.name}).fetchone()[0])

    def _take(self, db: sqlite3.Connection) -> Iterator[Received]:
        """What was given back, then what is new, as far as the prefetch goes."""
        name = self._spec.name
        back = """SELECT messages.*, suspect, starts FROM held JOIN messages USING (seq)
            WHERE place = ? AND member IS NULL ORDER BY seq"""
        for message in map(received, db.execute(back, (name,)).fetchall()):
            if not self._room(message):
                return
            where = (self._member, name, sequence(message))
            db.execute("UPDATE held SET member = ? WHERE place = ? AND seq = ?", where)
            yield message
        new = """SELECT messages.*, 0, 0 FROM messages
            WHERE seq >= (SELECT next FROM places WHERE name = ?) ORDER BY seq"""
        for message in map(received, db.execute(new, (name,))):
            seq = sequence(message)
            wanted = self._wants(message.topic) is not None and message.topic != self._not
            if wanted and not self._room(message):
                return
            db.execute("UPDATE places SET next = ? WHERE name = ?", (seq + 1, name))
            if wanted:
                db.execute("INSERT INTO held (place, seq, member) VALUES (?, ?, ?)", (name, seq, self._member))
                yield message

    def _room(self, message: Received) -> bool:
        """Take a place in the prefetch, if there is one; a single message always has one."""
        fits = sum(self._sizes.values()) + message.size <= self._spec.prefetch_bytes
        if self._sizes and not (fits and len(self._sizes) < self._spec.prefetch):
            return False
        self._sizes[sequence(message)] = message.size
        return True


class SqliteArchive(Archive):
    """A look into a topic."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._file = File()

    def read(self) -> Iterator[Received]:
        query = "SELECT *, 0, 0 FROM messages WHERE topic = ? ORDER BY seq"
        with self._file.reading() as db:
            rows = db.execute(query, (self._topic,)).fetchall()
        yield from map(received, rows)

    def remove(self, messages: Sequence[Received]) -> None:
        gone = [(sequence(message),) for message in messages]
        with self._file.writing() as db:
            db.executemany("DELETE FROM messages WHERE seq = ?", gone)

    def close(self) -> None:
        self._file.close()


def insert(db: sqlite3.Connection, record: Record) -> Position:
    """Store a record; foreign bytes in keys and headers are kept as they are."""
    ours = ((name, text.encode("utf-8", "surrogateescape")) for name, text in record.headers.items())
    pairs = [(name, None if raw is None else raw.decode("latin-1")) for name, raw in (*record.raw_headers, *ours)]
    key = None if record.key is None else json.dumps(record.key)
    row = (record.topic, key, json.dumps(pairs), record.body, time.time())
    cursor = db.execute("INSERT INTO messages (topic, key, headers, body, stored) VALUES (?, ?, ?, ?, ?)", row)
    return Position(topic=record.topic, partition=0, offset=cursor.lastrowid)


def received(row: tuple[object, ...]) -> Received:
    """A row of ``messages``, with what is known of a process that died of it."""
    seq, topic, key, headers, body, stored, suspect, starts = row
    pairs: list[RawHeader] = [
        (name, None if raw is None else raw.encode("latin-1")) for name, raw in json.loads(str(headers))
    ]
    return Received(
        topic=str(topic),
        body=bytes(body),  # type: ignore[call-overload]
        key=None if key is None else json.loads(str(key)),
        headers={name: (raw or b"").decode("utf-8", "surrogateescape") for name, raw in pairs},
        raw_headers=pairs,
        position=Position(topic=str(topic), partition=0, offset=int(str(seq))),
        timestamp=float(str(stored)),
        fallback_id=f"{topic}-0-{seq}",
        suspect=bool(suspect),
        starts=int(str(starts)),
    )


def sequence(message: Received) -> int:
    return message.position.offset or 0


def first(db: sqlite3.Connection, start: Start) -> int:
    """Where a place that does not exist yet begins."""
    if isinstance(start, Position):
        return start.offset or 0
    if isinstance(start, datetime):
        query = "SELECT min(seq) FROM messages WHERE stored >= ?"
        found = db.execute(query, (start.timestamp(),)).fetchone()[0]
        return int(found) if found is not None else after_last(db)
    return 0 if start == "earliest" else after_last(db)


def after_last(db: sqlite3.Connection) -> int:
    """The number of the next message; the highest one may have been removed."""
    found = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'messages'").fetchone()
    return int(found[0]) + 1 if found else 0


def bury(db: sqlite3.Connection) -> None:
    """Give back what members have whose process has died; it may have died of one of these messages."""
    query = "SELECT DISTINCT member FROM held WHERE member IS NOT NULL"
    for (member,) in db.execute(query).fetchall():
        if not lives(int(member.partition("-")[0])):
            db.execute("UPDATE held SET member = NULL, suspect = 1 WHERE member = ?", (member,))


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
